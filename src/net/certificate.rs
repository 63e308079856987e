//! The few fields of an X.509 certificate that rustls does not show (RFC 5280 section 4.1), read from untrusted DER.

use aws_lc_rs::digest;
use jiff::civil::DateTime;

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const OID: u8 = 0x06;
const BOOLEAN: u8 = 0x01;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
/// `[0]` and `[3]`, explicit and constructed.
const CONTEXT_0: u8 = 0xa0;
const CONTEXT_3: u8 = 0xa3;
/// `dNSName` and `iPAddress` in a GeneralName.
const DNS_NAME: u8 = 0x82;
const IP_ADDRESS: u8 = 0x87;

const COMMON_NAME: &[u8] = &[0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];

/// DER values, one after the other.
#[derive(Debug, Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The next value: its tag, its content, and all of its bytes.
    fn next(&mut self) -> Option<(u8, &'a [u8], &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (len, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // certificates are far below 16 MiB
            0x81..=0x83 => {
                let (len, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (len.iter().fold(0, |len, &byte| len << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(len)?;
        let whole = &self.0[..self.0.len() - rest.len()];
        self.0 = rest;
        Some((tag, content, whole))
    }

    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|value| value.0 == tag).map(|value| value.1)
    }

    fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        if self.0.first() == Some(&tag) { self.take(tag) } else { None }
    }

    fn bits(&mut self) -> Option<&'a [u8]> {
        self.take(BIT_STRING)?.strip_prefix(&[0])
    }
}

/// A public key: contents of its AlgorithmIdentifier, and the key's bits.
#[derive(Debug, Clone, Copy)]
pub(super) struct PublicKey<'a> {
    pub(super) algorithm: &'a [u8],
    pub(super) bits: &'a [u8],
}

impl<'a> PublicKey<'a> {
    /// From the contents of a SubjectPublicKeyInfo.
    pub(super) fn read(content: &'a [u8]) -> Option<Self> {
        let mut der = Der(content);
        Some(PublicKey { algorithm: der.take(SEQUENCE)?, bits: der.bits()? })
    }
}

/// Fields without their outermost tag and length, save where it is said.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// All bytes of the part that is signed.
    pub(super) signed: &'a [u8],
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    pub(super) issuer: &'a [u8],
    /// Seconds since 1970.
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    subject: &'a [u8],
    /// All bytes of the SubjectPublicKeyInfo.
    pub(super) key_info: &'a [u8],
    pub(super) key: PublicKey<'a>,
    extensions: Option<&'a [u8]>,
    is_version_1: bool,
}

impl<'a> Certificate<'a> {
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let mut outer = Der(Der(der).take(SEQUENCE)?);
        let (SEQUENCE, content, signed) = outer.next()? else {
            return None;
        };
        let signature_algorithm = outer.take(SEQUENCE)?;
        let signature = outer.bits()?;

