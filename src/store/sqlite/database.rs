//! One open database: schema, the row of a lease, the transaction of a swap. Blocking; lives on the store's own thread.
//! Every write is `BEGIN IMMEDIATE … COMMIT`, and success is COMMIT's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::{Duration, SystemTime};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, ffi, params};

use super::app_table::{AppRow, AppTable};
use super::row::{self, LeaseRow, Stamp, version};
use super::turnstile::Turnstile;
use crate::lease::{LeaseName, Moment, Record, Swap, Token, Version};
use crate::store::StoreError;

const SCHEMA: i64 = 1;
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS lockrun_meta (key TEXT PRIMARY KEY NOT NULL, value INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS lockrun_lease (
        name TEXT PRIMARY KEY NOT NULL,
        write_id TEXT NOT NULL,
        token INTEGER NOT NULL,
        holder TEXT,
        instance TEXT,
        hostname TEXT,
        pid INTEGER,
        command TEXT,
        ttl_ms INTEGER NOT NULL,
        acquired_ms INTEGER NOT NULL,
        renewed_ms INTEGER NOT NULL,
        boot_id TEXT NOT NULL,
        asked_boot_ns INTEGER NOT NULL,
        side TEXT,
        stopping INTEGER NOT NULL,
        app_pid INTEGER,
        app_created_at REAL);
    CREATE TABLE IF NOT EXISTS lockrun_sighting (
        name TEXT NOT NULL,
        boot_id TEXT NOT NULL,
        version TEXT NOT NULL,
        seen_boot_ns INTEGER NOT NULL,
        PRIMARY KEY (name, boot_id));
    INSERT OR IGNORE INTO lockrun_meta (key, value) VALUES ('schema', 1);";
/// Room for the write-ahead log, reserved at a claim: at CHECKPOINT_PAGES it is copied back and overwritten from its
/// start, so heartbeats need no new block on a disk that has become full.
const LOG_RESERVE: i64 = 2 << 20;
/// Pages in the write-ahead log from which it is copied back, after a reply and never before one.
const CHECKPOINT_PAGES: i32 = 256;
/// The same, behind a claim: the next start, if it finds nobody there, reads them all (measured: 1 us each).
const CHECKPOINT_PAGES_AT_CLAIM: i32 = 32;

/// The write-ahead log, and its index.
const LOG_FILES: [&str; 2] = ["-wal", "-shm"];

pub struct Database {
    connection: Connection,
    path: PathBuf,
    inode: Inode,
    /// Of the write-ahead log and of its index. Removed under us, the log takes every write along; and in the index are SQLite's
    /// own locks: whoever opens a new one sees nothing of what is written by the old one, and is not kept from writing.
    log_inodes: [Option<Inode>; 2],
    /// Around every write transaction.
    pub turnstile: Turnstile,
    /// Boottime, in nanoseconds: a lock that is not to be had by then is "busy".
    patience: Arc<AtomicU64>,
    log_pages: Arc<AtomicI32>,
    wal: bool,
    reserved: bool,
    /// The token whose claim is on the disk for sure.
    durable: Option<Token>,
}

type Inode = (u64, u64);

/// With its birth: the number of a file that is deleted while it is closed here may be given to the next.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileId(Inode, Option<SystemTime>);

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Open {
    /// Makes the file and the tables where they are missing.
    Create,
    /// Changes nothing.
    Existing,
}

impl Database {
    /// With `table`, that one must be there already.
    pub fn open(
        path: &Path,
        mode: Open,
        table: Option<&AppTable>,
        patience: Arc<AtomicU64>,
        now: fn() -> Moment,
    ) -> Result<Database, StoreError> {
        let flags = match mode {
            Open::Create => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
            Open::Existing => OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        };
        configure();
        let before = inode(path);
        let connection = Connection::open_with_flags(path, flags).map_err(error)?;
        // The last one to close would copy the log back and delete it, at the end of a command that is waited for.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).map_err(error)?;
        let until = Arc::clone(&patience);
        // SQLite's own handler sleeps longer and longer, so that late-comers win. This one stays short and uneven.
        let busy = move |tries: i32| {
            let pause = Duration::from_micros(500 + (tries as u64 * 7919 + u64::from(std::process::id()) * 104_729) % 3000);
            let go_on = now() + pause < Moment::from_nanos(until.load(Ordering::Relaxed));
            if go_on {
                std::thread::sleep(pause);
            }
            go_on
        };
        let log_pages = Arc::new(AtomicI32::new(0));
        let mut database = Database {
            connection,
            path: path.to_path_buf(),
            inode: (0, 0),
            log_inodes: [None; 2],
            turnstile: Turnstile::new(path, mode == Open::Create, Arc::clone(&patience), now),
            patience,
            log_pages,
            wal: false,
            reserved: false,
            durable: None,
        };
        database.connection.busy_handler(Some(busy)).map_err(error)?;
        if let Some(table) = table {
            table.check(&database.connection).map_err(error)?.map_err(StoreError::Refused)?;
        }
        database.prepare(mode, now)?;
        if database.wal {
            database.log_inodes = LOG_FILES.map(|ending| inode(&database.beside(ending)));
        }
        database.inode = inode(path).filter(|after| before.is_none_or(|before| before == *after)).ok_or_else(moved)?;
        Ok(database)
    }

    fn prepare(&mut self, mode: Open, now: fn() -> Moment) -> Result<(), StoreError> {
        let schema = self.schema()?;
        if schema.is_some_and(|schema| schema != SCHEMA) {
            return Err(StoreError::Refused(format!(
                "its lockrun tables are of version {}, this lockrun knows {SCHEMA}; use the newer lockrun",
                schema.unwrap_or_default()
            )));
        }
        self.wal = self.journal_mode()? == "wal";
        if mode == Open::Existing {
            return Ok(());
        }
        // Of a new file: the log first, so that the tables are written into it. Made the other way round, or synced step by
        // step, they cost a first start eight more waits for the disk.
        let fresh = schema.is_none() && !self.wal && self.is_empty()?;
        if fresh {
            // Killed here, the journal still undoes it. After a power loss the file is empty or whole: one page is written.
            self.connection.execute_batch("PRAGMA synchronous = OFF").map_err(error)?;
            self.wal = self.switch_to_wal(now)?;
        }
        if schema.is_none() {
            if self.wal {
                // Before the tables, so that nobody finds them in the log of a file that is not on the disk: SQLite throws
                // the log of an empty file away. The log itself is synced by the first claim.
                self.sync_file()?;
            } else {
                self.connection.execute_batch("PRAGMA synchronous = FULL").map_err(error)?;
            }
            let transaction = self.turnstile.begin(&mut self.connection).map_err(error)?;
            transaction.execute_batch(TABLES).map_err(error)?;
            transaction.commit().map_err(error)?;
        }
        if fresh {
            self.connection.execute_batch("PRAGMA synchronous = FULL").map_err(error)?;
        }
        // An application's database keeps the mode that it has.
        if !self.wal && self.is_our_own()? {
            self.wal = self.switch_to_wal(now)?;
            self.schema()?; // a read opens the log
        }
        if self.wal {
            let pages = Arc::clone(&self.log_pages);
            // In place of SQLite's own automatic checkpoint, which runs inside COMMIT.
            let hook = move |_: &mut rusqlite::hooks::Wal, count: i32| {
                pages.store(count, Ordering::Relaxed);
                Ok(())
            };
            self.connection.wal_hook(Some(hook)).map_err(error)?;
        }
        Ok(())
    }

    /// `None`: lockrun's tables are not there yet.
    fn schema(&self) -> Result<Option<i64>, StoreError> {
        let value = || {
            let value = "SELECT value FROM lockrun_meta WHERE key = 'schema'";
            self.connection.query_row(value, [], |row| row.get(0)).optional()
        };
        value().or_else(|_| {
            let table = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'lockrun_meta')";
            let there: bool = self.connection.query_row(table, [], |row| row.get(0)).map_err(error)?;
            // Asked again: another copy may have made it between the two.
            if there { value().map_err(error) } else { Ok(None) }
        })
    }

    fn journal_mode(&self) -> Result<String, StoreError> {
        self.connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(error)
    }

    fn is_our_own(&self) -> Result<bool, StoreError> {
        let foreign = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name NOT LIKE 'lockrun\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\')";
        self.connection.query_row(foreign, [], |row| row.get::<_, bool>(0)).map(|foreign| !foreign).map_err(error)
    }

    fn is_empty(&self) -> Result<bool, StoreError> {
        self.connection.query_row("PRAGMA page_count", [], |row| row.get::<_, i64>(0)).map(|pages| pages == 0).map_err(error)
    }

    /// The database itself is on the disk. Not through a descriptor of our own: closing it would end SQLite's locks.
    fn sync_file(&self) -> Result<(), StoreError> {
        let mut file: *mut ffi::sqlite3_file = std::ptr::null_mut();
        // SAFETY: SQLite fills in the file of the open connection, which lives longer than this call, and its methods with it.
        let code = unsafe {
            let code = ffi::sqlite3_file_control(
                self.connection.handle(),
                c"main".as_ptr(),
                ffi::SQLITE_FCNTL_FILE_POINTER,
                (&raw mut file).cast(),
            );
            match file.as_ref().and_then(|file| file.pMethods.as_ref()).and_then(|methods| methods.xSync) {
                Some(sync) if code == ffi::SQLITE_OK => sync(file, ffi::SQLITE_SYNC_NORMAL),
                Some(_) | None => ffi::SQLITE_IOERR_FSYNC,
            }
        };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(error(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None))) }
    }

    /// SQLite does not ask the busy handler here when many do it at once.
    fn switch_to_wal(&self, now: fn() -> Moment) -> Result<bool, StoreError> {
        loop {
            match self.connection.query_row("PRAGMA journal_mode = WAL", [], |row| row.get::<_, String>(0)) {
                Ok(mode) => return Ok(mode == "wal"),
                Err(failure) if is_busy(&failure) && now().nanos() < self.patience.load(Ordering::Relaxed) => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(failure) => return Err(error(failure)),
            }
        }
    }

    /// Takes and gives back the right to write; the journal mode.
    pub fn probe(&mut self) -> Result<String, StoreError> {
        drop(self.turnstile.begin(&mut self.connection).map_err(error)?);
        self.journal_mode()
    }

    /// The files at the path are the ones that are open here. A write-ahead log hides that they were deleted or replaced:
    /// its writes go on to succeed.
    pub fn is_in_place(&self) -> bool {
        let mut log = self.log_inodes.into_iter().zip(LOG_FILES);
        inode(&self.path) == Some(self.inode) && log.all(|(log, ending)| log.is_none_or(|log| inode(&self.beside(ending)) == Some(log)))
    }

    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(ending);
        PathBuf::from(name)
    }

    pub fn file(&self) -> FileId {
        FileId(self.inode, fs::metadata(&self.path).and_then(|metadata| metadata.created()).ok())
    }

    pub fn row(&self, name: &LeaseName) -> Result<Option<LeaseRow>, StoreError> {
        row::read(&self.connection, name).map_err(error)
    }

    pub fn all_rows(&self) -> Result<Vec<LeaseRow>, StoreError> {
        if self.schema()?.is_none() {
            return Ok(Vec::new());
        }
        row::read_all(&self.connection).map_err(error)
    }

    pub fn app_row(&self, table: &AppTable) -> Result<Option<AppRow>, StoreError> {
        table.read(&self.connection).map_err(error)
    }

    /// Since when a process of this boot has seen this version; `None`: noted now, at `seen_ns`, also in place of what is no
    /// instant before.
    pub fn sighting(&mut self, name: &LeaseName, boot_id: &str, version: &str, seen_ns: i64) -> Result<Option<i64>, StoreError> {
        let known = "SELECT seen_boot_ns FROM lockrun_sighting WHERE name = ?1 AND boot_id = ?2 AND version = ?3 \
                     AND typeof(seen_boot_ns) = 'integer' AND seen_boot_ns BETWEEN 0 AND ?4";
        let found = self.connection.query_row(known, params![name.as_str(), boot_id, version, seen_ns], |row| row.get(0)).optional();
        if let Some(seen_ns) = found.map_err(error)? {
            return Ok(Some(seen_ns));
        }
        let transaction = self.turnstile.begin(&mut self.connection).map_err(error)?;
        let note = "INSERT OR REPLACE INTO lockrun_sighting (name, boot_id, version, seen_boot_ns) VALUES (?1, ?2, ?3, ?4)";
        transaction.execute(note, params![name.as_str(), boot_id, version, seen_ns]).map_err(error)?;
        transaction.commit().map_err(error)?;
        Ok(None)
    }

    /// One compare-and-swap, of the record and, with `table`, of the application's row.
    pub fn swap(
        &mut self,
        name: &LeaseName,
        expect: &Version,
        record: &Record,
        stamp: &Stamp,
        table: Option<&AppTable>,
    ) -> Result<Swap, StoreError> {
        if !self.is_in_place() {
            return Err(moved());
        }
        // The claim must be on the disk before the command starts. After a power loss nobody is alive, so that heartbeats and
        // release need no fsync in a write-ahead log; in other modes less than FULL could damage the file.
        let claim = self.durable != Some(record.token);
        let level = match (self.wal, claim) {
            (true, false) => "PRAGMA synchronous = NORMAL",
            (true, true) => "PRAGMA synchronous = FULL",
            (false, _) => "PRAGMA synchronous = EXTRA",
        };
        self.connection.execute_batch(level).map_err(error)?;
        let transaction = self.turnstile.begin(&mut self.connection).map_err(error)?;
        let (current, app_row) = read_rows(&transaction, name, table)?;
        if version(current.as_ref(), table.map(|_| app_row.as_ref())) != *expect {
            return Ok(Swap::Conflict);
        }
        let new_row = table.and_then(|_| match (&current, &app_row) {
            (Some(current), Some(row)) if current.owns(row) && current.record.token == record.token => {
                record.holder.is_some().then(|| AppRow { heartbeat_at: record.renewed_ms as f64 / 1e3, ..row.clone() })
            }
            _ => AppTable::row_of(record, app_row.as_ref()),
        });
        row::write(&transaction, current.is_some(), name, record, stamp, new_row.as_ref()).map_err(error)?;
        if let Some(table) = table {
            table.write(&transaction, app_row.as_ref(), new_row.as_ref()).map_err(error)?;
        }
        // Tables that were copied over have lost their keys, and keep the old row beside the new one.
        let (kept, kept_row) = read_rows(&transaction, name, table)?;
        let is_ours = |kept: &Record| kept.write == record.write && kept.token == record.token && kept.holder == record.holder;
        if !kept.as_ref().is_some_and(|kept| is_ours(&kept.record)) || kept_row != new_row {
            return Err(altered("what was written is not what is read"));
        }
        transaction.commit().map_err(error)?;
        if !self.is_in_place() {
            return Err(moved()); // written, but into a file that nobody else sees
        }
        self.durable = Some(record.token);
        Ok(Swap::Done(version(kept.as_ref(), table.map(|_| kept_row.as_ref()))))
    }

    /// After a reply: reserves room for the write-ahead log, and copies a long one back, without making anybody wait.
    pub fn tidy(&mut self) {
        let claimed = self.wal && self.durable.is_some() && !self.reserved;
        if claimed {
            self.reserved = true;
            self.reserve_log();
        }
        let limit = if claimed { CHECKPOINT_PAGES_AT_CLAIM } else { CHECKPOINT_PAGES };
        if self.log_pages.load(Ordering::Relaxed) >= limit {
            let _ = self.connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()));
        }
    }

    /// Where it cannot be done the log grows as it needs. SQLite locks nothing in this file, so opening it does no harm.
    fn reserve_log(&self) {
        use std::os::fd::AsRawFd;
        let enough = |metadata: fs::Metadata| metadata.blocks() * 512 >= LOG_RESERVE as u64;
        if fs::metadata(self.beside(LOG_FILES[0])).is_ok_and(enough) {
            return;
        }
        if let Ok(log) = fs::OpenOptions::new().write(true).open(self.beside(LOG_FILES[0])) {
            // SAFETY: no pointers.
            unsafe { libc::fallocate(log.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, LOG_RESERVE) };
        }
    }
}

