//! The md5 method, both sides (protocol documentation, "Start-up", AuthenticationMD5Password).

use std::fmt;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use md5::{Digest, Md5};
use zeroize::{Zeroize, ZeroizeOnDrop};

const HEX_LEN: usize = 32;

/// What Postgres stores for an md5 password, without its `md5` prefix: hex of md5(password ‖ user). Whoever has it
/// can log in by md5, so it is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Md5Hash([u8; HEX_LEN]);

impl Md5Hash {
    /// Reads `md5` and 32 lower-case hex digits, the only form Postgres takes for a hash.
    pub fn parse(text: &str) -> Option<Self> {
        let hex: [u8; HEX_LEN] = text.strip_prefix("md5")?.as_bytes().try_into().ok()?;
        hex.iter().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f')).then_some(Md5Hash(hex))
    }

    pub fn of(password: &[u8], user: &str) -> Self {
        Md5Hash(hex_md5(&[password, user.as_bytes()]))
    }

    /// In constant time.
    pub fn matches(&self, other: &Md5Hash) -> bool {
        verify_slices_are_equal(&self.0, &other.0).is_ok()
    }

    /// The answer to a request with this salt: `md5` and hex of md5(hash ‖ salt), without the closing NUL.
    pub fn response(&self, salt: [u8; 4]) -> [u8; 35] {
        let mut out = *b"md500000000000000000000000000000000";
        out[3..].copy_from_slice(&hex_md5(&[&self.0, &salt]));
        out
    }

    /// Whether a client's answer is right; in constant time.
    pub fn accepts(&self, response: &[u8], salt: [u8; 4]) -> bool {
        verify_slices_are_equal(&self.response(salt), response).is_ok()
    }
}

impl ZeroizeOnDrop for Md5Hash {}

impl Drop for Md5Hash {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Md5Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Md5Hash(…)")
    }
}

fn hex_md5(parts: &[&[u8]]) -> [u8; HEX_LEN] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut hasher = Md5::new();
    for part in parts {
        hasher.update(part);
    }
    let mut hex = [0; HEX_LEN];
    for (pair, byte) in hex.chunks_exact_mut(2).zip(hasher.finalize()) {
        pair[0] = DIGITS[usize::from(byte >> 4)];
        pair[1] = DIGITS[usize::from(byte & 15)];
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_as_postgres_stores_it() {
        let stored = Md5Hash::parse("md54a0a68b43b6cd5cf266fa02f196e2371").unwrap();
        assert!(Md5Hash::of(b"secret", "alice").matches(&stored));
        assert_eq!(Md5Hash::of(b"", "").0, *b"d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(Md5Hash::of(b"a", "bc").0, *b"900150983cd24fb0d6963f7d28e17f72");
    }

    #[test]
    fn both_sides_agree() {
        let hash = Md5Hash::of(b"secret", "alice");
        let response = hash.response([1, 2, 3, 4]);
        assert!(hash.accepts(&response, [1, 2, 3, 4]));
        assert!(!hash.accepts(&response, [1, 2, 3, 5]));
        assert!(!hash.accepts(&response[..34], [1, 2, 3, 4]));
        assert!(!Md5Hash::of(b"Secret", "alice").accepts(&response, [1, 2, 3, 4]));
    }
}
