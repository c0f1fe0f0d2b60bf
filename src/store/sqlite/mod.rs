//! The embedded store: one SQLite file on one kernel, for any number of processes and containers that share its folder.
//! Blocking work is done on a thread of its own; a request that waits for a stuck one gives up without being queued.

mod app_table;
mod database;
mod holders;
mod lock;
mod place;
mod row;
mod side;
mod turnstile;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};

use super::boot::Boot;
use super::{Facts, Store, StoreError};
use crate::lease::claim::KILL_TIME;
use crate::lease::{Evidence, Finding, KernelLock, LeaseName, Moment, Record, Snapshot, Swap, Timing, Token, Version, WriteId};
use app_table::{AppRow, AppTable};
use database::Database;
pub use database::Open;
pub use holders::trouble as lock_trouble;
use lock::Standing;
pub use place::{Place, look};
use row::{LeaseRow, Stamp};

/// The version of the SQLite that is bundled.
pub fn sqlite_version() -> &'static str {
    rusqlite::version()
}

/// What a store is opened with.
#[derive(Clone)]
pub struct Settings {
    /// From `look`.
    pub path: PathBuf,
    pub open: Open,
    /// The lease whose kernel lock is taken; `None`: this process only looks, or writes a last will.
    pub lock: Option<LeaseName>,
    pub app_table: Option<String>,
    pub timing: Timing,
    /// CLOCK_BOOTTIME, and unix milliseconds: stores read no clock of their own.
    pub now: fn() -> Moment,
    pub wall_ms: fn() -> i64,
}

type Job = Box<dyn FnOnce(&mut Worker) + Send>;

pub struct SqliteStore {
    lock: Option<Arc<lock::KernelLock>>,
    /// The kernel lock is left to the holder: not waited for until the next read.
    left_to_holder: Arc<AtomicBool>,
    jobs: mpsc::Sender<Job>,
    /// One request at a time is on the thread.
    turn: Arc<Semaphore>,
    /// A message that was said once.
    lock_warned: AtomicBool,
}

/// What lives on the thread.
struct Worker {
    settings: Settings,
    boot: Option<Boot>,
    lock: Option<Arc<lock::KernelLock>>,
    left_to_holder: Arc<AtomicBool>,
    app_table: Option<AppTable>,
    database: Option<Database>,
    patience: Arc<AtomicU64>,
    /// A write of ours was confirmed in a file that is no longer at the path.
    replaced: bool,
    /// The file of the last write that was done.
    written_to: Option<database::FileId>,
    /// The token of the last claim, and the side file whose lock the command inherits.
    claimed: Option<(Token, Option<side::Identity>)>,
    /// Wall clock minus boottime when this process started, in milliseconds.
    wall_offset: i64,
}

impl SqliteStore {
    /// Starts the thread, which opens the database meanwhile.
    pub fn new(settings: Settings) -> SqliteStore {
        let lock = settings.lock.as_ref().map(|name| Arc::new(lock::KernelLock::new(&settings.path, name.as_str(), settings.now)));
        let left_to_holder = Arc::new(AtomicBool::new(false));
        let (jobs, receiver) = mpsc::channel::<Job>();
        let mut worker = Worker::new(settings, lock.clone(), Arc::clone(&left_to_holder));
        let thread = std::thread::Builder::new().name("sqlite".to_string());
        // Without the thread every request is answered by "unknown", and the machine gives up by its own rules.
        let _ = thread.spawn(move || {
            // Without patience: if it fails, the first request tries again and says why.
            let _ = worker.open();
            for job in receiver {
                job(&mut worker);
                if let Some(database) = &mut worker.database {
                    database.tidy();
                }
            }
        });
        SqliteStore { lock, left_to_holder, jobs, turn: Arc::new(Semaphore::new(1)), lock_warned: AtomicBool::new(false) }
    }

    /// Whether it can be written. Changes nothing.
    pub async fn check(&self) -> Result<Facts, StoreError> {
        let journal_mode = self.on_thread(|worker| worker.database.as_mut().expect("opened by attempt").probe()).await?;
        Ok(Facts { details: vec![("journal_mode", journal_mode.into())], warnings: Vec::new() })
    }

