//! What operators see: `status` and `check`. Reads the same state as everybody, decides nothing, changes nothing.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value};

use crate::clock;
use crate::config::Target;
use crate::error::Failure;
use crate::exit;
use crate::lease::{Evidence, LeaseName, Moment, Seconds, Snapshot, Token};
use crate::report::timestamp;
use crate::store::any::{Address, AnyStore};
use crate::store::{Purpose, Settings, Store, StoreError};
use crate::text::{json_line, one_line};

/// What goes to stdout, and the exit code.
pub struct Answer {
    pub text: String,
    pub code: i32,
}

#[derive(Serialize)]
struct Locks {
    locks: Vec<Lock>,
}

#[derive(Serialize)]
struct Lock {
    name: String,
    state: State,
    token: Option<i64>,
    holder: Option<HolderView>,
    acquired_at: Option<String>,
    renewed_at: Option<String>,
    ttl_ms: Option<u64>,
    expires_in_ms: Option<u64>,
    stopping: bool,
    paused: Option<String>,
    blocked_by_pids: Vec<i32>,
    waiters: Option<u64>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Held,
    Free,
    Expired,
}

#[derive(Serialize)]
struct HolderView {
    id: String,
    hostname: String,
    pid: Option<u32>,
    command: Vec<String>,
}

impl Lock {
    fn new(target: &Target, name: &LeaseName, snapshot: Snapshot) -> Lock {
        let left = match snapshot.evidence {
            Evidence::Left(left) => Some(left),
            Evidence::Gone(_) | Evidence::NoClock | Evidence::Unchanged(_) => None,
        };
        let state = match (snapshot.holder(), left) {
            (None, _) => State::Free,
            (Some(_), Some(Duration::ZERO)) => State::Expired,
            (Some(_), _) => State::Held,
        };
        let held = snapshot.record.as_ref().filter(|record| record.holder.is_some());
        let holder = snapshot.holder().map(|holder| HolderView {
            id: holder.id.to_string(),
            hostname: holder.hostname.clone(),
            pid: Some(holder.pid).filter(|pid| *pid != 0),
            command: holder.command.clone(),
        });
        let blocked_by_pids = if state == State::Held { Vec::new() } else { target.address.lock_holders(name) };
        Lock {
            name: name.to_string(),
            state,
            token: snapshot.token().filter(|token| *token != Token::default()).map(|token| token.0),
            holder,
            acquired_at: held.map(|record| timestamp(record.acquired_ms)),
            renewed_at: held.map(|record| timestamp(record.renewed_ms)),
            ttl_ms: held.map(|record| millis(record.ttl)),
            expires_in_ms: held.and(left).map(millis),
            stopping: held.is_some_and(|record| record.stopping),
            paused: None,
            blocked_by_pids,
            waiters: None,
        }
    }

