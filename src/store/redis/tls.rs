//! Certificates and keys: which server is believed, and who we say that we are. Must never believe a server without them.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use rustls::client::ClientConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{RootCertStore, pki_types};
use tokio_rustls::TlsConnector;

use super::address::Files;
use super::trouble::refused;
use crate::store::StoreError;
use crate::store::server::read_files;

pub async fn connector(files: &Files) -> Result<TlsConnector, StoreError> {
    let files = files.clone();
    Ok(TlsConnector::from(Arc::new(read_files(move || config(&files)).await?)))
}

fn config(files: &Files) -> Result<ClientConfig, StoreError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| StoreError::Refused(format!("TLS: {error}")))?
        .with_root_certificates(roots(files.cacert.as_deref())?);
    let (Some(cert), Some(key)) = (&files.cert, &files.key) else { return Ok(builder.with_no_client_auth()) };
    let chain = certificates("cert", cert)?;
    let private = PrivateKeyDer::from_pem_file(key).map_err(|error| not_read("key", key, &error))?;
    let fits = builder.with_client_auth_cert(chain, private);
    fits.map_err(|error| StoreError::Refused(format!("cert {} and key {}: {error}", cert.display(), key.display())))
}

fn roots(cacert: Option<&Path>) -> Result<RootCertStore, StoreError> {
    let Some(file) = cacert else {
        return match system_roots() {
            none if none.is_empty() => refused("this system has no CA certificates; install ca-certificates, or give ?cacert=FILE"),
            roots => Ok(roots.clone()),
        };
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates("cacert", file)? {
        roots.add(certificate).map_err(|error| StoreError::Refused(format!("cacert {}: {error}", file.display())))?;
    }
    Ok(roots)
}

/// Read once: there are many, and a reading that takes longer than an attempt must not begin anew with the next.
fn system_roots() -> &'static RootCertStore {
    static ROOTS: OnceLock<RootCertStore> = OnceLock::new();
    ROOTS.get_or_init(|| {
        let mut roots = RootCertStore::empty();
        // What cannot be read is left out: the rest may do.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        roots
    })
}

fn certificates(what: &str, file: &Path) -> Result<Vec<CertificateDer<'static>>, StoreError> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read.map_err(|error| not_read(what, file, &error))? {
        none if none.is_empty() => refused(format!("{what} {}: no certificate in PEM is in it", file.display())),
        certificates => Ok(certificates),
    }
}

fn not_read(what: &str, file: &Path, error: &pki_types::pem::Error) -> StoreError {
    let why = match error {
        pki_types::pem::Error::Io(error) => error.to_string(),
        error => format!("not what is meant, in PEM ({error})"),
    };
    StoreError::Refused(format!("{what} {}: {why}", file.display()))
}
