//! What the server stores promise. No kernel lock: whoever dies without a release is waited for as long as its record says,
//! by watching that it stands still.

use super::Leaves::Nothing;
use super::Needs::{Copies, Machine, Network, Server};
use super::{CLOCK, LATE, Table, Times, rule};

/// Longer than SQLite's: an attempt is half a heartbeat, and a request on a loaded machine waits its turn in lockrun, in the
/// network in between and in the server.
pub const TTL: i64 = 4000;
pub const HEARTBEAT: i64 = 500;
const GRACE: i64 = 300;
pub const KILL_TIME: i64 = 500;
/// A claim or a release that fails is looked at again after so long.
const RETRY: i64 = 2 * HEARTBEAT;
/// From the last change of a record until one who watches it claims: it is first seen up to a heartbeat and an attempt later.
const WATCH: i64 = TTL * 11 / 10 + HEARTBEAT * 3 / 2;

pub static TABLE: Table = Table {
    times: Times { ttl: TTL, heartbeat: HEARTBEAT, grace: GRACE, kill_time: KILL_TIME },
    rules: &[
        // The guard's last will, or the front's release, of which the server tells the others.
        rule("kill-front", Copies, KILL_TIME, None, Nothing),
        rule("kill-guard", Copies, KILL_TIME, None, Nothing),
        // What has called setsid lives, and nothing keeps the next one out (lease.md 6): the harness ends it at once.
        rule("kill-both", Copies, WATCH, None, Nothing),
        rule("kill-command", Copies, GRACE + KILL_TIME, None, Nothing),
        rule("kill-waiter", Copies, KILL_TIME, None, Nothing),
        rule("stop-front", Copies, WATCH, None, Nothing),
        rule("stop-guard", Copies, WATCH, None, Nothing),
        // As with kill-both: stopped for longer than a moment, what has called setsid is ended by the harness.
        rule("stop-both", Copies, WATCH, None, Nothing),
        rule("stop-command", Copies, 0, Some(GRACE + KILL_TIME), Nothing),
        // It may be granted the lease before it stops or while its guard is stopped.
        rule("stop-waiter", Copies, WATCH, Some(TTL), Nothing),
        // A last renewal that nobody has seen yet is seen, and watched, only when it is up again.
        rule("server-killed", Server, WATCH, Some(WATCH), Nothing),
        // Beside that, what was asked meanwhile is done afterwards: a renewal that its sender has given up moves the record once more.
        rule("server-frozen", Server, WATCH, Some(WATCH), Nothing),
        // The same, in the network: bytes are held back and delivered in the end.
        rule("holder-cut-off", Network, WATCH, Some(WATCH), Nothing),
        rule("waiter-cut-off", Network, WATCH, Some(WATCH), Nothing),
        rule("all-cut-off", Network, WATCH, Some(WATCH), Nothing),
        rule("slow", Network, WATCH, Some(WATCH), Nothing),
        // Done, and not known to be done: a claim whose owner never hears of it runs out.
        rule("replies-lost", Network, WATCH, Some(WATCH), Nothing),
        rule("reset", Network, RETRY, None, Nothing),
        rule("reset-mid-answer", Network, RETRY, Some(RETRY), Nothing),
        rule("starved", Machine, WATCH, Some(WATCH), Nothing),
        rule(CLOCK, Machine, 0, Some(0), Nothing),
        rule(LATE, Machine, 0, Some(0), Nothing),
    ],
};
