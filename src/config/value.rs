//! One parser per kind of value: text in, a good value or the reason out. Must never know where the text came from.

use std::ffi::OsStr;
use std::fmt;
use std::fs;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

use super::LogFormat;
use crate::lease::{LeaseName, OnLost};
use crate::text::without_password;

/// Which store. An error names the value itself, because it may have to hide a part of it.
#[derive(Clone, PartialEq, Eq)]
pub enum StoreUrl {
    Sqlite(PathBuf),
    /// With the whole URL.
    Server(Server, String),
}

/// Never with a password.
impl fmt::Debug for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreUrl::Sqlite(path) => write!(f, "Sqlite({path:?})"),
            StoreUrl::Server(server, _) => write!(f, "Server({server}:…)"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    Postgres,
    Etcd,
    Redis,
    Kubernetes,
}

impl Server {
    fn of(scheme: &str) -> Option<Server> {
        Some(match scheme {
            "postgres" | "postgresql" => Server::Postgres,
            "etcd" | "etcds" => Server::Etcd,
            "redis" | "rediss" => Server::Redis,
            "kubernetes" | "k8s" => Server::Kubernetes,
            _ => return None,
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Server::Postgres => "postgres",
            Server::Etcd => "etcd",
            Server::Redis => "redis",
            Server::Kubernetes => "kubernetes",
        })
    }
}

/// Words that look like a forgotten URL.
const SERVER_WORDS: [&str; 7] = ["postgres", "postgresql", "etcd", "redis", "valkey", "kubernetes", "k8s"];

impl StoreUrl {
    pub fn parse(value: &OsStr) -> Result<StoreUrl, String> {
        let text = value.to_string_lossy();
        if text.is_empty() {
            return Err("'': no store; name a file".to_string());
        }
        if let Some(path) = text.strip_prefix("sqlite:") {
            if path.starts_with("//") {
                return Err("sqlite://…: write sqlite:PATH, without slashes before the path".to_string());
            }
            // By bytes, so that a path that is not UTF-8 stays what it is.
            use std::os::unix::ffi::OsStrExt;
            return StoreUrl::path(OsStr::from_bytes(&value.as_bytes()["sqlite:".len()..]));
        }
        if let Some(scheme) = scheme(&text) {
            let unknown = || format!("{scheme}:…: unknown scheme; if it is a path, put ./ before it");
            let server = Server::of(scheme).ok_or_else(unknown)?;
            let url = value.to_str().ok_or_else(|| format!("{scheme}:…: not UTF-8; write such bytes as %XX"))?;
            return Ok(StoreUrl::Server(server, url.to_string()));
        }
        if SERVER_WORDS.contains(&text.as_ref()) {
            return Err(format!("{text}: a path, or a server? write ./{text}, or {text}://…"));
        }
        StoreUrl::path(value)
    }

    fn path(path: &OsStr) -> Result<StoreUrl, String> {
        if path.is_empty() || path == ":memory:" {
            return Err(format!("{}: no other copy would see it; name a file", path.to_string_lossy()));
        }
        // Quotes, a space or a slip in front of a URL would make it a path, whose errors show it whole.
        let text = path.to_string_lossy();
        let shown = without_password(&text);
        let meant = ["./", "../", "/"].iter().any(|start| text.starts_with(start)) && !text.starts_with("//");
        if shown != text && !meant {
            return Err(format!("{shown}: a URL, but of no store; check its beginning; if it is a path, put ./ before it"));
        }
        Ok(StoreUrl::Sqlite(PathBuf::from(path)))
    }
}

/// The letters before the first colon, if they are a URL's scheme (RFC 3986, 3.1).
fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once(':')?;
    let letters = |c: char| c.is_ascii_alphanumeric() || "+-.".contains(c);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.chars().all(letters)).then_some(scheme)
}

/// Bytes of a store's URL, so that a device or a log given by mistake is not read to its end.
const LONGEST: u64 = 8192;

/// A file that holds the store's URL: a Docker secret.
pub fn from_file(file: &OsStr) -> Result<StoreUrl, String> {
    let shown = without_password(&file.to_string_lossy());
    let mut bytes = Vec::new();
    let read = fs::File::open(file).and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.map_err(|error| format!("{shown}: {error}; it names a file that holds the store's URL"))?;
    if bytes.starts_with(b"SQLite format 3\0") {
        return Err(format!("{shown}: that is a database itself; set LOCKRUN_DB to it"));
    }
    let text = String::from_utf8(bytes).map_err(|_| format!("{shown}: it holds no text; it should hold the store's URL"))?;
    let url = text.trim_end_matches(['\n', '\r']);
    if url.is_empty() || url.contains('\n') || url.len() > LONGEST as usize {
        return Err(format!("{shown}: it must hold one line, the store's URL"));
    }
    StoreUrl::parse(OsStr::new(url)).map_err(|why| format!("{shown}: {why}"))
}

