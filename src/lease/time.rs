//! Instants as arguments. Must never read a clock.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

/// An instant of CLOCK_BOOTTIME, in nanoseconds. It counts suspend, which Rust's `Instant` does not.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(u64);

impl Moment {
    pub const fn from_nanos(nanos: u64) -> Moment {
        Moment(nanos)
    }

    pub const fn nanos(self) -> u64 {
        self.0
    }

    /// Zero if `earlier` is in fact later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;

    /// Saturates: a TTL as another program may have written it must not wrap around into the past.
    fn add(self, span: Duration) -> Moment {
        Moment(self.0.saturating_add(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Moment;

    fn sub(self, span: Duration) -> Moment {
        Moment(self.0.saturating_sub(u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "@{:?}", Duration::from_nanos(self.0))
    }
}

/// What the outside world says at one instant. All that is random or read from a wall clock is an input of the machine.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Moment,
    /// Unix milliseconds: for tokens and for people, never for a deadline.
    pub wall_ms: i64,
    /// Fresh for every event: a write id and the jitter come from it.
    pub random: u128,
}
