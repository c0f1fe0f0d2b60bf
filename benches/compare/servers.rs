//! lockrun on servers, each with one of its own; on etcd beside `etcdctl lock`. Kubernetes is the tests' double of an API
//! server, so its figures are lockrun's share alone.

use std::path::Path;
use std::time::Duration;

use crate::fixture::Server;
use crate::fixture::kubernetes::Kubernetes;
use crate::fixture::postgres::Postgres;
use crate::fixture::redis::Redis;
use crate::stage::{self, Stage, Tool};
use crate::{Findings, Times, failover, handover, number, tool};

pub fn table_of(dir: &Path, findings: &mut Findings) {
    println!("\non servers: hand-over from the command's end, fail-over from SIGKILL, to the next command's start");
    crate::head("");
    if Path::new("/usr/lib/postgresql").exists() {
        rows(&Postgres::start(), "PostgreSQL", 20, dir, findings);
    } else {
        println!("PostgreSQL: not found, left out (Debian package postgresql)");
    }
    if tool("redis-cli", "redis-tools").is_some() {
        rows(&Redis::start(), "Redis", 20, dir, findings);
    }
    rows(&Kubernetes::start(), "Kubernetes", 100, dir, findings);
    if let Some(etcd) = stage::etcd() {
        let median = rows(&etcd, "etcd", 20, dir, findings);
        let etcdctl = stage::etcdctl(&etcd);
        let mut times = handovers(&etcdctl, dir);
        times.row("etcdctl lock, hand-over", None);
        findings.at_most("hand-over on etcd, of etcdctl lock's", median, Some(times.at(50)), 1.0);
    }
}

/// The median of the hand-over.
fn rows(server: &impl Server, name: &str, handover_ms: u64, dir: &Path, findings: &mut Findings) -> Duration {
    let tool = lockrun(&server.url());
    let mut times = handovers(&tool, dir);
    let median = times.at(50);
    times.row(&format!("{name}, hand-over"), None);
    findings.at_most_ms(&format!("{name}, hand-over"), median, handover_ms);
    for what in ["front", "guard"] {
        let tries = number("BENCH_TRIES", 20);
        let (mut times, overlaps) = failover::after(&tool, dir, what, false, tries);
        times.row(&format!("{name}, {what} killed"), None);
        findings.at_most_ms(&format!("{name}, {what} killed, the longest of {tries}"), times.at(100), 200);
        findings.is(&format!("{name}, {what} killed: {overlaps} overlaps in {tries}"), overlaps == 0);
    }
    median
}

fn handovers(tool: &Tool, dir: &Path) -> Times {
    let mut times = Times::default();
    let mut stage = Stage::new(tool, dir, 1, false);
    for round in 0..number("BENCH_ROUNDS", 50) + 3 {
        let time = handover::once(&mut stage, tool.name, 1);
        if round >= 3 {
            times.push(time); // the first only warm the caches
        }
    }
    times
}

fn lockrun(url: &str) -> Tool<'static> {
    let waiting = || {
        std::thread::sleep(stage::SETTLE);
        1
    };
    stage::lockrun_at(url.into(), &["--name", "bench"], waiting)
}
