//! Why a login failed: by the client's fault, or by the server's.

use std::fmt;

/// Why a client's login failed. Each has the SQLSTATE and, as far as it is known, the wording Postgres gives it
/// (`auth.c`, `auth-sasl.c`, `auth-scram.c`), so that drivers react as they would to Postgres itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthError {
    /// Wrong password, unknown user, or an account without one: never told apart (28P01).
    Password,
    /// An empty password (28P01).
    EmptyPassword,
    /// The client broke the protocol (08P01).
    Protocol { message: &'static str, detail: Option<String> },
    /// A part of SCRAM that Postgres does not have either (0A000).
    Unsupported(&'static str),
    /// Channel binding failed: somebody may sit between client and proxy (28000).
    ChannelBinding { message: &'static str, detail: Option<&'static str> },
}

impl AuthError {
    pub(crate) fn protocol(message: &'static str) -> Self {
        AuthError::Protocol { message, detail: None }
    }

    /// Postgres's "malformed SCRAM message" with its detail.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        AuthError::Protocol { message: "malformed SCRAM message", detail: Some(detail.into()) }
    }

    pub fn sqlstate(&self) -> &'static str {
        match self {
            AuthError::Password | AuthError::EmptyPassword => "28P01",
            AuthError::Protocol { .. } => "08P01",
            AuthError::Unsupported(_) => "0A000",
            AuthError::ChannelBinding { .. } => "28000",
        }
    }

    /// The primary message of the ErrorResponse (severity FATAL).
    pub fn message(&self, user: &str) -> String {
        match self {
            AuthError::Password => format!("password authentication failed for user \"{user}\""),
            AuthError::EmptyPassword => "empty password returned by client".into(),
            AuthError::Protocol { message, .. } | AuthError::ChannelBinding { message, .. } => (*message).into(),
            AuthError::Unsupported(message) => (*message).into(),
        }
    }

    /// The detail field, if there is one. It repeats at most one character of what the client sent.
    pub fn detail(&self) -> Option<&str> {
        match self {
            AuthError::Protocol { detail, .. } => detail.as_deref(),
            AuthError::ChannelBinding { detail, .. } => *detail,
            _ => None,
        }
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AuthError::Password => f.write_str("password authentication failed")?,
            other => f.write_str(&other.message(""))?,
        }
        match self.detail() {
            Some(detail) => write!(f, ": {detail}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for AuthError {}

/// Why logging in to a server failed before the server itself said so in an ErrorResponse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginError {
    /// The server broke the protocol.
    Malformed(&'static str),
    /// The server asks for a method that is not spoken here (its number in the protocol).
    Method(i32),
    /// The server offers SASL, but no mechanism that is spoken here.
    Mechanisms(String),
    /// The server wants something that cannot be made from what is known of the user's password.
    Credentials(&'static str),
    /// The server does not know the password: it may be another one.
    ServerSignature,
    /// `e=…` in the server's final SCRAM message.
    Server(String),
    /// The server asks for more PBKDF2 rounds than is reasonable.
    Iterations(u32),
}

impl fmt::Display for LoginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LoginError::Malformed(what) => {
                write!(f, "malformed authentication message from server: {what}")
            }
            LoginError::Method(code) => {
                write!(f, "server asks for authentication method {code}, which is not supported")
            }
            LoginError::Mechanisms(names) => write!(f, "none of the server's SASL mechanisms is supported: {names}"),
            LoginError::Credentials(why) => f.write_str(why),
            LoginError::ServerSignature => f.write_str("server could not prove that it knows the password"),
            LoginError::Server(error) => write!(f, "server refused the SCRAM exchange: {error}"),
            LoginError::Iterations(n) => write!(f, "server asks for {n} SCRAM iterations, more than is accepted"),
        }
    }
}

impl std::error::Error for LoginError {}
