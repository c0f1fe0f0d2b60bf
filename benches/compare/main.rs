//! lockrun beside the tools that it is compared with: `cargo bench --bench compare`. Every table is one interleaved run;
//! nothing is installed: what is missing is said and left out.

mod start;

use std::path::{Path, PathBuf};
use std::time::Duration;

const LOCKRUN: &str = env!("CARGO_BIN_EXE_lockrun");

/// One line of a table, and how to measure it once.
struct Row<'a> {
    name: &'static str,
    measure: Box<dyn FnMut() -> Duration + 'a>,
    times: Vec<Duration>,
}

impl<'a> Row<'a> {
    fn new(name: &'static str, measure: impl FnMut() -> Duration + 'a) -> Row<'a> {
        Row { name, measure: Box::new(measure), times: Vec::new() }
    }

    fn median(&mut self) -> Duration {
        self.times.sort();
        self.times[self.times.len() / 2]
    }
}

fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    start::table_of(dir.path());
}

/// Measures row after row, round after round, so that whatever else the machine does meets all of them alike. Ratios are
/// to the row `base`, where it is there.
fn table(title: &str, rounds: usize, base: &str, rows: Vec<Option<Row>>) {
    let mut rows: Vec<Row> = rows.into_iter().flatten().collect();
    for round in 0..rounds + 3 {
        for row in &mut rows {
            let time = (row.measure)();
            if round >= 3 {
                row.times.push(time); // the first rounds only warm the caches
            }
        }
    }
    let base_median = rows.iter_mut().find(|row| row.name == base).map(Row::median);
    println!("\n{title}: median of {rounds} in one interleaved run");
    println!("{:<28} {:>10} {:>10} {:>10} {:>9}", "", "median ms", "p10 ms", "p90 ms", format!("x {base}"));
    for row in &mut rows {
        let median = row.median();
        let at = |share: usize| millis(row.times[row.times.len() * share / 100]);
        let ratio = base_median.map_or("-".to_string(), |base| format!("{:.2}", median.as_secs_f64() / base.as_secs_f64()));
        println!("{:<28} {:>10.2} {:>10.2} {:>10.2} {ratio:>9}", row.name, millis(median), at(10), at(90));
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
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
