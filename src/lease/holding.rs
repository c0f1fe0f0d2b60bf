//! The machine while the record is ours: renew, end in time, release when nothing is left alive. The rules of KILL stand
//! here, in `enforce`. Must never let a reply put off a deadline.

use std::time::Duration;

use super::event::{Action, GuardEvent, InFlight, Killed, Lost, Outbox, Outcome, Reply, Report, Scope, Tenure};
use super::machine::{Next, OnLost, Settings};
use super::record::{Finding, KernelLock, Record, Snapshot, Swap, Version};
use super::time::{Moment, Now};
use super::timing::{RELEASE_TIME, Timing};
use super::view::{Lease, State, View};
use crate::exit::Ended;

/// A guard that has not answered to SPAWN by then (or by a quarter of the TTL) is stopped.
const SPAWN_TIME: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Tree {
    /// Told to start, or running, or ending.
    Alive {
        spawned: bool,
    },
    Empty,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Guard {
    /// Nothing asked, or not answered yet.
    Silent,
    /// It has begun to kill.
    Kills,
    /// It did not answer in time, and is killed.
    GivenUp,
    Dead,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Claim {
    Ours,
    /// Taken from us, but the record still carries our name: no renewal, only the release.
    ToRelease,
    /// Another's, or gone: nothing to renew, nothing to release.
    NotOurs,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Holding {
    tenure: Tenure,
    /// As we last wrote it, and the version that it has in the store.
    record: Record,
    version: Version,
    /// `asked_at` of the last write that was confirmed. Every deadline counts from it.
    confirmed_at: Moment,
    next_at: Moment,
    /// The last request is unknown: look before the next write.
    must_read: bool,
    failures: u32,
    error: Option<String>,
    tree: Tree,
    ended: Option<Ended>,
    /// The stop signal was sent; SIGKILL comes then.
    kill_by: Option<Moment>,
    kill_after: Option<Moment>,
    killed_at: Option<Moment>,
    guard: Guard,
    /// The guard has told by then that it has started the command.
    spawn_by: Moment,
    attempt: Duration,
    lost: Option<Lost>,
    lost_said: bool,
    claim: Claim,
    release_by: Option<Moment>,
    /// How it ends, if not as the command did; `None` inside: back to waiting.
    instead: Option<Option<Outcome>>,
}

impl Holding {
    pub fn new(tenure: Tenure, record: Record, version: Version, confirmed_at: Moment, attempt: Duration) -> Holding {
        Holding {
            tenure,
            record,
            version,
            confirmed_at,
            next_at: confirmed_at,
            must_read: false,
            failures: 0,
            error: None,
            tree: Tree::Alive { spawned: false },
            ended: None,
            kill_by: None,
            kill_after: None,
            killed_at: None,
            guard: Guard::Silent,
            spawn_by: confirmed_at,
            attempt,
            lost: None,
            lost_said: false,
            claim: Claim::Ours,
            release_by: None,
            instead: None,
        }
    }

    /// Nothing was started: release, then end like that (`None`: wait again).
    pub fn give_back(&mut self, now: Now, outcome: Option<Outcome>) {
        self.instead = Some(outcome);
        self.tree_is_empty(now);
    }

    /// Granted in time: the guard is told to start the command.
    pub fn begin(&mut self, now: Now, timing: &Timing) {
        self.next_at = timing.renew_at(self.confirmed_at);
        self.spawn_by = now.at + (timing.ttl / 4).min(SPAWN_TIME);
    }

    pub fn view(&self, timing: &Timing) -> View {
        let state = match self.tree {
            Tree::Empty => State::Releasing,
            Tree::Alive { .. } if self.kill_by.is_some() || self.killed_at.is_some() => State::Stopping,
            Tree::Alive { spawned: false } => State::Starting,
            Tree::Alive { spawned: true } => State::Holding,
        };
        let lease = (self.claim == Claim::Ours).then(|| Lease::new(&self.record, self.confirmed_at, timing));
        let dead_by = (self.tree != Tree::Empty).then(|| timing.dead_by(self.confirmed_at));
        View { state, lease, dead_by, error: self.error.clone(), answered: true, waits_for: None }
    }

    pub fn renew_now(&mut self, now: Now) {
        self.next_at = now.at;
    }

    pub fn deadline(&self, settings: &Settings, idle: bool) -> Option<Moment> {
        let timing = &settings.timing;
        let request = (idle && self.may_write()).then_some(self.next_at);
        let tree = match (self.tree, self.killed_at) {
            (Tree::Empty, _) => self.release_by,
            (Tree::Alive { .. }, None) => {
                let term_at = self.kill_by.is_none().then(|| timing.term_at(self.confirmed_at));
                let spawn_by = (self.tree == Tree::Alive { spawned: false }).then_some(self.spawn_by);
                let kill = self.kill_by.into_iter().chain(self.kill_after).chain(term_at).chain(spawn_by);
                kill.chain([timing.kill_at(self.confirmed_at)]).min()
            }
            (Tree::Alive { .. }, Some(at)) => (self.guard == Guard::Silent).then(|| at + timing.kill_time / 2),
        };
        request.into_iter().chain(tree).min()
    }

    pub fn look_at_the_clock(&mut self, now: Now, settings: &Settings, out: &mut Outbox) -> Next {
        match self.tree {
            Tree::Alive { .. } => self.enforce(now, settings, out),
            Tree::Empty if self.claim == Claim::NotOurs => return self.finish(settings, out),
            Tree::Empty => {
                if self.release_by.is_some_and(|at| at <= now.at) {
                    let runs_out_in = (self.confirmed_at + self.record.ttl).since(now.at);
                    out.report(Report::ReleaseUnconfirmed { runs_out_in });
                    return self.finish(settings, out);
                }
            }
        }
        if out.in_flight.is_none() && self.may_write() && self.next_at <= now.at {
            if self.must_read {
                out.read(now);
            } else {
                let record = match self.tree {
                    Tree::Empty => Record { holder: None, stopping: false, ..self.record.clone() },
                    Tree::Alive { .. } => {
                        let stopping = self.kill_by.is_some() || self.killed_at.is_some();
                        Record { stopping, ..self.record.clone() }
                    }
                };
                out.swap(now, self.version.clone(), record);
            }
        }
        Next::Stay
    }

    /// The rules of TERM and KILL.
    fn enforce(&mut self, now: Now, settings: &Settings, out: &mut Outbox) {
        let timing = &settings.timing;
        let due = |at: Option<Moment>| at.is_some_and(|at| at <= now.at);
        if let Some(killed_at) = self.killed_at {
            if self.guard == Guard::Silent && killed_at + timing.kill_time / 2 <= now.at {
                self.give_guard_up(now, out);
            }
        } else if self.tree == (Tree::Alive { spawned: false }) && self.spawn_by <= now.at {
            self.give_guard_up(now, out);
        } else if timing.kill_at(self.confirmed_at) <= now.at {
            self.lose(self.why_not_renewed());
            self.kill(now, Killed::Deadline, out);
        } else if due(self.kill_by) {
            self.kill(now, Killed::GraceOver, out);
        } else if due(self.kill_after) {
            self.kill(now, Killed::KillAfter, out);
        } else if self.kill_by.is_none() && timing.term_at(self.confirmed_at) <= now.at {
            // From here there is no way back to holding, whatever the store answers.
            let kill_in = timing.grace;
            self.lose(self.why_not_renewed());
            self.stop(now, Scope::Command, settings, out);
            let error = self.error.clone().unwrap_or_else(|| "not renewed in time".to_string());
            out.report(Report::Stopping { kill_in, error });
        }
    }

    /// A guard that is stopped: what it leaves comes to the front, which is a subreaper too.
    fn give_guard_up(&mut self, now: Now, out: &mut Outbox) {
        self.guard = Guard::GivenUp;
        self.killed_at.get_or_insert(now.at);
        out.report(Report::GuardHangs);
        out.push(Action::KillGuard);
    }

    fn why_not_renewed(&self) -> Lost {
        match &self.error {
            Some(error) => Lost::Unreachable(error.clone()),
            None => Lost::Stopped,
        }
    }

    fn stop(&mut self, now: Now, scope: Scope, settings: &Settings, out: &mut Outbox) {
        self.kill_by.get_or_insert(now.at + settings.timing.grace);
        out.push(Action::Stop(self.tenure, scope));
    }

    fn kill(&mut self, now: Now, why: Killed, out: &mut Outbox) {
        if self.killed_at.is_none() {
            self.killed_at = Some(now.at);
            out.push(Action::Kill(self.tenure));
            out.report(Report::Killed(why));
        }
    }

    /// Whatever the store answers from now on: this lease ends, and `lost` is why.
    fn lose(&mut self, lost: Lost) {
        self.lost.get_or_insert(lost);
    }

    /// Once.
    fn say_lost(&mut self, out: &mut Outbox) {
        if let Some(lost) = self.lost.clone().filter(|_| !self.lost_said) {
            self.lost_said = true;
            out.report(Report::Lost(lost));
        }
    }

    fn may_write(&self) -> bool {
        match self.claim {
            Claim::Ours => true,
            Claim::ToRelease => self.tree == Tree::Empty,
            Claim::NotOurs => false,
        }
    }

    /// Somebody may be running already: no grace.
    fn lose_record(&mut self, now: Now, lost: Lost, claim: Claim, out: &mut Outbox) {
        self.claim = claim;
        if let Tree::Alive { .. } = self.tree {
            self.lose(lost);
            self.say_lost(out);
            self.kill(now, Killed::Lost, out);
        }
    }

    pub fn on_signal(&mut self, now: Now, number: i32, ends: bool, settings: &Settings, out: &mut Outbox) {
        if let Tree::Alive { .. } = self.tree {
            out.push(Action::Forward(self.tenure, number));
            if let Some(span) = settings.kill_after.filter(|_| ends) {
                self.kill_after.get_or_insert(now.at + span);
            }
        }
    }

    pub fn on_reply(&mut self, now: Now, in_flight: InFlight, reply: Reply, settings: &Settings, out: &mut Outbox) -> Next {
        match reply {
            Reply::Unknown(error) | Reply::Refused(error) => {
                self.must_read = true;
                self.next_at = now.at + settings.timing.pause(self.failures, now.random);
                self.failures += 1;
                if self.error.replace(error.clone()).is_none() && matches!(self.tree, Tree::Alive { .. }) {
                    out.report(Report::Unreachable(error));
                }
            }
            Reply::Swapped(Swap::Conflict) => {
                self.must_read = true;
                self.next_at = now.at;
            }
            Reply::Swapped(Swap::Done(version)) => {
                let record = in_flight.record.expect("only a swap is answered by Swapped");
                if record.holder.is_none() {
                    out.report(Report::Released);
                    return self.finish(settings, out);
                }
                self.version = version;
                let asked_at = record.asked_at;
                self.record = record;
                self.confirm(now, asked_at, settings, out);
            }
            // An answer, but not yet to the question: reads may go on while no write does. Only a confirmed write is recovery.
            Reply::Snapshot(snapshot) => {
                self.must_read = false;
                self.on_snapshot(now, snapshot, settings, out);
            }
        }
        Next::Stay
    }

    fn on_snapshot(&mut self, now: Now, snapshot: Snapshot, settings: &Settings, out: &mut Outbox) {
        let ours = |record: &&Record| record.holder.as_ref().is_some_and(|h| h.id == settings.me.id) && record.token == self.record.token;
        if let Some(record) = snapshot.record.as_ref().filter(ours) {
            let asked_at = out.sent.get(&record.write).copied().unwrap_or(self.confirmed_at);
            self.version = snapshot.version;
            if snapshot.finding == Finding::RowRemoved {
                return self.lose_record(now, Lost::RecordGone, Claim::ToRelease, out);
            }
            return self.confirm(now, asked_at, settings, out);
        }
        // Another file lies at the database's path, but the kernel lock there is still ours: nobody else runs by it.
        let older = snapshot.token().is_none_or(|token| token < self.record.token);
        let replaced = snapshot.finding == Finding::Replaced;
        if replaced && snapshot.lock == KernelLock::Ours && older && self.tree != Tree::Empty {
            out.report(Report::PutBack);
            out.swap(now, snapshot.version, self.record.clone());
            return;
        }
        if self.tree == Tree::Empty && snapshot.holder().is_none() && snapshot.token() == Some(self.record.token) {
            out.report(Report::Released); // by the guard's last will, or by us with the reply lost
        }
        let lost = match snapshot.record.and_then(|record| record.holder) {
            Some(holder) => Lost::TakenBy(holder),
            None if replaced => Lost::Replaced,
            None => Lost::RecordGone,
        };
        self.lose_record(now, lost, Claim::NotOurs, out);
    }

    fn confirm(&mut self, now: Now, asked_at: Moment, settings: &Settings, out: &mut Outbox) {
        if asked_at > self.confirmed_at {
            self.confirmed_at = asked_at;
            self.recovered(out);
            out.sent.retain(|_, sent_at| *sent_at >= asked_at);
            if let Tree::Alive { .. } = self.tree {
                out.push(Action::Deadline(self.tenure, settings.timing.kill_at(asked_at)));
            }
        }
        self.next_at = match self.tree {
            Tree::Empty => now.at,
            Tree::Alive { .. } => settings.timing.renew_at(self.confirmed_at),
        };
    }

    fn recovered(&mut self, out: &mut Outbox) {
        self.failures = 0;
        // Once the stop signal is sent for it the error is why, and stays so.
        if self.lost.is_none() && self.error.take().is_some() && matches!(self.tree, Tree::Alive { .. }) {
            out.report(Report::Recovered);
        }
    }

    pub fn on_guard(&mut self, now: Now, event: GuardEvent, settings: &Settings, out: &mut Outbox) -> Next {
        match event {
            GuardEvent::Spawned(tenure) if tenure == self.tenure => self.tree = Tree::Alive { spawned: true },
            GuardEvent::NotSpawned(tenure, error) if tenure == self.tenure => {
                self.give_back(now, Some(Outcome::NotSpawned(error)));
            }
            GuardEvent::Exited(tenure, ended, left) if tenure == self.tenure => {
                self.ended = Some(ended);
                if left.is_empty() {
                    self.tree_is_empty(now);
                } else {
                    if self.lost.is_none() {
                        out.report(Report::LeftBehind(ended, left));
                    }
                    if self.killed_at.is_none() {
                        self.stop(now, Scope::Tree, settings, out);
                    }
                }
            }
            GuardEvent::Killing(tenure) if tenure == self.tenure && self.tree != Tree::Empty => {
                self.guard = Guard::Kills;
                // Before anything was started it kills nothing: `Empty` or `Over` follows.
                if self.killed_at.is_none() && self.tree == (Tree::Alive { spawned: true }) {
                    // By its own clock: our last deadline did not reach it.
                    self.killed_at = Some(now.at);
                    self.lose(self.why_not_renewed());
                    out.report(Report::Killed(Killed::Deadline));
                }
            }
            GuardEvent::Survivors(tenure, pids) if tenure == self.tenure => out.report(Report::Survivors(pids)),
            GuardEvent::Empty(tenure) if tenure == self.tenure => {
                if self.tree == (Tree::Alive { spawned: false }) && self.lost.is_none() {
                    self.instead.get_or_insert(None); // SPAWN came at or after the guard's deadline
                }
                self.tree_is_empty(now);
            }
            GuardEvent::Over(tenure) if tenure == self.tenure => {
                match self.tree {
                    Tree::Alive { spawned: false } => self.instead = Some(None),
                    Tree::Alive { spawned: true } => self.lose(Lost::Stopped),
                    Tree::Empty => {}
                }
                self.tree_is_empty(now);
            }
            GuardEvent::Died => {
                self.guard = Guard::Dead;
                if let Tree::Alive { .. } = self.tree {
                    self.lose(Lost::GuardDied);
                    self.say_lost(out);
                    self.killed_at.get_or_insert(now.at);
                } else if self.instead == Some(None) {
                    // Nothing could be started by a new claim.
                    self.instead = None;
                    self.lose(Lost::GuardDied);
                }
            }
            GuardEvent::Spawned(_)
            | GuardEvent::NotSpawned(..)
            | GuardEvent::Exited(..)
            | GuardEvent::Killing(_)
            | GuardEvent::Survivors(..)
            | GuardEvent::Empty(_)
            | GuardEvent::Over(_) => {} // of an earlier tenure, or too late to matter
        }
        self.look_at_the_clock(now, settings, out)
    }

    fn tree_is_empty(&mut self, now: Now) {
        if self.tree != Tree::Empty {
            self.tree = Tree::Empty;
            self.next_at = now.at;
            // A request in flight is waited for first.
            self.release_by = Some(now.at + RELEASE_TIME.max(2 * self.attempt));
        }
    }

    fn finish(&mut self, settings: &Settings, out: &mut Outbox) -> Next {
        self.say_lost(out);
        match (self.instead.take(), &self.lost) {
            (Some(Some(outcome)), _) => Next::Exit(outcome),
            (Some(None), _) => Next::WaitAgain,
            (None, Some(_)) if settings.on_lost == OnLost::Wait && self.guard != Guard::Dead => Next::WaitAgain,
            (None, Some(_)) => Next::Exit(Outcome::Lost),
            // A tree that ended without a word about the command: it was killed before its end could be told.
            (None, None) => self.ended.map_or(Next::Exit(Outcome::Lost), |ended| Next::Exit(Outcome::Command(ended))),
        }
    }
}
