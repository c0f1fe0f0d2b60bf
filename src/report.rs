//! What people are told: the machine's reports as log lines. Decides nothing.

use std::time::{Duration, UNIX_EPOCH};

use crate::exit::Ended;
use crate::lease::{Holder, Killed, LeaseName, Lost, Outcome, Report, Seconds, SpawnError, Stopping};

/// One event of the log: level, `event`, and what goes with it.
struct Line {
    event: &'static str,
    token: Option<i64>,
    holder: Option<String>,
    reason: Option<String>,
    msg: String,
}

impl Line {
    fn new(event: &'static str, msg: impl Into<String>) -> Line {
        Line { event, token: None, holder: None, reason: None, msg: msg.into() }
    }

    fn because(self, reason: impl Into<String>) -> Line {
        Line { reason: Some(reason.into()), ..self }
    }
}

macro_rules! log {
    ($level:ident, $name:expr, $line:expr) => {{
        let line = $line;
        tracing::$level!(
            event = line.event,
            name = $name.as_str(),
            token = line.token,
            holder = line.holder,
            reason = line.reason,
            "{}",
            line.msg
        )
    }};
}

pub fn tell(name: &LeaseName, report: &Report, lock_holders: impl FnOnce() -> Vec<i32>) {
    match report {
        Report::Waiting { holder, acquired_ms, left, kernel_lock } => {
            log!(info, name, waiting(holder.as_ref(), *acquired_ms, *left, *kernel_lock, lock_holders));
        }
        Report::Unreachable(error) => {
            log!(warn, name, Line::new("unreachable", format!("cannot reach the store: {error}; trying again")).because(error))
        }
        Report::Recovered => log!(info, name, Line::new("recovered", "the store answers again")),
        Report::Acquired { token, waited } => {
            let line = Line::new("acquired", format!("acquired, token {token}, waited {}", Seconds(*waited)));
            log!(info, name, Line { token: Some(token.0), ..line });
        }
        Report::TooLate => log!(warn, name, Line::new("released", "the grant came too late to start anything; giving it back")),
        Report::LeftBehind(ended, pids) => log!(warn, name, left_behind(*ended, pids)),
        Report::Stopping(Stopping::RunsOut { kill_in, error }) => log!(
            warn,
            name,
            Line::new("stopping", format!("stopping: the lease runs out ({error}); the command has {}", Seconds(*kill_in))).because(error)
        ),
        Report::Stopping(Stopping::LeftBehind) => {} // said with what was left
        Report::Killed(why) => log!(warn, name, killed(why)),
        Report::Survivors(pids) => log!(
            error,
            name,
            Line::new(
                "killed",
                format!(
                    "{} of the command cannot be killed (another user's, or in an uninterruptible call); staying until they end",
                    processes(pids)
                )
            )
        ),
        Report::GuardHangs => log!(error, name, Line::new("killed", "the guard does not answer; killing it and what it left")),
        Report::PutBack => {
            log!(warn, name, Line::new("recovered", "the database was replaced; nobody else runs, so the record is put back"));
        }
        Report::Lost(why) => log!(error, name, lost(why)),
        Report::Released => log!(info, name, Line::new("released", "released")),
        Report::ReleaseUnconfirmed { runs_out_in } => log!(
            warn,
            name,
            Line::new("released", format!("the release could not be confirmed; the lease runs out in {}", Seconds(*runs_out_in)))
        ),
    }
}

/// A line that is no report of the machine's.
pub fn warn(name: &LeaseName, event: &'static str, msg: impl Into<String>) {
    log!(warn, name, Line::new(event, msg));
}

fn waiting(
    holder: Option<&Holder>,
    acquired_ms: Option<i64>,
    left: Option<Duration>,
    kernel_lock: bool,
    lock_holders: impl FnOnce() -> Vec<i32>,
) -> Line {
    let Some(holder) = holder else {
        let who = match processes(&lock_holders()) {
            who if who.is_empty() => "a process".to_string(),
            who => who,
        };
        let line = format!("waiting: the lease is free, but {who} of an old holder, or of one about to start, has the kernel lock");
        return Line::new("waiting", line).because("kernel lock");
    };
    let since = acquired_ms.map(|ms| format!(" since {}", timestamp(ms))).unwrap_or_default();
    let until = match left {
        Some(left) if !kernel_lock => format!(", for another {} unless renewed", Seconds(left)),
        Some(_) | None => String::new(),
    };
    let line = Line::new("waiting", format!("waiting: held by {holder}{since}{until}"));
    Line { holder: Some(holder.id.to_string()), ..line }
}

