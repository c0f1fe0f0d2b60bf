//! The times of a lease: which settings can hold the promise. Must never be built with a set that cannot.

use std::fmt;
use std::time::Duration;

use super::time::Moment;

const MINUTE: Duration = Duration::from_secs(60);
/// Half of it is the time-out of a request, and no store answers in less.
const MIN_HEARTBEAT: Duration = Duration::from_millis(10);
const MIN_TTL: Duration = Duration::from_secs(2);
const MAX_TTL: Duration = Duration::from_secs(366 * 86_400);
const MAX_GRACE_UNASKED: Duration = Duration::from_secs(10);
const MAX_ATTEMPT: Duration = Duration::from_millis(2500);

/// How long a release is tried, by the holder or by its last will; what cannot be confirmed runs out by itself.
pub const RELEASE_TIME: Duration = Duration::from_secs(2);

/// Whose clocks meet in a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clocks {
    /// Holder and waiters read one kernel's clock (SQLite).
    OneKernel,
    /// Each side counts by its own (server stores): the margin covers one side slewing at 8.3 %.
    Apart,
}

/// What the user gave.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked {
    pub ttl: Option<Duration>,
    pub heartbeat: Option<Duration>,
    pub grace: Option<Duration>,
}

/// A set of times that satisfies every relation of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Timing {
    pub ttl: Duration,
    pub heartbeat: Duration,
    pub grace: Duration,
    /// From `dead_by` to the end of the TTL.
    pub margin: Duration,
    /// From SIGKILL to everything reaped.
    pub kill_time: Duration,
    /// The time-out of one request to the store.
    pub attempt: Duration,
}

/// The relation that the settings break, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimingError(String);

impl fmt::Display for TimingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for TimingError {}

impl Timing {
    /// A value that was not given bends to those that were; only given values can contradict each other.
    pub fn new(asked: Asked, clocks: Clocks) -> Result<Timing, TimingError> {
        if let Some(heartbeat) = asked.heartbeat.filter(|heartbeat| *heartbeat < MIN_HEARTBEAT) {
            return Err(TimingError(format!("heartbeat {heartbeat:?}: must be {MIN_HEARTBEAT:?} or more")));
        }
        if let Some(ttl) = asked.ttl {
            return Timing::with_ttl(ttl, asked, clocks);
        }
        // The least whole minutes that satisfy it: what is needed grows more slowly than the TTL.
        let (mut least, mut most) = (1, (MAX_TTL.as_secs() / MINUTE.as_secs()) as u32);
        while least < most {
            let middle = least.midpoint(most);
            match Timing::with_ttl(MINUTE * middle, asked, clocks) {
                Ok(_) => most = middle,
                Err(_) => least = middle + 1,
            }
        }
        Timing::with_ttl(MINUTE * least, asked, clocks)
    }

    fn with_ttl(ttl: Duration, asked: Asked, clocks: Clocks) -> Result<Timing, TimingError> {
        if ttl < MIN_TTL || ttl > MAX_TTL {
            return Err(TimingError(format!("ttl {}: must be 2s to 366d", Seconds(ttl))));
        }
        let margin = match clocks {
            Clocks::OneKernel => Duration::from_millis(500).min(ttl / 6),
            Clocks::Apart => ttl / 10,
        };
        let kill_time = match clocks {
            Clocks::OneKernel => Duration::from_secs(1).min(ttl / 6),
            Clocks::Apart => Duration::from_millis(500).min(ttl / 6),
        };
        let heartbeat = asked.heartbeat.unwrap_or(ttl / 12);
        if heartbeat > ttl / 3 {
            let least = Seconds(heartbeat.saturating_mul(3));
            return Err(TimingError(format!(
                "heartbeat {} with ttl {}: heartbeat ≤ ttl/3 must hold; a ttl of {least} or more would do",
                Seconds(heartbeat),
                Seconds(ttl)
            )));
        }
        let attempt = (heartbeat / 2).min(MAX_ATTEMPT);
        let fixed = margin + kill_time + heartbeat + 3 * attempt;
        let grace = asked.grace.unwrap_or_else(|| (ttl / 6).min(MAX_GRACE_UNASKED).min(ttl.saturating_sub(fixed)));
        let needed = fixed.saturating_add(grace);
        if needed > ttl {
            return Err(TimingError(format!(
                "ttl {} with grace {} and heartbeat {}: ttl ≥ margin + kill time + grace + heartbeat + 3 attempts must hold, \
                 which needs {}; raise --ttl or lower --grace",
                Seconds(ttl),
                Seconds(grace),
                Seconds(heartbeat),
                Seconds(needed)
            )));
        }
        Ok(Timing { ttl, heartbeat, grace, margin, kill_time, attempt })
    }

    /// Everything of the tree is reaped at this instant, if the last good write was sent at `asked_at`.
    pub fn dead_by(&self, asked_at: Moment) -> Moment {
        asked_at + (self.ttl - self.margin)
    }

    /// SIGKILL at the latest.
    pub fn kill_at(&self, asked_at: Moment) -> Moment {
        asked_at + (self.ttl - self.margin - self.kill_time)
    }

    /// The stop signal, if no later write was confirmed until then.
    pub fn term_at(&self, asked_at: Moment) -> Moment {
        asked_at + (self.ttl - self.margin - self.kill_time - self.grace)
    }

    pub fn renew_at(&self, asked_at: Moment) -> Moment {
        asked_at + self.heartbeat
    }

