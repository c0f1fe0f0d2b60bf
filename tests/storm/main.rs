//! `tests/torture`: many copies of the real lockrun around a command that holds a kernel lock, faults drawn by a seed, and a
//! judge that reads the history. Never part of the product.

mod faults;
mod history;
mod judge;
mod keeper;
mod play;
mod procs;
#[path = "../sim/random.rs"]
mod random;
mod ring;
// The command writes the list, the harness reads it.
#[path = "../probe/roster.rs"]
mod roster;
mod strike;
mod world;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use faults::{Kind, Needs, Rule};
use keeper::{Keeper, MARK};
use procs::Procs;
use random::Random;
use ring::Ring;
use world::World;

const RINGS: usize = 4;
const COPIES: usize = 3;
const DISK: u64 = 24 << 20;

struct Asked {
    seconds: u64,
    db: Option<PathBuf>,
    seed: u64,
    faults: Vec<&'static Rule>,
    lockrun: PathBuf,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args.as_slice() {
        // The parts that this program plays for itself.
        ["play", dir] => play::run(Path::new(dir)),
        ["hog"] => strike::hog(),
        ["keep", root] => {
            keeper::run(Path::new(root));
            ExitCode::SUCCESS
        }
        args => match parse(args) {
            Ok(asked) => run(asked),
            Err(text) => {
                eprintln!("tests/torture: {text}\n\n{}", usage());
                ExitCode::from(2)
            }
        },
    }
}

fn usage() -> String {
    format!(
        "usage: tests/torture SECONDS [--store URL] [--seed N] [--faults A,B] [--lockrun PATH]
  --store    a new database in an empty folder, as a path or sqlite:PATH; if not given: several, in a new temporary folder
  --seed     which faults come in which order; if not given: another one each time, which is printed
  --faults   none, or of {}
             (not given: all but {}, which steps the clock of the whole machine)
  --lockrun  another program in lockrun's place",
        faults::known(),
        faults::CLOCK
    )
}

fn parse(args: &[&str]) -> Result<Asked, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let lockrun = here.parent().and_then(Path::parent).expect("in examples").join("lockrun");
    let mut asked = Asked { seconds: 0, db: None, seed: history::now() as u64 % 1_000_000, faults: faults::asked(None)?, lockrun };
    let mut args = args.iter().copied();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg}: a value is missing"));
        match arg {
            "--store" => asked.db = Some(database(value()?)?),
            "--seed" => asked.seed = value()?.parse().map_err(|_| "--seed: not a number".to_string())?,
            "--faults" => asked.faults = faults::asked(Some(value()?))?,
            "--lockrun" => asked.lockrun = PathBuf::from(value()?),
            seconds => asked.seconds = seconds.parse().map_err(|_| format!("{seconds}: not known, and not a number of seconds"))?,
        }
    }
    if asked.seconds == 0 {
        return Err("say for how many seconds".to_string());
    }
    if asked.db.is_some() {
        let (fit, rest) = asked.faults.into_iter().partition(|rule| rule.needs == Needs::Machine || Kind::SqliteInFolder.has(rule.needs));
        asked.faults = fit;
        rest.iter().for_each(|rule: &&Rule| println!("left out, not for a store that is given: {}", rule.name));
    }
    asked.lockrun = asked.lockrun.canonicalize().map_err(|error| format!("{}: {error}", asked.lockrun.display()))?;
    Ok(asked)
}

/// A new database in an empty folder only: the faults delete and damage what they find there.
fn database(url: &str) -> Result<PathBuf, String> {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    if path.contains("://") {
        return Err(format!("--store {url}: only SQLite so far"));
    }
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let mut beside = path.parent().map(std::fs::read_dir).transpose().map_err(|error| format!("--store {url}: its folder: {error}"))?;
    if beside.as_mut().is_none_or(|beside| beside.next().is_some()) {
        return Err(format!("--store {url}: it will be deleted and damaged; name a new file in an empty folder"));
    }
    Ok(path)
}

fn run(asked: Asked) -> ExitCode {
    let root = tempfile::Builder::new().prefix("lockrun-torture-").tempdir().expect("a temporary folder").keep();
    println!("seed {}, {} s, {} faults, in {}", asked.seed, asked.seconds, asked.faults.len(), root.display());
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        signal_hook::flag::register(signal as i32, Arc::clone(&interrupted)).expect("a handler");
    }
    // From here on whatever happens is undone, also when this process is killed.
    let keeper = Keeper::start(&root);
    // A thread that panics must not leave the others waiting.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        hook(info);
        std::process::exit(2);
    }));
    let procs = Procs::new((MARK.to_string(), root.display().to_string()));
    let world = World::new(root.clone(), &asked.lockrun, procs, asked.faults.clone());
    let rings = rings(&asked, &world).expect("the rings");
    torment(&world, &rings, &asked, &interrupted);
    let good = report(&world, &asked);
    drop(rings);
    keeper.finish(!good);
    match (interrupted.load(Ordering::Relaxed), good) {
        (true, _) => ExitCode::from(130),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::FAILURE,
    }
}

