//! Injects the faults of one ring, and undoes them. Must never leave one on: what is not undone here, when the harness dies,
//! the keeper undoes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::faults::{self, HEARTBEAT, Needs, Rule, TTL};
use crate::history::ALL;
use crate::keeper;
use crate::play;
use crate::procs::send;
use crate::random::Random;
use crate::ring::{Holder, Ring};
use crate::roster;
use crate::world::World;

/// Torments the ring until the run is over.
pub fn run(ring: &Ring, world: &World, random: &mut Random) {
    let mut settle = true;
    while !world.is_over() {
        let well = settle || random.per_mille(700);
        if well && !(ring.settle(world) && world.pause(random.within(0..=1200))) {
            return;
        }
        let Some(rule) = world.draw(ring.kind, random) else {
            world.pause(100);
            continue;
        };
        strike(ring, world, rule, random);
        // The holder must see one fault of the files before the next comes: for both at once there is a fault of its own.
        settle = faults::touches_files(rule);
        if !world.pause(if settle { 4 * HEARTBEAT as u64 } else { 10 }) {
            return;
        }
    }
}

/// Does nothing if there is nothing to hit at this moment.
fn strike(ring: &Ring, world: &World, rule: &'static Rule, random: &mut Random) {
    if rule.needs == Needs::Copies {
        strike_copies(ring, world, rule, random);
        return;
    }
    match strike_files(ring, world, rule, random) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            // A run without it would prove less than it says.
            world.give_up(format!("ring {}: {} cannot be injected here: {error}", ring.name, rule.name));
        }
        Err(_) | Ok(()) => {}
    }
}

/// Longer or shorter than the TTL.
fn a_while(random: &mut Random) -> u64 {
    let ttl = TTL as u64;
    if random.per_mille(500) { random.within(50..=ttl) } else { random.within(ttl..=2 * ttl) }
}

/// None: nothing was hit.
fn strike_copies(ring: &Ring, world: &World, rule: &'static Rule, random: &mut Random) -> Option<()> {
    let at = ring.holder()?;
    if rule.name.ends_with("-both") && !ring.is_covered() {
        return None;
    }
    let act = |on: &[i32], signals: &[Signal], pause: u64| {
        world.fault(rule, &ring.name, &format!("{on:?} of {at:?}"), || {
            on.iter().for_each(|pid| send(*pid, signals[0]));
            if let Some(last) = signals.get(1) {
                world.pause(pause);
                on.iter().for_each(|pid| send(*pid, *last));
            }
        });
    };
    let (kill, stop) = ([Signal::SIGKILL], [Signal::SIGSTOP, Signal::SIGCONT]);
    let mut both = [at.front, at.guard];
    if random.per_mille(500) {
        both.reverse();
    }
    match rule.name {
        "kill-front" => act(&[at.front], &kill, 0),
        "kill-guard" => act(&[at.guard], &kill, 0),
        "kill-both" => kill_both(ring, world, rule, at, random)?,
        "kill-command" => act(&[at.command], &kill, 0),
        "kill-waiter" => {
            let (front, guard) = ring.waiter(random)?;
            act(&[random.of(&[front, guard])], &kill, 0);
        }
        "stop-front" => act(&[at.front], &stop, a_while(random)),
        "stop-guard" => act(&[at.guard], &stop, a_while(random)),
        "stop-both" => act(&both, &stop, a_while(random)),
        "stop-command" => act(&[at.command], &stop, a_while(random)),
        "stop-waiter" => {
            let (front, guard) = ring.waiter(random)?;
            let on = random.of(&[[front, front], [guard, guard], [front, guard]]);
            act(&on, &stop, a_while(random));
        }
        name => unreachable!("{name} hits no copy"),
    }
    Some(())
}

/// Not promised (lease.md 6): what has called setsid and closed the kernel lock may live on. So only where nothing has, and
/// what keeps the lock is ended after a while, which ends the fault.
fn kill_both(ring: &Ring, world: &World, rule: &'static Rule, at: Holder, random: &mut Random) -> Option<()> {
    if play::has_closers(at.token) {
        return None;
    }
    world.fault(rule, &ring.name, &format!("{at:?}"), || {
        // Neither acts between the two kills. It is the front that is stopped: its death would wake a stopped guard.
        send(at.front, Signal::SIGSTOP);
        send(at.guard, Signal::SIGKILL);
        send(at.front, Signal::SIGKILL);
        world.pause(random.within(0..=TTL as u64 + 1000));
        let own = format!("{}/", at.token);
        // Twice or more: a tree that was just starting may go on for a moment.
        for _ in 0..3 {
            let tree = roster::all(&ring.dir).into_iter().filter(|member| member.role.starts_with(&own));
            tree.filter(roster::is_alive).for_each(|left| send(left.pid, Signal::SIGKILL));
            thread::sleep(Duration::from_millis(5));
        }
    });
    Some(())
}

