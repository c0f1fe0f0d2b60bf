//! What the front tells those who only look (`--http`): one value, made anew at each turn of its loop. Must never make the
//! front wait, and must never be asked by it.

use std::collections::BTreeMap;
use std::ptr::null_mut;
use std::sync::Arc;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::time::Duration;

use crate::lease::{Moment, Reply, Report, State, Swap, Token, View};

/// The upper bounds of the renewals' histogram, in milliseconds: a file, a server near by, a server in trouble.
pub const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000];

#[derive(Clone, Debug)]
pub struct Told {
    pub view: View,
    /// Of the state.
    pub since: Moment,
    pub since_ms: i64,
    /// The loop turns again then at the latest; `None`: when something happens.
    pub due_at: Option<Moment>,
    pub counts: Counts,
}

/// Since the start of the process.
#[derive(Clone, Debug, Default)]
pub struct Counts {
    /// From the sending of a write to its confirmation; by the bound that it does not exceed, `None`: greater than all.
    pub renewals: BTreeMap<Option<u64>, u64>,
    pub renewing: Duration,
    /// Into this state.
    pub transitions: BTreeMap<State, u64>,
    /// In waits that are over.
    pub waited: Duration,
    pub acquired: u64,
    pub lost: u64,
    pub errors: BTreeMap<Trouble, u64>,
    /// Writes that came second: contention, no trouble of the store's.
    pub conflicts: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// No answer in time.
    Timeout,
    /// It may have been done all the same.
    Unknown,
    /// It will not heal by itself.
    Refused,
}

impl Told {
    /// Before the loop has begun to turn, which is due.
    pub fn nothing(now: Moment, wall_ms: i64) -> Told {
        let view = View { state: State::Waiting, lease: None, dead_by: None, error: None, answered: false, waits_for: None };
        Told { view, since: now, since_ms: wall_ms, due_at: Some(now), counts: Counts::default() }
    }
}

/// Room for one: the newest lies there, and an older one is dropped. Neither side ever waits for the other.
#[derive(Debug, Default)]
pub struct Post(AtomicPtr<Told>);

impl Post {
    pub fn put(&self, told: Told) {
        drop(self.swap(Box::into_raw(Box::new(told))));
    }

    /// What came since the last call.
    pub fn take(&self) -> Option<Box<Told>> {
        self.swap(null_mut())
    }

    fn swap(&self, new: *mut Told) -> Option<Box<Told>> {
        let old = self.0.swap(new, Ordering::AcqRel);
        // SAFETY: what lies here came from Box::into_raw, and a swap gives it to one caller alone.
        (!old.is_null()).then(|| unsafe { Box::from_raw(old) })
    }
}

impl Drop for Post {
    fn drop(&mut self) {
        drop(self.take());
    }
}

/// The front's side.
pub struct Teller {
    post: Arc<Post>,
    state: Option<State>,
    since: Moment,
    since_ms: i64,
    /// The lease's last write that was confirmed.
    confirmed: Option<(Token, Moment)>,
    counts: Counts,
}

impl Teller {
    pub fn new(post: Arc<Post>) -> Teller {
        Teller { post, state: None, since: Moment::default(), since_ms: 0, confirmed: None, counts: Counts::default() }
    }

    pub fn tell(&mut self, now: Moment, wall_ms: i64, view: View, due_at: Option<Moment>) {
        if self.state != Some(view.state) {
            if self.state == Some(State::Waiting) {
                self.counts.waited += now.since(self.since);
            }
            *self.counts.transitions.entry(view.state).or_default() += 1;
            (self.state, self.since, self.since_ms) = (Some(view.state), now, wall_ms);
        }
        let confirmed = view.lease.map(|lease| (lease.token, lease.asked_at));
        if let (Some((before, at)), Some((token, asked_at))) = (self.confirmed, confirmed)
            && before == token
            && at < asked_at
        {
            self.counts.renewal(now.since(asked_at));
        }
        self.confirmed = confirmed;
        let Teller { since, since_ms, ref counts, .. } = *self;
        self.post.put(Told { view, since, since_ms, due_at, counts: counts.clone() });
    }

