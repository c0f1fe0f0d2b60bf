//! The world in which the machines run: clocks, requests that are lost or late, fronts that are stopped or die. It judges
//! from outside, by what is alive when. Must never look into a machine.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use lockrun::lease::{
    Asked, Clocks, GuardEvent, Holder, HolderId, LeaseName, Machine, Moment, Now, OnLost, Record, Reply, Request, Settings, Timing, Token,
    Version, Wait, WriteId,
};
use lockrun::lease::{Event, Outcome};
use lockrun::store::memory::MemoryStore;

use crate::guard::{Guard, Order};
use crate::random::Random;

/// What is broken on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    Sound,
    /// The guard's deadline counts from when the reply came.
    DeadlineFromReply,
    /// The holder's margin is zero; the clocks drift.
    NoMargin,
    GuardIgnoresDeadline,
    /// The guard takes a deadline that has passed for one that counts from its arrival, and starts the command.
    GuardStartsLate,
    /// The waiter goes by its own TTL.
    WaitersTtl,
    /// A waiter takes what one clock says for what all say.
    ForeignClockDecides,
    /// The waiter's watching begins before its request was sent, by a whole TTL.
    SeenTooEarly,
    /// A late reply is taken for the answer to the request in flight.
    LateReplyCredited,
    /// The record is freed when the command has ended, whatever it left behind.
    EmptyTooEarly,
}

pub const MS: u64 = 1_000_000;

pub enum What {
    Start,
    Wake,
    Tell(Event),
    Continue,
    Read {
        run: u32,
        request: Request,
        asked: Moment,
    },
    Swap {
        run: u32,
        request: Request,
        expect: Version,
        record: Record,
    },
    Order(Order),
    GuardWake,
    /// The command has ended by itself or by a signal.
    Ends(lockrun::lease::Tenure),
    /// What it left behind has ended.
    ChildrenEnd(lockrun::lease::Tenure),
    /// SIGKILL has done its work.
    Reaped,
    SocketClosed,
    /// The kernel's timer of a guard that is stopped.
    GuardTimer,
    GuardGoesOn,
    WillReads(Token, HolderId),
    WillWrites(Version, Record),
    Fault,
    /// No more faults from here.
    Calm,
}

