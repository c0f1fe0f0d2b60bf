//! One class of fault as a model for stateright: which nodes, which clocks, what may go wrong until when. Must never decide
//! what a step does.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use stateright::{Model, Property};

use lockrun::lease::{Asked, Clocks, Holder, HolderId, Machine, Moment, Now, OnLost, Settings, Timing, Token, Wait};

use crate::front::Step;
use crate::world::{Budget, Cut, EVERY, Front, MS, Node, Pace, SECOND, Wire, World};

/// What is broken on purpose, always outside the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Sound,
    /// The guard's deadline counts from when the reply came.
    DeadlineFromReply,
    /// The holder's margin is zero; the clocks drift.
    NoMargin,
    /// Nobody watches the front.
    GuardIgnoresDeadline,
    /// The guard takes a deadline that has passed for one that counts from its arrival.
    GuardStartsLate,
    /// The waiter goes by its own TTL.
    WaitersTtl,
    /// What the store's clock says decides.
    StoresClockDecides,
    /// The waiter's watching counts from when its read was sent.
    SeenFromRequest,
    /// A late reply is taken for the answer to the request in flight.
    LateReplyCredited,
    /// The guard says that all is gone when the command has ended, whatever it left behind.
    EmptyTooEarly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Server stores: only watching tells.
    None,
    /// Holder and waiters read one kernel's clock.
    OneKernel,
}

#[derive(Clone, Debug)]
pub struct Setup {
    pub settings: Settings,
    pub pace: Pace,
}

pub struct Case {
    pub nodes: Vec<Setup>,
    pub evidence: Evidence,
    pub variant: Variant,
    pub budget: Budget,
    pub leaves_children: bool,
    /// Whether the first node has the lease when the others come; if not they race for it.
    pub first_holds: bool,
    /// Messages of the first node alone are lost or late.
    pub only_first: bool,
    /// Apart from what is due by itself something may happen at every multiple of this.
    pub grid: u64,
    /// No fault from here on.
    pub calm_at: u64,
    pub end: u64,
    pub reached: Mutex<BTreeMap<&'static str, u64>>,
    /// Of the one run that is told.
    pub told: Option<Mutex<String>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Time goes on to the next instant at which anything can happen; what is due then is done.
    Pass,
    /// The store carries out the request of this node.
    Serve(usize),
    /// The same, and then once more: the answer to the second is the one that comes.
    ServeTwice(usize),
    Deliver(usize),
    /// An answer to a request that was given up.
    DeliverStale(usize),
    /// A write that was given up reaches the store.
    WriteLate(usize, usize),
    /// From here on nothing gets through this way.
    Cut(usize, Cut),
    Mend(usize),
    /// SIGKILL has done its work.
    Reaped(usize),
    Will(usize),
    CommandEnds(usize),
    ChildrenEnd(usize),
    StopFront(usize),
    /// In the middle of what it does next, after so many actions.
    StopFrontAfter(usize, u8),
    FrontGoesOn(usize),
    KillFront(usize),
    StopGuard(usize),
    GuardGoesOn(usize),
    KillGuard(usize),
    StepWall(usize, i64),
    StepStore,
    Signal(usize),
    /// An operator rewrites the record and leaves the holder in it.
    Touch,
    /// An operator takes the holder out of the record.
    Free,
}

/// The smallest set of times with a place for everything. TTL 3 s, clocks apart: renewal at 0.8, its time-out at 1.2, a second
/// try, TERM at 2.0, KILL at 2.2, dead by 2.7, and a waiter takes over after 3.3. One kernel's clock: 0.6, 0.9, 1.8, 2.0, 2.5,
/// and 3.0.
pub fn timing(ttl: Duration, clocks: Clocks) -> Timing {
    let heartbeat = match clocks {
        Clocks::Apart => ttl * 4 / 15,
        Clocks::OneKernel => ttl / 5,
    };
    let asked = Asked { ttl: Some(ttl), heartbeat: Some(heartbeat), grace: Some(ttl / 15) };
    Timing::new(asked, clocks).expect("a good set")
}

pub fn setup(index: usize, timing: Timing, pace: Pace) -> Setup {
    let id = HolderId::new(["a", "b", "c"][index]);
    let me = Holder { id, instance: None, hostname: String::new(), pid: 0, command: vec![] };
    // After a loss the one goes, and the other waits again.
    let on_lost = if index == 0 { OnLost::Exit } else { OnLost::Wait };
    let settings = Settings { me, outer: vec![], timing, wait: Wait::Forever, on_lost, kill_after: None };
    Setup { settings, pace }
}

