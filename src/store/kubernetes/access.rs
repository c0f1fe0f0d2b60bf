//! From the address to a client with credentials: once for a process, and again when the cluster refuses them. Must never
//! block the runtime's thread, and never let one slow exec plugin be asked by every attempt.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared as Told};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::client::ConfigExt;
use tower::{BoxError, ServiceBuilder};

use super::address::{Source, chain};
use super::exec;
use crate::store::StoreError;
use crate::store::server::read_files;

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
    let mut expires = None;
    // Not by kube, which asks the plugin three times for one client, waits for it on this thread, and does not get the
    // status of a child that lockrun, a subreaper, has reaped already.
    if let Some(plugin) = config.auth_info.exec.take() {
        let credential = exec::ask(&plugin).await?;
        expires = credential.expires;
        config.auth_info.token = credential.token.map(Into::into);
        config.auth_info.client_certificate_data = credential.certificate;
        config.auth_info.client_key_data = credential.key.map(Into::into);
    }
    // Reads the files of tokens, certificates and the system's roots.
    let runtime = tokio::runtime::Handle::current();
    let client = read_files(move || {
        let _runtime = runtime.enter();
        client(&config, limit).map_err(|error| StoreError::Refused(format!("credentials: {}; mend the kubeconfig", chain(&error))))
    });
    Ok(Access { client: client.await?, expires, renews })
}

/// kube's own would retry by itself, a write that may have been done included, and send small packets late.
fn client(config: &kube::Config, limit: Duration) -> kube::Result<Client> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // Shared by all addresses of a name: one that does not answer leaves time for the next.
    tcp.set_connect_timeout(Some(limit));
    tcp.set_keepalive(Some(SILENCE / 2));
    tcp.set_keepalive_interval(Some(SILENCE / 6));
    tcp.set_keepalive_retries(Some(3));
    tcp.set_tcp_user_timeout(Some(SILENCE));
    let tls = config.rustls_https_connector_with_connector(tcp)?;
    let http = legacy::Client::builder(TokioExecutor::new()).build(tls);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(Client::new(service, config.default_namespace.clone()))
}
