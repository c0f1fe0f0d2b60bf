//! The tables of faults, one for each kind of store: where each can be injected, and what the protocol promises while it
//! lasts and after it. Must never inject one itself.

pub mod server;
pub mod sqlite;

/// The times that all copies are given, and what follows from them, in milliseconds.
#[derive(Debug)]
pub struct Times {
    pub ttl: i64,
    pub heartbeat: i64,
    pub grace: i64,
    /// From SIGKILL to everything reaped (lease.md 1 and 2).
    pub kill_time: i64,
}

/// What a loaded machine may add to anything, and a copy's restart: it pauses up to half a second.
pub const SLACK: i64 = 2000;

/// What the command exits with when nobody ends it.
pub const OWN_CODES: [i32; 3] = [0, 3, 42];

/// What must be there for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Copies of lockrun: every store has them.
    Copies,
    /// The database's files.
    Files,
    /// The files on a file system of their own.
    Disk,
    /// A network between each copy and the store.
    Network,
    /// A server that may be killed.
    Server,
    /// The machine; it hits every ring.
    Machine,
}

/// What a ring's store offers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    SqliteInFolder,
    SqliteOnDisk,
    OwnServer,
    /// Somebody else's: it is left alone.
    GivenServer,
}

impl Kind {
    pub fn has(self, needs: Needs) -> bool {
        match needs {
            Needs::Copies => true,
            Needs::Files => matches!(self, Kind::SqliteInFolder | Kind::SqliteOnDisk),
            Needs::Disk => self == Kind::SqliteOnDisk,
            Needs::Network => matches!(self, Kind::OwnServer | Kind::GivenServer),
            Needs::Server => self == Kind::OwnServer,
            Needs::Machine => false,
        }
    }
}

/// Nobody need run until the later of `after_start` past its beginning and, if there is one, `after_end` past its end.
#[derive(Debug)]
pub struct Rule {
    pub name: &'static str,
    pub needs: Needs,
    pub after_start: i64,
    pub after_end: Option<i64>,
    pub leaves: Leaves,
}

/// What a fault may leave beside an idle time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leaves {
    Nothing,
    /// The store cannot be used while it lasts: copies that start meanwhile may exit with 125.
    Unusable,
    /// The database may be damaged until it is made anew: copies may exit with 125.
    Damage,
    /// The store cannot be used, and a front may die of SIGBUS: it maps the -shm, and a write to a page of a file that has
    /// become immutable is SIGBUS.
    ReadOnly,
    /// Damage, and a front may die of SIGBUS: pages that it has mapped are gone.
    Truncated,
    /// Record and kernel lock are gone at once: two may run for a heartbeat and the kill time (lease.md 5).
    TwoForAMoment,
}

const fn rule(name: &'static str, needs: Needs, after_start: i64, after_end: Option<i64>, leaves: Leaves) -> Rule {
    Rule { name, needs, after_start, after_end, leaves }
}

/// Steps the wall clock of the whole machine: only when it is asked for by name.
pub const CLOCK: &str = "clock";
/// The harness itself was not run for a while, so nothing else may have been.
pub const LATE: &str = "late";
/// Copies refuse a damaged database: it is made anew, as an operator would.
pub const REPAIR: &str = "repaired";
/// The harness does or notices them.
const NOT_DRAWN: [&str; 2] = [REPAIR, LATE];

#[derive(Debug)]
pub struct Table {
    pub times: Times,
    pub rules: &'static [Rule],
}

impl Table {
    pub fn by_name(&self, name: &str) -> Option<&'static Rule> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    fn drawable(&self) -> impl Iterator<Item = &'static Rule> {
        self.rules.iter().filter(|rule| !NOT_DRAWN.contains(&rule.name))
    }

    /// Those that are drawn, by their names; none given: all but those that must be asked for.
    pub fn asked(&self, names: Option<&str>) -> Result<Vec<&'static Rule>, String> {
        let rules: Vec<&'static Rule> = match names {
            None => self.drawable().filter(|rule| rule.name != CLOCK).collect(),
            Some("none") => Vec::new(),
            Some(names) => {
                let named = |name| self.drawable().find(|rule| rule.name == name);
                let known = |name| named(name).ok_or_else(|| format!("--faults {name}: not known; none, or of {}", self.known()));
                names.split(',').map(known).collect::<Result<_, _>>()?
            }
        };
        match rules.iter().find(|rule| sqlite::touches_files(rule)) {
            // The token of a record that is gone is known by the clock alone (lease.md 3).
            Some(rule) if rules.iter().any(|rule| rule.name == CLOCK) => Err(format!("--faults {CLOCK},{}: tokens could fall", rule.name)),
            Some(_) | None => Ok(rules),
        }
    }

    pub fn known(&self) -> String {
        self.drawable().map(|rule| rule.name).collect::<Vec<_>>().join(",")
    }
}
