//! Who we are to the API server: what each request says, and the certificate of the connection. Must never show a secret.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::{HeaderValue, Request, header::AUTHORIZATION};
use k8s_openapi::ByteString;
use kube::config::AuthInfo;
use secrecy::ExposeSecret;

use crate::store::StoreError;
use crate::store::server::read_files;
use crate::store::server::tls::{Content, Pem};

/// Whether credentials that are refused today may be right tomorrow: they come from a file or a plugin that renews them.
pub fn renew(auth: &AuthInfo) -> bool {
    let files = auth.token_file.is_some() || auth.client_certificate.is_some() && auth.client_certificate_data.is_none();
    auth.token.is_none() && (files || auth.exec.is_some() && !stand_in(auth))
}

/// Credentials that stand in the kubeconfig, or in a file that it names, go before a plugin's, as in client-go.
pub fn stand_in(auth: &AuthInfo) -> bool {
    let certificate = auth.client_certificate.is_some() || auth.client_certificate_data.is_some();
    auth.token.is_some() || auth.token_file.is_some() || auth.username.is_some() || certificate
}

/// What each request says.
#[derive(Clone)]
pub enum Authorization {
    Nothing,
    Header(HeaderValue),
    TokenFile(Arc<TokenFile>),
}

pub struct TokenFile {
    path: PathBuf,
    /// Some remove the file once a process has started (kubernetes/kubernetes#68164).
    last: Mutex<HeaderValue>,
    /// By one at a time: on a disk that hangs they would become many.
    reading: Arc<tokio::sync::Mutex<()>>,
    /// What a request spends on it.
    patience: Duration,
}

impl Authorization {
    /// What a plugin gave, else in kube's order: password, token, token's file. Reads the token's file.
    pub fn new(auth: &AuthInfo, from_plugin: Option<&str>, patience: Duration) -> Result<Authorization, StoreError> {
        if let Some(token) = from_plugin {
            return bearer(token).map(Authorization::Header);
        }
        if let (Some(user), Some(password)) = (&auth.username, &auth.password) {
            let pair = ByteString(format!("{user}:{}", password.expose_secret()).into_bytes());
            let base64 = serde_json::to_value(pair).ok().and_then(|pair| pair.as_str().map(str::to_string)).unwrap_or_default();
            return header(&format!("Basic {base64}")).map(Authorization::Header);
        }
        if let Some(token) = &auth.token {
            return bearer(token.expose_secret()).map(Authorization::Header);
        }
        let Some(path) = auth.token_file.as_ref().map(PathBuf::from) else { return Ok(Authorization::Nothing) };
        let last = Mutex::new(token_in(&path)?);
        Ok(Authorization::TokenFile(Arc::new(TokenFile { path, last, reading: Arc::default(), patience })))
    }

    pub async fn put_on<B>(self, mut request: Request<B>) -> Request<B> {
        let header = match self {
            Authorization::Nothing => return request,
            Authorization::Header(header) => header,
            Authorization::TokenFile(file) => file.token().await,
        };
        request.headers_mut().insert(AUTHORIZATION, header);
        request
    }
}

impl TokenFile {
    /// The token in a file rotates, and the one before ends soon after: so it is always the one that is there now. If none
    /// can be read, it is the last.
    async fn token(self: Arc<TokenFile>) -> HeaderValue {
        if let Ok(reading) = Arc::clone(&self.reading).try_lock_owned() {
            let file = Arc::clone(&self);
            let read = read_files(move || {
                let _reading = reading;
                let token = token_in(&file.path)?;
                *file.last() = token;
                Ok(())
            });
            let _ = tokio::time::timeout(self.patience, read).await;
        }
        self.last().clone()
    }

    fn last(&self) -> MutexGuard<'_, HeaderValue> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn token_in(path: &Path) -> Result<HeaderValue, StoreError> {
    let refused = |why: &str| StoreError::Refused(format!("token {}: {why}; mend the kubeconfig", path.display()));
    match std::fs::read_to_string(path) {
        Ok(token) if token.trim().is_empty() => Err(refused("there is nothing in it")),
        Ok(token) => bearer(&token),
        Err(error) => Err(refused(&error.to_string())),
    }
}

fn bearer(token: &str) -> Result<HeaderValue, StoreError> {
    header(&format!("Bearer {}", token.trim()))
}

fn header(text: &str) -> Result<HeaderValue, StoreError> {
    let mut header = HeaderValue::try_from(text).map_err(|_| StoreError::Refused("token: it is not what a header can hold".to_string()))?;
    header.set_sensitive(true);
    Ok(header)
}

/// The connection's certificate and key, in PEM.
pub struct Identity {
    certificate: Part,
    key: Part,
}

enum Part {
    File(PathBuf),
    Text(Vec<u8>),
}

impl Identity {
    pub fn new(auth: &AuthInfo, from_plugin: Option<(String, String)>) -> Result<Option<Identity>, StoreError> {
        if let Some((certificate, key)) = from_plugin {
            return Ok(Some(Identity { certificate: Part::Text(certificate.into_bytes()), key: Part::Text(key.into_bytes()) }));
        }
        let key_data = auth.client_key_data.as_ref().map(ExposeSecret::expose_secret);
        let certificate = Part::new("client-certificate-data", auth.client_certificate_data.as_deref(), auth.client_certificate.as_ref())?;
        match (certificate, Part::new("client-key-data", key_data, auth.client_key.as_ref())?) {
            (None, None) => Ok(None),
            (Some(certificate), Some(key)) => Ok(Some(Identity { certificate, key })),
            _ => Err(StoreError::Refused("credentials: a client certificate and its key belong together; mend the kubeconfig".to_string())),
        }
    }

    pub fn pem(&self) -> (Pem<'_>, Pem<'_>) {
        (self.certificate.pem("client-certificate"), self.key.pem("client-key"))
    }
}

impl Part {
    fn new(name: &str, base64: Option<&str>, file: Option<&String>) -> Result<Option<Part>, StoreError> {
        match base64 {
            None => Ok(file.map(|path| Part::File(path.into()))),
            Some(text) => match serde_json::from_value::<ByteString>(text.into()) {
                Ok(ByteString(text)) => Ok(Some(Part::Text(text))),
                Err(_) => Err(StoreError::Refused(format!("{name}: not in base64; mend the kubeconfig"))),
            },
        }
    }

    fn pem<'a>(&'a self, name: &'a str) -> Pem<'a> {
        match self {
            Part::File(path) => Pem::file(name, path),
            Part::Text(text) => Pem { name, content: Content::Text(text) },
        }
    }
}
