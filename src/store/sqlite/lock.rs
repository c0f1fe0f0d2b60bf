//! The kernel lock: one byte per lease of an empty side file beside the database, as an open-file-description lock. The
//! front, the guard and the command share one description, so the kernel frees it when the last of them is dead. Waiters
//! block on it: no polling. The record stays the authority; the lock only shortens waits.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::Notify;

use super::side::{self, Identity};
use crate::lease::Moment;

/// Who has the lock of the side file that lies at the path now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Ours {
        since: Moment,
        side: Identity,
    },
    Others,
    /// The side file cannot be made or locked: the record alone decides.
    Unsupported(String),
}

pub struct KernelLock {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    database: PathBuf,
    byte: i64,
    now: fn() -> Moment,
    state: Mutex<State>,
    granted: Notify,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// Blocks on the lock for us.
    thread: Option<Waiter>,
    threads: u64,
    /// Counts what happens to `held`: a look that does I/O meanwhile must not undo it.
    generation: u64,
    unsupported: Option<String>,
}

struct Held {
    file: File,
    since: Moment,
    side: Identity,
    /// A look has shown it.
    told: bool,
    /// The guard has it too.
    handed: bool,
}

struct Waiter {
    number: u64,
    /// Of the file that it waits for, once it has opened it.
    side: Option<Identity>,
    /// If not, it lets go of the lock when that comes.
    wanted: bool,
}

impl State {
    fn hold(&mut self, held: Option<Held>) {
        self.generation += 1;
        self.held = held;
    }
}

/// What a waiter has to expect of the lock.
enum Ahead {
    Granted,
    Waiting,
    /// Held already, or no use: the caller looks again by time.
    Nothing,
}

impl Held {
    fn tell(&mut self) -> Standing {
        self.told = true;
        Standing::Ours { since: self.since, side: self.side }
    }
}

/// Bytes from 2^61 up, by a 61-bit hash (FNV-1a) of the lease's name. Part of the format: every version must agree. A
/// collision only makes two leases exclude each other.
pub fn byte_of(name: &str) -> i64 {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (1 << 61) | (hash >> 3) as i64
}

impl KernelLock {
    pub fn new(database: &Path, name: &str, now: fn() -> Moment) -> KernelLock {
        let inner = Inner {
            path: side::path_of(database),
            database: database.to_path_buf(),
            byte: byte_of(name),
            now,
            state: Mutex::default(),
            granted: Notify::new(),
        };
        KernelLock { inner: Arc::new(inner) }
    }

    /// Takes the lock if nobody has it, and makes the side file anew if it is gone. Does not wait for a lock, but for the
    /// disk: only for the store's own thread. The state is not held meanwhile, because the front asks for it too.
    pub fn look(&self) -> Standing {
        let inner = &self.inner;
        let (generation, mine) = {
            let state = inner.state();
            let mine = state.held.as_ref().and_then(|held| Some((held.file.try_clone().ok()?, held.side)));
            (state.generation, mine)
        };
        let at_path = inner.side_at_path();
        if let Some((file, _)) = mine.filter(|(_, side)| at_path == Some(*side)) {
            // The guard, which shares the description, may have given it back.
            let still = side::try_lock(&file, inner.byte) == Ok(true);
            let mut state = inner.state();
            if state.generation != generation {
                // Given back meanwhile; this very call may have locked it again.
                side::unlock(&file, inner.byte);
                return Standing::Others;
            }
            if !still {
                state.hold(None);
                return Standing::Others;
            }
            return state.held.as_mut().map_or(Standing::Others, Held::tell);
        }
        {
            let mut state = inner.state();
            let waits = |thread: &Waiter| thread.wanted && (thread.side.is_none() || thread.side == at_path);
            if state.thread.as_ref().is_some_and(waits) {
                return Standing::Others;
            }
            // One that waits for a file that was removed is left to itself.
            state.thread.take_if(|thread| thread.wanted);
        }
        let taken = inner.try_take();
        let mut state = inner.state();
        if state.generation != generation {
            return Standing::Others; // what was taken here goes with its description
        }
        state.unsupported = None;
        match taken {
            Ok(Some(held)) => {
                // An older description (of a side file that was removed) goes on in the guard and the command.
                state.hold(Some(held));
                state.held.as_mut().map_or(Standing::Others, Held::tell)
            }
            Ok(None) => Standing::Others,
            Err(error) => {
                let reason = format!("{}: {error}", inner.path.display());
                state.unsupported = Some(reason.clone());
                Standing::Unsupported(reason)
            }
        }
    }

