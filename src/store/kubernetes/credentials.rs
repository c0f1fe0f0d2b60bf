//! Who we are to the API server: what each request says, and the certificate of the connection. Must never show a secret.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use http::{HeaderValue, Request, header::AUTHORIZATION};
use k8s_openapi::ByteString;
use kube::config::AuthInfo;
use secrecy::ExposeSecret;

use crate::store::StoreError;
use crate::store::server::read_files;
use crate::store::server::tls::{Content, Pem};

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
}

impl Authorization {
    /// What a plugin gave, else in kube's order: password, token, token's file. Reads the token's file.
    pub fn new(auth: &AuthInfo, from_plugin: Option<&str>) -> Result<Authorization, StoreError> {
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
        Ok(Authorization::TokenFile(Arc::new(TokenFile { path, last })))
    }

    /// The token in a file rotates, and the one before ends soon after: so it is always the one that is there now.
    pub async fn put_on<B>(self, mut request: Request<B>) -> Request<B> {
        let header = match self {
            Authorization::Nothing => return request,
            Authorization::Header(header) => header,
            Authorization::TokenFile(file) => {
                let path = file.path.clone();
                let read = read_files(move || token_in(&path)).await;
                let mut last = file.last.lock().unwrap_or_else(PoisonError::into_inner);
                *last = read.unwrap_or(last.clone());
                last.clone()
            }
        };
        request.headers_mut().insert(AUTHORIZATION, header);
        request
    }
}

fn token_in(path: &Path) -> Result<HeaderValue, StoreError> {
    let token = std::fs::read_to_string(path);
    bearer(&token.map_err(|error| StoreError::Refused(format!("token {}: {error}; mend the kubeconfig", path.display())))?)
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
