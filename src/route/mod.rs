//! Where a statement runs, and why.

pub mod alike;
pub mod rotation;
pub mod balance;
pub mod block;
pub mod decide;
pub mod explain;
pub mod plan;
pub mod reuse;
pub mod sighted;
pub mod text;
