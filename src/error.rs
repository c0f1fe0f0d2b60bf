//! What the user reads when nothing could be started, and its exit code. One line: the thing, the cause, what to do.

use std::fmt;

use crate::exit;
use crate::text::one_line;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub code: i32,
    pub line: String,
}

impl Failure {
    /// It will not heal by itself.
    pub fn refused(line: impl AsRef<str>) -> Failure {
        Failure { code: exit::REFUSED, line: one_line(line.as_ref()) }
    }

    pub fn unreachable(line: impl AsRef<str>) -> Failure {
        Failure { code: exit::UNREACHABLE, line: one_line(line.as_ref()) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.line)
    }
}

impl std::error::Error for Failure {}