    fn line(&self) -> String {
        let token = self.token.map(|token| format!(", token {token}")).unwrap_or_default();
        let blocked = match self.blocked_by_pids.as_slice() {
            [] => String::new(),
            pids => format!("; processes {pids:?} still have the kernel lock (end them: kill PID)"),
        };
        let Some(holder) = &self.holder else { return format!("{}: free{token}{blocked}", self.name) };
        let command = if holder.command.is_empty() { String::new() } else { format!(" ({})", holder.command.join(" ")) };
        let pid = holder.pid.map(|pid| format!(":{pid}")).unwrap_or_default();
        let since = self.acquired_at.as_deref().unwrap_or("?");
        let renewed = self.renewed_at.as_deref().unwrap_or("?");
        let until = match (self.state, self.expires_in_ms) {
            (State::Expired, _) => "expired".to_string(),
            (_, Some(ms)) => format!("expires in {} unless renewed", Seconds(Duration::from_millis(ms))),
            (_, None) => "no clock in common: when it expires cannot be known".to_string(),
        };
        let stopping = if self.stopping { ", stopping" } else { "" };
        format!(
            "{}: {} by {}{pid}{command} since {since}, renewed {renewed}, {until}{stopping}{token}{blocked}",
            self.name,
            if self.state == State::Expired { "was held" } else { "held" },
            holder.hostname
        )
    }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Inside the runtime.
pub async fn status(target: &Target, json: bool) -> Result<Answer, Failure> {
    if !target.address.exists() {
        return Err(Failure::refused(format!("{}: there is no such database; nothing was created", target.address)));
    }
    let asked = target.one();
    let store = viewer(target);
    let found = match &asked {
        Some(name) => vec![(name.clone(), failure(target, store.read(name, clock::now()).await)?)],
        None => failure(target, store.list(clock::now()).await)?,
    };
    let locks: Vec<Lock> = found.into_iter().map(|(name, snapshot)| Lock::new(target, &name, snapshot)).collect();
    let held = locks.iter().any(|lock| lock.state == State::Held);
    let text = match (json, locks.as_slice()) {
        (true, _) => json_line(&Locks { locks }),
        (false, []) => "no lease was ever taken here\n".to_string(),
        (false, locks) => locks.iter().map(|lock| one_line(&lock.line()) + "\n").collect(),
    };
    Ok(Answer { text, code: if asked.is_some() && !held { exit::NO } else { 0 } })
}

#[derive(Serialize)]
struct Check {
    usable: bool,
    store: &'static str,
    /// Of this store only.
    #[serde(flatten)]
    details: Map<String, Value>,
    ttl_ms: u64,
    heartbeat_ms: u64,
    grace_ms: u64,
    term_after_ms: u64,
    kill_after_ms: u64,
    dead_after_ms: u64,
    /// Of the lease, if it is not held: what keeps the next copy out.
    blocked_by_pids: Vec<i32>,
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holds: Option<bool>,
}

/// Inside the runtime.
pub async fn check(target: &Target, json: bool, token: Option<i64>) -> Result<Answer, Failure> {
    let mut facts = target.address.known();
    let mut holds = token.map(|_| false);
    let mut blocked_by_pids = Vec::new();
    if target.address.exists() {
        let (store, name) = (viewer(target), target.lease());
        let checked = failure(target, store.check().await)?;
        facts.details.extend(checked.details);
        facts.warnings.extend(checked.warnings);
        let lock = Lock::new(target, &name, failure(target, store.read(&name, clock::now()).await)?);
        holds = token.map(|token| lock.state == State::Held && lock.token == Some(token));
        blocked_by_pids = lock.blocked_by_pids;
    }
    let (timing, zero) = (target.timing, Moment::default());
    let check = Check {
        usable: true,
        store: target.address.kind(),
        details: facts.details.into_iter().map(|(name, value)| (name.to_string(), value)).collect(),
        ttl_ms: millis(timing.ttl),
        heartbeat_ms: millis(timing.heartbeat),
        grace_ms: millis(timing.grace),
        term_after_ms: millis(timing.term_at(zero).since(zero)),
        kill_after_ms: millis(timing.kill_at(zero).since(zero)),
        dead_after_ms: millis(timing.dead_by(zero).since(zero)),
        blocked_by_pids,
        warnings: facts.warnings,
        holds,
    };
    let code = if holds == Some(false) { exit::NO } else { 0 };
    let text = if json { json_line(&check) } else { check.text(&target.address) };
    Ok(Answer { text, code })
}

impl Check {
    /// `journal mode wal, file system ext, SQLite 3.53.2`, or what a server says of itself.
    fn state(&self, address: &Address) -> String {
        let word = |name: &str| self.details.get(name).and_then(Value::as_str).unwrap_or("?");
        one_line(&match address {
            Address::Sqlite { .. } => {
                let state = match self.details.get("journal_mode") {
                    Some(Value::String(mode)) => format!("journal mode {mode}"),
                    _ => "not there yet, will be made".to_string(),
                };
                format!("{state}, file system {}, SQLite {}", word("file_system"), word("sqlite_version"))
            }
            #[cfg(feature = "tls")]
            _ => {
                let shown = self.details.iter().filter(|(name, _)| *name != "address").map(|(name, value)| match value {
                    Value::String(text) => format!("{} {text}", name.replace('_', " ")),
                    value => format!("{} {value}", name.replace('_', " ")),
                });
                shown.collect::<Vec<_>>().join(", ")
            }
        })
    }

    fn text(&self, address: &Address) -> String {
        let mut text = String::new();
        let seconds = |ms: u64| Seconds(Duration::from_millis(ms)).to_string();
        let _ = writeln!(text, "{}: usable ({})", one_line(&address.to_string()), self.state(address));
        let _ = writeln!(
            text,
            "ttl {}, renewed every {}; without a renewal: stop signal after {}, SIGKILL after {}, all dead after {}",
            seconds(self.ttl_ms),
            seconds(self.heartbeat_ms),
            seconds(self.term_after_ms),
            seconds(self.kill_after_ms),
            seconds(self.dead_after_ms)
        );
        let scope = match address.is_server() {
            false => {
                "one machine only: any number of processes, and of containers that mount this folder; with the kernel lock the \
                 next one starts about 1 s after a kill -9 of a whole tree, without it after the ttl"
            }
            true => {
                "any number of machines that reach this server; after a kill -9 of a whole tree the next one starts when it has \
                 seen the record unchanged for the ttl and a tenth"
            }
        };
        let _ = writeln!(text, "{scope}");
        for warning in &self.warnings {
            let _ = writeln!(text, "warning: {}", one_line(warning));
        }
        if !self.blocked_by_pids.is_empty() {
            let pids = self.blocked_by_pids.iter().map(i32::to_string).collect::<Vec<_>>().join(" ");
            let _ = writeln!(text, "processes of an old holder have the kernel lock and keep the next copy out; end them: kill {pids}");
        }
        match self.holds {
            None => {}
            Some(true) => text.push_str("the token holds\n"),
            Some(false) => text.push_str("the token does not hold\n"),
        }
        text
    }
}

fn viewer(target: &Target) -> AnyStore {
    let settings = Settings { purpose: Purpose::Look, timing: target.timing, now: clock::now, wall_ms: clock::wall_ms };
    AnyStore::new(target.address.clone(), settings)
}

fn failure<T>(target: &Target, result: Result<T, StoreError>) -> Result<T, Failure> {
    let address = &target.address;
    result.map_err(|error| match error {
        StoreError::Refused(why) => Failure::refused(format!("{address}: {why}")),
        StoreError::Unknown(why) => Failure::unreachable(format!("{address}: {why}; try again")),
    })
}
