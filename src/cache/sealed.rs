//! The form in which an entry leaves the process, for other pgweirs to find: encrypted and authenticated, bound to its name,
//! and with all that tells whether it is still right.
//!
//! Names are digests of 256 bits over all that shapes a result, so no two reads share one, and none tells what it stands for. Both
//! names and contents need the secret that the pgweirs have in common; without one, anybody can compute both, and the seal is but
//! a checksum. The cipher is one that a nonce drawn twice does not break (AES-256-GCM-SIV, RFC 8452).

use std::time::Duration;

use aws_lc_rs::aead::{AES_256_GCM_SIV, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::{digest, hmac};

use crate::cache::entry::Entry;
use crate::error::Malformed;
use crate::freshness::Lsn;
use crate::wire::read::Reader;

/// Of the layout below; entries of another version are never looked at, for their names differ.
const VERSION: &[u8] = concat!("pgweir 1 ", env!("CARGO_PKG_VERSION")).as_bytes();

/// Names of this use among others in the same store.
const PREFIX: &str = "pgweir:";

/// Bytes beside the frames: nonce, tag, and the fields ahead of the frames.
pub const OVERHEAD: usize = NONCE_LEN + 16 + 8 + 8 + EPOCH + 3 * 4;

pub const EPOCH: usize = 16;

/// What an EVICT changes: entries from before it carry another.
pub type Epoch = [u8; EPOCH];

/// An entry on its way, and what tells whether it is right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Carried {
    /// It reflects every commit to the tables it reads that ends here in the WAL, or before.
    pub as_of: Lsn,
    /// The age that it may reach, in milliseconds.
    pub lives: Duration,
    /// When the run began that brought it.
    pub epoch: Epoch,
    pub entry: Entry,
}

/// Seals entries, opens them, and names them.
pub struct Seal {
    names: hmac::Key,
    contents: LessSafeKey,
}

impl std::fmt::Debug for Seal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seal(…)")
    }
}

impl Seal {
    /// `secret`: empty for none.
    ///
    /// # Errors
    /// The cipher is not to be had.
    pub fn new(secret: &str) -> Result<Seal, &'static str> {
        let derived = |of: &str| digest::digest(&digest::SHA256, format!("{PREFIX}{of}:{secret}").as_bytes());
        let contents = UnboundKey::new(&AES_256_GCM_SIV, derived("contents").as_ref());
        let contents = contents.map_err(|_| "no cipher for what is shared")?;
        Ok(Seal {
            names: hmac::Key::new(hmac::HMAC_SHA256, derived("names").as_ref()),
            contents: LessSafeKey::new(contents),
        })
    }

    /// The name of what these parts stand for, each with its length ahead, so that no two lists are the same.
    pub fn name(&self, parts: &[&[u8]]) -> Box<str> {
        let mut context = hmac::Context::with_key(&self.names);
        for part in [VERSION].iter().chain(parts) {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let mut name = PREFIX.to_owned();
        for byte in context.sign().as_ref() {
            name.push_str(&format!("{byte:02x}"));
        }
        name.into()
    }

    /// # Errors
    /// It is too large for the cipher.
    pub fn close(&self, name: &str, carried: &Carried, nonce: [u8; NONCE_LEN]) -> Result<Vec<u8>, Malformed> {
        let (lengths, frames) = carried.entry.to_parts();
        let mut plain = Vec::with_capacity(OVERHEAD + frames.len());
        plain.extend_from_slice(&carried.as_of.0.to_be_bytes());
        plain.extend_from_slice(&(carried.lives.as_millis() as u64).to_be_bytes());
        plain.extend_from_slice(&carried.epoch);
        lengths.iter().for_each(|length| plain.extend_from_slice(&length.to_be_bytes()));
        plain.extend_from_slice(frames);
        let sealing = Nonce::assume_unique_for_key(nonce);
        let tag = self.contents.seal_in_place_separate_tag(sealing, Aad::from(name.as_bytes()), &mut plain);
        let tag = tag.map_err(|_| Malformed("what is to be shared is too large"))?;
        Ok([&nonce[..], &plain, tag.as_ref()].concat())
    }

    /// # Errors
    /// It is not what a pgweir with the same secret has stored by this name, whole.
    pub fn open(&self, name: &str, mut sealed: Vec<u8>) -> Result<Carried, Malformed> {
        const BAD: Malformed = Malformed("what is shared is not sealed");
        let (nonce, contents) = sealed.split_first_chunk_mut::<NONCE_LEN>().ok_or(BAD)?;
        let nonce = Nonce::assume_unique_for_key(*nonce);
        let plain = self.contents.open_in_place(nonce, Aad::from(name.as_bytes()), contents).map_err(|_| BAD)?;
        let mut r = Reader::new(plain);
        let (as_of, lives) = (Lsn(number(&mut r)?), Duration::from_millis(number(&mut r)?));
        let epoch = r.bytes(EPOCH)?.try_into().map_err(|_| BAD)?;
        let mut length = || r.i32().map(|length| length as u32);
        let lengths = [length()?, length()?, length()?];
        Ok(Carried { as_of, lives, epoch, entry: Entry::from_parts(lengths, r.rest())? })
    }
}

