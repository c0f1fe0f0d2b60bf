//! The machine while the record is not ours: read, judge, claim, wait, and say whom for. Must never hold anything but the
//! right to be next.

use std::time::Duration;

use super::claim::{self, Verdict};
use super::event::{Action, InFlight, Outbox, Outcome, Reply, Report, Tenure};
use super::machine::{Next, Settings, Wait};
use super::record::{Evidence, Finding, Holder, HolderId, KernelLock, Record, Snapshot, Swap, Token, Version, WriteId};
use super::time::{Moment, Now};
use super::view::{State, View};

/// `-n` does not wait for a holder, but a store that is busy for a moment is not "unreachable".
const REACHABLE_WITHIN: Duration = Duration::from_millis(2500);

pub(super) const NO_ANSWER: &str = "no answer in time";

/// When a waiter speaks again while nothing changes.
const SAY_AGAIN: [Duration; 4] = [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];

/// The record is ours.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Grant {
    pub record: Record,
    pub version: Version,
    /// Of the write that made it so, if we know it.
    pub asked_at: Option<Moment>,
    pub waited: Duration,
    /// Give it back, and end like this.
    pub leave: Option<Outcome>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Waiting {
    since: Moment,
    /// `-w`.
    give_up_at: Option<Moment>,
    /// The next read, if nothing changes before.
    again_at: Option<Moment>,
    /// The version that stands, and since when we know it to.
    sighting: Option<(Version, Moment)>,
    /// A claim is in flight.
    claiming: bool,
    /// The time to wait is over, and the last look is taken.
    last_look: bool,
    /// End like this as soon as no claim is in flight.
    leave: Option<Outcome>,
    failures: u32,
    error: Option<String>,
    /// Who held it when we last looked, for the one who gives up.
    held_by: Option<Holder>,
    said: Option<(Option<HolderId>, KernelLock)>,
    say_at: Option<Moment>,
    say_step: usize,
}

impl Waiting {
    pub fn new(since: Moment, wait: Wait) -> Waiting {
        let give_up_at = match wait {
            Wait::For(span) => Some(since + span),
            Wait::Forever | Wait::No => None,
        };
        Waiting {
            since,
            give_up_at,
            again_at: Some(since),
            sighting: None,
            claiming: false,
            last_look: false,
            leave: None,
            failures: 0,
            error: None,
            held_by: None,
            said: None,
            say_at: None,
            say_step: 0,
        }
    }

    pub fn view(&self) -> View {
        let (error, waits_for) = (self.error.clone(), self.held_by.clone());
        View { state: State::Waiting, lease: None, dead_by: None, error, answered: self.sighting.is_some(), waits_for }
    }

    pub fn deadline(&self, idle: bool) -> Option<Moment> {
        let read = self.again_at.into_iter().chain(self.say_at).min().filter(|_| idle);
        let give_up_at = self.give_up_at.filter(|_| !self.claiming && (idle || !self.last_look));
        read.into_iter().chain(give_up_at).min()
    }

    pub fn look_at_the_clock(&mut self, now: Now, out: &mut Outbox) -> Next {
        let due = |at: Option<Moment>| at.is_some_and(|at| at <= now.at);
        let idle = out.in_flight.is_none();
        if self.is_over(now.at) {
            // One last look, to name who holds it now; or to find it free.
            if idle && !self.last_look && self.error.is_none() {
                self.last_look = true;
                out.read(now);
            } else if idle || !self.last_look {
                return Next::Exit(self.in_vain());
            }
        } else if idle && (due(self.again_at) || due(self.say_at)) {
            self.again_at = None;
            out.read(now);
        }
        Next::Stay
    }

    pub fn read_soon(&mut self, now: Now) {
        self.again_at = Some(now.at);
    }

    /// A claim in flight may land: then it is given back first.
    pub fn leave(&mut self, outcome: Outcome) -> Next {
        if !self.claiming {
            return Next::Exit(outcome);
        }
        self.leave.get_or_insert(outcome);
        Next::Stay
    }

    pub fn on_reply(&mut self, now: Now, in_flight: InFlight, reply: Reply, settings: &Settings, tenure: Tenure, out: &mut Outbox) -> Next {
        self.claiming = false;
        match reply {
            Reply::Snapshot(snapshot) => self.on_snapshot(now, snapshot, settings, tenure, out),
            Reply::Swapped(Swap::Done(version)) => {
                let record = in_flight.record.expect("only a swap is answered by Swapped");
                let asked_at = record.asked_at;
                self.granted(now, record, version, Some(asked_at), out)
            }
            Reply::Swapped(Swap::Conflict) => {
                if let Some(record) = &in_flight.record {
                    out.sent.remove(&record.write);
                }
                match self.leave.take() {
                    Some(outcome) => Next::Exit(outcome),
                    None => {
                        out.read(now);
                        Next::Stay
                    }
                }
            }
            Reply::Unknown(error) => self.on_trouble(now, error, settings, out),
            Reply::Refused(error) => Next::Exit(Outcome::Refused(error)),
        }
    }

