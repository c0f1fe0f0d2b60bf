//! The rows behind a lease, read and rewritten as another program would: lockrun's own `lockrun_lease`, and an application's
//! `scheduler_lock`. Must never keep a connection open beyond one look, so that no test stands in lockrun's way unawares.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use super::{PATIENCE, Scene, wait_until};

/// Larger than any pid of this machine is likely to be while a test runs.
pub const OTHER_PID: i64 = 4_000_111;
pub const OTHER_HOST: &str = "elsewhere";

/// The table that the application brings, as its own program makes it.
pub const APP_SCHEMA: &str = "CREATE TABLE IF NOT EXISTS scheduler_lock(id INTEGER PRIMARY KEY CHECK (id = 1), \
     pid INTEGER, hostname TEXT, created_at REAL, heartbeat_at REAL)";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    Own,
    App,
}

/// What both tables tell about a holder; times in seconds since 1970.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub pid: i64,
    pub hostname: String,
    pub created_at: f64,
    pub heartbeat_at: f64,
}

impl Table {
    /// The option that makes lockrun use this table.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Table::Own => &[],
            Table::App => &["--table", "scheduler_lock"],
        }
    }

    /// A scene in which this table can be used: the application's is made by the application.
    pub fn scene(self) -> Scene {
        let scene = Scene::new();
        if self == Table::App {
            Connection::open(scene.db()).expect("a new database").execute_batch(APP_SCHEMA).expect("the application's table");
        }
        scene
    }

    /// The holder's row. None: no database yet, no table, no row, or a free record.
    pub fn row(self, scene: &Scene) -> Option<Row> {
        let connection = open_if_there(&scene.db())?;
        match self {
            Table::Own => own_row(&connection, "default").filter(|own| own.holder.is_some()).map(|own| Row {
                pid: own.pid.expect("a held record names a pid"),
                hostname: own.hostname.expect("a held record names a host"),
                created_at: own.acquired_ms as f64 / 1000.0,
                heartbeat_at: own.renewed_ms as f64 / 1000.0,
            }),
            Table::App => connection
                .query_row("SELECT pid, hostname, created_at, heartbeat_at FROM scheduler_lock", [], |row| {
                    Ok(Row { pid: row.get(0)?, hostname: row.get(1)?, created_at: row.get(2)?, heartbeat_at: row.get(3)? })
                })
                .optional()
                .expect("a readable row"),
        }
    }

    /// The row once this process is in it.
    pub fn wait_for_holder(self, scene: &Scene, pid: i32) -> Row {
        let mut found = None;
        wait_until("the holder's row", || {
            found = self.row(scene).filter(|row| row.pid == i64::from(pid));
            found.is_some()
        });
        found.expect("just found")
    }

    /// Waits until the holder has renewed what `row` shows.
    pub fn wait_for_renewal(self, scene: &Scene, row: &Row) -> Row {
        let mut now = None;
        wait_until("a renewal", || {
            now = self.row(scene);
            now.as_ref().is_some_and(|now| now.pid == row.pid && now.heartbeat_at > row.heartbeat_at)
        });
        now.expect("just found")
    }

    /// Puts another holder's row in the place of whatever is there: renewed `age` ago, for `ttl`. On lockrun's own table a
    /// record must be there already, free or held; its identity of the side file stays.
    pub fn put_other(self, scene: &Scene, age: Duration, ttl: Duration) -> Row {
        let then = unix_now() - age.as_secs_f64();
        let connection = open(&scene.db());
        let changed = match self {
            Table::Own => {
                let own = own_row(&connection, "default").expect("a record");
                let (write_id, holder) = (another_id(&own.write_id, '0', '1'), another_id(&own.write_id, 'a', 'b'));
                let (then_ms, asked) = ((then * 1000.0) as i64, boottime_ns() - age.as_nanos() as i64);
                connection.execute(
                    "UPDATE lockrun_lease SET write_id = ?1, token = token + 1, holder = ?2, hostname = ?3, pid = ?4, command = '[\"other\"]', \
                     ttl_ms = ?5, acquired_ms = ?6, renewed_ms = ?6, boot_id = ?7, asked_boot_ns = ?8, stopping = 0 WHERE name = 'default'",
                    params![write_id, holder, OTHER_HOST, OTHER_PID, ttl.as_millis() as i64, then_ms, boot_id(), asked],
                )
            }
            Table::App => {
                connection.execute("INSERT OR REPLACE INTO scheduler_lock VALUES (1, ?1, ?2, ?3, ?3)", params![OTHER_PID, OTHER_HOST, then])
            }
        };
        assert_eq!(changed.expect("written"), 1);
        self.row(scene).expect("just written")
    }

    pub fn delete_row(self, scene: &Scene) {
        let statement = match self {
            Table::Own => "DELETE FROM lockrun_lease WHERE name = 'default'",
            Table::App => "DELETE FROM scheduler_lock",
        };
        assert_eq!(open(&scene.db()).execute(statement, []).expect("deleted"), 1);
    }

    pub fn count_rows(self, scene: &Scene) -> i64 {
        let statement = match self {
            Table::Own => "SELECT count(*) FROM lockrun_lease",
            Table::App => "SELECT count(*) FROM scheduler_lock",
        };
        open(&scene.db()).query_row(statement, [], |row| row.get(0)).expect("a count")
    }
}

