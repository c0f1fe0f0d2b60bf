//! Which boot of which kernel this is, and its clock as all its time namespaces read it. Must never guess: what cannot be
//! known makes records comparable by watching only.

use std::fs;
use std::io;

use crate::lease::Moment;

/// This boot, and what to subtract from this process's CLOCK_BOOTTIME to get the host's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    pub id: String,
    offset_ns: i64,
}

impl Boot {
    /// `None`: unknown; then no record is of "this boot".
    pub fn current() -> Option<Boot> {
        let id = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?.trim().to_string();
        Some(Boot { id, offset_ns: boottime_offset()? })
    }

    pub fn to_host(&self, at: Moment) -> i64 {
        i64::try_from(at.nanos()).unwrap_or(i64::MAX).saturating_sub(self.offset_ns)
    }

    /// `None`: before this process's clock began.
    pub fn to_local(&self, host_ns: i64) -> Option<Moment> {
        u64::try_from(host_ns.checked_add(self.offset_ns)?).ok().map(Moment::from_nanos)
    }
}

/// The offset of this process's time namespace (time_namespaces(7)). The file speaks of the namespace for children, so it
/// counts only if that is this process's own.
fn boottime_offset() -> Option<i64> {
    let own = match fs::read_link("/proc/self/ns/time") {
        Ok(own) => own,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Some(0), // a kernel without time namespaces
        Err(_) => return None,
    };
    if fs::read_link("/proc/self/ns/time_for_children").ok()? != own {
        return None;
    }
    parse_offset(&fs::read_to_string("/proc/self/timens_offsets").ok()?)
}

fn parse_offset(text: &str) -> Option<i64> {
    let line = text.lines().find_map(|line| line.strip_prefix("boottime"))?;
    let mut numbers = line.split_whitespace().map(str::parse::<i64>);
    let (seconds, nanos) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_offset_of_a_time_namespace_is_read_in_nanoseconds() {
        assert_eq!(parse_offset("monotonic           0         0\nboottime       100000         7\n"), Some(100_000_000_000_007));
        assert_eq!(parse_offset("boottime  -5  0\n"), Some(-5_000_000_000));
        assert_eq!(parse_offset("monotonic 0 0\n"), None);
    }

    #[test]
    fn an_instant_comes_back_from_the_hosts_clock() {
        let boot = Boot { id: "b".into(), offset_ns: 5 };
        assert_eq!(boot.to_host(Moment::from_nanos(12)), 7);
        assert_eq!(boot.to_local(7), Some(Moment::from_nanos(12)));
        assert_eq!(boot.to_local(-6), None);
        assert_eq!(boot.to_local(i64::MAX), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn an_offset_is_what_the_line_says_or_unknown(
            before in "(monotonic +-?[0-9]{1,5} +[0-9]{1,9}\n)?",
            seconds in prop_oneof![any::<i64>(), -10_000_000_000..10_000_000_000_i64],
            nanos in 0..1_000_000_000_i64,
        ) {
            let whole = i64::try_from(i128::from(seconds) * 1_000_000_000 + i128::from(nanos)).ok();
            // Below zero the nanoseconds bring back what the seconds alone cannot say.
            let sayable = seconds.checked_mul(1_000_000_000).and(whole);
            prop_assert_eq!(parse_offset(&format!("{before}boottime {seconds:>10} {nanos:>9}\n")), sayable);
        }

        #[test]
        fn anything_else_is_unknown_or_a_number(text in "(boottime)?[ -~\n]{0,40}", any: String) {
            parse_offset(&text);
            prop_assert_eq!(parse_offset(&format!("boottime {any}x")), None);
        }

        #[test]
        fn an_instant_of_any_clock_comes_back_or_is_none(nanos: u64, offset_ns: i64, host_ns: i64) {
            let boot = Boot { id: String::new(), offset_ns };
            if let Some(local) = boot.to_local(host_ns) {
                prop_assert_eq!(boot.to_host(local), host_ns);
            }
            boot.to_host(Moment::from_nanos(nanos));
        }
    }

    #[test]
    fn this_machine_knows_its_boot() {
        assert_eq!(Boot::current().expect("/proc is there").id.len(), 36);
    }
}
