//! A PostgreSQL URL as libpq's users know it, filled up from the PG* variables and libpq's defaults. Must never show what
//! stands in it beyond hosts, ports and the database: the rest may be a password, or a piece of one.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::config::ChannelBinding;

use super::keywords::Given;
use super::tls::{Mode, Roots, Tls};
use crate::store::server::Variable;

/// Where Debian's servers have their sockets, and where PostgreSQL's own builds do.
const SOCKET_FOLDERS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

#[derive(Clone)]
pub struct Address {
    pub(super) hosts: Vec<Host>,
    pub(super) user: String,
    pub(super) database: String,
    pub(super) password: Option<String>,
    /// Read when a connection is made; it need not be there.
    pub(super) passfile: Option<PathBuf>,
    pub(super) options: Option<String>,
    pub(super) application_name: String,
    /// For each address of each host.
    pub(super) connect_timeout: Option<Duration>,
    pub(super) channel_binding: ChannelBinding,
    pub(super) tls: Tls,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub place: Place,
    pub port: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// The folder of the server's socket.
    Socket(PathBuf),
    Name {
        name: String,
        /// libpq's `hostaddr`: not looked up.
        address: Option<IpAddr>,
    },
}

impl Address {
    /// The error names what is wrong, never the URL, which may hold a password.
    pub fn parse(url: &str, variable: Variable<'_>) -> Result<Address, String> {
        let mut given = Given::default();
        split(url, &mut given)?;
        given.fill_up(variable)?;
        let home = variable("HOME").map(PathBuf::from);
        let user = match given.get("user") {
            Some(user) => user.to_string(),
            None => login_name().ok_or("no user; write postgres://USER@HOST/DATABASE")?,
        };
        given.read("target_session_attrs", |value| match value {
            "any" | "read-write" | "primary" => Ok(()),
            "read-only" | "standby" | "prefer-standby" => Err("a lease has to be written; leave it out".to_string()),
            _ => Err("not one of libpq's; leave it out".to_string()),
        })?;
        let channel_binding = given.read("channel_binding", |value| match value {
            "disable" => Ok(ChannelBinding::Disable),
            "prefer" => Ok(ChannelBinding::Prefer),
            "require" => Ok(ChannelBinding::Require),
            _ => Err("it is disable, prefer or require".to_string()),
        })?;
        let seconds =
            given.read("connect_timeout", |value| value.trim().parse::<i64>().map_err(|_| "not a number of seconds".to_string()))?;
        Ok(Address {
            hosts: hosts(&given)?,
            database: given.get("dbname").map_or_else(|| user.clone(), str::to_string),
            user,
            password: given.get("password").map(str::to_string),
            passfile: given.get("passfile").map(absolute).or_else(|| home.as_ref().map(|home| home.join(".pgpass"))),
            options: given.get("options").map(str::to_string),
            application_name: given.get("application_name").unwrap_or("lockrun").to_string(),
            // None or less is libpq's "for ever"; lockrun's own limit is there all the same.
            connect_timeout: seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .filter(|seconds| *seconds > 0)
                .map(Duration::from_secs),
            channel_binding: channel_binding.unwrap_or(ChannelBinding::Prefer),
            tls: tls(&given, home.as_deref())?,
        })
    }
}

