//! What each path answers, from what was told last and what time it is. Must never call a healthy standby unwell, nor a
//! holder whose deadline has passed well.

use std::time::Duration;

use serde::Serialize;

use super::Site;
use crate::lease::{Holder, Moment, Seconds, State};
use crate::report::timestamp;
use crate::text::json_line;
use crate::told::Told;

/// A loop that is so late hangs. Long, because a machine may be loaded; the deadline is the guard's to keep meanwhile.
const HANGS: Duration = Duration::from_secs(10);

/// 200 or 503, each with its line.
pub type Verdict = Result<String, String>;

/// This process does what it must: restarting it would mend nothing.
pub fn live(told: &Told, now: Moment) -> Verdict {
    if told.view.dead_by.is_some_and(|at| at <= now) {
        return Err("past its deadline, and still there".to_string());
    }
    if let Some(at) = told.due_at.filter(|at| *at + HANGS <= now) {
        return Err(format!("hangs: nothing was done for {}", Seconds(now.since(at))));
    }
    Ok(line(told))
}

/// It runs the command, or would if the lease came free. A standby that cannot reach the store would not: a rollout to such
/// pods must stop.
pub fn ready(told: &Told, now: Moment) -> Verdict {
    live(told, now)?;
    let well = match told.view.state {
        State::Waiting => told.view.answered && told.view.error.is_none(),
        State::Starting | State::Holding => is_good(told, now),
        State::Stopping | State::Releasing | State::Over => false,
    };
    if well { Ok(line(told)) } else { Err(line(told)) }
}

/// The one that runs the command, while its lease is good.
pub fn leader(told: &Told, now: Moment) -> Verdict {
    live(told, now)?;
    if told.view.state == State::Holding && is_good(told, now) { Ok(line(told)) } else { Err(line(told)) }
}

fn is_good(told: &Told, now: Moment) -> bool {
    told.view.lease.is_some_and(|lease| now < lease.kill_at)
}

/// `holding, token 1767323045678` or `waiting, held by web-1:4121`, and what is wrong with the store.
fn line(told: &Told) -> String {
    let mut line = word(told.view.state).to_string();
    if let Some(lease) = &told.view.lease {
        line += &format!(", token {}", lease.token);
    }
    if let Some(holder) = &told.view.waits_for {
        line += &format!(", held by {holder}");
    }
    match &told.view.error {
        Some(error) => line += &format!("; the store: {error}"),
        None if !told.view.answered && told.view.state == State::Waiting => line += "; the store has not answered yet",
        None => {}
    }
    line
}

pub fn word(state: State) -> &'static str {
    match state {
        State::Waiting => "waiting",
        State::Starting => "starting",
        State::Holding => "holding",
        State::Stopping => "stopping",
        State::Releasing => "releasing",
        State::Over => "over",
    }
}

#[derive(Serialize)]
struct Status {
    name: String,
    state: &'static str,
    since: String,
    live: bool,
    ready: bool,
    leader: bool,
    token: Option<i64>,
    /// As `status --json` has it: who holds the lease, this process or another.
    holder: Option<Process>,
    acquired_at: Option<String>,
    renewed_at: Option<String>,
    ttl_ms: Option<u64>,
    /// SIGKILL falls then, unless the lease is renewed.
    kill_in_ms: Option<u64>,
    error: Option<String>,
    process: Process,
    version: &'static str,
}

/// Without the command: a port is open to more people than a database, and arguments may hold secrets.
#[derive(Serialize)]
struct Process {
    id: String,
    hostname: String,
    pid: u32,
}

impl From<&Holder> for Process {
    fn from(holder: &Holder) -> Process {
        Process { id: holder.id.to_string(), hostname: holder.hostname.clone(), pid: holder.pid }
    }
}

