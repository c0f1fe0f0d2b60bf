//! The machine's decisions as a pure function: times are arguments, answers are lists of actions. Must never sleep.
//! TTL 60 s: heartbeat 5 s, attempt 2.5 s, TERM at 48.5 s, KILL at 58.5 s after the send of the last good write.

mod holding;
mod waiting;

use std::time::Duration;

use super::*;

/// Seconds after the start of the machine, which is long after boot.
fn at(seconds: f64) -> Moment {
    Moment::from_nanos((1e12 + seconds * 1e9) as u64)
}

fn secs(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

const WALL_MS: i64 = 1_700_000_000_000;

fn holder(id: &str) -> Holder {
    Holder { id: HolderId::new(id), instance: None, hostname: "host".into(), pid: 7, command: vec!["true".into()] }
}

fn settings() -> Settings {
    let timing = Timing::new(Asked { ttl: Some(secs(60.0)), ..Asked::default() }, Clocks::OneKernel).expect("a good set");
    Settings { me: holder("me"), outer: vec![], timing, wait: Wait::Forever, on_lost: OnLost::Exit, kill_after: None }
}

fn record(of: Option<&str>, token: i64) -> Record {
    Record {
        write: WriteId::new(format!("write of {of:?}")),
        token: Token(token),
        holder: of.map(holder),
        ttl: secs(60.0),
        asked_at: Moment::default(),
        acquired_ms: 1,
        renewed_ms: 2,
        stopping: false,
    }
}

fn version(record: &Record) -> Version {
    Version::At(record.write.to_string())
}

/// A record as a store shows it, with so much of its TTL left.
fn seen(record: &Record, left: f64) -> Snapshot {
    let evidence = Evidence::Left(secs(left));
    let version = version(record);
    Snapshot { record: Some(record.clone()), version, evidence, lock: KernelLock::None, seen_at: None, finding: Finding::Plain }
}

fn absent() -> Snapshot {
    let evidence = Evidence::NoClock;
    Snapshot { record: None, version: Version::Absent, evidence, lock: KernelLock::None, seen_at: None, finding: Finding::Plain }
}

fn unknown() -> Reply {
    Reply::Unknown("no route".to_string())
}

/// Drives one machine, and remembers what it asked last.
struct Run {
    machine: Machine,
    events: u128,
    request: Request,
    /// The last record that was sent, and what it was to replace.
    sent: Option<(Version, Record)>,
    first: Vec<Action>,
}

impl Run {
    /// Starts at 0.
    fn new(settings: Settings) -> Run {
        let machine = Machine::new(settings, now(0.0, 0));
        let mut run = Run { machine, events: 0, request: Request(0), sent: None, first: vec![] };
        run.first = run.actions();
        run
    }

    fn actions(&mut self) -> Vec<Action> {
        let actions: Vec<Action> = std::iter::from_fn(|| self.machine.poll_action()).collect();
        for action in &actions {
            match action {
                Action::Read(request) => self.request = *request,
                Action::Swap { request, expect, record } => {
                    self.request = *request;
                    self.sent = Some((expect.clone(), record.clone()));
                }
                _ => {}
            }
        }
        actions
    }

    fn handle(&mut self, seconds: f64, event: Event) -> Vec<Action> {
        self.events += 1;
        self.machine.handle(now(seconds, self.events), event);
        self.actions()
    }

    fn tick(&mut self, seconds: f64) -> Vec<Action> {
        self.handle(seconds, Event::Tick)
    }

    /// The answer to the last request.
    fn reply(&mut self, seconds: f64, reply: Reply) -> Vec<Action> {
        self.handle(seconds, Event::Reply { request: self.request, reply })
    }

    fn shows(&mut self, seconds: f64, snapshot: Snapshot) -> Vec<Action> {
        self.reply(seconds, Reply::Snapshot(snapshot))
    }

    fn conflict(&mut self, seconds: f64) -> Vec<Action> {
        self.reply(seconds, Reply::Swapped(Swap::Conflict))
    }

    /// The last write was carried out.
    fn done(&mut self, seconds: f64) -> Vec<Action> {
        let version = version(self.record());
        self.reply(seconds, Reply::Swapped(Swap::Done(version)))
    }

    fn guard(&mut self, seconds: f64, event: GuardEvent) -> Vec<Action> {
        self.handle(seconds, Event::Guard(event))
    }

    fn signal(&mut self, seconds: f64, number: i32) -> Vec<Action> {
        self.handle(seconds, Event::Signal { number, ends: true })
    }

    /// The last record that was sent.
    fn record(&self) -> &Record {
        &self.sent.as_ref().expect("something was written").1
    }

    /// Goes from one deadline to the next, every request unanswered, until `seconds`; all that was done on the way.
    fn silence_until(&mut self, seconds: f64) -> Vec<Action> {
        let mut all = vec![];
        while let Some(next) = self.machine.deadline().filter(|next| *next < at(seconds)) {
            self.events += 1;
            assert!(self.events < 1000, "the machine turns without end at {next:?}");
            self.machine.handle(Now { at: next, ..now(0.0, self.events) }, Event::Tick);
            all.extend(self.actions());
        }
        all
    }
}

fn now(seconds: f64, random: u128) -> Now {
    Now { at: at(seconds), wall_ms: WALL_MS + (seconds * 1e3) as i64, random }
}

/// The claim was sent at 0.
fn claiming(settings: Settings) -> Run {
    let mut run = Run::new(settings);
    run.shows(0.0, absent());
    assert!(run.sent.is_some(), "claimed");
    run
}

/// The command runs; its claim was sent at 0.
/// The claim is confirmed, and the guard was told to start the command.
fn granted(settings: Settings) -> Run {
    let mut run = claiming(settings);
    run.done(0.1);
    run
}

fn holding(settings: Settings) -> Run {
    let mut run = granted(settings);
    run.guard(0.2, GuardEvent::Spawned(Tenure(1)));
    run
}

fn reads(actions: &[Action]) -> usize {
    actions.iter().filter(|action| matches!(action, Action::Read(_))).count()
}

/// The records that were sent.
fn writes(actions: &[Action]) -> Vec<&Record> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Swap { record, .. } => Some(record),
            _ => None,
        })
        .collect()
}

fn reports(actions: &[Action]) -> Vec<&Report> {
    actions
        .iter()
        .filter_map(|action| match action {
            Action::Report(report) => Some(report),
            _ => None,
        })
        .collect()
}

/// What the guard was told.
fn orders(actions: &[Action]) -> Vec<&Action> {
    use Action::{Deadline, Forward, Kill, KillGuard, Spawn, Stop};
    actions.iter().filter(|a| matches!(a, Deadline(..) | Spawn(..) | Forward(..) | Stop(..) | Kill(_) | KillGuard)).collect()
}

fn outcome(actions: &[Action]) -> Option<&Outcome> {
    actions.iter().find_map(|action| match action {
        Action::Exit(outcome) => Some(outcome),
        _ => None,
    })
}