/// The columns of lockrun's own record that tests look at.
#[derive(Clone, Debug)]
pub struct Own {
    pub write_id: String,
    pub token: i64,
    pub holder: Option<String>,
    pub hostname: Option<String>,
    pub pid: Option<i64>,
    pub acquired_ms: i64,
    pub renewed_ms: i64,
    /// CLOCK_BOOTTIME when the last write was sent.
    pub asked_boot_ns: i64,
}

/// The record of that name; None before lockrun made its tables or the record.
pub fn own_row(connection: &Connection, name: &str) -> Option<Own> {
    let there: i64 = connection
        .query_row("SELECT count(*) FROM sqlite_master WHERE name = 'lockrun_lease'", [], |row| row.get(0))
        .expect("a readable schema");
    if there == 0 {
        return None;
    }
    connection
        .query_row(
            "SELECT write_id, token, holder, hostname, pid, acquired_ms, renewed_ms, asked_boot_ns FROM lockrun_lease WHERE name = ?1",
            [name],
            |row| {
                Ok(Own {
                    write_id: row.get(0)?,
                    token: row.get(1)?,
                    holder: row.get(2)?,
                    hostname: row.get(3)?,
                    pid: row.get(4)?,
                    acquired_ms: row.get::<_, Option<i64>>(5)?.unwrap_or_default(),
                    renewed_ms: row.get::<_, Option<i64>>(6)?.unwrap_or_default(),
                    asked_boot_ns: row.get::<_, Option<i64>>(7)?.unwrap_or_default(),
                })
            },
        )
        .optional()
        .expect("a readable record")
}

/// A connection to a database that is there; it waits for others as long as a test may.
pub fn open(db: &Path) -> Connection {
    let connection = Connection::open_with_flags(db, OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX)
        .unwrap_or_else(|error| panic!("{}: {error}", db.display()));
    connection.busy_timeout(PATIENCE).expect("a time-out");
    connection
}

fn open_if_there(db: &Path) -> Option<Connection> {
    db.exists().then(|| open(db))
}

/// A connection that keeps every writer out until it is dropped.
pub fn lock_exclusively(db: &Path) -> Connection {
    let connection = open(db);
    connection.execute_batch("BEGIN EXCLUSIVE").expect("the whole database");
    connection
}

/// A database in rollback mode of which nobody can read a byte until the connection is dropped.
pub fn locked_rollback_database(db: &Path) -> Connection {
    let connection = Connection::open(db).expect("a new database");
    connection.execute_batch("PRAGMA journal_mode = DELETE; CREATE TABLE app(x); BEGIN EXCLUSIVE").expect("the whole database");
    connection
}

pub fn boottime_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("a clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

pub fn unix_now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

pub fn hostname() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").expect("a hostname").trim_end().to_string()
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id").trim_end().to_string()
}

/// The same id with another last letter, so that it keeps whatever form lockrun gives its ids.
fn another_id(id: &str, letter: char, or: char) -> String {
    let mut id = id.to_string();
    let last = id.pop();
    id.push(if last == Some(letter) { or } else { letter });
    id
}
