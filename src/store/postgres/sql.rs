//! What lockrun says to the server and how its answers read. Must never rest on the state of a session: behind a pooler
//! every packet may go to another one, so each carries its own transaction, settings and values.

use std::time::Duration;

use tokio_postgres::{SimpleQueryMessage, SimpleQueryRow};

use crate::lease::{Holder, HolderId, LeaseName, Moment, Record, Token, Version, WriteId};
use crate::store::StoreError;
use crate::store::server::Stored;

pub const SCHEMA: i64 = 1;
/// Half a page stays free, so that a renewal finds room beside the old row and touches no index.
const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS lockrun_meta (key text PRIMARY KEY, value bigint NOT NULL);
    CREATE TABLE IF NOT EXISTS lockrun_lease (
        name text PRIMARY KEY,
        write_id text NOT NULL,
        token bigint NOT NULL,
        holder text,
        instance text,
        hostname text,
        pid bigint,
        command text,
        ttl_ms bigint NOT NULL,
        acquired_ms bigint NOT NULL,
        renewed_ms bigint NOT NULL,
        stopping boolean NOT NULL) WITH (fillfactor = 50);
    CREATE TABLE IF NOT EXISTS lockrun_sighting (
        name text NOT NULL,
        boot_id text NOT NULL,
        version text NOT NULL,
        seen_boot_ns bigint NOT NULL,
        PRIMARY KEY (name, boot_id));
    INSERT INTO lockrun_meta (key, value) VALUES ('schema', 1) ON CONFLICT (key) DO NOTHING";
/// Any number that is lockrun's own; held while the tables are made, and never for a lease.
const MAKING_TABLES: i64 = 0x6c6f_636b_7275_6e00;
const COLUMNS: &str = "name, write_id, token, holder, instance, hostname, pid, command, ttl_ms, acquired_ms, renewed_ms, stopping";

/// Of the transaction that it is asked in: also a server that was told to be read-only, or a role.
pub const TAKES_WRITES: &str = "SELECT pg_is_in_recovery(), current_setting('transaction_read_only')";

/// `durable`: on the disk, and on the standbys that are waited for, before it is answered.
/// A request that is given up here must not go on there: it ends when this side's patience does, but for a commit that waits
/// for a standby, which keeps its row locked. Behind a pooler another client
/// may have left its search_path on this server connection, and with it lockrun would find, or make, other tables.
pub fn transaction(limit: Duration, durable: bool, statements: &str) -> String {
    let ms = limit.as_millis().max(1);
    let commit = if durable { "on" } else { "off" };
    format!(
        "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL statement_timeout = {ms}; SET LOCAL lock_timeout = {ms}; \
         SET LOCAL search_path TO DEFAULT; SET LOCAL synchronous_commit = {commit}; {statements}; COMMIT"
    )
}

/// The statements race in PostgreSQL although they say IF NOT EXISTS, hence the lock; it ends with the transaction.
pub fn make_tables(limit: Duration) -> String {
    transaction(limit, true, &format!("SELECT pg_advisory_xact_lock({MAKING_TABLES}); {TABLES}"))
}

pub fn schema_version() -> &'static str {
    "SELECT value FROM lockrun_meta WHERE key = 'schema'"
}

/// With the question whether this is a standby, whose rows may be old.
pub fn get(name: &LeaseName) -> String {
    format!("SELECT pg_is_in_recovery(), {COLUMNS} FROM (VALUES (1)) AS always LEFT JOIN lockrun_lease ON name = {}", text(name.as_str()))
}

pub fn list() -> String {
    format!("SELECT pg_is_in_recovery(), {COLUMNS} FROM lockrun_lease ORDER BY name")
}

pub fn swap(name: &LeaseName, expect: &Version, record: &Record) -> String {
    let holder = record.holder.as_ref();
    let values = [
        text(name.as_str()),
        text(record.write.as_str()),
        record.token.0.to_string(),
        nullable(holder.map(|holder| holder.id.as_str())),
        nullable(holder.and_then(|holder| holder.instance.as_deref())),
        nullable(holder.map(|holder| holder.hostname.as_str())),
        holder.map_or("NULL".to_string(), |holder| holder.pid.to_string()),
        nullable(holder.map(|holder| serde_json::to_string(&holder.command).unwrap_or_default()).as_deref()),
        i64::try_from(record.ttl.as_millis()).unwrap_or(i64::MAX).to_string(),
        record.acquired_ms.to_string(),
        record.renewed_ms.to_string(),
        record.stopping.to_string(),
    ]
    .join(", ");
    match expect {
        Version::Absent => format!("INSERT INTO lockrun_lease ({COLUMNS}) VALUES ({values}) ON CONFLICT (name) DO NOTHING"),
        Version::At(write) => {
            let name = text(name.as_str());
            format!("UPDATE lockrun_lease SET ({COLUMNS}) = ROW({values}) WHERE name = {name} AND write_id = {}", text(write))
        }
    }
}

