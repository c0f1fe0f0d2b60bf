//! A record as a Lease object: its spec filled as client-go fills it, for every other client goes by that alone, and all
//! else in annotations. Pure. Must never believe an annotation that is older than the spec beside it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::address::Pod;
use crate::lease::{Holder, HolderId, LeaseName, Moment, Record, Token, Version, WriteId};
use crate::store::StoreError;
use crate::store::server::{Stored, from_json, to_json};

/// The record as JSON.
pub const RECORD: &str = "lockrun.dev/record";
/// The spec's renewTime when that record was written: another client changes the one and keeps the other.
const RENEWED: &str = "lockrun.dev/renew-time";
const POD_NAME: &str = "lockrun.dev/pod-name";
const POD_UID: &str = "lockrun.dev/pod-uid";

/// Whoever says no duration is waited for until the spec says that it went: when it runs out cannot be known.
const NO_DURATION: Duration = Duration::from_secs(366 * 86_400);

/// What the object says, whoever wrote it last.
pub fn read(lease: &Lease) -> Result<Stored, StoreError> {
    let annotation = lease.metadata.annotations.as_ref().and_then(|annotations| annotations.get(RECORD));
    let ours = annotation.map(|text| from_json(text.as_bytes())).transpose()?;
    let (token, ours) = (ours.as_ref().map(|record| record.token), ours.filter(|record| is_of(lease, record)));
    let uid = lease.metadata.uid.as_deref().unwrap_or_default();
    if let Some(record) = ours {
        let version = format!("{uid}/{}", record.write);
        return Ok(Stored { record, version });
    }
    // Metadata may change under a holder that is gone: only a changed spec is a sign of life, for client-go as well.
    let spec = lease.spec.clone().unwrap_or_default();
    let version = format!("{uid}/{}", serde_json::to_string(&spec).unwrap_or_default());
    Ok(Stored { record: foreign(&spec, token.unwrap_or_default()), version })
}

pub fn version(lease: Option<&Lease>) -> Result<Version, StoreError> {
    lease.map_or(Ok(Version::Absent), |lease| read(lease).map(|stored| Version::At(stored.version)))
}

/// Whether the spec is still what was written with this record.
fn is_of(lease: &Lease, record: &Record) -> bool {
    let (annotations, spec) = (lease.metadata.annotations.as_ref(), lease.spec.as_ref());
    let Some((annotations, spec)) = annotations.zip(spec) else { return false };
    let identity = spec.holder_identity.as_deref().unwrap_or_default();
    let by = match &record.holder {
        Some(holder) => identity.strip_suffix(holder.id.as_str()).is_some_and(|before| before.ends_with('_')),
        None => identity.is_empty(),
    };
    let renewed = spec.renew_time.as_ref().map(text);
    by && spec.lease_duration_seconds == Some(seconds(record)) && renewed.as_ref() == annotations.get(RENEWED)
}

/// A record of another client: held by that identity for its own duration, free when there is none.
fn foreign(spec: &LeaseSpec, token: Token) -> Record {
    let identity = spec.holder_identity.as_deref().filter(|identity| !identity.is_empty());
    let ms = |time: &Option<MicroTime>| time.as_ref().map_or(0, |time| time.0.as_millisecond());
    let duration = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    Record {
        write: WriteId::new(""),
        token,
        holder: identity.map(|identity| Holder {
            id: HolderId::new(identity),
            instance: None,
            hostname: identity.to_string(),
            pid: 0,
            command: Vec::new(),
        }),
        ttl: duration.map_or(NO_DURATION, Duration::from_secs),
        asked_at: Moment::default(),
        acquired_ms: ms(&spec.acquire_time),
        renewed_ms: ms(&spec.renew_time),
        stopping: false,
    }
}

/// The object with this record in it. What it does not know of it keeps: labels, owners, annotations, strategy.
pub fn write(lease: Option<Lease>, name: &LeaseName, record: &Record, pod: &Pod) -> Lease {
    let mut lease = lease.unwrap_or_default();
    lease.metadata.name = Some(name.to_string());
    let spec = lease.spec.get_or_insert_default();
    let identity = record.holder.as_ref().map(|holder| identity(holder, pod)).unwrap_or_default();
    let before = spec.holder_identity.replace(identity.clone());
    if !identity.is_empty() && before.as_ref().is_some_and(|before| *before != identity) {
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
    }
    spec.lease_transitions.get_or_insert(0);
    spec.lease_duration_seconds = Some(seconds(record));
    let mut renewed = micro_time(record.renewed_ms);
    if spec.renew_time.as_ref() == Some(&renewed) {
        // It must change with every renewal, also while the wall clock stands still.
        renewed = MicroTime(renewed.0.saturating_add(SignedDuration::from_micros(1)).unwrap_or(renewed.0));
    }
    spec.acquire_time = Some(if record.holder.is_some() { micro_time(record.acquired_ms) } else { renewed.clone() });
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(RECORD.to_string(), to_json(record));
    annotations.insert(RENEWED.to_string(), text(&renewed));
    for (key, value) in [(POD_NAME, &pod.name), (POD_UID, &pod.uid)] {
        match value.as_ref().filter(|_| record.holder.is_some()) {
            Some(value) => annotations.insert(key.to_string(), value.clone()),
            None => annotations.remove(key),
        };
    }
    spec.renew_time = Some(renewed);
    lease
}

