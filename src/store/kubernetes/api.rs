//! One request to the API server and what its answer means. Must never retry by itself: a write whose answer is lost may
//! have been done, and only the machine knows how much time is left.

use std::time::Duration;

use http::{Request, StatusCode};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::jiff::{Timestamp, fmt::rfc2822};
use kube::Resource;
use kube::api::{GetParams, ListParams, PostParams};
use kube::client::Body;
use kube::core::ObjectList;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::access::Access;
use super::address::{Address, chain};
use crate::store::StoreError;

pub struct Api {
    address: Address,
    access: Access,
    limit: Duration,
    requests: kube::core::Request,
}

/// An answer that is not an error of the connection.
pub struct Answer {
    pub status: StatusCode,
    pub body: Vec<u8>,
    /// The API server's clock, as it writes it.
    pub date: Option<String>,
}

impl Api {
    pub async fn new(address: &Address, limit: Duration) -> Result<Api, StoreError> {
        let access = address.access.get(&address.source, limit).await?;
        let requests = kube::core::Request::new(Lease::url_path(&(), Some(&address.namespace)));
        Ok(Api { address: address.clone(), access, limit, requests })
    }

    pub fn namespace(&self) -> &str {
        &self.address.namespace
    }

    /// To watch with.
    pub fn leases(&self) -> kube::Api<Lease> {
        kube::Api::namespaced(self.access.client.clone(), &self.address.namespace)
    }

    /// From the majority: without a resourceVersion no cache may answer.
    pub async fn get(&self, name: &str) -> Result<Option<Lease>, StoreError> {
        let answer = self.send("get", self.requests.get(name, &GetParams::default())).await?;
        match answer.status {
            StatusCode::NOT_FOUND if answer.is_about("leases") => Ok(None),
            _ => self.good(answer, "get").map(Some),
        }
    }

    /// `None`: the API server says that the object is not as expected.
    pub async fn put(&self, lease: &Lease, dry_run: bool) -> Result<Option<Lease>, StoreError> {
        let (Some(name), Ok(body)) = (&lease.metadata.name, serde_json::to_vec(lease)) else {
            return Err(StoreError::Refused("a Lease without a name".to_string()));
        };
        let params = PostParams { dry_run, field_manager: Some("lockrun".to_string()) };
        let (verb, request) = match &lease.metadata.resource_version {
            None => ("create", self.requests.create(&params, body)),
            Some(_) => ("update", self.requests.replace(name, &params, body)),
        };
        let answer = self.send(verb, request).await?;
        match answer.status {
            StatusCode::CONFLICT if answer.is_conflict(verb) => Ok(None),
            StatusCode::NOT_FOUND if verb == "update" && answer.is_about("leases") => Ok(None),
            _ => self.good(answer, verb).map(Some),
        }
    }

    pub async fn list(&self, params: &ListParams) -> Result<ObjectList<Lease>, StoreError> {
        let answer = self.send("list", self.requests.list(params)).await?;
        self.good(answer, "list")
    }

    /// Any other request; the answer must be a good one.
    pub async fn ask<T: DeserializeOwned>(&self, verb: &str, request: Request<Vec<u8>>) -> Result<(T, Option<String>), StoreError> {
        let answer = self.send(verb, Ok(request)).await?;
        let date = answer.date.clone();
        Ok((self.good(answer, verb)?, date))
    }

    async fn send(&self, verb: &str, request: Result<Request<Vec<u8>>, kube::core::request::Error>) -> Result<Answer, StoreError> {
        let request = request.map_err(|error| StoreError::Refused(chain(&error)))?;
        let answer = self.send_once(verb, request.clone()).await?;
        if answer.status != StatusCode::FORBIDDEN {
            return Ok(answer);
        }
        self.must_be_ready().await?;
        // It may be so only since then. What was forbidden was not done.
        self.send_once(verb, request).await
    }