impl Case {
    pub fn new(count: usize, evidence: Evidence) -> Case {
        let clocks = match evidence {
            Evidence::None => Clocks::Apart,
            Evidence::OneKernel => Clocks::OneKernel,
        };
        let ttl = timing(Duration::from_secs(3), clocks);
        Case {
            nodes: (0..count).map(|index| setup(index, ttl, Pace::TRUE)).collect(),
            evidence,
            variant: Variant::Sound,
            budget: Budget::NONE,
            leaves_children: false,
            first_holds: false,
            only_first: false,
            grid: 400 * MS,
            calm_at: 0,
            end: 0,
            reached: Mutex::default(),
            told: None,
        }
    }

    pub fn paced(mut self, paces: [Pace; 2]) -> Case {
        self.nodes.iter_mut().zip(paces).for_each(|(node, pace)| node.pace = pace);
        self
    }

    /// Faults until then; and then as long as a take-over can last.
    pub fn until(self, calm_at: f64) -> Case {
        let calm_at = (calm_at * SECOND as f64) as u64;
        let longest = self.nodes.iter().map(|node| node.settings.timing.ttl).max().unwrap_or_default();
        let end = calm_at + (longest * 3 / 2).as_nanos() as u64 + 2 * SECOND;
        Case { calm_at, end, ..self }
    }

    pub fn local(&self, world: &World, node: usize) -> Moment {
        self.nodes[node].pace.local(world.now)
    }

    /// The clocks of this node. All that is random comes from the state: each write of a node at one instant has a number, and
    /// the jitter is none.
    pub fn clock(&self, world: &World, node: usize) -> Now {
        let at = self.local(world, node);
        let unique = (u128::from(at.nanos()) * 10 + u128::from(world.nodes[node].writes)) * 10 + node as u128;
        Now { at, wall_ms: 1_700_000_000_000 + (world.now / MS) as i64 + world.nodes[node].wall_ahead_ms, random: unique * 41 + 20 }
    }

    pub fn reach(&self, what: &'static str) {
        *self.reached.lock().unwrap_or_else(PoisonError::into_inner).entry(what).or_default() += 1;
    }

    pub fn tell(&self, world: &World, line: impl FnOnce() -> String) {
        if let Some(told) = &self.told {
            let mut told = told.lock().unwrap_or_else(PoisonError::into_inner);
            writeln!(told, "{:>7.3}    {}", world.now as f64 / 1e9, line()).expect("a string takes all");
        }
    }

    /// The next instant at which something is due or may happen.
    pub fn next_instant(&self, world: &World) -> u64 {
        let mut next = if world.now < self.calm_at { self.calm_at } else { self.end };
        let mut consider = |at: u64| {
            if at > world.now {
                next = next.min(at);
            }
        };
        for (node, Setup { settings, pace }) in world.nodes.iter().zip(&self.nodes) {
            let guard = &node.guard;
            let deadline = guard.deadline.filter(|_| !guard.dead && !guard.over && !guard.killing);
            let deadline = deadline.map(|at| if guard.stopped { at + settings.timing.kill_time / 2 } else { at });
            let machine = node.machine().and_then(Machine::deadline);
            machine.into_iter().chain(deadline).chain(node.reaped_by).for_each(|at| consider(pace.real(at)));
            node.will.iter().for_each(|will| consider(will.until));
        }
        if self.has_choices(world) {
            consider((world.now / self.grid + 1) * self.grid);
        }
        next
    }

    fn has_choices(&self, world: &World) -> bool {
        let open = |node: &Node| {
            let asked = node.asked_to_end || (self.leaves_children && node.guard.tree.as_ref().is_some_and(|tree| !tree.command));
            node.cut != Cut::Nothing
                || node.wire.is_some()
                || !node.late.is_empty()
                || node.stale.is_some()
                || node.is_stopped()
                || node.guard.stopped
                || asked
        };
        let Budget { losses, processes, repeats: _, steps, requests, ends } = world.left;
        world.now < self.calm_at && (losses > 0 || processes + steps + requests + ends > 0 || world.nodes.iter().any(open))
    }

