//! One connection to one endpoint, and requests over it: logs in where the server wants it, and goes on to another endpoint
//! when this one does not answer in its share of the time. Must never say "no" where nothing is known.
//!
//! One channel to one endpoint, and not tonic's own balancing over several: that one keeps handing requests to an endpoint
//! whose host swallows packets, as long as nothing tells it that it is dead.

use std::net::SocketAddr;
use std::time::Duration;

use prost::Message;
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::address::{Address, HostPort, Login, Place, User};
use super::api::{AUTHENTICATE, AuthenticateRequest, AuthenticateResponse};
use super::error::{Next, Trouble, of_dial, of_status};
use super::tls;
use crate::store::StoreError;
use crate::store::server::read_files;

/// A server ends a connection that is pinged more often than every five seconds, or while nothing is asked of it.
const PING_EVERY: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);

pub struct Connection {
    address: Address,
    place: Place,
    /// There is no other place to ask.
    alone: bool,
    grpc: Grpc<Channel>,
    limit: Duration,
    /// It has said something that only an etcd says.
    answered: bool,
}

/// An answer, and whether the request was sent more than once on the way to it.
pub struct Answer<A> {
    pub message: A,
    pub repeated: bool,
}

impl Connection {
    /// To the endpoint that answered last, or to whichever of the others is there first.
    pub async fn open(address: &Address, limit: Duration) -> Result<Connection, StoreError> {
        let (channel, place, alone) = dial(address, limit).await?;
        // An answer may be large; the server's own limit on what is written is what bounds it.
        let grpc = Grpc::new(channel).max_decoding_message_size(usize::MAX);
        Ok(Connection { address: address.clone(), place, alone, grpc, limit, answered: false })
    }

    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The share of the time that one of several steps may take.
    pub fn limit(&self) -> Duration {
        self.limit
    }

