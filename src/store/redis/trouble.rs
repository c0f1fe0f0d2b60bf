//! What went wrong, in the words of whoever has to mend it, and whether it may heal by itself. Must never take for refused
//! what a fail-over, a restart or free room can mend.

use std::error::Error;
use std::io;
use std::sync::Arc;

use redis::{ErrorKind, FromRedisValue, RedisError, Value};

use crate::store::StoreError;

/// All that lockrun sends; `check` and the first warning look at TIME and CONFIG GET too, where they may.
pub const RIGHTS: &str =
    "~lockrun:* &lockrun:* +select +info +wait +eval +evalsha +hmget +hset +sadd +smembers +get +set +publish +subscribe";

const CLUSTER: &str = "it is a Redis Cluster, whose redirections lockrun does not follow; use a server that is not one";

pub const CLOSED: &str = "the server closed the connection";

pub fn unknown<T>(text: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Unknown(text.into()))
}

pub fn refused<T>(text: impl Into<String>) -> Result<T, StoreError> {
    Err(StoreError::Refused(text.into()))
}

pub fn cluster<T>() -> Result<T, StoreError> {
    refused(CLUSTER)
}

/// The answer to one command of several.
pub fn read<T: FromRedisValue>(answer: Option<Value>) -> Result<T, StoreError> {
    let Some(answer) = answer else { return unknown("an answer is missing") };
    let answer = answer.extract_error().map_err(|error| of(&error))?;
    redis::from_redis_value(answer).map_err(|_| StoreError::Refused("it answers as Redis does not; check host and port".to_string()))
}

/// Of a request, or of the conversation as a whole.
pub fn of(error: &RedisError) -> StoreError {
    match (error.kind(), error.code()) {
        (ErrorKind::Server(_) | ErrorKind::Extension, Some(code)) => of_server(code, error.detail().unwrap_or_default()),
        (ErrorKind::Parse, _) => {
            StoreError::Refused("what is there does not speak as Redis does; check host and port (with TLS: rediss://)".to_string())
        }
        _ => match of_the_connection(error) {
            Some(error) => of_connection(error),
            None => StoreError::Unknown(error.to_string()),
        },
    }
}

/// The client keeps it behind an `Arc`, and shows that as the source.
fn of_the_connection(error: &RedisError) -> Option<&io::Error> {
    let source = error.source()?;
    source.downcast_ref::<Arc<dyn Error + Send + Sync>>().map_or(source.downcast_ref(), |shared| shared.downcast_ref())
}

/// Words of a server that stand within an `ERR`: those of a script, before Redis 7, and those that have no code of their own.
const IN_ERR: [(&str, &str); 14] = [
    ("NOPERM", "NOPERM"),
    ("WRONGTYPE", "WRONGTYPE"),
    ("READONLY", "READONLY"),
    ("MISCONF", "MISCONF"),
    ("NOREPLICAS", "NOREPLICAS"),
    ("OOM ", "OOM"),
    ("can't run this command", "NOPERM"),
    ("can't access", "NOPERM"),
    ("invalid password", "WRONGPASS"),
    ("wrong number of arguments for 'auth'", "no users"),
    ("no password is set", "no password"),
    ("without any password configured", "no password"),
    ("DB index", "db"),
    ("nknown command", "unknown command"),
];

fn of_server(code: &str, detail: &str) -> StoreError {
    // A server that does not know AUTH repeats what it was sent, the password with it.
    let detail = detail.split(", with args").next().unwrap_or_default();
    let within = IN_ERR.iter().find(|(words, _)| detail.contains(words)).map(|(_, code)| *code);
    let code = if code == "ERR" { within.unwrap_or(code) } else { code };
    let refused = |text: String| StoreError::Refused(text);
    let unknown = |text: String| StoreError::Unknown(text);
    match code {
        "NOAUTH" => refused(
            "the server wants a password; write redis://:PASSWORD@host, with a user redis://USER:PASSWORD@host, or set REDISCLI_AUTH"
                .into(),
        ),
        "WRONGPASS" => refused("wrong password, or no such user; correct the URL or REDISCLI_AUTH".into()),
        "no password" => refused("the server has no password for the default user; leave it out, or name the user too".into()),
        "no users" => refused("the server is older than Redis 6 and knows no users; give the password alone".into()),
        "NOPERM" => refused(format!("a right is missing ({detail}); as an admin: ACL SETUSER name {RIGHTS}")),
        "DENIED" => refused("the server is in protected mode and hears its own machine only; set a password and bind there".into()),
        "WRONGTYPE" => refused("a key of this lease is another program's (wrong type); use another --name or database number".into()),
        "db" => refused("the server has no database of that number; write a smaller one after the host, or raise `databases`".into()),
        "unknown command" => refused(format!("not a Redis that lockrun can use ({detail})")),
        "MOVED" | "ASK" | "CROSSSLOT" | "CLUSTERDOWN" | "TRYAGAIN" => refused(CLUSTER.into()),
        "LOADING" => unknown("the server is loading its data".into()),
        "READONLY" => unknown("the server is a read-only replica; name the primary".into()),
        "MASTERDOWN" => unknown("the server is a replica that has lost its primary; name the primary".into()),
        "NOREPLICAS" => unknown("the server takes no writes: it has fewer replicas than min-replicas-to-write".into()),
        "MISCONF" => unknown(format!("the server takes no writes: it cannot save to its disk ({detail})")),
        "OOM" => unknown("the server takes no writes: its memory is full (maxmemory)".into()),
        "BUSY" => unknown("the server is busy with a script; as an admin: SCRIPT KILL".into()),
        _ => unknown(format!("{code} {detail}")),
    }
}

/// Of the connection, also in the midst of it: a server asks for a client's certificate after the handshake.
pub fn of_connection(error: &io::Error) -> StoreError {
    match error.get_ref().and_then(|error| error.downcast_ref::<rustls::Error>()) {
        Some(error) => of_tls(error),
        None if matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset) => {
            StoreError::Unknown(CLOSED.to_string())
        }
        None => StoreError::Unknown(error.to_string()),
    }
}

fn of_tls(error: &rustls::Error) -> StoreError {
    use rustls::Error;
    match error {
        Error::InvalidCertificate(why) => {
            let remedy = "give the right ?cacert=FILE, or the host as the certificate has it";
            StoreError::Refused(format!("the server's certificate is not good: {why}; {remedy}"))
        }
        Error::AlertReceived(alert) => {
            StoreError::Refused(format!("the server refuses our side of TLS ({alert:?}); does it want ?cert=FILE&key=FILE, or others?"))
        }
        Error::InvalidMessage(_) => StoreError::Refused("the server does not speak TLS on this port; write redis://".to_string()),
        Error::PeerIncompatible(why) => StoreError::Refused(format!("no TLS version or cipher in common ({why:?})")),
        // What is left happens within one connection; the next may do better.
        error => StoreError::Unknown(error.to_string()),
    }
}
