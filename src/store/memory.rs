//! A test double: records in memory, evidence as the test wants it. The contract suite runs against it as against every
//! real store, and the simulation drives many machines through one of it.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use super::{Store, StoreError};
use crate::lease::{Evidence, Finding, KernelLock, LeaseName, Moment, Record, Snapshot, Swap, Version};

#[derive(Clone, Default)]
pub struct MemoryStore {
    records: Rc<RefCell<BTreeMap<LeaseName, Record>>>,
    /// Readers and writers share one clock, as on one kernel.
    one_clock: bool,
}

impl MemoryStore {
    pub fn new(one_clock: bool) -> MemoryStore {
        MemoryStore { one_clock, ..MemoryStore::default() }
    }

    /// `read` without waiting, for a simulation.
    pub fn look(&self, name: &LeaseName, now: Moment) -> Snapshot {
        let record = self.records.borrow().get(name).cloned();
        let version = record.as_ref().map_or(Version::Absent, |record| Version::At(record.write.to_string()));
        let evidence = match &record {
            Some(record) if self.one_clock => Evidence::Left(record.ttl.saturating_sub(now.since(record.asked_at))),
            Some(_) => Evidence::NoClock,
            None => Evidence::Left(Duration::ZERO),
        };
        Snapshot { record, version, evidence, lock: KernelLock::None, seen_at: None, finding: Finding::Plain }
    }

    /// `swap` without waiting, for a simulation.
    pub fn try_swap(&self, name: &LeaseName, expect: &Version, record: &Record) -> Swap {
        if self.look(name, Moment::default()).version != *expect {
            return Swap::Conflict;
        }
        self.records.borrow_mut().insert(name.clone(), record.clone());
        Swap::Done(Version::At(record.write.to_string()))
    }
}

impl Store for MemoryStore {
    async fn read(&self, name: &LeaseName, now: Moment) -> Result<Snapshot, StoreError> {
        Ok(self.look(name, now))
    }

    async fn swap(&self, name: &LeaseName, expect: &Version, record: &Record) -> Result<Swap, StoreError> {
        Ok(self.try_swap(name, expect, record))
    }

    async fn changed(&self, name: &LeaseName, seen: &Version) {
        if self.look(name, Moment::default()).version == *seen {
            pending().await
        }
    }

    async fn list(&self, now: Moment) -> Result<Vec<(LeaseName, Snapshot)>, StoreError> {
        let names: Vec<LeaseName> = self.records.borrow().keys().cloned().collect();
        Ok(names.into_iter().map(|name| (name.clone(), self.look(&name, now))).collect())
    }
}