    fn on_snapshot(&mut self, now: Now, snapshot: Snapshot, settings: &Settings, tenure: Tenure, out: &mut Outbox) -> Next {
        let seen_here = match &self.sighting {
            Some((version, at)) if *version == snapshot.version => *at,
            Some(_) | None => now.at,
        };
        let seen_at = snapshot.seen_at.map_or(seen_here, |before| before.min(seen_here));
        self.sighting = Some((snapshot.version.clone(), seen_at));
        let own = snapshot.record.as_ref().filter(|record| record.holder.as_ref().is_some_and(|h| h.id == settings.me.id));
        let asked_at = own.and_then(|own| out.sent.get(&own.write)).copied().filter(|_| snapshot.finding == Finding::Plain);
        if snapshot.lock == KernelLock::Ours && asked_at.is_none() {
            // Whoever has the kernel lock keeps all others waiting: if this process is stopped now, the guard lets go of it.
            // Not with a claim that has landed: the guard would keep this instant, which is later than that claim allows.
            out.push(Action::Deadline(tenure, settings.timing.kill_at(now.at)));
        }
        if let Some(own) = own {
            // A claim of ours that was given up as unknown has landed.
            return self.granted(now, own.clone(), snapshot.version, asked_at, out);
        }
        if snapshot.holder().is_some_and(|holder| settings.outer.contains(&holder.id)) {
            return Next::Exit(Outcome::WouldWaitForItself);
        }
        match claim::judge(&snapshot, seen_at, settings.me.instance.as_deref(), now.at) {
            Verdict::Free => self.claim(now, snapshot, settings, out),
            Verdict::Held { look_again_at } => self.wait_on(now, snapshot, look_again_at, settings, out),
        }
    }

    fn claim(&mut self, now: Now, snapshot: Snapshot, settings: &Settings, out: &mut Outbox) -> Next {
        let Some(token) = Token::next(snapshot.token(), now.wall_ms) else {
            return Next::Exit(Outcome::Refused("its token is the greatest of all; remove the record".to_string()));
        };
        self.claiming = true;
        let record = Record {
            write: WriteId::from_random(now.random),
            token,
            holder: Some(settings.me.clone()),
            ttl: settings.timing.ttl,
            asked_at: now.at,
            acquired_ms: now.wall_ms,
            renewed_ms: now.wall_ms,
            stopping: false,
        };
        out.swap(now, snapshot.version, record);
        Next::Stay
    }

    fn wait_on(&mut self, now: Now, snapshot: Snapshot, look_again_at: Option<Moment>, settings: &Settings, out: &mut Outbox) -> Next {
        let left = match snapshot.evidence {
            Evidence::Left(left) if snapshot.holder().is_some() => Some(left),
            _ => look_again_at.map(|at| at.since(now.at)),
        };
        if settings.wait == Wait::No || self.last_look {
            return Next::Exit(Outcome::NotAcquired(snapshot.holder().cloned(), left));
        }
        self.recovered(out);
        self.held_by = snapshot.holder().cloned();
        let about = (snapshot.holder().map(|holder| holder.id.clone()), snapshot.lock);
        let news = self.said.as_ref() != Some(&about);
        if news || self.say_at.is_some_and(|at| at <= now.at) {
            self.say_step = if news { 0 } else { (self.say_step + 1).min(SAY_AGAIN.len() - 1) };
            self.say_at = Some(now.at + SAY_AGAIN[self.say_step]);
            self.said = Some(about);
            let acquired_ms = snapshot.record.as_ref().filter(|record| record.holder.is_some()).map(|record| record.acquired_ms);
            let kernel_lock = snapshot.lock == KernelLock::Others;
            out.report(Report::Waiting { holder: snapshot.holder().cloned(), acquired_ms, left, kernel_lock });
        }
        // With the kernel lock in hand, or none in this store, it may be that nothing wakes us when the record changes. A
        // server tells of a release; to see a beat, which it need not tell of, a look a beat is enough.
        let pause = match snapshot.evidence {
            Evidence::NoClock => settings.timing.heartbeat,
            Evidence::Left(_) | Evidence::Gone(_) | Evidence::Unchanged(_) => settings.timing.heartbeat.min(Duration::from_secs(1)),
        };
        let poll_at = (snapshot.lock != KernelLock::Others).then(|| now.at + pause);
        self.again_at = look_again_at.into_iter().chain(poll_at).min();
        out.push(Action::Watch(snapshot.version));
        Next::Stay
    }

    fn granted(&mut self, now: Now, record: Record, version: Version, asked_at: Option<Moment>, out: &mut Outbox) -> Next {
        self.recovered(out);
        let waited = now.at.since(self.since);
        Next::Granted(Box::new(Grant { record, version, asked_at, waited, leave: self.leave.take() }))
    }

    fn on_trouble(&mut self, now: Now, error: String, settings: &Settings, out: &mut Outbox) -> Next {
        if let Some(outcome) = self.leave.take() {
            return Next::Exit(outcome);
        }
        if settings.wait == Wait::No && now.at >= self.since + REACHABLE_WITHIN {
            return Next::Exit(Outcome::Unreachable(error));
        }
        let again_at = now.at + settings.timing.pause(self.failures, now.random);
        self.again_at = Some(again_at);
        // What is to be said needs a read too, and must not go around the pause.
        self.say_at = self.say_at.map(|say_at| say_at.max(again_at));
        self.failures += 1;
        if self.failures > 1 {
            // Whoever has the kernel lock keeps all others waiting: not one who cannot use it.
            out.push(Action::Unlock);
        }
        if self.error.replace(error.clone()).is_none() {
            out.report(Report::Unreachable(error));
        }
        Next::Stay
    }

    /// `-w` has passed. A claim in flight is waited for.
    fn is_over(&self, now: Moment) -> bool {
        !self.claiming && self.give_up_at.is_some_and(|at| at <= now)
    }

    fn in_vain(&mut self) -> Outcome {
        match self.error.take() {
            Some(error) => Outcome::Unreachable(error),
            None if self.sighting.is_none() => Outcome::Unreachable(NO_ANSWER.to_string()),
            None => Outcome::NotAcquired(self.held_by.take(), None),
        }
    }

    /// Reads may go on while no write does: only a verdict that needs no write, or a claim that landed, is recovery.
    fn recovered(&mut self, out: &mut Outbox) {
        self.failures = 0;
        if self.error.take().is_some() {
            out.report(Report::Recovered);
        }
    }
}