    /// An API server that is starting answers before it knows the rights, and for a moment (measured: half a second) forbids
    /// everything to everybody.
    pub async fn must_be_ready(&self) -> Result<(), StoreError> {
        let mut request = Request::new(Vec::new());
        *request.uri_mut() = http::Uri::from_static("/readyz");
        match self.send_once("readyz", request).await?.status {
            StatusCode::OK => Ok(()),
            status => {
                let code = status.as_u16();
                Err(StoreError::Unknown(format!("403 to all: it is starting, or this account may do nothing ({code} to readyz)")))
            }
        }
    }

    async fn send_once(&self, verb: &str, request: Request<Vec<u8>>) -> Result<Answer, StoreError> {
        let response = self.access.client.send(request.map(Body::from)).await.map_err(|error| self.no_answer(&error))?;
        let (head, body) = response.into_parts();
        let body = body.collect_bytes().await.map_err(|error| self.no_answer(&error))?.to_vec();
        let header = |name: http::HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
        let date = header(http::header::DATE).map(str::to_string);
        let now = date.as_deref().and_then(http_date);
        let allowed = !matches!(head.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        self.address.access.answered(&self.access, allowed.then_some(verb), now, &self.address.source, self.limit);
        let answer = Answer { status: head.status, body, date };
        // Whoever gives the credentials may have given others meanwhile: also for the answer that says so.
        if answer.status == StatusCode::UNAUTHORIZED {
            self.address.access.refused(&self.access);
        }
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            // The API server is to be spared, but not at the holder's cost: this pause is a part of the attempt, of which the
            // timing has room for three, so no more of the lease is spent than on an answer that does not come. After it
            // the machine adds its own back-off, and before the deadline it tries again all the same.
            let pause =
                header(http::header::RETRY_AFTER).and_then(|seconds| seconds.parse().ok()).map_or(Duration::ZERO, Duration::from_secs);
            tokio::time::sleep(pause.min(self.limit / 2)).await;
            return Err(StoreError::Unknown(format!("429 to {verb}: {}", answer.message())));
        }
        Ok(answer)
    }

    /// There are other credentials by now.
    pub fn is_spent(&self) -> bool {
        self.address.access.has_other_than(&self.access)
    }

    fn good<T: DeserializeOwned>(&self, answer: Answer, verb: &str) -> Result<T, StoreError> {
        if !answer.status.is_success() {
            return Err(self.refusal(&answer, verb));
        }
        serde_json::from_slice(&answer.body).map_err(|_| not_kubernetes(answer.status))
    }

    /// What an answer means that is no success.
    fn refusal(&self, answer: &Answer, verb: &str) -> StoreError {
        let (code, namespace, message) = (answer.status.as_u16(), self.namespace(), answer.message());
        match answer.status {
            // A file, an account's token or a plugin's answer is read anew next time; what stands in the kubeconfig is not.
            StatusCode::UNAUTHORIZED if self.access.renews => StoreError::Unknown(format!("401: {message}; its credentials are read anew")),
            StatusCode::UNAUTHORIZED => self.forbidden(verb, format!("401: {message}; renew the credentials in the kubeconfig")),
            StatusCode::FORBIDDEN if message.contains(" cannot ") => self.forbidden(
                verb,
                format!(
                    "403: {message}; bind a Role with get, list, create, update and watch on leases (coordination.k8s.io) in namespace \
                     {namespace} to it"
                ),
            ),
            StatusCode::FORBIDDEN => StoreError::Refused(format!("403 to {verb} a Lease in namespace {namespace}: {message}")),
            StatusCode::NOT_FOUND if answer.is_about("namespaces") => StoreError::Refused(format!(
                "namespace {namespace}: there is none; create it, or name another in --db kubernetes:NAMESPACE"
            )),
            StatusCode::NOT_FOUND => not_kubernetes(answer.status),
            StatusCode::BAD_REQUEST
            | StatusCode::METHOD_NOT_ALLOWED
            | StatusCode::NOT_ACCEPTABLE
            | StatusCode::PAYLOAD_TOO_LARGE
            | StatusCode::UNSUPPORTED_MEDIA_TYPE
            | StatusCode::UNPROCESSABLE_ENTITY => StoreError::Refused(format!("{code} to {verb} a Lease: {message}")),
            _ => StoreError::Unknown(format!("{code} to {verb}: {message}")),
        }
    }

