//! How a run ends and which exit code says so: the one table. Must never act: `main` exits, the supervisor decides.

use std::fmt;

/// The store could not be reached within `-n` or `-w` (sysexits(3) EX_UNAVAILABLE).
pub const UNREACHABLE: i32 = 69;
/// Not acquired, because it is held (sysexits(3) EX_TEMPFAIL); `-E` changes it.
pub const CONFLICT: i32 = 75;
/// The lease was lost, or the guard died.
pub const LOST: i32 = 76;
/// It will not heal by itself: bad usage, a refused setting, no right, not a database (as timeout(1), env(1)).
pub const REFUSED: i32 = 125;
/// The command was found but cannot be executed.
pub const CANNOT_EXECUTE: i32 = 126;
/// The command was not found.
pub const NOT_FOUND: i32 = 127;
/// `status`, `check` and `health`: the answer is no.
pub const NO: i32 = 1;

/// The table as `--help` shows it; the README's is compared with it by a test.
pub const HELP: &str = "\
Exit codes:
  the command's own   it ran and exited
  128+s               the command died of signal s: lockrun dies of it too (as PID 1 it exits 128+s);
                      the same for a signal while waiting
  69                  the store could not be reached within -n or -w
  75                  not acquired: held, and -n was given or the wait ran out (-E changes the code)
  76                  the lease was lost, or the guard died; nothing of the command is alive
  125                 it will not heal by itself: bad usage, refused setting, no right, not a database
  126, 127            the command cannot be executed, was not found
  status, check and health: 0 yes, 1 no, 69, 125";

/// How a process ended, as waitpid(2) reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ended {
    Code(i32),
    Signal(i32),
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Ended::Code(code) => write!(f, "exited {code}"),
            Ended::Signal(signal) => write!(f, "died of signal {signal}"),
        }
    }
}
