//! PostgreSQL: one row per lease, each write one transaction in one packet, success its COMMIT's. Must never rest on a
//! session: a pooler may stand in between, and a server that was failed over has no sessions.

mod address;
mod check;
mod error;
mod keywords;
mod passfile;
mod session;
mod sql;
mod tls;

use std::time::Duration;

use tokio::time::{sleep, timeout};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Error, SimpleQueryMessage};

use super::server::{Client, Stored};
use super::{Facts, StoreError};
use crate::lease::{LeaseName, Record, Swap, Version};
pub use address::Address;
use error::{MAKES_TABLES, store_error};
use session::Session;

/// Where no notification comes, the record is read so often instead.
const POLL: Duration = Duration::from_secs(1);
/// A notification that is to prove that notifications come has so long to come.
const PROOF: Duration = Duration::from_millis(500);

pub struct Postgres {
    address: Address,
    session: Box<Session>,
    limit: Duration,
    /// What `changed` listens to, and whether notifications come.
    subscribed: Option<(String, bool)>,
}

impl Postgres {
    async fn transact(&mut self, durable: bool, statements: &str) -> Result<Vec<SimpleQueryMessage>, Error> {
        let answer = self.session.ask(&sql::transaction(self.limit, durable, statements)).await;
        if answer.as_ref().is_err_and(is_missing) {
            // The connection is kept, so its transaction must be over.
            let _ = self.session.ask("ROLLBACK").await;
        }
        answer
    }

    async fn make_tables(&mut self) -> Result<(), StoreError> {
        let made = self.session.ask(&sql::make_tables(self.limit)).await;
        let Err(error) = made else { return Ok(()) };
        let _ = self.session.ask("ROLLBACK").await;
        // Another copy may have made them without our lock: an older lockrun, or a person.
        if self.schema().await? == Some(sql::SCHEMA) {
            return Ok(());
        }
        Err(match store_error(&error) {
            StoreError::Refused(_) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
                let said = error.as_db_error().map(|error| error.message().to_string()).unwrap_or_default();
                StoreError::Refused(format!("lockrun's tables are not there yet, and {said}; {MAKES_TABLES}"))
            }
            other => other,
        })
    }

    /// `None`: lockrun's tables are not there yet.
    async fn schema(&mut self) -> Result<Option<i64>, StoreError> {
        match self.transact(false, sql::schema_version()).await {
            Ok(answer) => Ok(sql::rows(&answer).first().and_then(|row| row.get(0)?.parse().ok())),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(store_error(&error)),
        }
    }

    async fn prepare(&mut self, create: bool) -> Result<(), StoreError> {
        let schema = match self.schema().await? {
            None if create => return self.make_tables().await,
            None => return Ok(()),
            Some(schema) => schema,
        };
        if schema != sql::SCHEMA {
            let known = sql::SCHEMA;
            let text = format!("its lockrun tables are of version {schema}, this lockrun knows {known}; use the newer lockrun");
            return Err(StoreError::Refused(text));
        }
        Ok(())
    }

    async fn stands_at(&mut self, name: &LeaseName) -> Result<Version, StoreError> {
        Ok(self.get(name).await?.map_or(Version::Absent, |stored| Version::At(stored.version)))
    }

    /// Whether notifications come: behind a pooler that gives each transaction another server, LISTEN succeeds and nothing
    /// ever arrives. One that comes along with the answer to a request of ours proves nothing, so another connection sends it.
    async fn subscribe(&mut self, channel: &str) -> Result<bool, StoreError> {
        let answer = self.session.ask(&format!("LISTEN {channel}; SELECT pg_backend_pid()")).await.map_err(|error| store_error(&error))?;
        // Of this connection alone: nobody else is woken by it.
        let proof = format!("{channel}_{}", sql::rows(&answer).first().and_then(|row| row.get(0)).unwrap_or_default());
        self.session.ask(&format!("LISTEN {proof}")).await.map_err(|error| store_error(&error))?;
        // A server that is full lets no other one in, and then nothing is proved.
        let other = timeout(self.limit, Session::open(&self.address, self.limit)).await;
        let Ok(Ok(mut other)) = other else { return Ok(false) };
        let come = async {
            other.ask(&format!("NOTIFY {proof}")).await.map_err(|error| store_error(&error))?;
            while self.session.listen().await? != proof {}
            Ok::<(), StoreError>(())
        };
        let comes = matches!(timeout(PROOF.min(self.limit / 4), come).await, Ok(Ok(())));
        // Behind a pooler it is another's connection that goes on to listen, most likely the one that this reaches.
        let no_more = if comes { format!("UNLISTEN {proof}") } else { format!("UNLISTEN {channel}; UNLISTEN {proof}") };
        self.session.ask(&no_more).await.map_err(|error| store_error(&error))?;
        Ok(comes)
    }
}

