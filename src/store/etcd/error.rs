//! What an error of the server or of the way to it means: unknown, or beyond healing; and whether to ask elsewhere. Must never
//! take an answer that did not come for a "no".

use std::error::Error;

use tonic::{Code, Status};

use super::tls;
use crate::store::StoreError;

pub struct Trouble {
    pub error: StoreError,
    pub next: Next,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another endpoint may answer.
    Elsewhere,
    /// It was not carried out: the token has run out, or the rights have changed since the login.
    LogIn,
    Stop,
}

impl Trouble {
    pub fn unknown(why: String) -> Trouble {
        Trouble { error: StoreError::Unknown(why), next: Next::Stop }
    }

    pub fn silent() -> Trouble {
        Trouble { error: StoreError::Unknown("no answer in time".to_string()), next: Next::Elsewhere }
    }
}

/// The connection could not be made, or broke.
pub fn of_dial(error: &tonic::transport::Error) -> Trouble {
    Trouble { error: of_chain(error), next: Next::Elsewhere }
}

pub fn of_status(status: &Status) -> Trouble {
    if status.source().is_some() {
        return Trouble { error: of_chain(status), next: Next::Elsewhere };
    }
    let text = status.message().strip_prefix("etcdserver: ").unwrap_or(status.message());
    let refused = |remedy: &str| Trouble { error: StoreError::Refused(format!("{text}; {remedy}")), next: Next::Stop };
    let unknown = |next| Trouble { error: StoreError::Unknown(text.to_string()), next };
    match status.code() {
        Code::Unauthenticated => unknown(Next::LogIn),
        // Of a token from before a change to users or roles; some versions give it no code of its own.
        _ if text.contains("revision") && text.contains("old") => unknown(Next::LogIn),
        Code::PermissionDenied => refused(
            "grant what this user lacks: etcdctl role grant-permission ROLE --prefix=true readwrite lockrun (of a certificate, its common name is the user)",
        ),
        Code::InvalidArgument if text.contains("user name is empty") => Trouble {
            // The server asks for a login since a moment ago, or always and none was given.
            error: StoreError::Refused(format!(
                "{text}; it asks for a login: write etcd://USER:PASSWORD@HOST, or set ETCDCTL_USER and ETCDCTL_PASSWORD"
            )),
            next: Next::LogIn,
        },
        Code::InvalidArgument if text.contains("authentication failed") => refused("check user and password"),
        Code::InvalidArgument if text.contains("request is too large") => {
            refused("the command's arguments are in the record: put them into a file, or raise etcd's --max-request-bytes")
        }
        // Of history that is no longer kept.
        Code::OutOfRange => unknown(Next::Stop),
        Code::Unimplemented => refused("it is no etcd with the v3 API; check host and port"),
        Code::ResourceExhausted if text.contains("database space exceeded") => Trouble::unknown(format!(
            "{text}: etcd takes no writes until it is compacted and defragmented and the alarm is off (etcdctl alarm disarm)"
        )),
        _ => unknown(Next::Elsewhere),
    }
}

/// From the cause at the bottom, which says most.
fn of_chain(error: &(dyn Error + 'static)) -> StoreError {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(why) = tls::why_refused(error) {
            return StoreError::Refused(why);
        }
        text = error.to_string();
        // An io::Error hides the one that it was made of.
        next = match error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref) {
            Some(inner) => Some(inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    // What came is no HTTP/2: text, or the alert of a server that expected TLS.
    if text.contains("frame with invalid size") {
        return StoreError::Refused("what answers there speaks no HTTP/2: it is no etcd, or wants TLS (write etcds://)".to_string());
    }
    if text.contains("tls handshake eof") {
        return StoreError::Unknown(format!("{text}; if it has no TLS, write etcd://"));
    }
    StoreError::Unknown(text)
}