pub fn status(site: &Site, told: &Told, now: Moment) -> String {
    let lease = told.view.lease;
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    json_line(&Status {
        name: site.name.to_string(),
        state: word(told.view.state),
        since: timestamp(told.since_ms),
        live: live(told, now).is_ok(),
        ready: ready(told, now).is_ok(),
        leader: leader(told, now).is_ok(),
        token: lease.map(|lease| lease.token.0),
        holder: if lease.is_some() { Some((&site.me).into()) } else { told.view.waits_for.as_ref().map(Process::from) },
        acquired_at: lease.map(|lease| timestamp(lease.acquired_ms)),
        renewed_at: lease.map(|lease| timestamp(lease.renewed_ms)),
        ttl_ms: lease.map(|lease| millis(lease.ttl)),
        kill_in_ms: lease.map(|lease| millis(lease.kill_at.since(now))),
        error: told.view.error.clone(),
        process: (&site.me).into(),
        version: env!("CARGO_PKG_VERSION"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{Lease, Token, View};

    fn at(s: u64) -> Moment {
        Moment::from_nanos(s * 1_000_000_000)
    }

    fn waiting() -> Told {
        let mut told = Told::nothing(at(0), 0);
        (told.view.answered, told.due_at) = (true, None);
        told
    }

    /// Renewed at 0 with a TTL of 60 s, to be renewed again at 5.
    fn holding(state: State) -> Told {
        let ttl = Duration::from_secs(60);
        let lease = Lease { token: Token(7), ttl, acquired_ms: 0, renewed_ms: 0, asked_at: at(0), kill_at: at(58) };
        let view = View { state, lease: Some(lease), dead_by: Some(at(59)), error: None, answered: true, waits_for: None };
        Told { view, due_at: Some(at(5)), ..waiting() }
    }

    fn verdicts(told: &Told, now: Moment) -> [bool; 3] {
        [live(told, now), ready(told, now), leader(told, now)].map(|verdict| verdict.is_ok())
    }

    #[test]
    fn a_standby_is_live_and_ready_however_long_nothing_happens() {
        assert_eq!(verdicts(&waiting(), at(1_000_000)), [true, true, false]);
    }

    #[test]
    fn a_standby_that_cannot_reach_the_store_or_has_not_yet_is_not_ready() {
        let mut told = waiting();
        told.view.error = Some("no route to host".to_string());
        assert_eq!(verdicts(&told, at(1)), [true, false, false]);
        assert!(ready(&told, at(1)).unwrap_err().contains("no route to host"));
        assert_eq!(verdicts(&Told::nothing(at(0), 0), at(1)), [true, false, false]);
    }

    #[test]
    fn a_holder_that_rides_out_a_failure_of_the_store_is_well() {
        let mut told = holding(State::Holding);
        (told.view.error, told.due_at) = (Some("busy".to_string()), Some(at(47)));
        assert_eq!(verdicts(&told, at(46)), [true, true, true]);
    }

    #[test]
    fn a_loop_that_does_not_turn_when_it_must_hangs() {
        let told = holding(State::Holding);
        assert_eq!(verdicts(&told, at(14)), [true, true, true]);
        assert_eq!(verdicts(&told, at(15)), [false, false, false]);
    }

    #[test]
    fn no_lease_is_good_at_its_deadline_and_nothing_may_be_left_a_little_later() {
        let told = Told { due_at: Some(at(58)), ..holding(State::Holding) };
        assert_eq!(verdicts(&told, at(57)), [true, true, true]);
        assert_eq!(verdicts(&told, at(58)), [true, false, false]);
        assert_eq!(verdicts(&told, at(59)), [false, false, false]);
        // Dead in time: the release is tried for as long as it may take.
        let mut told = holding(State::Releasing);
        (told.view.dead_by, told.due_at) = (None, Some(at(61)));
        assert_eq!(verdicts(&told, at(60)), [true, false, false]);
    }

    #[test]
    fn only_a_command_that_runs_leads() {
        assert_eq!(verdicts(&holding(State::Starting), at(1)), [true, true, false]);
        assert_eq!(verdicts(&holding(State::Stopping), at(1)), [true, false, false]);
    }
}
