//! Certificates of every kind that servers are met with.

use std::fs;
use std::path::{Path, PathBuf};

use pgweir::demo::cluster::Scratch;
use rcgen::{BasicConstraints, CertificateParams, CustomExtension, DnType, IsCa, Issuer, KeyPair, SigningKey};

/// A directory of its own for each test; removed with it, or with the process where a static holds it.
pub struct Directory(Scratch);

impl Directory {
    pub fn new() -> Self {
        Directory(Scratch::create(None).unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path().join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

/// A certificate with its key, as PEM.
pub struct Pair {
    pub certificate: String,
    pub key: String,
}

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
}

impl Authority {
    pub fn new(name: &str) -> Self {
        let params = ca_params(name, &[]);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    pub fn issue(&self, name: &str, alternatives: &[&str]) -> Pair {
        self.sign(&params(name, alternatives))
    }

    pub fn issue_expired(&self, alternatives: &[&str]) -> Pair {
        let mut params = params("expired", alternatives);
        params.not_before = rcgen::date_time_ymd(2001, 1, 1);
        params.not_after = rcgen::date_time_ymd(2002, 1, 1);
        self.sign(&params)
    }

    /// With an extension that nobody knows, and that nobody may pass over (RFC 5280 section 4.2).
    pub fn issue_with_critical_extension(&self, alternatives: &[&str]) -> Pair {
        let mut params = params("critical", alternatives);
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(true);
        params.custom_extensions.push(extension);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Pair {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pair { certificate, key: key.serialize_pem() }
    }

    /// Version 1, without extensions, signed with this authority's key: what `openssl x509 -req` made for decades.
    pub fn issue_version_1(&self, name: &str) -> Pair {
        let key = KeyPair::generate().unwrap();
        let modern = params(name, &["ignored"]).signed_by(&key, &self.issuer).unwrap();
        let outer = values(values(modern.der())[0].1);
        let fields = values(outer[0].1);
        // without the version in front and the extensions behind
        let old: Vec<u8> = fields[1..fields.len() - 1].iter().flat_map(|field| field.0).copied().collect();
        let signed = wrap(0x30, &old);
        let signature = wrap(0x03, &[&[0][..], &self.issuer.key().sign(&signed).unwrap()].concat());
        let der = wrap(0x30, &[&signed, outer[1].0, &signature].concat());
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        let certificate = format!("-----BEGIN CERTIFICATE-----\n{base64}\n-----END CERTIFICATE-----\n");
        Pair { certificate, key: key.serialize_pem() }
    }
}

/// As `openssl req -x509` makes it: its own authority.
pub fn self_signed(alternatives: &[&str]) -> Pair {
    let key = KeyPair::generate().unwrap();
    let certificate = ca_params("self", alternatives).self_signed(&key).unwrap().pem();
    Pair { certificate, key: key.serialize_pem() }
}

/// Signed with Ed25519, for which no channel binding is defined.
pub fn ed25519() -> Pair {
    let key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    assert_eq!(key.algorithm(), &rcgen::PKCS_ED25519);
    let certificate = params("ed", &["localhost"]).self_signed(&key).unwrap().pem();
    Pair { certificate, key: key.serialize_pem() }
}

fn params(name: &str, alternatives: &[&str]) -> CertificateParams {
    let names: Vec<String> = alternatives.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params
}

fn ca_params(name: &str, alternatives: &[&str]) -> CertificateParams {
    let mut params = params(name, alternatives);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

/// DER values in a row: all bytes, and the content, of each.
fn values(mut der: &[u8]) -> Vec<(&[u8], &[u8])> {
    let mut found = Vec::new();
    while !der.is_empty() {
        let (head, len) = match der[1] {
            len @ 0..=0x7f => (2, usize::from(len)),
            0x81 => (3, usize::from(der[2])),
            0x82 => (4, usize::from(der[2]) << 8 | usize::from(der[3])),
            other => panic!("length {other:x}"),
        };
        found.push((&der[..head + len], &der[head..head + len]));
        der = &der[head + len..];
    }
    found
}

fn wrap(tag: u8, content: &[u8]) -> Vec<u8> {
    let [high, low] = u16::try_from(content.len()).unwrap().to_be_bytes();
    // long form, shortest: DER
    let head = match content.len() {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        _ => vec![tag, 0x82, high, low],
    };
    [head, content.to_vec()].concat()
}
