//! Something is killed with SIGKILL: how long until the next command starts, and whether two ever ran at once.

use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::fixture::etcd::Etcd;
use crate::stage::{self, Stage, Tool, send};
use crate::{Findings, Times, number};

/// A peer that has not started the next command by then starts it when the old one ends.
const NEVER: Duration = Duration::from_secs(15);
/// Of the peers, which all do the same each time, and slowly.
const TRIES_OF_PEERS: usize = 3;

pub fn table_of(dir: &Path, etcd: &Option<Etcd>, findings: &mut Findings) {
    println!("\nfail-over, from SIGKILL to the next command's start: lockrun {} tries, others {TRIES_OF_PEERS}", tries());
    crate::head("");
    let hits = [("front", true, 100), ("guard", true, 100), ("both", false, 1100), ("command", false, 100)];
    for hit in hits {
        row_of(&stage::lockrun(dir, &[]), "lockrun", hit, dir, findings);
    }
    for tool in [stage::flock(dir), etcd.as_ref().map(stage::etcdctl)].into_iter().flatten() {
        peer(&tool, dir);
    }
}

fn tries() -> usize {
    number("BENCH_TRIES", 20)
}

/// What is killed, whether there is a process that left its group and its parent, and how long it may take, in ms.
type Hit = (&'static str, bool, u64);

/// Of lockrun, on the store `name`.
pub fn row_of(tool: &Tool, name: &str, (what, with_daemon, limit_ms): Hit, dir: &Path, findings: &mut Findings) {
    let tries = tries();
    let (mut times, mut overlaps) = (Times::default(), 0);
    let mut stage = Stage::new(tool, dir, 1, with_daemon);
    for _ in 0..tries {
        stage.fill(1);
        let killed_ns = strike(&stage, what);
        let (at_ns, overlap) = stage.started();
        overlaps += usize::from(overlap);
        times.push(Duration::from_nanos(at_ns.saturating_sub(killed_ns)));
    }
    drop(stage);
    times.row(&format!("{name}, {what} killed"), None);
    findings.at_most_ms(&format!("fail-over of {name}, {what} killed, the longest of {tries}"), times.at(100), limit_ms);
    findings.is(&format!("fail-over of {name}, {what} killed: {overlaps} overlaps in {tries}"), overlaps == 0);
}

fn strike(stage: &Stage, what: &str) -> u64 {
    let (front, guard) = stage.holder().expect("somebody runs");
    let at_ns = lockrun::clock::now().nanos();
    match (what, guard) {
        ("command", _) => send(stage.command, Signal::SIGKILL),
        ("guard", Some(guard)) => send(guard, Signal::SIGKILL),
        ("both", Some(guard)) => {
            send(front, Signal::SIGKILL);
            send(guard, Signal::SIGKILL);
        }
        _ => send(front, Signal::SIGKILL),
    }
    at_ns
}

/// Its wrapper is killed: the next may start beside the command, or when the command ends by itself.
fn peer(tool: &Tool, dir: &Path) {
    let mut times = Times::default();
    let mut overlaps = 0;
    for _ in 0..TRIES_OF_PEERS {
        let mut stage = Stage::new(tool, dir, 1, false);
        let struck = Instant::now();
        let killed_ns = strike(&stage, "front");
        let old = stage.command;
        match stage.ear.start(NEVER) {
            Some((at_ns, pid, overlap)) => {
                stage.command = pid;
                overlaps += usize::from(overlap);
                times.push(Duration::from_nanos(at_ns.saturating_sub(killed_ns)));
            }
            None => {
                println!("{:<30} not within {:.0?}: the command lives on, and keeps the lock", tool.name, struck.elapsed());
                send(old, Signal::SIGTERM);
                return;
            }
        }
        send(old, Signal::SIGTERM);
    }
    times.row(&format!("{}, wrapper killed", tool.name), None);
    println!("{:<30} overlaps: {overlaps} of {TRIES_OF_PEERS}", "");
}
