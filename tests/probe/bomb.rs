//! Load: processes that are never twice where they were seen, and busy loops. Must never outlive its seconds.

use std::path::Path;
use std::process::exit;
use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};
use nix::unistd::{ForkResult, fork, setsid};

/// What a link computes before it forks: without it 50 chains fork faster than any process is reaped, and the machine runs
/// out of process ids.
const WORK: Duration = Duration::from_micros(500);

/// Stays until the seconds are over; its chains write nothing.
pub fn run(chains: u32, life: Duration, ready: &Path) {
    let end = Instant::now() + life;
    for _ in 0..chains {
        // SAFETY: this program has one thread.
        if unsafe { fork() }.expect("a chain").is_child() {
            chain(end);
        }
    }
    std::fs::write(ready, "").expect("ready");
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn chain(end: Instant) -> ! {
    while Instant::now() < end {
        let _ = setsid();
        while Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("a clock")) < WORK {}
        // SAFETY: this program has one thread.
        match unsafe { fork() } {
            // SAFETY: _exit leaves the runtime's state, shared with nobody, as it is.
            Ok(ForkResult::Parent { .. }) => unsafe { libc::_exit(0) },
            Ok(ForkResult::Child) => {}
            // No process to be had for the moment: a chain that ended here would be no survivor, and prove nothing.
            Err(_) => std::thread::yield_now(),
        }
    }
    exit(0)
}

pub fn hog(life: Duration) {
    let end = Instant::now() + life;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}