        let mut fields = Der(content);
        let version = fields.optional(CONTEXT_0);
        fields.take(INTEGER)?;
        fields.take(SEQUENCE)?; // the signature's algorithm once more
        let issuer = fields.take(SEQUENCE)?;
        let mut validity = Der(fields.take(SEQUENCE)?);
        let (not_before, not_after) = (read_time(validity.next()?)?, read_time(validity.next()?)?);
        let subject = fields.take(SEQUENCE)?;
        let (SEQUENCE, key, key_info) = fields.next()? else {
            return None;
        };
        let extensions = loop {
            match fields.next() {
                Some((CONTEXT_3, content, _)) => break Some(Der(content).take(SEQUENCE)?),
                Some(_) => {} // unique identifiers
                None => break None,
            }
        };
        let key = PublicKey::read(key)?;
        Some(Certificate {
            signed,
            signature_algorithm,
            signature,
            issuer,
            not_before,
            not_after,
            subject,
            key_info,
            key,
            extensions,
            is_version_1: version.is_none() && extensions.is_none(),
        })
    }

    /// It names no version and has no extensions, which came later.
    pub(super) fn is_version_1(&self) -> bool {
        self.is_version_1
    }

    /// The first common name of the subject, which libpq compares where there is no alternative name.
    pub(super) fn common_name(&self) -> Option<&'a str> {
        let mut names = Der(self.subject);
        while let Some((SET, set, _)) = names.next() {
            let mut attribute = Der(Der(set).take(SEQUENCE)?);
            if attribute.take(OID)? == COMMON_NAME {
                return std::str::from_utf8(attribute.next()?.1).ok();
            }
        }
        None
    }

    /// Whether there are alternative names that are host names, and such that are addresses.
    pub(super) fn alternative_names(&self) -> (bool, bool) {
        let mut found = (false, false);
        let mut names =
            Der(self.extension(SUBJECT_ALT_NAME).and_then(|value| Der(value).take(SEQUENCE)).unwrap_or(&[]));
        while let Some((tag, ..)) = names.next() {
            found.0 |= tag == DNS_NAME;
            found.1 |= tag == IP_ADDRESS;
        }
        found
    }

    fn extension(&self, oid: &[u8]) -> Option<&'a [u8]> {
        let mut extensions = Der(self.extensions?);
        while let Some((SEQUENCE, content, _)) = extensions.next() {
            let mut extension = Der(content);
            if extension.take(OID)? == oid {
                extension.optional(BOOLEAN); // critical
                return extension.take(OCTET_STRING);
            }
        }
        None
    }

    /// The hash that RFC 5929 section 4.1 wants: the signature's own, and SHA-256 in place of MD5 and SHA-1.
    fn end_point_hash(&self) -> Option<&'static digest::Algorithm> {
        let mut der = Der(self.signature_algorithm);
        match der.take(OID)? {
            // 1.2.840.113549.1.1, RSA
            [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, kind] => match kind {
                4 | 5 | 11 => Some(&digest::SHA256),
                12 => Some(&digest::SHA384),
                13 => Some(&digest::SHA512),
                14 => Some(&digest::SHA224),
                10 => pss_hash(der.take(SEQUENCE)?),
                _ => None,
            },
            // 1.2.840.10045.4, ECDSA
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x01] => Some(&digest::SHA256),
            [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, kind] => match kind {
                1 => Some(&digest::SHA224),
                2 => Some(&digest::SHA256),
                3 => Some(&digest::SHA384),
                4 => Some(&digest::SHA512),
                _ => None,
            },
            _ => None,
        }
    }
}

/// The first common name of a certificate's subject.
pub(super) fn common_name(certificate: &[u8]) -> Option<String> {
    Certificate::read(certificate)?.common_name().map(str::to_owned)
}

/// Channel binding data tls-server-end-point of a server's certificate, as Postgres's
/// `be_tls_get_certificate_hash` makes it. `None` where there is none.
pub(super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let hash = Certificate::read(certificate)?.end_point_hash()?;
    Some(digest::digest(hash, certificate).as_ref().to_vec())
}

/// RSASSA-PSS names its hash in its parameters; without them it is SHA-1 (RFC 4055 section 3.1).
fn pss_hash(parameters: &[u8]) -> Option<&'static digest::Algorithm> {
    let Some(hash) = Der(parameters).optional(CONTEXT_0) else {
        return Some(&digest::SHA256);
    };
    match Der(Der(hash).take(SEQUENCE)?).take(OID)? {
        [0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, kind] => match kind {
            1 => Some(&digest::SHA256),
            2 => Some(&digest::SHA384),
            3 => Some(&digest::SHA512),
            4 => Some(&digest::SHA224),
            _ => None,
        },
        // 1.3.14.3.2.26, SHA-1
        [0x2b, 0x0e, 0x03, 0x02, 0x1a] => Some(&digest::SHA256),
        _ => None,
    }
}

