//! Certificates and keys, as every server's TLS needs them. Must never believe anybody because a file could not be read.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, RootCertStore, SignatureScheme, WantsVerifier};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::store::StoreError;

/// What the user calls a file, and where it is or what is in it: an error names it.
#[derive(Clone, Copy)]
pub struct Pem<'a> {
    pub name: &'a str,
    pub content: Content<'a>,
}

#[derive(Clone, Copy)]
pub enum Content<'a> {
    File(&'a Path),
    Text(&'a [u8]),
}

impl<'a> Pem<'a> {
    pub fn file(name: &'a str, path: &'a Path) -> Pem<'a> {
        Pem { name, content: Content::File(path) }
    }

    pub fn certificates(self) -> Result<Vec<CertificateDer<'static>>, StoreError> {
        let read = match self.content {
            Content::File(path) => CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>),
            Content::Text(text) => CertificateDer::pem_slice_iter(text).collect(),
        };
        match read.map_err(|error| self.unread(&error))? {
            none if none.is_empty() => Err(self.refused("there is no certificate in it; it should be PEM")),
            certificates => Ok(certificates),
        }
    }

    pub fn private_key(self) -> Result<PrivateKeyDer<'static>, StoreError> {
        let read = match self.content {
            Content::File(path) => PrivateKeyDer::from_pem_file(path),
            Content::Text(text) => PrivateKeyDer::from_pem_slice(text),
        };
        read.map_err(|error| self.unread(&error))
    }

    /// For who takes it apart himself.
    #[cfg(feature = "etcd")]
    pub fn bytes(self) -> Result<Vec<u8>, StoreError> {
        match self.content {
            Content::File(path) => std::fs::read(path).map_err(|error| self.unreadable(&error)),
            Content::Text(text) => Ok(text.to_vec()),
        }
    }

    fn unreadable(self, error: &std::io::Error) -> StoreError {
        self.refused(&format!("{error}; check the file and the right to read it"))
    }

    fn unread(self, error: &pem::Error) -> StoreError {
        // Not in the parser's words: they show the line, and it may be the key's.
        let why = match error {
            pem::Error::Io(error) => return self.unreadable(error),
            pem::Error::NoItemsFound => "there is none in it",
            _ => "it cannot be read",
        };
        self.refused(&format!("{why}; it must be PEM and not encrypted"))
    }

    fn refused(self, why: &str) -> StoreError {
        StoreError::Refused(match self.content {
            Content::File(path) => format!("{} {}: {why}", self.name, path.display()),
            Content::Text(_) => format!("{}: {why}", self.name),
        })
    }
}

/// Those of the file, or of this system.
pub fn trusted(file: Option<Pem<'_>>) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    // Read once: there are many, and a reading that takes longer than an attempt must not begin anew with the next. None at
    // all may be some tomorrow.
    static SYSTEM: Mutex<Vec<CertificateDer<'static>>> = Mutex::new(Vec::new());
    let Some(file) = file else {
        let mut system = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
        if system.is_empty() {
            *system = rustls_native_certs::load_native_certs().certs;
        }
        return Ok(system.clone());
    };
    file.certificates()
}

/// What cannot be used is left out: the rest may do.
pub fn roots(trusted: impl IntoIterator<Item = CertificateDer<'static>>) -> Result<Arc<RootCertStore>, StoreError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted);
    match roots.is_empty() {
        true => Err(StoreError::Refused(
            "there is no CA certificate that can be used; name a file that has one, or install ca-certificates".into(),
        )),
        false => Ok(Arc::new(roots)),
    }
}

pub fn builder() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    // ring has suites for both versions of TLS that are on by default.
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider())).with_safe_default_protocol_versions().expect("ring's own")
}

/// `identity`: the client's certificate and its key.
pub fn with_identity(
    builder: ConfigBuilder<ClientConfig, WantsClientCert>,
    identity: Option<(Pem<'_>, Pem<'_>)>,
) -> Result<ClientConfig, StoreError> {
    let Some((certificate, key)) = identity else { return Ok(builder.with_no_client_auth()) };
    let fits = builder.with_client_auth_cert(certificate.certificates()?, key.private_key()?);
    fits.map_err(|error| certificate.refused(&format!("it and {} do not fit: {error}", key.name)))
}

/// Encryption without proof: whoever answers is believed. For those who ask for it by name.
#[derive(Debug)]
pub struct Anybody(CryptoProvider);

impl Anybody {
    pub fn new() -> Arc<Anybody> {
        Arc::new(Anybody(ring::default_provider()))
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The parser's own words show the line as numbers.
    #[test]
    fn an_error_shows_nothing_of_a_key() {
        for text in [
            "-----BEGIN sesame",
            "-----BEGIN PRIVATE KEY-----\nsesame\n",
            "-----BEGIN PRIVATE KEY-----\n%\n-----END PRIVATE KEY-----\n",
            "",
        ] {
            let key = Pem { name: "the key", content: Content::Text(text.as_bytes()) };
            let error = key.private_key().expect_err("no key").to_string();
            assert!(error.contains("PEM") && !error.contains(|c: char| c.is_ascii_digit()), "{error}");
        }
    }
}
