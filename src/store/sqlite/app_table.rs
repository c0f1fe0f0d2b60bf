//! An application's own one-row lock table (`--table`): `(id INTEGER PRIMARY KEY CHECK (id = 1), pid, hostname,
//! created_at REAL, heartbeat_at REAL)`. lockrun's record of the same lease lies beside it and is written in the same
//! transaction. Must never touch anything else of the application's.

use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::lease::{Holder, HolderId, Record};

/// Above every pid that Linux gives (pid_max is at most 2^22), so that a row of ours is never an application's by chance.
const ABOVE_ALL_PIDS: i64 = 4_194_304;

#[derive(Clone, Debug)]
pub struct AppTable {
    name: String,
}

#[derive(Clone, Debug, PartialEq)]
pub struct AppRow {
    pub pid: i64,
    pub hostname: String,
    pub created_at: f64,
    pub heartbeat_at: f64,
}

impl AppRow {
    /// All four values, for a compare-and-swap.
    pub fn version(&self) -> String {
        format!("{}/{}/{:016x}/{:016x}", self.pid, self.hostname, self.created_at.to_bits(), self.heartbeat_at.to_bits())
    }

    /// The row's key as the application itself uses it.
    fn is_key(&self, other: &AppRow) -> bool {
        self.pid == other.pid && self.hostname == other.hostname && self.created_at.to_bits() == other.created_at.to_bits()
    }

    /// For people: whom we wait for when it is the application itself.
    pub fn holder(&self) -> Holder {
        let id = HolderId::new(format!("application {} on {} since {}", self.pid, self.hostname, self.created_at));
        let pid = u32::try_from(self.pid).unwrap_or(0);
        Holder { id, instance: None, hostname: self.hostname.clone(), pid, command: Vec::new() }
    }
}

impl AppTable {
    /// `name` is an identifier, which `config` has checked.
    pub fn new(name: &str) -> AppTable {
        AppTable { name: name.to_string() }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The table is there and has the columns. The error is for the user.
    pub fn check(&self, connection: &Connection) -> rusqlite::Result<Result<(), String>> {
        let mut statement = connection.prepare("SELECT name FROM pragma_table_info(?1)")?;
        let columns: Vec<String> = statement.query_map([&self.name], |row| row.get(0))?.collect::<Result<_, _>>()?;
        if columns.is_empty() {
            return Ok(Err(format!("table {}: there is none in this database; let the application make it first", self.name)));
        }
        let missing =
            ["id", "pid", "hostname", "created_at", "heartbeat_at"].into_iter().find(|column| !columns.iter().any(|c| c == column));
        Ok(missing.map_or(Ok(()), |column| Err(format!("table {}: it has no column {column}; it is not a lock table", self.name))))
    }

    pub fn read(&self, connection: &Connection) -> rusqlite::Result<Option<AppRow>> {
        let sql = format!("SELECT pid, hostname, created_at, heartbeat_at FROM \"{}\" WHERE id = 1", self.name);
        connection
            .query_one(&sql, [], |row| {
                Ok(AppRow {
                    pid: number(row, 0)? as i64,
                    hostname: row.get::<_, Option<String>>(1)?.unwrap_or_default(),
                    created_at: number(row, 2)?,
                    heartbeat_at: number(row, 3)?,
                })
            })
            .optional()
    }

    /// What the record looks like in the application's eyes. `replaced`: the row that it takes the place of.
    pub fn row_of(record: &Record, replaced: Option<&AppRow>) -> Option<AppRow> {
        let holder = record.holder.as_ref()?;
        // Low digits of its own, so that the key is nobody else's.
        let digits = record.token.0.rem_euclid(997) as f64 / 1e6;
        let created_at = record.acquired_ms as f64 / 1e3 + digits;
        let pid = i64::from(holder.pid);
        // In containers everybody is pid 1; an application that beats by pid alone would renew our row.
        let confusable = pid == 1 || replaced.is_some_and(|row| row.pid == pid && row.hostname == holder.hostname);
        let pid = if confusable { ABOVE_ALL_PIDS + 1 + record.token.0.rem_euclid(1_000_000) } else { pid };
        let heartbeat_at = record.renewed_ms as f64 / 1e3;
        Some(AppRow { pid, hostname: holder.hostname.clone(), created_at, heartbeat_at })
    }

    /// In a transaction that has compared all versions: puts `new` in the place of `old`.
    pub fn write(&self, connection: &Connection, old: Option<&AppRow>, new: Option<&AppRow>) -> rusqlite::Result<()> {
        let table = &self.name;
        match (old, new) {
            (_, None) => connection.execute(&format!("DELETE FROM \"{table}\" WHERE id = 1"), [])?,
            (Some(old), Some(new)) if old.is_key(new) => {
                connection.execute(&format!("UPDATE \"{table}\" SET heartbeat_at = ?1 WHERE id = 1"), [new.heartbeat_at])?
            }
            (_, Some(new)) => connection.execute(
                &format!("INSERT OR REPLACE INTO \"{table}\" (id, pid, hostname, created_at, heartbeat_at) VALUES (1, ?1, ?2, ?3, ?4)"),
                params![new.pid, new.hostname, new.created_at, new.heartbeat_at],
            )?,
        };
        Ok(())
    }
}

/// SQLite columns hold what was put there. What is no number is an error: guessed old, a live row would be taken over.
fn number(row: &Row<'_>, column: usize) -> rusqlite::Result<f64> {
    match row.get(column)? {
        Value::Integer(number) => Ok(number as f64),
        Value::Real(number) if number.is_finite() => Ok(number),
        other => Err(rusqlite::Error::InvalidColumnType(column, "a lock table's time or pid".to_string(), other.data_type())),
    }
}