    /// Why it cannot be used, if the last look has shown so.
    pub fn trouble(&self) -> Option<String> {
        self.inner.state().unsupported.clone()
    }

    /// Returns when the lock was taken for us. Dropping it is safe: the thread that waits keeps waiting.
    pub async fn taken(&self) {
        let granted = self.inner.granted.notified();
        match self.wait_for_it() {
            Ahead::Granted => {}
            Ahead::Waiting => granted.await,
            Ahead::Nothing => std::future::pending().await,
        }
    }

    fn wait_for_it(&self) -> Ahead {
        let mut state = self.inner.state();
        if let Some(held) = &state.held {
            if !held.told {
                return Ahead::Granted; // since the last look
            }
            if self.inner.side_at_path() == Some(held.side) {
                return Ahead::Nothing;
            }
        }
        if state.unsupported.is_some() {
            return Ahead::Nothing;
        }
        if let Some(thread) = &mut state.thread {
            thread.wanted = true;
            return Ahead::Waiting;
        }
        state.threads += 1;
        let number = state.threads;
        let inner = Arc::clone(&self.inner);
        // It blocks in fcntl(2), which nothing but a grant ends, and dies with the process.
        let thread = std::thread::Builder::new().name("lock".to_string()).stack_size(64 << 10).spawn(move || inner.wait(number));
        if thread.is_err() {
            return Ahead::Nothing;
        }
        state.thread = Some(Waiter { number, side: None, wanted: true });
        Ahead::Waiting
    }

    /// A duplicate for the guard, once for each time that the lock is taken.
    pub fn take_fresh(&self) -> Option<OwnedFd> {
        let mut state = self.inner.state();
        let held = state.held.as_mut().filter(|held| !held.handed)?;
        let duplicate = held.file.try_clone().ok()?;
        held.handed = true;
        Some(duplicate.into())
    }

    /// Gives it back, and wants it no more: a thread that waits for it lets go of it when it comes.
    pub fn unlock(&self) {
        let mut state = self.inner.state();
        if let Some(thread) = &mut state.thread {
            thread.wanted = false;
        }
        if let Some(held) = &state.held {
            side::unlock(&held.file, self.inner.byte);
        }
        state.hold(None);
    }