    pub fn on_reply(&mut self, reply: &Reply) {
        match reply {
            Reply::Snapshot(_) | Reply::Swapped(Swap::Done(_)) => {}
            Reply::Swapped(Swap::Conflict) => self.counts.conflicts += 1,
            Reply::Unknown(_) => self.trouble(Trouble::Unknown),
            Reply::Refused(_) => self.trouble(Trouble::Refused),
        }
    }

    pub fn trouble(&mut self, trouble: Trouble) {
        *self.counts.errors.entry(trouble).or_default() += 1;
    }

    pub fn on_report(&mut self, report: &Report) {
        match report {
            Report::Acquired { .. } => self.counts.acquired += 1,
            Report::Lost(_) => self.counts.lost += 1,
            Report::Waiting { .. }
            | Report::Unreachable(_)
            | Report::Recovered
            | Report::TooLate
            | Report::LeftBehind(..)
            | Report::Stopping { .. }
            | Report::Killed(_)
            | Report::Survivors(_)
            | Report::GuardHangs
            | Report::PutBack
            | Report::Released
            | Report::ReleaseUnconfirmed { .. } => {}
        }
    }
}

impl Counts {
    fn renewal(&mut self, took: Duration) {
        let bound = BOUNDS_MS.into_iter().find(|bound| took <= Duration::from_millis(*bound));
        *self.renewals.entry(bound).or_default() += 1;
        self.renewing += took;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;

    fn at(ms: u64) -> Moment {
        Moment::from_nanos(ms * 1_000_000)
    }

    fn view(state: State, confirmed: Option<(i64, u64)>) -> View {
        let lease = confirmed.map(|(token, ms)| Lease {
            token: Token(token),
            ttl: Duration::from_secs(3),
            acquired_ms: 0,
            renewed_ms: 0,
            asked_at: at(ms),
            kill_at: at(ms + 2000),
        });
        View { state, lease, dead_by: None, error: None, answered: true, waits_for: None }
    }

    fn teller() -> (Arc<Post>, Teller) {
        let post = Arc::new(Post::default());
        (post.clone(), Teller::new(post))
    }

    #[test]
    fn only_the_newest_is_there_and_it_is_there_once() {
        let (post, mut teller) = teller();
        teller.tell(at(1), 0, view(State::Waiting, None), None);
        teller.tell(at(2), 0, view(State::Starting, Some((1, 1))), Some(at(9)));
        let told = post.take().expect("told");
        assert_eq!((told.view.state, told.due_at), (State::Starting, Some(at(9))));
        assert!(post.take().is_none());
    }

    #[test]
    fn a_renewal_counts_from_its_sending_and_the_claim_is_none() {
        let (post, mut teller) = teller();
        teller.tell(at(0), 0, view(State::Waiting, None), None);
        teller.tell(at(500), 0, view(State::Starting, Some((1, 490))), None);
        teller.tell(at(510), 0, view(State::Holding, Some((1, 490))), None);
        teller.tell(at(804), 0, view(State::Holding, Some((1, 800))), None);
        teller.tell(at(9000), 0, view(State::Holding, Some((1, 2000))), None);
        // Another tenure.
        teller.tell(at(9001), 0, view(State::Waiting, None), None);
        teller.tell(at(9101), 0, view(State::Starting, Some((2, 9100))), None);
        let counts = post.take().expect("told").counts;
        assert_eq!(counts.renewals, BTreeMap::from([(Some(5), 1), (None, 1)]));
        assert_eq!(counts.renewing, Duration::from_millis(7004));
        assert_eq!(counts.waited, Duration::from_millis(600));
        assert_eq!(counts.transitions, BTreeMap::from([(State::Waiting, 2), (State::Starting, 2), (State::Holding, 1)]));
    }
}