    fn faults(&self, world: &World, index: usize, actions: &mut Vec<Act>) {
        let node = &world.nodes[index];
        if node.is_stopped() {
            actions.push(Act::FrontGoesOn(index));
        }
        if node.guard.stopped && !node.guard.dead {
            actions.push(Act::GuardGoesOn(index));
        }
        if world.left.processes > 0 && node.is_whole() {
            actions.extend([Act::StopFront(index), Act::KillFront(index), Act::KillGuard(index)]);
            actions.extend((0..3).map(|after| Act::StopFrontAfter(index, after)));
            if !node.guard.killing {
                actions.push(Act::StopGuard(index));
            }
        }
        if node.cut != Cut::Nothing {
            actions.push(Act::Mend(index));
        } else if (1..EVERY).contains(&world.left.losses) && node.machine().is_some() && (index == 0 || !self.only_first) {
            actions.extend([Act::Cut(index, Cut::Requests), Act::Cut(index, Cut::Replies)]);
        }
        if world.left.steps > 0 && node.machine().is_some() {
            actions.extend([-10_000, 10_000].map(|by| Act::StepWall(index, by)));
        }
        if world.left.requests > 0 && node.machine().is_some() {
            actions.push(Act::Signal(index));
        }
        if node.stale.is_some() && world.left.repeats > 0 && node.machine().is_some() {
            actions.push(Act::DeliverStale(index));
        }
        actions.extend((0..node.late.len()).map(|number| Act::WriteLate(index, number)));
        let free = node.asked_to_end || world.left.ends > 0;
        match &node.guard.tree {
            Some(tree) if tree.command && free => actions.push(Act::CommandEnds(index)),
            Some(tree) if !tree.command && tree.children => actions.push(Act::ChildrenEnd(index)),
            Some(_) | None => {}
        }
    }
}

impl Model for Case {
    type State = World;
    type Action = Act;

    fn init_states(&self) -> Vec<World> {
        let mut world = World {
            now: 0,
            record: None,
            store_ahead: 0,
            stored_at: 0,
            free_since: None,
            forced_at: None,
            nodes: vec![],
            last_token: Token(0),
            left: self.budget,
            broken: None,
        };
        for (index, Setup { settings, pace }) in self.nodes.iter().enumerate() {
            let now = Now { at: pace.local(0), wall_ms: 0, random: index as u128 };
            world.nodes.push(Node::new(Machine::new(settings.clone(), now)));
        }
        let mut step = Step { case: self, world, sees_itself: false };
        for node in 0..self.nodes.len() {
            step.obey(node);
            while self.first_holds && node == 0 && step.world.nodes[node].wire.is_some() {
                step.act(Act::Serve(node));
                step.act(Act::Deliver(node));
            }
        }
        vec![step.world]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Act>) {
        if world.now >= self.end || world.broken.is_some() {
            return;
        }
        let mut late = 0;
        for (index, node) in world.nodes.iter().enumerate() {
            let before = actions.len();
            match &node.wire {
                Some(_) if node.is_cut_off() => {}
                Some(Wire::Read { .. }) => actions.push(Act::Serve(index)),
                Some(Wire::Swap { write, .. }) => {
                    actions.push(Act::Serve(index));
                    if world.left.repeats > 0 && write.expect == world.version() {
                        actions.push(Act::ServeTwice(index));
                    }
                }
                Some(Wire::Reply { .. }) if node.machine().is_some() => actions.push(Act::Deliver(index)),
                Some(Wire::Reply { .. }) | None => {}
            }
            let steady = self.only_first && index > 0;
            let cost = if steady { EVERY } else { 1 };
            late = u8::saturating_add(late, if actions.len() > before && !node.held { cost } else { 0 });
            if let Some(will) = node.will.as_ref().filter(|_| node.cut == Cut::Nothing) {
                actions.push(Act::Will(index));
                late = late.saturating_add(u8::from(!will.held));
            }
        }
        if world.now >= self.calm_at {
            actions.truncate(1);
        }
        actions.extend((0..world.nodes.len()).filter(|index| world.nodes[*index].reaped_by.is_some()).map(Act::Reaped));
        if world.now < self.calm_at {
            (0..world.nodes.len()).for_each(|index| self.faults(world, index, actions));
            if world.left.steps > 0 {
                actions.push(Act::StepStore);
            }
            if world.left.requests > 0 && world.holder().is_some() {
                actions.extend([Act::Touch, Act::Free]);
            }
        }
        if late == 0 || world.now < self.calm_at && late <= world.left.losses {
            actions.push(Act::Pass);
        }
    }

