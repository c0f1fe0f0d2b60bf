//! `etcd://[user:password@]host[:port][,host…]` and what etcdctl's variables add to it. Must never say more of a wrong one than
//! what is wrong: the URL may hold a password.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::store::server::{self, Variable};

const PORT: u16 = 2379;

#[derive(Clone)]
pub struct Address {
    pub endpoints: Vec<HostPort>,
    pub user: Option<User>,
    pub tls: Option<Tls>,
    /// What one connection has learnt and the next should know.
    learnt: Arc<Learnt>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// Without the brackets of an IPv6 address.
    pub host: String,
    pub port: u16,
}

#[derive(Clone)]
pub struct User {
    pub name: String,
    pub password: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    pub ca: Option<PathBuf>,
    /// The client's certificate and its key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

#[derive(Default)]
struct Learnt {
    start: Mutex<Place>,
    login: Mutex<Login>,
}

/// One of the endpoints, and one of the addresses that its name has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    pub endpoint: usize,
    pub address: usize,
}

impl Place {
    /// What to try when this one does not answer.
    pub fn next(self) -> Place {
        Place { endpoint: self.endpoint + 1, address: self.address + 1 }
    }
}

/// What the server made of the user.
#[derive(Clone, Default, PartialEq, Eq)]
pub enum Login {
    #[default]
    NotYet,
    /// It asks nobody who he is.
    NotAsked,
    Token(String),
}

impl Address {
    /// The error names what is wrong, never the URL, which may hold a password.
    pub fn parse(url: &str, variable: Variable<'_>) -> Result<Address, String> {
        let (scheme, rest) = url.split_once("://").ok_or("write etcd://HOST:2379, or etcds://HOST:2379 for TLS")?;
        if rest.contains('#') {
            return Err("a # in it: write it as %23 if it belongs to the password".to_string());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (user, hosts) = match rest.rsplit_once('@') {
            Some((user, hosts)) => (Some(user), hosts),
            None => (None, rest),
        };
        let hosts = hosts.strip_suffix('/').unwrap_or(hosts);
        if hosts.contains('/') || user.is_some_and(|user| user.contains('/')) {
            return Err("a path in it: leave it out; a / in a password is written as %2F".to_string());
        }
        let endpoints = hosts.split(',').map(endpoint).collect::<Result<Vec<_>, _>>()?;
        let user = user_of(user, variable)?;
        let tls = match scheme {
            "etcds" => Some(Tls::new(query, variable)?),
            _ if query.is_empty() => None,
            _ => return Err("cacert, cert and key are about TLS: write etcds://".to_string()),
        };
        Ok(Address { endpoints, user, tls, learnt: Arc::default() })
    }

    /// Every endpoint, the one first that is likeliest to answer, and each with the address of it to begin with.
    pub fn in_order(&self) -> impl ExactSizeIterator<Item = Place> {
        let (start, count) = (*locked(&self.learnt.start), self.endpoints.len());
        (0..count).map(move |step| Place { endpoint: (start.endpoint + step) % count, address: start.address })
    }

    /// One endpoint of it, which learns for itself; but nobody need log in twice.
    pub fn only(&self, endpoint: usize) -> Address {
        let learnt = Learnt { start: Mutex::default(), login: Mutex::new(self.login()) };
        Address { endpoints: vec![self.endpoints[endpoint].clone()], learnt: Arc::new(learnt), ..self.clone() }
    }

    pub fn start_with(&self, place: Place) {
        *locked(&self.learnt.start) = place;
    }

    pub fn login(&self) -> Login {
        locked(&self.learnt.login).clone()
    }

    pub fn set_login(&self, login: Login) {
        *locked(&self.learnt.login) = login;
    }
}

/// Nothing is done under these locks that can panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn endpoint(text: &str) -> Result<HostPort, String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => rest.split_once(']').ok_or("an address in [ without its ]")?,
        None => text.split_at(text.find(':').unwrap_or(text.len())),
    };
    if host.is_empty() {
        return Err("a host is missing: write etcd://HOST:2379,HOST:2379".to_string());
    }
    let fits = match text.starts_with('[') {
        true => host.parse::<std::net::Ipv6Addr>().is_ok(),
        false => host.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c)),
    };
    if !fits {
        return Err(
            "a host is a name or an address, [ADDRESS] if it has colons; write @ : / , in a password as %40 %3A %2F %2C".to_string()
        );
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => PORT,
        Some(port) => port.parse().ok().filter(|port| *port != 0).ok_or("a port is 1 to 65535")?,
        None => return Err("behind a ] comes :PORT, or the next host".to_string()),
    };
    Ok(HostPort { host: host.to_string(), port })
}

/// The URL's, or else etcdctl's `ETCDCTL_USER` (`NAME` or `NAME:PASSWORD`) and `ETCDCTL_PASSWORD`.
fn user_of(given: Option<&str>, variable: Variable<'_>) -> Result<Option<User>, String> {
    let text = |name: &str| variable(name).map(OsString::into_string).transpose().map_err(|_| format!("{name}: not UTF-8"));
    let (name, password) = match given {
        Some(given) => match given.split_once(':') {
            Some((name, password)) => (decoded(name)?, Some(decoded(password)?)),
            None => (decoded(given)?, None),
        },
        None => match text("ETCDCTL_USER")? {
            Some(user) => match user.split_once(':') {
                Some((name, password)) => (name.to_string(), Some(password.to_string())),
                None => (user, None),
            },
            None => return Ok(None),
        },
    };
    if name.is_empty() {
        return Err("a password without a user: write etcd://USER:PASSWORD@HOST".to_string());
    }
    let password = match password {
        Some(password) => password,
        None => text("ETCDCTL_PASSWORD")?.ok_or("a user without a password: write USER:PASSWORD@, or set ETCDCTL_PASSWORD")?,
    };
    Ok(Some(User { name, password }))
}

fn decoded(text: &str) -> Result<String, String> {
    let wrong = "a % in user, password or file: it stands before two hexadecimal digits; a % itself is written as %25";
    server::decoded(text).ok_or_else(|| wrong.to_string())
}

impl Tls {
    /// The query's, or else etcdctl's variables.
    fn new(query: &str, variable: Variable<'_>) -> Result<Tls, String> {
        let (mut ca, mut cert, mut key) = (None, None, None);
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let slot = match name {
                "cacert" => &mut ca,
                "cert" => &mut cert,
                "key" => &mut key,
                _ => return Err("a parameter that is not known: there are cacert, cert and key, which name files".to_string()),
            };
            if value.is_empty() {
                return Err(format!("{name}: it names a file"));
            }
            *slot = Some(PathBuf::from(decoded(value)?));
        }
        let or = |given: Option<PathBuf>, name: &str| given.or_else(|| variable(name).map(PathBuf::from)).map(|path| absolute(&path));
        let ca = or(ca, "ETCDCTL_CACERT");
        let identity = match (or(cert, "ETCDCTL_CERT"), or(key, "ETCDCTL_KEY")) {
            (Some(cert), Some(key)) => Some((cert, key)),
            (None, None) => None,
            (Some(_), None) => return Err("a client certificate without its key: give key=FILE too".to_string()),
            (None, Some(_)) => return Err("a key without its certificate: give cert=FILE too".to_string()),
        };
        Ok(Tls { ca, identity })
    }
}

/// Files are read again with every connection, and lockrun leaves the folder that it was started in.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Without the user.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts = self.endpoints.iter().map(HostPort::to_string).collect::<Vec<_>>().join(",");
        write!(f, "etcd{}://{hosts}", if self.tls.is_some() { "s" } else { "" })
    }
}

/// Never with a password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
