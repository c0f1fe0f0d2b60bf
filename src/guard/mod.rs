//! The front's side of the guard: fork it, talk to it, take its place when it is dead. Knows processes; no lease, no
//! store. Its writes never block: a guard that does not read is stopped, and dies of its own timer.

pub mod inherited;
mod process;
mod spawn;
mod tree;
pub mod wire;

use std::cell::{Cell, RefCell};
use std::future::pending;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, recv, sendmsg, socketpair};
use nix::unistd::{ForkResult, fork};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use spawn::Job;
pub use tree::usable;
pub use wire::{FromGuard, ToGuard};

use crate::lease::{GuardEvent, Moment, Tenure, Token};
use tree::{Killing, Waited};

/// A guard that was told to end and has not by then is stopped.
const DISMISS_TIME: Duration = Duration::from_millis(500);

/// The guard, forked, before there is a runtime.
pub struct Forked {
    socket: OwnedFd,
    pid: i32,
}

/// Forks the guard. Must be called before any thread, runtime or store exists. All signals are blocked on return, in both
/// processes. The guard keeps the caller's descriptors for the command; the front closes them from 3 up.
pub fn start(job: &Job, now: fn() -> Moment, last_will: &dyn Fn(Token)) -> io::Result<Forked> {
    inherited::block_all();
    inherited::set_disposition(libc::SIGCHLD, libc::SIG_DFL);
    nix::sys::prctl::set_child_subreaper(true)?;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let front = nix::unistd::getpid().as_raw();
    // SAFETY: this process has one thread.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(ours); // or the end of the front would never show
            process::run(theirs, process::Parts { job, front, now, last_will })
        }
        ForkResult::Parent { child } => {
            drop(theirs);
            close_callers_descriptors(&ours);
            Ok(Forked { socket: ours, pid: child.as_raw() })
        }
    }
}

/// A pipe of the caller's that stayed open here would never end for its reader.
fn close_callers_descriptors(except: &OwnedFd) {
    let except = except.as_raw_fd() as libc::c_uint;
    // SAFETY: nothing in this process uses a descriptor from 3 up but the socket; std and the runtime open theirs later.
    let close = |from: libc::c_uint, to: libc::c_uint| unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
    if except > 3 {
        close(3, except - 1);
    }
    if close(except + 1, libc::c_uint::MAX) == 0 {
        return;
    }
    // Before Linux 5.9. The list is complete before the first is closed.
    let open: Vec<libc::c_int> = std::fs::read_dir("/proc/self/fd")
        .map(|fds| fds.filter_map(|fd| fd.ok()?.file_name().to_str()?.parse().ok()).collect())
        .unwrap_or_default();
    for fd in open.into_iter().filter(|fd| *fd > 2 && *fd as libc::c_uint != except) {
        // SAFETY: as above; the descriptor of the list itself is closed already.
        unsafe { libc::close(fd) };
    }
}

/// The guard as the front's loop sees it.
pub struct Guard {
    socket: AsyncFd<OwnedFd>,
    pid: i32,
    dead: Cell<bool>,
    killing: RefCell<Option<Killing>>,
}

/// What is left of a dead guard's tree.
pub enum Adopted {
    Nothing,
    /// Look again after that; the pids of those that SIGKILL does not end, once.
    Something(Duration, Option<Vec<i32>>),
}