    /// What was allowed before, somebody is about to allow again.
    fn forbidden(&self, verb: &str, why: String) -> StoreError {
        match self.address.access.was_allowed(verb) {
            true => StoreError::Unknown(why),
            false => StoreError::Refused(why),
        }
    }

    fn no_answer(&self, error: &kube::Error) -> StoreError {
        let (tls, access) = (tls(error), &self.address.access);
        if tls.is_some() {
            access.refused(&self.access);
        }
        match tls {
            // The authority in the file may be the older one.
            Some(Tls::Server(why)) if self.address.in_pod() || access.was_good() => {
                StoreError::Unknown(format!("its certificate: {why}; its authority is read anew"))
            }
            Some(Tls::Server(why)) => {
                StoreError::Refused(format!("its certificate: {why}; put its authority and its name into the kubeconfig"))
            }
            Some(Tls::Client(why)) if self.access.renews => {
                StoreError::Unknown(format!("it refuses our certificate: {why}; it is read anew"))
            }
            Some(Tls::Client(why)) => StoreError::Refused(format!("it refuses our certificate: {why}; renew it in the kubeconfig")),
            None => StoreError::Unknown(first_cause(error)),
        }
    }
}

impl Answer {
    /// A word of the Status object that an API server's refusal is.
    fn status(&self, pointer: &str) -> Option<String> {
        let status: Value = serde_json::from_slice(&self.body).ok()?;
        status.pointer(pointer)?.as_str().filter(|word| !word.is_empty()).map(str::to_string)
    }

    /// Whether it is the API server that knows no such object of this kind, and not somebody who knows no such path.
    fn is_about(&self, kind: &str) -> bool {
        self.status("/details/kind").is_some_and(|found| found == kind)
    }

    /// Whether it is the API server that has another version of the object, and not somebody who has some conflict.
    fn is_conflict(&self, verb: &str) -> bool {
        self.status("/reason").is_some_and(|reason| reason == if verb == "create" { "AlreadyExists" } else { "Conflict" })
    }

    /// What the server says, or its status in words.
    fn message(&self) -> String {
        self.status("/message").unwrap_or_else(|| self.status.canonical_reason().unwrap_or("no reason given").to_string())
    }
}

/// Of a Date header.
pub fn http_date(text: &str) -> Option<Timestamp> {
    rfc2822::parse(text).ok().map(|date| date.timestamp())
}

fn not_kubernetes(status: StatusCode) -> StoreError {
    StoreError::Refused(format!("its answer ({}) is not that of a Kubernetes API server with coordination.k8s.io/v1", status.as_u16()))
}

/// Which certificate is not accepted, and why.
enum Tls {
    Server(String),
    Client(String),
}

fn tls(error: &kube::Error) -> Option<Tls> {
    use rustls::AlertDescription as Alert;
    causes(error).into_iter().find_map(|cause| match cause.downcast_ref::<rustls::Error>()? {
        rustls::Error::InvalidCertificate(why) => Some(Tls::Server(why.to_string())),
        rustls::Error::AlertReceived(
            why @ (Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::CertificateRequired
            | Alert::UnknownCA
            | Alert::DecryptError
            | Alert::AccessDenied),
        ) => Some(Tls::Client(format!("{why:?}"))),
        _ => None,
    })
}

/// What is on top of it says only that a client could not connect or send.
fn first_cause(error: &kube::Error) -> String {
    let causes = causes(error);
    let closed = |cause: &&(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::UnexpectedEof)
    };
    match causes.last() {
        _ if causes.iter().any(closed) => "it closed the connection".to_string(),
        Some(cause) => cause.to_string(),
        None => error.to_string(),
    }
}

/// From the outermost to the first cause. An `io::Error` hides what it holds from `source`.
fn causes(error: &kube::Error) -> Vec<&(dyn std::error::Error + 'static)> {
    let mut found: Vec<&(dyn std::error::Error + 'static)> = vec![error];
    while let Some(last) = found.last() {
        let held = last.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        match held.map(|held| held as &(dyn std::error::Error + 'static)).or_else(|| last.source()) {
            Some(cause) => found.push(cause),
            None => break,
        }
    }
    found
}
