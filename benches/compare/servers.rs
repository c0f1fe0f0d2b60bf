//! lockrun on servers, each with one of its own; on etcd beside `etcdctl lock`. Kubernetes is the tests' double of an API
//! server, so its figures are lockrun's share alone.

use std::path::Path;

use crate::fixture::Server;
use crate::fixture::kubernetes::Kubernetes;
use crate::fixture::postgres::Postgres;
use crate::fixture::redis::Redis;
use crate::stage::{self, Tool};
use crate::{Findings, failover, handover, tool};

pub fn table_of(dir: &Path, findings: &mut Findings) {
    println!("\non servers: hand-over from the command's end, fail-over from SIGKILL, to the next command's start");
    crate::head("");
    if Path::new("/usr/lib/postgresql").exists() {
        rows(&Postgres::start(), "PostgreSQL", 20, None, dir, findings);
    } else {
        println!("PostgreSQL: not found, left out (Debian package postgresql)");
    }
    if tool("redis-cli", "redis-tools").is_some() {
        rows(&Redis::start(), "Redis", 20, None, dir, findings);
    }
    rows(&Kubernetes::start(), "Kubernetes", 100, None, dir, findings);
    if let Some(etcd) = stage::etcd() {
        rows(&etcd, "etcd", 20, Some(stage::etcdctl(&etcd)), dir, findings);
    }
}

/// In turn with a peer on the same server, which lockrun is to be no slower than.
fn rows(server: &impl Server, name: &str, handover_ms: u64, peer: Option<Tool>, dir: &Path, findings: &mut Findings) {
    let tools: Vec<Tool> = [Some(lockrun(&server.url())), peer].into_iter().flatten().collect();
    let mut times = handover::in_turn(&tools, dir, 1);
    let median = times[0].at(50);
    times[0].row(&format!("{name}, hand-over"), None);
    findings.at_most_ms(&format!("{name}, hand-over"), median, handover_ms);
    for (peer, times) in tools.iter().zip(&mut times).skip(1) {
        times.row(&format!("{}, hand-over", peer.name), None);
        findings.at_most(&format!("{name}, hand-over, of {}'s", peer.name), median, Some(times.at(50)), 1.0);
    }
    for what in ["front", "guard"] {
        failover::row_of(&tools[0], name, (what, false, 200), dir, findings);
    }
}

fn lockrun(url: &str) -> Tool<'static> {
    let waiting = || {
        std::thread::sleep(stage::SETTLE);
        1
    };
    stage::lockrun_at(url.into(), &["--name", "bench"], waiting)
}
