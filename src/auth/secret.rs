//! What a configured password is, and what is kept of a password once a client has proved to know it.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::{digest, hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::md5::Md5Hash;

/// Length in bytes of SHA-256 and of all SCRAM keys.
pub const KEY_LEN: usize = 32;
/// Postgres's `SCRAM_SHA_256_DEFAULT_ITERATIONS`.
pub const DEFAULT_ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap(); // evaluated by the compiler
/// Postgres's `SCRAM_DEFAULT_SALT_LEN`, in bytes.
pub const SALT_LEN: usize = 16;

pub(crate) type Key = [u8; KEY_LEN];

const VERIFIER_PREFIX: &str = "SCRAM-SHA-256$";

/// A password in clear. Never printed; overwritten when dropped, as well as safe code can do it.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(Vec<u8>);

impl Password {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Password(bytes.into())
    }

    /// As the client sent it: not always UTF-8.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Compares in a time that depends on the lengths alone.
    pub fn matches(&self, other: &[u8]) -> bool {
        verify_slices_are_equal(&self.0, other).is_ok()
    }
}

impl ZeroizeOnDrop for Password {}

impl Drop for Password {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(…)")
    }
}

/// A configured password.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Secret {
    Plain(Password),
    Md5(Md5Hash),
    Scram(Verifier),
}

impl Secret {
    /// Tells the kinds apart as Postgres's `get_password_type` does, save that a broken verifier is an error here: taken
    /// for a password in clear, it would only make every login fail.
    pub fn parse(text: &str) -> Result<Self, MalformedVerifier> {
        if let Some(hash) = Md5Hash::parse(text) {
            return Ok(Secret::Md5(hash));
        }
        if text.starts_with(VERIFIER_PREFIX) {
            return Verifier::parse(text).map(Secret::Scram);
        }
        Ok(Secret::Plain(Password::new(text)))
    }

    /// What SCRAM logins are checked against; `None` for an md5 hash, which cannot do SCRAM.
    /// For a password in clear this costs PBKDF2 (half a millisecond and more): call it once, keep the result.
    pub fn verifier(&self, salt: [u8; SALT_LEN]) -> Option<Verifier> {
        match self {
            Secret::Plain(password) => Some(Verifier::build(password.as_bytes(), salt.to_vec(), DEFAULT_ITERATIONS)),
            Secret::Scram(verifier) => Some(verifier.clone()),
            Secret::Md5(_) => None,
        }
    }

    /// Whether `password`, in clear, is this one. Costs PBKDF2 against a verifier.
    pub fn matches(&self, user: &str, password: &[u8]) -> bool {
        match self {
            Secret::Plain(own) => own.matches(password),
            Secret::Md5(hash) => hash.matches(&Md5Hash::of(password, user)),
            Secret::Scram(verifier) => verifier.matches(password),
        }
    }
}

/// A text that begins as a SCRAM verifier does and is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MalformedVerifier;

impl fmt::Display for MalformedVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a SCRAM verifier; expected SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>")
    }
}

impl std::error::Error for MalformedVerifier {}

/// What Postgres keeps of a password (`pg_authid.rolpassword`): enough to check a login, too little to make one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    pub(crate) iterations: NonZeroU32,
    pub(crate) salt: Vec<u8>,
    pub(crate) stored_key: Key,
    pub(crate) server_key: Key,
}

impl Verifier {
    /// From a password in clear; costs PBKDF2.
    pub fn build(password: &[u8], salt: Vec<u8>, iterations: NonZeroU32) -> Self {
        ScramKeys::derive(password, salt, iterations).verifier()
    }

    /// Reads the text form, as Postgres's `parse_scram_secret` does.
    pub fn parse(text: &str) -> Result<Self, MalformedVerifier> {
        Self::parse_fields(text).ok_or(MalformedVerifier)
    }

    fn parse_fields(text: &str) -> Option<Self> {
        let (head, keys) = text.strip_prefix(VERIFIER_PREFIX)?.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored_key, server_key) = keys.split_once(':')?;
        Some(Verifier {
            // Postgres keeps it in an int
            iterations: iterations.parse().ok().filter(|n: &NonZeroU32| i32::try_from(n.get()).is_ok())?,
            salt: BASE64.decode(salt).ok()?,
            stored_key: BASE64.decode(stored_key).ok()?.try_into().ok()?,
            server_key: BASE64.decode(server_key).ok()?.try_into().ok()?,
        })
    }

    /// Whether `password` is the one this was made from (`scram_verify_plain_password`); costs PBKDF2.
    pub fn matches(&self, password: &[u8]) -> bool {
        let keys = ScramKeys::derive(password, self.salt.clone(), self.iterations);
        verify_slices_are_equal(&keys.server_key, &self.server_key).is_ok()
    }
}

impl fmt::Display for Verifier {
    /// The text form. Secret, so nothing prints it unasked.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, stored, server) =
            (BASE64.encode(&self.salt), BASE64.encode(self.stored_key), BASE64.encode(self.server_key));
        write!(f, "{VERIFIER_PREFIX}{}:{salt}${stored}:{server}", self.iterations)
    }
}

impl ZeroizeOnDrop for Verifier {}

impl Drop for Verifier {
    fn drop(&mut self) {
        self.stored_key.zeroize();
        self.server_key.zeroize();
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier {{ iterations: {}, … }}", self.iterations)
    }
}

/// What logs in by SCRAM without the password: to any server whose verifier has the same salt and iterations.
/// Never printed; overwritten when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct ScramKeys {
    pub(crate) client_key: Key,
    pub(crate) server_key: Key,
    pub(crate) salt: Vec<u8>,
    pub(crate) iterations: NonZeroU32,
}

