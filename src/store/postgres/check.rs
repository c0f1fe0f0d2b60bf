//! What can be known of a PostgreSQL server without changing anything: for `check`, and for whoever starts to hold. Must
//! never write a row.

use serde_json::Value;

use super::address::Place;
use super::error::store_error;
use super::{Postgres, is_missing, sql};
use crate::store::server::may_forget;
use crate::store::{Facts, StoreError};

/// Nobody fails over to a backup, an archive, or a subscriber (its slot is the only sign of it that every role can see).
const SERVER: &str = "SELECT current_setting('server_version'), current_setting('synchronous_commit'), \
     current_setting('synchronous_standby_names'), (extract(epoch FROM clock_timestamp()) * 1000)::bigint, \
     (SELECT count(*) FROM pg_stat_replication r WHERE application_name NOT IN ('pg_basebackup', 'pg_receivewal') AND NOT EXISTS \
     (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical')), \
     current_setting('fsync'), current_setting('full_page_writes')";
/// Each is refused without the right to it, and none of them touches a row.
const RIGHTS: [&str; 5] = [
    "SELECT 1 FROM lockrun_meta WHERE false",
    "INSERT INTO lockrun_lease SELECT * FROM lockrun_lease WHERE false",
    "UPDATE lockrun_lease SET token = token WHERE false",
    "INSERT INTO lockrun_sighting SELECT * FROM lockrun_sighting WHERE false",
    "UPDATE lockrun_sighting SET version = version WHERE false",
];

/// What `SERVER` answers.
type Row = [String; 7];

async fn server(postgres: &mut Postgres) -> Result<Row, StoreError> {
    let answer = postgres.session.ask(SERVER).await.map_err(|error| store_error(&error))?;
    let row = sql::rows(&answer).first().map(|row| (0..row.len()).map(|index| row.get(index).unwrap_or_default().to_string()).collect());
    let row: Option<Row> = row.and_then(|row: Vec<String>| row.try_into().ok());
    row.ok_or_else(|| StoreError::Unknown("the server answered with no row".to_string()))
}

/// How it can forget what it confirmed.
fn doubts([_, _, standbys, _, replicas, fsync, _]: &Row) -> Vec<String> {
    let mut doubts = Vec::new();
    if standbys.is_empty() && replicas != "0" {
        doubts.push(
            "a fail-over to a standby that is not synchronous (there is one) can forget a claim; set synchronous_standby_names".to_string(),
        );
    }
    if fsync == "off" {
        doubts.push("fsync is off: a crash of the server can forget a claim or spoil the tables".to_string());
    }
    doubts
}

pub async fn warning(postgres: &mut Postgres) -> Result<Option<String>, StoreError> {
    let doubts = doubts(&server(postgres).await?);
    Ok(may_forget(&doubts))
}

pub async fn check(postgres: &mut Postgres) -> Result<Facts, StoreError> {
    let row = server(postgres).await?;
    let [version, synchronous_commit, standbys, server_ms, replicas, _, full_page_writes] = &row;
    let (schema, tables) = rights(postgres).await?;
    let notifications = postgres.subscribe("lockrun_check").await?;
    let encrypted = postgres.session.encrypted;
    let details = vec![
        ("server_version", version.as_str().into()),
        ("schema", schema.into()),
        ("tables", tables.into()),
        ("synchronous_commit", synchronous_commit.as_str().into()),
        ("synchronous_standby_names", standbys.as_str().into()),
        ("notifications", notifications.into()),
        ("tls", encrypted.into()),
        ("server_time_ms", server_ms.parse::<i64>().map_or(Value::Null, Value::from)),
    ];
    let mut warnings = doubts(&row);
    if standbys.is_empty() && replicas == "0" {
        warnings.push(
            "a fail-over to a standby that is not synchronous (should one be made) can forget a claim: two may run until the old holder's \
             next renewal; set synchronous_standby_names"
                .to_string(),
        );
    }
    if full_page_writes == "off" {
        warnings
            .push("full_page_writes is off: unless the disk writes whole pages, a crash of the server can spoil the tables".to_string());
    }
    if !notifications {
        warnings.push(
            "notifications do not come through (a pooler in transaction mode?): those who wait read once a second instead".to_string(),
        );
    }
    let loopback = |name: &str| name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match &postgres.session.host.place {
        Place::Name { name, .. } if !encrypted && !loopback(name) => {
            warnings.push("the connection is not encrypted; write ?sslmode=verify-full, or require".to_string());
        }
        Place::Name { .. } | Place::Socket(_) => {}
    }
    Ok(Facts { details, warnings })
}

/// The schema that has, or would get, lockrun's tables; and whether they are there.
async fn rights(postgres: &mut Postgres) -> Result<(String, bool), StoreError> {
    match postgres.transact(false, &RIGHTS.join("; ")).await {
        Ok(_) => {}
        Err(error) if is_missing(&error) => {
            let create = "SELECT current_schema(), has_schema_privilege(current_schema(), 'CREATE')";
            let answer = postgres.session.ask(create).await.map_err(|error| store_error(&error))?;
            return match sql::rows(&answer).first().map(|row| (row.get(0), row.get(1))) {
                Some((Some(schema), Some("t"))) => Ok((schema.to_string(), false)),
                Some((Some(schema), _)) => Err(StoreError::Refused(format!(
                    "lockrun's tables are not there yet, and this role may not make them in schema {schema}; {}",
                    super::MAKES_TABLES
                ))),
                _ => Err(StoreError::Refused("no schema of the search_path exists; create one".to_string())),
            };
        }
        Err(error) => return Err(store_error(&error)),
    }
    let where_ = "SELECT relnamespace::regnamespace FROM pg_class WHERE oid = 'lockrun_lease'::regclass";
    let answer = postgres.session.ask(where_).await.map_err(|error| store_error(&error))?;
    Ok((sql::rows(&answer).first().and_then(|row| row.get(0)).unwrap_or("?").to_string(), true))
}
