//! Every store under one type: which one it is comes from `--db`, at run time. Must never do more than pass on.

use std::fmt;
use std::os::fd::OwnedFd;

use serde_json::Value;

#[cfg(feature = "tls")]
use super::server::ServerStore;
use super::sqlite::{self, Place, SqliteStore};
use super::{Facts, Purpose, Settings, Store, StoreError};
use crate::lease::{Clocks, LeaseName, Moment, Record, Snapshot, Swap, Version};

/// Which store, and where.
#[derive(Clone, Debug)]
pub enum Address {
    Sqlite {
        place: Place,
        app_table: Option<String>,
    },
    #[cfg(feature = "postgres")]
    Postgres(super::postgres::Address),
    #[cfg(feature = "etcd")]
    Etcd(super::etcd::Address),
    #[cfg(feature = "redis")]
    Redis(super::redis::Address),
    #[cfg(feature = "kubernetes")]
    Kubernetes(super::kubernetes::Address),
}

impl Address {
    pub fn kind(&self) -> &'static str {
        match self {
            Address::Sqlite { .. } => "sqlite",
            #[cfg(feature = "postgres")]
            Address::Postgres(_) => "postgres",
            #[cfg(feature = "etcd")]
            Address::Etcd(_) => "etcd",
            #[cfg(feature = "redis")]
            Address::Redis(_) => "redis",
            #[cfg(feature = "kubernetes")]
            Address::Kubernetes(_) => "kubernetes",
        }
    }

    pub fn clocks(&self) -> Clocks {
        if self.is_server() { Clocks::Apart } else { Clocks::OneKernel }
    }

    pub fn is_server(&self) -> bool {
        !matches!(self, Address::Sqlite { .. })
    }

    /// Things that are allowed but rarely meant.
    pub fn warnings(&self) -> &[String] {
        match self {
            Address::Sqlite { place, .. } => &place.warnings,
            #[cfg(feature = "tls")]
            _ => &[],
        }
    }

    /// The lease of an application's table, if it is one.
    pub fn app_lease(&self) -> Option<LeaseName> {
        match self {
            Address::Sqlite { app_table, .. } => app_table.as_deref().map(sqlite::app_lease),
            #[cfg(feature = "tls")]
            _ => None,
        }
    }

    /// Whether something is there to be looked at, as far as that can be known without asking.
    pub fn exists(&self) -> bool {
        match self {
            Address::Sqlite { place, .. } => place.exists,
            #[cfg(feature = "tls")]
            _ => true,
        }
    }

    /// What can be said of it without asking it.
    pub fn known(&self) -> Facts {
        match self {
            Address::Sqlite { place, .. } => {
                let details = vec![
                    ("path", place.path.display().to_string().into()),
                    ("exists", place.exists.into()),
                    ("file_system", place.file_system.clone().into()),
                    ("sqlite_version", sqlite::sqlite_version().into()),
                    ("journal_mode", Value::Null),
                ];
                Facts { details, warnings: place.warnings.iter().cloned().chain(sqlite::lock_trouble(&place.path)).collect() }
            }
            #[cfg(feature = "tls")]
            server => Facts { details: vec![("address", server.to_string().into())], warnings: Vec::new() },
        }
    }

    /// What this store asks of a lease's name beyond what every store does.
    pub fn check_name(&self, name: &LeaseName) -> Result<(), String> {
        match self {
            #[cfg(feature = "kubernetes")]
            Address::Kubernetes(_) => super::kubernetes::check_name(name),
            _ => {
                let _ = name;
                Ok(())
            }
        }
    }

    /// The processes that have the kernel lock of a lease.
    pub fn lock_holders(&self, name: &LeaseName) -> Vec<i32> {
        match self {
            Address::Sqlite { place, .. } => sqlite::lock_holders(&place.path, name),
            #[cfg(feature = "tls")]
            _ => Vec::new(),
        }
    }
}

