//! Steps the machine's wall clock and puts it back, whatever becomes of the test: by its own hand, for a test may be killed.

use std::io::{self, Read, Write};
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime, clock_settime};
use nix::unistd::setsid;

/// Says `stepped`, waits for the end of stdin, and sets the clock to what it would show by then, counted by CLOCK_BOOTTIME.
pub fn step(seconds: i64) {
    let _ = setsid();
    for number in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGTERM, Signal::SIGPIPE] {
        // SAFETY: to ignore a signal runs no code.
        unsafe { signal(number, SigHandler::SigIgn) }.expect("ignored");
    }
    let (wall, boot) = (read(ClockId::CLOCK_REALTIME), read(ClockId::CLOCK_BOOTTIME));
    let there = if seconds < 0 { wall - Duration::from_secs(seconds.unsigned_abs()) } else { wall + Duration::from_secs(seconds as u64) };
    if let Err(error) = set(there) {
        super::fail(1, &format!("probe: the wall clock cannot be set: {error}; this needs CAP_SYS_TIME"));
    }
    println!("stepped");
    let _ = io::stdout().flush();
    let _ = io::stdin().read_to_end(&mut vec![]);
    set(wall + (read(ClockId::CLOCK_BOOTTIME) - boot)).expect("it could be set before");
}

fn read(clock: ClockId) -> Duration {
    clock_gettime(clock).expect("a clock of Linux").into()
}

fn set(wall: Duration) -> nix::Result<()> {
    clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(wall))
}
