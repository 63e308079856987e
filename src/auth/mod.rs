//! Authentication as pure steps: [`ServerAuth`] checks a client, [`ClientAuth`] logs in to a server.
//!
//! In and out go the bodies of messages; their headers, sockets and timeouts are the caller's. Randomness is an argument.

mod body;
mod client;
mod error;
mod md5;
pub mod rules;
mod scram;
pub mod secret;
mod server;

pub use client::{ClientAuth, Reply};
pub use error::{AuthError, LoginError};
pub use md5::Md5Hash;
pub use scram::{ClientBinding, ClientExchange, Nonce, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ServerExchange, ServerStep};
pub use secret::{MalformedVerifier, Password, ScramKeys, Secret, Verifier};
pub use server::{Entropy, Method, ServerAuth, Step};

/// The longest PasswordMessage worth reading, in bytes (Postgres's `PG_MAX_AUTH_TOKEN_LENGTH`).
pub const MAX_PASSWORD_LEN: usize = 65535;
/// The longest SASL message, in bytes (Postgres's `PG_MAX_SASL_MESSAGE_LENGTH`).
pub const MAX_SASL_LEN: usize = 1024;
/// The body of AuthenticationOk.
pub const AUTHENTICATION_OK: [u8; 4] = [0; 4];

/// What a login has shown of a user's password: what the user can be logged in to servers with.
#[derive(Debug, Clone)]
pub enum Credentials {
    /// Nothing; serves only where the server trusts.
    None,
    /// Serves every method.
    Plain(Password),
    /// Serves only the md5 method.
    Md5(Md5Hash),
    /// Serves SCRAM where the server has the same verifier.
    Scram(ScramKeys),
}

#[cfg(test)]
mod tests;
