//! What the machine hears and what it says: events in, actions out, reports for people. Must never hold a decision.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::record::{Holder, HolderId, Record, Snapshot, Swap, Token, Version, WriteId};
use super::time::{Moment, Now};
use crate::exit::Ended;

/// The number of a request to the store. A reply to any but the one in flight is dropped: the next read will tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Request(pub u64);

/// One try for the lease, from waiting to the end of the tree. Messages to the guard carry it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tenure(pub u32);

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant)] // one at a time, moved once
pub enum Event {
    /// The deadline has come, or nothing in particular: look at the clock.
    Tick,
    Reply {
        request: Request,
        reply: Reply,
    },
    /// The watched record may have changed.
    Changed,
    /// The wall clock was set, or the machine woke up from a suspend.
    ClockStepped,
    /// A signal for the command; while waiting it ends lockrun.
    Signal {
        number: i32,
        /// One that asks the command to end (`-k` counts from it).
        ends: bool,
    },
    Guard(GuardEvent),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[allow(clippy::large_enum_variant)] // one at a time, moved once
pub enum Reply {
    Snapshot(Snapshot),
    Swapped(Swap),
    /// Error, time-out, busy: the write may have landed.
    Unknown(String),
    /// It will not heal by itself. While a lease is held this too is no more than unknown.
    Refused(String),
}

/// What the guard reports. `tenure` is checked by the machine: what concerns an older one is dropped.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum GuardEvent {
    Spawned(Tenure),
    /// The errno of the step that failed; nothing of the command is alive.
    NotSpawned(Tenure, SpawnError),
    /// The command itself ended, and these are the pids of what it left behind; none: nothing of the tree is alive.
    Exited(Tenure, Ended, Vec<i32>),
    /// The guard has begun to kill.
    Killing(Tenure),
    /// SIGKILL does not end these: another user's, or in an uninterruptible call.
    Survivors(Tenure, Vec<i32>),
    /// Nothing of the tree is alive.
    Empty(Tenure),
    /// The deadline of this tenure has passed: nothing of it is alive, nothing more will start in it.
    Over(Tenure),
    Died,
}

/// Which step of starting the command failed, and its errno.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SpawnError {
    Exec(i32),
    Directory(i32),
    Fork(i32),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Read(Request),
    Swap {
        request: Request,
        expect: Version,
        record: Record,
    },
    /// Tell me when the record may no longer be at this version, until the next request.
    Watch(Version),
    /// To the guard: nothing of this tenure is alive after this instant.
    Deadline(Tenure, Moment),
    Spawn(Tenure, Token),
    /// To the guard: pass this signal on to the command.
    Forward(Tenure, i32),
    /// To the guard: the stop signal, to the command or to all that is left of its tree.
    Stop(Tenure, Scope),
    /// To the guard: SIGKILL to everything.
    Kill(Tenure),
    /// The guard does not answer: SIGKILL it, and do its work.
    KillGuard,
    /// Give the kernel lock back, if the store has one.
    Unlock,
    Report(Report),
    Exit(Outcome),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Scope {
    Command,
    Tree,
}

/// How a run ends.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    Command(Ended),
    /// Lost, or the guard died; it was reported when it happened.
    Lost,
    /// Held by that one; `None`: by processes of an old holder, which have the kernel lock.
    NotAcquired(Option<Holder>, Option<Duration>),
    Unreachable(String),
    Refused(String),
    /// The holder is an outer lockrun of this very one.
    WouldWaitForItself,
    /// This signal came before anything was started.
    Signal(i32),
    NotSpawned(SpawnError),
}

/// Why a lease that was held is held no more.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Lost {
    Unreachable(String),
    /// The time ran out without a failed request: the front was stopped or starved.
    Stopped,
    TakenBy(Holder),
    /// The record says free, or is gone.
    RecordGone,
    Replaced,
    GuardDied,
}

/// What people are told, once each.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Report {
    Waiting {
        holder: Option<Holder>,
        acquired_ms: Option<i64>,
        left: Option<Duration>,
        kernel_lock: bool,
    },
    Unreachable(String),
    Recovered,
    Acquired {
        token: Token,
        waited: Duration,
        holder: HolderId,
    },
    /// The reply to the claim came when nothing could be started any more.
    TooLate,
    LeftBehind(Ended, Vec<i32>),
    /// The lease runs out: the stop signal was sent.
    Stopping {
        kill_in: Duration,
        error: String,
    },
    Killed(Killed),
    Survivors(Vec<i32>),
    GuardHangs,
    PutBack,
    Lost(Lost),
    Released,
    ReleaseUnconfirmed {
        runs_out_in: Duration,
    },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Killed {
    Deadline,
    GraceOver,
    KillAfter,
    Lost,
}

/// The one request in flight, and what was sent before it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Outbox {
    pub actions: VecDeque<Action>,
    pub in_flight: Option<InFlight>,
    /// Of this tenure's writes: when each was asked. A write that is recognised counts from its own instant.
    pub sent: BTreeMap<WriteId, Moment>,
    requests: u64,
    attempt: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct InFlight {
    pub request: Request,
    pub until: Moment,
    /// The record of a swap; `None`: a read.
    pub record: Option<Record>,
}

impl Outbox {
    pub fn new(attempt: Duration) -> Outbox {
        Outbox { actions: VecDeque::new(), in_flight: None, sent: BTreeMap::new(), requests: 0, attempt }
    }

    pub fn push(&mut self, action: Action) {
        self.actions.push_back(action);
    }

    pub fn report(&mut self, report: Report) {
        self.push(Action::Report(report));
    }

    pub fn read(&mut self, now: Now) {
        let request = self.next(now, None);
        self.push(Action::Read(request));
    }

    /// Sends `record` with a fresh write id and this instant as its `asked_at`.
    pub fn swap(&mut self, now: Now, expect: Version, record: Record) {
        let write = WriteId::from_random(now.random);
        let record = Record { write: write.clone(), asked_at: now.at, renewed_ms: now.wall_ms, ..record };
        self.sent.insert(write, now.at);
        let request = self.next(now, Some(record.clone()));
        self.push(Action::Swap { request, expect, record });
    }

    fn next(&mut self, now: Now, record: Option<Record>) -> Request {
        self.requests += 1;
        let request = Request(self.requests);
        self.in_flight = Some(InFlight { request, until: now.at + self.attempt, record });
        request
    }
}