    async fn on_thread<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Worker) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let stuck = || StoreError::Unknown("the thread of the database is gone".to_string());
        // Held until the work is done, also when this future is dropped: the caller's time-out ends its wait here.
        let turn = Arc::clone(&self.turn).acquire_owned().await.map_err(|_| stuck())?;
        let (reply, answer) = oneshot::channel();
        let job: Job = Box::new(move |worker| {
            let result = worker.attempt(work);
            drop(turn);
            let _ = reply.send(result);
        });
        self.jobs.send(job).map_err(|_| stuck())?;
        answer.await.map_err(|_| stuck())?
    }
}

impl Store for SqliteStore {
    async fn read(&self, name: &LeaseName, now: Moment) -> Result<Snapshot, StoreError> {
        let name = name.clone();
        self.on_thread(move |worker| worker.read(&name, now)).await
    }

    async fn swap(&self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        let (name, expect, record) = (name.clone(), expect.clone(), record.clone());
        self.on_thread(move |worker| worker.swap(&name, &expect, &record)).await
    }

    /// While another has the kernel lock, its coming free is the news; the rest is a matter of time.
    async fn changed(&self, _: &LeaseName, _: &Version) {
        match &self.lock {
            Some(lock) if !self.left_to_holder.load(Ordering::Relaxed) => lock.taken().await,
            Some(_) | None => std::future::pending().await,
        }
    }

    async fn list(&self, now: Moment) -> Result<Vec<(LeaseName, Snapshot)>, StoreError> {
        self.on_thread(move |worker| worker.list(now)).await
    }

    fn new_lock(&self) -> Option<std::os::fd::OwnedFd> {
        self.lock.as_ref()?.take_fresh()
    }

    fn unlock(&self) {
        if let Some(lock) = &self.lock {
            lock.unlock();
        }
    }

    fn warning(&self) -> Option<String> {
        let reason = self.lock.as_ref()?.trouble()?;
        let first = !self.lock_warned.swap(true, Ordering::Relaxed);
        first.then(|| format!("no kernel lock ({reason}): after a crash others wait for the ttl"))
    }

    fn lock_holders(&self) -> Vec<i32> {
        self.lock.as_ref().map(|lock| lock.holders()).unwrap_or_default()
    }
}

/// The processes that have the kernel lock of a lease, for `status`.
pub fn lock_holders(database: &Path, name: &LeaseName) -> Vec<i32> {
    holders::of(&side::path_of(database), lock::byte_of(name.as_str()))
}

/// The name of lockrun's own record beside an application's table. SQLite's names of tables ignore case.
pub fn app_lease(table: &str) -> LeaseName {
    LeaseName::new(format!("table:{}", table.to_ascii_lowercase()))
}

impl Worker {
    fn new(settings: Settings, lock: Option<Arc<lock::KernelLock>>, left_to_holder: Arc<AtomicBool>) -> Worker {
        let wall_offset = (settings.wall_ms)() - boot_ms((settings.now)());
        Worker {
            boot: Boot::current(),
            lock,
            left_to_holder,
            app_table: settings.app_table.as_deref().map(AppTable::new),
            database: None,
            patience: Arc::default(),
            replaced: false,
            written_to: None,
            claimed: None,
            wall_offset,
            settings,
        }
    }

    fn attempt<T>(&mut self, work: impl FnOnce(&mut Worker) -> Result<T, StoreError>) -> Result<T, StoreError> {
        // Four fifths, so that "locked" is heard of before "no answer in time".
        let until = (self.settings.now)() + self.settings.timing.attempt * 4 / 5;
        self.patience.store(until.nanos(), Ordering::Relaxed);
        self.open()?;
        let result = work(self);
        // A connection can be in trouble for good although the files are well: one that was opened while they were read-only,
        // or the index (-shm) of a log that was removed, which SQLite rebuilds only when nobody has it open.
        if result.as_ref().is_err_and(|error| *error != database::locked()) {
            self.close();
        }
        result
    }

    fn close(&mut self) {
        if self.database.take().is_some_and(|database| !database.is_in_place()) && self.written_to.is_some() {
            self.replaced = true;
        }
    }

    fn open(&mut self) -> Result<(), StoreError> {
        if self.database.as_ref().is_some_and(Database::is_in_place) {
            return Ok(());
        }
        self.close();
        let Settings { path, open, now, .. } = &self.settings;
        let database = Database::open(path, *open, self.app_table.as_ref(), Arc::clone(&self.patience), *now)?;
        // It may also have been replaced while it was closed here.
        self.replaced |= self.written_to.is_some_and(|file| file != database.file());
        self.database = Some(database);
        Ok(())
    }

