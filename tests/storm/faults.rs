//! The table of faults: where each can be injected, and what the protocol promises while it lasts and after it. Must never
//! inject one itself.

/// The times that all copies are given, in milliseconds.
pub const TTL: i64 = 3000;
pub const HEARTBEAT: i64 = 250;
pub const GRACE: i64 = 300;
/// From SIGKILL to everything reaped, and what a waiter adds to a kernel lock that came free (lease.md 1 and 2).
pub const KILL_TIME: i64 = 1000;
/// What a loaded machine may add to anything, and a copy's restart: it pauses up to half a second.
pub const SLACK: i64 = 2000;

/// What the command exits with when nobody ends it.
pub const OWN_CODES: [i32; 3] = [0, 3, 42];

/// What must be there for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Copies of lockrun: every store has them.
    Copies,
    /// The database's files.
    Files,
    /// The files on a file system of their own.
    Disk,
    /// The machine; it hits every ring.
    Machine,
}

/// What a ring's store offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SqliteInFolder,
    SqliteOnDisk,
}

impl Kind {
    pub fn has(self, needs: Needs) -> bool {
        match needs {
            Needs::Copies => true,
            Needs::Files => matches!(self, Kind::SqliteInFolder | Kind::SqliteOnDisk),
            Needs::Disk => self == Kind::SqliteOnDisk,
            Needs::Machine => false,
        }
    }
}

/// Nobody need run until the later of `after_start` past its beginning and, if there is one, `after_end` past its end.
#[derive(Debug)]
pub struct Rule {
    pub name: &'static str,
    pub needs: Needs,
    pub after_start: i64,
    pub after_end: Option<i64>,
    pub leaves: Leaves,
}

/// What a fault may leave beside an idle time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    Nothing,
    /// The store cannot be used while it lasts: copies that start meanwhile may exit with 125.
    Unusable,
    /// The database may be damaged until it is made anew: copies may exit with 125.
    Damage,
    /// The store cannot be used, and a front may die of SIGBUS: it maps the -shm, and a write to a page of a file that has
    /// become immutable is SIGBUS.
    ReadOnly,
    /// Damage, and a front may die of SIGBUS: pages that it has mapped are gone.
    Truncated,
    /// Record and kernel lock are gone at once: two may run for a heartbeat and the kill time (lease.md 5).
    TwoForAMoment,
}

const fn rule(name: &'static str, needs: Needs, after_start: i64, after_end: Option<i64>, leaves: Leaves) -> Rule {
    Rule { name, needs, after_start, after_end, leaves }
}

use Leaves::{Damage, Nothing, ReadOnly, Truncated, TwoForAMoment, Unusable};
use Needs::{Copies, Disk, Files, Machine};

pub const RULES: &[Rule] = &[
    // The guard's last will, or the front's release: nobody waits for a TTL.
    rule("kill-front", Copies, KILL_TIME, None, Nothing),
    rule("kill-guard", Copies, KILL_TIME, None, Nothing),
    // What has called setsid keeps the next one out until the harness ends it, which is the end of this fault.
    rule("kill-both", Copies, 0, Some(KILL_TIME), Nothing),
    rule("kill-command", Copies, GRACE + KILL_TIME, None, Nothing),
    rule("kill-waiter", Copies, KILL_TIME, None, Nothing),
    rule("stop-front", Copies, TTL, None, Nothing),
    rule("stop-guard", Copies, TTL, None, Nothing),
    // The front has the kernel lock until it wakes.
    rule("stop-both", Copies, TTL, Some(KILL_TIME), Nothing),
    rule("stop-command", Copies, 0, Some(GRACE + KILL_TIME), Nothing),
    // It may be granted the lease before it stops or while its guard is stopped.
    rule("stop-waiter", Copies, TTL, Some(TTL), Nothing),
    rule("busy", Files, TTL, Some(0), Nothing),
    rule("read-only", Files, TTL, Some(0), ReadOnly),
    rule("deleted", Files, TTL, None, Nothing),
    rule("replaced-empty", Files, TTL, None, Nothing),
    rule("replaced-old", Files, TTL, None, Nothing),
    rule("corrupted", Files, TTL, Some(TTL), Damage),
    rule("wal-removed", Files, TTL, None, Damage),
    rule("shm-removed", Files, TTL, None, Damage),
    rule("shm-truncated", Files, TTL, None, Truncated),
    rule("side-removed", Files, TTL, None, Nothing),
    rule("all-removed", Files, TTL, None, TwoForAMoment),
    rule("full", Disk, TTL, Some(0), Unusable),
    rule("frozen", Disk, TTL, Some(0), Nothing),
    rule("starved", Machine, TTL, Some(TTL), Nothing),
    rule(CLOCK, Machine, 0, Some(0), Nothing),
    // Not drawn: the harness does or notices them.
    rule(REPAIR, Files, TTL, None, Nothing),
    rule(LATE, Machine, 0, Some(0), Nothing),
];

/// Steps the wall clock of the whole machine: only when it is asked for by name.
pub const CLOCK: &str = "clock";
/// Copies refuse a damaged database: it is made anew, as an operator would.
pub const REPAIR: &str = "repaired";
/// The harness itself was not run for a while, so nothing else may have been.
pub const LATE: &str = "late";

pub fn by_name(name: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.name == name)
}

/// The database's files are other ones afterwards: a holder needs a beat to see it, and until then no other file is touched.
pub fn touches_files(rule: &Rule) -> bool {
    rule.needs == Files && !matches!(rule.name, "busy" | "read-only")
}

/// It makes a damaged database whole.
pub fn makes_anew(rule: &Rule) -> bool {
    matches!(rule.name, "deleted" | "replaced-empty" | "replaced-old" | "corrupted" | "all-removed" | REPAIR)
}

/// Those that are drawn, by their names; none given: all but those that must be asked for.
pub fn asked(names: Option<&str>) -> Result<Vec<&'static Rule>, String> {
    let drawable = |rule: &&Rule| ![REPAIR, LATE].contains(&rule.name);
    let rules: Vec<&'static Rule> = match names {
        None => RULES.iter().filter(drawable).filter(|rule| rule.name != CLOCK).collect(),
        Some("none") => Vec::new(),
        Some(names) => {
            let named = |name| by_name(name).filter(drawable).ok_or_else(|| format!("--faults {name}: not known; none, or of {}", known()));
            names.split(',').map(named).collect::<Result<_, _>>()?
        }
    };
    match rules.iter().find(|rule| touches_files(rule)) {
        // The token of a record that is gone is known by the clock alone (lease.md 3).
        Some(rule) if rules.iter().any(|rule| rule.name == CLOCK) => Err(format!("--faults {CLOCK},{}: tokens could fall", rule.name)),
        Some(_) | None => Ok(rules),
    }
}

pub fn known() -> String {
    let names: Vec<_> = RULES.iter().map(|rule| rule.name).filter(|name| ![REPAIR, LATE].contains(name)).collect();
    names.join(",")
}
