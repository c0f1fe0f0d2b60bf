//! Kubernetes: a lease is a Lease object (coordination.k8s.io/v1), swapped by its resourceVersion, beside any other client
//! that keeps the same rules. The API server's clock decides nothing. Must never delete anything.

mod access;
mod address;
mod api;
mod check;
mod client;
mod credentials;
mod exec;
mod object;
mod sighting;
mod watch;

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::ListParams;

use address::Pod;
pub use address::{Address, check_name};
use api::Api;
use watch::Watch;

use super::server::{Client, Stored};
use super::{Facts, StoreError};
use crate::lease::{LeaseName, Record, Swap, Version};

/// How often somebody who changes the metadata alone may get between a read and a write.
const TRIES: usize = 3;

pub struct Kubernetes {
    api: Api,
    pod: Pod,
    /// The object as it was last read or written: a renewal is one request.
    last: Option<Lease>,
    watch: Option<Watch>,
}

impl Kubernetes {
    async fn read(&mut self, name: &LeaseName) -> Result<Option<&Lease>, StoreError> {
        self.last = self.api.get(name.as_str()).await?;
        Ok(self.last.as_ref())
    }
}

impl Client for Kubernetes {
    type Address = Address;

    async fn connect(address: &Address, _create: bool, limit: Duration) -> Result<Kubernetes, StoreError> {
        Ok(Kubernetes { api: Api::new(address, limit).await?, pod: address.pod.clone(), last: None, watch: None })
    }

    async fn get(&mut self, name: &LeaseName) -> Result<Option<Stored>, StoreError> {
        self.read(name).await?.map(object::read).transpose()
    }

    /// The version is the write id, or the whole spec of another client, and the object's uid: an object made anew is
    /// another one. It is compared here, with what the resourceVersion sent along stands for; the API server compares that
    /// and the uid. So whoever changes labels or annotations is no conflict.
    async fn swap(&mut self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        for _ in 0..TRIES {
            let cached = self.last.as_ref().is_some_and(|lease| lease.metadata.name.as_deref() == Some(name.as_str()));
            if *expect != Version::Absent && !(cached && object::version(self.last.as_ref())? == *expect) {
                self.read(name).await?;
            }
            let before = match expect {
                Version::Absent => None,
                Version::At(_) if object::version(self.last.as_ref())? == *expect => self.last.take(),
                Version::At(_) => return Ok(Swap::Conflict),
            };
            // What it will be is not known until the answer is here.
            self.last = None;
            if let Some(written) = self.api.put(&object::write(before, name, record, &self.pod), false).await? {
                if object::read(&written)?.record.write != record.write {
                    // A gateway, or a webhook that takes our words out.
                    return Err(StoreError::Unknown("what was written is not what was answered".to_string()));
                }
                let version = object::version(Some(&written))?;
                self.last = Some(written);
                return Ok(Swap::Done(version));
            }
            if *expect == Version::Absent {
                return Ok(Swap::Conflict);
            }
        }
        Ok(Swap::Conflict)
    }

    async fn sighting(&mut self, name: &LeaseName, boot_id: &str, version: &str, seen_ns: i64) -> Result<Option<i64>, StoreError> {
        sighting::note(&self.api, name, boot_id, version, seen_ns).await
    }

    async fn list(&mut self) -> Result<Vec<(LeaseName, Stored)>, StoreError> {
        let list = self.api.list(&ListParams::default()).await?;
        let ours = list.items.iter().filter(|lease| object::is_lockruns(lease) && !sighting::is_one(lease));
        ours.map(|lease| {
            let name = lease.metadata.name.clone().unwrap_or_default();
            Ok((LeaseName::new(name), object::read(lease)?))
        })
        .collect()
    }

    async fn changed(&mut self, name: &LeaseName, seen: &Version) -> Result<(), StoreError> {
        watch::changed(&mut self.watch, &self.api, name, seen).await
    }

    fn is_spent(&self) -> bool {
        self.api.is_spent()
    }

    async fn check(&mut self) -> Result<Facts, StoreError> {
        check::check(&self.api).await
    }
}
