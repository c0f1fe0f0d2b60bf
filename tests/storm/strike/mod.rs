//! Injects the faults of one ring, and undoes them. Must never leave one on: what is not undone here, when the harness dies,
//! the keeper undoes.

mod copies;
mod files;
mod network;

use std::io::ErrorKind;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::faults::{self, Needs, Rule, sqlite};
use crate::history::ALL;
use crate::keeper;
use crate::procs::send;
use crate::random::Random;
use crate::ring::{Ring, Store};
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
        settle = sqlite::touches_files(rule);
        if !world.pause(if settle { 4 * world.table.times.heartbeat as u64 } else { 10 }) {
            return;
        }
    }
}

/// Does nothing if there is nothing to hit at this moment.
fn strike(ring: &Ring, world: &World, rule: &'static Rule, random: &mut Random) {
    match (rule.needs, &ring.store) {
        (Needs::Copies, _) => {
            copies::strike(ring, world, rule, random);
        }
        (Needs::Network | Needs::Server, Store::Server(site)) => {
            network::strike(ring, site, world, rule, random);
        }
        (Needs::Files | Needs::Disk, Store::Files(files)) => match files::strike(ring, files, world, rule, random) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                // A run without it would prove less than it says.
                world.give_up(format!("ring {}: {} cannot be injected here: {error}", ring.name, rule.name));
            }
            Err(_) | Ok(()) => {}
        },
        (Needs::Files | Needs::Disk | Needs::Network | Needs::Server | Needs::Machine, _) => {
            unreachable!("{} is not drawn here", rule.name)
        }
    }
}

/// Longer or shorter than the TTL.
fn a_while(world: &World, random: &mut Random) -> u64 {
    let ttl = world.table.times.ttl as u64;
    if random.per_mille(500) { random.within(50..=ttl) } else { random.within(ttl..=2 * ttl) }
}

/// Lets a fault last, with another one of the copies in the middle of some. Must touch no file of the database: it may be frozen.
fn hold(ring: &Ring, world: &World, random: &mut Random) {
    world.pause(a_while(world, random) / 2);
    let kills: Vec<&'static Rule> = world.asked.iter().copied().filter(|rule| rule.name.starts_with("kill-")).collect();
    if !kills.is_empty() && random.per_mille(300) {
        let kill = random.of(&kills);
        copies::strike(ring, world, kill, random);
    }
    world.pause(a_while(world, random) / 2);
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
                    world.pause(a_while(world, random));
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
    world.pause(random.within(500..=world.table.times.ttl as u64));
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