    /// The pause after the n-th failure in a row (from 0): a tenth of a second, doubled up to a second, never above a
    /// heartbeat, and a fifth up or down by `random`.
    pub fn pause(&self, failures: u32, random: u128) -> Duration {
        let base = Duration::from_millis(100) * (1 << failures.min(4));
        let base = base.min(Duration::from_secs(1)).min(self.heartbeat / 2).max(Duration::from_millis(1));
        let percent = 80 + (random % 41) as u32;
        base * percent / 100
    }
}

/// A duration as people read it: `59.5s`, `300ms`, `2m`.
pub struct Seconds(pub Duration);

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        let seconds = self.0.as_secs();
        match seconds {
            0 => write!(f, "{millis}ms"),
            1..120 if millis.is_multiple_of(1000) => write!(f, "{seconds}s"),
            1..120 => write!(f, "{:.1}s", self.0.as_secs_f64()),
            120..7200 if seconds.is_multiple_of(60) => write!(f, "{}m", seconds / 60),
            120..7200 => write!(f, "{}m{}s", seconds / 60, seconds % 60),
            7200..172_800 => write!(f, "{}h{}m", seconds / 3600, seconds / 60 % 60),
            _ => write!(f, "{}d{}h", seconds / 86_400, seconds / 3600 % 24),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secs(s: f64) -> Option<Duration> {
        Some(Duration::from_secs_f64(s))
    }

    fn ladder(asked: Asked, clocks: Clocks) -> [f64; 3] {
        let timing = Timing::new(asked, clocks).expect("a good set");
        let zero = Moment::from_nanos(0);
        [timing.term_at(zero), timing.kill_at(zero), timing.dead_by(zero)].map(|at| (at.since(zero).as_secs_f64() * 100.0).round() / 100.0)
    }

    #[test]
    fn the_ladders_of_the_protocol_come_out_as_documented() {
        assert_eq!(ladder(Asked::default(), Clocks::OneKernel), [48.5, 58.5, 59.5]);
        assert_eq!(ladder(Asked::default(), Clocks::Apart), [43.5, 53.5, 54.0]);
        let short = Asked { ttl: secs(3.0), heartbeat: secs(0.25), grace: secs(0.3) };
        assert_eq!(ladder(short, Clocks::OneKernel), [1.7, 2.0, 2.5]);
        assert_eq!(ladder(Asked { ttl: secs(2.0), ..Asked::default() }, Clocks::OneKernel), [1.0, 1.33, 1.67]);
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_with_the_relation() {
        let error = Timing::new(Asked { ttl: secs(5.0), grace: secs(10.0), heartbeat: None }, Clocks::OneKernel).unwrap_err();
        assert!(error.to_string().contains("12.4s"), "{error}");
        assert!(error.to_string().contains("ttl ≥ margin"), "{error}");
        let error = Timing::new(Asked { ttl: secs(9.0), heartbeat: secs(3.1), grace: None }, Clocks::OneKernel).unwrap_err();
        assert!(error.to_string().contains("heartbeat ≤ ttl/3"), "{error}");
        for ttl in [0.0, 1.9] {
            Timing::new(Asked { ttl: secs(ttl), ..Asked::default() }, Clocks::OneKernel).unwrap_err();
        }
        Timing::new(Asked { heartbeat: secs(0.0), ..Asked::default() }, Clocks::OneKernel).unwrap_err();
    }

    #[test]
    fn a_value_that_was_not_given_bends_to_those_that_were() {
        let long_grace = Timing::new(Asked { grace: secs(60.0), ..Asked::default() }, Clocks::OneKernel).expect("the TTL is raised");
        assert_eq!(long_grace.ttl, Duration::from_secs(120));
        let rare = Timing::new(Asked { heartbeat: secs(30.0), ..Asked::default() }, Clocks::OneKernel).expect("the TTL is raised");
        assert_eq!(rare.ttl, Duration::from_secs(120));
        let day = Timing::new(Asked { grace: secs(86_400.0), ..Asked::default() }, Clocks::OneKernel).expect("the TTL is raised");
        assert!(day.ttl > Duration::from_secs(86_400));
    }

    #[test]
    fn twelve_heartbeats_fit_into_the_ttl_by_default() {
        for ttl in 2..600 {
            let timing = Timing::new(Asked { ttl: secs(f64::from(ttl)), ..Asked::default() }, Clocks::OneKernel).expect("a good set");
            assert!(timing.heartbeat * 12 <= timing.ttl);
        }
    }

    #[test]
    fn every_set_that_is_accepted_keeps_the_order_of_the_ladder() {
        let steps = [0.25, 0.5, 1.0, 2.0, 3.3, 5.0, 20.0, 90.0];
        let zero = Moment::from_nanos(0);
        for clocks in [Clocks::OneKernel, Clocks::Apart] {
            for ttl in steps.iter().chain(&[0.0]) {
                for heartbeat in steps.iter().chain(&[0.0]) {
                    for grace in steps.iter().chain(&[0.0]) {
                        let given = |value: &f64| secs(*value).filter(|value| !value.is_zero());
                        let asked = Asked { ttl: given(ttl), heartbeat: given(heartbeat), grace: given(grace) };
                        let Ok(timing) = Timing::new(asked, clocks) else { continue };
                        assert!(timing.renew_at(zero) < timing.term_at(zero), "{timing:?}");
                        assert!(timing.term_at(zero) <= timing.kill_at(zero), "{timing:?}");
                        assert!(timing.kill_at(zero) < timing.dead_by(zero), "{timing:?}");
                        assert!(timing.dead_by(zero) < zero + timing.ttl, "{timing:?}");
                    }
                }
            }
        }
    }
}