/// An error: it could not be injected.
fn strike_files(ring: &Ring, world: &World, rule: &'static Rule, random: &mut Random) -> io::Result<()> {
    let (db, folder) = (&ring.db, ring.db.parent().expect("a folder"));
    let around = |act: &mut dyn FnMut() -> io::Result<()>| world.fault(rule, &ring.name, "", act);
    let remove = |endings: &[&str]| {
        around(&mut || {
            ring.remove(endings);
            Ok(())
        })
    };
    match rule.name {
        "busy" => {
            let connection = open(ring)?;
            // The right to write may take a moment, in which nobody else is kept from it.
            connection.execute_batch(random.of(&["BEGIN IMMEDIATE", "BEGIN EXCLUSIVE"])).map_err(not_now)?;
            around(&mut || {
                hold(ring, world, random);
                connection.execute_batch("ROLLBACK").map_err(not_now)
            })
        }
        "read-only" => around(&mut || {
            let parts = random.of(&[&["", "-wal", "-shm"][..], &["", "-wal", "-shm", "-lockrun"], &[""], &["-wal"]]);
            let done = parts.iter().try_for_each(|ending| keeper::set_immutable(&ring.beside(ending), true));
            hold(ring, world, random);
            keeper::free_files(folder);
            done
        }),
        "deleted" => remove(&["", "-wal", "-shm"]),
        "replaced-empty" => around(&mut || {
            fs::write(ring.beside(".new"), "")?;
            ring.remove(&["-wal", "-shm"]);
            fs::rename(ring.beside(".new"), db)
        }),
        "replaced-old" => {
            let copy = ring.beside(".old");
            let _ = fs::remove_file(&copy);
            open(ring)?.execute("VACUUM INTO ?1", [copy.to_str()]).map_err(not_now)?;
            world.pause(random.within(0..=TTL as u64));
            around(&mut || {
                ring.remove(&["-wal", "-shm"]);
                fs::rename(&copy, db)
            })
        }
        "corrupted" => around(&mut || {
            let (from, length) = random.of(&[(0, 16), (16, 84), (100, 400), (4096, 4096)]);
            let bytes: Vec<u8> = (0..length).map(|_| random.next() as u8).collect();
            File::options().write(true).open(db)?.write_all_at(&bytes, from)?;
            hold(ring, world, random);
            ring.remove(&["-wal", "-shm", ""]);
            Ok(())
        }),
        "wal-removed" => remove(random.of(&[&["-wal"][..], &["-wal", "-shm"]])),
        "shm-removed" => remove(&["-shm"]),
        "shm-truncated" => around(&mut || {
            let length = random.of(&[0, 16, 4096]);
            File::options().write(true).open(ring.beside("-shm"))?.set_len(length)
        }),
        "side-removed" => remove(&["-lockrun"]),
        "all-removed" => remove(random.of(&[&["", "-wal", "-shm", "-lockrun"][..], &["-wal", "-shm", "-lockrun"], &["-lockrun", ""]])),
        "full" => around(&mut || {
            let filler = db.with_file_name("filler");
            let filled = fill(&filler);
            hold(ring, world, random);
            let _ = fs::remove_file(filler);
            filled
        }),
        "frozen" => around(&mut || keeper::freeze(folder, || hold(ring, world, random))),
        name => unreachable!("{name} hits no file"),
    }
}

/// Lets a fault last, with another one of the copies in the middle of some. Must touch no file of the database: it may be frozen.
fn hold(ring: &Ring, world: &World, random: &mut Random) {
    world.pause(a_while(random) / 2);
    let kills: Vec<&'static Rule> = world.asked.iter().copied().filter(|rule| rule.name.starts_with("kill-")).collect();
    if !kills.is_empty() && random.per_mille(300) {
        let kill = random.of(&kills);
        strike_copies(ring, world, kill, random);
    }
    world.pause(a_while(random) / 2);
}

fn open(ring: &Ring) -> io::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(&ring.db, flags).map_err(not_now)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(not_now)?;
    connection.busy_timeout(Duration::from_millis(200)).map_err(not_now)?;
    Ok(connection)
}

/// The database is away, in use or damaged at this moment.
fn not_now(error: rusqlite::Error) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, error)
}

/// Takes all room that is left.
fn fill(path: &Path) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut step: libc::off_t = 1 << 20;
    let mut at = 0;
    while step >= 4096 {
        // SAFETY: no pointers.
        if unsafe { libc::fallocate(file.as_raw_fd(), 0, at, step) } == 0 {
            at += step;
        } else {
            step /= 2;
        }
    }
    while file.write_all(&[0; 1024]).is_ok() && at < 1 << 30 {
        at += 1024;
    }
    Ok(())
}

/// Faults of the whole machine, now and then.
pub fn run_machine(world: &World, random: &mut Random) {
    let rules: Vec<&'static Rule> = world.asked.iter().copied().filter(|rule| rule.needs == Needs::Machine).collect();
    while !rules.is_empty() && world.pause(random.within(3_000..=20_000)) {
        let rule = random.of(&rules);
        world.fault(rule, ALL, "", || match rule.name {
            "starved" => starve(world, random),
            faults::CLOCK => {
                let by = random.of(&[-86_400, -60, -2, 2, 60, 86_400]) * 1_000_000_000;
                let meanwhile = || {
                    world.pause(a_while(random));
                };
                let stepped = keeper::step_clock(&world.root, by, meanwhile);
                stepped.unwrap_or_else(|error| world.give_up(format!("{} cannot be injected here: {error}", rule.name)));
            }
            name => unreachable!("{name} does not hit the machine"),
        });
    }
}

/// Busy loops that are run before all else.
fn starve(world: &World, random: &mut Random) {
    let count = 2 * thread::available_parallelism().map_or(2, usize::from);
    let hog = |_| world.procs.spawn(Command::new(&world.player).arg("hog").current_dir("/")).ok();
    let hogs: Vec<i32> = (0..count).filter_map(hog).collect();
    world.pause(random.within(500..=TTL as u64));
    hogs.iter().for_each(|pid| send(*pid, Signal::SIGKILL));
}

/// The hog's own process.
pub fn hog() -> ! {
    // SAFETY: no pointers.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    let start = Instant::now();
    // It outlives no harness that cannot end it.
    while start.elapsed() < Duration::from_secs(20) {}
    std::process::exit(0)
}
