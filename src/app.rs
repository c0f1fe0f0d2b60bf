//! One function per thing that lockrun does; wires store, guard and supervisor.

use std::io;
use std::mem::ManuallyDrop;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::clock;
use crate::config::{Config, Run, Target};
use crate::error::Failure;
use crate::exit::{self, Ended};
use crate::guard::{self, Guard, Job};
use crate::lease::{Machine, Outcome, RELEASE_TIME, Record, SpawnError, Swap, Token, Wait, WriteId};
use crate::signals::Signals;
use crate::status::{self, Answer};
use crate::store::Store;
use crate::store::sqlite::{self, Open, SqliteStore};
use crate::supervisor::Supervisor;
use crate::{logging, report};

/// Between two tries of the last will.
const WILL_PAUSE: Duration = Duration::from_millis(10);
/// As many are opened beside 0 to 2 (measured: `ulimit -n 15` is the least with which all of it works).
const DESCRIPTORS: usize = 12;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    /// Die of it, so that the caller sees what the command died of.
    Signal(i32),
}

/// What to print on stdout, if anything, and how to end.
pub fn run(config: Config) -> Result<(String, End), Failure> {
    match config {
        Config::Run(config) => supervise(*config).map(|end| (String::new(), end)),
        Config::Status { target, json } => answer(status::status(&target, json)),
        Config::Check { target, json, token } => answer(status::check(&target, json, token)),
    }
}

fn answer(work: impl Future<Output = Result<Answer, Failure>>) -> Result<(String, End), Failure> {
    let answer = runtime()?.block_on(work)?;
    Ok((answer.text, End::Code(answer.code)))
}

fn runtime() -> Result<Runtime, Failure> {
    Builder::new_current_thread().enable_io().build().map_err(no_resource)
}

fn no_resource(error: io::Error) -> Failure {
    Failure::refused(format!("lockrun cannot start: {error}; raise the limits of open files and processes"))
}

/// Before anything is started: later, SQLite would only say that it cannot open the file, and others would not see our lock.
fn enough_descriptors() -> io::Result<()> {
    use std::os::fd::AsFd;
    let some = std::io::pipe()?;
    (2..DESCRIPTORS).map(|_| some.0.as_fd().try_clone_to_owned()).collect::<io::Result<Vec<_>>>().map(drop)
}

fn supervise(run: Run) -> Result<End, Failure> {
    guard::usable().map_err(Failure::refused)?;
    enough_descriptors().map_err(no_resource)?;
    // Everything that the command needs to know is known before the guard is forked; only the token comes later.
    let terminal = std::fs::OpenOptions::new().read(true).open("/dev/tty").is_ok();
    let job = Job {
        argv: run.command.clone(),
        environment: run.environment.clone(),
        directory: run.directory.clone(),
        terminal,
        stop_signal: run.stop_signal,
        kill_time: run.target.timing.kill_time,
        to_group: run.to_group,
    };
    let forked = guard::start(&job, clock::now, &|token| last_will(&run, token)).map_err(no_resource)?;
    // Never dropped: to close the database at the end would only be waited for, and the end of the process does it too.
    let store = ManuallyDrop::new(store(&run.target, Open::Create));
    logging::init(run.log_format, run.log_level);
    // Not to keep a folder busy; the database's path is absolute.
    let _ = std::env::set_current_dir("/");
    // Nor this: what is left to take down goes with the process.
    let runtime = ManuallyDrop::new(runtime()?);
    let outcome = runtime.block_on(front(&run, forked, &store, terminal))?;
    let command = run.command[0].to_string_lossy();
    report::conclude(&run.target.lease(), &with_path(&run.target, &outcome), run.settings.wait != Wait::No, &command);
    logging::flush();
    Ok(match outcome {
        Outcome::Command(Ended::Code(code)) => End::Code(code),
        Outcome::Command(Ended::Signal(signal)) | Outcome::Signal(signal) => End::Signal(signal),
        Outcome::Lost => End::Code(exit::LOST),
        Outcome::NotAcquired(..) => End::Code(run.conflict_code),
        Outcome::Unreachable(_) => End::Code(exit::UNREACHABLE),
        Outcome::Refused(_) | Outcome::WouldWaitForItself => End::Code(exit::REFUSED),
        Outcome::NotSpawned(SpawnError::Exec(libc::ENOENT)) => End::Code(exit::NOT_FOUND),
        Outcome::NotSpawned(_) => End::Code(exit::CANNOT_EXECUTE),
    })
}

/// The store's words do not name the file.
fn with_path(target: &Target, outcome: &Outcome) -> Outcome {
    let path = target.place.path.display();
    match outcome {
        Outcome::Refused(why) => Outcome::Refused(format!("{path}: {why}")),
        Outcome::Unreachable(why) => Outcome::Unreachable(format!("{path}: {why}")),
        other => other.clone(),
    }
}

async fn front(run: &Run, forked: guard::Forked, store: &SqliteStore, terminal: bool) -> Result<Outcome, Failure> {
    let name = run.target.lease();
    for warning in &run.target.place.warnings {
        report::warn(&name, warning.as_str());
    }
    let guard = Guard::new(forked).map_err(no_resource)?;
    let signals = Signals::listen(terminal).map_err(no_resource)?;
    let machine = Machine::new(run.settings.clone(), clock::snapshot());
    let supervisor = Supervisor::new(store, &name, &guard, signals, machine, run.stop_signal).map_err(no_resource)?;
    let outcome = supervisor.run().await;
    // Record first, kernel lock second: whoever gets the lock finds the lease free.
    store.unlock();
    guard.dismiss();
    Ok(outcome)
}

fn store(target: &Target, open: Open) -> SqliteStore {
    SqliteStore::new(sqlite::Settings {
        path: target.place.path.clone(),
        open,
        lock: (open == Open::Create).then(|| target.lease()),
        app_table: target.app_table.clone(),
        timing: target.timing,
        now: clock::now,
        wall_ms: clock::wall_ms,
    })
}

/// In a child of the guard, when the front is dead or stopped and nothing of its tree is left: the record goes free, if it
/// is still ours by holder and token.
fn last_will(run: &Run, token: Token) {
    let Ok(runtime) = runtime() else { return };
    let name = run.target.lease();
    let store = store(&run.target, Open::Existing);
    let give_up_at = clock::now() + RELEASE_TIME;
    runtime.block_on(async {
        while clock::now() < give_up_at {
            let Ok(snapshot) = store.read(&name, clock::now()).await else {
                std::thread::sleep(WILL_PAUSE);
                continue;
            };
            let ours = |record: &&Record| record.token == token && record.holder.as_ref().is_some_and(|h| h.id == run.settings.me.id);
            let Some(record) = snapshot.record.as_ref().filter(ours) else { return };
            let free = Record { write: WriteId::from_random(clock::random()), holder: None, stopping: false, ..record.clone() };
            if let Ok(Swap::Done(_)) = store.swap(&name, &snapshot.version, &free).await {
                return;
            }
        }
    });
}
