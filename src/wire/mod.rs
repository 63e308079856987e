//! Postgres's frontend/backend protocol as bytes: frames are scanned, not decoded (protocol documentation,
//! "Message Formats").

pub mod read;
pub mod scan;
pub mod startup;
pub mod tag;
pub mod write;
