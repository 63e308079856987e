//! The server's side: checks a client against a verifier (`auth-scram.c`).

use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use base64::Engine as _;

use super::attributes::{Attributes, shown};
use super::{BASE64, END_POINT_HEADER, Nonce, auth_message, binding_attribute, xor};
use crate::auth::AuthError;
use crate::auth::secret::{DEFAULT_ITERATIONS, KEY_LEN, Key, SALT_LEN, ScramKeys, Verifier, hmac_sha256, sha256};

/// One login of one client.
#[derive(Debug)]
pub struct ServerExchange {
    verifier: Arc<Verifier>,
    /// There is no such user: the exchange looks like any other, and fails at its end.
    doomed: bool,
    nonce: Nonce,
    /// The hash of the certificate that the client was shown, where it can be bound to.
    end_point: Option<Vec<u8>>,
    /// The client chose the -PLUS mechanism.
    plus: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    First,
    Final(Sent),
    Over,
}

/// What the first two messages said.
#[derive(Debug)]
struct Sent {
    client_first_bare: Vec<u8>,
    server_first: Vec<u8>,
    /// Both sides' nonces.
    nonce: Vec<u8>,
    /// The value that `c=` must have.
    binding: Vec<u8>,
}

/// What to do after a message of the client.
#[derive(Debug)]
pub enum ServerStep {
    /// Send this server-first-message.
    Continue(Vec<u8>),
    /// The client knows the password. Send this server-final-message.
    Done { message: Vec<u8>, keys: ScramKeys },
}

impl ServerExchange {
    /// `plus` is whether the client chose the -PLUS mechanism, which needs `end_point`.
    pub fn new(verifier: Arc<Verifier>, nonce: Nonce, end_point: Option<Vec<u8>>, plus: bool) -> Self {
        ServerExchange { verifier, doomed: false, nonce, end_point, plus, state: State::First }
    }

    /// An exchange that cannot succeed, for a user who does not exist or has no verifier. `mock_nonce` must be the same
    /// as long as possible, else a user's salt changes from login to login and betrays that there is none.
    pub fn mock(user: &str, mock_nonce: &[u8; 32], nonce: Nonce, end_point: Option<Vec<u8>>, plus: bool) -> Self {
        let verifier = Arc::new(mock_verifier(user, mock_nonce));
        ServerExchange { doomed: true, ..Self::new(verifier, nonce, end_point, plus) }
    }

    /// Takes the next message of the client.
    ///
    /// # Errors
    /// As Postgres gives them; the exchange is over.
    pub fn step(&mut self, message: &[u8]) -> Result<ServerStep, AuthError> {
        if message.is_empty() {
            return Err(AuthError::malformed("The message is empty."));
        }
        if message.contains(&0) {
            return Err(AuthError::malformed("The message holds a zero byte."));
        }
        match std::mem::replace(&mut self.state, State::Over) {
            State::First => {
                let sent = self.first(message)?;
                let reply = sent.server_first.clone();
                self.state = State::Final(sent);
                Ok(ServerStep::Continue(reply))
            }
            State::Final(sent) => self.last(message, &sent),
            State::Over => Err(AuthError::protocol("SCRAM message after the end of the exchange")),
        }
    }

    /// `read_client_first_message` and `build_server_first_message`.
    fn first(&self, message: &[u8]) -> Result<Sent, AuthError> {
        let mut rest = Attributes::new(message);
        let binding = self.read_binding_flag(&mut rest)?;
        rest.expect(b',').map_err(AuthError::malformed)?;
        if rest.rest().first() == Some(&b'a') {
            return Err(AuthError::Unsupported("client uses authorization identity, but it is not supported"));
        }
        rest.expect(b',').map_err(AuthError::malformed)?;

        let client_first_bare = rest.rest().to_vec();
        if client_first_bare.first() == Some(&b'm') {
            return Err(AuthError::Unsupported("client requires an unsupported SCRAM extension"));
        }
        // the user is the one of the startup packet; libpq leaves this one empty
        rest.value(b'n').map_err(AuthError::malformed)?;
        let client_nonce = rest.value(b'r').map_err(AuthError::malformed)?;
        // RFC 5802's "printable": 0x21 to 0x7e without the comma
        if !client_nonce.iter().all(u8::is_ascii_graphic) {
            return Err(AuthError::protocol("non-printable characters in SCRAM nonce"));
        }
        while !rest.is_empty() {
            rest.any().map_err(AuthError::malformed)?;
        }

        let nonce = [client_nonce, &self.nonce.0].concat();
        let tail = format!(",s={},i={}", BASE64.encode(&self.verifier.salt), self.verifier.iterations);
        let server_first = [b"r=", &nonce[..], tail.as_bytes()].concat();
        Ok(Sent { client_first_bare, server_first, nonce, binding })
    }

