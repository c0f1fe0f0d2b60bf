//! Certificates: whom we trust and who we are. Must never trust anybody because a file could not be read.

use std::error::Error;

use rustls::InvalidMessage;
use tonic::transport::{ClientTlsConfig, Identity};

use super::address::Tls;
use crate::store::StoreError;
use crate::store::server::tls::{Pem, roots, trusted};

/// Files are read anew for every connection: certificates are renewed while lockrun runs. The system's are read once.
pub fn read(tls: &Tls) -> Result<ClientTlsConfig, StoreError> {
    let roots = roots(trusted(tls.ca.as_deref().map(|path| Pem::file("cacert", path)))?)?;
    let config = ClientTlsConfig::new().trust_anchors(roots.roots.clone());
    let Some((cert, key)) = &tls.identity else { return Ok(config) };
    Ok(config.identity(Identity::from_pem(Pem::file("cert", cert).bytes()?, Pem::file("key", key).bytes()?)))
}

/// What was read cannot be used.
pub fn refused(error: &tonic::transport::Error) -> StoreError {
    let mut error: &dyn Error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    StoreError::Refused(format!("client certificate or key: {error}; check the files that cert and key name"))
}

/// If it is about trust, or about a server of another kind, it will not heal by itself.
pub fn why_refused(error: &(dyn Error + 'static)) -> Option<String> {
    let text = error.to_string();
    // With TLS 1.3 the server judges our certificate after the handshake, and h2 keeps of what it then says the words alone.
    let about_us = ["CertificateRequired", "BadCertificate", "CertificateUnknown", "CertificateExpired", "UnknownCA", "AccessDenied"];
    if text.strip_prefix("received fatal alert: ").is_some_and(|alert| about_us.contains(&alert)) {
        return Some(format!("{text}; the server wants another client certificate: check cert=FILE and key=FILE"));
    }
    match error.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(_) => {
            Some(format!("{text}; check the host's name, the server's certificate and the CA's (cacert=FILE)"))
        }
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
            Some(format!("{text}; the server speaks no TLS here: write etcd:// if that is meant"))
        }
        _ => None,
    }
}
