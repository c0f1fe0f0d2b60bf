//! TLS with libpq's meaning of `sslmode`, on rustls. Must never check less than the mode asks for.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio_postgres_rustls::MakeRustlsConnect;
use x509_cert::der::Decode;

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
    /// Reads the files anew, so that certificates can be replaced while lockrun runs.
    pub fn connector(&self) -> Result<MakeRustlsConnect, String> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(self, Arc::clone(&provider))?;
        let builder =
            ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().map_err(|error| error.to_string())?;
        let builder = builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &self.certificate {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let unfit = |error| format!("sslcert {}: it and sslkey {} do not fit: {error}", certificate.display(), key.display());
                builder.with_client_auth_cert(certificates("sslcert", certificate)?, private_key(key)?).map_err(unfit)?
            }
        };
        config.alpn_protocols = vec![b"postgresql".to_vec()];
        Ok(MakeRustlsConnect::new(config))
    }
}

fn certificates(what: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| format!("{what} {}: {error}", path.display()))?;
    if found.is_empty() {
        return Err(format!("{what} {}: there is no certificate in it; it should be PEM", path.display()));
    }
    Ok(found)
}

/// libpq's rule: nobody else may read it; root's own may be shared with a group.
fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let named = |why: String| format!("sslkey {}: {why}", path.display());
    let metadata = std::fs::metadata(path).map_err(|error| named(error.to_string()))?;
    let closed = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & closed != 0 {
        return Err(named("others can read it; chmod 0600 (0640 if root owns it)".to_string()));
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| named(format!("{error}; it must be PEM and not encrypted")))
}

#[derive(Debug)]
struct Verifier {
    /// `None`: the mode asks for encryption, not for proof.
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// A server's own certificate may stand among them.
    roots: Vec<CertificateDer<'static>>,
    name: bool,
    provider: Arc<CryptoProvider>,
}

impl Verifier {
    fn new(tls: &Tls, provider: Arc<CryptoProvider>) -> Result<Verifier, String> {
        if tls.mode < Mode::VerifyCa {
            return Ok(Verifier { chain: None, roots: Vec::new(), name: false, provider });
        }
        let roots = match &tls.roots {
            Roots::File(path) => certificates("sslrootcert", path)?,
            Roots::System => rustls_native_certs::load_native_certs().certs,
        };
        let mut store = RootCertStore::empty();
        store.add_parsable_certificates(roots.iter().cloned());
        let none = "this system has no root certificates; install ca-certificates, or name a file with sslrootcert";
        let chain = WebPkiServerVerifier::builder_with_provider(Arc::new(store), Arc::clone(&provider)).build();
        Ok(Verifier { chain: Some(chain.map_err(|_| none)?), roots, name: tls.mode == Mode::VerifyFull, provider })
    }

    /// As PostgreSQL's manual has it made (18.9.5): signed by itself, an authority, the same file on both sides.
    fn is_a_root_itself(&self, certificate: &CertificateDer<'_>, now: UnixTime) -> bool {
        let valid = || {
            let validity = x509_cert::Certificate::from_der(certificate).ok()?.tbs_certificate.validity;
            let (from, to) = (validity.not_before.to_unix_duration(), validity.not_after.to_unix_duration());
            Some((from.as_secs()..=to.as_secs()).contains(&now.as_secs()))
        };
        self.roots.iter().any(|root| root == certificate) && valid().unwrap_or(false)
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
        let Some(chain) = &self.chain else { return Ok(ServerCertVerified::assertion()) };
        let mut verdict = chain.verify_server_cert(certificate, intermediates, name, ocsp_response, now);
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
        verify_tls12_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
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