fn read_rows(
    connection: &Connection,
    name: &LeaseName,
    table: Option<&AppTable>,
) -> Result<(Option<LeaseRow>, Option<AppRow>), StoreError> {
    let app_row = table.map(|table| table.read(connection)).transpose().map_err(error)?.flatten();
    Ok((row::read(connection, name).map_err(error)?, app_row))
}

/// Memory is taken as it is needed: SQLite's pools (of 48 and 87 kB, each page of them touched at the first use) cost a
/// start 25 page faults, and its accounting a mutex at each allocation.
fn configure() {
    static ONCE: Once = Once::new();
    // SAFETY: before any other call, and once: SQLite refuses it later (SQLITE_MISUSE), which would do no harm.
    ONCE.call_once(|| unsafe {
        ffi::sqlite3_config(ffi::SQLITE_CONFIG_LOOKASIDE, 0, 0);
        ffi::sqlite3_config(ffi::SQLITE_CONFIG_PAGECACHE, std::ptr::null_mut::<libc::c_void>(), 0, 0);
        ffi::sqlite3_config(ffi::SQLITE_CONFIG_MEMSTATUS, 0);
    });
}

fn inode(path: &Path) -> Option<Inode> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn moved() -> StoreError {
    StoreError::Unknown("the database file was deleted, moved or replaced".to_string())
}

pub fn locked() -> StoreError {
    StoreError::Unknown("the database is locked by another process".to_string())
}

fn altered(how: impl std::fmt::Display) -> StoreError {
    StoreError::Refused(format!("its tables are not as they were made: {how}; restore them, or name another file"))
}

fn is_busy(failure: &rusqlite::Error) -> bool {
    matches!(failure.sqlite_error_code(), Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked))
}

/// What SQLite says, in a line. All that may pass is unknown.
pub fn error(failure: rusqlite::Error) -> StoreError {
    match failure.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => StoreError::Refused("it is not a SQLite database; name another file".to_string()),
        Some(ErrorCode::DatabaseCorrupt) => {
            StoreError::Refused(format!("the database is damaged ({failure}); restore it, or move it away and start anew"))
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => locked(),
        // No such table or column; a view; a constraint that was added.
        Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) => altered(failure),
        Some(_) => StoreError::Unknown(failure.to_string()),
        // Not SQLite's own: a row or table that does not have the shape that it must have.
        None => StoreError::Refused(format!("a record that cannot be read: {failure}; was it written by something else?")),
    }
}
