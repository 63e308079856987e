//! The login to a server.

use std::fmt;

use super::body::{self, CLEARTEXT, MD5, OK, SASL, SASL_CONTINUE, SASL_FINAL};
use super::scram::{ClientBinding, ClientExchange, Nonce, SCRAM_SHA_256, SCRAM_SHA_256_PLUS};
use super::{Credentials, LoginError, Md5Hash, ScramKeys};

/// What to do after an Authentication message of the server.
pub enum Reply {
    /// Send a message of type `p` with this body.
    Send(Vec<u8>),
    /// Nothing; another Authentication message follows.
    Wait,
    /// AuthenticationOk: the login is over.
    Done,
    /// Close the connection.
    Fail(LoginError),
}

impl fmt::Debug for Reply {
    /// An answer may be the password itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Send(body) => write!(f, "Send({} bytes)", body.len()),
            Reply::Wait => f.write_str("Wait"),
            Reply::Done => f.write_str("Done"),
            Reply::Fail(error) => write!(f, "Fail({error:?})"),
        }
    }
}

/// One login to one server: [`ClientAuth::step`] with each Authentication message until `Done`.
#[derive(Debug)]
pub struct ClientAuth {
    user: String,
    credentials: Credentials,
    /// Keys of an earlier login by the same password: where they fit, PBKDF2 is saved.
    known: Option<ScramKeys>,
    nonce: Nonce,
    end_point: Option<Vec<u8>>,
    exchange: Option<ClientExchange>,
}

impl ClientAuth {
    /// `known` are [`ClientAuth::keys`] of an earlier login with the same password, or `None`.
    /// `end_point` is the TLS connection's channel binding data; with it, SCRAM-SHA-256-PLUS is preferred.
    pub fn new(
        user: &str,
        credentials: Credentials,
        known: Option<ScramKeys>,
        nonce: Nonce,
        end_point: Option<Vec<u8>>,
    ) -> Self {
        ClientAuth { user: user.to_owned(), credentials, known, nonce, end_point, exchange: None }
    }

    /// The keys this login was made with, once SCRAM has succeeded.
    pub fn keys(&self) -> Option<&ScramKeys> {
        self.exchange.as_ref().filter(|exchange| exchange.is_done()).and_then(ClientExchange::keys)
    }

    /// Takes the body of an Authentication message (type `R`).
    pub fn step(&mut self, body: &[u8]) -> Reply {
        self.answer(body).unwrap_or_else(Reply::Fail)
    }

    fn answer(&mut self, body: &[u8]) -> Result<Reply, LoginError> {
        let (code, data) = body::split_request(body).ok_or(LoginError::Malformed("no authentication code"))?;
        match (code, &mut self.exchange) {
            (OK, None) => Ok(Reply::Done),
            // whoever skips the proof does not know the password
            (OK, Some(exchange)) if exchange.is_done() => Ok(Reply::Done),
            (OK, Some(_)) => Err(LoginError::ServerSignature),
            (SASL, None) => self.sasl(data),
            (SASL_CONTINUE, Some(exchange)) => exchange.step(data).map(Reply::Send),
            (SASL_FINAL, Some(exchange)) => exchange.finish(data).map(|()| Reply::Wait),
            (_, Some(_)) | (SASL_CONTINUE | SASL_FINAL, None) => {
                Err(LoginError::Malformed("SASL message out of order"))
            }
            (CLEARTEXT, None) => self.cleartext(),
            (MD5, None) => self.md5(data),
            (code, None) => Err(LoginError::Method(code)),
        }
    }

    fn cleartext(&self) -> Result<Reply, LoginError> {
        match &self.credentials {
            Credentials::Plain(password) if password.as_bytes().contains(&0) => {
                Err(LoginError::Credentials("a password with a zero byte cannot be sent"))
            }
            Credentials::Plain(password) => Ok(Reply::Send([password.as_bytes(), &[0]].concat())),
            Credentials::Md5(_) | Credentials::Scram(_) => {
                Err(LoginError::Credentials("the server asks for the password in clear, and only its hash is known"))
            }
            Credentials::None => Err(no_password()),
        }
    }

    fn md5(&self, data: &[u8]) -> Result<Reply, LoginError> {
        let salt = data.try_into().map_err(|_| LoginError::Malformed("the md5 salt is not four bytes"))?;
        let hash = match &self.credentials {
            Credentials::Plain(password) => Md5Hash::of(password.as_bytes(), &self.user),
            Credentials::Md5(hash) => hash.clone(),
            Credentials::Scram(_) => {
                return Err(LoginError::Credentials("the server asks for md5, and only SCRAM keys are known"));
            }
            Credentials::None => return Err(no_password()),
        };
        Ok(Reply::Send([&hash.response(salt)[..], &[0]].concat()))
    }

    fn sasl(&mut self, data: &[u8]) -> Result<Reply, LoginError> {
        let names = data.strip_suffix(&[0, 0]).ok_or(LoginError::Malformed("the list of SASL mechanisms"))?;
        let offers = |name: &str| names.split(|&b| b == 0).any(|offered| offered == name.as_bytes());
        let (mechanism, binding) = match &self.end_point {
            Some(data) if offers(SCRAM_SHA_256_PLUS) => (SCRAM_SHA_256_PLUS, ClientBinding::EndPoint(data.clone())),
            _ if !offers(SCRAM_SHA_256) => {
                return Err(LoginError::Mechanisms(String::from_utf8_lossy(names).replace('\0', ", ")));
            }
            Some(_) => (SCRAM_SHA_256, ClientBinding::NotOffered),
            None => (SCRAM_SHA_256, ClientBinding::Unable),
        };
        let (password, keys) = match &self.credentials {
            Credentials::Plain(password) => (Some(password.clone()), self.known.take()),
            Credentials::Scram(keys) => (None, Some(keys.clone())),
            Credentials::Md5(_) => {
                return Err(LoginError::Credentials("the server asks for SCRAM, and only the md5 hash is known"));
            }
            Credentials::None => return Err(no_password()),
        };
        let exchange = ClientExchange::new(password, keys, self.nonce.clone(), binding);
        let first = exchange.first();
        self.exchange = Some(exchange);
        // a GS2 header and a nonce: far below i32::MAX
        let len = (first.len() as i32).to_be_bytes();
        Ok(Reply::Send([mechanism.as_bytes(), &[0], &len, &first].concat()))
    }
}

fn no_password() -> LoginError {
    LoginError::Credentials("the server asks for a password, and none is known")
}
