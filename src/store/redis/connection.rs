//! A connection, from the look-up of the host's name to the password. One address that does not answer, or is the wrong one
//! of several, must never keep it from the others.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use redis::{Value, parse_redis_value_async, pipe};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::address::Address;
use super::info::Info;
use super::tls;
use super::trouble;
use crate::store::StoreError;

pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// With `to_hold`, only to a server that can be trusted with a record.
pub async fn open(address: &Address, to_hold: bool, limit: Duration) -> Result<Box<dyn Stream>, StoreError> {
    let tls = match &address.tls {
        Some(files) => Some(tls::connector(files).await?),
        None => None,
    };
    let found = tokio::net::lookup_host((address.host.as_str(), address.port)).await;
    let found = found.map_err(|error| StoreError::Unknown(format!("{}: its name cannot be resolved ({error})", address.host)))?;
    let targets: Vec<SocketAddr> = found.collect();
    let share = limit / u32::try_from(targets.len()).unwrap_or(u32::MAX).max(1);
    let mut worst = StoreError::Unknown(format!("{}: no address has that name", address.host));
    for target in targets {
        let error = match tokio::time::timeout(share, greeted(address, target, tls.as_ref(), to_hold, share * 3 / 4)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => error,
            Err(_) => StoreError::Unknown(format!("{target}: no answer within {share:?}")),
        };
        // Of several addresses (localhost has two) the one that speaks is to be heard.
        if !matches!(worst, StoreError::Refused(_)) {
            worst = error;
        }
    }
    Err(worst)
}

async fn greeted(
    address: &Address,
    target: SocketAddr,
    tls: Option<&TlsConnector>,
    to_hold: bool,
    patience: Duration,
) -> Result<Box<dyn Stream>, StoreError> {
    let connected = TcpStream::connect(target).await.and_then(|stream| set_up(&stream).map(|()| stream));
    let stream = connected.map_err(|error| StoreError::Unknown(format!("{target}: {error}")))?;
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(stream),
        Some(tls) => {
            let name = rustls::pki_types::ServerName::try_from(address.host.clone());
            let name = name.map_err(|error| StoreError::Refused(format!("{}: {error}", address.host)))?;
            // A Redis without TLS waits for the end of a line, which may never come.
            let silent = format!("{target}: no answer to TLS within {patience:?}; if it speaks none, write redis://");
            let stream = tokio::time::timeout(patience, tls.connect(name, stream)).await;
            let stream = stream.map_err(|_| StoreError::Unknown(silent))?;
            Box::new(stream.map_err(|error| trouble::of_connection(&error))?)
        }
    };
    match introduce(&mut stream, address, to_hold).await {
        Ok(()) => Ok(stream),
        // What a server that speaks TLS does, too.
        Err(StoreError::Unknown(why)) if why == trouble::CLOSED && tls.is_none() => {
            Err(StoreError::Unknown(format!("{target}: {why} without an answer; if it speaks TLS, write rediss://")))
        }
        Err(error) => Err(error),
    }
}

/// A peer that is gone without a word is noticed within 25 s also where nothing is sent.
fn set_up(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &10)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &5)?;
    setsockopt(stream, sockopt::TcpKeepCount, &3)?;
    Ok(())
}

/// Here and not in the client's own greeting, which calls every answer to AUTH a wrong password, "too many clients" too.
async fn introduce(stream: &mut Box<dyn Stream>, address: &Address, to_hold: bool) -> Result<(), StoreError> {
    let mut commands = pipe();
    if let Some(password) = &address.password {
        commands.cmd("AUTH").arg(&address.user).arg(password);
    }
    if address.db != 0 {
        commands.cmd("SELECT").arg(address.db);
    }
    // The first request of all: what is wrong with a server (it wants a certificate of ours, it is none of Redis) shows here.
    commands.cmd("INFO");
    let sent = async {
        stream.write_all(&commands.get_packed_pipeline()).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| trouble::of_connection(&error))?;
    let mut decoder = Default::default();
    let mut last = Value::Nil;
    for _ in 0..commands.len() {
        let answer = parse_redis_value_async(&mut decoder, stream).await.and_then(Value::extract_error);
        last = answer.map_err(|error| trouble::of(&error))?;
    }
    if to_hold { Info::new(last)?.fit_to_hold() } else { Ok(()) }
}
