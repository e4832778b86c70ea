mod adoption;
mod properties;
mod scenarios;
mod simulation;
mod world;
