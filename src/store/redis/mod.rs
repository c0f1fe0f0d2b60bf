//! Redis and Valkey: a record is a hash, a swap is one script, a release is published. Must never let a record run out by
//! itself, nor ask the server's clock: nothing here has an expiry but what may be lost.

mod address;
mod check;
mod connection;
mod info;
mod script;
mod tls;
mod trouble;

use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Pipeline, RedisConnectionInfo, ServerErrorKind, Value, pipe};
use tokio::task::JoinHandle;

use super::server::{Client, Stored, from_json, to_json};
use super::{Facts, StoreError};
use crate::lease::{LeaseName, Record, Swap, Version};
pub use address::Address;
use info::Info;
use script::{By, Script};
use trouble::{read, refused, unknown};

/// Every name that has a record. A set of names, because to look for them (SCAN) would go through all of a server's keys.
const NAMES: &str = "lockrun:names";

/// How long a sighting is kept after it was noted. Longer than a month, for what is tried monthly.
const SIGHTING_SECONDS: &str = "3456000";

pub struct Redis {
    address: Address,
    /// It may write a record with a holder.
    to_hold: bool,
    /// Of one request.
    limit: Duration,
    /// Opened with the first request, or with the first wait: a connection that waits (in RESP 2) can ask nothing.
    requests: Option<Box<Requests>>,
    watch: Option<Box<(String, PubSub)>>,
    /// It may not subscribe, and is not asked again and again: whoever waits looks by time.
    deaf: bool,
}

struct Requests {
    connection: MultiplexedConnection,
    /// What carries its answers.
    driver: JoinHandle<()>,
}

impl Drop for Requests {
    fn drop(&mut self) {
        self.driver.abort(); // it would stay until the last answer has come
    }
}

fn record_key(name: &LeaseName) -> String {
    format!("lockrun:lease:{name}")
}

fn settings() -> RedisConnectionInfo {
    RedisConnectionInfo::default().set_skip_set_lib_name() // who we are was said when it was opened
}

impl Redis {
    /// One round trip. An error of one command is in its place among the answers.
    async fn ask(&mut self, commands: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let requests = match &mut self.requests {
            Some(requests) => requests,
            none => none.insert(Box::new(open(&self.address, self.to_hold, self.limit).await?)),
        };
        let answers = requests.connection.send_packed_commands(commands, 0, commands.len()).await;
        answers.map_err(|error| trouble::of(&error))
    }

    /// Runs a script, and what `then` adds behind it.
    async fn run(
        &mut self,
        script: &Script,
        keys: &[&str],
        arguments: &[&str],
        then: impl Fn(&mut Pipeline),
    ) -> Result<Vec<Value>, StoreError> {
        for by in [By::Hash, By::Text] {
            let mut commands = pipe();
            script::add(&mut commands, script, by, keys, arguments);
            then(&mut commands);
            let answers = self.ask(&commands).await?;
            let is_new = |error: &redis::ServerError| error.kind() == Some(ServerErrorKind::NoScript);
            match answers.first() {
                Some(Value::ServerError(error)) if by == By::Hash && is_new(error) => {}
                _ => return Ok(answers),
            }
        }
        unknown("the server forgets a script at once")
    }

    /// A server that fails over to a replica without this write has forgotten it: it is done when most of them have it.
    /// `written`: by the last write of this very connection, which is what WAIT counts from.
    async fn replicated(&mut self, replicas: usize, written: bool) -> Result<(), StoreError> {
        let needed = self.address.confirming(replicas);
        if needed > 0 {
            let patience = self.limit * 3 / 5;
            let mut commands = pipe();
            if !written {
                commands.cmd("SET").arg("lockrun:confirm").arg("").arg("EX").arg(1);
            }
            commands.cmd("WAIT").arg(needed).arg(patience.as_millis().max(1) as u64);
            let mut answers = self.ask(&commands).await?;
            let confirmed: usize = read(answers.pop())?;
            for answer in answers {
                read::<Value>(Some(answer))?;
            }
            if confirmed < needed {
                return unknown(format!("{confirmed} of the {needed} replicas that must have the write confirmed it within {patience:?}"));
            }
        }
        Ok(())
    }

    async fn subscribed(&self, channel: &str) -> Result<PubSub, StoreError> {
        let stream = connection::open(&self.address, self.to_hold, self.limit).await?;
        let watch = async {
            let mut watch = PubSub::new(&settings(), stream).await?;
            watch.subscribe(channel).await.map(|()| watch)
        };
        watch.await.map_err(|error| trouble::of(&error))
    }
}

async fn open(address: &Address, to_hold: bool, limit: Duration) -> Result<Requests, StoreError> {
    let stream = connection::open(address, to_hold, limit).await?;
    // The time-outs are those of the store: one of the client's own would hide which answer is still to come.
    let config = AsyncConnectionConfig::new().set_response_timeout(None).set_connection_timeout(None);
    let (connection, driver) =
        MultiplexedConnection::new_with_config(&settings(), stream, config).await.map_err(|error| trouble::of(&error))?;
    Ok(Requests { connection, driver: tokio::spawn(driver) })
}

