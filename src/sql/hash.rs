//! SipHash-1-3 with a fixed key: 64 bits that stay the same across runs, machines and releases.
//!
//! Aumasson and Bernstein, "SipHash: a fast short-input PRF" (2012). The key is no secret, so a client that wants
//! two of its own statements to collide can search for them; what it then gets is its own statement on the
//! wrong node, which refuses writes.

/// Hashes bytes fed in pieces; only the whole sequence of bytes counts, not how it was cut.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hasher {
    state: [u64; 4],
    /// The bytes not yet mixed in, the earliest lowest.
    buffer: u64,
    buffered: u32,
    length: u64,
}

/// Eight bytes to lower case at once; bytes beyond ASCII stay, as in Postgres for UTF-8.
fn fold(word: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = ONES << 7;
    let low = word & !HIGH;
    let from_a = low + ONES * (0x80 - b'A' as u64);
    let beyond_z = low + ONES * (0x80 - (b'Z' as u64 + 1));
    let upper = (from_a ^ beyond_z) & !word & HIGH;
    word | (upper >> 2)
}

impl Hasher {
    pub(super) fn new() -> Self {
        let (k0, k1) = (0x7067_7765_6972_2e73_u64, 0x716c_2066_6f6c_6473_u64);
        Self {
            state: [
                k0 ^ 0x736f_6d65_7073_6575,
                k1 ^ 0x646f_7261_6e64_6f6d,
                k0 ^ 0x6c79_6765_6e65_7261,
                k1 ^ 0x7465_6462_7974_6573,
            ],
            buffer: 0,
            buffered: 0,
            length: 0,
        }
    }

    fn round(&mut self) {
        let [mut a, mut b, mut c, mut d] = self.state;
        a = a.wrapping_add(b);
        b = b.rotate_left(13) ^ a;
        a = a.rotate_left(32);
        c = c.wrapping_add(d);
        d = d.rotate_left(16) ^ c;
        a = a.wrapping_add(d);
        d = d.rotate_left(21) ^ a;
        c = c.wrapping_add(b);
        b = b.rotate_left(17) ^ c;
        c = c.rotate_left(32);
        self.state = [a, b, c, d];
    }

    fn mix(&mut self, word: u64) {
        self.state[3] ^= word;
        self.round();
        self.state[0] ^= word;
    }

    /// Adds the lowest `count` (1 ..= 8) bytes of `word`, whose other bytes are zero.
    fn push(&mut self, word: u64, count: u32) {
        self.length += u64::from(count);
        self.buffer |= word << (8 * self.buffered);
        self.buffered += count;
        if self.buffered >= 8 {
            let full = self.buffer;
            self.buffered -= 8;
            self.buffer = match self.buffered {
                0 => 0,
                left => word >> (8 * (count - left)),
            };
            self.mix(full);
        }
    }

    pub(super) fn byte(&mut self, byte: u8) {
        self.push(u64::from(byte), 1);
    }

    fn feed(&mut self, bytes: &[u8], change: fn(u64) -> u64) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            self.push(change(u64::from_le_bytes(*word)), 8);
        }
        if !rest.is_empty() {
            let word = rest.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
            self.push(change(word), rest.len() as u32);
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        self.feed(bytes, |word| word);
    }

    /// As `write`, with ASCII letters in lower case.
    pub(super) fn write_folded(&mut self, bytes: &[u8]) {
        self.feed(bytes, fold);
    }

    pub(super) fn finish(mut self) -> u64 {
        let last = self.buffer | (self.length << 56);
        self.mix(last);
        self.state[2] ^= 0xff;
        for _ in 0..3 {
            self.round();
        }
        self.state.iter().fold(0, |all, part| all ^ part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_do_not_matter() {
        let bytes: Vec<u8> = (0..=255).collect();
        for length in 0..64 {
            let whole = bytes.get(..length).unwrap();
            let mut at_once = Hasher::new();
            at_once.write(whole);
            for cut in 0..=length {
                let mut pieces = Hasher::new();
                pieces.write(whole.get(..cut).unwrap());
                for &byte in whole.get(cut..).unwrap() {
                    pieces.byte(byte);
                }
                assert_eq!(at_once.finish(), pieces.finish(), "{length} cut at {cut}");
            }
        }
    }

    #[test]
    fn folds_ascii_letters_alone() {
        for byte in 0..=255u8 {
            let word = u64::from_le_bytes([byte; 8]);
            assert_eq!(fold(word).to_le_bytes(), [byte.to_ascii_lowercase(); 8]);
        }
    }

    #[test]
    fn is_siphash_1_3() {
        // the same rounds with the key 0 and no input, as the reference code gives
        let mut hasher = Hasher { state: Hasher::new().state, buffer: 0, buffered: 0, length: 0 };
        hasher.state = [0x736f_6d65_7073_6575, 0x646f_7261_6e64_6f6d, 0x6c79_6765_6e65_7261, 0x7465_6462_7974_6573];
        let mut reference = hasher;
        reference.write(b"");
        use std::hash::{DefaultHasher, Hasher as _};
        // std's hasher is SipHash-1-3 with the key 0 today
        assert_eq!(reference.finish(), DefaultHasher::new().finish());
        for length in 1..40usize {
            let bytes: Vec<u8> = (0..length as u8).collect();
            let mut ours = hasher;
            ours.write(&bytes);
            let mut std = DefaultHasher::new();
            std.write(&bytes);
            assert_eq!(ours.finish(), std.finish(), "{length} bytes");
        }
    }

    #[test]
    fn stays_the_same_across_releases() {
        let mut hasher = Hasher::new();
        hasher.write(b"select");
        assert_eq!(hasher.finish(), 17_715_047_880_010_257_712);
    }
}
