//! The only clock that is read. CLOCK_BOOTTIME counts suspend, which tokio's timers and `Instant` do not.

use std::future::pending;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::time::clock_gettime;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::lease::{Moment, Now};

/// This process's CLOCK_BOOTTIME. In a time namespace it differs from the host's by a constant.
pub fn now() -> Moment {
    let time = clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).expect("CLOCK_BOOTTIME is there since Linux 2.6.39");
    Moment::from_nanos(u64::try_from(time.num_nanoseconds()).unwrap_or(0))
}

/// Unix milliseconds.
pub fn wall_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// All that the machine is told at one instant.
pub fn snapshot() -> Now {
    Now { at: now(), wall_ms: wall_ms(), random: random() }
}

/// From the kernel, which reseeds it when a virtual machine was cloned. Not by the crate of that name: in a static binary it
/// falls back to a descriptor of /dev/urandom that it keeps, and the front closes what it did not open itself.
pub fn random() -> u128 {
    let mut bytes = [0_u8; 16];
    // SAFETY: the buffer is as long as said. Up to 256 bytes come whole (getrandom(2)), once the kernel is up.
    while unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) } != bytes.len() as isize {}
    u128::from_ne_bytes(bytes)
}

struct Timer(TimerFd);

impl AsRawFd for Timer {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Sleeps until an instant of CLOCK_BOOTTIME; built inside the runtime.
pub struct Sleeper(AsyncFd<Timer>);

impl Sleeper {
    pub fn new() -> io::Result<Sleeper> {
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // SAFETY: the descriptor is owned by what is registered, which never gives it away.
        Ok(Sleeper(unsafe { AsyncFd::register_with_interest(Timer(timer), Interest::READABLE) }?))
    }

    /// `None`: for ever. Dropping it is safe.
    pub async fn sleep_until(&self, at: Option<Moment>) {
        let Some(at) = at else { return pending().await };
        while now() < at {
            let expiration = Expiration::OneShot(TimeSpec::from_duration(Duration::from_nanos(at.nanos())));
            if self.0.get_ref().0.set(expiration, TimerSetTimeFlags::TFD_TIMER_ABSTIME).is_err() {
                return; // looking at the clock too early does no harm
            }
            let Ok(mut ready) = self.0.readable().await else { return };
            ready.clear_ready();
        }
    }
}

/// Tells when the wall clock was set, which a resume from suspend does too (timerfd_create(2), TFD_TIMER_CANCEL_ON_SET).
pub struct StepWatch(AsyncFd<OwnedFd>);

impl StepWatch {
    pub fn new() -> io::Result<StepWatch> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_NONBLOCK | libc::TFD_CLOEXEC) };
        let fd = owned(fd)?;
        // SAFETY: as above.
        let watch = StepWatch(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?);
        watch.arm()?;
        Ok(watch)
    }

    /// For a time that never comes: only a step of the clock makes it readable (read(2) then says ECANCELED).
    fn arm(&self) -> io::Result<()> {
        // SAFETY: an all-zero itimerspec is a valid one.
        let mut never: libc::itimerspec = unsafe { std::mem::zeroed() };
        never.it_value.tv_sec = libc::time_t::MAX;
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        // SAFETY: the descriptor is ours and `never` outlives the call.
        match unsafe { libc::timerfd_settime(self.0.as_raw_fd(), flags, &never, std::ptr::null_mut()) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    pub async fn stepped(&self) {
        let Ok(mut ready) = self.0.readable().await else { return pending().await };
        let mut count = [0; 8];
        let _ = nix::unistd::read(self.0.get_ref(), &mut count);
        ready.clear_ready();
        let _ = self.arm();
    }
}

fn owned(fd: RawFd) -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
