//! The command line exactly as typed. Must never read the environment or judge a value: `config` does.

use std::ffi::{OsStr, OsString};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use crate::error::Failure;
use crate::exit;
use crate::text::without_password;

/// Run one command under a lease lock: of all the copies started anywhere, one runs at a time.
///
/// No process that lockrun started is alive after the moment another copy may start.
#[derive(Debug, Parser)]
#[command(
    name = "lockrun",
    version,
    override_usage = "lockrun [OPTIONS] --db <DB> [--name NAME] -- <COMMAND> [ARG]...\n       \
                      lockrun status --db <DB> [--name NAME] [--json]\n       \
                      lockrun check  --db <DB> [--name NAME] [--token N] [--json]",
    disable_help_subcommand = true,
    after_help = exit::HELP
)]
pub struct Cli {
    #[command(flatten)]
    pub store: StoreArgs,
    #[command(flatten)]
    pub run: RunArgs,
    #[command(subcommand)]
    pub verb: Option<Verb>,
    /// The command, passed on verbatim
    #[arg(last = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

/// Which lease, where, and with which times: before or after a subcommand's name.
#[derive(Debug, Args)]
pub struct StoreArgs {
    /// The store: a path or sqlite:PATH, postgres://… [env: LOCKRUN_DB, or LOCKRUN_DB_FILE naming a file that holds it]
    #[arg(long, global = true, value_name = "DB")]
    pub db: Option<OsString>,
    /// The lease, 1 to 253 of A-Z a-z 0-9 . _ - / [env: LOCKRUN_NAME] [default: default]
    #[arg(long, global = true, value_name = "NAME")]
    pub name: Option<OsString>,
    /// How long a lease lasts without renewal [env: LOCKRUN_TTL] [default: 60s]
    #[arg(long, global = true, value_name = "DUR", allow_hyphen_values = true)]
    pub ttl: Option<OsString>,
    /// How often it is renewed [env: LOCKRUN_HEARTBEAT] [default: ttl / 12]
    #[arg(long, global = true, value_name = "DUR", allow_hyphen_values = true)]
    pub heartbeat: Option<OsString>,
    /// From the stop signal to SIGKILL when lockrun itself ends the command [env: LOCKRUN_GRACE] [default: ttl / 6, at most 10s]
    #[arg(long, global = true, value_name = "DUR", allow_hyphen_values = true)]
    pub grace: Option<OsString>,
    /// Use an application's one-row lock table
    #[arg(long, global = true, value_name = "NAME", conflicts_with = "name")]
    pub table: Option<OsString>,
    /// Use SQLite on a file system that lockrun would refuse
    #[arg(long, global = true)]
    pub allow_fs: bool,
}

#[derive(Debug, Args)]
pub struct RunArgs {
    /// Do not wait
    #[arg(short = 'n', long)]
    pub nonblock: bool,
    /// Wait at most this long; 0 is -n [env: LOCKRUN_WAIT]
    #[arg(short = 'w', long, value_name = "DUR", conflicts_with = "nonblock", allow_hyphen_values = true)]
    pub wait: Option<OsString>,
    /// Exit code when the lease was not acquired because it is held [default: 75]
    #[arg(short = 'E', long, value_name = "N", allow_hyphen_values = true)]
    pub conflict_exit_code: Option<OsString>,
    /// After a lost lease: exit with 76, or go back to waiting [env: LOCKRUN_ON_LOST] [default: exit]
    #[arg(long, value_name = "exit|wait")]
    pub on_lost: Option<OsString>,
    /// Sent first whenever lockrun ends the command, and in place of a SIGTERM that lockrun receives [default: TERM]
    #[arg(long, value_name = "SIG")]
    pub stop_signal: Option<OsString>,
    /// Whom forwarded signals reach [default: child]
    #[arg(long, value_name = "child|group")]
    pub signal_to: Option<SignalTo>,
    /// After a forwarded stop signal, SIGKILL [default: never]
    #[arg(short = 'k', long, value_name = "DUR", allow_hyphen_values = true)]
    pub kill_after: Option<OsString>,
    /// Promise that only one tree with this id lives at a time: a new start of the same id takes over at once; only as PID 1
    /// [env: LOCKRUN_INSTANCE]
    #[arg(long, value_name = "ID")]
    pub instance: Option<OsString>,
    /// [env: LOCKRUN_LOG_FORMAT] [default: text]
    #[arg(long, value_name = "text|json")]
    pub log_format: Option<OsString>,
    /// Say less [env: LOCKRUN_LOG=error|warn|info|debug] [default: info; with -n or -w warn]
    #[arg(short = 'q', conflicts_with = "verbose", action = ArgAction::Count)]
    pub quiet: u8,
    /// Say more
    #[arg(short = 'v', action = ArgAction::Count)]
    pub verbose: u8,
}

impl RunArgs {
    /// The first option that was given, for a subcommand that takes none of them.
    pub fn first_given(&self) -> Option<&'static str> {
        let given = [
            (self.nonblock, "--nonblock"),
            (self.wait.is_some(), "--wait"),
            (self.conflict_exit_code.is_some(), "--conflict-exit-code"),
            (self.on_lost.is_some(), "--on-lost"),
            (self.stop_signal.is_some(), "--stop-signal"),
            (self.signal_to.is_some(), "--signal-to"),
            (self.kill_after.is_some(), "--kill-after"),
            (self.instance.is_some(), "--instance"),
            (self.log_format.is_some(), "--log-format"),
            (self.quiet > 0, "-q"),
            (self.verbose > 0, "-v"),
        ];
        given.into_iter().find_map(|(given, option)| given.then_some(option))
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SignalTo {
    Child,
    Group,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Who holds what, since when, until when
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Can this store be used from here, with which times and promises; does this token still hold
    Check {
        /// Ask whether the lease is still held with this fencing token
        #[arg(long, value_name = "N", allow_hyphen_values = true)]
        token: Option<OsString>,
        #[arg(long)]
        json: bool,
    },
}

/// What parsing came to.
pub enum Parsed {
    Cli(Box<Cli>),
    /// `--help` or `--version`: print it and exit 0.
    Print(String),
}

pub fn parse(argv: &[OsString]) -> Result<Parsed, Failure> {
    match Cli::try_parse_from(argv) {
        Ok(cli) => Ok(Parsed::Cli(Box::new(cli))),
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => Ok(Parsed::Print(error.to_string())),
        Err(error) => Err(Failure::refused(explain(&error, argv))),
    }
}

/// One line for what clap says in several, with the habits of other tools named.
fn explain(error: &clap::Error, argv: &[OsString]) -> String {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => texts.first().cloned(),
        Some(_) | None => None,
    };
    let argument = context(ContextKind::InvalidArg);
    match (error.kind(), argument.as_deref()) {
        (ErrorKind::InvalidSubcommand, _) => without_dashes(argv, &context(ContextKind::InvalidSubcommand).unwrap_or_default()),
        (ErrorKind::UnknownArgument, Some(word)) if !word.starts_with('-') => without_dashes(argv, word),
        (ErrorKind::UnknownArgument, Some("-c" | "--command")) => {
            let at = argv.iter().position(|arg| arg == "-c" || arg == "--command").map_or(argv.len(), |at| at + 1);
            let script = argv.get(at).map_or("…".into(), |script| quoted(script));
            format!("-c: lockrun starts no shell; write: -- sh -c {script}")
        }
        _ => {
            let text = without_passwords(error.to_string(), argv);
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let line = text.split("\n\n").next().unwrap_or(text).split_whitespace().collect::<Vec<_>>().join(" ");
            format!("{line}; see lockrun --help")
        }
    }
}

/// clap shows values as they were typed, with the option or without.
fn without_passwords(text: String, argv: &[OsString]) -> String {
    argv.iter().map(|arg| arg.to_string_lossy()).fold(text, |text, arg| {
        let value = arg.split_once('=').map_or(arg.as_ref(), |(_, value)| value);
        let hide = |text: String, part: &str| match without_password(part) {
            shown if shown == part => text,
            shown => text.replace(part, &shown),
        };
        hide(hide(text, &arg), value)
    })
}

/// Subcommands that have their names, and are not there yet.
const LATER: [&str; 7] = ["generate", "handover", "health", "history", "pause", "release", "resume"];

fn without_dashes(argv: &[OsString], word: &str) -> String {
    if LATER.contains(&word) {
        return format!("{word}: this lockrun does not have that subcommand yet; to run a program of that name, write: -- {word}");
    }
    let mut words = vec!["lockrun".to_string()];
    let mut found = false;
    for arg in argv.iter().skip(1) {
        if !found && arg == word {
            found = true;
            words.push("--".to_string());
        }
        words.push(quoted(arg));
    }
    if !words.iter().take_while(|word| *word != "--").any(|word| word.starts_with("--db")) {
        words = ["lockrun", "--db", "x.db", "--", &quoted(word.as_ref()), "…"].map(str::to_string).to_vec(); // its options stand behind it
    }
    let word = without_password(word);
    format!("{word}: a command goes behind --, lockrun's own options before; write: {}", words.join(" "))
}

/// As a shell would need it.
fn quoted(arg: &OsStr) -> String {
    let text = without_password(&arg.to_string_lossy());
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=@%+,".contains(c);
    if !text.is_empty() && text.chars().all(plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn refusal(line: &str) -> String {
        match parse(&args(line)) {
            Err(failure) => failure.line,
            Ok(_) => panic!("{line}: accepted"),
        }
    }

    fn parsed(line: &str) -> Box<Cli> {
        match parse(&args(line)) {
            Ok(Parsed::Cli(cli)) => cli,
            Ok(Parsed::Print(text)) => panic!("{text}"),
            Err(failure) => panic!("{failure}"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_without_dashes_is_shown_with_them() {
        assert_eq!(
            refusal("lockrun --db x.db celery beat"),
            "celery: a command goes behind --, lockrun's own options before; write: lockrun --db x.db -- celery beat"
        );
        assert!(refusal("lockrun celery beat --db y.db").ends_with("write: lockrun --db x.db -- celery …"));
        assert!(refusal("lockrun pause --db x.db").contains("not have that subcommand yet"));
        assert!(refusal("lockrun --db x.db -c a|b").contains("write: -- sh -c 'a|b'"));
    }

    #[test]
    fn everything_behind_the_dashes_is_the_command() {
        let cli = parsed("lockrun --db x.db -- status --json --db y");
        assert_eq!(cli.command, args("status --json --db y"));
        assert!(cli.verb.is_none());
    }

    #[test]
    fn the_store_is_named_before_or_after_a_subcommand() {
        for line in ["lockrun --db x.db --name a status", "lockrun status --db x.db --name a", "lockrun --name a status --db x.db"] {
            let cli = parsed(line);
            assert_eq!((cli.store.db.as_deref(), cli.store.name.as_deref()), (Some(OsStr::new("x.db")), Some(OsStr::new("a"))), "{line}");
        }
    }

    #[test]
    fn every_refusal_is_one_line() {
        for line in ["lockrun --bogus", "lockrun --db", "lockrun -n -w 5 --db x -- true", "lockrun --signal-to all --db x -- true"] {
            assert!(!refusal(line).contains('\n'), "{line}");
        }
        let both = refusal("lockrun -n -w 5 --db x -- true");
        assert!(both.contains("--nonblock") && both.contains("--wait"), "{both}");
    }
}
