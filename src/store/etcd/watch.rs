//! Waiting for a release by a watch: subscribe, look, wait. The stream is kept when a wait is given up, so that what comes
//! while nobody waits counts. It only shortens waits: must never be all that a waiter relies on.

use tonic::Streaming;

use super::api::{Event, EventType, WATCH, WatchCreateRequest, WatchRequest, WatchResponse};
use super::connection::Connection;
use super::error::{Trouble, of_status};
use super::{from_json, get, key, read_version};
use crate::lease::{LeaseName, Version};
use crate::store::StoreError;

pub struct Watch {
    name: LeaseName,
    stream: Streaming<WatchResponse>,
    /// The revision of the last event that freed the record.
    freed: i64,
}

impl Watch {
    /// From the member's "now", whichever that is: what happened before is found by looking afterwards. So neither a compaction
    /// nor a cluster that was rebuilt and counts anew can make it deaf.
    pub async fn open(connection: &mut Connection, name: &LeaseName) -> Result<Watch, StoreError> {
        let create = WatchRequest { create_request: Some(WatchCreateRequest { key: key(name) }) };
        let limit = connection.limit();
        let opened = async {
            let stream = connection.stream(WATCH, create).await?;
            let mut watch = Watch { name: name.clone(), stream, freed: 0 };
            while !watch.next().await?.created {}
            Ok(watch)
        };
        // Once it stands, pings tell of a member that hangs.
        tokio::time::timeout(limit, opened).await.unwrap_or_else(|_| Err(Trouble::silent().error))
    }

    async fn next(&mut self) -> Result<WatchResponse, StoreError> {
        match self.stream.message().await {
            Ok(Some(response)) if response.canceled => {
                Err(StoreError::Unknown(format!("the watch was cancelled: {}", response.cancel_reason)))
            }
            Ok(Some(response)) => Ok(response),
            Ok(None) => Err(StoreError::Unknown("the watch has ended".to_string())),
            Err(status) => Err(of_status(&status).error),
        }
    }

    /// May be dropped at any time: nothing that was read from the stream is lost then.
    async fn wait(&mut self, seen: i64) -> Result<(), StoreError> {
        while self.freed <= seen {
            let response = self.next().await?;
            let freed = response.events.iter().filter(|event| frees(event)).filter_map(|event| event.kv.as_ref());
            self.freed = freed.map(|kv| kv.mod_revision).fold(self.freed, i64::max);
        }
        Ok(())
    }
}

pub async fn changed(connection: &mut Connection, kept: &mut Option<Watch>, name: &LeaseName, seen: &Version) -> Result<(), StoreError> {
    if kept.as_ref().is_none_or(|watch| watch.name != *name) {
        let watch = Watch::open(connection, name).await?;
        let now = get(connection, name).await?.map_or(Version::Absent, |stored| Version::At(stored.version));
        // Kept from here on: if this is dropped before, the look is taken again.
        *kept = Some(watch);
        if now != *seen {
            return Ok(());
        }
    }
    let seen = match seen {
        Version::Absent => 0,
        Version::At(version) => read_version(version).map_or(0, |(revision, _)| revision),
    };
    let watch = kept.as_mut().expect("just made, or there before");
    let waited = watch.wait(seen).await;
    if waited.is_err() {
        *kept = None;
    }
    waited
}

/// A renewal is nothing to wake up for.
fn frees(event: &Event) -> bool {
    let held = |value: &[u8]| from_json(value).is_ok_and(|record| record.holder.is_some());
    event.kind == i32::from(EventType::Delete) || !event.kv.as_ref().is_some_and(|kv| held(&kv.value))
}
