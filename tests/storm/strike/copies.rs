//! Faults of the copies: of the one that holds the lease, of its command, and of those that wait. Must never leave one stopped.

use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::a_while;
use crate::faults::{self, Rule};
use crate::play;
use crate::procs::{look, send};
use crate::random::Random;
use crate::ring::{Holder, Ring, Store};
use crate::roster;
use crate::world::World;

/// What counts as such where no kernel lock keeps anybody out, in milliseconds.
const AT_ONCE: u64 = 200;

/// None: nothing was hit.
pub fn strike(ring: &Ring, world: &World, rule: &'static Rule, random: &mut Random) -> Option<()> {
    let at = ring.holder()?;
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
        "kill-front" => {
            act(&[at.front], &kill, 0);
            leave_to_the_other(ring, world, at);
        }
        "kill-guard" => {
            act(&[at.guard], &kill, 0);
            leave_to_the_other(ring, world, at);
        }
        "kill-both" => kill_both(ring, world, rule, at, random)?,
        "stop-both" if !is_covered(ring) => stop_both(ring, world, rule, at, random),
        "kill-command" => act(&[at.command], &kill, 0),
        "kill-waiter" => {
            let (front, guard) = ring.waiter(random)?;
            act(&[random.of(&[front, guard])], &kill, 0);
        }
        "stop-front" => act(&[at.front], &stop, a_while(world, random)),
        "stop-guard" => {
            act(&[at.guard], &stop, a_while(world, random));
            if look(at.guard).is_none_or(|(_, state, _)| state == 'Z') {
                leave_to_the_other(ring, world, at); // its own timer has killed it
            }
        }
        "stop-both" => act(&both, &stop, a_while(world, random)),
        "stop-command" => act(&[at.command], &stop, a_while(world, random)),
        "stop-waiter" => {
            let (front, guard) = ring.waiter(random)?;
            let on = random.of(&[[front, front], [guard, guard], [front, guard]]);
            act(&on, &stop, a_while(world, random));
        }
        name => unreachable!("{name} hits no copy"),
    }
    Some(())
}

/// What front and guard leave when both are gone at once keeps the next one out, by the kernel lock. A server has none.
fn is_covered(ring: &Ring) -> bool {
    match &ring.store {
        Store::Files(files) => files.covers_since(ring.last_life().since),
        Store::Server(_) => false,
    }
}

/// Not promised (lease.md 6): what has called setsid and has not the kernel lock may live on. With one, it is struck only where
/// nothing has closed it, and what keeps it is ended after a while, which ends the fault. Without one, at once: the others wait
/// for the record's TTL and a tenth, of which up to the kill time, the margin and that tenth is left when a holder dies late.
fn kill_both(ring: &Ring, world: &World, rule: &'static Rule, at: Holder, random: &mut Random) -> Option<()> {
    let patience = match &ring.store {
        Store::Files(_) if !is_covered(ring) || play::has_closers(at.token) => return None,
        Store::Files(_) => random.within(0..=world.table.times.ttl as u64 + 1000),
        Store::Server(_) => random.within(0..=AT_ONCE),
    };
    world.fault(rule, &ring.name, &format!("{at:?}"), || {
        // Neither acts between the two kills. It is the front that is stopped: its death would wake a stopped guard.
        send(at.front, Signal::SIGSTOP);
        send(at.guard, Signal::SIGKILL);
        send(at.front, Signal::SIGKILL);
        world.pause(patience);
        end_tree(ring, at);
    });
    Some(())
}

/// Without a kernel lock. The guard's own timer kills it at the deadline, and the kernel the command with it; what has called
/// setsid would live until the front wakes. So either they wake soon or the tree is ended here.
fn stop_both(ring: &Ring, world: &World, rule: &'static Rule, at: Holder, random: &mut Random) {
    let for_long = random.per_mille(700);
    world.fault(rule, &ring.name, &format!("{at:?}{}", if for_long { " and their tree ended" } else { "" }), || {
        let both = [at.front, at.guard];
        both.iter().for_each(|pid| send(*pid, Signal::SIGSTOP));
        world.pause(random.within(0..=AT_ONCE));
        if for_long {
            end_tree(ring, at);
            world.pause(a_while(world, random));
        }
        both.iter().for_each(|pid| send(*pid, Signal::SIGCONT));
    });
}

/// Of front and guard one is gone, and the other ends the tree now. Hit before it has, it would leave what kill-both leaves, and
/// no kernel lock keeps the next one out.
fn leave_to_the_other(ring: &Ring, world: &World, at: Holder) {
    let end = Instant::now() + Duration::from_millis(faults::SLACK as u64);
    while !is_covered(ring) && tree(ring, at).next().is_some() && Instant::now() < end && world.pause(5) {}
}

fn tree(ring: &Ring, at: Holder) -> impl Iterator<Item = roster::Member> {
    let own = format!("{}/", at.token);
    roster::all(&ring.dir).into_iter().filter(move |member| member.role.starts_with(&own) && roster::is_alive(member))
}

fn end_tree(ring: &Ring, at: Holder) {
    // Twice or more: a tree that was just starting may go on for a moment.
    for _ in 0..3 {
        tree(ring, at).for_each(|left| send(left.pid, Signal::SIGKILL));
        thread::sleep(Duration::from_millis(5));
    }
}