    fn read(&mut self, name: &LeaseName, now: Moment) -> Result<Snapshot, StoreError> {
        let standing = self.lock.as_ref().map(|lock| lock.look());
        let database = self.database.as_mut().expect("opened by attempt");
        let row = database.row(name)?;
        let app_row = self.app_table.as_ref().map(|table| database.app_row(table)).transpose()?;
        let standing = standing.filter(|standing| !self.is_the_holders(row.as_ref(), standing, now));
        self.left_to_holder.store(standing.is_none() && self.lock.is_some(), Ordering::Relaxed);
        if let Some(lock) = self.lock.as_ref().filter(|_| standing.is_none()) {
            lock.unlock();
        }
        let snapshot = self.snapshot(row, app_row, standing, now);
        self.with_sighting(name, snapshot)
    }

    /// We have the kernel lock of a side file that was made anew under a holder whose lease runs. It is his to take at his
    /// next beat: if we kept it, a database that is deleted later would let us in beside him.
    fn is_the_holders(&self, row: Option<&LeaseRow>, standing: &Standing, now: Moment) -> bool {
        let (Standing::Ours { side, .. }, Some(row), None) = (standing, row, &self.app_table) else { return false };
        // With a database of ours replaced it may be we who hold the lease, whatever the new one says.
        let ours = self.replaced || self.claimed.is_some_and(|(token, _)| token == row.record.token);
        let another = row.record.holder.is_some() && !ours;
        let runs = matches!(evidence(row, self.boot.as_ref(), None, now), Evidence::Left(left) if !left.is_zero());
        another && runs && row.side.as_deref() != Some(&side.to_string())
    }

    fn snapshot(&self, row: Option<LeaseRow>, app_row: Option<Option<AppRow>>, standing: Option<Standing>, now: Moment) -> Snapshot {
        let version = row::version(row.as_ref(), app_row.as_ref().map(Option::as_ref));
        let lock = match &standing {
            Some(Standing::Ours { .. }) => KernelLock::Ours,
            Some(Standing::Others) => KernelLock::Others,
            Some(Standing::Unsupported(_)) | None => KernelLock::None,
        };
        let mut evidence = row.as_ref().map_or(Evidence::NoClock, |row| evidence(row, self.boot.as_ref(), standing.as_ref(), now));
        let mut record = row.as_ref().map(|row| row.record.clone());
        // Whoever removes the row of an application's table means it; it is not put back.
        let mut finding = if self.replaced && self.app_table.is_none() { Finding::Replaced } else { Finding::Plain };
        match (app_row, &row) {
            (None, _) | (Some(None), None) => {}
            (Some(None), Some(row)) => {
                if row.record.holder.is_some() {
                    finding = Finding::RowRemoved;
                }
            }
            (Some(Some(app_row)), Some(row)) if row.owns(&app_row) => {}
            (Some(Some(app_row)), row) => {
                evidence = self.wall_evidence(&app_row);
                record = Some(foreign_record(&app_row, row.as_ref().map(|row| row.record.token), self.settings.timing.ttl));
            }
        }
        Snapshot { record, version, evidence, lock, seen_at: None, finding }
    }

    /// An application beats by the wall clock. If that was set since this process started, its row must also be seen to stand.
    fn wall_evidence(&self, row: &AppRow) -> Evidence {
        let wall_ms = (self.settings.wall_ms)();
        let stepped = (wall_ms - boot_ms((self.settings.now)()) - self.wall_offset).abs() > 1000;
        let age_ms = wall_ms as f64 - row.heartbeat_at * 1e3;
        let ttl = self.settings.timing.ttl;
        if age_ms < 0.0 {
            return Evidence::Unchanged(ttl); // a beat from the future: the clock was set back
        }
        let left = ttl.saturating_sub(Duration::from_millis(age_ms as u64));
        if stepped && left.is_zero() { Evidence::Unchanged(3 * self.settings.timing.heartbeat) } else { Evidence::Left(left) }
    }

