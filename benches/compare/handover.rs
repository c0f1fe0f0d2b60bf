//! From the end of one command to the start of the next, with more and more that wait.

use std::path::Path;
use std::time::Duration;

use crate::fixture::etcd::Etcd;
use crate::stage::{self, Stage, Tool};
use crate::{Findings, Times, number};

const WAITERS: [usize; 4] = [1, 10, 100, 1000];
/// An etcdctl is 20 MB.
const WAITERS_OF_ETCDCTL: usize = 10;

pub fn table_of(dir: &Path, etcd: &Option<Etcd>, findings: &mut Findings) {
    let mut flock_with_one = None;
    let mut lockrun_with_one = None;
    println!("\nhand-over, from the command's end to the next command's start: {} times, two rounds of each tool in turn", rounds());
    crate::head("waiters");
    for waiters in WAITERS {
        let tools = [
            stage::flock(dir),
            stage::setlock(dir),
            Some(stage::lockrun(dir, &[])),
            etcd.as_ref().filter(|_| waiters <= WAITERS_OF_ETCDCTL).map(stage::etcdctl),
        ];
        let tools: Vec<Tool> = tools.into_iter().flatten().collect();
        for (tool, times) in tools.iter().zip(&mut in_turn(&tools, dir, waiters)) {
            let median = times.at(50);
            match (tool.name, waiters) {
                ("flock", 1) => flock_with_one = Some(median),
                ("lockrun", 1) => lockrun_with_one = Some(median),
                _ => {}
            }
            times.row(&format!("{:<14} {waiters:>6}", tool.name), flock_with_one);
            match tool.name {
                "lockrun" if waiters == 1 => findings.at_most("hand-over, of flock's", median, flock_with_one, 2.0),
                "lockrun" if waiters == 1000 => findings.at_most("hand-over among 1000, of that with one", median, lockrun_with_one, 1.5),
                _ => {}
            }
        }
    }
}

fn rounds() -> usize {
    number("BENCH_ROUNDS", 50)
}

/// Two rounds of each tool, so that whatever else the machine does meets all of them.
pub fn in_turn(tools: &[Tool], dir: &Path, waiters: usize) -> Vec<Times> {
    let mut times: Vec<Times> = tools.iter().map(|_| Times::default()).collect();
    for _ in 0..2 {
        for (tool, times) in tools.iter().zip(&mut times) {
            let mut stage = Stage::new(tool, dir, waiters, false);
            for round in 0..rounds().div_ceil(2) + 1 {
                let time = once(&mut stage, tool.name, waiters);
                if round > 0 {
                    times.push(time); // the first only warms the caches
                }
            }
        }
    }
    times
}

fn once(stage: &mut Stage, name: &str, waiters: usize) -> Duration {
    stage.fill(waiters);
    stage.end_command();
    let ended_ns = match stage.ear.next(stage::PATIENCE) {
        Some(crate::witness::Said::Ended { at_ns }) => at_ns,
        other => panic!("{name}: {other:?}"),
    };
    let (at_ns, overlap) = stage.started();
    assert!(!overlap, "{name}: two at once");
    Duration::from_nanos(at_ns.saturating_sub(ended_ns))
}
