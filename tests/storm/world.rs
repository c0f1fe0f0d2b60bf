//! What all rings share: the folder of the run, its settings, its history, and the faults that are still to be drawn. Must
//! never end a run by itself: it says that it is over, and who waits sees it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::{Kind, LATE, Rule, Table};
use crate::history::{ALL, Event, History, now};
use crate::procs::Procs;
use crate::random::Random;

pub struct World {
    pub root: PathBuf,
    pub lockrun: PathBuf,
    /// This program, which is the command too.
    pub player: PathBuf,
    pub procs: Procs,
    pub history: History,
    pub table: &'static Table,
    pub asked: Vec<&'static Rule>,
    bag: Mutex<Vec<&'static Rule>>,
    faults: AtomicU64,
    over: AtomicBool,
    /// Why a ring gave up, if one did.
    pub stuck: Mutex<Option<String>>,
}

impl World {
    pub fn new(root: PathBuf, lockrun: &Path, procs: Procs, table: &'static Table, asked: Vec<&'static Rule>) -> World {
        let history = History::open(&root.join("history")).expect("the history");
        // Copied, so that a build during the run changes nothing in it.
        let copied = |from: &Path, name: &str| {
            let to = root.join(name);
            fs::copy(from, &to).map(|_| to).expect("room for a program")
        };
        let player = copied(&std::env::current_exe().expect("this program"), "storm");
        let lockrun = copied(lockrun, "lockrun");
        World {
            root,
            lockrun,
            player,
            procs,
            history,
            table,
            asked,
            bag: Mutex::default(),
            faults: AtomicU64::new(0),
            over: AtomicBool::new(false),
            stuck: Mutex::default(),
        }
    }

    /// Each fault comes once before any comes again.
    pub fn draw(&self, kind: Kind, random: &mut Random) -> Option<&'static Rule> {
        let mut bag = self.bag.lock().expect("no thread panics");
        for _ in 0..2 {
            let fit: Vec<usize> = (0..bag.len()).filter(|at| kind.has(bag[*at].needs)).collect();
            if !fit.is_empty() {
                return Some(bag.swap_remove(random.of(&fit)));
            }
            bag.extend(self.asked.iter().filter(|rule| kind.has(rule.needs)));
        }
        None
    }

    /// Writes down the fault and its end, with what is done in between.
    pub fn fault<T>(&self, rule: &Rule, ring: &str, on: &str, act: impl FnOnce() -> T) -> T {
        let id = self.faults.fetch_add(1, Ordering::Relaxed);
        self.history.add(now(), ring, Event::Fault { id, kind: rule.name.to_string(), on: on.to_string() });
        let result = act();
        self.history.add(now(), ring, Event::Over { id });
        result
    }

    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub fn end(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub fn give_up(&self, why: String) {
        self.stuck.lock().expect("no thread panics").get_or_insert(why);
        self.end();
    }

    /// False: the run is over.
    pub fn pause(&self, millis: u64) -> bool {
        let end = Instant::now() + Duration::from_millis(millis);
        while !self.is_over() {
            let Some(left) = end.checked_duration_since(Instant::now()) else { return true };
            thread::sleep(left.min(Duration::from_millis(50)));
        }
        false
    }

    /// Looks how late a thread is run: what the machine adds to all times. Returns when the run is over.
    pub fn watch_lateness(&self) {
        const LOOK: Duration = Duration::from_millis(20);
        const WORTH_TELLING: i64 = 150_000;
        let late = self.table.by_name(LATE).expect("in the table");
        while !self.is_over() {
            let before = now();
            thread::sleep(LOOK);
            let after = now();
            if after - before > WORTH_TELLING {
                let id = self.faults.fetch_add(1, Ordering::Relaxed);
                self.history.add(before, ALL, Event::Fault { id, kind: late.name.to_string(), on: String::new() });
                self.history.add(after, ALL, Event::Over { id });
            }
        }
    }
}