pub struct Entry {
    at: u64,
    order: u64,
    pub node: usize,
    /// Of which start of this node's lockrun; `None`: of the world.
    pub run: Option<u32>,
    pub what: What,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Entry) -> bool {
        self.order == other.order
    }
}
impl Eq for Entry {}
impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Entry) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Entry {
    fn cmp(&self, other: &Entry) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

pub struct Node {
    /// Of its clock: nanoseconds ahead at the start, and parts per million too fast.
    ahead: u64,
    ppm: i64,
    /// Of the wall clock.
    wall_ms: i64,
    pub settings: Settings,
    pub run: u32,
    pub machine: Option<Machine>,
    pub wake_at: u64,
    pub stopped: bool,
    /// The stop signal was sent because this lease runs out: there is no way back.
    pub stopping: bool,
    pub backlog: Vec<Event>,
    pub last_request: Request,
    pub last_writes: bool,
    pub watch: Option<Version>,
    pub guard: Guard,
    /// Orders and answers keep their sequence.
    pub to_guard: u64,
    pub to_front: u64,
    pub requests: u32,
}

impl Node {
    pub fn local(&self, now: u64) -> Moment {
        let scaled = u128::from(now) * (1_000_000 + self.ppm) as u128 / 1_000_000;
        Moment::from_nanos(self.ahead + scaled as u64)
    }

    /// When this node's clock shows at least that.
    pub fn real(&self, local: Moment) -> u64 {
        let span = u128::from(local.nanos().saturating_sub(self.ahead));
        (span * 1_000_000).div_ceil((1_000_000 + self.ppm) as u128).min(u128::from(u64::MAX)) as u64
    }
}

pub struct World {
    pub random: Random,
    pub variant: Variant,
    pub now: u64,
    queue: BinaryHeap<Reverse<Entry>>,
    entries: u64,
    pub store: MemoryStore,
    pub name: LeaseName,
    pub nodes: Vec<Node>,
    pub faults: bool,
    /// Until then every request is answered by an error at once.
    pub outage_until: u64,
    pub ttl: u64,
    pub last_token: Token,
    pub starts_when_calm: u32,
    pub seen: BTreeMap<&'static str, u32>,
    pub trace: Option<Vec<String>>,
    pub broken: Option<String>,
}

impl World {
    pub fn new(seed: u64, variant: Variant, traced: bool) -> World {
        let mut random = Random::new(seed);
        let one_clock = match variant {
            Variant::NoMargin | Variant::SeenTooEarly => false,
            Variant::WaitersTtl | Variant::ForeignClockDecides => true,
            _ => random.per_mille(500),
        };
        let store = MemoryStore::new(one_clock);
        let drifting = !one_clock || variant == Variant::ForeignClockDecides;
        let count = random.within(2..=5);
        let longest = random.of(&[2, 5, 12, 30]);
        let nodes = (0..count).map(|index| node(&mut random, index as usize, drifting, one_clock, longest, variant)).collect();
        let mut world = World {
            random,
            variant,
            now: 0,
            queue: BinaryHeap::new(),
            entries: 0,
            store,
            name: LeaseName::new("simulated"),
            nodes,
            faults: true,
            outage_until: 0,
            ttl: longest * 1000 * MS,
            last_token: Token(0),
            starts_when_calm: 0,
            seen: BTreeMap::new(),
            trace: traced.then(Vec::new),
            broken: None,
        };
        for index in 0..world.nodes.len() {
            let start = world.random.within(0..=world.ttl / 2);
            world.later(start, index, None, What::Start);
        }
        let first = world.random.within(0..=world.ttl);
        world.later(first, 0, None, What::Fault);
        world.later(5 * world.ttl, 0, None, What::Calm);
        world
    }

    /// Runs to the end, or to what is broken.
    pub fn run(&mut self) -> Result<(), String> {
        let end = 10 * self.ttl;
        let mut steps = 0;
        while let Some(Reverse(entry)) = self.queue.pop() {
            if entry.at > end {
                break;
            }
            self.now = entry.at;
            if entry.run.is_none_or(|run| run == self.nodes[entry.node].run) {
                self.step(entry.node, entry.what);
            }
            steps += 1;
            if steps > 200_000 {
                self.breaks("it turns without end".to_string());
            }
            if let Some(broken) = self.broken.take() {
                return Err(broken);
            }
        }
        match self.starts_when_calm {
            0 => Err("nobody got the lease after the faults had stopped".to_string()),
            _ => Ok(()),
        }
    }

    pub fn later(&mut self, span: u64, node: usize, run: Option<u32>, what: What) {
        self.at(self.now + span, node, run, what);
    }

    pub fn at(&mut self, at: u64, node: usize, run: Option<u32>, what: What) {
        self.entries += 1;
        self.queue.push(Reverse(Entry { at, order: self.entries, node, run, what }));
    }

    /// For this start of the node's lockrun only.
    pub fn mine(&mut self, span: u64, node: usize, what: What) {
        let run = self.nodes[node].run;
        self.later(span, node, Some(run), what);
    }

    pub fn breaks(&mut self, what: String) {
        self.note(|| format!("BROKEN: {what}"));
        self.broken.get_or_insert(what);
    }

    pub fn note(&mut self, line: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>10.3}  {}", self.now as f64 / 1e9, line()));
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    pub fn clock(&mut self, node: usize) -> Now {
        let random = u128::from(self.random.next()) << 64 | u128::from(self.random.next());
        let node = &self.nodes[node];
        Now { at: node.local(self.now), wall_ms: node.wall_ms + (self.now / MS) as i64, random }
    }

    /// A new lockrun on this node, with a new guard.
    pub fn start(&mut self, node: usize) {
        let now = self.clock(node);
        self.nodes[node].run += 1;
        let run = self.nodes[node].run;
        let n = &mut self.nodes[node];
        n.settings.me.id = HolderId::new(format!("{node}.{run}"));
        n.guard = Guard::default();
        (n.stopped, n.watch, n.to_guard, n.to_front, n.requests) = (false, None, 0, 0, 0);
        n.backlog.clear();
        n.machine = Some(Machine::new(n.settings.clone(), now));
        self.note(|| format!("{node}.{run} starts"));
        self.obey(node);
    }

    /// A request, on its way. Lost before or after it takes effect, or late.
    pub fn request(&mut self, node: usize, request: Request, what: What) {
        let n = &mut self.nodes[node];
        (n.last_request, n.last_writes, n.watch) = (request, matches!(what, What::Swap { .. }), None);
        let run = n.run;
        n.requests += 1;
        if n.requests > 3000 {
            self.breaks(format!("{node}: the store is asked without a pause"));
        }
        if self.now < self.outage_until {
            return self.answer(node, run, request, Reply::Unknown("outage".to_string()));
        }
        if self.faults && self.random.per_mille(60) {
            return self.count("lost request");
        }
        let delay = self.delay(node);
        // The store serves it also when its sender is dead by then.
        self.later(delay, node, None, what);
    }

    /// A reply, on its way to that start of the node's lockrun.
    pub fn answer(&mut self, node: usize, run: u32, request: Request, reply: Reply) {
        if self.faults && self.random.per_mille(60) {
            return self.count("lost reply");
        }
        let delay = self.delay(node);
        if self.faults && self.random.per_mille(20) {
            self.later(delay + 40 * MS, node, Some(run), What::Tell(Event::Reply { request, reply: reply.clone() }));
        }
        self.later(delay, node, Some(run), What::Tell(Event::Reply { request, reply }));
    }

    fn delay(&mut self, node: usize) -> u64 {
        let attempt = self.nodes[node].settings.timing.attempt.as_nanos() as u64;
        match self.random.within(0..=99) {
            _ if !self.faults => self.random.within(MS / 10..=attempt / 10),
            0..=69 => self.random.within(MS / 10..=20 * MS),
            70..=94 => self.random.within(0..=attempt),
            95..=97 => self.random.within(0..=4 * attempt),
            _ => self.random.within(0..=self.ttl * 3 / 2),
        }
    }

    /// To the front, in the order in which the guard says it.
    pub fn say(&mut self, node: usize, event: GuardEvent) {
        let at = (self.now + self.random.within(0..=2 * MS)).max(self.nodes[node].to_front);
        self.nodes[node].to_front = at;
        let run = self.nodes[node].run;
        self.at(at, node, Some(run), What::Tell(Event::Guard(event)));
    }

    /// To the guard, in order.
    pub fn order(&mut self, node: usize, order: Order) {
        let at = (self.now + self.random.within(0..=2 * MS)).max(self.nodes[node].to_guard);
        self.nodes[node].to_guard = at;
        let run = self.nodes[node].run;
        self.at(at, node, Some(run), What::Order(order));
    }

    /// The front is gone, and with it its guard once its tree is: cron starts another.
    pub fn ended(&mut self, node: usize, outcome: &Outcome) {
        self.note(|| format!("{node} exits: {outcome:?}"));
        if self.nodes[node].guard.tree.is_some() {
            self.breaks(format!("{node} exits while something lives"));
        }
        if self.nodes[node].stopping && matches!(outcome, Outcome::Command(_)) {
            self.breaks(format!("{node} was losing its lease, and exits as its command did"));
        }
        self.nodes[node].stopping = false;
        self.nodes[node].machine = None;
        self.nodes[node].run += 1;
        let pause = self.random.within(MS..=self.ttl / 4);
        self.later(pause, node, None, What::Start);
    }

    pub fn free(record: &Record, write: u128) -> Record {
        Record { write: WriteId::from_random(write), holder: None, stopping: false, ..record.clone() }
    }
}

fn node(random: &mut Random, index: usize, drifting: bool, one_clock: bool, longest: u64, variant: Variant) -> Node {
    let clocks = if one_clock { Clocks::OneKernel } else { Clocks::Apart };
    let least = if variant == Variant::WaitersTtl && index > 0 { 2 } else { longest.div_ceil(2).max(2) };
    let ttl = Duration::from_secs(random.within(least..=longest));
    let heartbeat = random.of(&[None, Some(ttl / 3), Some(ttl / 4), Some(ttl / 6)]);
    let grace = random.of(&[None, Some(Duration::ZERO)]);
    let asked = Asked { ttl: Some(ttl), heartbeat, grace };
    let whole = Asked { ttl: Some(ttl), ..Asked::default() };
    let mut timing = Timing::new(asked, clocks).or_else(|_| Timing::new(whole, clocks)).expect("defaults hold");
    if variant == Variant::NoMargin {
        timing.margin = Duration::ZERO;
    }
    let ppm = if drifting { random.of(&[-80_000, -80_000, 0, 40_000, 80_000, 80_000]) } else { 0 };
    let ahead = if drifting { random.within(0..=1000) * 1000 * MS } else { 0 };
    let wait = match index {
        0 => Wait::Forever,
        _ => random.of(&[Wait::Forever, Wait::Forever, Wait::For(ttl * 2), Wait::For(ttl / 2), Wait::No]),
    };
    let me = Holder { id: HolderId::new("not started"), instance: None, hostname: format!("node{index}"), pid: 1, command: vec![] };
    let settings = Settings {
        me,
        outer: vec![],
        timing,
        wait,
        on_lost: random.of(&[OnLost::Exit, OnLost::Wait]),
        kill_after: random.of(&[None, Some(ttl / 8)]),
    };
    Node {
        ahead: 1000 * 1000 * MS + ahead,
        ppm,
        wall_ms: 1_700_000_000_000 + random.within(0..=20_000) as i64,
        settings,
        run: 0,
        machine: None,
        wake_at: u64::MAX,
        stopped: false,
        stopping: false,
        backlog: vec![],
        last_request: Request(0),
        last_writes: false,
        watch: None,
        guard: Guard::default(),
        to_guard: 0,
        to_front: 0,
        requests: 0,
    }
}