    /// Where nothing is left to choose it goes on: such states are judged, and not kept.
    fn next_state(&self, world: &World, act: Act) -> Option<World> {
        let mut step = Step { case: self, world: world.clone(), sees_itself: false };
        step.act(act);
        let mut actions = vec![];
        loop {
            self.judge(&mut step.world);
            actions.clear();
            self.actions(&step.world, &mut actions);
            let [only] = actions[..] else { return Some(step.world) };
            step.act(only);
        }
    }

    fn properties(&self) -> Vec<Property<Case>> {
        fn holds<const RULE: usize>(_: &Case, world: &World) -> bool {
            world.broken != Some(RULES[RULE])
        }
        vec![
            Property::always(RULES[0], holds::<0>),
            Property::always(RULES[1], holds::<1>),
            Property::always(RULES[2], holds::<2>),
            Property::always(RULES[3], holds::<3>),
            Property::always(RULES[4], holds::<4>),
            Property::always(RULES[5], holds::<5>),
            Property::always(RULES[6], holds::<6>),
            Property::always(RULES[7], holds::<7>),
        ]
    }
}

pub const OVERLAP: &str = "commands of one lease never overlap";
pub const TOKEN: &str = "tokens rise";
pub const LATE: &str = "nothing lives after its time";
pub const FREE: &str = "nothing lives of a lease that is free";
pub const EXIT: &str = "nobody exits before the tree is empty";
pub const TURNS: &str = "a machine comes to rest";
pub const TAKEN: &str = "a free lease is taken";
pub const GETS: &str = "a waiter gets it in the end";
const RULES: [&str; 8] = [OVERLAP, TOKEN, LATE, FREE, EXIT, TURNS, TAKEN, GETS];

impl Case {
    /// What must be so in every state. TOKEN and TURNS are found out where they happen.
    fn judge(&self, world: &mut World) {
        let nodes = || world.nodes.iter().enumerate();
        let runs = nodes().any(|(_, node)| node.machine().is_some());
        let settings = |index: usize| &self.nodes[index].settings.timing;
        let overlap = nodes().filter(|(_, node)| node.lives()).count() > 1 && !self.may_overlap(world);
        let dead_by = |index: usize, node: &Node| settings(index).dead_by(node.landed);
        let late = nodes().any(|(index, node)| node.lives() && dead_by(index, node) < self.local(world, index));
        let free = world.record.as_ref().filter(|record| record.holder.is_none() && world.forced_at.is_none());
        let lives = |token| nodes().any(|(_, node)| node.guard.tree.as_ref().is_some_and(|tree| tree.token == token));
        // Once requests are answered a waiter reads at each heartbeat at the latest.
        let heartbeat = self.nodes.iter().map(|node| node.settings.timing.heartbeat.as_nanos() as u64).max().unwrap_or(0);
        let answered_from = if self.budget.losses > 0 { self.calm_at } else { 0 };
        let left_lying = world.free_since.is_some_and(|since| world.now > since.max(answered_from) + 2 * heartbeat);
        let rules = [
            (OVERLAP, overlap),
            (LATE, late && self.variant == Variant::Sound),
            (FREE, free.is_some_and(|record| lives(record.token))),
            (EXIT, nodes().any(|(_, node)| node.front == Front::Exited && node.lives())),
            (TAKEN, runs && left_lying),
            // The graph is acyclic, for time never goes back and at one instant each action uses something up. So every path
            // ends, and what must happen in the end has happened in each state that nothing follows.
            (GETS, world.now >= self.end && runs && !nodes().any(|(_, node)| node.lives())),
        ];
        if overlap {
            world.broken = Some(OVERLAP); // whatever else is broken by it
        }
        if let Some((rule, _)) = rules.into_iter().find(|(_, broken)| *broken) {
            world.breaks(rule);
        }
    }

    /// An operator who takes the name of a living holder out of the record lets another start at once. The holder finds out at
    /// its next heartbeat, and kills.
    pub fn may_overlap(&self, world: &World) -> bool {
        let holder = &self.nodes[0].settings.timing;
        let bound = (holder.heartbeat + holder.kill_time).as_nanos() as u64;
        world.forced_at.is_some_and(|at| world.now <= at + bound)
    }
}
