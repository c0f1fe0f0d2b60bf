//! One lease and its copies: they are started, started again when they end, and tormented by one thread. Must never judge:
//! it writes down what it does and what it sees.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use nix::sys::signal::Signal;

use crate::faults::{Kind, REPAIR};
use crate::files::Files;
use crate::history::{Event, now};
use crate::play::{self, Life};
use crate::procs::{guard_of, look, send};
use crate::random::Random;
use crate::site::Site;
use crate::world::World;

/// A holder shows that it lives within this time, in microseconds.
const FRESH: i64 = 200_000;
/// So long may a ring be without a holder before the run is given up.
const GIVE_UP: i64 = 60_000_000;
/// What no copy may write to stderr.
const FORBIDDEN: &str = "panicked";

pub struct Ring {
    pub name: String,
    pub dir: PathBuf,
    pub kind: Kind,
    pub store: Store,
    life: File,
    copies: Mutex<Vec<Copy>>,
    /// How many copies refused the database since it was last waited for a holder.
    refused: AtomicUsize,
}

/// Where the record is.
pub enum Store {
    Files(Files),
    Server(Site),
}

struct Copy {
    number: usize,
    name: String,
    pid: Option<i32>,
    /// It is started at this time, in microseconds.
    due: i64,
    log: PathBuf,
    read: u64,
}

/// Who has the lease now, by what runs.
#[derive(Clone, Copy, Debug)]
pub struct Holder {
    pub token: i64,
    pub front: i32,
    pub guard: i32,
    pub command: i32,
}

impl Ring {
    pub fn new(world: &World, name: String, kind: Kind, copies: usize, store: impl FnOnce(&Path) -> io::Result<Store>) -> io::Result<Ring> {
        let dir = world.root.join(&name);
        fs::create_dir(&dir)?;
        let copies = (0..copies).map(|number| {
            let name = format!("{name}.{number}");
            Copy { number, log: dir.join(format!("stderr-{number}")), name, pid: None, due: 0, read: 0 }
        });
        let (life, copies, store) = (play::open(&dir, "life"), Mutex::new(copies.collect()), store(&dir)?);
        Ok(Ring { name, kind, store, life, copies, refused: AtomicUsize::new(0), dir })
    }

    pub fn open(&self, world: &World) {
        let at = now();
        Life { at, ..Life::default() }.write(&self.life);
        world.history.add(at, &self.name, Event::Open);
    }

    pub fn close(&self, world: &World) {
        world.history.add(now(), &self.name, Event::Close { idle_since: self.last_life().at });
    }

    pub fn last_life(&self) -> Life {
        Life::read(&self.life)
    }

    /// Starts what is due, and writes down what has ended.
    pub fn tend(&self, world: &World, random: &mut Random) {
        let mut copies = self.copies.lock().expect("no thread panics");
        for copy in copies.iter_mut() {
            if let Some(pid) = copy.pid {
                let Some(code) = world.procs.ended(pid) else { continue };
                world.history.add(now(), &self.name, Event::Exit { copy: copy.name.clone(), pid, code });
                for text in copy.new_lines().unwrap_or_default().lines().filter(|line| line.contains(FORBIDDEN)) {
                    world.history.add(now(), &self.name, Event::Said { copy: copy.name.clone(), text: text.to_string() });
                }
                if code == 125 {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                }
                (copy.pid, copy.due) = (None, now() + random.within(20..=500) as i64 * 1000);
            }
            if now() >= copy.due && !world.is_over() {
                copy.pid = Some(self.start(world, copy).expect("lockrun starts"));
            }
        }
    }

    fn start(&self, world: &World, copy: &Copy) -> io::Result<i32> {
        let times = &world.table.times;
        let mut command = Command::new(&world.lockrun);
        for (option, millis) in [("--ttl", times.ttl), ("--heartbeat", times.heartbeat), ("--grace", times.grace)] {
            command.args([option, &format!("{millis}ms")]);
        }
        // A server that is given has other leases, too.
        let run = world.root.file_name().and_then(|name| name.to_str()).expect("UTF-8");
        command.args(["-v", "--log-format", "json", "--name", &format!("{run}-{}", self.name), "--db"]);
        match &self.store {
            Store::Files(files) => command.arg(&files.db),
            Store::Server(site) => command.arg(site.url(copy.number)),
        };
        command.arg("--").arg(&world.player).arg("play").arg(&self.dir).current_dir(&world.root);
        let log = File::options().append(true).create(true).open(&copy.log)?;
        world.procs.spawn(command.stdout(log.try_clone()?).stderr(log))
    }

    pub fn signal_all(&self, signal: Signal) {
        for copy in self.copies.lock().expect("no thread panics").iter() {
            copy.pid.into_iter().for_each(|pid| send(pid, signal));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.copies.lock().expect("no thread panics").iter().all(|copy| copy.pid.is_none())
    }

    fn fronts(&self) -> Vec<i32> {
        self.copies.lock().expect("no thread panics").iter().filter_map(|copy| copy.pid).collect()
    }

    /// None also while it cannot be said: a command that stands still, or one that no guard is the parent of.
    pub fn holder(&self) -> Option<Holder> {
        let life = self.last_life();
        if now() - life.at > FRESH || life.pid == 0 {
            return None;
        }
        let guard = look(life.pid)?.2;
        let (name, _, front) = look(guard)?;
        let known = name == "lockrun-guard" && self.fronts().contains(&front);
        known.then_some(Holder { token: life.token, front, guard, command: life.pid })
    }

    /// Which copy this front is, as long as it is one.
    pub fn number(&self, front: i32) -> Option<usize> {
        self.copies.lock().expect("no thread panics").iter().find(|copy| copy.pid == Some(front)).map(|copy| copy.number)
    }

    /// A copy that is not the holder, with its guard.
    pub fn waiter(&self, random: &mut Random) -> Option<(i32, i32)> {
        let holder = self.holder()?;
        let waiters: Vec<_> = self.fronts().into_iter().filter(|front| *front != holder.front).collect();
        if waiters.is_empty() {
            return None;
        }
        let front = random.of(&waiters);
        Some((front, guard_of(front)?))
    }

    /// Waits until somebody runs; makes a database anew that the copies refuse. False: the run is over.
    pub fn settle(&self, world: &World) -> bool {
        self.refused.store(0, Ordering::Relaxed);
        while self.holder().is_none() {
            if !world.pause(20) {
                return false;
            }
            let idle = now() - self.last_life().at;
            if idle > 1_000_000 && self.refused.load(Ordering::Relaxed) >= 2 {
                self.refused.store(0, Ordering::Relaxed);
                if let Store::Files(files) = &self.store {
                    let rule = world.table.by_name(REPAIR).expect("in the table");
                    world.fault(rule, &self.name, "", || files.remove(&["-wal", "-shm", ""]));
                }
            }
            if idle > GIVE_UP {
                world.give_up(format!("ring {}: nobody has run for {} s", self.name, idle / 1_000_000));
                return false;
            }
        }
        true
    }
}

impl Copy {
    /// What its log has got since the last time.
    fn new_lines(&mut self) -> io::Result<String> {
        let mut file = File::open(&self.log)?;
        file.seek(SeekFrom::Start(self.read))?;
        let mut bytes = Vec::new();
        self.read += file.read_to_end(&mut bytes)? as u64;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}
