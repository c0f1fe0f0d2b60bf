//! One connection: which address, encrypted or not, logged in, at a server that takes writes; and what is asked over it.
//! Must never run beside its owner: dropped, it is closed, and nothing of it lives on.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};
use tokio_postgres::config::{SslMode, SslNegotiation};
use tokio_postgres::error::Severity;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, Error, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::address::{Address, Host, Place};
use super::error::{is_about_the_way, store_error};
use super::passfile::{self, Login};
use super::sql;
use super::tls::Mode;
use crate::store::StoreError;
use crate::store::server::read_files;
use crate::store::server::tls::builder;

/// Of `limit`: the pause before the next address is tried beside one that does not answer.
const NEXT_AFTER: u32 = 8;
/// A dead way to the server is noticed by a waiter within half a minute.
const KEEPALIVE: [u32; 3] = [15, 5, 3];
/// As many notifications are kept until they are looked at.
const HEARD: usize = 16;
/// What PostgreSQL's protocol starts with, before TLS.
const TLS_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Stream = Box<dyn Duplex>;
type Link = Connection<Stream, <MakeRustlsConnect as MakeTlsConnect<Stream>>::Stream>;

pub struct Session {
    client: Client,
    /// Driven by whoever asks or listens, and by nobody else.
    link: Link,
    /// The link has said its last word.
    over: bool,
    /// Channels of notifications that came and were not looked at yet.
    heard: Vec<String>,
    /// The server warned of something along with the last answer.
    pub warned: bool,
    pub host: Host,
    pub encrypted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Encrypt {
    No,
    IfOffered,
    Yes,
}

impl Session {
    /// The first server, of all addresses of all hosts, that lets us in and takes writes.
    pub async fn open(address: &Address, limit: Duration) -> Result<Session, StoreError> {
        let connector = match address.tls.mode {
            Mode::Disable => None,
            _ => {
                let tls = address.tls.clone();
                Some(read_files(move || tls.connector()).await?)
            }
        };
        let by_host = address.hosts.iter().map(|host| Box::pin(Session::at_host(address, host, connector.as_ref(), limit)) as Try<'_>);
        let failures = match first_of(by_host.collect(), limit / NEXT_AFTER).await {
            Ok(session) => return Ok(session),
            Err(failures) => failures,
        };
        // One host that may come back is reason enough to go on.
        let for_good = failures.iter().all(|failure| matches!(failure, StoreError::Refused(_)));
        let text = failures.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        Err(if for_good { StoreError::Refused(text) } else { StoreError::Unknown(text) })
    }

    async fn at_host(
        address: &Address,
        host: &Host,
        connector: Option<&MakeRustlsConnect>,
        limit: Duration,
    ) -> Result<Session, StoreError> {
        let within = async |work: Try<'_>| match address.connect_timeout {
            None => work.await,
            Some(limit) => timeout(limit, work).await.unwrap_or_else(|_| Err(StoreError::Unknown(format!("no answer within {limit:?}")))),
        };
        let sockets = match &host.place {
            Place::Socket(_) => vec![None],
            Place::Name { address: Some(address), .. } => vec![Some(*address)],
            Place::Name { name, address: None } => match look_up(name, host.port).await {
                Ok(found) => found.into_iter().map(Some).collect(),
                Err(error) => return Err(StoreError::Unknown(format!("{name}: {error}"))),
            },
        };
        let within = &within;
        let tries = sockets.into_iter().map(|ip| Box::pin(within(Box::pin(Session::at(address, host, ip, connector)))) as Try<'_>);
        let failures = match first_of(tries.collect(), limit / NEXT_AFTER).await {
            Ok(session) => return Ok(session),
            Err(failures) => failures,
        };
        // "localhost" is often two addresses, and the server at one of them: what it says counts.
        let refused = failures.iter().find(|failure| matches!(failure, StoreError::Refused(_)));
        let failure = refused.or(failures.last()).cloned().unwrap_or(StoreError::Unknown("no address".to_string()));
        if address.hosts.len() == 1 {
            return Err(failure);
        }
        Err(match failure {
            StoreError::Refused(why) => StoreError::Refused(format!("{host}: {why}")),
            StoreError::Unknown(why) => StoreError::Unknown(format!("{host}: {why}")),
        })
    }

    async fn at(address: &Address, host: &Host, ip: Option<IpAddr>, connector: Option<&MakeRustlsConnect>) -> Result<Session, StoreError> {
        let (first, second) = match (address.tls.mode, ip) {
            // libpq never encrypts a socket.
            (Mode::Disable, _) | (_, None) => (Encrypt::No, None),
            (Mode::Allow, _) => (Encrypt::No, Some(Encrypt::Yes)),
            (Mode::Prefer, _) => (Encrypt::IfOffered, Some(Encrypt::No)),
            (Mode::Require | Mode::VerifyCa | Mode::VerifyFull, _) => (Encrypt::Yes, None),
        };
        let login = |encrypt| Session::log_in(address, host, ip, encrypt, connector);
        let session = match (login(first).await, second) {
            (Ok(session), _) => Ok(session),
            (Err((failure, true)), Some(second)) => {
                // That this way in is closed too says less than why the first one was.
                login(second).await.map_err(|(other, way_closed)| if way_closed { failure } else { other })
            }
            (Err((failure, _)), _) => Err(failure),
        };
        session?.that_takes_writes().await
    }

    /// After a fail-over the standby is the right one, and it is another address.
    async fn that_takes_writes(mut self) -> Result<Session, StoreError> {
        let answer = self.ask(sql::TAKES_WRITES).await.map_err(|error| store_error(&error))?;
        match sql::rows(&answer).first().map(|row| (row.get(0), row.get(1))) {
            Some((Some("t"), _)) => Err(sql::standby()),
            Some((_, Some("off"))) => Ok(self),
            _ => Err(StoreError::Unknown("the server is read-only (default_transaction_read_only is on)".to_string())),
        }
    }

    /// With an error: whether it might be let in the other way, encrypted or not.
    async fn log_in(
        address: &Address,
        host: &Host,
        ip: Option<IpAddr>,
        encrypt: Encrypt,
        connector: Option<&MakeRustlsConnect>,
    ) -> Result<Session, (StoreError, bool)> {
        let unknown = |error: io::Error| (StoreError::Unknown(error.to_string()), false);
        let mut stream = dial(host, ip).await.map_err(unknown)?;
        let direct = address.tls.direct;
        let encrypted = encrypt != Encrypt::No && (direct || offers_tls(&mut stream).await?);
        if encrypt == Encrypt::Yes && !encrypted {
            return Err((StoreError::Refused("the server offers no TLS; set it up there, or take a lower sslmode".to_string()), false));
        }
        let mut config = Config::new();
        config.user(&address.user).dbname(&address.database).application_name(&address.application_name);
        config.channel_binding(address.channel_binding);
        if let Some(options) = &address.options {
            config.options(options);
        }
        let mut no_password = None;
        match (&address.password, &address.passfile) {
            (Some(password), _) => drop(config.password(password)),
            (None, Some(file)) => match passfile::password(file, &Login { host, database: &address.database, user: &address.user }) {
                Ok(Some(password)) => drop(config.password(password)),
                Ok(None) => {}
                Err(why) => no_password = Some(why),
            },
            (None, None) => {}
        }
        // The question was asked above, so that what is no PostgreSQL server is told from one without TLS.
        match encrypted {
            true => config.ssl_mode(SslMode::Require).ssl_negotiation(SslNegotiation::Direct),
            false => config.ssl_mode(SslMode::Disable),
        };
        let name = match (&host.place, ip) {
            (Place::Name { name, .. }, _) => name.clone(),
            (Place::Socket(_), _) => String::new(),
        };
        // A plain connection never asks it; it is there for the type.
        let mut connector = connector.cloned().unwrap_or_else(no_tls);
        let connect = MakeTlsConnect::<Stream>::make_tls_connect(&mut connector, &name).unwrap_or_else(|never| match never {});
        match config.connect_raw(stream, connect).await {
            Ok((client, link)) => {
                Ok(Session { client, link, over: false, heard: Vec::new(), warned: false, host: host.clone(), encrypted })
            }
            Err(error) => {
                let failed_before_login = encrypted && error.to_string().starts_with("error performing TLS");
                let failure = match (store_error(&error), no_password) {
                    (StoreError::Refused(why), Some(file)) if why.contains("none is given") => {
                        StoreError::Refused(format!("{why}; {file}"))
                    }
                    (failure, _) => failure,
                };
                Err((failure, failed_before_login || is_about_the_way(&error)))
            }
        }
    }

    /// One or more statements in one packet, so that a pooler gives them to one server. Text in, text out.
    pub async fn ask(&mut self, sql: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        let Session { client, link, over, heard, warned, .. } = self;
        *warned = false;
        let mut work = pin!(client.simple_query(sql));
        poll_fn(|context| {
            let lost = drive(link, over, heard, warned, context);
            match (work.as_mut().poll(context), lost) {
                // What the server said with its last breath is the better reason.
                (Poll::Ready(Err(_)) | Poll::Pending, Some(error)) => Poll::Ready(Err(error)),
                (answer, _) => answer,
            }
        })
        .await
    }

    /// The next notification's channel, also of one that came before the call.
    pub async fn listen(&mut self) -> Result<String, StoreError> {
        let Session { link, over, heard, warned, .. } = self;
        poll_fn(|context| {
            let lost = drive(link, over, heard, warned, context);
            if !heard.is_empty() {
                return Poll::Ready(Ok(heard.remove(0)));
            }
            match lost {
                Some(error) => Poll::Ready(Err(store_error(&error))),
                None if *over => Poll::Ready(Err(StoreError::Unknown("the server closed the connection".to_string()))),
                None => Poll::Pending,
            }
        })
        .await
    }
}

/// Sends and receives what there is; the error with which the link ended, if it did so now.
fn drive(link: &mut Link, over: &mut bool, heard: &mut Vec<String>, warned: &mut bool, context: &mut Context<'_>) -> Option<Error> {
    while !*over {
        match link.poll_message(context) {
            // Behind a pooler others' come along with any answer; that something was heard is enough.
            Poll::Ready(Some(Ok(AsyncMessage::Notification(news)))) if heard.len() < HEARD => heard.push(news.channel().to_string()),
            Poll::Ready(Some(Ok(AsyncMessage::Notice(notice)))) => *warned |= notice.parsed_severity() == Some(Severity::Warning),
            Poll::Ready(Some(Ok(_))) => {}
            Poll::Ready(Some(Err(error))) => {
                *over = true;
                return Some(error);
            }
            Poll::Ready(None) => *over = true,
            Poll::Pending => break,
        }
    }
    None
}

async fn look_up(name: &str, port: u16) -> io::Result<Vec<IpAddr>> {
    if let Ok(ip) = name.parse() {
        return Ok(vec![ip]);
    }
    let mut found: Vec<IpAddr> = vec![];
    for address in tokio::net::lookup_host((name, port)).await? {
        if !found.contains(&address.ip()) {
            found.push(address.ip());
        }
    }
    Ok(found)
}

async fn dial(host: &Host, ip: Option<IpAddr>) -> io::Result<Stream> {
    let Some(ip) = ip else {
        let Place::Socket(folder) = &host.place else { return Err(io::ErrorKind::InvalidInput.into()) };
        return Ok(Box::new(UnixStream::connect(folder.join(format!(".s.PGSQL.{}", host.port))).await?));
    };
    let stream = TcpStream::connect(SocketAddr::new(ip, host.port)).await?;
    stream.set_nodelay(true)?;
    let [idle, interval, count] = KEEPALIVE;
    setsockopt(&stream, sockopt::KeepAlive, &true)?;
    setsockopt(&stream, sockopt::TcpKeepIdle, &idle)?;
    setsockopt(&stream, sockopt::TcpKeepInterval, &interval)?;
    setsockopt(&stream, sockopt::TcpKeepCount, &count)?;
    Ok(Box::new(stream))
}

/// PostgreSQL's own question before the handshake. One byte is read and no more: what follows is TLS, or a forger's.
async fn offers_tls(stream: &mut Stream) -> Result<bool, (StoreError, bool)> {
    let answer = async {
        stream.write_all(&TLS_REQUEST).await?;
        stream.read_u8().await
    };
    match answer.await {
        Ok(b'S') => Ok(true),
        Ok(b'N') => Ok(false),
        Ok(_) => Err((StoreError::Refused("that is no PostgreSQL server; check host and port".to_string()), false)),
        Err(error) => Err((StoreError::Unknown(format!("connection lost: {error}")), false)),
    }
}

fn no_tls() -> MakeRustlsConnect {
    MakeRustlsConnect::new(builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth())
}

type Try<'a> = Pin<Box<dyn Future<Output = Result<Session, StoreError>> + 'a>>;

/// Starts one after the other: the next one as soon as one has failed or `pause` has passed. The first success counts.
async fn first_of(tries: Vec<Try<'_>>, pause: Duration) -> Result<Session, Vec<StoreError>> {
    let (mut waiting, mut running, mut failures) = (tries.into_iter(), Vec::new(), Vec::new());
    loop {
        running.extend(waiting.next());
        if running.is_empty() {
            return Err(failures);
        }
        let ended = poll_fn(|context| {
            let polled = running.iter_mut().enumerate().find_map(|(index, work)| match work.as_mut().poll(context) {
                Poll::Ready(result) => Some((index, result)),
                Poll::Pending => None,
            });
            polled.map_or(Poll::Pending, Poll::Ready)
        });
        let ended = match waiting.len() {
            0 => Some(ended.await),
            _ => within(pause, ended).await,
        };
        if let Some((index, result)) = ended {
            drop(running.swap_remove(index));
            match result {
                Ok(session) => return Ok(session),
                Err(failure) => failures.push(failure),
            }
        }
    }
}

async fn within<T>(pause: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = sleep(pause) => None,
    }
}