fn number(r: &mut Reader<'_>) -> Result<u64, Malformed> {
    Ok(r.bytes(8)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::entry::tests::{complete, description, row};

    fn carried() -> Carried {
        let result = [row(b"a"), row(b"bc"), complete("SELECT 2")].concat();
        Carried {
            as_of: Lsn(0x0123_4567_89ab_cdef),
            lives: Duration::from_millis(300_000),
            epoch: *b"0123456789abcdef",
            entry: Entry::new(&[], &description(&[0]), &result, 2),
        }
    }

    fn seal(secret: &str) -> Seal {
        Seal::new(secret).unwrap()
    }

    #[test]
    fn what_is_sealed_opens_by_its_name_and_secret_alone() {
        let (ours, others) = (seal("s"), seal("t"));
        let name = ours.name(&[b"a"]);
        let sealed = ours.close(&name, &carried(), [7; NONCE_LEN]).unwrap();
        assert_eq!(ours.open(&name, sealed.clone()), Ok(carried()));
        assert_eq!(sealed.len(), OVERHEAD + carried().entry.len());
        assert!(ours.open(&ours.name(&[b"b"]), sealed.clone()).is_err());
        assert!(others.open(&name, sealed.clone()).is_err() && seal("").open(&name, sealed).is_err());
        assert!(!format!("{ours:?}").contains('s'));
    }

    #[test]
    fn names_differ_by_every_part_and_by_the_secret() {
        let seal_of = seal("s");
        let names = [
            seal_of.name(&[b"ab", b"c"]),
            seal_of.name(&[b"a", b"bc"]),
            seal_of.name(&[b"abc"]),
            seal_of.name(&[b"ab", b"c", b""]),
            seal("t").name(&[b"ab", b"c"]),
        ];
        assert!(names.iter().all(|name| names.iter().filter(|other| *other == name).count() == 1), "{names:?}");
        assert_eq!(names[0].len(), PREFIX.len() + 64);
    }

    proptest! {
        #[test]
        fn nothing_that_was_changed_or_cut_opens(at in 0usize..1000, bit in 0u8..8, cut in any::<bool>()) {
            let seal = seal("");
            let mut sealed = seal.close("n", &carried(), [1; NONCE_LEN]).unwrap();
            let at = at % sealed.len();
            if cut { sealed.truncate(at) } else { sealed[at] ^= 1 << bit }
            prop_assert!(seal.open("n", sealed).is_err());
        }

        /// Who knows the secret, or that there is none, can seal what is no entry.
        #[test]
        fn forged_contents_are_refused_or_whole(mut plain in prop::collection::vec(prop_oneof![
            4 => Just(0u8), 1 => Just(b'D'), 1 => Just(b'C'), 1 => 0u8..20, 1 => any::<u8>()], 0..120)) {
            let seal = seal("");
            let nonce = Nonce::assume_unique_for_key([2; NONCE_LEN]);
            let tag = seal.contents.seal_in_place_separate_tag(nonce, Aad::from(b"n"), &mut plain).unwrap();
            if let Ok(carried) = seal.open("n", [&[2; NONCE_LEN], &plain[..], tag.as_ref()].concat()) {
                let (lengths, frames) = carried.entry.to_parts();
                prop_assert_eq!(Entry::from_parts(lengths, frames), Ok(carried.entry));
            }
        }
    }
}
