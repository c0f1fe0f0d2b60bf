//! etcd (v3). The record of a lease is JSON under `lockrun/NAME`, and is never deleted; it is on no lease of etcd's, so that no
//! clock of a server decides. A swap is one transaction on the revision *and* the value that were read: a cluster that was
//! rebuilt may come to the same revision again. Must never read anything but what a majority agrees on.

mod address;
mod api;
mod check;
mod connection;
mod error;
mod tls;
mod watch;

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::server::{Client, Stored, from_json, to_json};
use super::{Facts, StoreError};
use crate::lease::{LeaseName, Record, Swap, Version};
pub use address::Address;
use api::{Compare, KeyValue, LeaseGrantRequest, LeaseGrantResponse, PutRequest, RangeRequest, RangeResponse, TxnRequest, TxnResponse};
use connection::{Answer, Connection};
use watch::Watch;

const PREFIX: &str = "lockrun/";
/// The first key behind all that begin with `PREFIX`.
const PREFIX_END: &str = "lockrun0";
/// Not below `PREFIX`, so that a list of leases is just that.
const SIGHTINGS: &str = "lockrun-sighting/";
/// Seconds. Long, because a sighting is of use to whoever looks twice within it; each boot leaves some, so that they must go.
const SIGHTING_TTL: i64 = 30 * 86_400;
/// Records asked for at once.
const PAGE: i64 = 200;

pub struct Etcd {
    connection: Connection,
    watch: Option<Watch>,
}

impl Client for Etcd {
    type Address = Address;

    async fn connect(address: &Address, _create: bool, limit: Duration) -> Result<Etcd, StoreError> {
        Ok(Etcd { connection: Connection::open(address, limit).await?, watch: None })
    }

    async fn get(&mut self, name: &LeaseName) -> Result<Option<Stored>, StoreError> {
        get(&mut self.connection, name).await
    }

    async fn swap(&mut self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        let key = key(name);
        let compare = match expect {
            Version::Absent => vec![Compare::created_at(&key, 0)],
            Version::At(version) => match read_version(version) {
                Some((revision, value)) => vec![Compare::modified_at(&key, revision), Compare::has_value(&key, value.as_bytes())],
                None => return Ok(Swap::Conflict), // no record has ever been at such a version
            },
        };
        let value = to_json(record);
        let put = PutRequest { key, value: value.clone().into_bytes(), lease: 0 };
        let answer: Answer<TxnResponse> = self.connection.call(api::TXN, TxnRequest::put_if(compare, put)).await?;
        match (answer.message.succeeded, answer.message.header) {
            (true, Some(header)) => Ok(Swap::Done(Version::At(version(header.revision, &value)))),
            (true, None) => Err(StoreError::Unknown("an answer without a revision".to_string())),
            // The one that was sent first may have been what this one stumbled over.
            (false, _) if answer.repeated => {
                Err(StoreError::Unknown("sent twice, to two endpoints; the first may have been carried out".to_string()))
            }
            (false, _) => Ok(Swap::Conflict),
        }
    }

    async fn sighting(&mut self, name: &LeaseName, boot_id: &str, version: &str, seen_ns: i64) -> Result<Option<i64>, StoreError> {
        let key = format!("{SIGHTINGS}{boot_id}/{name}").into_bytes();
        let before = self.range(RangeRequest { key: key.clone(), ..RangeRequest::default() }).await?.kvs.pop();
        let noted = before.as_ref().and_then(|kv| serde_json::from_slice::<Sighting>(&kv.value).ok());
        if let Some(noted) = noted.filter(|noted| noted.version == version) {
            return Ok(Some(noted.seen_ns));
        }
        let (compare, lease) = match &before {
            // The same lease of etcd's again, so that there is one for each and not one for each version.
            Some(kv) => (Compare::modified_at(&key, kv.mod_revision), kv.lease),
            None => {
                let grant: Answer<LeaseGrantResponse> =
                    self.connection.call(api::LEASE_GRANT, LeaseGrantRequest { ttl: SIGHTING_TTL }).await?;
                (Compare::created_at(&key, 0), grant.message.id)
            }
        };
        let sighting = Sighting { version: version.to_string(), seen_ns };
        let value = serde_json::to_vec(&sighting).expect("text and a number are always JSON");
        // Not put means that somebody else has noted something meanwhile: then there is a next time.
        let put = TxnRequest::put_if(vec![compare], PutRequest { key, value, lease });
        self.connection.call::<_, TxnResponse>(api::TXN, put).await.map(|_| None)
    }

    async fn list(&mut self) -> Result<Vec<(LeaseName, Stored)>, StoreError> {
        let mut found = Vec::new();
        let mut key = PREFIX.as_bytes().to_vec();
        loop {
            let page = self.range(RangeRequest { key, range_end: PREFIX_END.into(), limit: PAGE, ..RangeRequest::default() }).await?;
            // The key just behind the last one.
            key = page.kvs.last().map(|kv| [kv.key.as_slice(), &[0]].concat()).unwrap_or_default();
            for kv in page.kvs {
                let name = kv.key.strip_prefix(PREFIX.as_bytes()).and_then(|name| std::str::from_utf8(name).ok());
                let Some(name) = name else { continue }; // no lease of lockrun's can have such a name
                let named = |error| match error {
                    StoreError::Refused(why) => StoreError::Refused(format!("lease {name}: {why}")),
                    StoreError::Unknown(why) => StoreError::Unknown(why),
                };
                found.push((LeaseName::new(name), stored(&kv).map_err(named)?));
            }
            if !page.more {
                return Ok(found);
            }
        }
    }

    async fn changed(&mut self, name: &LeaseName, seen: &Version) -> Result<(), StoreError> {
        watch::changed(&mut self.connection, &mut self.watch, name, seen).await
    }

    async fn check(&mut self) -> Result<Facts, StoreError> {
        check::check(&mut self.connection).await
    }
}

impl Etcd {
    async fn range(&mut self, request: RangeRequest) -> Result<RangeResponse, StoreError> {
        self.connection.call(api::RANGE, request).await.map(|answer| answer.message)
    }
}

#[derive(Serialize, Deserialize)]
struct Sighting {
    version: String,
    seen_ns: i64,
}

async fn get(connection: &mut Connection, name: &LeaseName) -> Result<Option<Stored>, StoreError> {
    let request = RangeRequest { key: key(name), ..RangeRequest::default() };
    let answer: Answer<RangeResponse> = connection.call(api::RANGE, request).await?;
    answer.message.kvs.first().map(stored).transpose()
}

fn stored(kv: &KeyValue) -> Result<Stored, StoreError> {
    let record = from_json(&kv.value)?;
    // A field that nobody knows is read over, whatever bytes are in it.
    let value = std::str::from_utf8(&kv.value).map_err(|_| StoreError::Refused("its record is no text; remove it".to_string()))?;
    Ok(Stored { record, version: version(kv.mod_revision, value) })
}

fn key(name: &LeaseName) -> Vec<u8> {
    format!("{PREFIX}{name}").into_bytes()
}

/// The value is in it, so that the transaction can ask for the very one.
fn version(revision: i64, value: &str) -> String {
    format!("{revision} {value}")
}

fn read_version(version: &str) -> Option<(i64, &str)> {
    let (revision, value) = version.split_once(' ')?;
    Some((revision.parse().ok()?, value))
}
