//! argv to exit code; the only place that prints an error.

use lockrun::app::{self, End};
use lockrun::cli::{self, Parsed};
use lockrun::config::{Config, Environment};
use lockrun::{clock, exit, logging, signals};

fn main() {
    let argv: Vec<_> = std::env::args_os().collect();
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
