//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), as `auth-scram.c` and `fe-auth-scram.c` speak them.
//!
//! `server` checks a client, `client` logs in to a server. Both are steps from one message to the next; the nonces are
//! arguments.

mod attributes;
mod client;
mod server;

use aws_lc_rs::error::Unspecified;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

pub use client::{ClientBinding, ClientExchange};
pub use server::{ServerExchange, ServerStep};

use super::secret::{Key, ScramKeys, hmac_sha256};

/// The mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// The mechanism with channel binding.
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// The only type of channel binding that Postgres knows (RFC 5929 section 4), as its GS2 header.
const END_POINT_HEADER: &[u8] = b"p=tls-server-end-point,,";

/// One side's part of the nonce: printable text without a comma.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nonce(Vec<u8>);

impl Nonce {
    /// Postgres's `SCRAM_RAW_NONCE_LEN`, in bytes.
    pub const RAW_LEN: usize = 18;

    pub fn new(random: [u8; Self::RAW_LEN]) -> Self {
        Nonce(BASE64.encode(random).into_bytes())
    }

    /// From the system's randomness.
    ///
    /// # Errors
    /// The system has none to give.
    pub fn draw() -> Result<Self, Unspecified> {
        let mut random = [0; Self::RAW_LEN];
        aws_lc_rs::rand::fill(&mut random)?;
        Ok(Self::new(random))
    }
}

/// The value of `c=`: the GS2 header and the binding data behind it.
fn binding_attribute(header: &[u8], data: &[u8]) -> Vec<u8> {
    BASE64.encode([header, data].concat()).into_bytes()
}

/// The three messages that both signatures cover, joined by commas.
fn auth_message(client_first_bare: &[u8], server_first: &[u8], client_final_without_proof: &[u8]) -> Vec<u8> {
    [client_first_bare, server_first, client_final_without_proof].join(&b","[..])
}

fn xor(mut a: Key, b: &Key) -> Key {
    a.iter_mut().zip(b).for_each(|(a, b)| *a ^= b);
    a
}

impl ScramKeys {
    /// ClientProof: ClientKey XOR ClientSignature.
    fn proof(&self, auth_message: &[u8]) -> Key {
        xor(self.client_key, &hmac_sha256(&self.verifier().stored_key, &[auth_message]))
    }
}

#[cfg(test)]
mod tests;
