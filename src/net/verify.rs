//! Which certificates of servers are accepted: libpq's sslmode, where rustls alone would refuse more than libpq does.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::pki_types::{
    CertificateDer, ServerName, SignatureVerificationAlgorithm, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime,
};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

use super::certificate::{Certificate, PublicKey};

/// What a certificate must be.
#[derive(Debug)]
pub(super) enum Check {
    /// Anything: `prefer` and `require`.
    Nothing,
    /// Signed by one of these: `verify-ca`.
    Chain(Authorities),
    /// And made out to the host: `verify-full`.
    ChainAndName(Authorities),
}

/// Whom to trust.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) roots: RootCertStore,
    /// The same, whole: a server may use such a certificate itself.
    pub(super) certificates: Vec<CertificateDer<'static>>,
}

#[derive(Debug)]
pub(super) struct ServerVerifier {
    check: Check,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerVerifier {
    pub(super) fn new(check: Check, provider: &CryptoProvider) -> Arc<Self> {
        Arc::new(ServerVerifier { check, algorithms: provider.signature_verification_algorithms })
    }

    fn check_chain(
        &self,
        trusted: &Authorities,
        der: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let certificate = read(der)?;
        // self-signed and handed out as its own CA: rustls calls it `CaUsedAsEndEntity`
        if trusted.certificates.iter().any(|known| known.as_ref() == der.as_ref()) {
            return check_dates(&certificate, now);
        }
        match ParsedCertificate::try_from(der) {
            Ok(parsed) => verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &trusted.roots,
                intermediates,
                now,
                self.algorithms.all,
            ),
            Err(error) if !certificate.is_version_1() => Err(error),
            Err(_) => {
                check_dates(&certificate, now)?;
                self.check_signed_by_root(&certificate, &trusted.roots)
            }
        }
    }

    /// For certificates of version 1, which rustls does not read: what the `openssl x509 -req` of Postgres's own
    /// documentation makes before OpenSSL 3.2. They must be signed by a root itself.
    fn check_signed_by_root(&self, certificate: &Certificate<'_>, roots: &RootCertStore) -> Result<(), Error> {
        let issued = |root: &&TrustAnchor<'_>| {
            // a certificate without alternative names cannot be shown to keep constraints on names
            root.subject.as_ref() == certificate.issuer && root.name_constraints.is_none()
        };
        let signed = |root: &TrustAnchor<'_>| {
            PublicKey::read(root.subject_public_key_info.as_ref()).is_some_and(|key| {
                self.algorithms
                    .all
                    .iter()
                    .filter(|algorithm| algorithm.signature_alg_id().as_ref() == certificate.signature_algorithm)
                    .any(|algorithm| verify(*algorithm, key, certificate.signed, certificate.signature))
            })
        };
        match roots.roots.iter().filter(issued).any(signed) {
            true => Ok(()),
            false => Err(CertificateError::UnknownIssuer.into()),
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        match &self.check {
            Check::Nothing => {}
            Check::Chain(trusted) => self.check_chain(trusted, end_entity, intermediates, now)?,
            Check::ChainAndName(trusted) => {
                self.check_chain(trusted, end_entity, intermediates, now)?;
                check_name(end_entity, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    // Even a certificate that may be anyone's must be the peer's own: else channel binding would prove nothing.

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if ParsedCertificate::try_from(cert).is_ok() {
            return verify_tls12_signature(message, cert, dss, &self.algorithms);
        }
        let key = read(cert)?.key;
        let algorithms = self.algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
        match algorithms.flat_map(|(_, all)| *all).any(|algorithm| verify(*algorithm, key, message, dss.signature())) {
            true => Ok(HandshakeSignatureValid::assertion()),
            false => Err(CertificateError::BadSignature.into()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if ParsedCertificate::try_from(cert).is_ok() {
            return verify_tls13_signature(message, cert, dss, &self.algorithms);
        }
        let key = SubjectPublicKeyInfoDer::from(read(cert)?.key_info);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn read<'a>(der: &'a CertificateDer<'_>) -> Result<Certificate<'a>, Error> {
    Certificate::read(der.as_ref()).ok_or_else(|| CertificateError::BadEncoding.into())
}

fn verify(
    algorithm: &dyn SignatureVerificationAlgorithm,
    key: PublicKey<'_>,
    message: &[u8],
    signature: &[u8],
) -> bool {
    algorithm.public_key_alg_id().as_ref() == key.algorithm
        && algorithm.verify_signature(key.bits, message, signature).is_ok()
}

fn check_dates(certificate: &Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < certificate.not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > certificate.not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

/// The common name counts where no alternative name is of the host's kind
/// (`pgtls_verify_peer_name_matches_certificate_guts`).
fn check_name(der: &CertificateDer<'_>, host: &ServerName<'_>) -> Result<(), Error> {
    let certificate = read(der)?;
    let (has_hosts, has_addresses) = certificate.alternative_names();
    let has_alternatives = match host {
        ServerName::IpAddress(_) => has_addresses,
        _ => has_hosts,
    };
    if has_alternatives {
        return verify_server_name(&ParsedCertificate::try_from(der)?, host);
    }
    match certificate.common_name() {
        Some(name) if common_name_matches(name, &host.to_str(), host) => Ok(()),
        name => Err(CertificateError::NotValidForNameContext {
            expected: host.to_owned(),
            presented: name.iter().map(|name| format!("CN={name}")).collect(),
        }
        .into()),
    }
}

/// A wildcard stands for exactly one label, the leftmost (`wildcard_certificate_match`).
fn common_name_matches(name: &str, host: &str, kind: &ServerName<'_>) -> bool {
    if name.eq_ignore_ascii_case(host) {
        return true;
    }
    match (name.strip_prefix("*."), host.split_once('.'), kind) {
        (Some(domain), Some((label, rest)), ServerName::DnsName(_)) => {
            !label.is_empty() && domain.contains('.') && domain.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}