    /// Short tries make progress too: what one of them saw is noted for the next.
    fn with_sighting(&mut self, name: &LeaseName, mut snapshot: Snapshot) -> Result<Snapshot, StoreError> {
        let watching = snapshot.holder().is_some() && matches!(snapshot.evidence, Evidence::NoClock | Evidence::Unchanged(_));
        let (Version::At(version), Some(boot), true) = (&snapshot.version, &self.boot, watching) else { return Ok(snapshot) };
        if self.settings.open == Open::Existing {
            return Ok(snapshot);
        }
        // After the reply of the read: a waiter rounds against itself.
        let now = (self.settings.now)();
        let database = self.database.as_mut().expect("opened by attempt");
        // Not noted (a full disk, say) means that only this process's own watching counts.
        let seen_ns = database.sighting(name, &boot.id, version, boot.to_host(now)).ok().flatten();
        snapshot.seen_at = seen_ns.and_then(|seen_ns| boot.to_local(seen_ns)).filter(|seen_at| *seen_at <= now);
        Ok(snapshot)
    }

    fn swap(&mut self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        let locked = match self.lock.as_ref().map(|lock| lock.look()) {
            Some(Standing::Ours { side, .. }) => Some(side),
            Some(Standing::Others | Standing::Unsupported(_)) | None => None,
        };
        // A lock that was taken later (the side file was removed) is the guard's, not the command's: that one is free says
        // nothing about what the command left.
        let inherited = match self.claimed {
            Some((token, inherited)) if token == record.token => inherited,
            Some(_) | None => locked,
        };
        let side = locked.filter(|side| Some(*side) == inherited).map(|side| side.to_string());
        let stamp = Stamp {
            boot_id: self.boot.as_ref().map(|boot| boot.id.clone()).unwrap_or_default(),
            asked_boot_ns: self.boot.as_ref().map_or(0, |boot| boot.to_host(record.asked_at)),
            side,
        };
        let database = self.database.as_mut().expect("opened by attempt");
        if let Some(side) = locked {
            database.turnstile.follow(side);
        }
        let swap = database.swap(name, expect, record, &stamp, self.app_table.as_ref())?;
        if let Swap::Done(_) = swap {
            self.written_to = Some(database.file());
            self.claimed = Some((record.token, inherited));
            self.replaced = false;
            if let Some(lock) = self.lock.as_ref().filter(|_| locked.is_some()) {
                lock.let_go_of_old();
            }
        }
        Ok(swap)
    }

    fn list(&mut self, now: Moment) -> Result<Vec<(LeaseName, Snapshot)>, StoreError> {
        let database = self.database.as_ref().expect("opened by attempt");
        let app_row = self.app_table.as_ref().map(|table| database.app_row(table)).transpose()?;
        let rows = database.all_rows()?;
        if let Some(table) = &self.app_table {
            let name = app_lease(table.name());
            let row = rows.into_iter().find(|row| row.name == name);
            return Ok(vec![(name, self.snapshot(row, app_row, None, now))]);
        }
        Ok(rows.into_iter().map(|row| (row.name.clone(), self.snapshot(Some(row), None, None, now))).collect())
    }
}

/// Evidence about the holder of lockrun's own record. `now` was read before the row was.
fn evidence(row: &LeaseRow, boot: Option<&Boot>, standing: Option<&Standing>, now: Moment) -> Evidence {
    let Some(boot) = boot.filter(|boot| boot.id == row.boot_id) else { return Evidence::NoClock };
    let age_ns = boot.to_host(now).checked_sub(row.asked_boot_ns).and_then(|age_ns| u64::try_from(age_ns).ok());
    let Some(age_ns) = age_ns.filter(|_| row.asked_boot_ns >= 0) else {
        return Evidence::NoClock; // from before this boot or its future: somebody wrote what is not so
    };
    let left = row.record.ttl.saturating_sub(Duration::from_nanos(age_ns));
    match standing {
        // Nobody of the tree that was known by this side file holds its lock.
        Some(Standing::Ours { since, side }) if row.side.as_deref() == Some(&side.to_string()) && now + left > *since + KILL_TIME => {
            Evidence::Gone(*since)
        }
        _ => Evidence::Left(left),
    }
}

fn foreign_record(row: &AppRow, token: Option<Token>, ttl: Duration) -> Record {
    Record {
        write: WriteId::new(row.version()),
        token: token.unwrap_or_default(),
        holder: Some(row.holder()),
        ttl,
        asked_at: Moment::default(),
        acquired_ms: (row.created_at * 1e3) as i64,
        renewed_ms: (row.heartbeat_at * 1e3) as i64,
        stopping: false,
    }
}

fn boot_ms(at: Moment) -> i64 {
    (at.nanos() / 1_000_000) as i64
}
