//! What the caller handed down, recorded before anything changes it: signal dispositions, the signal mask, and which of the
//! descriptors 0 to 2 are closed. Must never be read as the present state.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

static IGNORED: AtomicU64 = AtomicU64::new(0);
static BLOCKED: AtomicU64 = AtomicU64::new(0);
static CLOSED: AtomicU8 = AtomicU8::new(0);

/// Signals that a process can give a disposition to. 32 and 33 belong to libc, which refuses them.
pub fn settable() -> impl Iterator<Item = i32> {
    (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(signal))
}

fn bit(signal: i32) -> u64 {
    1 << (signal - 1)
}

/// Must be the first call of the process. After it a closed pipe is an error and not a signal, and 0 to 2 are open, so that
/// nothing else gets their numbers.
pub fn record() {
    // SAFETY: plain system calls on local, zeroed structures, in a process that has one thread.
    unsafe {
        let mut blocked: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_BLOCK, std::ptr::null(), &mut blocked);
        for signal in 1..=64 {
            if libc::sigismember(&blocked, signal) == 1 {
                BLOCKED.fetch_or(bit(signal), Ordering::Relaxed);
            }
        }
        for signal in settable() {
            let mut action: libc::sigaction = std::mem::zeroed();
            if libc::sigaction(signal, std::ptr::null(), &mut action) == 0 && action.sa_sigaction == libc::SIG_IGN {
                IGNORED.fetch_or(bit(signal), Ordering::Relaxed);
            }
        }
        for fd in 0..3 {
            if libc::fcntl(fd, libc::F_GETFD) == -1 {
                CLOSED.fetch_or(1 << fd, Ordering::Relaxed);
                // The lowest number that is free: this one.
                libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            }
        }
    }
    set_disposition(libc::SIGPIPE, libc::SIG_IGN);
}

/// The caller had it ignored (nohup(1)).
pub fn is_ignored(signal: i32) -> bool {
    IGNORED.load(Ordering::Relaxed) & bit(signal) != 0
}

/// The caller's mask, without `except`.
pub fn mask_without(except: &[i32]) -> libc::sigset_t {
    let blocked = BLOCKED.load(Ordering::Relaxed);
    // SAFETY: the set is emptied before it is filled.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in (1..=64).filter(|signal| blocked & bit(*signal) != 0 && !except.contains(signal)) {
            libc::sigaddset(&mut set, signal);
        }
        set
    }
}

pub fn set_mask(set: &libc::sigset_t) {
    // SAFETY: `set` is a valid set; the old one is not asked for.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, set, std::ptr::null_mut()) };
}

pub fn unblock(signals: &[i32]) {
    // SAFETY: the set is emptied before it is filled, and valid when it is used; the old one is not asked for.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            libc::sigaddset(&mut set, *signal);
        }
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, std::ptr::null_mut());
    }
}

pub fn block_all() {
    // SAFETY: the set is filled before it is used.
    let all = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        set
    };
    set_mask(&all);
}

/// In the child, before exec: every disposition as the caller had it, the descriptors that were closed closed again, and
/// the mask last, so that a signal that was held back meets the final disposition.
pub fn restore() {
    for signal in settable() {
        set_disposition(signal, if is_ignored(signal) { libc::SIG_IGN } else { libc::SIG_DFL });
    }
    let closed = CLOSED.load(Ordering::Relaxed);
    for fd in (0..3).filter(|fd| closed & (1 << fd) != 0) {
        // SAFETY: /dev/null was put there; nobody in this process uses it.
        unsafe { libc::close(fd) };
    }
    set_mask(&mask_without(&[]));
}

pub fn set_disposition(signal: i32, handler: libc::sighandler_t) {
    // SAFETY: SIG_DFL and SIG_IGN need no handler function; refusals (KILL, STOP) change nothing.
    unsafe { libc::signal(signal, handler) };
}
