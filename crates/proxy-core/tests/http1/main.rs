//! HTTP/1 as a whole: tables of raw messages, a foreign corpus, and properties.

mod corpus;
mod encoding;
mod properties;
mod requests;
mod responses;
mod support;
