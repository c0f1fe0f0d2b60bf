//! One open database: schema, the row of a lease, the transaction of a swap. Blocking; lives on the store's own thread.
//! Every write is `BEGIN IMMEDIATE … COMMIT`, and success is COMMIT's.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Once};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Row, TransactionBehavior, ffi, params};

use super::app_table::{AppRow, AppTable};
use crate::lease::{Holder, HolderId, LeaseName, Moment, Record, Swap, Token, Version, WriteId};
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
const COLUMNS: &str = "name, write_id, token, holder, instance, hostname, pid, command, ttl_ms, acquired_ms, renewed_ms, boot_id, \
                       asked_boot_ns, side, stopping, app_pid, app_created_at";
/// Room for the write-ahead log, reserved at a claim: at CHECKPOINT_PAGES it is copied back and overwritten from its
/// start, so heartbeats need no new block on a disk that has become full.
const LOG_RESERVE: i64 = 2 << 20;
/// Pages in the write-ahead log from which it is copied back, after a reply and never before one.
const CHECKPOINT_PAGES: i32 = 256;
/// The same, behind a claim: the next start, if it finds nobody there, reads them all (measured: 1 us each).
const CHECKPOINT_PAGES_AT_CLAIM: i32 = 64;

/// One row of `lockrun_lease`, with what is SQLite's own beside the record.
#[derive(Clone, Debug)]
pub struct LeaseRow {
    pub name: LeaseName,
    pub record: Record,
    pub boot_id: String,
    pub asked_boot_ns: i64,
    /// The side file whose lock the holder had when it wrote this.
    pub side: Option<String>,
    app_key: Option<(i64, f64)>,
}

impl LeaseRow {
    /// The application's row is the one that this record put there.
    pub fn owns(&self, row: &AppRow) -> bool {
        let same = |(pid, created_at): (i64, f64)| pid == row.pid && created_at.to_bits() == row.created_at.to_bits();
        self.record.holder.as_ref().is_some_and(|holder| holder.hostname == row.hostname) && self.app_key.is_some_and(same)
    }
}

/// What a write adds to the record.
pub struct Stamp {
    pub boot_id: String,
    pub asked_boot_ns: i64,
    pub side: Option<String>,
}

pub struct Database {
    connection: Connection,
    path: PathBuf,
    inode: Inode,
    /// Of the write-ahead log: removed under us, it takes every write along.
    log_inode: Option<Inode>,
    /// Boottime, in nanoseconds: a lock that is not to be had by then is "busy".
    patience: Arc<AtomicU64>,
    log_pages: Arc<AtomicI32>,
    wal: bool,
    reserved: bool,
    /// The token whose claim is on the disk for sure.
    durable: Option<Token>,
}

type Inode = (u64, u64);

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
            log_inode: None,
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
            database.log_inode = inode(&database.log_path());
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
        if schema.is_none() {
            let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
            transaction.execute_batch(TABLES).map_err(error)?;
            transaction.commit().map_err(error)?;
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
        let value = "SELECT value FROM lockrun_meta WHERE key = 'schema'";
        let found = self.connection.query_row(value, [], |row| row.get(0)).optional();
        found.or_else(|failure| {
            let table = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name = 'lockrun_meta')";
            let there: bool = self.connection.query_row(table, [], |row| row.get(0)).map_err(error)?;
            if there { Err(error(failure)) } else { Ok(None) }
        })
    }

    fn journal_mode(&self) -> Result<String, StoreError> {
        self.connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(error)
    }

    fn is_our_own(&self) -> Result<bool, StoreError> {
        let foreign = "SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE name NOT LIKE 'lockrun\\_%' ESCAPE '\\' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\')";
        self.connection.query_row(foreign, [], |row| row.get::<_, bool>(0)).map(|foreign| !foreign).map_err(error)
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
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        transaction.rollback().map_err(error)?;
        self.journal_mode()
    }

    /// The files at the path are the ones that are open here. A write-ahead log hides that they were deleted or replaced:
    /// its writes go on to succeed.
    pub fn is_in_place(&self) -> bool {
        inode(&self.path) == Some(self.inode) && self.log_inode.is_none_or(|log| inode(&self.log_path()) == Some(log))
    }

    fn log_path(&self) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push("-wal");
        PathBuf::from(name)
    }

    pub fn row(&self, name: &LeaseName) -> Result<Option<LeaseRow>, StoreError> {
        read_row(&self.connection, name)
    }

    pub fn all_rows(&self) -> Result<Vec<LeaseRow>, StoreError> {
        if self.schema()?.is_none() {
            return Ok(Vec::new());
        }
        let mut statement = self.connection.prepare_cached(&format!("SELECT {COLUMNS} FROM lockrun_lease ORDER BY name")).map_err(error)?;
        let rows = statement.query_map([], lease_row).map_err(error)?;
        rows.collect::<Result<_, _>>().map_err(error)
    }

    pub fn app_row(&self, table: &AppTable) -> Result<Option<AppRow>, StoreError> {
        table.read(&self.connection).map_err(error)
    }

    /// Since when a process of this boot has seen this version; `None`: noted now, at `seen_ns`.
    pub fn sighting(&mut self, name: &LeaseName, boot_id: &str, version: &str, seen_ns: i64) -> Result<Option<i64>, StoreError> {
        let known = "SELECT seen_boot_ns FROM lockrun_sighting WHERE name = ?1 AND boot_id = ?2 AND version = ?3";
        let found = self.connection.query_row(known, params![name.as_str(), boot_id, version], |row| row.get(0)).optional();
        if let Some(seen_ns) = found.map_err(error)? {
            return Ok(Some(seen_ns));
        }
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
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
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(error)?;
        let current = read_row(&transaction, name)?;
        let app_row = table.map(|table| table.read(&transaction)).transpose().map_err(error)?.flatten();
        if version(current.as_ref(), table.map(|_| app_row.as_ref())) != *expect {
            return Ok(Swap::Conflict);
        }
        let new_row = table.and_then(|_| match (&current, &app_row) {
            (Some(current), Some(row)) if current.owns(row) && current.record.token == record.token => {
                record.holder.is_some().then(|| AppRow { heartbeat_at: record.renewed_ms as f64 / 1e3, ..row.clone() })
            }
            _ => AppTable::row_of(record, app_row.as_ref()),
        });
        upsert(&transaction, name, record, stamp, new_row.as_ref()).map_err(error)?;
        if let Some(table) = table {
            table.write(&transaction, app_row.as_ref(), new_row.as_ref()).map_err(error)?;
        }
        transaction.commit().map_err(error)?;
        if !self.is_in_place() {
            return Err(moved()); // written, but into a file that nobody else sees
        }
        self.durable = Some(record.token);
        let written =
            LeaseRow { name: name.clone(), record: record.clone(), boot_id: String::new(), asked_boot_ns: 0, side: None, app_key: None };
        Ok(Swap::Done(version(Some(&written), table.map(|_| new_row.as_ref()))))
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
        if fs::metadata(self.log_path()).is_ok_and(enough) {
            return;
        }
        if let Ok(log) = fs::OpenOptions::new().write(true).open(self.log_path()) {
            // SAFETY: no pointers.
            unsafe { libc::fallocate(log.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 0, LOG_RESERVE) };
        }
    }
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