/// libpq's own way to read it: user and password end at the first `@` before a `/`, hosts at `/` or `?`.
fn split(url: &str, given: &mut Given) -> Result<(), String> {
    let rest = url.split_once("://").ok_or("write postgres://USER@HOST/DATABASE")?.1;
    let login_end = rest.find(['@', '/']).filter(|at| rest[*at..].starts_with('@'));
    let (login, rest) = login_end.map_or((None, rest), |at| (Some(&rest[..at]), &rest[at + 1..]));
    let (rest, parameters) = rest.split_once('?').map_or((rest, None), |(rest, parameters)| (rest, Some(parameters)));
    let (hosts, database) = rest.split_once('/').map_or((rest, None), |(hosts, database)| (hosts, Some(database)));
    if hosts.contains('@') || database.is_some_and(|database| database.contains('@')) {
        return Err("an @ too many; write @ in a password as %40 and / as %2F".to_string());
    }
    if let Some(login) = login {
        let (user, password) = login.split_once(':').map_or((login, None), |(user, password)| (user, Some(password)));
        given.put("user", decoded(user)?)?;
        if let Some(password) = password {
            given.put("password", decoded(password)?)?;
        }
    }
    let parts = hosts.split(',').map(host_and_port).collect::<Result<Vec<_>, _>>()?;
    let list = |part: fn(&(String, String)) -> &str| parts.iter().map(part).collect::<Vec<_>>().join(",");
    // A comma alone says that there are several, each of them the default.
    if !hosts.is_empty() {
        given.put("host", list(|(host, _)| host))?;
    }
    if parts.iter().any(|(_, port)| !port.is_empty()) {
        given.put("port", list(|(_, port)| port))?;
    }
    if let Some(database) = database {
        given.put("dbname", decoded(database)?)?;
    }
    for parameter in parameters.into_iter().flat_map(|parameters| parameters.split('&')).filter(|parameter| !parameter.is_empty()) {
        let (keyword, value) = parameter.split_once('=').ok_or("a parameter behind the ? has no value; write name=value")?;
        given.put(&decoded(keyword)?, decoded(value)?)?;
    }
    Ok(())
}

fn host_and_port(text: &str) -> Result<(String, String), String> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (host, after) = rest.split_once(']').ok_or("an IPv6 address lacks its ]")?;
            let port = if after.is_empty() { Some("") } else { after.strip_prefix(':') };
            (host, port.ok_or("behind the ] of an IPv6 address only :PORT may follow")?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    if port.contains(':') {
        return Err("a colon too many; write an IPv6 address in [brackets], and : in a password as %3A".to_string());
    }
    Ok((decoded(host)?, decoded(port)?))
}

/// %XX as RFC 3986, 2.1 has it.
fn decoded(text: &str) -> Result<String, String> {
    let wrong = || "a % is not followed by two hexadecimal digits; write % as %25".to_string();
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first != b'%' {
            bytes.push(*first);
            rest = after;
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok()).ok_or_else(wrong)?;
        // from_str_radix would take a sign.
        let byte = u8::from_str_radix(digits, 16).ok().filter(|_| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        bytes.push(byte.filter(|byte| *byte != 0).ok_or_else(wrong)?);
        rest = &after[2..];
    }
    if bytes.contains(&0) {
        return Err("it holds a NUL byte".to_string());
    }
    String::from_utf8(bytes).map_err(|_| "its %XX are not UTF-8".to_string())
}

fn hosts(given: &Given) -> Result<Vec<Host>, String> {
    let list = |keyword: &str| -> Vec<String> {
        given.get(keyword).map(|value| value.split(',').map(|part| part.trim().to_string()).collect()).unwrap_or_default()
    };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    let fits = |length: usize| length == 0 || length == count;
    if !fits(names.len()) || !fits(addresses.len()) || !(fits(ports.len()) || ports.len() == 1) {
        return Err("host, hostaddr and port name a different number of hosts".to_string());
    }
    (0..count)
        .map(|index| {
            let port = match ports.get(index).or(ports.first().filter(|_| ports.len() == 1)).map(String::as_str) {
                None | Some("") => 5432,
                Some(port) => port.parse::<u16>().ok().filter(|port| *port > 0).ok_or("a port is not a number from 1 to 65535")?,
            };
            let named = |list: &[String]| list.get(index).filter(|part| !part.is_empty()).cloned();
            let address = named(&addresses).map(|text| text.parse::<IpAddr>().map_err(|_| "hostaddr: not an IP address")).transpose()?;
            let place = match (named(&names), address) {
                (Some(name), _) if name.starts_with('/') => Place::Socket(PathBuf::from(name)),
                (Some(name), _) if name.starts_with('@') => return Err("host: abstract sockets are not known here; use a path".to_string()),
                (Some(name), address) => Place::Name { name, address },
                (None, Some(address)) => Place::Name { name: address.to_string(), address: Some(address) },
                (None, None) => Place::Socket(default_socket_folder()),
            };
            Ok(Host { place, port })
        })
        .collect()
}

