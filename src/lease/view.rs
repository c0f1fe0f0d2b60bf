//! What can be seen of the machine from outside. Must never hold a decision: whoever looks changes nothing.

use std::time::Duration;

use super::record::{Holder, Record, Token};
use super::time::Moment;
use super::timing::Timing;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    /// For the lease, or for the store.
    Waiting,
    /// The lease is ours, and the guard was told to start the command.
    Starting,
    /// The command runs.
    Holding,
    /// What was started is being ended.
    Stopping,
    /// Nothing is left alive; the record goes free.
    Releasing,
    Over,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    pub state: State,
    /// As long as the record is ours by all that we know.
    pub lease: Option<Lease>,
    /// Whatever may be alive is dead at this instant, or the promise is broken.
    pub dead_by: Option<Moment>,
    /// What is wrong with the store, until it works again.
    pub error: Option<String>,
    /// In this wait the store has answered.
    pub answered: bool,
    /// Who held it when we last looked.
    pub waits_for: Option<Holder>,
}

/// A lease that is ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    pub token: Token,
    pub ttl: Duration,
    pub acquired_ms: i64,
    pub renewed_ms: i64,
    /// Of the last write that was confirmed.
    pub asked_at: Moment,
    pub kill_at: Moment,
}

impl Lease {
    pub(super) fn new(record: &Record, asked_at: Moment, timing: &Timing) -> Lease {
        Lease {
            token: record.token,
            ttl: record.ttl,
            acquired_ms: record.acquired_ms,
            renewed_ms: record.renewed_ms,
            asked_at,
            kill_at: timing.kill_at(asked_at),
        }
    }
}
