//! The login of a client.

use std::sync::Arc;

use aws_lc_rs::error::Unspecified;

use super::body::{self, CLEARTEXT, MD5, SASL_CONTINUE, SASL_FINAL};
use super::scram::{Nonce, SCRAM_SHA_256, SCRAM_SHA_256_PLUS, ServerExchange, ServerStep};
use super::secret::{Secret, Verifier};
use super::{AuthError, Credentials, MAX_PASSWORD_LEN, MAX_SASL_LEN, Md5Hash, Password};

/// How a client is asked who it is.
#[derive(Debug, Clone)]
pub enum Method {
    /// Not at all.
    Trust,
    /// For the password in clear, which only a server can check afterwards.
    Passthrough,
    /// For the password in clear, checked here. `None`: there is no such user.
    Cleartext(Option<Arc<Secret>>),
    /// By md5, for a secret that is plain or md5. `None`: there is no such user.
    Md5(Option<Arc<Secret>>),
    /// By SCRAM-SHA-256. `None`: there is no such user.
    Scram(Option<Arc<Verifier>>),
}

/// The randomness of one login.
#[derive(Debug, Clone)]
pub struct Entropy {
    pub nonce: Nonce,
    pub md5_salt: [u8; 4],
}

impl Entropy {
    /// From the system's randomness.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn draw() -> Result<Self, Unspecified> {
        let mut md5_salt = [0; 4];
        aws_lc_rs::rand::fill(&mut md5_salt)?;
        Ok(Entropy { nonce: Nonce::draw()?, md5_salt })
    }
}

/// What to do after a message of the client.
#[derive(Debug)]
pub enum Step {
    /// Send an Authentication message with this body; its answer is the next step.
    Continue(Vec<u8>),
    /// The client is who it says. Send the final message's body, if there is one, then [`super::AUTHENTICATION_OK`].
    Done { final_body: Option<Vec<u8>>, credentials: Credentials },
    /// Send an ErrorResponse and close.
    Fail(AuthError),
}

/// One login of one client: [`ServerAuth::start`], then [`ServerAuth::step`] with each message until it ends.
#[derive(Debug)]
pub struct ServerAuth {
    user: String,
    state: State,
    entropy: Entropy,
    /// tls-server-end-point data of the connection, where there is any.
    end_point: Option<Vec<u8>>,
    mock_nonce: [u8; 32],
}

#[derive(Debug)]
enum State {
    Asked(Method),
    Sasl(ServerExchange),
    Over,
}

impl ServerAuth {
    /// `end_point` is the TLS connection's channel binding data; with it, SCRAM-SHA-256-PLUS is offered.
    /// `mock_nonce` is 32 random bytes that stay the same for as long as possible: they make the salts of unknown users.
    pub fn new(user: &str, method: Method, entropy: Entropy, end_point: Option<Vec<u8>>, mock_nonce: [u8; 32]) -> Self {
        ServerAuth { user: user.to_owned(), state: State::Asked(method), entropy, end_point, mock_nonce }
    }

