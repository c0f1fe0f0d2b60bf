//! One state of the model: a store, and nodes with a machine, a guard and what lies between them. Everything that two equal
//! states could differ in without consequence is left out. Must never look into a machine.

use lockrun::lease::{Event, HolderId, Machine, Moment, Record, Reply, Request, Token, Version};

use crate::guard::Guard;

pub const MS: u64 = 1_000_000;
pub const SECOND: u64 = 1000 * MS;
/// What every clock shows at the start.
const BOOTED_FOR: u64 = 1000 * SECOND;

/// How fast a node's clock runs: so many of its seconds in so many real ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace(pub u64, pub u64);

impl Pace {
    pub const TRUE: Pace = Pace(1, 1);

    pub fn local(self, now: u64) -> Moment {
        Moment::from_nanos(BOOTED_FOR + now * self.0 / self.1)
    }

    /// When this clock shows at least that.
    pub fn real(self, local: Moment) -> u64 {
        (local.nanos().saturating_sub(BOOTED_FOR) * self.1).div_ceil(self.0)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub now: u64,
    pub record: Option<Record>,
    /// How far the store's own clock is ahead, and what it showed at the last write.
    pub store_ahead: u64,
    pub stored_at: u64,
    /// The record was free from then on.
    pub free_since: Option<u64>,
    /// An operator took the holder's name out of the record then.
    pub forced_at: Option<u64>,
    pub nodes: Vec<Node>,
    pub last_token: Token,
    pub left: Budget,
    pub broken: Option<&'static str>,
}

/// How many of each fault may still come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Messages to or from the store that do not come at once, or a whole stretch of them. `EVERY`: each may be one.
    pub losses: u8,
    /// Stops and deaths, of fronts and guards.
    pub processes: u8,
    /// Late or repeated replies to a request that was given up.
    pub repeats: u8,
    /// Steps of a wall clock or of the store's clock.
    pub steps: u8,
    /// Signals and changes of the record by hand.
    pub requests: u8,
    /// Commands that end by themselves.
    pub ends: u8,
}

pub const EVERY: u8 = u8::MAX;

impl Budget {
    pub const NONE: Budget = Budget { losses: 0, processes: 0, repeats: 0, steps: 0, requests: 0, ends: 0 };

    pub fn lose(&mut self, count: u8) {
        if self.losses != EVERY {
            self.losses -= count;
        }
    }
}

/// Which way to the store is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cut {
    Nothing,
    Requests,
    Replies,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Front {
    Runs(Machine),
    /// SIGSTOP. What the guard says meanwhile waits in the socket.
    Stopped(Machine, Vec<Event>),
    Killed,
    Exited,
}

/// The one request of a front that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wire {
    Read { request: Request, asked_at: Moment },
    Swap { request: Request, write: Write },
    Reply { request: Request, reply: Reply },
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    pub expect: Version,
    pub record: Record,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub front: Front,
    /// The front will be stopped in the middle of what it does next, after so many actions.
    pub stop_after: Option<u8>,
    pub wire: Option<Wire>,
    /// The front gives that request up then.
    pub wire_until: Moment,
    /// It did not come at once: it comes at any time, or never.
    pub held: bool,
    pub cut: Cut,
    /// What was given up and may still be written.
    pub late: Vec<Write>,
    /// What was given up and may still be answered.
    pub stale: Option<(Request, Reply)>,
    pub watch: Option<Version>,
    pub guard: Guard,
    /// SIGKILL was sent: nothing is left then, at the latest.
    pub reaped_by: Option<Moment>,
    /// The stop signal was sent: the command may end at any time.
    pub asked_to_end: bool,
    pub will: Option<Will>,
    /// `asked_at` of its newest write that the store has.
    pub landed: Moment,
    /// Writes of this instant, to tell them apart.
    pub writes: u8,
    /// Of its wall clock.
    pub wall_ahead_ms: i64,
}

/// The last will, on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Will {
    pub token: Token,
    /// Given up then.
    pub until: u64,
    pub held: bool,
}

impl Node {
    pub fn new(machine: Machine) -> Node {
        Node {
            front: Front::Runs(machine),
            stop_after: None,
            wire: None,
            wire_until: Moment::default(),
            held: false,
            cut: Cut::Nothing,
            late: vec![],
            stale: None,
            watch: None,
            guard: Guard::default(),
            reaped_by: None,
            asked_to_end: false,
            will: None,
            landed: Moment::default(),
            writes: 0,
            wall_ahead_ms: 0,
        }
    }

    pub fn machine(&self) -> Option<&Machine> {
        match &self.front {
            Front::Runs(machine) => Some(machine),
            Front::Stopped(..) | Front::Killed | Front::Exited => None,
        }
    }

    pub fn is_cut_off(&self) -> bool {
        match (&self.wire, self.cut) {
            (Some(Wire::Read { .. } | Wire::Swap { .. }), cut) => cut == Cut::Requests,
            (Some(Wire::Reply { .. }), cut) => cut == Cut::Replies,
            (None, _) => false,
        }
    }

    pub fn is_stopped(&self) -> bool {
        matches!(self.front, Front::Stopped(..))
    }

    /// Front and guard both do their work.
    pub fn is_whole(&self) -> bool {
        self.machine().is_some() && self.stop_after.is_none() && !self.guard.front_dead && !self.guard.dead && !self.guard.stopped
    }

    pub fn lives(&self) -> bool {
        self.guard.tree.is_some()
    }
}

impl World {
    pub fn version(&self) -> Version {
        self.record.as_ref().map_or(Version::Absent, |record| Version::At(record.write.to_string()))
    }

    pub fn holder(&self) -> Option<&HolderId> {
        Some(&self.record.as_ref()?.holder.as_ref()?.id)
    }

    pub fn breaks(&mut self, what: &'static str) {
        self.broken.get_or_insert(what);
    }
}
