//! What the server stores have in common: one connection for requests and one to wait on, each of them thrown away when an
//! answer is given up, so that a reply that comes late is never taken for another's. Must never know which server it is.

mod record;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(any(feature = "etcd", feature = "redis"))]
mod url;

use std::cell::{Cell, RefCell};
use std::ffi::OsString;
use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::boot::Boot;
use super::{Facts, Purpose, Settings, Store, StoreError};
use crate::lease::{Evidence, Finding, HolderId, KernelLock, LeaseName, Moment, Record, Snapshot, Swap, Version};
pub use record::{from_json, to_json};
#[cfg(any(feature = "etcd", feature = "redis"))]
pub use url::decoded;

/// From one try to get a connection to wait on to the next, so that one that lived longer is replaced at once; the machine
/// reads by time meanwhile.
const WATCH_PAUSE: Duration = Duration::from_secs(1);

/// What is read may be on a disk that hangs, so not on the runtime's thread.
pub async fn read_files<T: Send + 'static>(read: impl FnOnce() -> Result<T, StoreError> + Send + 'static) -> Result<T, StoreError> {
    match tokio::task::spawn_blocking(read).await {
        Ok(read) => read,
        Err(error) => Err(StoreError::Unknown(format!("certificates and keys: {error}"))),
    }
}

/// A variable of the environment; an empty one is unset.
pub type Variable<'a> = &'a dyn Fn(&str) -> Option<OsString>;

/// One record as it stands in the store.
#[derive(Clone, Debug)]
pub struct Stored {
    pub record: Record,
    pub version: String,
}

/// One connection to one server (or cluster), and what lockrun says over it. Every request may be dropped before it is
/// answered, and then the connection is dropped too; only `changed` is dropped and called again on the same one.
pub trait Client: Sized + 'static {
    /// Shown to people, so without a password.
    type Address: fmt::Display;

    /// With `create`, what is missing in the store is made first; many copies may do so at once.
    /// `limit` is what one attempt has; a connection may take longer, and then goes on with the next attempt.
    fn connect(address: &Self::Address, create: bool, limit: Duration) -> impl Future<Output = Result<Self, StoreError>>;

    fn get(&mut self, name: &LeaseName) -> impl Future<Output = Result<Option<Stored>, StoreError>>;

    /// Waits until the record that was read at `version` is where a fail-over finds it: it may be a write of ours whose
    /// answer was not a good one. A server that answers from a majority has no more to do.
    fn confirm(&mut self, _name: &LeaseName, _version: &str) -> impl Future<Output = Result<(), StoreError>> {
        std::future::ready(Ok(()))
    }

    /// Writes `record` if the record still stands at `expect` (`Absent`: if there is none). `Err`: it may have been written.
    /// A record without a holder wakes those who wait in `changed`.
    fn swap(&mut self, name: &LeaseName, expect: &Version, record: &Record) -> impl Future<Output = Result<Swap, StoreError>>;

    /// When a process of that boot first saw this version, in nanoseconds of the boot's clock; if none did, `seen_ns` is noted.
    fn sighting(
        &mut self,
        name: &LeaseName,
        boot_id: &str,
        version: &str,
        seen_ns: i64,
    ) -> impl Future<Output = Result<Option<i64>, StoreError>>;

    fn list(&mut self) -> impl Future<Output = Result<Vec<(LeaseName, Stored)>, StoreError>>;

    /// Returns when the record may no longer stand at `seen`, also if that happened before the call. May be dropped at any
    /// time and called again.
    fn changed(&mut self, name: &LeaseName, seen: &Version) -> impl Future<Output = Result<(), StoreError>>;

    /// Reads, and writes as far as that changes nothing: what `check` shows of this store. A detail `server_time_ms` is
    /// shown as its difference from the clock here.
    fn check(&mut self) -> impl Future<Output = Result<Facts, StoreError>>;

    /// It has other credentials than a new one would have: the next request takes another connection.
    fn is_spent(&self) -> bool {
        false
    }

    /// What this server cannot promise, as it is set up, for whoever starts to hold.
    fn warning(&mut self) -> impl Future<Output = Result<Option<String>, StoreError>> {
        std::future::ready(Ok(None))
    }
}

/// What `warning` says of a server that can forget what it confirmed.
#[cfg(any(feature = "postgres", feature = "redis"))]
pub fn may_forget(doubts: &[String]) -> Option<String> {
    (!doubts.is_empty()).then(|| format!("two may run for a moment if this server forgets the lease: {}", doubts.join("; ")))
}

type Connecting<C> = Pin<Box<dyn Future<Output = Result<C, StoreError>>>>;

