//! The turnstile: byte 0 of the side file around each write transaction, so that writers go in the order in which they came.
//! For fairness only: SQLite has no queue, and where many try again by time some starve. Whoever does not get it in time, or
//! cannot, goes on without. Must never be held across anything but a transaction, nor reach the guard or the command: its
//! description is the front's own, closed on exec.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

use super::side::{self, Identity};
use crate::lease::Moment;

const BYTE: i64 = 0;

pub struct Turnstile {
    database: PathBuf,
    /// The side file, if it is missing.
    make: bool,
    /// Boottime, in nanoseconds: half of what is left until then is waited for the turn, the rest is for SQLite's lock.
    patience: Arc<AtomicU64>,
    now: fn() -> Moment,
    gate: Option<Gate>,
}

/// One side file, opened.
struct Gate {
    file: Arc<File>,
    identity: Identity,
    queue: Arc<Queue>,
    /// To the thread that waits for us, once somebody was before us. It ends when this is dropped.
    calls: Option<mpsc::Sender<()>>,
}

#[derive(Default)]
struct Queue {
    turn: Mutex<Turn>,
    came: Condvar,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Turn {
    #[default]
    NotWanted,
    Wanted,
    Came,
    /// It did not come in time. The thread still waits for it, to let the next one pass.
    GivenUp,
}

/// A write transaction. Rolled back unless committed; then the next one may pass.
pub struct Write<'a> {
    transaction: Transaction<'a>,
    _pass: Option<Pass<'a>>,
}

struct Pass<'a>(&'a File);

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        side::unlock(self.0, BYTE);
    }
}

impl<'a> std::ops::Deref for Write<'a> {
    type Target = Transaction<'a>;

    fn deref(&self) -> &Transaction<'a> {
        &self.transaction
    }
}

impl Write<'_> {
    pub fn commit(self) -> rusqlite::Result<()> {
        self.transaction.commit()
    }
}

impl Turnstile {
    pub fn new(database: &Path, make: bool, patience: Arc<AtomicU64>, now: fn() -> Moment) -> Turnstile {
        Turnstile { database: database.to_path_buf(), make, patience, now, gate: None }
    }

    /// The side file at the path is this one now: whoever asks at another asks in vain.
    pub fn follow(&mut self, identity: Identity) {
        self.gate.take_if(|gate| gate.identity != identity);
    }

    pub fn begin<'a>(&'a mut self, connection: &'a mut Connection) -> rusqlite::Result<Write<'a>> {
        let _pass = self.pass();
        Ok(Write { transaction: connection.transaction_with_behavior(TransactionBehavior::Immediate)?, _pass })
    }

    fn pass(&mut self) -> Option<Pass<'_>> {
        if self.gate.is_none() {
            self.gate = Gate::open(&self.database, self.make).ok();
        }
        let gate = self.gate.as_mut()?;
        let passed = *gate.queue.turn() != Turn::GivenUp
            && (side::try_lock(&gate.file, BYTE).ok()? || {
                let until = Moment::from_nanos(self.patience.load(Ordering::Relaxed));
                gate.wait(until.since((self.now)()) / 2)
            });
        passed.then_some(Pass(&gate.file))
    }
}

impl Gate {
    fn open(database: &Path, make: bool) -> io::Result<Gate> {
        let path = side::path_of(database);
        let file = if make { side::open_or_make(&path, database)? } else { side::open(&path)? };
        let identity = Identity::of(&file.metadata()?);
        Ok(Gate { file: Arc::new(file), identity, queue: Arc::default(), calls: None })
    }

    /// In a thread of its own, because fcntl(2) has no time-out and every signal that could end it is the command's.
    fn wait(&mut self, at_most: Duration) -> bool {
        if self.calls.is_none() {
            let (calls, called) = mpsc::channel();
            let (file, queue) = (Arc::clone(&self.file), Arc::clone(&self.queue));
            let thread = std::thread::Builder::new().name("turnstile".to_string()).stack_size(64 << 10);
            if thread.spawn(move || called.iter().for_each(|()| queue.stand_in_line(&file))).is_err() {
                return false;
            }
            self.calls = Some(calls);
        }
        let mut turn = self.queue.turn();
        *turn = Turn::Wanted;
        if self.calls.as_ref().is_none_or(|calls| calls.send(()).is_err()) {
            return false;
        }
        let wanted = |turn: &mut Turn| *turn == Turn::Wanted;
        // By the monotonic clock: a suspend only makes it wait longer.
        let (mut turn, _) = self.queue.came.wait_timeout_while(turn, at_most, wanted).unwrap_or_else(PoisonError::into_inner);
        let came = *turn == Turn::Came;
        *turn = if came { Turn::NotWanted } else { Turn::GivenUp };
        came
    }
}

