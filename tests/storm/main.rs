//! `tests/torture`: many copies of the real lockrun around a command that holds a kernel lock, faults drawn by a seed, and a
//! judge that reads the history. Never part of the product.

mod asked;
mod faults;
mod files;
#[path = "../fixture/mod.rs"]
mod fixture;
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
mod serve;
mod site;
mod strike;
mod world;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use asked::{Asked, Engine, Store};
use faults::{Kind, Needs};
use files::Files;
use keeper::{Keeper, MARK};
use procs::Procs;
use random::Random;
use ring::Ring;
use site::Site;
use world::World;

const COPIES: usize = 3;

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
        ["serve", engine] => {
            serve::run(Engine::by_name(engine).expect("a name that this program gave"));
            ExitCode::SUCCESS
        }
        args => match asked::parse(args) {
            Ok(asked) => run(asked),
            Err(text) => {
                let _ = writeln!(std::io::stderr(), "tests/torture: {text}\n\n{}", asked::usage());
                ExitCode::from(2)
            }
        },
    }
}

fn run(asked: Asked) -> ExitCode {
    let root = tempfile::Builder::new().prefix("lockrun-torture-").tempdir().expect("a temporary folder").keep();
    // A server in it may run as another user.
    std::fs::set_permissions(&root, PermissionsExt::from_mode(0o755)).expect("it is ours");
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
    let world = World::new(root.clone(), &asked.lockrun, procs, asked.store.table(), asked.faults.clone());
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

/// Of SQLite's half have a disk of their own, if a fault needs one.
fn rings(asked: &Asked, world: &World) -> std::io::Result<Vec<Ring>> {
    let new = |name: String, kind, store: &dyn Fn(&Path) -> std::io::Result<ring::Store>| Ring::new(world, name, kind, COPIES, store);
    let named = |number: usize| format!("ring{number}");
    match &asked.store {
        Store::Sqlite => {
            let disks = asked.faults.iter().any(|rule| rule.needs == Needs::Disk);
            let ring = |number: usize| match disks && number % 2 == 1 {
                true => new(named(number), Kind::SqliteOnDisk, &|dir| Files::on_disk(dir, &world.procs).map(ring::Store::Files)),
                false => new(named(number), Kind::SqliteInFolder, &|dir| Files::in_folder(dir).map(ring::Store::Files)),
            };
            (0..4).map(ring).collect()
        }
        Store::SqliteAt(db) => {
            let files = |dir: &Path| Files::given(db, dir).map(ring::Store::Files);
            Ok(vec![new("given".to_string(), Kind::SqliteInFolder, &files)?])
        }
        // Fewer: the servers and the networks need the machine too.
        Store::Server(engine) => {
            let site = |_: &Path| Site::own(*engine, COPIES, world).map(ring::Store::Server);
            (0..3).map(|number| new(named(number), Kind::OwnServer, &site)).collect()
        }
        Store::ServerAt(engine, url) => {
            let site = |_: &Path| Site::given(url, *engine, COPIES).map(ring::Store::Server).map_err(std::io::Error::other);
            (0..3).map(|number| new(named(number), Kind::GivenServer, &site)).collect()
        }
    }
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
    let verdict = judge::judge(&mut lines, world.table);
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
