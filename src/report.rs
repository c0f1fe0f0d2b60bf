//! What people are told: the machine's reports as log lines. Decides nothing.

use std::net::SocketAddr;
use std::time::{Duration, UNIX_EPOCH};

use tracing::Level;

use crate::exit::Ended;
use crate::lease::{Holder, Killed, LeaseName, Lost, Outcome, Report, Seconds, SpawnError, Token};

/// One event of the log.
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

fn emit(name: &LeaseName, level: Level, line: Line) {
    // tracing wants the level as a constant.
    macro_rules! at {
        ($level:ident) => {
            tracing::$level!(
                event = line.event,
                name = name.as_str(),
                token = line.token,
                holder = line.holder,
                reason = line.reason,
                "{}",
                line.msg
            )
        };
    }
    match level {
        Level::ERROR => at!(error),
        Level::WARN => at!(warn),
        _ => at!(info),
    }
}

/// `token`: of the lease that is held.
pub fn tell(name: &LeaseName, token: Option<Token>, report: &Report, lock_holders: impl FnOnce() -> Vec<i32>) {
    if let Some((level, line)) = line(report, lock_holders) {
        emit(name, level, Line { token: line.token.or(token.map(|token| token.0)), ..line });
    }
}

fn line(report: &Report, lock_holders: impl FnOnce() -> Vec<i32>) -> Option<(Level, Line)> {
    Some(match report {
        Report::Waiting { holder, acquired_ms, left, kernel_lock } => {
            (Level::INFO, waiting(holder.as_ref(), *acquired_ms, *left, kernel_lock.then_some(lock_holders)))
        }
        Report::Unreachable(error) => (Level::WARN, Line::new("unreachable", format!("unreachable: {error}; trying again")).because(error)),
        Report::Recovered => (Level::INFO, Line::new("recovered", "recovered: the store answers again")),
        Report::Acquired { token, waited, holder } => {
            let line = Line::new("acquired", format!("acquired, token {token}, waited {}", Seconds(*waited)));
            (Level::INFO, Line { token: Some(token.0), holder: Some(holder.to_string()), ..line })
        }
        Report::TooLate => (Level::WARN, Line::new("released", "released: the grant came too late to start anything")),
        Report::LeftBehind(ended, pids) => (Level::WARN, left_behind(*ended, pids)),
        Report::Stopping { kill_in, error } => {
            let msg = format!("stopping: the lease runs out ({error}); the command has {}", Seconds(*kill_in));
            (Level::WARN, Line::new("stopping", msg).because(error))
        }
        Report::Killed(why) => (Level::WARN, killed(why)),
        Report::Survivors(pids) => {
            let why = "cannot be killed (another user's, or in an uninterruptible call); staying until they end";
            (Level::ERROR, Line::new("killed", format!("killed: all but {} of the command, which {why}", processes(pids))))
        }
        Report::GuardHangs => (Level::ERROR, Line::new("killed", "killed: the guard does not answer; what it leaves is killed here")),
        Report::PutBack => {
            let msg = "recovered: the database was replaced; nobody else runs, so the record is put back";
            (Level::WARN, Line::new("recovered", msg))
        }
        Report::Lost(why) => (Level::ERROR, lost(why)),
        Report::Released => (Level::INFO, Line::new("released", "released")),
        Report::ReleaseUnconfirmed { runs_out_in } => {
            let msg = format!("not released: the store did not confirm it; the lease runs out in {}", Seconds(*runs_out_in));
            (Level::WARN, Line::new("released", msg))
        }
    })
}

/// Where `--http` answers.
pub fn listening(name: &LeaseName, at: SocketAddr) {
    emit(name, Level::INFO, Line::new("listening", format!("listening on http://{at}")));
}

/// A line that is no report of the machine's.
pub fn warn(name: &LeaseName, msg: impl Into<String>) {
    emit(name, Level::WARN, Line::new("warning", msg));
}

/// `blockers` looks at every descriptor of every process: only where it is said who they are.
fn waiting<F: FnOnce() -> Vec<i32>>(
    holder: Option<&Holder>,
    acquired_ms: Option<i64>,
    left: Option<Duration>,
    blockers: Option<F>,
) -> Line {
    let blocked = |pids: &[i32]| match pids {
        [] => "somebody has the kernel lock: a copy that is about to start, or what an old holder left".to_string(),
        pids => format!("{} still have the kernel lock: a copy that is about to start, or what an old holder left", processes(pids)),
    };
    let Some(holder) = holder else {
        let line = Line::new("waiting", format!("waiting: free, but {}", blocked(&blockers.map(|find| find()).unwrap_or_default())));
        return line.because("kernel lock");
    };
    let since = acquired_ms.map(|ms| format!(" since {}", timestamp(ms))).unwrap_or_default();
    let line = match (left, blockers) {
        (Some(Duration::ZERO), Some(find)) => format!("waiting: the lease of {holder}{since} has run out, but {}", blocked(&find())),
        (Some(left), None) => format!("waiting: held by {holder}{since}, for another {} unless renewed", Seconds(left)),
        (_, _) => format!("waiting: held by {holder}{since}"),
    };
    Line { holder: Some(holder.id.to_string()), ..Line::new("waiting", line) }
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
    let (level, line) = match outcome {
        Outcome::Command(_) | Outcome::Lost | Outcome::Signal(_) => return,
        Outcome::NotAcquired(holder, left) => (Level::WARN, not_acquired(holder.as_ref(), *left, waits)),
        Outcome::Unreachable(error) => {
            let msg = format!("unreachable: {error}; leave out -n or -w to wait for it");
            (Level::ERROR, Line::new("unreachable", msg).because(error))
        }
        Outcome::Refused(error) => (Level::ERROR, Line::new("refused", error).because(error)),
        Outcome::WouldWaitForItself => {
            (Level::ERROR, Line::new("refused", "held by the lockrun around this one, which would wait for itself; use another --name"))
        }
        Outcome::NotSpawned(error) => (Level::ERROR, Line::new("refused", not_spawned(*error, command))),
    };
    emit(name, level, line);
}

fn not_acquired(holder: Option<&Holder>, left: Option<Duration>, waits: bool) -> Line {
    let by = match holder {
        Some(holder) => format!("held by {holder}"),
        None => "held by whoever has its kernel lock: a copy that is about to start, or what an old holder left".to_string(),
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
