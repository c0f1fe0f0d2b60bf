//! The kernel lock: one byte per lease of an empty side file beside the database, as an open-file-description lock. The
//! front, the guard and the command share one description, so the kernel frees it when the last of them is dead. Waiters
//! block on it: no polling. The record stays the authority; the lock only shortens waits.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
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
    /// Locked, of side files that were removed or replaced.
    old: Vec<File>,
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
    /// No thread could be started for it.
    Blind,
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
            Ok(taken) => {
                let old = state.held.take_if(|old| at_path != Some(old.side));
                let changes = old.is_some() || taken.is_some();
                state.old.extend(old.map(|old| old.file));
                if changes {
                    state.hold(taken);
                    return state.held.as_mut().map_or(Standing::Others, Held::tell);
                }
                Standing::Others
            }
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
            Ahead::Blind => a_second().await,
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
            return Ahead::Blind;
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

    /// Nobody who starts now asks at a side file that was removed, but those who waited before do: let go of it, and they come
    /// to the new one. Not before the record says what we hold now, for the lock of the file that it names is proof that its
    /// holder is gone, and that file may come back. (Where only a leftover of a dead holder has the old one, they learn of the
    /// new one when they look for the next line of their log. Not by inotify(7): an instance for each waiter would soon use up
    /// the 128 of a user, and closing one takes 20 ms.)
    pub fn let_go_of_old(&self) {
        self.inner.state().old.drain(..).for_each(|old| side::unlock(&old, self.inner.byte));
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
        drop(state);
        self.let_go_of_old();
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

/// Where the limits allow no thread that waits, the lock is tried again by time.
async fn a_second() {
    let timer = || -> io::Result<AsyncFd<OwnedFd>> {
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        timer.set(Expiration::OneShot(TimeSpec::from_duration(Duration::from_secs(1))), TimerSetTimeFlags::empty())?;
        // SAFETY: the descriptor is owned by what is registered, which never gives it away.
        Ok(unsafe { AsyncFd::register_with_interest(OwnedFd::from(timer), Interest::READABLE) }?)
    };
    match timer() {
        Ok(timer) => drop(timer.readable().await),
        Err(_) => std::future::pending().await, // the next line of the log looks too
    }
}

#[cfg(test)]
mod tests;
