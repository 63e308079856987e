//! Pools of server connections: one for each database, user and node.

pub mod books;
pub mod checkout;
pub mod create;
pub mod lease;
pub mod ledger;
pub mod registry;