/// The record's write id; with an application's table, its row's four values too.
pub fn version(row: Option<&LeaseRow>, app_row: Option<Option<&AppRow>>) -> Version {
    let write = row.map(|row| row.record.write.as_str());
    match app_row {
        None => write.map_or(Version::Absent, |write| Version::At(write.to_string())),
        Some(app_row) => Version::At(format!("{} {}", write.unwrap_or("-"), app_row.map_or("-".to_string(), AppRow::version))),
    }
}

fn read_row(connection: &Connection, name: &LeaseName) -> Result<Option<LeaseRow>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM lockrun_lease WHERE name = ?1");
    let mut statement = connection.prepare_cached(&sql).map_err(error)?;
    statement.query_row([name.as_str()], lease_row).optional().map_err(error)
}

fn upsert(connection: &Connection, name: &LeaseName, record: &Record, stamp: &Stamp, app_row: Option<&AppRow>) -> rusqlite::Result<usize> {
    let sql = format!(
        "INSERT OR REPLACE INTO lockrun_lease ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)"
    );
    let holder = record.holder.as_ref();
    connection.prepare_cached(&sql)?.execute(params![
        name.as_str(),
        record.write.as_str(),
        record.token.0,
        holder.map(|holder| holder.id.as_str()),
        holder.and_then(|holder| holder.instance.as_deref()),
        holder.map(|holder| holder.hostname.as_str()),
        holder.map(|holder| holder.pid),
        holder.map(|holder| serde_json::to_string(&holder.command).unwrap_or_default()),
        i64::try_from(record.ttl.as_millis()).unwrap_or(i64::MAX),
        record.acquired_ms,
        record.renewed_ms,
        stamp.boot_id,
        stamp.asked_boot_ns,
        stamp.side,
        record.stopping,
        app_row.map(|row| row.pid),
        app_row.map(|row| row.created_at),
    ])
}

/// A row as anybody may have written it: what cannot be read is an error, never a guess.
fn lease_row(row: &Row<'_>) -> rusqlite::Result<LeaseRow> {
    let ttl_ms: i64 = row.get(8)?;
    let ttl = u64::try_from(ttl_ms).ok().filter(|ttl| *ttl > 0).ok_or(rusqlite::Error::IntegralValueOutOfRange(8, ttl_ms))?;
    let holder = row.get::<_, Option<String>>(3)?.map(|id| -> rusqlite::Result<Holder> {
        let command = row.get::<_, Option<String>>(7)?.unwrap_or_default();
        Ok(Holder {
            id: HolderId::new(id),
            instance: row.get(4)?,
            hostname: row.get::<_, Option<String>>(5)?.unwrap_or_default(),
            pid: row.get::<_, Option<u32>>(6)?.unwrap_or_default(),
            command: serde_json::from_str(&command).unwrap_or_else(|_| vec![command]),
        })
    });
    let record = Record {
        write: WriteId::new(row.get::<_, String>(1)?),
        token: Token(row.get(2)?),
        holder: holder.transpose()?,
        ttl: Duration::from_millis(ttl),
        asked_at: Moment::default(), // by this process's clock only `evidence` can tell
        acquired_ms: row.get(9)?,
        renewed_ms: row.get(10)?,
        stopping: row.get(14)?,
    };
    let app_key = row.get::<_, Option<i64>>(15)?.zip(row.get::<_, Option<f64>>(16)?);
    Ok(LeaseRow {
        name: LeaseName::new(row.get::<_, String>(0)?),
        record,
        boot_id: row.get(11)?,
        asked_boot_ns: row.get(12)?,
        side: row.get(13)?,
        app_key,
    })
}

fn inode(path: &Path) -> Option<Inode> {
    fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn moved() -> StoreError {
    StoreError::Unknown("the database file was deleted, moved or replaced".to_string())
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
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            StoreError::Unknown("the database is locked by another process".to_string())
        }
        Some(_) => StoreError::Unknown(failure.to_string()),
        // Not SQLite's own: a row or table that does not have the shape that it must have.
        None => StoreError::Refused(format!("a record that cannot be read: {failure}; was it written by something else?")),
    }
}