/// For the HOLDER column of kubectl: what a person knows first, then what makes it unique.
fn identity(holder: &Holder, pod: &Pod) -> String {
    format!("{}_{}", pod.name.as_ref().unwrap_or(&holder.hostname), holder.id)
}

/// Rounded up, for others wait so long; at least 1, as the API server demands, and 1 as client-go has it once released.
fn seconds(record: &Record) -> i32 {
    let span = if record.holder.is_some() { record.ttl } else { Duration::ZERO };
    i32::try_from(span.as_millis().div_ceil(1000)).unwrap_or(i32::MAX).max(1)
}

/// The API server takes the years 0 to 9999.
fn micro_time(unix_ms: i64) -> MicroTime {
    MicroTime(Timestamp::from_millisecond(unix_ms.clamp(0, 253_402_207_200_000)).unwrap_or(Timestamp::UNIX_EPOCH))
}

fn text(time: &MicroTime) -> String {
    time.0.to_string()
}

/// Whether lockrun has ever had it.
pub fn is_lockruns(lease: &Lease) -> bool {
    lease.metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(RECORD))
}

#[cfg(test)]
mod tests {
    use proptest::collection;
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let holder = proptest::option::of((
            "[a-z0-9]{1,8}",
            any::<Option<String>>(),
            any::<String>(),
            any::<u32>(),
            collection::vec(any::<String>(), 0..3),
        ));
        (any::<String>(), any::<i64>(), holder, 0..u64::MAX / 2, any::<i64>(), any::<i64>(), any::<bool>()).prop_map(
            |(write, token, holder, ttl_ms, acquired_ms, renewed_ms, stopping)| Record {
                write: WriteId::new(write),
                token: Token(token),
                holder: holder.map(|(id, instance, hostname, pid, command)| Holder {
                    id: HolderId::new(id),
                    instance,
                    hostname,
                    pid,
                    command,
                }),
                ttl: Duration::from_millis(ttl_ms),
                asked_at: Moment::default(),
                acquired_ms,
                renewed_ms,
                stopping,
            },
        )
    }

    /// As any program may write it, within what the API server lets through.
    fn spec() -> impl Strategy<Value = LeaseSpec> {
        let time = || proptest::option::of((0..253_402_207_200_000_i64).prop_map(micro_time));
        (any::<Option<String>>(), any::<Option<i32>>(), time(), time(), any::<Option<i32>>()).prop_map(
            |(holder_identity, lease_duration_seconds, acquire_time, renew_time, lease_transitions)| LeaseSpec {
                holder_identity,
                lease_duration_seconds,
                acquire_time,
                renew_time,
                lease_transitions,
                ..LeaseSpec::default()
            },
        )
    }

    fn name() -> LeaseName {
        LeaseName::new("beat")
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_record_comes_back_from_any_object_that_it_is_put_into(before in spec(), record in record(), pod: Option<String>) {
            let pod = Pod { name: pod, uid: None };
            let before = Lease { spec: Some(before), ..Lease::default() };
            let once = write(Some(before), &name(), &record, &pod);
            prop_assert_eq!(read(&once).map(|stored| stored.record), Ok(record.clone()));
            // As a holder renews it, while its wall clock stands still.
            let twice = write(Some(once.clone()), &name(), &record, &pod);
            prop_assert_ne!(&once.spec, &twice.spec, "other clients see it renewed");
            prop_assert_eq!(read(&twice).map(|stored| stored.record), Ok(record));
        }

        #[test]
        fn what_another_client_writes_over_it_is_believed_and_our_token_kept(record in record(), theirs in spec()) {
            let mut lease = write(None, &name(), &record, &Pod::default());
            let ours = read(&lease).map(|stored| stored.version);
            lease.spec = Some(theirs.clone());
            let found = read(&lease);
            prop_assert_ne!(found.clone().map(|stored| stored.version), ours);
            let found = found.map(|stored| stored.record).expect("read");
            let identity = theirs.holder_identity.filter(|identity| !identity.is_empty());
            prop_assert_eq!(found.holder.map(|holder| holder.id.to_string()), identity);
            prop_assert_eq!(found.token, record.token);
            prop_assert!(found.ttl >= Duration::from_secs(1));
        }

        #[test]
        fn an_annotation_of_any_text_is_an_error_or_a_record_that_is_not_believed(theirs in spec(), text: String) {
            let mut lease = Lease { spec: Some(theirs.clone()), ..Lease::default() };
            lease.metadata.annotations.get_or_insert_default().insert(RECORD.to_string(), text);
            if let Ok(stored) = read(&lease) {
                prop_assert_eq!(stored.record.holder.is_some(), theirs.holder_identity.is_some_and(|identity| !identity.is_empty()));
            }
        }
    }
}
