//! `pgweir demo`: a throw-away cluster, sample data, a load, and pgweir in between.

pub mod cluster;
pub mod error;