fn default_socket_folder() -> PathBuf {
    let there = SOCKET_FOLDERS.into_iter().find(|folder| Path::new(folder).is_dir());
    PathBuf::from(there.unwrap_or(SOCKET_FOLDERS[1]))
}

fn tls(given: &Given, home: Option<&Path>) -> Result<Tls, String> {
    let in_home = |name: &str| home.map(|home| home.join(".postgresql").join(name)).filter(|path| path.exists());
    let mode = given.read("sslmode", |value| {
        Ok(match value {
            "disable" => Mode::Disable,
            "allow" => Mode::Allow,
            "prefer" => Mode::Prefer,
            "require" => Mode::Require,
            "verify-ca" => Mode::VerifyCa,
            "verify-full" => Mode::VerifyFull,
            _ => return Err("it is disable, allow, prefer, require, verify-ca or verify-full".to_string()),
        })
    })?;
    let roots = match given.get("sslrootcert") {
        Some("system") => Roots::System,
        Some(path) => Roots::File(absolute(path)),
        None => in_home("root.crt").map_or(Roots::System, Roots::File),
    };
    let mode = match (mode, given.get("sslrootcert"), &roots) {
        (None | Some(Mode::VerifyFull), Some("system"), _) => Mode::VerifyFull,
        (Some(_), Some("system"), _) => return Err("sslrootcert: system needs sslmode=verify-full".to_string()),
        // libpq's manual, 34.19.1: with a root certificate there, require is verify-ca.
        (Some(Mode::Require), _, Roots::File(_)) => Mode::VerifyCa,
        (mode, _, _) => mode.unwrap_or(Mode::Prefer),
    };
    let certificate = given.get("sslcert").map(absolute).or_else(|| in_home("postgresql.crt"));
    let key = given.get("sslkey").map(absolute).or_else(|| in_home("postgresql.key"));
    let certificate = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (Some(_), None) => return Err("sslcert: its key is missing; name it with sslkey".to_string()),
        (None, _) => None,
    };
    let direct = given.read("sslnegotiation", |value| match value {
        "postgres" => Ok(false),
        "direct" if matches!(mode, Mode::Require | Mode::VerifyCa | Mode::VerifyFull) => Ok(true),
        "direct" => Err("direct needs sslmode=require, verify-ca or verify-full".to_string()),
        _ => Err("it is postgres or direct".to_string()),
    })?;
    Ok(Tls { mode, roots, certificate, direct: direct.unwrap_or(false) })
}

/// The folder is left later on.
fn absolute(path: &str) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| PathBuf::from(path))
}

fn login_name() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name)
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.place {
            Place::Socket(folder) => write!(f, "{}/.s.PGSQL.{}", folder.display(), self.port),
            Place::Name { name, .. } if name.contains(':') => write!(f, "[{name}]:{}", self.port),
            Place::Name { name, .. } => write!(f, "{name}:{}", self.port),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.hosts.iter().map(Host::to_string).collect();
        match self.hosts.as_slice() {
            [Host { place: Place::Socket(_), .. }] => write!(f, "postgres:{}/{}", hosts[0], self.database),
            _ => write!(f, "postgres://{}/{}", hosts.join(","), self.database),
        }
    }
}