pub struct ServerStore<C: Client> {
    address: Rc<C::Address>,
    connecting: Slot<Connecting<C>>,
    settings: Settings,
    boot: Option<Boot>,
    requests: Slot<C>,
    watch: Slot<C>,
    watch_again_at: Cell<Moment>,
    /// The server was asked what it cannot promise; said when there is something of ours to promise.
    asked: Cell<bool>,
    warning: Cell<Option<String>>,
    written: Cell<bool>,
    /// A write with this holder may stand in the server without being where it must be.
    unconfirmed: RefCell<Option<HolderId>>,
    answered: Cell<bool>,
}

impl<C: Client> ServerStore<C> {
    /// Connects with the first request.
    pub fn new(address: C::Address, settings: Settings) -> ServerStore<C> {
        let boot = Boot::current();
        ServerStore {
            address: Rc::new(address),
            connecting: Slot::empty(),
            settings,
            boot,
            requests: Slot::empty(),
            watch: Slot::empty(),
            watch_again_at: Cell::default(),
            asked: Cell::default(),
            warning: Cell::default(),
            written: Cell::default(),
            unconfirmed: RefCell::default(),
            answered: Cell::default(),
        }
    }

    pub async fn check(&self) -> Result<Facts, StoreError> {
        let mut facts = self.request(async |client| client.check().await).await?;
        let wall_ms = (self.settings.wall_ms)();
        for (name, value) in &mut facts.details {
            if let ("server_time_ms", Some(server_ms)) = (*name, value.as_i64()) {
                (*name, *value) = ("clock_difference_ms", server_ms.saturating_sub(wall_ms).into());
            }
        }
        Ok(facts)
    }

    fn is_unconfirmed(&self, record: &Record) -> bool {
        let unconfirmed = self.unconfirmed.borrow();
        unconfirmed.is_some() && *unconfirmed == record.holder.as_ref().map(|holder| holder.id.clone())
    }

    /// Not to one who only tries: cron mails whatever is said, each time.
    async fn ask_for_a_warning(&self) {
        let waits = matches!(self.settings.purpose, Purpose::Hold { short: false, .. });
        if waits && !self.asked.replace(true) {
            let warning = self.request(async |client| client.warning().await).await;
            self.warning.set(warning.ok().flatten());
        }
    }

    /// Four fifths of an attempt, so that this is heard of before the machine's own "no answer in time".
    fn limit(&self) -> Duration {
        self.settings.timing.attempt * 4 / 5
    }

    async fn request<T>(&self, work: impl AsyncFnOnce(&mut C) -> Result<T, StoreError>) -> Result<T, StoreError> {
        let request = async {
            let mut lent = match self.requests.take().filter(|lent| !lent.is_spent()) {
                Some(lent) => lent,
                None => self.requests.lend(self.connected().await?),
            };
            let answer = work(&mut lent).await;
            // After an error it is opened anew: it may be at another server by now, or out of step.
            lent.keep = answer.is_ok();
            self.answered.set(self.answered.get() || answer.is_ok());
            answer
        };
        let limit = self.limit();
        match tokio::time::timeout(limit, request).await {
            Ok(answer) => answer,
            Err(_) => Err(StoreError::Unknown(format!("no answer within {limit:?}"))),
        }
    }

    /// Goes on where the last attempt gave up. Where many come at once, or the way is long, a connection takes longer than an
    /// attempt; begun anew each time it would never be made, and a server would be kept busy with those that were given up.
    async fn connected(&self) -> Result<C, StoreError> {
        let mut lent = self.connecting.take().unwrap_or_else(|| self.connecting.lend(self.connect()));
        lent.keep = true;
        let result = lent.as_mut().await;
        lent.keep = false;
        match result {
            // It was good before: somebody is about to change a password, a certificate or a right.
            Err(StoreError::Refused(why)) if self.answered.get() => Err(StoreError::Unknown(why)),
            result => result,
        }
    }

    fn connect(&self) -> Connecting<C> {
        let (address, create, limit) = (Rc::clone(&self.address), self.settings.purpose != Purpose::Look, self.limit());
        // Not for ever: the way to a server that has moved leads nowhere.
        let patience = limit.max(self.settings.timing.ttl / 6);
        Box::pin(async move {
            let connect = tokio::time::timeout(patience, C::connect(&address, create, limit));
            connect.await.unwrap_or_else(|_| Err(StoreError::Unknown(format!("no connection within {patience:?}"))))
        })
    }

