//! What one action does at the store. It promises what every store does: a swap is carried out on the expected version only.

use std::time::Duration;

use lockrun::lease::{Event, Evidence, Finding, KernelLock, Moment, Record, Reply, Snapshot, Swap, WriteId};

use crate::case::{self, Variant};
use crate::front::{Step, told_record};
use crate::world::{Wire, Write};

impl Step<'_> {
    pub fn serve(&mut self, index: usize, twice: bool) {
        let (request, reply) = match self.world.nodes[index].wire.take() {
            Some(Wire::Read { request, asked_at }) => (request, Reply::Snapshot(self.look(index, asked_at))),
            Some(Wire::Swap { request, write }) => {
                let mut swap = self.write(index, &write);
                if twice {
                    self.case.reach("carried out twice");
                    self.world.left.repeats -= 1;
                    swap = Swap::Conflict;
                }
                (request, Reply::Swapped(swap))
            }
            other @ (Some(Wire::Reply { .. }) | None) => {
                self.world.nodes[index].wire = other;
                return;
            }
        };
        self.world.nodes[index].wire = Some(Wire::Reply { request, reply });
        self.world.nodes[index].held = false;
    }

    fn look(&self, index: usize, asked_at: Moment) -> Snapshot {
        let record = self.world.record.clone();
        let mut evidence = match (self.case.evidence, &record) {
            (_, None) | (case::Evidence::None, _) => Evidence::NoClock,
            (case::Evidence::OneKernel, Some(record)) => {
                let ttl = match self.case.variant {
                    Variant::WaitersTtl => self.case.nodes[index].settings.timing.ttl,
                    _ => record.ttl,
                };
                Evidence::Left(ttl.saturating_sub(asked_at.since(record.asked_at)))
            }
        };
        if let (Variant::StoresClockDecides, Some(record)) = (self.case.variant, &record) {
            let age = self.world.now + self.world.store_ahead - self.world.stored_at;
            evidence = Evidence::Left(record.ttl.saturating_sub(Duration::from_nanos(age)));
        }
        let seen_at = (self.case.variant == Variant::SeenFromRequest).then_some(asked_at);
        Snapshot { record, version: self.world.version(), evidence, lock: KernelLock::None, seen_at, finding: Finding::Plain }
    }

    pub fn write(&mut self, index: usize, write: &Write) -> Swap {
        if write.expect != self.world.version() {
            self.case.reach("conflict");
            return Swap::Conflict;
        }
        self.case.tell(&self.world, || format!("    the store has {}", told_record(&write.record)));
        let before = self.world.record.as_ref().map(|record| record.token);
        if before > Some(write.record.token) {
            self.world.breaks(case::TOKEN);
        }
        if let Some(holder) = &write.record.holder {
            self.world.nodes[index].landed = write.record.asked_at;
            if self.world.holder().is_some_and(|before| *before != holder.id) {
                self.case.reach("taken over");
            }
        }
        self.put(write.record.clone());
        Swap::Done(self.world.version())
    }

    pub fn put(&mut self, record: Record) {
        self.world.free_since = record.holder.is_none().then_some(self.world.now);
        self.world.record = Some(record);
        self.world.stored_at = self.world.now + self.world.store_ahead;
        for index in 0..self.world.nodes.len() {
            self.forget(index);
            // That a watcher is told is a help, and no promise.
            if self.world.nodes[index].watch.take().is_some() && self.case.budget.losses == 0 {
                self.tell(index, Event::Changed);
            }
        }
    }

    /// An operator, with a client of the store's own.
    pub fn by_hand(&mut self, free: bool) {
        let Some(record) = self.world.record.clone() else { return };
        let unique = u128::MAX - u128::from(self.world.left.requests);
        let mut record = Record { write: WriteId::from_random(unique), ..record };
        if free {
            self.case.reach("freed by hand");
            record.holder = None;
            self.world.forced_at = Some(self.world.now);
        }
        self.put(record);
    }
}
