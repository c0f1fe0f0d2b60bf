//! A client of a cluster, from its kubeconfig. Must never retry, nor believe a server that is not the cluster's.

use std::time::Duration;

use futures_util::FutureExt;
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::Client;
use kube::client::ConfigExt;
use rustls_pki_types::CertificateDer;
use tower::{BoxError, ServiceBuilder};

use super::address::chain;
use super::credentials::{Authorization, Identity};
use super::exec::Credential;
use crate::store::StoreError;
use crate::store::server::tls::{Anybody, builder, roots, trusted, with_identity};

/// A peer that is gone without a word is noticed after about this time, also by a watch that has nothing to say.
const SILENCE: Duration = Duration::from_secs(30);

/// Reads the files of tokens, certificates and the system's roots. kube's own would retry by itself, a write that may have been
/// done included, and send small packets late; and what it knows of old kinds of credentials makes every start of lockrun a
/// tenth slower (a third of all that is relocated).
pub fn client(config: &kube::Config, credential: Credential, limit: Duration) -> Result<Client, StoreError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // Shared by all addresses of a name: one that does not answer leaves time for the next.
    tcp.set_connect_timeout(Some(limit));
    tcp.set_keepalive(Some(SILENCE / 2));
    tcp.set_keepalive_interval(Some(SILENCE / 6));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(SILENCE));
    let authorization = Authorization::new(&config.auth_info, credential.token.as_deref(), limit / 4)?;
    let identity = Identity::new(&config.auth_info, credential.identity)?;
    let mut https = HttpsConnectorBuilder::new().with_tls_config(tls(config, identity.as_ref())?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(|error| StoreError::Refused(format!("tls-server-name {name}: {error}")))?;
        https = https.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let headers = config.extra_headers_layer();
    let headers = headers.map_err(|error| StoreError::Refused(format!("credentials: {}; mend the kubeconfig", chain(&error))))?;
    let http = legacy::Client::builder(TokioExecutor::new()).build(https.enable_http1().wrap_connector(tcp));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .filter_async(move |request| authorization.clone().put_on(request).map(Ok::<_, BoxError>))
        .layer(headers)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn tls(config: &kube::Config, identity: Option<&Identity>) -> Result<rustls::ClientConfig, StoreError> {
    let plain = config.cluster_url.scheme_str() == Some("http");
    let builder = if plain || config.accept_invalid_certs {
        builder().dangerous().with_custom_certificate_verifier(Anybody::new())
    } else {
        let trusted = match &config.root_cert {
            Some(found) => found.iter().cloned().map(CertificateDer::from).collect(),
            None => trusted(None)?,
        };
        builder().with_root_certificates(roots(trusted)?)
    };
    with_identity(builder, identity.map(Identity::pem))
}