    fn snapshot(&self, stored: Option<Stored>) -> Snapshot {
        let (record, version) = match stored {
            Some(Stored { record, version }) => (Some(record), Version::At(version)),
            None => (None, Version::Absent),
        };
        // A server's clock decides nothing: it can step, and after a fail-over it is another one.
        let evidence = Evidence::NoClock;
        Snapshot { record, version, evidence, lock: KernelLock::None, seen_at: None, finding: Finding::Plain }
    }

    /// Short tries make progress too: what one of them saw is noted for the next. Whoever waits for ever watches by itself.
    async fn with_sighting(&self, name: &LeaseName, mut snapshot: Snapshot) -> Snapshot {
        let (Version::At(version), Some(boot), Purpose::Hold { short: true, .. }, Some(_)) =
            (&snapshot.version, &self.boot, &self.settings.purpose, snapshot.holder())
        else {
            return snapshot;
        };
        if self.written.get() {
            return snapshot; // a holder's own record
        }
        // After the reply of the read: a waiter rounds against itself.
        let now = (self.settings.now)();
        let seen_ns = boot.to_host(now);
        // Not noted means that only this process's own watching counts.
        let noted = self.request(async |client| client.sighting(name, &boot.id, version, seen_ns).await).await;
        let seen_at = noted.ok().flatten().and_then(|seen_ns| boot.to_local(seen_ns));
        snapshot.seen_at = seen_at.filter(|seen_at| *seen_at <= now);
        snapshot
    }
}

impl<C: Client> Store for ServerStore<C> {
    async fn read(&self, name: &LeaseName, _: Moment) -> Result<Snapshot, StoreError> {
        let read = async |client: &mut C| {
            let stored = client.get(name).await?;
            if let Some(stored) = stored.as_ref().filter(|stored| self.is_unconfirmed(&stored.record)) {
                client.confirm(name, &stored.version).await?;
            }
            Ok(stored)
        };
        let stored = self.request(read).await?;
        self.ask_for_a_warning().await;
        Ok(self.with_sighting(name, self.snapshot(stored)).await)
    }

    async fn swap(&self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        if let Some(holder) = &record.holder {
            self.unconfirmed.replace(Some(holder.id.clone()));
        }
        let swap = self.request(async |client| client.swap(name, expect, record).await).await;
        if let Ok(Swap::Done(_)) = swap {
            self.written.set(true);
            // Not by a read: a write that was given up may still arrive after it.
            self.unconfirmed.take();
        }
        swap
    }

    async fn changed(&self, name: &LeaseName, seen: &Version) {
        loop {
            let mut lent = match self.watch.take().filter(|lent| !lent.is_spent()) {
                Some(lent) => lent,
                None => {
                    tokio::time::sleep(self.watch_again_at.get().since((self.settings.now)())).await;
                    self.watch_again_at.set((self.settings.now)() + WATCH_PAUSE);
                    match self.connect().await {
                        Ok(client) => self.watch.lend(client),
                        Err(_) => continue,
                    }
                }
            };
            lent.keep = true;
            match lent.changed(name, seen).await {
                Ok(()) => return,
                Err(_) => lent.keep = false,
            }
        }
    }

    async fn list(&self, _: Moment) -> Result<Vec<(LeaseName, Snapshot)>, StoreError> {
        let stored = self.request(async |client| client.list().await).await?;
        Ok(stored.into_iter().map(|(name, stored)| (name, self.snapshot(Some(stored)))).collect())
    }

    fn warning(&self) -> Option<String> {
        self.written.get().then(|| self.warning.take())?
    }
}

/// Where a connection lies between two uses.
struct Slot<C>(RefCell<Option<C>>);

/// A connection in use: dropped with it, unless it is to be kept.
struct Lent<'a, C> {
    slot: &'a Slot<C>,
    /// `None` only while it is dropped.
    client: Option<C>,
    keep: bool,
}

impl<C> Slot<C> {
    fn empty() -> Slot<C> {
        Slot(RefCell::new(None))
    }

    fn take(&self) -> Option<Lent<'_, C>> {
        self.0.take().map(|client| self.lend(client))
    }

    fn lend(&self, client: C) -> Lent<'_, C> {
        Lent { slot: self, client: Some(client), keep: false }
    }
}

impl<C> Drop for Lent<'_, C> {
    fn drop(&mut self) {
        if self.keep {
            *self.slot.0.borrow_mut() = self.client.take();
        }
    }
}

impl<C> Deref for Lent<'_, C> {
    type Target = C;

    fn deref(&self) -> &C {
        self.client.as_ref().expect("taken by drop alone")
    }
}

impl<C> DerefMut for Lent<'_, C> {
    fn deref_mut(&mut self) -> &mut C {
        self.client.as_mut().expect("taken by drop alone")
    }
}
