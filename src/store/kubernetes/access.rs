//! From the address to a client with credentials: once for a process, and again when the cluster refuses them. Must never
//! block the runtime's thread, and never let one slow exec plugin be asked by every attempt.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared as Told};
use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::ConfigExt;
use rustls_pki_types::CertificateDer;
use tower::{BoxError, ServiceBuilder};

use super::address::{Source, chain};
use super::credentials::{Authorization, Identity};
use super::exec::{self, Credential};
use crate::store::StoreError;
use crate::store::server::read_files;
use crate::store::server::tls::{Anybody, builder, roots, trusted, with_identity};

/// A peer that is gone without a word is noticed after about this time, also by a watch that has nothing to say.
const SILENCE: Duration = Duration::from_secs(30);

/// A cluster, and who we are there.
#[derive(Clone)]
pub struct Access {
    pub client: Client,
    /// When the credentials end, by the clock of whoever gave them.
    pub expires: Option<Timestamp>,
    /// The credentials come from something that is renewed.
    pub renews: bool,
}

/// A plugin, or a disk, that hangs is asked anew then.
const MAKING: Duration = Duration::from_secs(60);

type Making = Told<BoxFuture<'static, Result<Access, StoreError>>>;

/// The access of this process, being made or made.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<Option<Making>>>);

impl Shared {
    /// What takes longer than one attempt goes on, and the next attempt gets it.
    pub async fn get(&self, source: &Source, limit: Duration) -> Result<Access, StoreError> {
        let making = self.slot().get_or_insert_with(|| start(source.clone(), limit)).clone();
        match tokio::time::timeout(limit * 9 / 10, making).await {
            Ok(Ok(access)) => Ok(access),
            Ok(Err(error)) => {
                self.forget();
                Err(error)
            }
            Err(_) => Err(StoreError::Unknown("its credentials are still being read (from an exec plugin, or a slow disk)".to_string())),
        }
    }

    /// The credentials are read, or asked for, anew.
    pub fn forget(&self) {
        *self.slot() = None;
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<Making>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// On a task of its own: it goes on when nobody waits for it.
fn start(source: Source, limit: Duration) -> Making {
    let task = tokio::spawn(async move {
        let made = tokio::time::timeout(MAKING, make(source, limit)).await;
        made.unwrap_or_else(|_| Err(StoreError::Unknown(format!("its credentials were not there within {MAKING:?}"))))
    });
    task.map(|made| made.unwrap_or_else(|error| Err(StoreError::Unknown(format!("its credentials could not be read: {error}")))))
        .boxed()
        .shared()
}

async fn make(source: Source, limit: Duration) -> Result<Access, StoreError> {
    let reader = source.clone();
    // It was good when this process started: if it is not now, somebody is writing it.
    let mut config = read_files(move || reader.read().map_err(StoreError::Unknown)).await?;
    let renews = source.renews(&config.auth_info);
    // Not by kube, which asks the plugin three times for one client, waits for it on this thread, and does not get the
    // status of a child that lockrun, a subreaper, has reaped already.
    let credential = match config.auth_info.exec.take() {
        Some(plugin) => exec::ask(&plugin).await?,
        None => Credential::default(),
    };
    let expires = credential.expires;
    let runtime = tokio::runtime::Handle::current();
    let client = read_files(move || {
        let _runtime = runtime.enter();
        client(&config, credential, limit)
    });
    Ok(Access { client: client.await?, expires, renews })
}

/// Reads the files of tokens, certificates and the system's roots. kube's own would retry by itself, a write that may have been
/// done included, and send small packets late; and what it knows of old kinds of credentials makes every start of lockrun a
/// tenth slower (a third of all that is relocated).
fn client(config: &kube::Config, credential: Credential, limit: Duration) -> Result<Client, StoreError> {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // Shared by all addresses of a name: one that does not answer leaves time for the next.
    tcp.set_connect_timeout(Some(limit));
    tcp.set_keepalive(Some(SILENCE / 2));
    tcp.set_keepalive_interval(Some(SILENCE / 6));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(SILENCE));
    let authorization = Authorization::new(&config.auth_info, credential.token.as_deref())?;
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
