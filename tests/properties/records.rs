//! Records, sightings and an application's row as anything may have written them, in tables that somebody may have altered:
//! a reading or a refusal, never a panic, and never a claim of what a sane reading says is held.

use std::fs;
use std::path::{Path, PathBuf};

use lockrun::clock;
use lockrun::lease::{
    Action, Asked, Clocks, Event, Holder, HolderId, LeaseName, Machine, Moment, Now, OnLost, Outcome, Record, Reply, Settings, Snapshot,
    Swap, Timing, Version, Wait,
};
use lockrun::store::sqlite::{self, Open, SqliteStore};
use lockrun::store::{Store, StoreError};
use proptest::prelude::*;
use proptest::sample::select;
use rusqlite::Connection;
use rusqlite::types::Value;
use tempfile::TempDir;

use crate::{check, hostile_text};

pub const APP_TABLE: &str =
    "CREATE TABLE scheduler_lock(id INTEGER PRIMARY KEY CHECK (id = 1), pid INTEGER, hostname TEXT, created_at REAL, heartbeat_at REAL)";
const COLUMNS: [&str; 17] = [
    "name",
    "write_id",
    "token",
    "holder",
    "instance",
    "hostname",
    "pid",
    "command",
    "ttl_ms",
    "acquired_ms",
    "renewed_ms",
    "boot_id",
    "asked_boot_ns",
    "side",
    "stopping",
    "app_pid",
    "app_created_at",
];

pub fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime").block_on(work)
}

/// A folder with a database that has lockrun's tables and one record, as lockrun itself writes them; copied for each case.
pub struct Room {
    dir: TempDir,
}

impl Room {
    pub fn new() -> Room {
        let room = Room { dir: tempfile::tempdir().expect("a temporary folder") };
        block_on(async {
            let store = store(&room.template(), Open::Create, None);
            let Some(Action::Swap { expect, record, .. }) = step(store.read(&name(), clock::now()).await.expect("empty")) else {
                panic!("free")
            };
            assert!(matches!(store.swap(&name(), &expect, &record).await, Ok(Swap::Done(_))));
        });
        let connection = Connection::open(room.template()).expect("a database");
        connection.execute_batch(APP_TABLE).expect("the application's table");
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("all in one file");
        room
    }

    fn template(&self) -> PathBuf {
        self.dir.path().join("template.db")
    }

    /// A database of its own, and its folder.
    pub fn fresh(&self) -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir_in(self.dir.path()).expect("a folder");
        let path = dir.path().join("x.db");
        fs::copy(self.template(), &path).expect("a copy");
        (dir, path)
    }
}

pub fn name() -> LeaseName {
    LeaseName::new("default")
}

pub fn store(path: &Path, open: Open, app_table: Option<&str>) -> SqliteStore {
    SqliteStore::new(sqlite::Settings {
        path: path.to_path_buf(),
        open,
        lock: None,
        app_table: app_table.map(str::to_string),
        timing: Timing::new(Asked::default(), Clocks::OneKernel).expect("the default"),
        now: clock::now,
        wall_ms: clock::wall_ms,
    })
}

/// What a `lockrun -n` does about it: claims (a swap), or ends.
pub fn step(snapshot: Snapshot) -> Option<Action> {
    let me = Holder { id: HolderId::new("me"), instance: None, hostname: "here".into(), pid: 1, command: vec![] };
    let timing = Timing::new(Asked::default(), Clocks::OneKernel).expect("the default");
    let settings = Settings { me, outer: vec![], timing, wait: Wait::No, on_lost: OnLost::Exit, kill_after: None };
    let now = Now { at: clock::now(), wall_ms: clock::wall_ms(), random: 7 };
    let mut machine = Machine::new(settings, now);
    let Some(Action::Read(request)) = machine.poll_action() else { panic!("it reads first") };
    machine.handle(now, Event::Reply { request, reply: Reply::Snapshot(snapshot) });
    std::iter::from_fn(|| machine.poll_action()).find(|action| matches!(action, Action::Swap { .. } | Action::Exit(_)))
}