/// `YYMMDDHHMMSSZ` (1950 to 2049) or `YYYYMMDDHHMMSSZ`: the only forms RFC 5280 section 4.1.2.5 allows.
fn read_time((tag, text, _): (u8, &[u8], &[u8])) -> Option<i64> {
    let digits = text.strip_suffix(b"Z")?;
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = |part: &[u8]| part.iter().fold(0i16, |n, &digit| n * 10 + i16::from(digit - b'0'));
    let (year, rest) = match (tag, digits.len()) {
        (UTC_TIME, 12) => match number(&digits[..2]) {
            year @ 0..50 => (2000 + year, &digits[2..]),
            year => (1900 + year, &digits[2..]),
        },
        (GENERALIZED_TIME, 14) => (number(&digits[..4]), &digits[4..]),
        _ => return None,
    };
    let part = |index: usize| i8::try_from(number(&rest[2 * index..2 * index + 2])).ok();
    let time = DateTime::new(year, part(0)?, part(1)?, part(2)?, part(3)?, part(4)?, 0).ok()?;
    // not by time zones: 99991231235959Z, "never", is past the last instant they know
    Some(time.duration_since(DateTime::constant(1970, 1, 1, 0, 0, 0, 0)).as_secs())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn sample() -> Vec<u8> {
        let names = ["a.example".to_owned(), "10.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "us");
        params.distinguished_name.push(DnType::CommonName, "a.example");
        params.not_before = rcgen::date_time_ymd(2024, 2, 29);
        params.not_after = rcgen::date_time_ymd(2051, 1, 1);
        let key = KeyPair::generate().unwrap();
        params.self_signed(&key).unwrap().der().to_vec()
    }

    #[test]
    fn fields_of_a_certificate() {
        let der = sample();
        let certificate = Certificate::read(&der).unwrap();
        assert_eq!(certificate.common_name(), Some("a.example"));
        assert_eq!(certificate.alternative_names(), (true, true));
        assert_eq!((certificate.not_before, certificate.not_after), (1_709_164_800, 2_556_144_000));
        assert_eq!(certificate.issuer, certificate.subject);
        assert_eq!(end_point(&der).unwrap(), digest::digest(&digest::SHA256, &der).as_ref());
    }

    #[test]
    fn times() {
        let time = |tag, text: &str| read_time((tag, text.as_bytes(), &[]));
        assert_eq!(time(UTC_TIME, "700101000000Z"), Some(0));
        assert_eq!(time(UTC_TIME, "491231235959Z"), Some(2_524_607_999));
        assert_eq!(time(UTC_TIME, "500101000000Z"), Some(-631_152_000));
        assert_eq!(time(GENERALIZED_TIME, "99991231235959Z"), Some(253_402_300_799));
        let bad = ["", "Z", "7001010000Z", "700101000000", "701301000000Z", "7001010000+0Z"];
        for text in bad.iter().chain(&["19700101000000Z"]) {
            assert_eq!(time(UTC_TIME, text), None, "{text}");
        }
    }

    #[test]
    fn hash_of_the_end_point() {
        let der = sample();
        let hash = |algorithm: &[u8]| {
            let mut certificate = Certificate::read(&der).unwrap();
            // the closure's own lifetime is too short for the field
            certificate.signature_algorithm = algorithm.to_vec().leak();
            certificate.end_point_hash()
        };
        let rsa = |kind| [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, kind, 5, 0];
        assert_eq!(hash(&rsa(5)), Some(&digest::SHA256), "SHA-1 is raised");
        assert_eq!(hash(&rsa(11)), Some(&digest::SHA256));
        assert_eq!(hash(&rsa(13)), Some(&digest::SHA512));
        let sha384 = [0x30, 15, 0xa0, 13, 0x30, 11, 0x06, 9, 0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2, 2];
        assert_eq!(hash(&[&rsa(10)[..11], &sha384].concat()), Some(&digest::SHA384));
        assert_eq!(hash(&[&rsa(10)[..11], &[0x30, 0]].concat()), Some(&digest::SHA256));
        assert_eq!(hash(&[0x06, 3, 0x2b, 0x65, 0x70]), None, "Ed25519");
        assert_eq!(hash(&[0x06, 0x84, 0xff, 0xff, 0xff, 0xff]), None);
    }

    fn look_at_all(der: &[u8]) {
        if let Some(certificate) = Certificate::read(der) {
            certificate.common_name();
            certificate.alternative_names();
            end_point(der);
        }
    }

    proptest! {
        #[test]
        fn damaged_certificates_do_not_panic(
            cut in any::<prop::sample::Index>(),
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        ) {
            let mut der = sample();
            for (at, byte) in hits {
                let at = at.index(der.len());
                der[at] = byte;
            }
            look_at_all(&der);
            look_at_all(&der[..cut.index(der.len())]);
        }

        #[test]
        fn no_bytes_panic(der in prop::collection::vec(any::<u8>(), 0..100)) {
            look_at_all(&der);
        }
    }
}
