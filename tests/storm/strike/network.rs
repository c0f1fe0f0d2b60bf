//! Faults of a server and of the network to it. Must never leave one on: a proxy that holds back would, after the fault, make
//! the next one something else.

use super::hold;
use crate::faults::Rule;
use crate::fixture::proxy::Proxy;
use crate::random::Random;
use crate::ring::Ring;
use crate::serve;
use crate::site::Site;
use crate::world::World;

/// Does nothing if nobody is there to be cut off.
pub fn strike(ring: &Ring, site: &Site, world: &World, rule: &'static Rule, random: &mut Random) -> Option<()> {
    match rule.name {
        "server-killed" => world.fault(rule, &ring.name, "", || {
            site.tell(serve::STOP);
            // Half of the time it is up again before anybody can tell it from a lost answer.
            if random.per_mille(500) {
                world.pause(random.within(0..=300));
            } else {
                hold(ring, world, random);
            }
            site.tell(serve::START);
        }),
        "server-frozen" => world.fault(rule, &ring.name, "", || {
            site.tell(serve::FREEZE);
            hold(ring, world, random);
            site.tell(serve::THAW);
        }),
        name => {
            let whom = match name {
                "holder-cut-off" => Whom::Holder,
                "waiter-cut-off" => Whom::Waiter,
                "all-cut-off" => Whom::All,
                _ => random.of(&[Whom::Holder, Whom::Waiter, Whom::All]),
            };
            let numbers = whom.numbers(ring, site, random)?;
            let proxies: Vec<&Proxy> = numbers.iter().map(|number| &site.proxies[*number]).collect();
            world.fault(rule, &ring.name, &format!("copies {numbers:?}"), || trouble(name, &proxies, ring, world, random));
        }
    }
    Some(())
}

#[derive(Clone, Copy)]
enum Whom {
    Holder,
    Waiter,
    All,
}

impl Whom {
    fn numbers(self, ring: &Ring, site: &Site, random: &mut Random) -> Option<Vec<usize>> {
        match self {
            Whom::Holder => ring.number(ring.holder()?.front).map(|number| vec![number]),
            Whom::Waiter => ring.number(ring.waiter(random)?.0).map(|number| vec![number]),
            Whom::All => Some((0..site.proxies.len()).collect()),
        }
    }
}

fn trouble(name: &str, proxies: &[&Proxy], ring: &Ring, world: &World, random: &mut Random) {
    let each = |act: fn(&Proxy)| proxies.iter().for_each(|proxy| act(proxy));
    match name {
        "holder-cut-off" | "waiter-cut-off" | "all-cut-off" => {
            each(Proxy::hold);
            hold(ring, world, random);
        }
        "replies-lost" => {
            each(Proxy::lose_replies);
            hold(ring, world, random);
        }
        // Late by less than an attempt, and by more.
        "slow" => {
            let bursts = random.within(3..=20);
            for _ in 0..bursts {
                each(Proxy::hold);
                world.pause(random.within(10..=world.table.times.heartbeat as u64));
                each(Proxy::pass);
                world.pause(random.within(1..=50));
            }
        }
        "reset" => {
            for _ in 0..random.within(1..=5) {
                each(Proxy::reset);
                world.pause(random.within(0..=20));
            }
        }
        "reset-mid-answer" => {
            let bytes = random.within(0..=200) as usize;
            proxies.iter().for_each(|proxy| proxy.reset_after(bytes));
            // Beats come by themselves.
            world.pause(2 * world.table.times.heartbeat as u64);
        }
        name => unreachable!("{name} is not of the network"),
    }
    each(Proxy::pass);
}
