//! From the address to a client with credentials: once for a process, and anew when they end, are refused, or are some minutes
//! old. Must never block the runtime's thread, let go of what works before there is something else, nor let one slow exec
//! plugin be asked by every attempt.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared as Told};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use kube::Client;

use super::address::Source;
use super::client::client;
use super::credentials;
use super::exec::{self, Credential};
use crate::store::StoreError;
use crate::store::server::read_files;

/// A plugin, or a disk, that hangs is asked anew then: the first time, when somebody may have to log in, and later.
const FIRST: Duration = Duration::from_secs(60);
const LATER: Duration = Duration::from_secs(20);

/// Others are made when so much is left of them. All of it by the API server's clock, whose word on it counts in the end.
const BEFORE_THE_END: SignedDuration = SignedDuration::from_secs(30);
/// What is in files may be another by then: a certificate, an authority that is not to be trusted any more (client-go's time).
const AGE: SignedDuration = SignedDuration::from_secs(300);
/// From one making ahead of time to the next: some plugins give the same until it ends.
const PAUSE: SignedDuration = SignedDuration::from_secs(5);

/// A cluster, and who we are there.
#[derive(Clone)]
pub struct Access {
    pub client: Client,
    /// Its credentials come from something that renews them.
    pub renews: bool,
    expires: Option<Timestamp>,
    /// All of it is from files. A plugin's credentials say themselves when they end.
    ages: bool,
    /// Which of this process.
    number: u64,
}

type Making = Told<BoxFuture<'static, Result<Access, StoreError>>>;

/// The access of this process.
#[derive(Clone, Default)]
pub struct Shared(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    current: Option<Access>,
    /// When the API server first answered to it.
    since: Option<Timestamp>,
    making: Option<Making>,
    /// When another was last made beside it.
    renewed_at: Option<Timestamp>,
    count: u64,
    /// The verbs that had another answer than 401 or 403.
    allowed: BTreeSet<String>,
}

impl Shared {
    /// What takes longer than one attempt goes on, and the next attempt gets it.
    pub async fn get(&self, source: &Source, limit: Duration) -> Result<Access, StoreError> {
        let making = {
            let mut state = self.state();
            match &state.current {
                Some(access) => return Ok(access.clone()),
                None => self.make(&mut state, source, limit),
            }
        };
        let made = tokio::time::timeout(limit * 9 / 10, making).await;
        made.unwrap_or_else(|_| {
            Err(StoreError::Unknown("its credentials are still being read (from an exec plugin, or a slow disk)".to_string()))
        })
    }

    /// The API server answered at its time `now`, and allowed this verb. If this access ends soon, another is made beside it.
    pub fn answered(&self, access: &Access, allowed: Option<&str>, now: Option<Timestamp>, source: &Source, limit: Duration) {
        let mut state = self.state();
        if let Some(verb) = allowed.filter(|verb| !state.allowed.contains(*verb)) {
            state.allowed.insert(verb.to_string());
        }
        let Some(now) = now.filter(|_| state.is_current(access)) else { return };
        let age = state.since.get_or_insert(now).duration_until(now);
        let paused = state.renewed_at.is_some_and(|at| at.duration_until(now).abs() < PAUSE);
        if !paused && (access.ends_soon(now) || access.ages && age > AGE) {
            state.renewed_at = Some(now);
            let _making = self.make(&mut state, source, limit);
        }
    }

    /// The cluster does not accept it, or it does not accept the cluster: the next is made by who needs one.
    pub fn refused(&self, access: &Access) {
        let mut state = self.state();
        if state.is_current(access) {
            state.current = None;
        }
    }

    pub fn has_other_than(&self, access: &Access) -> bool {
        let state = self.state();
        state.current.is_some() && !state.is_current(access)
    }

    pub fn was_allowed(&self, verb: &str) -> bool {
        self.state().allowed.contains(verb)
    }

    /// Once: so somebody is about to change a certificate.
    pub fn was_good(&self) -> bool {
        !self.state().allowed.is_empty()
    }

    /// The one that is being made, or else another, on a task of its own: it goes on when nobody waits for it.
    fn make(&self, state: &mut State, source: &Source, limit: Duration) -> Making {
        if let Some(making) = &state.making {
            return making.clone();
        }
        state.count += 1;
        let patience = if state.allowed.is_empty() { FIRST } else { LATER };
        let (shared, source, number) = (self.clone(), source.clone(), state.count);
        let task = tokio::spawn(async move {
            let made = tokio::time::timeout(patience, make(source, limit, number)).await;
            let made = made.unwrap_or_else(|_| Err(StoreError::Unknown(format!("its credentials were not there within {patience:?}"))));
            let mut state = shared.state();
            state.making = None;
            if let Ok(access) = &made {
                state.current = Some(access.clone());
                state.since = None;
            }
            made
        });
        let told = task.map(|made| made.unwrap_or_else(|error| Err(StoreError::Unknown(format!("its credentials: {error}")))));
        state.making.insert(told.boxed().shared()).clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Access {
    fn ends_soon(&self, now: Timestamp) -> bool {
        self.expires.is_some_and(|expires| now.duration_until(expires) < BEFORE_THE_END)
    }
}

impl State {
    fn is_current(&self, access: &Access) -> bool {
        self.current.as_ref().is_some_and(|current| current.number == access.number)
    }
}

async fn make(source: Source, limit: Duration, number: u64) -> Result<Access, StoreError> {
    // It was good when this process started: if it is not now, somebody is writing it.
    let config = read_files(move || source.read().map_err(StoreError::Unknown)).await?;
    let renews = credentials::renew(&config.auth_info);
    // Not by kube, which asks the plugin three times for one client, waits for it on this thread, and does not get the
    // status of a child that lockrun, a subreaper, has reaped already.
    let plugin = config.auth_info.exec.as_ref().filter(|_| !credentials::stand_in(&config.auth_info));
    let credential = match plugin {
        Some(plugin) => exec::ask(plugin).await?,
        None => Credential::default(),
    };
    let (ages, expires) = (plugin.is_none(), credential.expires);
    let runtime = tokio::runtime::Handle::current();
    let client = read_files(move || {
        let _runtime = runtime.enter();
        client(&config, credential, limit)
    });
    Ok(Access { client: client.await?, renews, expires, ages, number })
}