    /// The GS2 flag at the head of the message; gives the value that `c=` must have later.
    fn read_binding_flag(&self, rest: &mut Attributes<'_>) -> Result<Vec<u8>, AuthError> {
        let flag = rest.rest().first().copied();
        match flag {
            Some(b'n' | b'y') if self.plus => {
                Err(AuthError::malformed("The client chose SCRAM-SHA-256-PLUS, but sends no channel binding data."))
            }
            Some(b'y') if self.end_point.is_some() => Err(AuthError::ChannelBinding {
                message: "SCRAM channel binding negotiation error",
                detail: Some("The client does not know that channel binding is offered: the offer was tampered with."),
            }),
            Some(b'n') => rest.expect(b'n').map(|()| binding_attribute(b"n,,", b"")).map_err(AuthError::malformed),
            Some(b'y') => rest.expect(b'y').map(|()| binding_attribute(b"y,,", b"")).map_err(AuthError::malformed),
            Some(b'p') => self.read_binding_type(rest),
            other => Err(AuthError::malformed(format!("Unexpected channel binding flag: {}.", shown(other.as_ref())))),
        }
    }

    fn read_binding_type(&self, rest: &mut Attributes<'_>) -> Result<Vec<u8>, AuthError> {
        let (true, Some(end_point)) = (self.plus, &self.end_point) else {
            return Err(AuthError::malformed("The client chose SCRAM-SHA-256, but sends channel binding data."));
        };
        // the comma behind the type stays, for the caller to expect
        let (kind, behind) = rest.rest().split_at(memchr::memchr(b',', rest.rest()).unwrap_or(rest.rest().len()));
        if kind != b"p=tls-server-end-point" {
            return Err(AuthError::protocol("unsupported SCRAM channel-binding type"));
        }
        *rest = Attributes::new(behind);
        Ok(binding_attribute(END_POINT_HEADER, end_point))
    }

    /// `read_client_final_message`, the verdict, and `build_server_final_message`.
    fn last(&self, message: &[u8], sent: &Sent) -> Result<ServerStep, AuthError> {
        let last = ClientFinal::read(message)?;
        if last.binding != sent.binding {
            return Err(match self.plus {
                true => AuthError::ChannelBinding { message: "SCRAM channel binding check failed", detail: None },
                false => AuthError::protocol("unexpected SCRAM channel-binding attribute in client-final-message"),
            });
        }
        if last.nonce != sent.nonce {
            return Err(AuthError::Protocol {
                message: "invalid SCRAM response",
                detail: Some("Nonce does not match.".into()),
            });
        }
        let signed = auth_message(&sent.client_first_bare, &sent.server_first, last.without_proof);
        let client_key = xor(last.proof, &hmac_sha256(&self.verifier.stored_key, &[&signed]));
        let known = verify_slices_are_equal(&sha256(&[&client_key]), &self.verifier.stored_key).is_ok();
        if !known || self.doomed {
            return Err(AuthError::Password);
        }
        let signature = hmac_sha256(&self.verifier.server_key, &[&signed]);
        let keys = ScramKeys {
            client_key,
            server_key: self.verifier.server_key,
            salt: self.verifier.salt.clone(),
            iterations: self.verifier.iterations,
        };
        Ok(ServerStep::Done { message: format!("v={}", BASE64.encode(signature)).into_bytes(), keys })
    }
}

struct ClientFinal<'a> {
    binding: &'a [u8],
    nonce: &'a [u8],
    proof: Key,
    without_proof: &'a [u8],
}

impl<'a> ClientFinal<'a> {
    fn read(message: &'a [u8]) -> Result<Self, AuthError> {
        let mut rest = Attributes::new(message);
        let binding = rest.value(b'c').map_err(AuthError::malformed)?;
        let nonce = rest.value(b'r').map_err(AuthError::malformed)?;
        // extensions may stand before the proof, which is the last
        let (without_proof, proof) = loop {
            let before = message.len() - rest.rest().len();
            if let (b'p', value) = rest.any().map_err(AuthError::malformed)? {
                break (message.get(..before - 1).unwrap_or_default(), value);
            }
        };
        let proof: Option<Key> =
            BASE64.decode(proof).ok().filter(|p| p.len() == KEY_LEN).and_then(|p| p.try_into().ok());
        let proof = proof.ok_or_else(|| AuthError::malformed("The proof in client-final-message is malformed."))?;
        if !rest.is_empty() {
            return Err(AuthError::malformed("There is something behind the proof in client-final-message."));
        }
        Ok(ClientFinal { binding, nonce, proof, without_proof })
    }
}

/// `mock_scram_secret`: looks like any verifier with Postgres's defaults; no proof matches it.
fn mock_verifier(user: &str, mock_nonce: &[u8; 32]) -> Verifier {
    let salt = sha256(&[user.as_bytes(), mock_nonce])[..SALT_LEN].to_vec();
    Verifier { iterations: DEFAULT_ITERATIONS, salt, stored_key: [0; KEY_LEN], server_key: [0; KEY_LEN] }
}
