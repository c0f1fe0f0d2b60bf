//! What the user reads when nothing could be started, and its exit code. One line: the thing, the cause, what to do.

use std::fmt;

use crate::exit;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: i32,
    pub line: String,
}

impl Failure {
    /// It will not heal by itself.
    pub fn refused(line: impl Into<String>) -> Failure {
        Failure { code: exit::REFUSED, line: line.into() }
    }

    pub fn unreachable(line: impl Into<String>) -> Failure {
        Failure { code: exit::UNREACHABLE, line: line.into() }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Failure {}
