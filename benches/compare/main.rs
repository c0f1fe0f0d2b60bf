//! lockrun beside the tools that it is compared with: `cargo bench --bench compare -- [PART]...`, parts start, handover,
//! failover, servers, idle and many; all of them unless some are named. Nothing is installed: what is missing is said and left out.
//! At the end stands what was asked of lockrun, and whether it was met.

mod failover;
#[path = "../../tests/fixture/mod.rs"]
mod fixture;
mod handover;
mod idle;
mod many;
mod servers;
mod stage;
mod start;
mod witness;

use std::path::{Path, PathBuf};
use std::time::Duration;

const LOCKRUN: &str = env!("CARGO_BIN_EXE_lockrun");

/// One line of a table, and how to measure it once.
struct Row<'a> {
    name: &'static str,
    measure: Box<dyn FnMut() -> Duration + 'a>,
    times: Times,
}

impl<'a> Row<'a> {
    fn new(name: &'static str, measure: impl FnMut() -> Duration + 'a) -> Row<'a> {
        Row { name, measure: Box::new(measure), times: Times::default() }
    }
}

/// What was measured, in the end sorted.
#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    fn len(&self) -> usize {
        self.0.len()
    }

    /// So many per cent are not longer.
    fn at(&mut self, percent: usize) -> Duration {
        self.0.sort();
        self.0[(self.0.len() * percent / 100).min(self.0.len() - 1)]
    }

    /// Under `head`.
    fn row(&mut self, name: &str, base: Option<Duration>) {
        let [median, p10, p90] = [50, 10, 90].map(|percent| self.at(percent));
        let ratio = base.map_or("-".to_string(), |base| format!("{:.2}", median.div_duration_f64(base)));
        println!("{name:<30} {:>10.2} {:>10.2} {:>10.2} {ratio:>9}", millis(median), millis(p10), millis(p90));
    }
}

/// What was asked of lockrun, and what came out.
#[derive(Default)]
struct Findings(Vec<String>);

impl Findings {
    fn is(&mut self, what: &str, good: bool) {
        self.0.push(format!("{} {what}", if good { "met   " } else { "MISSED" }));
    }

    fn at_most_number(&mut self, what: &str, value: f64, limit: f64) {
        self.is(&format!("{what}: {value:.2} (at most {limit})"), value <= limit);
    }

    /// As a multiple of `base`, if that was measured.
    fn at_most(&mut self, what: &str, value: Duration, base: Option<Duration>, limit: f64) {
        if let Some(base) = base {
            self.at_most_number(what, value.div_duration_f64(base), limit);
        }
    }

    fn at_most_ms(&mut self, what: &str, value: Duration, limit_ms: u64) {
        self.at_most_number(&format!("{what}, ms"), millis(value), limit_ms as f64);
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == witness::ROLE) {
        return witness::play(&args[1..]);
    }
    // What loses its parent is ours, and is waited for.
    nix::sys::prctl::set_child_subreaper(true).expect("since Linux 3.4");
    let wanted = |part: &str| args.is_empty() || args.iter().any(|arg| arg == part);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut findings = Findings::default();
    if wanted("start") {
        start::table_of(dir.path(), &mut findings);
    }
    let etcd = if wanted("handover") || wanted("failover") { stage::etcd() } else { None };
    if wanted("handover") {
        handover::table_of(dir.path(), &etcd, &mut findings);
    }
    if wanted("failover") {
        failover::table_of(dir.path(), &etcd, &mut findings);
    }
    drop(etcd);
    if wanted("servers") {
        servers::table_of(dir.path(), &mut findings);
    }
    if wanted("idle") {
        idle::table_of(dir.path(), &mut findings);
    }
    if wanted("many") {
        many::table_of(dir.path(), &mut findings);
    }
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    println!("\nasked of lockrun (load of the machine now: {})", load.trim_end());
    findings.0.iter().for_each(|line| println!("{line}"));
}

/// Measures row after row, round after round, so that whatever else the machine does meets all of them alike. Ratios are
/// to the row `base`, where it is there. The medians.
fn table(title: &str, rounds: usize, base: &str, rows: Vec<Option<Row>>) -> Vec<(&'static str, Duration)> {
    let mut rows: Vec<Row> = rows.into_iter().flatten().collect();
    for round in 0..rounds + 3 {
        for row in &mut rows {
            let time = (row.measure)();
            if round >= 3 {
                row.times.push(time); // the first rounds only warm the caches
            }
        }
    }
    let base_median = rows.iter_mut().find(|row| row.name == base).map(|row| row.times.at(50));
    println!("\n{title}: median of {rounds} in one interleaved run");
    head("");
    for row in &mut rows {
        row.times.row(row.name, base_median);
    }
    rows.iter_mut().map(|row| (row.name, row.times.at(50))).collect()
}

fn head(first: &str) {
    println!("{first:<30} {:>10} {:>10} {:>10} {:>9}", "median ms", "p10 ms", "p90 ms", "x flock");
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// From the environment.
fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{variable}: {value} is not a number")))
}

/// Where a tool is; `None`, and a word about it, if it is not installed.
fn tool(name: &str, package: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| Path::is_file(file));
    if found.is_none() {
        println!("{name}: not found, left out (Debian package {package})");
    }
    found
}