/// `500ms`, `0.5`, `5s`, `1m30s`, `2h`, `1d`; a bare number is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "not a duration; write 500ms, 0.5, 5s, 1m30s, 2h or 1d".to_string();
    let bare = text.chars().all(|c| c.is_ascii_digit() || c == '.') && text.contains(|c: char| c.is_ascii_digit());
    if bare {
        let seconds: f64 = text.parse().map_err(|_| wrong())?;
        return Duration::try_from_secs_f64(seconds).map_err(|_| wrong());
    }
    humantime::parse_duration(text).map_err(|_| wrong())
}

pub fn lease_name(text: &str) -> Result<LeaseName, String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    if text.is_empty() || text.len() > 253 || !text.chars().all(letters) {
        return Err("a name is 1 to 253 of A-Z a-z 0-9 . _ - /".to_string());
    }
    Ok(LeaseName::new(text))
}

/// An identifier, so that it needs no quoting rules.
pub fn table(text: &str) -> Result<String, String> {
    let letters = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let good = !text.is_empty() && text.len() <= 240 && text.chars().all(letters) && !text.starts_with(|c: char| c.is_ascii_digit());
    if !good || text.to_ascii_lowercase().starts_with("lockrun_") || text.to_ascii_lowercase().starts_with("sqlite_") {
        return Err("a table's name is letters, digits and _, and neither lockrun's nor SQLite's own".to_string());
    }
    Ok(text.to_string())
}

/// Kubernetes leaves `$(NAME)` as it is where NAME is not defined before it, and then all pods would be one instance: each
/// would take the lease from the one that runs.
pub fn instance(text: &str) -> Result<String, String> {
    if text.contains("$(") {
        return Err("a variable in it was not filled in; define that one before it in the container's env".to_string());
    }
    Ok(text.to_string())
}

pub fn token(text: &str) -> Result<i64, String> {
    text.parse().map_err(|_| "a token is a 64-bit integer (LOCKRUN_TOKEN)".to_string())
}

pub fn exit_code(text: &str) -> Result<i32, String> {
    text.parse::<u8>().map(i32::from).map_err(|_| "an exit code is 0 to 255".to_string())
}

pub fn on_lost(text: &str) -> Result<OnLost, String> {
    match text {
        "exit" => Ok(OnLost::Exit),
        "wait" => Ok(OnLost::Wait),
        _ => Err("it is exit or wait".to_string()),
    }
}

pub fn log_format(text: &str) -> Result<LogFormat, String> {
    match text {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        _ => Err("it is text or json".to_string()),
    }
}

pub fn log_level(text: &str) -> Result<Level, String> {
    match text {
        "error" => Ok(Level::ERROR),
        "warn" => Ok(Level::WARN),
        "info" => Ok(Level::INFO),
        "debug" => Ok(Level::DEBUG),
        _ => Err("it is error, warn, info or debug".to_string()),
    }
}

/// Where `--http` listens. An unnamed host is every address of this machine.
pub fn http_address(text: &str) -> Result<SocketAddr, String> {
    if !cfg!(feature = "http") {
        return Err("this lockrun is built without http; leave it out".to_string());
    }
    address(text)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    let every = text.strip_prefix(':').filter(|port| !port.contains(':')).map(|port| format!("[::]:{port}"));
    let wrong = |_| "an address and a port, such as 127.0.0.1:8080, [::1]:8080, or :8080 for every address".to_string();
    every.as_deref().unwrap_or(text).parse().map_err(wrong)
}