    /// Asks, and asks elsewhere or with a new login where that can help; the request may then have been carried out twice.
    pub async fn call<Q, A>(&mut self, path: &'static str, request: Q) -> Result<Answer<A>, StoreError>
    where
        Q: Message + Clone + 'static,
        A: Message + Default + 'static,
    {
        let (mut logged_in, mut repeated) = (false, false);
        loop {
            // Until it answers: whoever connects next, if this is given up, begins with another.
            self.address.start_with(self.place.next());
            let trouble = match tokio::time::timeout(self.share(repeated), self.ask(path, request.clone())).await {
                Ok(Ok(message)) => {
                    self.address.start_with(self.place);
                    self.answered = true;
                    return Ok(Answer { message, repeated });
                }
                Ok(Err(trouble)) => trouble,
                Err(_) => Trouble::silent(),
            };
            match trouble.next {
                Next::LogIn if !logged_in => {
                    logged_in = true;
                    self.address.set_login(Login::NotYet);
                }
                Next::Elsewhere if !repeated && !self.alone => {
                    repeated = true;
                    *self = Connection::open(&self.address, self.limit).await?;
                }
                Next::LogIn | Next::Elsewhere | Next::Stop => return Err(self.named(trouble.error)),
            }
        }
    }

    /// Half of the time, if there is another place to ask; the caller has a limit of its own.
    fn share(&self, repeated: bool) -> Duration {
        if repeated || self.alone { self.limit } else { self.limit / 2 }
    }

    async fn ask<Q, A>(&mut self, path: &'static str, request: Q) -> Result<A, Trouble>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let mut request = Request::new(request);
        self.sign(&mut request).await?;
        unary(&mut self.grpc, path, request).await
    }

    /// A stream that stays open both ways: the server ends it when the requests end.
    pub async fn stream<Q, A>(&mut self, path: &'static str, request: Q) -> Result<Streaming<A>, StoreError>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        use futures_util::StreamExt;
        let requests = futures_util::stream::iter([request]).chain(futures_util::stream::pending());
        let mut request = Request::new(requests);
        let answer = async {
            self.sign(&mut request).await?;
            self.grpc.ready().await.map_err(|error| of_dial(&error))?;
            let stream = self.grpc.streaming(request, PathAndQuery::from_static(path), ProstCodec::default()).await;
            stream.map_err(|status| of_status(&status))
        };
        let answer = answer.await.map_err(|trouble| trouble.error);
        Ok(answer.map_err(|error| self.named(error))?.into_inner())
    }

    /// A member that has lost its leader says so at once, instead of being silent for seconds; and the token of the login.
    async fn sign<R>(&mut self, request: &mut Request<R>) -> Result<(), Trouble> {
        request.metadata_mut().insert("hasleader", MetadataValue::from_static("true"));
        let Some(user) = self.address.user.clone() else { return Ok(()) };
        let login = match self.address.login() {
            Login::NotYet => {
                let login = log_in(&mut self.grpc, user).await?;
                self.address.set_login(login.clone());
                login
            }
            login => login,
        };
        if let Login::Token(token) = login {
            let mut token: MetadataValue<Ascii> =
                token.parse().map_err(|_| Trouble::unknown("the server gave a token that is no text".to_string()))?;
            token.set_sensitive(true);
            request.metadata_mut().insert("token", token);
        }
        Ok(())
    }

    /// Which of the endpoints said so, if there are several.
    fn named(&self, error: StoreError) -> StoreError {
        let error = match error {
            // An etcd with TLS hangs up on whoever speaks to it without.
            StoreError::Unknown(why) if !self.answered && self.address.tls.is_none() && is_hanging_up(&why) => {
                StoreError::Unknown(format!("{why}; if it wants TLS, write etcds://"))
            }
            error => error,
        };
        name(&self.address, self.place.endpoint, error)
    }
}

fn is_hanging_up(why: &str) -> bool {
    ["closed", "reset", "broken pipe"].iter().any(|words| why.to_lowercase().contains(words))
}

fn name(address: &Address, endpoint: usize, error: StoreError) -> StoreError {
    let Some(at) = address.endpoints.get(endpoint).filter(|_| address.endpoints.len() > 1) else { return error };
    match error {
        StoreError::Unknown(why) => StoreError::Unknown(format!("{at}: {why}")),
        StoreError::Refused(why) => StoreError::Refused(format!("{at}: {why}")),
    }
}

async fn unary<Q, A>(grpc: &mut Grpc<Channel>, path: &'static str, request: Request<Q>) -> Result<A, Trouble>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    grpc.ready().await.map_err(|error| of_dial(&error))?;
    let answer = grpc.unary(request, PathAndQuery::from_static(path), ProstCodec::default()).await;
    answer.map(tonic::Response::into_inner).map_err(|status| of_status(&status))
}

async fn log_in(grpc: &mut Grpc<Channel>, user: User) -> Result<Login, Trouble> {
    let request = Request::new(AuthenticateRequest { name: user.name, password: user.password });
    grpc.ready().await.map_err(|error| of_dial(&error))?;
    let codec: ProstCodec<AuthenticateRequest, AuthenticateResponse> = ProstCodec::default();
    match grpc.unary(request, PathAndQuery::from_static(AUTHENTICATE), codec).await {
        Ok(answer) => Ok(Login::Token(answer.into_inner().token)),
        Err(status) if is_not_asked(&status) => Ok(Login::NotAsked),
        Err(status) => Err(of_status(&status)),
    }
}

/// As etcdctl does, a user is no error where everybody may do everything; `check` says that it is so.
fn is_not_asked(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.message().contains("authentication is not enabled")
}

/// Begins with one endpoint and, when that has failed or let pass an eighth of the time, tries the next beside it: one that
/// swallows packets costs that eighth, and a slow one is still waited for.
async fn dial(address: &Address, limit: Duration) -> Result<(Channel, Place, bool), StoreError> {
    let tls = match address.tls.clone() {
        Some(tls) => Some(read_files(move || tls::read(&tls)).await?),
        None => None,
    };
    let mut waiting = address.in_order();
    let mut dials = JoinSet::new();
    let mut errors = Vec::new();
    let mut next = waiting.next();
    loop {
        if let Some(place) = next.take() {
            let (at, tls) = (address.endpoints[place.endpoint].clone(), tls.clone());
            dials.spawn(async move { (place.endpoint, dial_one(&at, place, tls, limit).await) });
        }
        tokio::select! {
            done = dials.join_next() => match done {
                Some(Ok((_, Ok((channel, place, alone))))) => return Ok((channel, place, alone && address.endpoints.len() == 1)),
                Some(Ok((endpoint, Err(error)))) => errors.push(name(address, endpoint, error)),
                Some(Err(_)) => {} // nothing aborts them but the end of this
                None => return Err(all_of(errors)),
            },
            () = tokio::time::sleep(limit / 8), if waiting.len() > 0 => {}
        }
        next = waiting.next();
    }
}

/// Every address that the name has, one after the other, each with its share of the time; whether there is but one.
async fn dial_one(
    at: &HostPort,
    place: Place,
    tls: Option<ClientTlsConfig>,
    limit: Duration,
) -> Result<(Channel, Place, bool), StoreError> {
    let found = tokio::net::lookup_host((at.host.as_str(), at.port)).await;
    let found: Vec<SocketAddr> = found.map_err(|error| StoreError::Unknown(format!("its name cannot be looked up: {error}")))?.collect();
    let share = limit / u32::try_from(found.len() + 1).unwrap_or(u32::MAX);
    let mut last = StoreError::Unknown("its name has no address".to_string());
    for address in (0..found.len()).map(|step| (place.address + step) % found.len()) {
        match tokio::time::timeout(share, endpoint(at, found[address], tls.clone())?.connect()).await {
            Ok(Ok(channel)) => return Ok((channel, Place { address, ..place }, found.len() == 1)),
            Ok(Err(error)) => last = of_dial(&error).error,
            Err(_) => last = Trouble::silent().error,
        }
    }
    Err(last)
}

/// To that address, but under the endpoint's name: certificates are made out to it.
fn endpoint(at: &HostPort, socket: SocketAddr, tls: Option<ClientTlsConfig>) -> Result<Endpoint, StoreError> {
    let scheme = if tls.is_some() { "https" } else { "http" };
    let wrong = |error: tonic::transport::Error| of_dial(&error).error;
    let origin = format!("{scheme}://{at}").parse().map_err(|_| StoreError::Refused(format!("{at}: not the name of a host")))?;
    let endpoint = Endpoint::from_shared(format!("{scheme}://{socket}")).map_err(wrong)?;
    let endpoint = endpoint
        .origin(origin)
        .http2_keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(false)
        .tcp_nodelay(true);
    match tls {
        None => Ok(endpoint),
        Some(tls) => endpoint.tls_config(tls.domain_name(at.host.as_str())).map_err(|error| tls::refused(&error)),
    }
}

/// It will not heal by itself only if that is so of every endpoint.
fn all_of(errors: Vec<StoreError>) -> StoreError {
    let unknown = errors.iter().any(|error| matches!(error, StoreError::Unknown(_)));
    let mut texts: Vec<String> = errors.iter().map(StoreError::to_string).collect();
    texts.sort();
    let text = texts.join("; ");
    if unknown { StoreError::Unknown(text) } else { StoreError::Refused(text) }
}