/// The answer to `HMGET key write record`.
fn stored(answer: Option<Value>) -> Result<Option<Stored>, StoreError> {
    let (write, record) = match read::<(Option<Vec<u8>>, Option<Vec<u8>>)>(answer)? {
        (None, None) => return Ok(None),
        (Some(write), Some(record)) => (write, from_json(&record)?),
        (Some(_), None) | (None, Some(_)) => return refused(NOT_OURS),
    };
    match String::from_utf8(write) {
        Ok(version) if version == record.write.as_str() && !version.is_empty() => Ok(Some(Stored { record, version })),
        Ok(_) | Err(_) => refused(NOT_OURS),
    }
}

const NOT_OURS: &str = "its record is not one of lockrun's; remove it, or take another --name";

impl Client for Redis {
    type Address = Address;

    async fn connect(address: &Address, create: bool, limit: Duration) -> Result<Redis, StoreError> {
        Ok(Redis { address: address.clone(), to_hold: create, limit, requests: None, watch: None, deaf: false })
    }

    async fn get(&mut self, name: &LeaseName) -> Result<Option<Stored>, StoreError> {
        let mut commands = pipe();
        commands.cmd("HMGET").arg(record_key(name)).arg(&["write", "record"]);
        if !self.to_hold {
            return stored(self.ask(&commands).await?.pop());
        }
        // It may have become a replica under us: then what it shows may be old for as long as it likes.
        commands.cmd("INFO").arg("replication");
        let mut answers = self.ask(&commands).await?.into_iter();
        let stored = stored(answers.next())?;
        Info::new(answers.next().unwrap_or_default())?.is_primary()?;
        Ok(stored)
    }

    async fn confirm(&mut self, _name: &LeaseName, _version: &str) -> Result<(), StoreError> {
        let mut commands = pipe();
        commands.cmd("INFO").arg("replication");
        let info = Info::new(self.ask(&commands).await?.pop().unwrap_or_default())?;
        info.is_primary()?;
        self.replicated(info.replicas(), false).await
    }

    async fn swap(&mut self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        let expected = match expect {
            Version::Absent => "",
            Version::At(version) if version.is_empty() => return Ok(Swap::Conflict),
            Version::At(version) => version,
        };
        let (key, held) = (record_key(name), record.holder.is_some());
        let channel = if held { String::new() } else { self.address.channel(name) };
        let arguments = [expected, record.write.as_str(), &to_json(record), name.as_str(), &channel];
        let replication = |commands: &mut Pipeline| {
            if held {
                commands.cmd("INFO").arg("replication");
            }
        };
        let mut answers = self.run(&script::SWAP, &[&key, NAMES], &arguments, replication).await?.into_iter();
        if !read::<bool>(answers.next())? {
            return Ok(Swap::Conflict);
        }
        if held {
            let info = Info::new(answers.next().unwrap_or_default())?;
            info.is_primary()?;
            self.replicated(info.replicas(), true).await?;
        }
        Ok(Swap::Done(Version::At(record.write.to_string())))
    }

    async fn sighting(&mut self, name: &LeaseName, boot_id: &str, version: &str, seen_ns: i64) -> Result<Option<i64>, StoreError> {
        let key = format!("lockrun:sighting:{boot_id}:{name}");
        let arguments = [version, &seen_ns.to_string(), SIGHTING_SECONDS];
        let mut answers = self.run(&script::SIGHTING, &[&key], &arguments, |_| {}).await?;
        Ok(read::<Option<String>>(answers.pop())?.and_then(|at| at.parse().ok()))
    }

    async fn list(&mut self) -> Result<Vec<(LeaseName, Stored)>, StoreError> {
        let mut commands = pipe();
        commands.cmd("SMEMBERS").arg(NAMES);
        let names: Vec<Vec<u8>> = read(self.ask(&commands).await?.pop())?;
        // What is no text is the name of no lease.
        let names: Vec<LeaseName> = names.into_iter().filter_map(|name| String::from_utf8(name).ok()).map(LeaseName::new).collect();
        let mut commands = pipe();
        for name in &names {
            commands.cmd("HMGET").arg(record_key(name)).arg(&["write", "record"]);
        }
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for (name, answer) in names.into_iter().zip(self.ask(&commands).await?) {
            let stored = stored(Some(answer)).map_err(|error| match error {
                StoreError::Refused(why) => StoreError::Refused(format!("lease {name}: {why}")),
                StoreError::Unknown(why) => StoreError::Unknown(why),
            })?;
            found.extend(stored.map(|stored| (name, stored)));
        }
        found.sort_by(|one, other| one.0.cmp(&other.0));
        Ok(found)
    }

    /// Once it is subscribed it returns, so that the caller looks: what happened before nobody told. From then on what is
    /// told counts, also while nobody waits.
    async fn changed(&mut self, name: &LeaseName, _seen: &Version) -> Result<(), StoreError> {
        let channel = self.address.channel(name);
        match self.watch.as_deref_mut() {
            Some((subscribed, watch)) if *subscribed == channel => {
                let mut told = watch.on_message();
                if told.next().await.is_none() {
                    return unknown(trouble::CLOSED);
                }
                // One look will do for all of them.
                while let Some(Some(_)) = told.next().now_or_never() {}
            }
            _ if self.deaf => std::future::pending().await,
            _ => match tokio::time::timeout(self.limit, self.subscribed(&channel)).await {
                Ok(Ok(watch)) => self.watch = Some(Box::new((channel, watch))),
                Ok(Err(StoreError::Refused(_))) => self.deaf = true,
                Ok(Err(error)) => return Err(error),
                Err(_) => return unknown(format!("no answer within {:?}", self.limit)),
            },
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
