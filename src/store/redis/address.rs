//! Where the server is and who we are there: `redis://[user:password@]host[:port][/db][?cacert=…&cert=…&key=…&wait=N]`, with
//! `rediss://` for TLS. Must never show what may be a password, whatever was mistyped.

use std::fmt;
use std::path::PathBuf;

use crate::lease::LeaseName;
use crate::store::server::{Variable, decoded};

const PORT: u16 = 6379;

#[derive(Clone)]
pub struct Address {
    /// A name or an IP address, without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    pub(super) db: u32,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) tls: Option<Files>,
    /// How many replicas must have a claim or renewal before it is done; not given: most of those that are there.
    pub(super) wait: Option<usize>,
}

/// Absolute, because lockrun leaves the folder that it was started in. Read with each connection: certificates are renewed.
#[derive(Clone, Debug, Default)]
pub(super) struct Files {
    pub(super) cacert: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
}

impl Address {
    /// The error names what is wrong, never the URL, which may hold a password.
    pub fn parse(url: &str, variable: Variable<'_>) -> Result<Address, String> {
        let (scheme, rest) = url.split_once("://").ok_or("write redis://host:6379")?;
        let tls = scheme == "rediss";
        if url.contains('#') {
            return Err("a #; write %23 for one in a password".to_string());
        }
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, db) = rest.split_once('/').unwrap_or((rest, ""));
        let (credentials, host_port) = authority.rsplit_once('@').map_or((None, authority), |(before, host)| (Some(before), host));
        let (host, port) = host_and_port(host_port)?;
        let (user, password) = credentials.map_or(Ok((None, None)), user_and_password)?;
        let password = match password {
            Some(password) => Some(password),
            None => from_environment(variable)?,
        };
        if user.is_some() && password.is_none() {
            return Err("a user without a password; write USER:PASSWORD@host or :PASSWORD@host, or set REDISCLI_AUTH".to_string());
        }
        let db = db.strip_suffix('/').unwrap_or(db);
        let db = if db.is_empty() { 0 } else { db.parse().map_err(|_| DB)? };
        let mut address = Address { host, port, db, user, password, tls: None, wait: None };
        let files = address.parameters(query)?;
        match (tls, &files) {
            (true, Files { cert: Some(_), key: None, .. }) => return Err("cert: give its key too".to_string()),
            (true, Files { cert: None, key: Some(_), .. }) => return Err("key: give its cert too".to_string()),
            (true, _) => address.tls = Some(files),
            (false, Files { cacert: None, cert: None, key: None }) => {}
            (false, _) => return Err("cacert, cert and key are for TLS; write rediss://".to_string()),
        }
        Ok(address)
    }

    /// Of so many replicas that are there.
    pub(super) fn confirming(&self, replicas: usize) -> usize {
        let most = if replicas == 0 { 0 } else { replicas / 2 + 1 };
        self.wait.unwrap_or(most)
    }

    /// Channels are the same in all databases of a server.
    pub(super) fn channel(&self, name: &LeaseName) -> String {
        format!("lockrun:{}:{name}", self.db)
    }

    fn parameters(&mut self, query: &str) -> Result<Files, String> {
        let mut files = Files::default();
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
            let path = |name: &str| {
                let value = decoded(value).filter(|value| !value.is_empty()).ok_or_else(|| format!("{name}: name a file"))?;
                std::path::absolute(value).map_err(|error| format!("{name}: {error}")).map(Some)
            };
            match name {
                "cacert" => files.cacert = path("cacert")?,
                "cert" => files.cert = path("cert")?,
                "key" => files.key = path("key")?,
                "wait" => {
                    let wait = value.parse().ok().filter(|wait| *wait <= 1000);
                    self.wait = Some(wait.ok_or("wait: a number of replicas, 0 to 1000")?);
                }
                // Not by its name: it may be the rest of a password with a ? in it.
                _ => {
                    return Err(
                        "a parameter that is not known; known are cacert, cert, key and wait; write %3F for a ? in a password".to_string()
                    );
                }
            }
        }
        Ok(files)
    }
}

const DB: &str = "after the / a number of a database; write %2F for a / in a password";

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, port) = rest.split_once(']').ok_or("a [ without its ]")?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| "not an IPv6 address between the [ ]")?;
            (host, port)
        }
        None => text.find(':').map_or((text, ""), |at| text.split_at(at)),
    };
    let letters = |c: char| c.is_ascii_alphanumeric() || ".-_:".contains(c);
    if host.is_empty() || !host.chars().all(letters) {
        return Err(
            "no host, or none with such letters; write redis://host:6379 (one host), and @ / ? # % in a password as %XX".to_string()
        );
    }
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => PORT,
        port => {
            let number = port.and_then(|port| port.parse().ok()).filter(|port| *port > 0);
            number.ok_or("the port is no number from 1 to 65535; write redis://:PASSWORD@host:6379")?
        }
    };
    Ok((host.to_string(), port))
}

fn user_and_password(text: &str) -> Result<(Option<String>, Option<String>), String> {
    let (user, password) = text.split_once(':').map_or((text, None), |(user, password)| (user, Some(password)));
    let decoded = |text: &str| decoded(text).ok_or("a % in user or password that stands for nothing; write %25 for one");
    let some = |text: String| Some(text).filter(|text| !text.is_empty());
    Ok((some(decoded(user)?), password.map(decoded).transpose()?.and_then(some)))
}

/// As redis-cli reads it.
fn from_environment(variable: Variable<'_>) -> Result<Option<String>, String> {
    let text = variable("REDISCLI_AUTH").map(|password| password.into_string().map_err(|_| "REDISCLI_AUTH: not UTF-8"));
    Ok(text.transpose()?)
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        match self.host.contains(':') {
            true => write!(f, "{scheme}://[{}]:{}/{}", self.host, self.port, self.db),
            false => write!(f, "{scheme}://{}:{}/{}", self.host, self.port, self.db),
        }
    }
}

/// Never with a password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
