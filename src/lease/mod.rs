//! The lease protocol, pure: no clock, no I/O, no await. `lease` imports `std` and `exit`, nothing else.
//!
//! A lease is one record per name in a store, held for a TTL and kept by renewal. Everything follows from one sentence:
//! *each side rounds against itself*. The holder counts from before a request was sent, a waiter from after the reply came.
//!
//! - [`timing`]: `renew_at < term_at ≤ kill_at < dead_by < asked_at + ttl`; settings that cannot hold are refused.
//! - [`claim`]: the waiter's judgement on one snapshot.
//! - [`machine`], with `waiting` (judge, claim) and `holding` (renew, end, release).
//! - [`event`]: what goes in and out. [`record`]: what a store keeps. [`view`]: what can be seen from outside.

pub mod claim;
pub mod event;
mod holding;
pub mod machine;
pub mod record;
pub mod time;
pub mod timing;
pub mod view;
mod waiting;

pub use event::{Action, Event, GuardEvent, Killed, Lost, Outcome, Reply, Report, Request, Scope, SpawnError, Tenure};
pub use machine::{Machine, OnLost, Settings, Wait};
pub use record::{Evidence, Finding, Holder, HolderId, KernelLock, LeaseName, Record, Snapshot, Swap, Token, Version, WriteId};
pub use time::{Moment, Now};
pub use timing::{Asked, Clocks, RELEASE_TIME, Seconds, Timing, TimingError};
pub use view::{Lease, State, View};

#[cfg(test)]
mod tests;
