//! The signals that the front hears. Which are the command's, which are nobody's, and which end a waiter: one table.

use std::io;
use std::mem::ManuallyDrop;

use futures_util::StreamExt;
use signal_hook::iterator::exfiltrator::raw::WithRawSiginfo;
use signal_hook_tokio::SignalsInfo;

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

/// What somebody who waits for a start would send. The others are heard a moment later: to register each of fifty costs a
/// start more than to open the database.
const FIRST: [i32; 6] = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGTSTP, libc::SIGCHLD];

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

/// What the caller handed down. Must be the first call of the process.
pub fn record() {
    inherited::record();
}

pub struct Signals {
    /// Never dropped: to take a handler of each signal out is work that the end of the process does too.
    stream: ManuallyDrop<SignalsInfo<WithRawSiginfo>>,
    /// Not listened to yet.
    later: Vec<i32>,
    terminal: bool,
    session_leader: bool,
}

impl Signals {
    /// Inside the runtime. Listens to the first ones and unblocks them, whatever the caller had blocked. The others stay
    /// blocked, so that none is lost. A signal that the caller ignores (nohup) stays ignored.
    pub fn listen(terminal: bool) -> io::Result<Signals> {
        let (first, later): (Vec<i32>, Vec<i32>) = listened().partition(|signal| FIRST.contains(signal));
        let stream = ManuallyDrop::new(SignalsInfo::new(&first)?);
        for signal in [libc::SIGTTIN, libc::SIGTTOU, libc::SIGPIPE] {
            inherited::set_disposition(signal, libc::SIG_IGN);
        }
        inherited::unblock(&first);
        let session_leader = nix::unistd::getsid(None).is_ok_and(|leader| leader == nix::unistd::getpid());
        Ok(Signals { stream, later, terminal, session_leader })
    }

    /// To all of them, from the first call on. The mask becomes the caller's, but for what is listened to.
    pub fn listen_to_all(&mut self) -> io::Result<()> {
        if self.later.is_empty() {
            return Ok(());
        }
        let handle = self.stream.handle();
        for signal in self.later.drain(..) {
            handle.add_signal(signal)?;
        }
        let all: Vec<i32> = listened().collect();
        inherited::set_mask(&inherited::mask_without(&all));
        Ok(())
    }

    /// Dropping it is safe.
    pub async fn next(&mut self) -> Heard {
        let Some(info) = self.stream.next().await else { return std::future::pending().await };
        let signal = info.si_signo;
        if signal == libc::SIGCHLD {
            return Heard::Child;
        }
        let from_terminal = self.terminal && info.si_code == libc::SI_KERNEL;
        match (from_terminal, signal) {
            (true, libc::SIGTSTP) => Heard::Suspend,
            // A hang-up reaches the leader of the session alone.
            (true, libc::SIGHUP | libc::SIGCONT) if self.session_leader => Heard::Forward(signal),
            (true, _) => Heard::Terminal(signal),
            (false, _) => Heard::Forward(signal),
        }
    }
}

fn listened() -> impl Iterator<Item = i32> {
    let wanted = |signal: &i32| *signal == libc::SIGCHLD || (!NEVER_FORWARDED.contains(signal) && !inherited::is_ignored(*signal));
    inherited::settable().filter(wanted)
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
    inherited::set_mask(&inherited::mask_without(&[signal]));
    // SAFETY: no pointers.
    unsafe { libc::raise(signal) };
}
