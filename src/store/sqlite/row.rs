//! One row of `lockrun_lease`, read as anybody may have written it. Must never guess: what cannot be read is an error.

use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Row, params};

use super::app_table::AppRow;
use crate::lease::{Holder, HolderId, LeaseName, Moment, Record, Token, Version, WriteId};

const COLUMNS: &str = "name, write_id, token, holder, instance, hostname, pid, command, ttl_ms, acquired_ms, renewed_ms, boot_id, \
                       asked_boot_ns, side, stopping, app_pid, app_created_at";

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

/// The record's write id; with an application's table, its row's four values too.
pub fn version(row: Option<&LeaseRow>, app_row: Option<Option<&AppRow>>) -> Version {
    let write = row.map(|row| row.record.write.as_str());
    match app_row {
        None => write.map_or(Version::Absent, |write| Version::At(write.to_string())),
        Some(app_row) => Version::At(format!("{} {}", write.unwrap_or("-"), app_row.map_or("-".to_string(), AppRow::version))),
    }
}

pub fn read(connection: &Connection, name: &LeaseName) -> rusqlite::Result<Option<LeaseRow>> {
    let sql = format!("SELECT {COLUMNS} FROM lockrun_lease WHERE name = ?1");
    let mut statement = connection.prepare_cached(&sql)?;
    statement.query_one([name.as_str()], lease_row).optional()
}

pub fn read_all(connection: &Connection) -> rusqlite::Result<Vec<LeaseRow>> {
    let mut statement = connection.prepare_cached(&format!("SELECT {COLUMNS} FROM lockrun_lease ORDER BY name"))?;
    let rows = statement.query_map([], lease_row)?;
    rows.collect()
}

/// `there`: the lease has a row already.
pub fn write(
    connection: &Connection,
    there: bool,
    name: &LeaseName,
    record: &Record,
    stamp: &Stamp,
    app_row: Option<&AppRow>,
) -> rusqlite::Result<usize> {
    let sql = if there {
        // Not INSERT OR REPLACE, which writes the page of the key's index too: half as much log to write, and to read at a start.
        let sets: Vec<String> = COLUMNS.split(", ").enumerate().skip(1).map(|(at, column)| format!("{column} = ?{}", at + 1)).collect();
        format!("UPDATE lockrun_lease SET {} WHERE name = ?1", sets.join(", "))
    } else {
        format!("INSERT INTO lockrun_lease ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)")
    };
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