/// As people know it; never with a password.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Sqlite { place, .. } => place.path.display().fmt(f),
            #[cfg(feature = "postgres")]
            Address::Postgres(address) => address.fmt(f),
            #[cfg(feature = "etcd")]
            Address::Etcd(address) => address.fmt(f),
            #[cfg(feature = "redis")]
            Address::Redis(address) => address.fmt(f),
            #[cfg(feature = "kubernetes")]
            Address::Kubernetes(address) => address.fmt(f),
        }
    }
}

#[allow(clippy::large_enum_variant)] // one, made once
pub enum AnyStore {
    Sqlite(SqliteStore),
    #[cfg(feature = "postgres")]
    Postgres(ServerStore<super::postgres::Postgres>),
    #[cfg(feature = "etcd")]
    Etcd(ServerStore<super::etcd::Etcd>),
    #[cfg(feature = "redis")]
    Redis(ServerStore<super::redis::Redis>),
    #[cfg(feature = "kubernetes")]
    Kubernetes(ServerStore<super::kubernetes::Kubernetes>),
}

macro_rules! each {
    ($any:expr, $store:ident => $work:expr) => {
        match $any {
            AnyStore::Sqlite($store) => $work,
            #[cfg(feature = "postgres")]
            AnyStore::Postgres($store) => $work,
            #[cfg(feature = "etcd")]
            AnyStore::Etcd($store) => $work,
            #[cfg(feature = "redis")]
            AnyStore::Redis($store) => $work,
            #[cfg(feature = "kubernetes")]
            AnyStore::Kubernetes($store) => $work,
        }
    };
}

impl AnyStore {
    pub fn new(address: Address, settings: Settings) -> AnyStore {
        match address {
            Address::Sqlite { place, app_table } => AnyStore::Sqlite(SqliteStore::new(sqlite_settings(place, app_table, settings))),
            #[cfg(feature = "postgres")]
            Address::Postgres(address) => AnyStore::Postgres(ServerStore::new(address, settings)),
            #[cfg(feature = "etcd")]
            Address::Etcd(address) => AnyStore::Etcd(ServerStore::new(address, settings)),
            #[cfg(feature = "redis")]
            Address::Redis(address) => AnyStore::Redis(ServerStore::new(address, settings)),
            #[cfg(feature = "kubernetes")]
            Address::Kubernetes(address) => AnyStore::Kubernetes(ServerStore::new(address, settings)),
        }
    }

    pub async fn check(&self) -> Result<Facts, StoreError> {
        each!(self, store => store.check().await)
    }
}

fn sqlite_settings(place: Place, app_table: Option<String>, settings: Settings) -> sqlite::Settings {
    let Settings { purpose, timing, now, wall_ms } = settings;
    let (open, lock) = match purpose {
        Purpose::Hold { lease, .. } => (sqlite::Open::Create, Some(lease)),
        Purpose::Look => (sqlite::Open::Existing, None),
    };
    sqlite::Settings { path: place.path, open, lock, app_table, timing, now, wall_ms }
}

impl Store for AnyStore {
    async fn read(&self, name: &LeaseName, now: Moment) -> Result<Snapshot, StoreError> {
        each!(self, store => store.read(name, now).await)
    }

    async fn swap(&self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        each!(self, store => store.swap(name, expect, record).await)
    }

    async fn changed(&self, name: &LeaseName, seen: &Version) {
        each!(self, store => store.changed(name, seen).await)
    }

    async fn list(&self, now: Moment) -> Result<Vec<(LeaseName, Snapshot)>, StoreError> {
        each!(self, store => store.list(now).await)
    }

    fn new_lock(&self) -> Option<OwnedFd> {
        each!(self, store => store.new_lock())
    }

    fn unlock(&self) {
        each!(self, store => store.unlock());
    }

    fn warning(&self) -> Option<String> {
        each!(self, store => store.warning())
    }

    fn lock_holders(&self) -> Vec<i32> {
        each!(self, store => store.lock_holders())
    }
}