impl Queue {
    fn turn(&self) -> MutexGuard<'_, Turn> {
        // Nothing panics while it is held.
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stand_in_line(&self, file: &File) {
        // With an error there is nothing to stand in line for: the same as a turn.
        let _ = side::lock(file, BYTE);
        let mut turn = self.turn();
        if *turn == Turn::Wanted {
            *turn = Turn::Came;
            self.came.notify_one();
        } else {
            *turn = Turn::NotWanted;
            side::unlock(file, BYTE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOR_EVER: u64 = u64::MAX;

    fn now() -> Moment {
        Moment::from_nanos(0)
    }

    fn turnstile(folder: &tempfile::TempDir, patience_ns: u64) -> Turnstile {
        Turnstile::new(&folder.path().join("x.db"), true, Arc::new(AtomicU64::new(patience_ns)), now)
    }

    /// Somebody else with the side file open.
    fn other(folder: &tempfile::TempDir) -> File {
        let database = folder.path().join("x.db");
        side::open_or_make(&side::path_of(&database), &database).expect("a side file")
    }

    #[test]
    fn it_is_held_for_the_transaction_and_for_nothing_else() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut connection = Connection::open(folder.path().join("x.db")).expect("a database");
        let (mut turnstile, other) = (turnstile(&folder, FOR_EVER), other(&folder));
        let write = turnstile.begin(&mut connection).expect("the right to write");
        assert_eq!(side::try_lock(&other, BYTE), Ok(false));
        write.execute_batch("CREATE TABLE a (b)").and_then(|()| write.commit()).expect("committed");
        assert_eq!(side::try_lock(&other, BYTE), Ok(true));
        side::unlock(&other, BYTE);
        drop(turnstile.begin(&mut connection).expect("the right to write"));
        assert_eq!(side::try_lock(&other, BYTE), Ok(true), "a rollback too");
    }

    #[test]
    fn whoever_comes_second_waits_for_the_first() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut first, mut second) = (turnstile(&folder, FOR_EVER), turnstile(&folder, FOR_EVER));
        for _ in 0..3 {
            let pass = first.pass().expect("nobody is there");
            std::thread::scope(|scope| {
                let (passed, later) = mpsc::channel();
                let second = &mut second;
                scope.spawn(move || passed.send(second.pass().is_some()));
                assert_eq!(later.recv_timeout(Duration::from_millis(20)), Err(mpsc::RecvTimeoutError::Timeout));
                drop(pass);
                assert_eq!(later.recv(), Ok(true));
            });
        }
    }

    #[test]
    fn a_turn_that_does_not_come_is_done_without_and_let_go_of_when_it_comes() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let (mut turnstile, stopped) = (turnstile(&folder, 10_000_000), other(&folder));
        assert_eq!(side::try_lock(&stopped, BYTE), Ok(true));
        assert!(turnstile.pass().is_none());
        turnstile.patience.store(FOR_EVER, Ordering::Relaxed);
        assert!(turnstile.pass().is_none(), "at once: somebody is stuck in there");
        side::unlock(&stopped, BYTE);
        let in_the_end = |done: &mut dyn FnMut() -> bool| {
            (0..10_000).any(|_| {
                std::thread::sleep(Duration::from_millis(1));
                done()
            })
        };
        assert!(in_the_end(&mut || side::try_lock(&stopped, BYTE) == Ok(true)), "nobody keeps it who does not write");
        side::unlock(&stopped, BYTE);
        // The thread that waited has let go of it, and says so a moment later.
        assert!(in_the_end(&mut || turnstile.pass().is_some()));
    }

    #[test]
    fn it_stands_where_the_side_file_is_now() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut turnstile = turnstile(&folder, 10_000_000);
        let old = other(&folder);
        assert!(turnstile.pass().is_some());
        assert_eq!(side::try_lock(&old, BYTE), Ok(true));
        std::fs::remove_file(side::path_of(&turnstile.database)).expect("it was there");
        let new = other(&folder);
        turnstile.follow(Identity::of(&new.metadata().expect("open")));
        let pass = turnstile.pass().expect("nobody is in the new one");
        assert_eq!(side::try_lock(&new, BYTE), Ok(false));
        drop(pass);
    }

    #[test]
    fn whoever_may_make_nothing_makes_no_side_file() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut looking = Turnstile { make: false, ..turnstile(&folder, FOR_EVER) };
        assert!(looking.pass().is_none());
        assert!(!side::path_of(&looking.database).exists());
        let _made = other(&folder);
        assert!(looking.pass().is_some());
    }
}