/// What `health` asks: an address, and a path behind it if it is not the usual one.
pub fn health_address(text: &str) -> Result<(SocketAddr, &'static str), String> {
    const PATHS: [&str; 3] = ["/readyz", "/livez", "/leader"];
    let (text, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let path = if path.is_empty() { Some(PATHS[0]) } else { PATHS.into_iter().find(|known| *known == path) };
    let at = address(text)?;
    if at.port() == 0 {
        return Err("no port; the lockrun that listens tells it in its log".to_string());
    }
    path.map(|path| (at, path)).ok_or_else(|| "behind the address may stand /readyz, /livez or /leader".to_string())
}

/// A name with or without SIG, or a number.
pub fn signal(text: &str) -> Result<i32, String> {
    let wrong = || "not a signal; write TERM, INT, QUIT, USR1, …".to_string();
    let upper = text.to_ascii_uppercase();
    let name = if upper.starts_with("SIG") { upper.clone() } else { format!("SIG{upper}") };
    let number = match (text.parse::<i32>(), name.parse::<nix::sys::signal::Signal>()) {
        (Ok(number), _) if (1..=64).contains(&number) => number,
        (_, Ok(signal)) => signal as i32,
        (_, Err(_)) => realtime(&name).ok_or_else(wrong)?,
    };
    if [libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(&number) {
        return Err("a command cannot act on it; take another (lockrun kills by itself after the grace)".to_string());
    }
    Ok(number)
}

fn realtime(name: &str) -> Option<i32> {
    let offset = match (name.strip_prefix("SIGRTMIN"), name.strip_prefix("SIGRTMAX")) {
        (Some(offset), _) => libc::SIGRTMIN().checked_add(number_or_zero(offset)?)?,
        (_, Some(offset)) => libc::SIGRTMAX().checked_add(number_or_zero(offset)?)?,
        (None, None) => return None,
    };
    (libc::SIGRTMIN()..=libc::SIGRTMAX()).contains(&offset).then_some(offset)
}

fn number_or_zero(text: &str) -> Option<i32> {
    if text.is_empty() { Some(0) } else { text.parse().ok() }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn url(text: &str) -> Result<StoreUrl, String> {
        StoreUrl::parse(OsStr::new(text))
    }

    #[test]
    fn paths_are_sqlite() {
        for path in ["x.db", "./redis", "/a/b c.db", "dir:with/colon.db/x", "sqlite:x.db"] {
            let expected = path.strip_prefix("sqlite:").unwrap_or(path);
            match url(path) {
                Ok(StoreUrl::Sqlite(found)) => assert_eq!(found, Path::new(expected)),
                Ok(StoreUrl::Server(server, _)) => panic!("{path}: {server}"),
                Err(why) => assert!(path.contains("dir:"), "{path}: {why}"),
            }
        }
    }

    #[test]
    fn what_is_no_path_gets_a_hint_and_never_shows_a_password() {
        assert!(url("redis").unwrap_err().contains("./redis"));
        let server = format!("{:?}", url("postgres://u:secret@h/d"));
        assert!(server.contains("postgres") && !server.contains("secret"), "{server}");
        assert!(url("mysql://h").unwrap_err().contains("unknown scheme"));
        assert!(url("sqlite:///x.db").unwrap_err().contains("sqlite:PATH"));
        for nowhere in ["", ":memory:", "sqlite:", "sqlite::memory:"] {
            url(nowhere).unwrap_err();
        }
    }

    #[test]
    fn durations_are_read_as_documented() {
        let good =
            [("500ms", 500), ("0.5", 500), ("5s", 5000), ("5", 5000), ("1m30s", 90_000), ("2h", 7_200_000), ("1d", 86_400_000), ("0", 0)];
        for (text, millis) in good {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for bad in ["", "5x", "-5s", "1.2.3", "s", ".", "1e400", "99999999999999999999999"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn signals_are_names_or_numbers() {
        for text in ["TERM", "SIGTERM", "term", "15"] {
            assert_eq!(signal(text), Ok(15), "{text}");
        }
        assert_eq!(signal("RTMIN+3"), Ok(libc::SIGRTMIN() + 3));
        for bad in ["KILL", "STOP", "0", "65", "", "FOO", "RTMIN+99"] {
            assert!(signal(bad).is_err(), "{bad}");
        }
    }

    #[cfg(feature = "http")]
    #[test]
    fn an_http_address_has_a_port_and_an_unnamed_host_is_every_one() {
        for (text, address) in [
            ("127.0.0.1:8080", "127.0.0.1:8080"),
            ("0.0.0.0:0", "0.0.0.0:0"),
            ("[::]:8080", "[::]:8080"),
            ("[fe80::1]:80", "[fe80::1]:80"),
            (":8080", "[::]:8080"),
        ] {
            assert_eq!(http_address(text).map(|at| at.to_string()), Ok(address.to_string()));
        }
        for text in ["8080", "localhost:8080", ":", "::8080", ":65536", "127.0.0.1", "http://127.0.0.1:80", "127.0.0.1:80/livez"] {
            assert!(http_address(text).is_err(), "{text}");
        }
        let asked = |text| health_address(text).map(|(at, path)| format!("{at}{path}"));
        assert_eq!(asked(":80").as_deref(), Ok("[::]:80/readyz"));
        assert_eq!(asked("127.0.0.1:80/livez").as_deref(), Ok("127.0.0.1:80/livez"));
        for text in ["127.0.0.1:0", "127.0.0.1:80/", "127.0.0.1:80/livez/", "127.0.0.1:80/metrics", "/livez", "http://h:80"] {
            assert!(health_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn an_instance_whose_variable_was_not_filled_in_is_refused() {
        assert_eq!(instance("f81d4fae/beat").as_deref(), Ok("f81d4fae/beat"));
        assert!(instance("$(POD_UID)/beat").is_err());
    }

    #[test]
    fn names_are_checked_letter_by_letter() {
        assert!(lease_name(&"a".repeat(253)).is_ok());
        for bad in ["", "a b", "ä", &"a".repeat(254), "a:b"] {
            assert!(lease_name(bad).is_err(), "{bad}");
        }
        for bad in ["", "a-b", "1a", "lockrun_lease", "sqlite_master", "a\"b"] {
            assert!(table(bad).is_err(), "{bad}");
        }
    }
}