/// Nobody else is at this database, so whatever is wrong stays wrong: `Unknown` would be waited for for ever.
fn refused(error: &StoreError) {
    assert!(matches!(error, StoreError::Refused(why) if why.len() > 10), "{error:?}");
}

/// Reads, claims if that is free, and reads what was claimed. True: claimed.
async fn try_to_claim(store: &SqliteStore, name: &LeaseName) -> bool {
    let snapshot = match store.read(name, clock::now()).await {
        Ok(snapshot) => snapshot,
        Err(error) => {
            refused(&error);
            return false;
        }
    };
    match step(snapshot) {
        Some(Action::Swap { expect, record, .. }) => claim(store, name, &expect, &record).await,
        Some(Action::Exit(Outcome::NotAcquired(Some(_), _) | Outcome::Refused(_))) => false,
        other => panic!("{other:?}"),
    }
}

async fn claim(store: &SqliteStore, name: &LeaseName, expect: &Version, record: &Record) -> bool {
    match store.swap(name, expect, record).await {
        Ok(Swap::Done(version)) => {
            let after = store.read(name, clock::now()).await.expect("what we wrote ourselves");
            assert_eq!((after.token(), after.version), (Some(record.token), version));
            assert_eq!(after.record.and_then(|record| record.holder), record.holder);
            true
        }
        Ok(Swap::Conflict) => panic!("nobody else writes here"),
        Err(error) => {
            refused(&error);
            false
        }
    }
}

/// A value of SQLite's, or an instant so many nanoseconds (or seconds of the wall clock) ago.
#[derive(Clone, Debug)]
pub enum Put {
    Is(Value),
    BootAgo(i64),
    WallAgo(f64),
}

impl Put {
    fn value(&self) -> Value {
        match self {
            Put::Is(value) => value.clone(),
            Put::BootAgo(ago) => Value::Integer(boot_ns().saturating_sub(*ago)),
            Put::WallAgo(ago) => Value::Real(clock::wall_ms() as f64 / 1e3 - ago),
        }
    }
}

fn boot_ns() -> i64 {
    clock::now().nanos() as i64
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").expect("a boot id").trim().to_string()
}

fn put() -> impl Strategy<Value = Put> {
    let integers = select(vec![i64::MIN, -1, 0, 1, 2, 60_000, 4_294_967_296, 9_007_199_254_740_993, i64::MAX - 1, i64::MAX]);
    let texts = select(vec!["", "0", "-1", "1e3", "held", "default", "[]", "[\"a\",1]", "[[[[", "00000000-0000-0000-0000-000000000000"]);
    let value = prop_oneof![
        Just(Value::Null),
        integers.prop_map(Value::Integer),
        any::<i64>().prop_map(Value::Integer),
        any::<f64>().prop_map(Value::Real),
        texts.prop_map(|text| Value::Text(text.to_string())),
        hostile_text().prop_map(Value::Text),
        proptest::collection::vec(any::<u8>(), 0..24).prop_map(Value::Blob),
    ];
    prop_oneof![
        6 => value.prop_map(Put::Is),
        2 => (-100_000_000_000..200_000_000_000_i64).prop_map(Put::BootAgo),
        1 => (0..i64::MAX).prop_map(Put::BootAgo), // from before this boot
        2 => (-100.0..200.0).prop_map(Put::WallAgo),
    ]
}

/// What somebody did to a table.
#[derive(Clone, Copy, Debug)]
enum Altered {
    No,
    /// Copied over, so that it lost its types and keys.
    Copied,
    /// The same, with each row twice, the second with the first's values before they were changed.
    Doubled,
    Without(&'static str),
    With,
    View,
    /// Something that changes what is written.
    Trigger,
    Gone,
}

fn altered(columns: &'static [&'static str]) -> impl Strategy<Value = Altered> {
    use Altered::*;
    prop_oneof![8 => Just(No), 3 => Just(Copied), 1 => Just(Doubled), 1 => select(columns).prop_map(Without), 1 => Just(With), 1 => Just(View),
        1 => Just(Trigger), 1 => Just(Gone)]
}

