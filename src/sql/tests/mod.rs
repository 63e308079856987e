//! Tables of statements with what they must be, and properties over any text.

mod effects;
mod fingerprints;
mod lexing;
mod properties;
mod reasons;
mod shapes;
