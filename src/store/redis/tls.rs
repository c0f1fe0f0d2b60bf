//! Which server is believed, and who we say that we are.

use std::sync::Arc;

use tokio_rustls::TlsConnector;

use super::address::Files;
use crate::store::StoreError;
use crate::store::server::read_files;
use crate::store::server::tls::{Pem, builder, roots, trusted, with_identity};

pub async fn connector(files: &Files) -> Result<TlsConnector, StoreError> {
    let files = files.clone();
    let config = move || {
        let roots = roots(trusted(files.cacert.as_deref().map(|path| Pem::file("cacert", path)))?)?;
        let identity = files.cert.as_deref().zip(files.key.as_deref());
        let identity = identity.map(|(cert, key)| (Pem::file("cert", cert), Pem::file("key", key)));
        with_identity(builder().with_root_certificates(roots), identity)
    };
    Ok(TlsConnector::from(Arc::new(read_files(config).await?)))
}
