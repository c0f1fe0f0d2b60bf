//! What SQLite promises: the kernel lock shortens most waits, and what lives on keeps the next one out by it.

use super::Leaves::{Damage, Nothing, ReadOnly, Truncated, TwoForAMoment, Unusable};
use super::Needs::{Copies, Disk, Files, Machine};
use super::{CLOCK, LATE, REPAIR, Rule, Table, Times, rule};

pub const TTL: i64 = 3000;
pub const HEARTBEAT: i64 = 250;
const GRACE: i64 = 300;
/// Also what a waiter adds to a kernel lock that came free.
pub const KILL_TIME: i64 = 1000;

pub static TABLE: Table = Table {
    times: Times { ttl: TTL, heartbeat: HEARTBEAT, grace: GRACE, kill_time: KILL_TIME },
    rules: &[
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
        rule(REPAIR, Files, TTL, None, Nothing),
        rule(LATE, Machine, 0, Some(0), Nothing),
    ],
};

/// The database's files are other ones afterwards: a holder needs a beat to see it, and until then no other file is touched.
pub fn touches_files(rule: &Rule) -> bool {
    rule.needs == Files && !matches!(rule.name, "busy" | "read-only")
}

/// It makes a damaged database whole.
pub fn makes_anew(rule: &Rule) -> bool {
    matches!(rule.name, "deleted" | "replaced-empty" | "replaced-old" | "corrupted" | "all-removed" | REPAIR)
}