/// Half of them have a disk of their own, if a fault needs one.
fn rings(asked: &Asked, world: &World) -> std::io::Result<Vec<Ring>> {
    if let Some(db) = &asked.db {
        return Ok(vec![Ring::new(&world.root, "given".to_string(), Some(db.clone()), Kind::SqliteInFolder, COPIES)?]);
    }
    let disks = asked.faults.iter().any(|rule| rule.needs == Needs::Disk);
    let ring = |number: usize| {
        let kind = if disks && number % 2 == 1 { Kind::SqliteOnDisk } else { Kind::SqliteInFolder };
        let ring = Ring::new(&world.root, format!("ring{number}"), None, kind, COPIES)?;
        if kind == Kind::SqliteOnDisk {
            let (image, folder) = (ring.dir.join("disk"), ring.dir.join("db"));
            std::fs::File::create(&image)?.set_len(DISK)?;
            let path = |path: &Path| path.to_str().expect("UTF-8").to_string();
            // Blocks as large as pages, as any but the smallest disks have: SQLite makes room for its -shm by a byte in each
            // page, and where that is not a whole page, to write to the rest of it on a full disk is SIGBUS.
            world.procs.run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", &path(&image)])?;
            world.procs.run("mount", &["-o", "loop", &path(&image), &path(&folder)])?;
        }
        Ok(ring)
    };
    (0..RINGS).map(ring).collect()
}

fn torment(world: &World, rings: &[Ring], asked: &Asked, interrupted: &AtomicBool) {
    let end = Instant::now() + Duration::from_secs(asked.seconds);
    rings.iter().for_each(|ring| ring.open(world));
    thread::scope(|scope| {
        scope.spawn(|| world.watch_lateness());
        scope.spawn(|| strike::run_machine(world, &mut Random::new(asked.seed)));
        for (number, ring) in rings.iter().enumerate() {
            let mut random = Random::new(asked.seed ^ (number as u64 + 1) << 32);
            scope.spawn(move || strike::run(ring, world, &mut random));
        }
        let mut random = Random::new(asked.seed ^ 1 << 48);
        while !world.is_over() {
            rings.iter().for_each(|ring| ring.tend(world, &mut random));
            thread::sleep(Duration::from_millis(10));
            if Instant::now() >= end || interrupted.load(Ordering::Relaxed) {
                world.end();
            }
        }
    });
    // The copies' own end, which is not judged but for a crash.
    rings.iter().for_each(|ring| ring.close(world));
    let mut random = Random::new(0);
    for (signal, patience) in [(Signal::SIGTERM, 3), (Signal::SIGKILL, 10)] {
        rings.iter().for_each(|ring| ring.signal_all(signal));
        let end = Instant::now() + Duration::from_secs(patience);
        while Instant::now() < end && !rings.iter().all(Ring::is_empty) {
            rings.iter().for_each(|ring| ring.tend(world, &mut random));
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// True: nothing is wrong.
fn report(world: &World, asked: &Asked) -> bool {
    let mut lines = history::read(&world.root.join("history")).expect("the history");
    let verdict = judge::judge(&mut lines);
    print!("{}", judge::describe(&verdict));
    let stuck = world.stuck.lock().expect("no thread panics").clone();
    let good = verdict.problems.is_empty() && stuck.is_none();
    if good {
        println!("good: seed {}", asked.seed);
        return true;
    }
    // The worst first: one stuck ring has a problem with each copy that ends.
    let (overlaps, others): (Vec<_>, Vec<_>) = verdict.problems.iter().partition(|(_, text)| text.contains("overlap"));
    for (number, text) in overlaps.into_iter().chain(others).take(20) {
        println!("\nPROBLEM at {}: {text}", lines[*number].t);
        let ring = &lines[*number].ring;
        let near = |at: &usize| lines[*at].ring == *ring || lines[*at].ring == history::ALL;
        let before: Vec<usize> = (0..=*number).rev().filter(near).take(12).collect();
        let after = (*number + 1..lines.len()).filter(near).take(3);
        for at in before.into_iter().rev().chain(after) {
            println!("  {}", serde_json::to_string(&lines[at]).expect("plain data"));
        }
    }
    stuck.iter().for_each(|text| println!("\nPROBLEM: {text}"));
    println!("\nFAILED: seed {}; history and stderr of every copy are kept in {}", asked.seed, world.root.display());
    false
}