    /// The processes with a descriptor that has this byte locked, as fdinfo (proc_pid_fdinfo(5)) shows it.
    pub fn holders(&self) -> Vec<i32> {
        super::holders::of(&self.inner.path, self.inner.byte)
    }
}

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and if it did the state would still be whole.
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn side_at_path(&self) -> Option<Identity> {
        Identity::at(&self.path)
    }

    fn try_take(&self) -> io::Result<Option<Held>> {
        loop {
            let file = self.open()?;
            if !side::try_lock(&file, self.byte)? {
                return Ok(None);
            }
            if let Some(held) = self.verified(file)? {
                return Ok(Some(held));
            }
        }
    }

    /// The thread of `taken`, of that number.
    fn wait(&self, number: u64) {
        loop {
            let taken = self.open().and_then(|file| {
                let side = Identity::of(&file.metadata()?);
                if let Some(thread) = self.state().thread.as_mut().filter(|thread| thread.number == number) {
                    thread.side = Some(side);
                }
                side::lock(&file, self.byte)?;
                self.verified(file)
            });
            let mut state = self.state();
            let Some(wanted) = state.thread.as_ref().filter(|thread| thread.number == number).map(|thread| thread.wanted) else {
                return; // left to itself; the lock goes with its description
            };
            match taken {
                Ok(Some(held)) if wanted => state.hold(Some(held)),
                Ok(None) => continue,
                // Not wanted any more; or an error, and the next look says which.
                Ok(Some(_)) | Err(_) => {}
            }
            state.thread = None;
            drop(state);
            return self.granted.notify_waiters();
        }
    }

    /// Only a lock on the file that lies at the path counts; while we waited it may have been removed.
    fn verified(&self, file: File) -> io::Result<Option<Held>> {
        let side = Identity::of(&file.metadata()?);
        let since = (self.now)();
        Ok((self.side_at_path() == Some(side)).then_some(Held { file, since, side, told: false, handed: false }))
    }

    fn open(&self) -> io::Result<File> {
        side::open_or_make(&self.path, &self.database)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;

    use super::*;

    fn now() -> Moment {
        Moment::from_nanos(7)
    }

    #[test]
    fn the_byte_of_a_name_never_changes() {
        assert_eq!(byte_of("default"), 4428644419968964799);
        assert_eq!(byte_of("nightly/backup"), 4361205080714135828);
    }

    #[test]
    fn one_description_has_the_lock_and_the_next_gets_it_when_it_is_given_back() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let database = dir.path().join("x.db");
        let (first, second) = (KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now));
        let other_name = KernelLock::new(&database, "b", now);
        assert!(matches!(first.look(), Standing::Ours { .. }));
        assert_eq!(second.look(), Standing::Others);
        assert!(matches!(other_name.look(), Standing::Ours { .. }));
        assert_eq!(first.holders(), [std::process::id() as i32]);
        let duplicate = first.take_fresh().expect("for the guard");
        assert!(first.take_fresh().is_none(), "handed over once");
        first.unlock();
        assert!(matches!(second.look(), Standing::Ours { .. }), "a duplicate ({}) does not keep it", duplicate.as_raw_fd());
    }

    #[test]
    fn a_lock_that_comes_while_a_look_says_others_is_not_slept_over() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let database = dir.path().join("x.db");
        let (first, second) = (KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now));
        assert!(matches!(first.look(), Standing::Ours { .. }));
        assert_eq!(second.look(), Standing::Others);
        assert!(matches!(second.wait_for_it(), Ahead::Waiting));
        assert_eq!(second.look(), Standing::Others, "its own thread waits");
        first.unlock();
        let handed = (0..10_000).find_map(|_| {
            std::thread::yield_now();
            second.take_fresh().or_else(|| {
                std::thread::sleep(std::time::Duration::from_millis(1));
                None
            })
        });
        assert!(handed.is_some(), "it came, and the guard has it");
        assert!(matches!(second.wait_for_it(), Ahead::Granted), "but no look has shown it yet");
        assert!(matches!(second.look(), Standing::Ours { .. }));
        assert!(matches!(second.wait_for_it(), Ahead::Nothing));
    }

    #[test]
    fn a_lock_that_is_wanted_no_more_is_let_go_of_when_it_comes() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let database = dir.path().join("x.db");
        let (first, second, third) =
            (KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now));
        assert!(matches!(first.look(), Standing::Ours { .. }));
        assert!(matches!(second.wait_for_it(), Ahead::Waiting));
        second.unlock();
        first.unlock();
        let third_has_it = (0..10_000).any(|_| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            matches!(third.look(), Standing::Ours { .. })
        });
        assert!(third_has_it);
        assert!(second.take_fresh().is_none());
    }

    #[test]
    fn a_side_file_that_was_removed_is_made_and_locked_anew() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let database = dir.path().join("x.db");
        let lock = KernelLock::new(&database, "a", now);
        let Standing::Ours { side, .. } = lock.look() else { panic!("free") };
        let keep_inode = File::open(side::path_of(&database)).expect("there");
        fs::remove_file(side::path_of(&database)).expect("removed");
        let Standing::Ours { side: new, .. } = lock.look() else { panic!("free again") };
        assert_ne!(side, new, "the old inode is in use by {}", keep_inode.as_raw_fd());
        assert!(lock.take_fresh().is_some(), "the guard must keep the new one too");
    }
}