    /// The first request to the client, or `Done` where it is not asked.
    pub fn start(&self) -> Step {
        match &self.state {
            State::Asked(Method::Trust) => Step::Done { final_body: None, credentials: Credentials::None },
            State::Asked(Method::Passthrough | Method::Cleartext(_)) => Step::Continue(body::request(CLEARTEXT, &[])),
            State::Asked(Method::Md5(_)) => Step::Continue(body::request(MD5, &self.entropy.md5_salt)),
            State::Asked(Method::Scram(_)) => Step::Continue(body::mechanisms(match self.end_point {
                Some(_) => &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256],
                None => &[SCRAM_SHA_256],
            })),
            _ => Step::Fail(AuthError::protocol("login started twice")),
        }
    }

    /// Takes the body of a PasswordMessage, SASLInitialResponse or SASLResponse (all of type `p`).
    pub fn step(&mut self, body: &[u8]) -> Step {
        let sasl = !matches!(self.state, State::Asked(Method::Passthrough | Method::Cleartext(_) | Method::Md5(_)));
        if body.len() > if sasl { MAX_SASL_LEN } else { MAX_PASSWORD_LEN } {
            self.state = State::Over;
            return Step::Fail(AuthError::protocol("invalid message length"));
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::Asked(Method::Passthrough) => match body::password(body) {
                Ok(password) => done(Credentials::Plain(Password::new(password))),
                Err(error) => Step::Fail(error),
            },
            State::Asked(Method::Cleartext(secret)) => self.cleartext(secret.as_deref(), body),
            State::Asked(Method::Md5(secret)) => self.md5(secret.as_deref(), body),
            State::Asked(Method::Scram(verifier)) => self.sasl_initial(verifier, body),
            State::Sasl(exchange) => self.sasl(exchange, body),
            State::Asked(Method::Trust) | State::Over => {
                Step::Fail(AuthError::protocol("password message where none was asked for"))
            }
        }
    }

    fn cleartext(&self, secret: Option<&Secret>, body: &[u8]) -> Step {
        match body::password(body) {
            Ok(password) if secret.is_some_and(|secret| secret.matches(&self.user, password)) => {
                done(Credentials::Plain(Password::new(password)))
            }
            Ok(_) => Step::Fail(AuthError::Password),
            Err(error) => Step::Fail(error),
        }
    }

    fn md5(&self, secret: Option<&Secret>, body: &[u8]) -> Step {
        let response = match body::password(body) {
            Ok(response) => response,
            Err(error) => return Step::Fail(error),
        };
        let (hash, credentials) = match secret {
            Some(Secret::Plain(password)) => {
                (Md5Hash::of(password.as_bytes(), &self.user), Credentials::Plain(password.clone()))
            }
            Some(Secret::Md5(hash)) => (hash.clone(), Credentials::Md5(hash.clone())),
            // a verifier cannot be checked by md5
            Some(Secret::Scram(_)) | None => return Step::Fail(AuthError::Password),
        };
        match hash.accepts(response, self.entropy.md5_salt) {
            true => done(credentials),
            false => Step::Fail(AuthError::Password),
        }
    }

    fn sasl_initial(&mut self, verifier: Option<Arc<Verifier>>, body: &[u8]) -> Step {
        let (mechanism, data) = match body::sasl_initial(body) {
            Ok(parts) => parts,
            Err(error) => return Step::Fail(error),
        };
        let plus = mechanism == SCRAM_SHA_256_PLUS.as_bytes();
        if !(plus && self.end_point.is_some() || mechanism == SCRAM_SHA_256.as_bytes()) {
            return Step::Fail(AuthError::protocol("client selected an invalid SASL authentication mechanism"));
        }
        let (nonce, end_point) = (self.entropy.nonce.clone(), self.end_point.clone());
        let exchange = match verifier {
            Some(verifier) => ServerExchange::new(verifier, nonce, end_point, plus),
            None => ServerExchange::mock(&self.user, &self.mock_nonce, nonce, end_point, plus),
        };
        match data {
            Some(data) => self.sasl(exchange, data),
            // missing is not empty: the client waits for a first challenge (`pg_be_scram_exchange`)
            None => {
                self.state = State::Sasl(exchange);
                Step::Continue(body::request(SASL_CONTINUE, &[]))
            }
        }
    }

    fn sasl(&mut self, mut exchange: ServerExchange, data: &[u8]) -> Step {
        match exchange.step(data) {
            Ok(ServerStep::Continue(message)) => {
                self.state = State::Sasl(exchange);
                Step::Continue(body::request(SASL_CONTINUE, &message))
            }
            Ok(ServerStep::Done { message, keys }) => Step::Done {
                final_body: Some(body::request(SASL_FINAL, &message)),
                credentials: Credentials::Scram(keys),
            },
            Err(error) => Step::Fail(error),
        }
    }
}

fn done(credentials: Credentials) -> Step {
    Step::Done { final_body: None, credentials }
}
