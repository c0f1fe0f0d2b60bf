//! Writes down every signal that arrives. Must never miss one for want of a handler: `ready` is written when all stand.

use std::os::fd::IntoRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};

use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
use nix::unistd::{ForkResult, fork, pause};

static OUT: AtomicI32 = AtomicI32::new(-1);
static LAST: AtomicI32 = AtomicI32::new(0);

pub fn run(file: &Path, last: Option<i32>) -> ! {
    let out = std::fs::File::options().append(true).create(true).open(file).expect("the file for the signals");
    OUT.store(out.into_raw_fd(), Ordering::SeqCst);
    LAST.store(last.unwrap_or(0), Ordering::SeqCst);
    for signal in (1..=libc::SIGRTMAX()).filter(|signal| can_be_caught(*signal)) {
        // SAFETY: the handler calls write(2) and _exit(2) only, which may be called in a handler.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = caught as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigfillset(&mut action.sa_mask);
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0, "signal {signal} has no handler");
        }
    }
    write_line(b"ready\n");
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).expect("an empty mask");
    loop {
        pause();
    }
}

/// A child in the same group catches too; its parent starts when the child is ready.
pub fn run_pair(file: &Path, child_file: &Path) -> ! {
    // SAFETY: this program has one thread.
    match unsafe { fork() }.expect("a child") {
        ForkResult::Child => run(child_file, None),
        ForkResult::Parent { .. } => {
            while std::fs::read_to_string(child_file).unwrap_or_default() != "ready\n" {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
            run(file, None)
        }
    }
}

/// KILL and STOP cannot be caught, 32 and 33 belong to the C library.
fn can_be_caught(signal: i32) -> bool {
    !matches!(signal, libc::SIGKILL | libc::SIGSTOP | 32 | 33)
}

extern "C" fn caught(signal: i32, info: *const libc::siginfo_t, _: *const libc::c_void) {
    // SAFETY: the kernel passes a valid siginfo to a handler with SA_SIGINFO; the sender is 0 where there is none.
    let (code, sender) = unsafe { ((*info).si_code, if (*info).si_code <= 0 { (*info).si_pid() } else { 0 }) };
    let mut line = Line { text: [0; 64], len: 0 };
    line.number(signal);
    line.byte(b' ');
    line.number(code);
    line.byte(b' ');
    line.number(sender);
    line.byte(b'\n');
    write_line(&line.text[..line.len]);
    if signal == LAST.load(Ordering::SeqCst) {
        // SAFETY: _exit may be called in a handler.
        unsafe { libc::_exit(0) };
    }
}

fn write_line(line: &[u8]) {
    // SAFETY: a valid buffer and its length; the file is in append mode, so one write is one line.
    let _ = unsafe { libc::write(OUT.load(Ordering::SeqCst), line.as_ptr().cast(), line.len()) };
}

/// A line made without an allocation: a handler must not allocate.
struct Line {
    text: [u8; 64],
    len: usize,
}

impl Line {
    fn byte(&mut self, byte: u8) {
        self.text[self.len] = byte;
        self.len += 1;
    }

    fn number(&mut self, value: i32) {
        if value < 0 {
            self.byte(b'-');
        }
        let (mut left, mut digits, mut count) = (value.unsigned_abs(), [0u8; 10], 0);
        loop {
            digits[count] = b'0' + (left % 10) as u8;
            count += 1;
            left /= 10;
            if left == 0 {
                break;
            }
        }
        for digit in digits[..count].iter().rev() {
            self.byte(*digit);
        }
    }
}