impl ScramKeys {
    /// RFC 5802 section 3. Costs PBKDF2: about 0.6 ms at 4096 iterations.
    pub fn derive(password: &[u8], salt: Vec<u8>, iterations: NonZeroU32) -> Self {
        let mut salted = [0; KEY_LEN];
        pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, &salt, &prepare(password), &mut salted);
        let keys = ScramKeys {
            client_key: hmac_sha256(&salted, &[b"Client Key"]),
            server_key: hmac_sha256(&salted, &[b"Server Key"]),
            salt,
            iterations,
        };
        salted.zeroize();
        keys
    }

    /// Whether these keys serve a server that names this salt and these iterations.
    pub fn fit(&self, salt: &[u8], iterations: NonZeroU32) -> bool {
        self.salt == salt && self.iterations == iterations
    }

    pub fn verifier(&self) -> Verifier {
        Verifier {
            iterations: self.iterations,
            salt: self.salt.clone(),
            stored_key: sha256(&[&self.client_key]),
            server_key: self.server_key,
        }
    }
}

impl ZeroizeOnDrop for ScramKeys {}

impl Drop for ScramKeys {
    fn drop(&mut self) {
        self.client_key.zeroize();
        self.server_key.zeroize();
    }
}

impl fmt::Debug for ScramKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScramKeys {{ iterations: {}, … }}", self.iterations)
    }
}

/// SASLprep (RFC 4013), or the bytes as they are where it is not defined: Postgres's `pg_saslprep` and its callers
/// do so for text that is not UTF-8, holds prohibited characters, or has nothing left.
fn prepare(password: &[u8]) -> Cow<'_, [u8]> {
    match std::str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok()) {
        Some(Cow::Owned(prepared)) if !prepared.is_empty() => Cow::Owned(prepared.into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

pub(crate) fn sha256(parts: &[&[u8]]) -> Key {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; KEY_LEN];
    out.copy_from_slice(context.finish().as_ref());
    out
}

pub(crate) fn hmac_sha256(key: &Key, parts: &[&[u8]]) -> Key {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut out = [0; KEY_LEN];
    out.copy_from_slice(context.sign().as_ref());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // the password, salt and iterations of RFC 7677's example
    const TEXT: &str = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=";

    #[test]
    fn verifier_of_the_rfc_password() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let built = Verifier::build(b"pencil", salt, DEFAULT_ITERATIONS);
        assert_eq!(built.to_string(), TEXT);
        assert_eq!(Verifier::parse(TEXT).unwrap(), built);
        assert!(built.matches(b"pencil"));
        assert!(!built.matches(b"pencils"));
    }

    #[test]
    fn kinds_are_told_apart() {
        assert!(matches!(Secret::parse("md5a3556571e93b0d20722ba62be61e8c2d"), Ok(Secret::Md5(_))));
        assert!(matches!(Secret::parse("md5A3556571e93b0d20722ba62be61e8c2d"), Ok(Secret::Plain(_))));
        assert!(matches!(Secret::parse("md5 is old"), Ok(Secret::Plain(_))));
        assert!(matches!(Secret::parse(TEXT), Ok(Secret::Scram(_))));
        assert!(matches!(Secret::parse("SCRAM-SHA-256"), Ok(Secret::Plain(_))));
    }

    #[test]
    fn broken_verifiers_are_refused() {
        let whole: Vec<String> = (15..TEXT.len()).map(|end| TEXT[..end].to_owned()).collect();
        let other = [
            TEXT.replace("4096", "0"),
            TEXT.replace("4096", "4294967295"),
            TEXT.replace("4096", "-1"),
            TEXT.replace("WG5d", "WG5"),
        ];
        for text in whole.iter().chain(&other) {
            assert!(Secret::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn saslprep_and_its_fallbacks() {
        // the soft hyphen maps to nothing, the no-break space to a space, ﬁ to fi
        assert_eq!(&*prepare("I\u{AD}X".as_bytes()), b"IX");
        assert_eq!(&*prepare("a\u{A0}b".as_bytes()), b"a b");
        assert_eq!(&*prepare("\u{FB01}".as_bytes()), b"fi");
        for raw in [
            &b"\xff\xfe"[..],
            "é\u{7}".as_bytes(),
            "\u{AD}".as_bytes(),
            "\u{627}1".as_bytes(),
            "\u{221}".as_bytes(),
            b"",
            b"a\x01",
        ] {
            assert_eq!(&*prepare(raw), raw);
        }
    }

    /// Whoever keeps a secret in a type of its own says here that it goes with it.
    #[test]
    fn secrets_are_wiped_when_dropped() {
        fn wiped<T: ZeroizeOnDrop>() -> bool {
            std::mem::needs_drop::<T>()
        }
        assert!(wiped::<Password>() && wiped::<Verifier>() && wiped::<ScramKeys>() && wiped::<Md5Hash>());
        assert!(wiped::<crate::config::Secret>());
    }

    #[test]
    fn nothing_secret_is_printed() {
        let keys = ScramKeys::derive(b"pencil", vec![7; 16], NonZeroU32::MIN);
        let shown = format!("{:?} {:?} {:?}", Secret::parse("pencil").unwrap(), Secret::parse(TEXT).unwrap(), keys);
        assert_eq!(shown, "Plain(Password(…)) Scram(Verifier { iterations: 4096, … }) ScramKeys { iterations: 1, … }");
    }
}
