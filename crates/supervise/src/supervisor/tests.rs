mod adoption;
mod host;
mod properties;
mod scenarios;
mod simulation;
mod world;
