//! A store keeps one record per lease: read it, swap it against an expected version, wait until it may have changed. The
//! protocol is above this line, so no store can get expiry wrong. A store never judges; an error means *unknown*.

pub mod any;
mod boot;
#[cfg(feature = "etcd")]
pub mod etcd;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "tls")]
pub mod server;
pub mod sqlite;

use std::fmt;
use std::future::Future;
use std::os::fd::OwnedFd;

use serde_json::Value;

use crate::lease::{LeaseName, Moment, Record, Snapshot, Swap, Timing, Version};

/// What any store is opened with.
#[derive(Clone)]
pub struct Settings {
    pub purpose: Purpose,
    pub timing: Timing,
    /// CLOCK_BOOTTIME, and unix milliseconds: stores read no clock of their own.
    pub now: fn() -> Moment,
    pub wall_ms: fn() -> i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// To hold this lease: what is missing in the store is made.
    Hold {
        lease: LeaseName,
        /// This process may leave before it has watched a record for its TTL: what it sees is noted for the next.
        short: bool,
    },
    /// To look, or to write a last will: nothing is made.
    Look,
}

/// What `check` shows of a store, beside the times.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// Names of JSON fields, with their values.
    pub details: Vec<(&'static str, Value)>,
    /// What this store cannot promise, and what is set in a way that is rarely meant.
    pub warnings: Vec<String>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// The request may have been carried out, or not. Look again.
    Unknown(String),
    /// It will not heal by itself: no right, not a database, a record that cannot be read.
    Refused(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StoreError::Unknown(text) | StoreError::Refused(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for StoreError {}

pub trait Store {
    /// The record, its version, and evidence about its holder. `now` is before the read.
    fn read(&self, name: &LeaseName, now: Moment) -> impl Future<Output = Result<Snapshot, StoreError>>;

    /// Writes `record` if the record is still at `expect`. `Err` means that it may have been written.
    fn swap(&self, name: &LeaseName, expect: &Version, record: &Record) -> impl Future<Output = Result<Swap, StoreError>>;

    /// Returns when the record may no longer be at `seen`; too early is allowed. Dropping it is safe.
    fn changed(&self, name: &LeaseName, seen: &Version) -> impl Future<Output = ()>;

    fn list(&self, now: Moment) -> impl Future<Output = Result<Vec<(LeaseName, Snapshot)>, StoreError>>;

    /// The kernel lock of this machine, if it was taken since the last call: for the guard to keep.
    fn new_lock(&self) -> Option<OwnedFd> {
        None
    }

    /// Gives the kernel lock back.
    fn unlock(&self) {}

    /// What the user should know about this store, once.
    fn warning(&self) -> Option<String> {
        None
    }

    /// The processes that have the kernel lock now, as far as they can be seen from here.
    fn lock_holders(&self) -> Vec<i32> {
        Vec::new()
    }
}