fn alter(connection: &Connection, table: &str, how: Altered) {
    let copied = format!("CREATE TABLE copy AS SELECT * FROM {table}; DROP TABLE {table}; ALTER TABLE copy RENAME TO {table};");
    let sql = match how {
        Altered::No => String::new(),
        Altered::Copied => copied,
        Altered::Doubled => format!("{copied} INSERT INTO {table} SELECT * FROM {table};"),
        // A column of a key cannot be dropped; of a copy it can.
        Altered::Without(column) => format!("{copied} ALTER TABLE {table} DROP COLUMN {column};"),
        Altered::With => format!("ALTER TABLE {table} ADD COLUMN more DEFAULT 'x';"),
        Altered::View => format!("ALTER TABLE {table} RENAME TO base; CREATE VIEW {table} AS SELECT * FROM base;"),
        Altered::Trigger => format!("CREATE TRIGGER more AFTER INSERT ON {table} BEGIN UPDATE {table} SET hostname = 'more'; END;"),
        Altered::Gone => format!("DROP TABLE {table};"),
    };
    connection.execute_batch(&sql).expect("altered");
}

/// Puts the values where the table takes them.
fn fill(connection: &Connection, table: &str, key: &str, values: &[(&'static str, Put)]) {
    for (column, put) in values {
        let first = format!("rowid = (SELECT min(rowid) FROM {table} WHERE {key})");
        let key = if column == &"name" || column == &"id" { key.to_string() } else { first };
        let _ = connection.execute(&format!("UPDATE {table} SET {column} = ?1 WHERE {key}"), [put.value()]);
    }
}

/// The values of every row with that key; none where the table cannot be read so.
fn rows(connection: &Connection, table: &str, key: &str, columns: &str) -> Vec<Vec<Value>> {
    let Ok(mut statement) = connection.prepare(&format!("SELECT {columns} FROM {table} WHERE {key}")) else { return vec![] };
    let count = statement.column_count();
    let rows = statement.query_map([], |row| (0..count).map(|column| row.get(column)).collect());
    rows.and_then(Iterator::collect).unwrap_or_default()
}

/// A row with a holder is free only when this boot's clock says that all of its TTL has passed.
fn held(row: &[Value], now: i64) -> bool {
    match row {
        [Value::Null, ..] => false,
        [_, Value::Integer(ttl_ms), Value::Text(boot), Value::Integer(asked)]
            if *boot == boot_id() && (0..=now).contains(asked) && *ttl_ms > 0 =>
        {
            i128::from(now) < i128::from(*asked) + i128::from(*ttl_ms) * 1_000_000
        }
        _ => true,
    }
}

#[test]
fn a_record_that_a_sane_reading_says_is_held_is_never_claimed() {
    let room = Room::new();
    // Most often those by which it is judged.
    let column = prop_oneof![1 => select(&COLUMNS[..]), 2 => select(&["holder", "ttl_ms", "boot_id", "asked_boot_ns"][..])];
    let values = proptest::collection::vec((column, put()), 0..4);
    let meta = proptest::option::weighted(0.15, put());
    check(600, (altered(&COLUMNS), values, meta, -60_000..60_000_i64), |(how, values, meta, age_ms)| {
        let (_dir, path) = room.fresh();
        let connection = Connection::open(&path).expect("a database");
        connection.execute_batch("PRAGMA synchronous = OFF").expect("quick");
        // Held for a minute, for as long as that.
        let asked = boot_ns() - 30_000_000_000 - age_ms * 1_000_000;
        connection.execute("UPDATE lockrun_lease SET holder = 'x', asked_boot_ns = ?1, ttl_ms = 60000", [asked]).expect("written");
        alter(&connection, "lockrun_lease", how);
        fill(&connection, "lockrun_lease", "name = 'default'", &values);
        if let Some(version) = &meta {
            let _ = connection.execute("UPDATE lockrun_meta SET value = ?1", [version.value()]);
        }
        block_on(async {
            let store = store(&path, Open::Create, None);
            let before = rows(&connection, "lockrun_lease", "name = 'default'", "holder, ttl_ms, boot_id, asked_boot_ns");
            if before.len() > 1 {
                refused(&store.read(&name(), clock::now()).await.expect_err("which of them?"));
            }
            let claimed = try_to_claim(&store, &name()).await;
            let now = boot_ns();
            assert!(!claimed || !before.iter().any(|row| held(row, now)), "{before:?}");
            if let Err(error) = store.list(clock::now()).await {
                refused(&error);
            }
        });
    });
}

#[test]
fn an_applications_row_that_a_sane_reading_says_is_fresh_is_never_claimed() {
    const APP_COLUMNS: [&str; 5] = ["id", "pid", "hostname", "created_at", "heartbeat_at"];
    let room = Room::new();
    let values = proptest::collection::vec((select(&APP_COLUMNS[..]), put()), 0..4);
    check(300, (altered(&APP_COLUMNS), values, -60.0..180.0), |(how, values, age)| {
        let (_dir, path) = room.fresh();
        let connection = Connection::open(&path).expect("a database");
        connection.execute_batch("PRAGMA synchronous = OFF").expect("quick");
        let then = Put::WallAgo(age).value();
        connection.execute("INSERT INTO scheduler_lock VALUES (1, 4711, 'elsewhere', ?1, ?1)", [then]).expect("written");
        alter(&connection, "scheduler_lock", how);
        fill(&connection, "scheduler_lock", "id = 1", &values);
        block_on(async {
            let store = store(&path, Open::Create, Some("scheduler_lock"));
            let before = rows(&connection, "scheduler_lock", "id = 1", "heartbeat_at");
            let name = sqlite::app_lease("scheduler_lock");
            if before.len() > 1 {
                refused(&store.read(&name, clock::now()).await.expect_err("which of them?"));
            }
            let claimed = try_to_claim(&store, &name).await;
            let now = clock::wall_ms() as f64 / 1e3;
            let fresh = |row: &Vec<Value>| match row[0] {
                Value::Integer(then) => now - (then as f64) < 59.9,
                Value::Real(then) => now - then < 59.9,
                Value::Null | Value::Text(_) | Value::Blob(_) => true, // it cannot be told
            };
            assert!(!claimed || !before.iter().any(fresh), "{before:?}");
            if let Err(error) = store.list(clock::now()).await {
                refused(&error);
            }
        });
    });
}

#[test]
fn a_sighting_counts_from_an_instant_of_this_boot_or_is_made_anew() {
    let room = Room::new();
    check(200, (put(), any::<bool>()), |(seen, copied)| {
        let (_dir, path) = room.fresh();
        let connection = Connection::open(&path).expect("a database");
        // By a clock that is not this boot's: only watching tells.
        connection
            .execute_batch("PRAGMA synchronous = OFF; UPDATE lockrun_lease SET boot_id = 'another', write_id = 'w'")
            .expect("written");
        let (boot, value) = (boot_id(), seen.value());
        let sighting = "INSERT OR IGNORE INTO lockrun_sighting VALUES ('default', ?1, 'w', ?2)";
        connection.execute(sighting, rusqlite::params![boot, value]).expect("written, or refused by the table");
        if copied {
            // With the key, without the types.
            let loose = "CREATE TABLE copy (name, boot_id, version, seen_boot_ns, PRIMARY KEY (name, boot_id)); INSERT INTO copy SELECT * FROM \
                         lockrun_sighting; DROP TABLE lockrun_sighting; ALTER TABLE copy RENAME TO lockrun_sighting";
            connection.execute_batch(loose).expect("altered");
        }
        let before = clock::now();
        let good = rows(&connection, "lockrun_sighting", "1", "seen_boot_ns").into_iter().find_map(|row| match row[0] {
            Value::Integer(seen) if (0..=before.nanos() as i64).contains(&seen) => Some(Moment::from_nanos(seen as u64)),
            _ => None,
        });
        block_on(async {
            let store = store(&path, Open::Create, None);
            let first = store.read(&name(), clock::now()).await.expect("readable").seen_at;
            assert_eq!(first, good);
            let second = store.read(&name(), clock::now()).await.expect("readable").seen_at.expect("noted by the first");
            assert!(good.map_or(second >= before && second <= clock::now(), |good| good == second));
        });
    });
}
