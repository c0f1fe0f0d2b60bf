//! The lease machine: events in, actions out, one next deadline. `waiting` claims, `holding` does the rest.
//! Must never read a clock, await, or do I/O: all that it knows comes in as an argument.

use std::time::Duration;

use super::event::{Action, Event, GuardEvent, InFlight, Lost, Outbox, Outcome, Reply, Report, Tenure};
use super::holding::Holding;
use super::record::{Holder, HolderId};
use super::time::{Moment, Now};
use super::timing::Timing;
use super::view::{State, View};
use super::waiting::{Grant, NO_ANSWER, Waiting};

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

/// What comes after a step of a phase.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Next {
    Stay,
    Granted(Box<Grant>),
    WaitAgain,
    Exit(Outcome),
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
        let idle = in_flight.is_none();
        let phase = match &self.phase {
            Phase::Over => return None,
            Phase::Waiting(waiting) => waiting.deadline(idle),
            Phase::Holding(holding) => holding.deadline(&self.settings, idle),
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

    pub fn view(&self) -> View {
        match &self.phase {
            Phase::Waiting(waiting) => waiting.view(),
            Phase::Holding(holding) => holding.view(&self.settings.timing),
            Phase::Over => View { state: State::Over, lease: None, dead_by: None, error: None, answered: false, waits_for: None },
        }
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
                if let Some(in_flight) = self.out.in_flight.take_if(|in_flight| in_flight.request == request) {
                    self.on_reply(now, in_flight, reply);
                }
            }
            Event::Changed => {
                if let Phase::Waiting(waiting) = &mut self.phase {
                    waiting.read_soon(now);
                }
            }
            Event::ClockStepped => match &mut self.phase {
                Phase::Waiting(waiting) => waiting.read_soon(now),
                Phase::Holding(holding) => holding.renew_now(now),
                Phase::Over => {}
            },
            Event::Signal { number, ends } => match &mut self.phase {
                Phase::Waiting(waiting) => {
                    let next = waiting.leave(Outcome::Signal(number));
                    self.go_on(now, next);
                }
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
        let next = match &mut self.phase {
            Phase::Waiting(waiting) => waiting.look_at_the_clock(now, &mut self.out),
            Phase::Holding(holding) => holding.look_at_the_clock(now, &self.settings, &mut self.out),
            Phase::Over => Next::Stay,
        };
        self.go_on(now, next);
    }

    fn on_reply(&mut self, now: Now, in_flight: InFlight, reply: Reply) {
        let next = match &mut self.phase {
            Phase::Waiting(waiting) => waiting.on_reply(now, in_flight, reply, &self.settings, self.tenure, &mut self.out),
            Phase::Holding(holding) => holding.on_reply(now, in_flight, reply, &self.settings, &mut self.out),
            Phase::Over => Next::Stay,
        };
        self.go_on(now, next);
    }

    fn on_guard(&mut self, now: Now, event: GuardEvent) {
        let next = match (&mut self.phase, event) {
            (Phase::Holding(holding), event) => holding.on_guard(now, event, &self.settings, &mut self.out),
            (Phase::Waiting(_), GuardEvent::Died) => {
                self.out.report(Report::Lost(Lost::GuardDied));
                Next::Exit(Outcome::Lost)
            }
            // We were stopped with the kernel lock in hand, and the guard has let go of it.
            (Phase::Waiting(waiting), GuardEvent::Over(tenure)) if tenure == self.tenure => {
                self.out.push(Action::Unlock);
                self.tenure = Tenure(self.tenure.0 + 1);
                waiting.read_soon(now);
                Next::Stay
            }
            (Phase::Waiting(_) | Phase::Over, _) => Next::Stay,
        };
        self.go_on(now, next);
    }

    fn go_on(&mut self, now: Now, next: Next) {
        match next {
            Next::Stay => {}
            Next::Granted(grant) => self.hold(now, *grant),
            Next::Exit(outcome) => {
                self.phase = Phase::Over;
                self.out.in_flight = None;
                self.out.push(Action::Exit(outcome));
            }
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

    /// Starts the command, or gives the lease back: a grant that comes after its own `term_at` starts nothing.
    fn hold(&mut self, now: Now, grant: Grant) {
        let Grant { record, version, asked_at, waited, leave } = grant;
        let token = record.token;
        let timing = &self.settings.timing;
        let in_time = asked_at.filter(|asked_at| now.at < timing.term_at(*asked_at));
        let mut holding = Holding::new(self.tenure, record, version, asked_at.unwrap_or_default(), timing.attempt);
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
}
