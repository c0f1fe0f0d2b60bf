//! The lease machine: events in, actions out, one next deadline. This file waits and claims; `holding` does the rest.
//! Must never read a clock, await, or do I/O: all that it knows comes in as an argument.

use std::time::Duration;

use super::claim::{self, Verdict};
use super::event::{Action, Event, GuardEvent, InFlight, Outbox, Outcome, Reply, Report, Tenure};
use super::holding::{Holding, Next};
use super::record::{Evidence, Finding, Holder, HolderId, KernelLock, Record, Snapshot, Swap, Token, Version};
use super::time::{Moment, Now};
use super::timing::Timing;

/// How long to wait for a lease that is held, or for a store that does not answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Wait {
    Forever,
    For(Duration),
    No,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OnLost {
    Exit,
    Wait,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Settings {
    pub me: Holder,
    /// The ids of the lockruns around this one: waiting for one of them would never end.
    pub outer: Vec<HolderId>,
    pub timing: Timing,
    pub wait: Wait,
    pub on_lost: OnLost,
    /// After a forwarded stop signal.
    pub kill_after: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Machine {
    settings: Settings,
    tenure: Tenure,
    out: Outbox,
    phase: Phase,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Phase {
    Waiting(Box<Waiting>),
    Holding(Box<Holding>),
    Over,
}

/// `-n` does not wait for a holder, but a store that is busy for a moment is not "unreachable".
const REACHABLE_WITHIN: Duration = Duration::from_millis(2500);

const NO_ANSWER: &str = "no answer in time";

/// When a waiter speaks again while nothing changes.
const SAY_AGAIN: [Duration; 4] = [Duration::from_secs(10), Duration::from_secs(60), Duration::from_secs(600), Duration::from_secs(3600)];

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting {
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
    fn new(since: Moment, wait: Wait) -> Waiting {
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

impl Machine {
    /// Begins to wait at `now`; the first actions are there to be polled.
    pub fn new(settings: Settings, now: Now) -> Machine {
        let out = Outbox::new(settings.timing.attempt);
        let waiting = Waiting::new(now.at, settings.wait);
        let mut machine = Machine { settings, tenure: Tenure(1), out, phase: Phase::Waiting(Box::new(waiting)) };
        machine.look_at_the_clock(now);
        machine
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.out.actions.pop_front()
    }

    /// The instant at which the machine wants a `Tick`, if nothing happens before.
    pub fn deadline(&self) -> Option<Moment> {
        let in_flight = self.out.in_flight.as_ref().map(|request| request.until);
        let phase = match &self.phase {
            Phase::Over => return None,
            Phase::Waiting(waiting) => {
                let idle = self.out.in_flight.is_none();
                let read = waiting.again_at.into_iter().chain(waiting.say_at).min().filter(|_| idle);
                let give_up_at = waiting.give_up_at.filter(|_| !waiting.claiming && (idle || !waiting.last_look));
                read.into_iter().chain(give_up_at).min()
            }
            Phase::Holding(holding) => holding.deadline(&self.settings, in_flight.is_none()),
        };
        in_flight.into_iter().chain(phase).min()
    }

    /// A command may be alive: signals are for it.
    pub fn is_holding(&self) -> bool {
        matches!(self.phase, Phase::Holding(_))
    }

    pub fn tenure(&self) -> Tenure {
        self.tenure
    }

    pub fn handle(&mut self, now: Now, event: Event) {
        // The clock first: what arrives together with a deadline comes after it. But what the guard tells of the tree is so
        // already, and extends nothing.
        if !matches!(event, Event::Guard(_)) {
            self.look_at_the_clock(now);
        }
        match event {
            Event::Tick => {}
            Event::Reply { request, reply } => {
                if self.out.in_flight.as_ref().is_some_and(|in_flight| in_flight.request == request) {
                    let in_flight = self.out.in_flight.take().expect("just seen");
                    self.on_reply(now, in_flight, reply);
                }
            }
            Event::Changed => self.read_soon(now),
            Event::ClockStepped => match &mut self.phase {
                Phase::Waiting(_) => self.read_soon(now),
                Phase::Holding(holding) => holding.renew_now(now),
                Phase::Over => {}
            },
            Event::Signal { number, ends } => match &mut self.phase {
                Phase::Waiting(_) => self.leave(Outcome::Signal(number)),
                Phase::Holding(holding) => holding.on_signal(now, number, ends, &self.settings, &mut self.out),
                Phase::Over => {}
            },
            Event::Guard(event) => self.on_guard(now, event),
        }
        self.look_at_the_clock(now);
    }

    fn look_at_the_clock(&mut self, now: Now) {
        if let Some(in_flight) = self.out.in_flight.take_if(|in_flight| in_flight.until <= now.at) {
            self.on_reply(now, in_flight, Reply::Unknown(NO_ANSWER.to_string()));
        }
        match &mut self.phase {
            Phase::Waiting(waiting) => {
                let due = |at: Option<Moment>| at.is_some_and(|at| at <= now.at);
                let idle = self.out.in_flight.is_none();
                if waiting.is_over(now.at) {
                    // One last look, to name who holds it now; or to find it free.
                    if idle && !waiting.last_look && waiting.error.is_none() {
                        waiting.last_look = true;
                        self.out.read(now);
                    } else if idle || !waiting.last_look {
                        let outcome = waiting.in_vain();
                        self.leave(outcome);
                    }
                } else if idle && (due(waiting.again_at) || due(waiting.say_at)) {
                    waiting.again_at = None;
                    self.out.read(now);
                }
            }
            Phase::Holding(holding) => {
                let next = holding.look_at_the_clock(now, &self.settings, &mut self.out);
                self.go_on(now, next);
            }
            Phase::Over => {}
        }
    }

    fn on_reply(&mut self, now: Now, in_flight: InFlight, reply: Reply) {
        match &mut self.phase {
            Phase::Waiting(_) => match reply {
                Reply::Snapshot(snapshot) => self.on_waiters_snapshot(now, snapshot),
                Reply::Swapped(swap) => self.on_claimed(now, in_flight, swap),
                Reply::Unknown(error) => self.on_waiters_trouble(now, error),
                Reply::Refused(error) => self.leave_now(Outcome::Refused(error)),
            },
            Phase::Holding(holding) => {
                let next = holding.on_reply(now, in_flight, reply, &self.settings, &mut self.out);
                self.go_on(now, next);
            }
            Phase::Over => {}
        }
    }

    fn on_waiters_snapshot(&mut self, now: Now, snapshot: Snapshot) {
        let Phase::Waiting(waiting) = &mut self.phase else { unreachable!("called while waiting") };
        if let Some(outcome) = waiting.leave.clone() {
            return self.leave_now(outcome);
        }
        let seen_here = match &waiting.sighting {
            Some((version, at)) if *version == snapshot.version => *at,
            Some(_) | None => now.at,
        };
        let seen_at = snapshot.seen_at.map_or(seen_here, |before| before.min(seen_here));
        waiting.sighting = Some((snapshot.version.clone(), seen_at));
        let own = snapshot.record.as_ref().filter(|record| record.holder.as_ref().is_some_and(|h| h.id == self.settings.me.id));
        let asked_at = own.and_then(|own| self.out.sent.get(&own.write)).copied().filter(|_| snapshot.finding == Finding::Plain);
        if snapshot.lock == KernelLock::Ours && asked_at.is_none() {
            // Whoever has the kernel lock keeps all others waiting: if this process is stopped now, the guard lets go of it.
            // Not with a claim that has landed: the guard would keep this instant, which is later than that claim allows.
            self.out.push(Action::Deadline(self.tenure, self.settings.timing.kill_at(now.at)));
        }
        if let Some(own) = own {
            // A claim of ours that was given up as unknown has landed.
            return self.granted(now, own.clone(), snapshot.version, asked_at);
        }
        if snapshot.holder().is_some_and(|holder| self.settings.outer.contains(&holder.id)) {
            return self.leave_now(Outcome::WouldWaitForItself);
        }
        match claim::judge(&snapshot, seen_at, self.settings.me.instance.as_deref(), now.at) {
            Verdict::Free => self.claim(now, snapshot),
            Verdict::Held { look_again_at } => self.wait_on(now, snapshot, look_again_at),
        }
    }

    fn claim(&mut self, now: Now, snapshot: Snapshot) {
        let Phase::Waiting(waiting) = &mut self.phase else { unreachable!("called while waiting") };
        let Some(token) = Token::next(snapshot.token(), now.wall_ms) else {
            return self.leave_now(Outcome::Refused("its token is the greatest of all; remove the record".to_string()));
        };
        waiting.claiming = true;
        let record = Record {
            write: super::record::WriteId::from_random(now.random),
            token,
            holder: Some(self.settings.me.clone()),
            ttl: self.settings.timing.ttl,
            asked_at: now.at,
            acquired_ms: now.wall_ms,
            renewed_ms: now.wall_ms,
            stopping: false,
        };
        self.out.swap(now, snapshot.version, record);
    }

    fn wait_on(&mut self, now: Now, snapshot: Snapshot, look_again_at: Option<Moment>) {
        let left = match snapshot.evidence {
            Evidence::Left(left) if snapshot.holder().is_some() => Some(left),
            _ => look_again_at.map(|at| at.since(now.at)),
        };
        let Phase::Waiting(waiting) = &mut self.phase else { unreachable!("called while waiting") };
        if self.settings.wait == Wait::No || waiting.last_look {
            return self.leave_now(Outcome::NotAcquired(snapshot.holder().cloned(), left));
        }
        waiting.recovered(&mut self.out);
        waiting.held_by = snapshot.holder().cloned();
        let about = (snapshot.holder().map(|holder| holder.id.clone()), snapshot.lock);
        let news = waiting.said.as_ref() != Some(&about);
        if news || waiting.say_at.is_some_and(|at| at <= now.at) {
            waiting.say_step = if news { 0 } else { (waiting.say_step + 1).min(SAY_AGAIN.len() - 1) };
            waiting.say_at = Some(now.at + SAY_AGAIN[waiting.say_step]);
            waiting.said = Some(about);
            let acquired_ms = snapshot.record.as_ref().filter(|record| record.holder.is_some()).map(|record| record.acquired_ms);
            let kernel_lock = snapshot.lock == KernelLock::Others;
            self.out.report(Report::Waiting { holder: snapshot.holder().cloned(), acquired_ms, left, kernel_lock });
        }
        // With the kernel lock in hand, or none in this store, nothing wakes us when the record changes.
        let poll_at = (snapshot.lock != KernelLock::Others).then(|| now.at + self.settings.timing.heartbeat.min(Duration::from_secs(1)));
        waiting.again_at = look_again_at.into_iter().chain(poll_at).min();
        self.out.push(Action::Watch(snapshot.version));
    }

    fn on_claimed(&mut self, now: Now, in_flight: InFlight, swap: Swap) {
        let Phase::Waiting(waiting) = &mut self.phase else { unreachable!("called while waiting") };
        waiting.claiming = false;
        match swap {
            Swap::Done(version) => {
                let record = in_flight.record.expect("only a swap is answered by Swapped");
                let asked_at = record.asked_at;
                self.granted(now, record, version, Some(asked_at));
            }
            Swap::Conflict => {
                if let Some(record) = &in_flight.record {
                    self.out.sent.remove(&record.write);
                }
                match waiting.leave.take() {
                    Some(outcome) => self.leave_now(outcome),
                    None => self.out.read(now),
                }
            }
        }
    }

    /// The record is ours. `asked_at`: of the write that made it so, if we know it.
    fn granted(&mut self, now: Now, record: Record, version: Version, asked_at: Option<Moment>) {
        let Phase::Waiting(waiting) = &mut self.phase else { unreachable!("called while waiting") };
        let waited = now.at.since(waiting.since);
        waiting.recovered(&mut self.out);
        let leave = waiting.leave.take();
        let token = record.token;
        let timing = &self.settings.timing;
        let in_time = asked_at.filter(|asked_at| now.at < timing.term_at(*asked_at));
        let mut holding = Holding::new(self.tenure, record, version, asked_at.unwrap_or_default());
        match (leave, in_time) {
            (Some(outcome), _) => holding.give_back(now, Some(outcome)),
            (None, None) => {
                self.out.report(Report::TooLate);
                holding.give_back(now, None);
            }
            (None, Some(asked_at)) => {
                holding.begin(now, timing);
                self.out.report(Report::Acquired { token, waited, holder: self.settings.me.id.clone() });
                self.out.push(Action::Deadline(self.tenure, timing.kill_at(asked_at)));
                self.out.push(Action::Spawn(self.tenure, token));
            }
        }
        self.phase = Phase::Holding(Box::new(holding));
    }

    fn on_waiters_trouble(&mut self, now: Now, error: String) {
        let Phase::Waiting(waiting) = &mut self.phase else { unreachable!("called while waiting") };
        waiting.claiming = false;
        if let Some(outcome) = waiting.leave.take() {
            return self.leave_now(outcome);
        }
        if self.settings.wait == Wait::No && now.at >= waiting.since + REACHABLE_WITHIN {
            return self.leave_now(Outcome::Unreachable(error));
        }
        let again_at = now.at + self.settings.timing.pause(waiting.failures, now.random);
        waiting.again_at = Some(again_at);
        // What is to be said needs a read too, and must not go around the pause.
        waiting.say_at = waiting.say_at.map(|say_at| say_at.max(again_at));
        waiting.failures += 1;
        if waiting.failures > 1 {
            // Whoever has the kernel lock keeps all others waiting: not one who cannot use it.
            self.out.push(Action::Unlock);
        }
        if waiting.error.replace(error.clone()).is_none() {
            self.out.report(Report::Unreachable(error));
        }
    }

    fn on_guard(&mut self, now: Now, event: GuardEvent) {
        match (&mut self.phase, event) {
            (Phase::Holding(holding), event) => {
                let next = holding.on_guard(now, event, &self.settings, &mut self.out);
                self.go_on(now, next);
            }
            (Phase::Waiting(_), GuardEvent::Died) => {
                self.out.report(Report::Lost(super::event::Lost::GuardDied));
                self.leave_now(Outcome::Lost);
            }
            // We were stopped with the kernel lock in hand, and the guard has let go of it.
            (Phase::Waiting(_), GuardEvent::Over(tenure)) if tenure == self.tenure => {
                self.out.push(Action::Unlock);
                self.tenure = Tenure(self.tenure.0 + 1);
                self.read_soon(now);
            }
            (Phase::Waiting(_) | Phase::Over, _) => {}
        }
    }

    /// What comes after a step of holding.
    fn go_on(&mut self, now: Now, next: Next) {
        match next {
            Next::Hold => {}
            Next::Exit(outcome) => self.leave_now(outcome),
            Next::WaitAgain => {
                self.out.push(Action::Unlock);
                self.out.sent.clear();
                // A release may be on its way still. Its reply must not be taken for that of a claim.
                self.out.in_flight = None;
                self.tenure = Tenure(self.tenure.0 + 1);
                self.phase = Phase::Waiting(Box::new(Waiting::new(now.at, self.settings.wait)));
                self.look_at_the_clock(now);
            }
        }
    }

    fn read_soon(&mut self, now: Now) {
        if let Phase::Waiting(waiting) = &mut self.phase {
            waiting.again_at = Some(now.at);
        }
    }

    /// A claim in flight may land: then it is given back first.
    fn leave(&mut self, outcome: Outcome) {
        match &mut self.phase {
            Phase::Waiting(waiting) if waiting.claiming => {
                waiting.leave.get_or_insert(outcome);
            }
            Phase::Waiting(_) | Phase::Holding(_) | Phase::Over => self.leave_now(outcome),
        }
    }

    fn leave_now(&mut self, outcome: Outcome) {
        self.phase = Phase::Over;
        self.out.in_flight = None;
        self.out.push(Action::Exit(outcome));
    }
}