fn left_behind(ended: Ended, pids: &[i32]) -> Line {
    let list = pids.iter().take(10).map(i32::to_string).collect::<Vec<_>>().join(", ");
    let count = match pids.len() {
        1 => "1 process (pid".to_string(),
        count => format!("{count} processes (pids"),
    };
    let more = if pids.len() > 10 { ", …" } else { "" };
    Line::new("stopping", format!("the command {ended} but left {count} {list}{more}): ending them; run it in the foreground"))
}

fn killed(why: &Killed) -> Line {
    let why = match why {
        Killed::Deadline => "the lease has run out",
        Killed::GraceOver => "the grace is over",
        Killed::KillAfter => "--kill-after has passed",
        Killed::Lost => "the lease is lost",
    };
    Line::new("killed", format!("killed: {why}")).because(why)
}

fn lost(why: &Lost) -> Line {
    let (reason, more) = match why {
        Lost::Unreachable(error) => ("cannot reach the store".to_string(), format!(": {error}")),
        Lost::Stopped => ("not renewed in time".to_string(), ", though the store answered: was lockrun stopped or starved?".to_string()),
        Lost::TakenBy(holder) => (format!("taken by {holder}"), String::new()),
        Lost::RecordGone => ("record gone".to_string(), String::new()),
        Lost::Replaced => ("database replaced".to_string(), String::new()),
        Lost::GuardDied => ("the guard died".to_string(), String::new()),
    };
    Line::new("lost", format!("lost: {reason}{more}")).because(reason)
}

/// The last line about a run that did not end as its command did.
pub fn conclude(name: &LeaseName, outcome: &Outcome, waits: bool, command: &str) {
    match outcome {
        Outcome::Command(_) | Outcome::Lost | Outcome::Signal(_) => {}
        Outcome::NotAcquired(holder, left) => log!(warn, name, not_acquired(holder.as_ref(), *left, waits)),
        Outcome::Unreachable(error) => {
            log!(
                error,
                name,
                Line::new("unreachable", format!("cannot reach the store: {error}; leave out -n or -w to wait for it")).because(error)
            );
        }
        Outcome::Refused(error) => log!(error, name, Line::new("refused", error.clone()).because(error)),
        Outcome::WouldWaitForItself => {
            log!(error, name, Line::new("refused", "held by the lockrun around this one, which would wait for itself; use another --name"))
        }
        Outcome::NotSpawned(error) => log!(error, name, Line::new("refused", not_spawned(*error, command))),
    }
}

fn not_acquired(holder: Option<&Holder>, left: Option<Duration>, waits: bool) -> Line {
    let by = match holder {
        Some(holder) => format!("held by {holder}"),
        None => "processes of an old holder have the kernel lock, or another copy is about to start".to_string(),
    };
    let left = left.map(|left| format!(" for another {} unless renewed", Seconds(left))).unwrap_or_default();
    let advice = if waits { "raise -w to wait longer" } else { "leave out -n to wait" };
    let line = Line::new("waiting", format!("{by}{left}; {advice}"));
    Line { holder: holder.map(|holder| holder.id.to_string()), ..line }
}

fn not_spawned(error: SpawnError, command: &str) -> String {
    let describe = |errno: i32| nix::errno::Errno::from_raw(errno).desc().to_lowercase();
    match error {
        SpawnError::Exec(libc::ENOENT) => format!("{command}: command not found; check its spelling and PATH"),
        SpawnError::Exec(errno) => format!("{command}: cannot be executed ({}); is it a program, and executable?", describe(errno)),
        SpawnError::Directory(errno) => format!("{command}: the working directory is gone ({}); start lockrun elsewhere", describe(errno)),
        SpawnError::Fork(errno) => format!("{command}: no process could be made ({}); raise the limits", describe(errno)),
    }
}

fn processes(pids: &[i32]) -> String {
    let list = pids.iter().take(10).map(i32::to_string).collect::<Vec<_>>().join(", ");
    match pids.len() {
        0 => String::new(),
        1 => format!("process {list}"),
        2..=10 => format!("processes {list}"),
        count => format!("processes {list} and {} more", count - 10),
    }
}

/// RFC 3339 in UTC, from unix milliseconds; what is not a time is shown as the number it is.
pub fn timestamp(unix_ms: i64) -> String {
    let time = u64::try_from(unix_ms).ok().and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    // humantime panics past the year 9999.
    match time.filter(|_| unix_ms < 253_402_300_800_000) {
        Some(time) => humantime::format_rfc3339_millis(time).to_string(),
        None => unix_ms.to_string(),
    }
}
