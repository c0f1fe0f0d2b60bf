//! What short tries saw, for the next one: a Lease object of its own that is no lease. Nobody may delete one, so there is a
//! fixed number for each lease, overwritten in place. Must never be taken for a lease.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use serde::{Deserialize, Serialize};

use super::api::Api;
use crate::lease::LeaseName;
use crate::store::StoreError;

/// As a label: not shown as a lease. As an annotation: what was seen.
pub const SIGHTING: &str = "lockrun.dev/sighting";

/// Boots share them by their hash: nodes come and go, their sightings must not pile up.
const SLOTS: u64 = 32;

#[derive(PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    lease: String,
    boot: String,
    version: String,
    seen_ns: i64,
}

/// When a process of that boot first saw this version; if none did, that is noted.
pub async fn note(api: &Api, name: &LeaseName, boot: &str, version: &str, seen_ns: i64) -> Result<Option<i64>, StoreError> {
    let object = format!("lockrun-sighting-{:016x}-{}", hash(name.as_str()), hash(boot) % SLOTS);
    let found = api.get(&object).await?;
    let mut seen = Seen { lease: name.to_string(), boot: boot.to_string(), version: version.to_string(), seen_ns };
    if let Some(before) = found.as_ref().and_then(read) {
        seen.seen_ns = before.seen_ns;
        if before == seen {
            return Ok(Some(before.seen_ns));
        }
        seen.seen_ns = seen_ns;
    }
    let mut lease = found.unwrap_or_default();
    lease.metadata.name = Some(object);
    lease.metadata.labels.get_or_insert_default().insert(SIGHTING.to_string(), String::new());
    let text = serde_json::to_string(&seen).unwrap_or_default();
    lease.metadata.annotations.get_or_insert_default().insert(SIGHTING.to_string(), text);
    lease.spec = Some(LeaseSpec::default());
    // A conflict: another has noted what it saw; the next try will find that or note its own.
    api.put(&lease, false).await?;
    Ok(None)
}

pub fn is_one(lease: &Lease) -> bool {
    lease.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(SIGHTING))
}

fn read(lease: &Lease) -> Option<Seen> {
    serde_json::from_str(lease.metadata.annotations.as_ref()?.get(SIGHTING)?).ok()
}

/// FNV-1a: the same in every build, for the objects outlive it.
fn hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
