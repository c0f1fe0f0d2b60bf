//! What happened, one line of JSON each, in the order in which it was written; times are microseconds of CLOCK_BOOTTIME.
//! Commands and the harness append to one file. Must never write a line in more than one write, so that lines never mix.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// The ring of what concerns the whole machine.
pub const ALL: &str = "*";

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
pub struct Line {
    pub t: i64,
    pub ring: String,
    #[serde(flatten)]
    pub event: Event,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// From here on somebody should run in this ring.
    Open,
    /// A command runs. Until `idle_since` there was a sign of life of the one before.
    Start {
        token: i64,
        pid: i32,
        idle_since: i64,
    },
    /// At its start the tree of another one was alive: somebody else had the witness's lock.
    Overlap {
        token: i64,
        pid: i32,
        with: String,
    },
    /// The other tree is gone now.
    Alone {
        token: i64,
        pid: i32,
    },
    Fault {
        id: u64,
        kind: String,
        on: String,
    },
    /// The fault lasts no longer.
    Over {
        id: u64,
    },
    /// A copy of lockrun ended; the code is that of a shell.
    Exit {
        copy: String,
        pid: i32,
        code: i32,
    },
    /// A line on the stderr of a copy that must not be there.
    Said {
        copy: String,
        text: String,
    },
    /// No fault is injected from here on, and somebody runs or did until then.
    Close {
        idle_since: i64,
    },
}

pub struct History {
    file: File,
}

impl History {
    pub fn open(path: &Path) -> io::Result<History> {
        Ok(History { file: File::options().append(true).create(true).open(path)? })
    }

    pub fn add(&self, t: i64, ring: &str, event: Event) {
        let line = Line { t, ring: ring.to_string(), event };
        let text = serde_json::to_string(&line).expect("plain data") + "\n";
        (&self.file).write_all(text.as_bytes()).expect("the history can be written");
    }
}

pub fn read(path: &Path) -> io::Result<Vec<Line>> {
    fs::read_to_string(path)?.lines().map(|line| serde_json::from_str(line).map_err(io::Error::other)).collect()
}

pub fn now() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    now.tv_sec() * 1_000_000 + now.tv_nsec() / 1000
}
