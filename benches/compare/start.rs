//! From the start of the program to its end, around a command that does nothing: what a lock adds to it.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::{Findings, LOCKRUN, Row, table, tool};

const ROUNDS: usize = 200;
const COMMAND: &str = "/bin/true";

pub fn table_of(dir: &Path, findings: &mut Findings) {
    let flock = tool("flock", "util-linux");
    let tini = tool("tini", "tini");
    let setlock = tool("s6-setlock", "s6");
    let lock = dir.join("x.lock");
    let database = dir.join("x.db");
    let mut starts = 0;
    let rows = vec![
        Some(Row::new("bare", || timed(COMMAND, [""; 0]))),
        // It ends the command's orphans, but locks nothing.
        tini.map(|tini| Row::new("tini -s", move || timed(&tini, ["-s", "--", COMMAND]))),
        // It becomes the command: no process of its own is left.
        setlock.map(|setlock| {
            Row::new("s6-setlock", {
                let lock = &lock;
                move || timed(&setlock, [lock.as_os_str(), COMMAND.as_ref()])
            })
        }),
        flock.map(|flock| {
            Row::new("flock", {
                let lock = &lock;
                move || timed(&flock, [lock.as_os_str(), COMMAND.as_ref()])
            })
        }),
        Some(Row::new("lockrun", || lockrun(&database))),
        Some(Row::new("lockrun, first start", || {
            // The file system is not asked to forget the last one within the time.
            let folder = dir.join(format!("first-{starts}"));
            starts += 1;
            fs::create_dir(&folder).expect("a folder");
            let time = lockrun(&folder.join("x.db"));
            fs::remove_dir_all(&folder).expect("removed");
            time
        })),
    ];
    let medians = table("start-up", ROUNDS, "flock", rows);
    let of = |name| medians.iter().find(|(row, _)| *row == name).map(|(_, median)| *median);
    for (row, limit) in [("lockrun", 2.0), ("lockrun, first start", 4.0)] {
        findings.at_most(&format!("start-up of {row}, of flock's"), of(row).expect("measured"), of("flock"), limit);
    }
}

fn lockrun(database: &Path) -> Duration {
    timed(LOCKRUN, [OsStr::new("--db"), database.as_os_str(), "--".as_ref(), COMMAND.as_ref()])
}

fn timed<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, args: impl IntoIterator<Item = S>) -> Duration {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let start = Instant::now();
    let status = command.status().expect("it starts");
    let time = start.elapsed();
    assert!(status.success(), "{command:?}: {status}");
    time
}
