//! The client's side: logs in to a server, by password or by keys (`fe-auth-scram.c`).

use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;

use super::attributes::Attributes;
use super::{BASE64, END_POINT_HEADER, Nonce, auth_message, binding_attribute};
use crate::auth::LoginError;
use crate::auth::secret::{Password, ScramKeys, hmac_sha256};

/// A hostile server may name any number of rounds; at this one a login costs about 0.15 s.
const MAX_ITERATIONS: u32 = 1_000_000;

/// What the client knows of channel binding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientBinding {
    /// No TLS, or a certificate that cannot be bound to.
    Unable,
    /// Could, but the server does not offer it; a server that does sees from this that it was deceived.
    NotOffered,
    /// tls-server-end-point data: the hash of the server's certificate.
    EndPoint(Vec<u8>),
}

/// One login to one server.
#[derive(Debug)]
pub struct ClientExchange {
    password: Option<Password>,
    keys: Option<ScramKeys>,
    nonce: Nonce,
    binding: ClientBinding,
    state: State,
}

#[derive(Debug)]
enum State {
    First,
    /// Waits for the server's proof, made of this.
    Final {
        signed: Vec<u8>,
    },
    Done,
    Broken,
}

impl ClientExchange {
    /// Keys are used where they fit the server's salt; otherwise they are made from the password, which costs PBKDF2.
    pub fn new(password: Option<Password>, keys: Option<ScramKeys>, nonce: Nonce, binding: ClientBinding) -> Self {
        ClientExchange { password, keys, nonce, binding, state: State::First }
    }

    /// The client-first-message.
    pub fn first(&self) -> Vec<u8> {
        [self.header(), &self.first_bare()].concat()
    }

    fn header(&self) -> &'static [u8] {
        match self.binding {
            ClientBinding::Unable => b"n,,",
            ClientBinding::NotOffered => b"y,,",
            ClientBinding::EndPoint(_) => END_POINT_HEADER,
        }
    }

    /// Without a user: Postgres takes the startup packet's.
    fn first_bare(&self) -> Vec<u8> {
        [b"n=,r=", &self.nonce.0[..]].concat()
    }

    /// Takes the server-first-message; gives the client-final-message.
    ///
    /// # Errors
    /// The server's message is malformed, or no key fits it.
    pub fn step(&mut self, server_first: &[u8]) -> Result<Vec<u8>, LoginError> {
        let State::First = std::mem::replace(&mut self.state, State::Broken) else {
            return Err(LoginError::Malformed("SCRAM message out of order"));
        };
        let (nonce, salt, iterations) = self.read_first(server_first)?;
        let binding = match &self.binding {
            ClientBinding::EndPoint(data) => binding_attribute(self.header(), data),
            _ => binding_attribute(self.header(), b""),
        };
        let without_proof = [b"c=", &binding[..], b",r=", nonce].concat();
        let signed = auth_message(&self.first_bare(), server_first, &without_proof);
        let proof = self.fitting_keys(salt, iterations)?.proof(&signed);
        self.state = State::Final { signed };
        Ok([&without_proof[..], b",p=", BASE64.encode(proof).as_bytes()].concat())
    }

    /// Takes the server-final-message. Only after it has the server proved that it knows the password.
    ///
    /// # Errors
    /// The message is malformed, is an error, or the proof is wrong.
    pub fn finish(&mut self, server_final: &[u8]) -> Result<(), LoginError> {
        let (State::Final { signed }, Some(keys)) = (std::mem::replace(&mut self.state, State::Broken), &self.keys)
        else {
            return Err(LoginError::Malformed("SCRAM message out of order"));
        };
        let mut rest = Attributes::new(server_final);
        if server_final.first() == Some(&b'e') {
            let error = rest.value(b'e').unwrap_or_default();
            return Err(LoginError::Server(String::from_utf8_lossy(error).into_owned()));
        }
        let signature =
            rest.value(b'v').map_err(|_| LoginError::Malformed("server-final-message without signature"))?;
        if !rest.is_empty() {
            return Err(LoginError::Malformed("bytes behind the server's signature"));
        }
        let signature =
            BASE64.decode(signature).map_err(|_| LoginError::Malformed("server's signature is not base64"))?;
        verify_slices_are_equal(&signature, &hmac_sha256(&keys.server_key, &[&signed]))
            .map_err(|_| LoginError::ServerSignature)?;
        self.state = State::Done;
        Ok(())
    }

    /// Whether the server has proved itself.
    pub fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// The keys of this login, worth keeping for the next one.
    pub fn keys(&self) -> Option<&ScramKeys> {
        self.keys.as_ref()
    }

    fn read_first<'a>(&self, message: &'a [u8]) -> Result<(&'a [u8], Vec<u8>, NonZeroU32), LoginError> {
        let malformed = |_| LoginError::Malformed("server-first-message");
        let mut rest = Attributes::new(message);
        let nonce = rest.value(b'r').map_err(malformed)?;
        if !nonce.starts_with(&self.nonce.0) {
            return Err(LoginError::Malformed("the nonce is not an answer to ours"));
        }
        let salt = BASE64.decode(rest.value(b's').map_err(malformed)?);
        let salt = salt.map_err(|_| LoginError::Malformed("the salt is not base64"))?;
        let iterations = rest.value(b'i').map_err(malformed)?;
        let iterations = std::str::from_utf8(iterations).ok().and_then(|text| text.parse::<NonZeroU32>().ok());
        let iterations = iterations.ok_or(LoginError::Malformed("the number of iterations"))?;
        if !rest.is_empty() {
            return Err(LoginError::Malformed("bytes behind server-first-message"));
        }
        if iterations.get() > MAX_ITERATIONS {
            return Err(LoginError::Iterations(iterations.get()));
        }
        Ok((nonce, salt, iterations))
    }

    fn fitting_keys(&mut self, salt: Vec<u8>, iterations: NonZeroU32) -> Result<&ScramKeys, LoginError> {
        let keys = match (self.keys.take().filter(|keys| keys.fit(&salt, iterations)), &self.password) {
            (Some(keys), _) => keys,
            (None, Some(password)) => ScramKeys::derive(password.as_bytes(), salt, iterations),
            (None, None) => {
                return Err(LoginError::Credentials(
                    "the server's SCRAM verifier has another salt or other iterations than the one the client logged in by",
                ));
            }
        };
        Ok(self.keys.insert(keys))
    }
}
