//! The server: its socket, its thread, and the bounds of both. Must never let a client cost memory or descriptors that the
//! lease needs.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener as Listener};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ACCEPT, ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::task::{AbortHandle, LocalSet, spawn_local, yield_now};
use tokio::time::{sleep, timeout};

use super::{CONNECTIONS, answer, metrics};
use crate::clock;
use crate::error::Failure;
use crate::lease::{Holder, LeaseName};
use crate::told::{Post, Teller, Told};

/// For one request and its answer, however slowly they come or go.
const PATIENCE: Duration = Duration::from_secs(5);
/// Of a request's head.
const LONGEST: usize = 16 << 10;
/// After a failed accept(2): most likely there is no descriptor left.
const PAUSE: Duration = Duration::from_millis(50);

const PATHS: &str = "/livez /readyz /leader /status /metrics";

/// What does not change while this process lives.
pub struct Site {
    pub name: LeaseName,
    pub me: Holder,
    pub started_ms: i64,
}

/// One line says why not, and what to do.
pub fn bind(at: SocketAddr) -> Result<Listener, Failure> {
    let bound = Listener::bind(at).or_else(|error| match error.raw_os_error() {
        // A kernel without IPv6: every address is every one of IPv4.
        Some(libc::EAFNOSUPPORT) if at.ip().is_unspecified() => Listener::bind((Ipv4Addr::UNSPECIFIED, at.port())),
        _ => Err(error),
    });
    bound.map_err(|error| {
        let remedy = match error.raw_os_error() {
            Some(libc::EADDRINUSE) => "the port is taken; stop who listens there, or give each lockrun of this host its own",
            Some(libc::EADDRNOTAVAIL) => "no address of this machine; :PORT is every one",
            Some(libc::EACCES) => "no right to a port below 1024; take a higher one",
            _ => return Failure::refused(format!("--http {at}: {error}; give another address, or leave it out")),
        };
        Failure::refused(format!("--http {at}: {remedy}"))
    })
}

/// On a thread of its own, which ends with the process.
pub fn start(listener: Listener, site: Site) -> io::Result<Teller> {
    let post = Arc::new(Post::default());
    listener.set_nonblocking(true)?;
    let runtime = Builder::new_current_thread().enable_io().enable_time().build()?;
    let latest = RefCell::new(Box::new(Told::nothing(clock::now(), site.started_ms)));
    let server = Server { site, post: post.clone(), latest };
    std::thread::Builder::new().name("http".to_string()).stack_size(512 << 10).spawn(move || {
        LocalSet::new().block_on(&runtime, async {
            // Cannot fail where a runtime is there.
            if let Ok(listener) = TcpListener::from_std(listener) {
                serve(listener, Rc::new(server)).await;
            }
        });
    })?;
    Ok(Teller::new(post))
}

async fn serve(listener: TcpListener, server: Rc<Server>) {
    let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(CONNECTIONS);
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(PAUSE).await;
            continue;
        };
        if open.len() >= CONNECTIONS {
            yield_now().await; // what has come already is answered first
            open.retain(|connection| !connection.is_finished());
        }
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        open.push_back(spawn_local(timeout(PATIENCE, connection(stream, server.clone()))).abort_handle());
    }
}

/// One request, one answer: what is sent behind it is never read.
async fn connection(stream: TcpStream, server: Rc<Server>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let response = server.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    });
    // An error is the client's: it went, or what it sent is no HTTP.
    let _ = http1::Builder::new().keep_alive(false).max_buf_size(LONGEST).serve_connection(TokioIo::new(stream), answer).await;
}

struct Server {
    site: Site,
    post: Arc<Post>,
    latest: RefCell<Box<Told>>,
}

impl Server {
    fn answer(&self, request: &Request<Incoming>) -> Response<String> {
        let mut latest = self.latest.borrow_mut();
        if let Some(told) = self.post.take() {
            *latest = told;
        }
        let (told, now) = (&**latest, clock::now());
        let path = request.uri().path();
        if !PATHS.split(' ').any(|known| known == path) {
            return text(StatusCode::NOT_FOUND, format!("there is only {PATHS}"));
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD".to_string());
            refused.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match path {
            "/livez" => verdict(answer::live(told, now)),
            "/readyz" => verdict(answer::ready(told, now)),
            "/leader" => verdict(answer::leader(told, now)),
            "/status" => with_type("application/json", answer::status(&self.site, told, now)),
            _ => {
                let accepts = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
                let open = accepts.into_iter().any(|value| value.contains(metrics::OPEN.0));
                with_type(if open { metrics::OPEN.1 } else { metrics::CLASSIC }, metrics::text(&self.site, told, now))
            }
        }
    }
}

fn verdict(verdict: answer::Verdict) -> Response<String> {
    match verdict {
        Ok(why) => text(StatusCode::OK, why),
        Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

fn text(status: StatusCode, line: String) -> Response<String> {
    let mut response = with_type("text/plain; charset=utf-8", crate::text::one_line(&line) + "\n");
    *response.status_mut() = status;
    response
}

fn with_type(kind: &'static str, body: String) -> Response<String> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(kind));
    response
}
