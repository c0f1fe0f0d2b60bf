//! argv to exit code; the only place that prints an error. Not started by std, which would change signals and descriptors that
//! are the command's, take SIGSEGV and SIGBUS for itself, and read /proc/self/maps for it.
#![no_main]

use std::ffi::{CStr, OsStr, OsString, c_char, c_int};
use std::os::unix::ffi::OsStrExt;

use lockrun::app::{self, End};
use lockrun::cli::{self, Parsed};
use lockrun::config::{Config, Environment};
use lockrun::{clock, exit, logging, signals};

// SAFETY: the only symbol of this name, with the type that the C runtime calls.
#[unsafe(no_mangle)]
extern "C" fn main(count: c_int, words: *const *const c_char) -> c_int {
    signals::record();
    let word = |index| {
        // SAFETY: the C runtime passes so many pointers to strings, which live as long as the process.
        let word = unsafe { CStr::from_ptr(*words.add(index)) };
        OsStr::from_bytes(word.to_bytes()).to_os_string()
    };
    let argv: Vec<OsString> = (0..usize::try_from(count).unwrap_or(0)).map(word).collect();
    let result = match cli::parse(&argv) {
        Ok(Parsed::Print(text)) => Ok((text, End::Code(0))),
        Ok(Parsed::Cli(cli)) => Config::new(*cli, Environment::new(std::env::vars_os()), clock::random()).and_then(app::run),
        Err(failure) => Err(failure),
    };
    let end = match result {
        Ok((text, end)) => print(&text, end),
        Err(failure) => {
            logging::say(&failure.line);
            End::Code(failure.code)
        }
    };
    match end {
        End::Code(code) => std::process::exit(code),
        End::Signal(signal) => {
            signals::die_of(signal);
            std::process::exit(128 + signal)
        }
    }
}

/// A closed stdout must not panic; an answer that nobody could read is a failure.
fn print(text: &str, end: End) -> End {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => end,
        Err(_) if text.is_empty() => end,
        Err(error) => {
            logging::say(&format!("stdout: {error}; the answer was lost"));
            End::Code(exit::REFUSED)
        }
    }
}
