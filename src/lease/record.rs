//! What a store keeps for a lease, and what a read of it shows. Must never judge: `claim` does.

use std::fmt;
use std::time::Duration;

use super::time::Moment;

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(String);

        impl $name {
            pub fn new(text: impl Into<String>) -> $name {
                $name(text.into())
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text! {
    /// One start of lockrun: random, so that nobody else can be taken for it.
    HolderId
}
text! {
    /// One write that was sent: random, fresh for each, so that a lost reply is recognised and a late one never credited to another.
    WriteId
}
text! {
    /// The name of a lease; `config` checks its letters.
    LeaseName
}

impl HolderId {
    pub fn from_random(random: u128) -> HolderId {
        HolderId(format!("{random:032x}"))
    }
}

impl WriteId {
    pub fn from_random(random: u128) -> WriteId {
        WriteId(format!("{random:032x}"))
    }
}

/// The fencing token: only grows for a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub i64);

impl Token {
    /// The next one: above the last, and at least the wall clock in milliseconds, so that it grows over a deleted or
    /// restored database too.
    /// `None`: there is none above the last.
    pub fn next(last: Option<Token>, wall_ms: i64) -> Option<Token> {
        let above = last.map_or(Some(1), |token| token.0.checked_add(1))?;
        Some(Token(above.max(wall_ms)))
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Who holds it. Everything but the id is for people and for `--instance`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Holder {
    pub id: HolderId,
    pub instance: Option<String>,
    pub hostname: String,
    /// 0: unknown.
    pub pid: u32,
    pub command: Vec<String>,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pid {
            0 => f.write_str(&self.hostname), // another program's, which says no pid
            pid => write!(f, "{}:{pid}", self.hostname),
        }
    }
}

/// The record of a lease. Never deleted: release keeps the token and takes the holder out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Of the write that made it so.
    pub write: WriteId,
    pub token: Token,
    /// `None`: free.
    pub holder: Option<Holder>,
    /// The TTL that counts, for the holder and for every waiter.
    pub ttl: Duration,
    /// Read by the holder before this write was sent.
    pub asked_at: Moment,
    /// Unix milliseconds, for people.
    pub acquired_ms: i64,
    pub renewed_ms: i64,
    /// The holder is ending its command.
    pub stopping: bool,
}

/// What a swap is conditional on; opaque to all but the store. `Absent`: there is no record yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Version {
    Absent,
    At(String),
}

/// Evidence about the holder of the record that was read, never a verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Evidence {
    /// One kernel's clock says that so much of the TTL is left.
    Left(Duration),
    /// The kernel lock of the record's holder came free at this instant or before: SIGKILL was sent to all of its tree.
    Gone(Moment),
    /// No clock in common: only watching the same version for the TTL and a tenth tells.
    NoClock,
    /// Too old by a wall clock that has stepped: it must be seen unchanged for so long.
    Unchanged(Duration),
}

/// The kernel lock beside a store of one machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KernelLock {
    /// This store has none: the record alone decides.
    None,
    Ours,
    /// Somebody of an old or present holder's tree has it, or a waiter before us.
    Others,
}

/// What happened to the record from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Finding {
    Plain,
    /// The database is not the one of our last swap.
    Replaced,
    /// The application removed its row of a record that still says held.
    RowRemoved,
}

/// What one read showed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    pub record: Option<Record>,
    pub version: Version,
    pub evidence: Evidence,
    pub lock: KernelLock,
    /// The same version was seen by a process of this boot at this instant already.
    pub seen_at: Option<Moment>,
    pub finding: Finding,
}

impl Snapshot {
    pub fn holder(&self) -> Option<&Holder> {
        self.record.as_ref()?.holder.as_ref()
    }

    pub fn token(&self) -> Option<Token> {
        self.record.as_ref().map(|record| record.token)
    }
}

/// The answer to a swap that was answered.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Swap {
    Done(Version),
    /// The record is not at the expected version; nothing was written.
    Conflict,
}
