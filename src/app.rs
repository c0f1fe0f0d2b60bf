//! One function per thing that lockrun does; wires store, guard and supervisor.

use std::io;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::clock;
use crate::config::{Config, Run, Target};
use crate::error::Failure;
use crate::exit::{self, Ended};
use crate::guard::{self, Guard, Job};
use crate::http::{self, health};
use crate::lease::{Machine, Outcome, RELEASE_TIME, Record, SpawnError, Swap, Token, Wait, WriteId};
use crate::signals::Signals;
use crate::status::{self, Answer};
use crate::store::any::AnyStore;
use crate::store::{Purpose, Settings, Store};
use crate::supervisor::Supervisor;
use crate::text::one_line;
use crate::told::Teller;
use crate::{logging, report};

/// Between two tries of the last will.
const WILL_PAUSE: Duration = Duration::from_millis(10);
/// As many are opened beside 0 to 2 (measured: `ulimit -n 19` is the least with which all of it works; four of them are for
/// what kube has tokio do with child processes).
const DESCRIPTORS: usize = 16;

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
        Config::Status { target, json } => answer(&target, status::status(&target, json)),
        Config::Check { target, json, token } => answer(&target, status::check(&target, json, token)),
        Config::Health { at, path } => {
            let (well, line) = health::ask(at, path)?;
            Ok((one_line(&line) + "\n", End::Code(if well { 0 } else { exit::NO })))
        }
    }
}

fn answer(target: &Target, work: impl Future<Output = Result<Answer, Failure>>) -> Result<(String, End), Failure> {
    let answer = runtime(target)?.block_on(work)?;
    Ok((answer.text, End::Code(answer.code)))
}

/// Never dropped: a look-up of a host's name that hangs on a thread of its own would be waited for.
fn runtime(target: &Target) -> Result<ManuallyDrop<Runtime>, Failure> {
    let mut builder = Builder::new_current_thread();
    builder.enable_io();
    if target.address.is_server() {
        #[cfg(feature = "tls")]
        builder.enable_time(); // the clients' own time-outs; lockrun's deadlines are CLOCK_BOOTTIME's
    }
    builder.build().map(ManuallyDrop::new).map_err(no_resource)
}

fn no_resource(error: io::Error) -> Failure {
    Failure::refused(format!("lockrun cannot start: {error}; raise the limits of open files and processes"))
}

/// Before anything is started: later, SQLite would only say that it cannot open the file, and others would not see our lock.
fn enough_descriptors(count: usize) -> io::Result<()> {
    use std::os::fd::AsFd;
    let some = std::io::pipe()?;
    (2..count).map(|_| some.0.as_fd().try_clone_to_owned()).collect::<io::Result<Vec<_>>>().map(drop)
}

fn supervise(run: Run) -> Result<End, Failure> {
    guard::usable().map_err(Failure::refused)?;
    enough_descriptors(DESCRIPTORS + run.http.map_or(0, |_| http::DESCRIPTORS)).map_err(no_resource)?;
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
    let (at, teller) = listen(&run)?.unzip();
    // Never dropped: to close the database at the end would only be waited for, and the end of the process does it too.
    let hold = Purpose::Hold { lease: run.target.lease(), short: run.settings.wait != Wait::Forever };
    let store = ManuallyDrop::new(store(&run.target, hold));
    logging::init(run.log_format, run.log_level);
    if let Some(at) = at {
        report::listening(&run.target.lease(), at);
    }
    // Not to keep a folder busy; the database's path is absolute.
    let _ = std::env::set_current_dir("/");
    let outcome = runtime(&run.target)?.block_on(front(&run, forked, &store, terminal, teller))?;
    let command = run.command[0].to_string_lossy();
    report::conclude(&run.target.lease(), &with_address(&run.target, &outcome), run.settings.wait != Wait::No, &command);
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

/// The store's words do not name it.
fn with_address(target: &Target, outcome: &Outcome) -> Outcome {
    let address = &target.address;
    match outcome {
        Outcome::Refused(why) => Outcome::Refused(format!("{address}: {why}")),
        Outcome::Unreachable(why) => Outcome::Unreachable(format!("{address}: {why}")),
        other => other.clone(),
    }
}

/// Where `--http` listens, and what tells its thread. In the front alone, and while it has all signals blocked.
#[cfg(feature = "http")]
fn listen(run: &Run) -> Result<Option<(SocketAddr, Teller)>, Failure> {
    let Some(at) = run.http else { return Ok(None) };
    let listener = http::bind(at)?;
    let at = listener.local_addr().map_err(no_resource)?;
    let site = http::Site { name: run.target.lease(), me: run.settings.me.clone(), started_ms: clock::wall_ms() };
    http::start(listener, site).map(|teller| Some((at, teller))).map_err(no_resource)
}

/// `config` refuses an address where nothing can listen.
#[cfg(not(feature = "http"))]
fn listen(_: &Run) -> Result<Option<(SocketAddr, Teller)>, Failure> {
    Ok(None)
}

async fn front(run: &Run, forked: guard::Forked, store: &AnyStore, terminal: bool, teller: Option<Teller>) -> Result<Outcome, Failure> {
    let name = run.target.lease();
    for warning in run.target.address.warnings() {
        report::warn(&name, warning.as_str());
    }
    let guard = Guard::new(forked).map_err(no_resource)?;
    let signals = Signals::listen(terminal).map_err(no_resource)?;
    let machine = Machine::new(run.settings.clone(), clock::snapshot());
    let supervisor = Supervisor::new(store, &name, &guard, signals, machine, run.stop_signal, teller).map_err(no_resource)?;
    let outcome = supervisor.run().await;
    // Record first, kernel lock second: whoever gets the lock finds the lease free.
    store.unlock();
    guard.dismiss();
    Ok(outcome)
}

fn store(target: &Target, purpose: Purpose) -> AnyStore {
    AnyStore::new(target.address.clone(), Settings { purpose, timing: target.timing, now: clock::now, wall_ms: clock::wall_ms })
}

/// In a child of the guard, when the front is dead or stopped and nothing of its tree is left: the record goes free, if it
/// is still ours by holder and token.
fn last_will(run: &Run, token: Token) {
    let Ok(runtime) = runtime(&run.target) else { return };
    let name = run.target.lease();
    let store = ManuallyDrop::new(store(&run.target, Purpose::Look));
    let give_up_at = clock::now() + RELEASE_TIME;
    runtime.block_on(async {
        while clock::now() < give_up_at {
            if let Ok(snapshot) = store.read(&name, clock::now()).await {
                let ours = |record: &&Record| record.token == token && record.holder.as_ref().is_some_and(|h| h.id == run.settings.me.id);
                let Some(record) = snapshot.record.as_ref().filter(ours) else { return };
                let free = Record { write: WriteId::from_random(clock::random()), holder: None, stopping: false, ..record.clone() };
                if let Ok(Swap::Done(_)) = store.swap(&name, &snapshot.version, &free).await {
                    return;
                }
            }
            std::thread::sleep(WILL_PAUSE);
        }
    });
}
