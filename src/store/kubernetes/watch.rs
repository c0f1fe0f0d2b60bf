//! Waits for a release through a watch of one Lease. It may be late or end at any time; that only delays, for a waiter
//! looks by itself, once a heartbeat. Must never decide anything.

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{ListParams, WatchEvent, WatchParams};

use super::address::chain;
use super::api::Api;
use super::object;
use crate::lease::{LeaseName, Version};
use crate::store::StoreError;

pub struct Watch {
    name: LeaseName,
    events: BoxStream<'static, kube::Result<WatchEvent<Lease>>>,
    /// A release that nobody was told of yet: it may have come while nobody waited.
    news: Option<Version>,
}

/// Returns when the lease is no longer held as `seen`. `slot` keeps the watch when this future is dropped. API servers end
/// a watch every few minutes.
pub async fn changed(slot: &mut Option<Watch>, api: &Api, name: &LeaseName, seen: &Version) -> Result<(), StoreError> {
    loop {
        if slot.as_ref().is_none_or(|watch| watch.name != *name) {
            *slot = Some(open(api, name).await?);
        }
        let Some(watch) = slot else { continue };
        if watch.news.take().is_some_and(|version| version != *seen) {
            return Ok(());
        }
        let why = match watch.events.next().await {
            Some(Ok(WatchEvent::Added(lease) | WatchEvent::Modified(lease))) => {
                watch.news = release(Some(&lease));
                continue;
            }
            Some(Ok(WatchEvent::Deleted(_))) => {
                watch.news = release(None);
                continue;
            }
            Some(Ok(WatchEvent::Bookmark(_))) => continue,
            // 410 Gone: the API server no longer knows what came after our place in its history.
            Some(Ok(WatchEvent::Error(status))) => format!("{}: {}", status.code, status.message),
            Some(Err(error)) => chain(&error),
            None => "the watch has ended".to_string(),
        };
        *slot = None;
        return Err(StoreError::Unknown(why));
    }
}

/// The list says what stands and where in the history that is; the watch goes on from there, so that nothing falls between.
async fn open(api: &Api, name: &LeaseName) -> Result<Watch, StoreError> {
    let only = format!("metadata.name={name}");
    let list = api.list(&ListParams::default().fields(&only)).await?;
    let from = list.metadata.resource_version.unwrap_or_default();
    let events = api.leases().watch(&WatchParams::default().fields(&only), &from).await;
    let events = events.map_err(|error| StoreError::Unknown(chain(&error)))?.boxed();
    Ok(Watch { name: name.clone(), events, news: release(list.items.first()) })
}

/// The version, if nobody holds it. One that cannot be read is news too: the reader will say so.
fn release(lease: Option<&Lease>) -> Option<Version> {
    match lease.map(object::read) {
        None => Some(Version::Absent),
        Some(Ok(stored)) if stored.record.holder.is_none() => Some(Version::At(stored.version)),
        Some(Ok(_)) => None,
        Some(Err(_)) => Some(Version::Absent),
    }
}
