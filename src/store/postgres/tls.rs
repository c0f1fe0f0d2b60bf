//! TLS with libpq's meaning of `sslmode`, on rustls. Must never check less than the mode asks for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::der::Decode;

use crate::store::StoreError;
use crate::store::server::tls::{Anybody, Pem, builder, roots, trusted, with_identity};

/// `sslmode`, from the least to the most careful.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    Disable,
    Allow,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Roots {
    System,
    File(PathBuf),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    pub mode: Mode,
    pub roots: Roots,
    /// Certificate and key of the client.
    pub certificate: Option<(PathBuf, PathBuf)>,
    /// Without PostgreSQL's own question before the handshake (PostgreSQL 17).
    pub direct: bool,
}

impl Tls {
    /// Reads the files anew, so that certificates can be replaced while lockrun runs. The system's are read once.
    pub fn connector(&self) -> Result<MakeRustlsConnect, StoreError> {
        let verifier: Arc<dyn ServerCertVerifier> = match self.mode < Mode::VerifyCa {
            true => Anybody::new(),
            false => Arc::new(Verifier::new(self)?),
        };
        let builder = builder().dangerous().with_custom_certificate_verifier(verifier);
        let identity = self.certificate.as_ref().map(|(certificate, key)| (Pem::file("sslcert", certificate), Pem::file("sslkey", key)));
        if let Some((_, key)) = &self.certificate {
            is_closed(key)?;
        }
        let mut config = with_identity(builder, identity)?;
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(MakeRustlsConnect::new(config))
    }
}

/// libpq's rule: nobody else may read it; root's own may be shared with a group.
fn is_closed(key: &Path) -> Result<(), StoreError> {
    let named = |why: &str| StoreError::Refused(format!("sslkey {}: {why}", key.display()));
    let metadata = std::fs::metadata(key).map_err(|error| named(&error.to_string()))?;
    let closed = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & closed != 0 {
        return Err(named("others can read it; chmod 0600 (0640 if root owns it)"));
    }
    Ok(())
}

#[derive(Debug)]
struct Verifier {
    chain: Arc<WebPkiServerVerifier>,
    /// A server's own certificate may stand among them.
    trusted: Vec<CertificateDer<'static>>,
    name: bool,
}

impl Verifier {
    fn new(tls: &Tls) -> Result<Verifier, StoreError> {
        let trusted = trusted(match &tls.roots {
            Roots::File(path) => Some(Pem::file("sslrootcert", path)),
            Roots::System => None,
        })?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let chain = WebPkiServerVerifier::builder_with_provider(roots(trusted.iter().cloned())?, provider).build();
        let chain = chain.map_err(|error| StoreError::Refused(format!("sslrootcert: {error}")))?;
        Ok(Verifier { chain, trusted, name: tls.mode == Mode::VerifyFull })
    }

    /// As PostgreSQL's manual has it made (18.9.5): signed by itself, an authority, the same file on both sides.
    fn is_a_root_itself(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
        let valid = || {
            let validity = x509_cert::Certificate::from_der(certificate).ok()?.tbs_certificate.validity;
            let (from, to) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
            Some((from.as_secs()..=to.as_secs()).contains(&now.as_secs()))
        };
        self.trusted.iter().any(|root| root == certificate) && valid().unwrap_or(false)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let mut verdict = self.chain.verify_server_cert(certificate, intermediates, name, ocsp_response, now);
        if matches!(verdict, Err(Error::InvalidCertificate(CertificateError::Other(_)))) && self.is_a_root_itself(certificate, now) {
            let parsed = ParsedCertificate::try_from(certificate)?;
            verdict = rustls::client::verify_server_name(&parsed, name).map(|()| ServerCertVerified::assertion());
        }
        // The name is checked last, so the chain is proved by then.
        match verdict {
            Err(Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }))
                if !self.name || common_name_fits(certificate, name) =>
            {
                Ok(ServerCertVerified::assertion())
            }
            verdict => verdict,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// libpq takes the common name where a certificate has no alternative names at all; rustls never does.
fn common_name_fits(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> bool {
    const COMMON_NAME: &str = "2.5.4.3";
    const ALTERNATIVE_NAMES: &str = "2.5.29.17";
    let Ok(certificate) = x509_cert::Certificate::from_der(certificate) else { return false };
    let certificate = certificate.tbs_certificate;
    if certificate.extensions.iter().flatten().any(|extension| extension.extn_id.to_string() == ALTERNATIVE_NAMES) {
        return false;
    }
    let wanted = name.to_str();
    let parts = certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let mut names = parts.filter(|part| part.oid.to_string() == COMMON_NAME);
    names.any(|part| std::str::from_utf8(part.value.value()).is_ok_and(|common| common.eq_ignore_ascii_case(&wanted)))
}
