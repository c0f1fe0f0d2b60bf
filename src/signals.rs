//! The signals that the front hears. Which are the command's, which are nobody's, and which end a waiter: one table.

use std::future::pending;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::guard::inherited;

/// Not for the command: about our own children, the terminal's job control of ourselves, our own pipes, and faults of our
/// own code, which keep their default action.
const NEVER_FORWARDED: [i32; 11] = [
    libc::SIGCHLD,
    libc::SIGTTIN,
    libc::SIGTTOU,
    libc::SIGPIPE,
    libc::SIGILL,
    libc::SIGTRAP,
    libc::SIGABRT,
    libc::SIGBUS,
    libc::SIGFPE,
    libc::SIGSEGV,
    libc::SIGSYS,
];

/// Default action: nothing, or stop (signal(7)). All others end a process.
const HARMLESS: [i32; 5] = [libc::SIGCONT, libc::SIGURG, libc::SIGWINCH, libc::SIGTSTP, libc::SIGCHLD];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// A child changed its state.
    Child,
    /// For the command, if there is one.
    Forward(i32),
    /// The terminal asks this process alone to stop: there is no command that could.
    Suspend,
    /// The terminal sent it to the whole group, the command included. A waiter takes it all the same.
    Terminal(i32),
}

/// Read from a descriptor (signalfd(2)), with all that is read there blocked: no handler for each of 55 signals is put in
/// place and taken out at every start (measured: 0.4 ms), and no system call of ours is interrupted.
pub struct Signals {
    fd: AsyncFd<OwnedFd>,
    terminal: bool,
    session_leader: bool,
}

impl Signals {
    /// Inside the runtime. What it does not listen to stays blocked or not as the caller had it. A signal that the caller
    /// ignores (nohup) stays ignored. Threads that are made later block the same.
    pub fn listen(terminal: bool) -> io::Result<Signals> {
        let wanted = |signal: &i32| *signal == libc::SIGCHLD || (!NEVER_FORWARDED.contains(signal) && !inherited::is_ignored(*signal));
        let listened: Vec<i32> = inherited::settable().filter(wanted).collect();
        let fd = signal_fd(&listened)?;
        for signal in [libc::SIGTTIN, libc::SIGTTOU, libc::SIGPIPE] {
            inherited::set_disposition(signal, libc::SIG_IGN);
        }
        inherited::set_mask(&inherited::mask_with(&listened));
        let session_leader = nix::unistd::getsid(None).is_ok_and(|leader| leader == nix::unistd::getpid());
        // SAFETY: the descriptor is owned by what is registered, which never gives it away.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Signals { fd, terminal, session_leader })
    }

    /// Dropping it is safe: nothing is read that is not returned.
    pub async fn next(&self) -> Heard {
        let read = self.fd.async_io(Interest::READABLE, read_signal);
        let Ok((signal, code)) = read.await else { return pending().await };
        if signal == libc::SIGCHLD {
            return Heard::Child;
        }
        let from_terminal = self.terminal && code == libc::SI_KERNEL;
        match (from_terminal, signal) {
            (true, libc::SIGTSTP) => Heard::Suspend,
            // A hang-up reaches the leader of the session alone.
            (true, libc::SIGHUP | libc::SIGCONT) if self.session_leader => Heard::Forward(signal),
            (true, _) => Heard::Terminal(signal),
            (false, _) => Heard::Forward(signal),
        }
    }
}

/// Ends a process that has no command to pass it on to.
pub fn ends_a_waiter(signal: i32) -> bool {
    !HARMLESS.contains(&signal)
}

/// Asks a command to end: `--kill-after` counts from it.
pub fn asks_to_end(signal: i32, stop_signal: i32) -> bool {
    [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT, stop_signal].contains(&signal)
}

/// Dies of `signal`, without a core dump of lockrun's. Returns where that is impossible: as PID 1, or for a signal that
/// does not end a process.
pub fn die_of(signal: i32) {
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    let _ = nix::sys::prctl::set_dumpable(false);
    inherited::set_disposition(signal, libc::SIG_DFL);
    // Only this one: another that waits must not come first.
    let set = inherited::set_of([signal]);
    // SAFETY: `set` is a valid set; the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut()) };
    // SAFETY: no pointers.
    unsafe { libc::raise(signal) };
}

/// nix's knows no real-time signals.
fn signal_fd(signals: &[i32]) -> io::Result<OwnedFd> {
    let set = inherited::set_of(signals.iter().copied());
    // SAFETY: `set` is a valid set; the result is checked before it is owned.
    let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just created, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Which signal, and its si_code.
fn read_signal(fd: &OwnedFd) -> io::Result<(i32, i32)> {
    // SAFETY: all zeros are a valid signalfd_siginfo, and so are the bytes that the kernel writes over them.
    let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
    let size = size_of::<libc::signalfd_siginfo>();
    // SAFETY: the buffer is as long as said.
    match unsafe { libc::read(fd.as_raw_fd(), (&raw mut info).cast(), size) } {
        length if length == size as isize => Ok((info.ssi_signo as i32, info.ssi_code)),
        _ => Err(io::Error::last_os_error()),
    }
}
