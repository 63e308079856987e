//! What a client's session is, apart from any socket: its prepared statements, parameters, pins, and the replies
//! it is owed.

pub mod bound;
pub mod channels;
pub mod datestyle;
pub mod environment;
pub mod parameters;
pub mod pins;
pub mod pipeline;
pub mod prepared;
pub mod token;
pub mod values;
