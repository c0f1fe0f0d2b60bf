//! The waiter's judgement: may this lease be claimed now? Pure, and the only place that decides it. The record's TTL
//! counts, never the waiter's. The claim is a swap on exactly the version that was judged.

use std::time::Duration;

use super::record::{Evidence, Holder, KernelLock, Snapshot};
use super::time::Moment;

/// A kernel lock freed by death says that SIGKILL was sent, not that all is reaped (measured: up to 123 ms with 2 GB).
pub const KILL_TIME: Duration = Duration::from_secs(1);

/// What the judgement found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Free,
    /// Look again at that instant, or when the store says that something changed.
    Held {
        look_again_at: Option<Moment>,
    },
}

/// `seen_at`: since when this version is known to stand (by ourselves or by another process of this boot).
pub fn judge(snapshot: &Snapshot, seen_at: Moment, instance: Option<&str>, now: Moment) -> Verdict {
    // Whoever has the kernel lock claims next, whatever the record says; only its coming free is news.
    if snapshot.lock == KernelLock::Others {
        return Verdict::Held { look_again_at: None };
    }
    let Some(record) = &snapshot.record else { return Verdict::Free };
    let Some(holder) = &record.holder else { return Verdict::Free };
    if same_instance(holder, instance) {
        return Verdict::Free;
    }
    let free_at = match snapshot.evidence {
        Evidence::Left(left) => now + left,
        // Not from before this version was seen: somebody else may have held the lock, and died, in between.
        Evidence::Gone(since) => since.max(seen_at) + KILL_TIME,
        Evidence::NoClock => seen_at + record.ttl.saturating_mul(11) / 10,
        Evidence::Unchanged(span) => seen_at + span,
    };
    if free_at <= now { Verdict::Free } else { Verdict::Held { look_again_at: Some(free_at) } }
}

/// `--instance` promises that only one tree with that id lives: another start of the same id means that the former is gone.
fn same_instance(holder: &Holder, instance: Option<&str>) -> bool {
    instance.is_some() && holder.instance.as_deref() == instance
}

#[cfg(test)]
mod tests {
    use super::super::record::{Finding, HolderId, Record, Token, Version, WriteId};
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn held(evidence: Evidence, lock: KernelLock) -> Snapshot {
        let holder = Holder { id: HolderId::new("h"), instance: Some("pod".into()), hostname: "a".into(), pid: 1, command: vec![] };
        let record = Record {
            write: WriteId::new("w"),
            token: Token(7),
            holder: Some(holder),
            ttl: Duration::from_secs(10),
            asked_at: at(0),
            acquired_ms: 0,
            renewed_ms: 0,
            stopping: false,
        };
        let version = Version::At("w".into());
        Snapshot { record: Some(record), version, evidence, lock, seen_at: None, finding: Finding::Plain }
    }

    fn verdict(snapshot: &Snapshot, now: u64) -> Verdict {
        judge(snapshot, at(100), None, at(now))
    }

    fn until(seconds: u64) -> Verdict {
        Verdict::Held { look_again_at: Some(at(seconds)) }
    }

    #[test]
    fn a_record_by_the_same_kernel_clock_is_free_when_nothing_is_left() {
        assert_eq!(verdict(&held(Evidence::Left(Duration::from_secs(3)), KernelLock::Ours), 100), until(103));
        assert_eq!(verdict(&held(Evidence::Left(Duration::ZERO), KernelLock::None), 100), Verdict::Free);
    }

    #[test]
    fn a_holder_that_is_gone_is_waited_for_as_long_as_dying_takes() {
        let snapshot = held(Evidence::Gone(at(99)), KernelLock::Ours);
        assert_eq!(judge(&snapshot, at(0), None, at(99)), until(100));
        assert_eq!(judge(&snapshot, at(0), None, at(100)), Verdict::Free);
        assert_eq!(judge(&snapshot, at(100), None, at(100)), until(101), "another may have held it since");
    }

    #[test]
    fn without_a_common_clock_the_same_version_must_stand_for_the_ttl_and_a_tenth() {
        let snapshot = held(Evidence::NoClock, KernelLock::Ours);
        assert_eq!(verdict(&snapshot, 110), until(111));
        assert_eq!(verdict(&snapshot, 111), Verdict::Free);
    }

    #[test]
    fn whatever_the_record_says_nobody_claims_while_another_has_the_kernel_lock() {
        for evidence in [Evidence::Left(Duration::ZERO), Evidence::Gone(at(0)), Evidence::NoClock] {
            assert_eq!(verdict(&held(evidence, KernelLock::Others), 1000), Verdict::Held { look_again_at: None });
        }
        let free = Snapshot { record: None, version: Version::Absent, ..held(Evidence::NoClock, KernelLock::Others) };
        assert_eq!(verdict(&free, 1000), Verdict::Held { look_again_at: None });
    }

    #[test]
    fn a_free_record_and_none_at_all_are_free() {
        let mut snapshot = held(Evidence::NoClock, KernelLock::Ours);
        snapshot.record.as_mut().expect("a record").holder = None;
        assert_eq!(verdict(&snapshot, 0), Verdict::Free);
        snapshot.record = None;
        assert_eq!(verdict(&snapshot, 0), Verdict::Free);
    }

    #[test]
    fn another_start_of_the_same_instance_takes_over_at_once() {
        let snapshot = held(Evidence::Left(Duration::from_secs(9)), KernelLock::Ours);
        assert_eq!(judge(&snapshot, at(0), Some("pod"), at(0)), Verdict::Free);
        assert_eq!(judge(&snapshot, at(0), Some("other"), at(0)), until(9));
    }
}