impl Guard {
    /// Inside the runtime.
    pub fn new(forked: Forked) -> io::Result<Guard> {
        fcntl(&forked.socket, FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK))?;
        // SAFETY: the socket is owned by what is registered, which never gives it away.
        let socket = unsafe { AsyncFd::register_with_interest(forked.socket, Interest::READABLE) }?;
        Ok(Guard { socket, pid: forked.pid, dead: Cell::new(false), killing: RefCell::new(None) })
    }

    /// The next message; dropping it is safe. `Died` comes once, then nothing.
    pub async fn receive(&self) -> FromGuard {
        while !self.dead.get() {
            let mut bytes = [0; wire::MAX];
            let read = self.socket.async_io(Interest::READABLE, |socket| {
                recv(socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT).map_err(io::Error::from)
            });
            match read.await {
                Ok(length) if length > 0 => {
                    if let Some(message) = FromGuard::decode(&bytes[..length]) {
                        return message;
                    }
                }
                Ok(_) | Err(_) => {
                    self.dead.set(true);
                    return FromGuard::Event(GuardEvent::Died);
                }
            }
        }
        pending().await
    }

    pub fn send(&self, message: &ToGuard) {
        self.send_with(message, &[]);
    }

    /// Hands a duplicate of the kernel lock over.
    pub fn send_lock(&self, tenure: Tenure, lock: &OwnedFd) {
        let fds = [lock.as_raw_fd()];
        self.send_with(&ToGuard::Lock(tenure), &[ControlMessage::ScmRights(&fds)]);
    }

    fn send_with(&self, message: &ToGuard, rights: &[ControlMessage<'_>]) {
        let bytes = message.encode();
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let _ = sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], rights, flags, None);
    }

    /// It does not answer. What it leaves behind comes to this process, which is a subreaper too.
    pub fn kill(&self) {
        let _ = tree::send(self.pid, libc::SIGKILL);
    }

    /// Ends it in order, and waits for it. One that is stopped has nothing left to guard.
    pub fn dismiss(self) {
        self.send(&ToGuard::Bye);
        let end = std::time::Instant::now() + DISMISS_TIME;
        loop {
            // No event is asked for: only its end of the socket, closed, wakes this.
            let mut fds = [PollFd::new(self.socket.get_ref().as_fd(), PollFlags::empty())];
            let left = end.saturating_duration_since(std::time::Instant::now());
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                Err(Errno::EINTR) => {}
                Ok(1) => break,
                Ok(_) | Err(_) => break self.kill(),
            }
        }
        // SAFETY: no status is asked for.
        unsafe { libc::waitpid(self.pid, std::ptr::null_mut(), 0) };
    }

    /// Reaps orphans that came to this process (as PID 1 of a container), and leaves the guard alone.
    pub fn reap_strangers(&self) {
        loop {
            // SAFETY: an all-zero siginfo_t is a valid one.
            let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
            let look = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
            // SAFETY: `info` outlives the call; WNOWAIT leaves the child as it is; si_pid is set for a child's state.
            let pid = unsafe {
                if libc::waitid(libc::P_ALL, 0, &mut info, look) != 0 {
                    return;
                }
                info.si_pid()
            };
            // The guard is left for the end of its socket to tell; it hides what is behind it only until then.
            if pid == 0 || (pid == self.pid && !self.dead.get()) {
                return;
            }
            // SAFETY: no status is asked for.
            unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
        }
    }

    /// In a dead guard's place: SIGKILL to all that is below this process, the guard included.
    pub fn kill_adopted(&self, now: Moment) -> Adopted {
        let mut killing = self.killing.borrow_mut();
        let killing = killing.get_or_insert_with(|| Killing::new(now));
        let survivors = killing.strike(now);
        loop {
            match tree::wait_any(false) {
                Waited::NoChildren => return Adopted::Nothing,
                Waited::Nothing => return Adopted::Something(killing.pause(), survivors),
                Waited::Ended(..) | Waited::Stopped(_) => {}
            }
        }
    }

    /// A message that has come already.
    pub fn pending(&self) -> Option<FromGuard> {
        if self.dead.get() {
            return None;
        }
        let mut bytes = [0; wire::MAX];
        match recv(self.socket.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            Ok(length) if length > 0 => FromGuard::decode(&bytes[..length]),
            Ok(_) | Err(_) => None, // an end is for `receive` to tell
        }
    }
}

/// Frees the kernel lock for the whole description, however many duplicates of it there are.
fn unlock(lock: &OwnedFd) {
    // SAFETY: an all-zero flock is a valid one: the whole file.
    let mut whole: libc::flock = unsafe { std::mem::zeroed() };
    whole.l_type = libc::F_UNLCK as libc::c_short;
    let _ = fcntl(lock.as_fd(), FcntlArg::F_OFD_SETLK(&whole));
}
