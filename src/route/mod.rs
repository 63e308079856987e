//! Which node a statement goes to, and why.

pub mod balance;
