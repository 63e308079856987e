//! Pools of server connections: one for each database, user and node.

pub mod ledger;