/// A write that changes nothing.
pub fn touch(name: &LeaseName, version: &str) -> String {
    format!("UPDATE lockrun_lease SET write_id = write_id WHERE name = {} AND write_id = {}", text(name.as_str()), text(version))
}

/// One row if this version was noted before, none if it is noted now.
pub fn sighting(name: &LeaseName, boot_id: &str, version: &str, seen_ns: i64) -> String {
    let (name, boot_id, version) = (text(name.as_str()), text(boot_id), text(version));
    format!(
        "WITH known AS (SELECT seen_boot_ns FROM lockrun_sighting WHERE name = {name} AND boot_id = {boot_id} AND version = {version} \
           AND seen_boot_ns BETWEEN 0 AND {seen_ns}), \
         noted AS (INSERT INTO lockrun_sighting AS old (name, boot_id, version, seen_boot_ns) \
           SELECT {name}, {boot_id}, {version}, {seen_ns} WHERE NOT EXISTS (SELECT 1 FROM known) \
           ON CONFLICT (name, boot_id) DO UPDATE SET version = excluded.version, seen_boot_ns = excluded.seen_boot_ns) \
         SELECT seen_boot_ns FROM known"
    )
}

/// Names are longer than a channel's may be. The hash (FNV-1a) must be the same in every lockrun; a collision only wakes.
pub fn channel(name: &LeaseName) -> String {
    let hash = name.as_str().bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("lockrun_{hash:016x}")
}

/// A literal that means the same whatever standard_conforming_strings says. NUL cannot stand in it, nor in PostgreSQL.
pub fn text(value: &str) -> String {
    format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

fn nullable(value: Option<&str>) -> String {
    value.map_or("NULL".to_string(), text)
}

/// The rows that all the statements changed together.
pub fn changed_rows(answer: &[SimpleQueryMessage]) -> u64 {
    let count = |message: &SimpleQueryMessage| match message {
        SimpleQueryMessage::CommandComplete(count) => *count,
        _ => 0,
    };
    answer.iter().map(count).sum()
}

pub fn rows<'a>(answer: &'a [SimpleQueryMessage]) -> Vec<&'a SimpleQueryRow> {
    let row = |message: &'a SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    };
    answer.iter().filter_map(row).collect()
}

/// A row of `get` or `list`, as anybody may have written it: what cannot be read is an error, never a guess.
pub fn stored(row: &SimpleQueryRow) -> Result<Option<(LeaseName, Stored)>, StoreError> {
    if row.get(0) == Some("t") {
        return Err(standby());
    }
    record(|column| row.try_get(column + 1).ok().flatten())
}

pub fn standby() -> StoreError {
    StoreError::Unknown("the server is a standby; it takes writes once it is promoted".to_string())
}

fn record<'a>(column: impl Fn(usize) -> Option<&'a str>) -> Result<Option<(LeaseName, Stored)>, StoreError> {
    let Some(name) = column(0) else { return Ok(None) };
    let bad = |what: &str| StoreError::Refused(format!("the row of {name} in lockrun_lease has a bad {what}; correct or delete it"));
    let number = |index, what| column(index).and_then(|text| text.parse::<i64>().ok()).ok_or_else(|| bad(what));
    let holder = match column(3) {
        None => None,
        Some(id) => {
            let command = column(7).unwrap_or_default();
            Some(Holder {
                id: HolderId::new(id),
                instance: column(4).map(str::to_string),
                hostname: column(5).unwrap_or_default().to_string(),
                pid: column(6).map_or(Ok(0), str::parse).map_err(|_| bad("pid"))?,
                command: serde_json::from_str(command).unwrap_or_else(|_| vec![command.to_string()]),
            })
        }
    };
    let ttl_ms = u64::try_from(number(8, "ttl_ms")?).ok().filter(|ttl_ms| *ttl_ms > 0).ok_or_else(|| bad("ttl_ms"))?;
    let write = column(1).ok_or_else(|| bad("write_id"))?;
    let record = Record {
        write: WriteId::new(write),
        token: Token(number(2, "token")?),
        holder,
        ttl: Duration::from_millis(ttl_ms),
        asked_at: Moment::default(),
        acquired_ms: number(9, "acquired_ms")?,
        renewed_ms: number(10, "renewed_ms")?,
        stopping: column(11) == Some("t"),
    };
    Ok(Some((LeaseName::new(name), Stored { record, version: write.to_string() })))
}