impl Client for Postgres {
    type Address = Address;

    async fn connect(address: &Address, create: bool, limit: Duration) -> Result<Postgres, StoreError> {
        let session = Box::new(Session::open(address, limit).await?);
        let mut postgres = Postgres { address: address.clone(), session, limit, subscribed: None };
        postgres.prepare(create).await?;
        Ok(postgres)
    }

    async fn get(&mut self, name: &LeaseName) -> Result<Option<Stored>, StoreError> {
        let answer = match self.transact(false, &sql::get(name)).await {
            Ok(answer) => answer,
            // Whoever comes next would make the tables, and find nothing in them.
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(store_error(&error)),
        };
        match sql::rows(&answer).first() {
            Some(row) => Ok(sql::stored(row)?.map(|(_, stored)| stored)),
            None => Err(StoreError::Unknown("the server answered with no row".to_string())),
        }
    }

    /// A commit waits until the standbys have all that was committed before it.
    async fn confirm(&mut self, name: &LeaseName, version: &str) -> Result<(), StoreError> {
        let answer = self.transact(true, &sql::touch(name, version)).await.map_err(|error| store_error(&error))?;
        match sql::changed_rows(&answer) {
            _ if self.session.warned => Err(not_everywhere()),
            1 => Ok(()),
            _ => Err(StoreError::Unknown("the record changed while it was read".to_string())),
        }
    }

    async fn swap(&mut self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        let mut statements = sql::swap(name, expect, record);
        if record.holder.is_none() {
            // At the COMMIT of a NOTIFY the server takes a lock of the whole database, so renewals send none.
            statements = format!("{statements}; NOTIFY {}", sql::channel(name));
        }
        // A release that is forgotten runs out by itself, and the claim after it takes it along to the disk.
        let answer = match self.transact(record.holder.is_some(), &statements).await {
            Ok(answer) => answer,
            Err(error) if is_missing(&error) && *expect != Version::Absent => return Ok(Swap::Conflict),
            Err(error) => return Err(store_error(&error)),
        };
        if record.holder.is_some() && self.session.warned {
            return Err(not_everywhere());
        }
        match sql::changed_rows(&answer) {
            0 => Ok(Swap::Conflict),
            1 => Ok(Swap::Done(Version::At(record.write.to_string()))),
            count => Err(StoreError::Unknown(format!("one row was to be written, the server says {count}"))),
        }
    }

    async fn sighting(&mut self, name: &LeaseName, boot_id: &str, version: &str, seen_ns: i64) -> Result<Option<i64>, StoreError> {
        let answer = self.transact(false, &sql::sighting(name, boot_id, version, seen_ns)).await.map_err(|error| store_error(&error))?;
        Ok(sql::rows(&answer).first().and_then(|row| row.get(0)?.parse().ok()))
    }

    async fn list(&mut self) -> Result<Vec<(LeaseName, Stored)>, StoreError> {
        let answer = match self.transact(false, &sql::list()).await {
            Ok(answer) => answer,
            Err(error) if is_missing(&error) => return Ok(Vec::new()),
            Err(error) => return Err(store_error(&error)),
        };
        sql::rows(&answer).into_iter().filter_map(|row| sql::stored(row).transpose()).collect()
    }

    async fn changed(&mut self, name: &LeaseName, seen: &Version) -> Result<(), StoreError> {
        let channel = sql::channel(name);
        let comes = match &self.subscribed {
            Some((subscribed, comes)) if *subscribed == channel => *comes,
            _ => {
                let comes = self.subscribe(&channel).await?;
                self.subscribed = Some((channel.clone(), comes));
                comes
            }
        };
        // Looked at after LISTEN and before each wait: what fell in between counts.
        while self.stands_at(name).await? == *seen {
            if comes {
                // Whoever is told looks for himself.
                return self.session.listen().await.map(drop);
            }
            sleep(POLL).await;
        }
        Ok(())
    }

    async fn check(&mut self) -> Result<Facts, StoreError> {
        check::check(self).await
    }

    async fn warning(&mut self) -> Result<Option<String>, StoreError> {
        check::warning(self).await
    }
}

/// As when an administrator or a restart ends its wait for a standby (statement_timeout does not): committed here, and perhaps nowhere else.
fn not_everywhere() -> StoreError {
    StoreError::Unknown("the server warned of this write; it may not be where it must be".to_string())
}

fn is_missing(error: &Error) -> bool {
    error.code() == Some(&SqlState::UNDEFINED_TABLE)
}