/// As people know it; never with a password.
impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({self})")
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn parse(url: &str, variables: &[(&str, &str)]) -> Result<Address, String> {
        let variable = |name: &str| variables.iter().find(|(given, _)| *given == name).map(|(_, value)| OsString::from(value));
        Address::parse(url, &variable)
    }

    fn parts(url: &str, variables: &[(&str, &str)]) -> (String, Option<String>, String) {
        let address = parse(url, variables).expect("a good URL");
        (address.user.clone(), address.password.clone(), address.to_string())
    }

    #[test]
    fn a_url_is_read_as_libpq_reads_it() {
        let some = |user: &str, password: &str, shown: &str| (user.to_string(), Some(password.to_string()), shown.to_string());
        assert_eq!(parts("postgres://u%40x:p%3A%2F%40@h:1/d%20b", &[]), some("u@x", "p:/@", "postgres://h:1/d b"));
        assert_eq!(parts("postgres://u:a?b=c&d@h", &[]), some("u", "a?b=c&d", "postgres://h:5432/u"));
        assert_eq!(parts("postgres://u:p@h/d?user=v&password=q&host=i&port=2", &[]), some("v", "q", "postgres://i:2/d"));
        assert_eq!(parts("postgres://u:p@a:1,[::1]:2,c/d", &[]).2, "postgres://a:1,[::1]:2,c:5432/d");
        assert_eq!(parts("postgres://u@a,b/d?port=7", &[]).2, "postgres://a:7,b:7/d");
        assert_eq!(parts("postgres://u@/d?host=/run/x&port=7", &[]).2, "postgres:/run/x/.s.PGSQL.7/d");
        assert_eq!(parts("postgres://u@%2Frun%2Fx/d", &[]).2, "postgres:/run/x/.s.PGSQL.5432/d");
    }

    #[test]
    fn the_url_beats_the_variables_and_they_the_defaults() {
        let variables =
            [("PGHOST", "e"), ("PGPORT", "9"), ("PGUSER", "eve"), ("PGPASSWORD", "s"), ("PGDATABASE", "f"), ("PGSSLMODE", "require")];
        assert_eq!(parts("postgres://", &variables), ("eve".into(), Some("s".into()), "postgres://e:9/f".into()));
        assert_eq!(parts("postgres://u@h:1/d", &variables), ("u".into(), Some("s".into()), "postgres://h:1/d".into()));
        assert_eq!(parse("postgres://", &variables).expect("good").tls.mode, Mode::Require);
        assert_eq!(parse("postgres://?sslmode=disable", &variables).expect("good").tls.mode, Mode::Disable);
        let address = parse("postgres://u@h", &[("HOME", "/home/u"), ("PGAPPNAME", "beat")]).expect("good");
        assert_eq!((address.passfile, address.application_name), (Some("/home/u/.pgpass".into()), "beat".into()));
    }

    #[test]
    fn root_certificates_raise_what_is_checked_as_libpqs_manual_says() {
        let mode = |parameters: &str| parse(&format!("postgres://u@h?{parameters}"), &[]).expect("good").tls;
        assert_eq!(mode("").mode, Mode::Prefer);
        assert_eq!((mode("sslmode=require").mode, mode("sslmode=require").roots), (Mode::Require, Roots::System));
        assert_eq!(mode("sslmode=require&sslrootcert=/ca").mode, Mode::VerifyCa);
        assert_eq!(mode("sslmode=prefer&sslrootcert=/ca").mode, Mode::Prefer);
        assert_eq!((mode("sslrootcert=system").mode, mode("sslrootcert=system").roots), (Mode::VerifyFull, Roots::System));
    }

    #[test]
    fn a_slip_is_refused_without_showing_what_may_be_a_password() {
        for url in [
            "postgres://u:secret@x@h",
            "postgres://u:12/secret@h/d",
            "postgres://u:sec:ret@h:1:secret/d",
            "postgres://u@h?secret",
            "postgres://u@h?secret=1",
            "postgres://u@h:secret/d",
            "postgres://u:%secret@h",
            "postgres://u@[::1/secret",
        ] {
            let why = parse(url, &[]).expect_err(url);
            assert!(!why.contains("sec"), "{why}");
        }
    }
}
