//! What only the Kubernetes store has: the object that other clients see, theirs that it reads, and a watch that tells.

use std::time::{Duration, Instant};

use lockrun::clock;
use lockrun::lease::{Asked, Clocks, Holder, HolderId, Record, Swap, Timing, Token, Version};
use lockrun::store::kubernetes::{Address, Kubernetes as Client};
use lockrun::store::server::ServerStore;
use lockrun::store::{Purpose, Settings, Store, StoreError};
use serde_json::{Value, json};

use crate::fixture::Server;
use crate::fixture::kubernetes::{Kubernetes, TOKEN, What};
use crate::{Names, assert_of_writes_that_race_exactly_one_is_done, block_on, free, held, is_free, name, put, read};

type Kube = ServerStore<Client>;

impl Names for Kube {
    const NAMES: [&str; 7] = ["a", "a.b", "a-b", "b", "0", "aa", "lockrun-sighting"];
}

fn server() -> Kubernetes {
    Kubernetes::start()
}

pub fn store(url: &str) -> Kube {
    store_for(url, false)
}

fn store_for(url: &str, short: bool) -> Kube {
    store_of(url, short, &[])
}

fn store_of(url: &str, short: bool, variables: &[(&str, &str)]) -> Kube {
    let variable = |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into());
    let address = Address::parse(url, &variable).expect("a good address");
    let asked = Asked { ttl: Some(Duration::from_secs(60)), ..Asked::default() };
    let timing = Timing::new(asked, Clocks::Apart).expect("a good set");
    let purpose = Purpose::Hold { lease: name(), short };
    ServerStore::new(address, Settings { purpose, timing, now: clock::now, wall_ms: clock::wall_ms })
}

fn holder(id: &str) -> Holder {
    Holder { id: HolderId::new(id), instance: None, hostname: "web-1".into(), pid: 7, command: vec!["beat".into()] }
}

fn record(write: &str, id: &str, token: i64) -> Record {
    Record { holder: Some(holder(id)), stopping: false, ttl: Duration::from_millis(14_001), ..held(write, token) }
}

/// As client-go's LeaseLock writes it: the metadata that it read, and a spec of its own.
fn client_go(server: &Kubernetes, identity: &str, seconds: i64, transitions: i64, renewed: &str) -> Value {
    let mut object =
        server.lease(name().as_str()).unwrap_or_else(|| json!({"metadata": {"name": name().as_str(), "namespace": "default"}}));
    object["spec"] = json!({
        "holderIdentity": identity, "leaseDurationSeconds": seconds, "leaseTransitions": transitions,
        "acquireTime": "2026-01-02T03:04:05.000000Z", "renewTime": renewed,
    });
    server.put(&object).expect("written")
}

fn spec(server: &Kubernetes) -> Value {
    server.lease(name().as_str()).expect("the object")["spec"].clone()
}

#[test]
fn of_writes_that_race_exactly_one_is_done() {
    let server = server();
    let url = server.url();
    assert_of_writes_that_race_exactly_one_is_done(60, || store_for(&url, false));
}

#[test]
fn what_one_try_saw_counts_for_the_next_and_is_no_lease() {
    let server = server();
    block_on(async {
        let absent = read(&store(&server.url()), &name()).await.version;
        let version = put(&store(&server.url()), &name(), &absent, &held("w1", 1)).await;
        let start = clock::now();
        let first = read(&store_for(&server.url(), true), &name()).await;
        assert_eq!((first.seen_at, is_free(&first)), (None, false));
        let noted = clock::now();
        let second = read(&store_for(&server.url(), true), &name()).await;
        let seen_at = second.seen_at.expect("noted by the first");
        assert!(start < seen_at && seen_at <= noted, "after the first read, not before it");
        put(&store(&server.url()), &name(), &version, &held("w2", 1)).await;
        assert_eq!(read(&store_for(&server.url(), true), &name()).await.seen_at, None, "another version");
        assert!(read(&store_for(&server.url(), true), &name()).await.seen_at.is_some());
        let names: Vec<_> = store(&server.url()).list(clock::now()).await.expect("readable").into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [name()]);
        assert_eq!(server.leases().len(), 2, "overwritten in place");
    });
}

#[test]
fn a_waiter_is_told_of_a_release_at_once_and_of_nothing_else() {
    let server = server();
    block_on(async {
        let (holder, waiter) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        let seen = put(&holder, &name(), &absent, &held("w1", 1)).await;
        let lease = name();
        let mut changed = std::pin::pin!(waiter.changed(&lease, &seen));
        let told = tokio::time::timeout(Duration::from_secs(1), changed.as_mut()).await;
        assert!(told.is_err(), "nothing has happened");
        let renewed = put(&holder, &name(), &seen, &held("w2", 1)).await;
        let told = tokio::time::timeout(Duration::from_millis(500), changed.as_mut()).await;
        assert!(told.is_err(), "a renewal is no news");
        put(&holder, &name(), &renewed, &free("w3", 1)).await;
        let start = Instant::now();
        tokio::time::timeout(Duration::from_secs(30), changed).await.expect("told of the release");
        println!("told {:?} after the release was answered", start.elapsed());
    });
}

#[test]
fn a_release_between_the_read_and_the_wait_is_not_missed() {
    let server = server();
    block_on(async {
        let (holder, waiter) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        let mut version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        // First without a watch, then with one that stands already.
        for round in 2..5 {
            let seen = read(&waiter, &name()).await.version;
            put(&holder, &name(), &version, &free(&format!("f{round}"), round)).await;
            tokio::time::timeout(Duration::from_secs(30), waiter.changed(&name(), &seen)).await.expect("told");
            let found = read(&waiter, &name()).await;
            assert!(is_free(&found));
            version = put(&holder, &name(), &found.version, &held(&format!("w{round}"), round)).await;
        }
        // And one that came while nobody waited.
        let seen = read(&waiter, &name()).await.version;
        assert!(tokio::time::timeout(Duration::from_millis(200), waiter.changed(&name(), &seen)).await.is_err());
        server.delete(name().as_str());
        tokio::time::timeout(Duration::from_secs(30), waiter.changed(&name(), &seen)).await.expect("told of the deletion");
    });
}

#[test]
fn a_watch_that_ends_or_is_too_old_is_begun_anew() {
    let server = server();
    block_on(async {
        let (holder, waiter) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        let mut version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        for (round, disturb) in [Kubernetes::close_watches, Kubernetes::compact].into_iter().enumerate() {
            let seen = version.clone();
            let lease = name();
            let mut changed = std::pin::pin!(waiter.changed(&lease, &seen));
            assert!(tokio::time::timeout(Duration::from_secs(1), changed.as_mut()).await.is_err(), "it stands");
            disturb(&server);
            version = put(&holder, &name(), &version, &free(&format!("f{round}"), 1)).await;
            tokio::time::timeout(Duration::from_secs(30), changed).await.expect("told all the same");
            version = put(&holder, &name(), &version, &held(&format!("h{round}"), 1)).await;
        }
    });
}

#[test]
fn the_spec_is_what_client_go_would_have_written() {
    let server = server();
    block_on(async {
        let variables = [("POD_NAME", "beat-7f"), ("POD_UID", "u-1")];
        let store = store_of(&server.url(), false, &variables);
        let absent = read(&store, &name()).await.version;
        let first = put(&store, &name(), &absent, &record("w1", "h1", 5)).await;
        let one = spec(&server);
        assert_eq!(one["holderIdentity"], "beat-7f_h1");
        assert_eq!((&one["leaseDurationSeconds"], &one["leaseTransitions"]), (&json!(15), &json!(0)), "14.001 s, rounded up");
        assert_eq!(one["renewTime"], "2023-11-14T22:13:20.456000Z");
        assert_eq!(one["acquireTime"], "2023-11-14T22:13:20.123000Z");
        let annotations = server.lease(name().as_str()).expect("the object")["metadata"]["annotations"].clone();
        assert_eq!((&annotations["lockrun.dev/pod-name"], &annotations["lockrun.dev/pod-uid"]), (&json!("beat-7f"), &json!("u-1")));

        // Renewed: the same holder, and a time that changed, though the record's own did not.
        let second = put(&store, &name(), &first, &record("w2", "h1", 5)).await;
        let two = spec(&server);
        assert_ne!(one["renewTime"], two["renewTime"]);
        assert_eq!((&two["leaseTransitions"], &two["acquireTime"]), (&json!(0), &one["acquireTime"]));

        // Released, and taken by another: one transition.
        let third = put(&store, &name(), &second, &Record { renewed_ms: 1_700_000_001_000, ..free("w3", 5) }).await;
        let three = spec(&server);
        assert_eq!(
            (&three["holderIdentity"], &three["leaseDurationSeconds"], &three["leaseTransitions"]),
            (&json!(""), &json!(1), &json!(0))
        );
        assert_eq!(
            (&three["renewTime"], &three["acquireTime"]),
            (&json!("2023-11-14T22:13:21.000000Z"), &json!("2023-11-14T22:13:21.000000Z"))
        );
        assert_eq!(server.lease(name().as_str()).expect("the object")["metadata"]["annotations"]["lockrun.dev/pod-name"], Value::Null);
        put(&store, &name(), &third, &record("w4", "h2", 6)).await;
        assert_eq!(spec(&server)["leaseTransitions"], 1);
    });
}

#[test]
fn what_others_have_put_into_the_object_stays_there() {
    let server = server();
    block_on(async {
        let metadata = json!({
            "name": name().as_str(), "labels": {"team": "a"}, "annotations": {"theirs": "1"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": "Deployment", "name": "beat", "uid": "u"}],
        });
        let object = json!({"metadata": metadata, "spec": {"strategy": "OldestEmulationVersion", "preferredHolder": "x"}});
        server.put(&object).expect("written");
        let store = store(&server.url());
        let found = read(&store, &name()).await;
        assert!(is_free(&found), "nobody holds it");
        put(&store, &name(), &found.version, &record("w1", "h1", 5)).await;
        let object = server.lease(name().as_str()).expect("the object");
        let metadata = &object["metadata"];
        assert_eq!((&metadata["labels"]["team"], &metadata["annotations"]["theirs"]), (&json!("a"), &json!("1")));
        assert_eq!(metadata["ownerReferences"][0]["name"], "beat");
        assert_eq!((&object["spec"]["strategy"], &object["spec"]["preferredHolder"]), (&json!("OldestEmulationVersion"), &json!("x")));
    });
}

#[test]
fn metadata_that_somebody_else_changes_is_no_conflict_and_no_sign_of_life() {
    let server = server();
    block_on(async {
        let store = store(&server.url());
        let absent = read(&store, &name()).await.version;
        let version = put(&store, &name(), &absent, &record("w1", "h1", 5)).await;
        let mut object = server.lease(name().as_str()).expect("the object");
        object["metadata"]["labels"] = json!({"team": "b"});
        server.put(&object).expect("written");
        assert_eq!(read(&store_for(&server.url(), false), &name()).await.version, version);
        put(&store, &name(), &version, &record("w2", "h1", 5)).await;
        assert_eq!(server.lease(name().as_str()).expect("the object")["metadata"]["labels"]["team"], "b");
    });
}

#[test]
fn a_holder_of_another_kind_is_read_with_its_own_duration_and_our_old_annotations_are_not_believed() {
    let server = server();
    block_on(async {
        let store = store(&server.url());
        let absent = read(&store, &name()).await.version;
        put(&store, &name(), &absent, &record("w1", "h1", 41)).await;
        client_go(&server, "controller_1", 30, 1, "2026-01-02T03:04:06.000000Z");
        let found = read(&store, &name()).await;
        let theirs = found.record.clone().expect("a record");
        let held_by = theirs.holder.expect("held");
        assert_eq!((held_by.id.as_str(), held_by.to_string().as_str()), ("controller_1", "controller_1"));
        assert_eq!((theirs.ttl, theirs.token, theirs.acquired_ms), (Duration::from_secs(30), Token(41), 1_767_323_045_000));
        assert!(!is_free(&found));

        let same = read(&store, &name()).await.version;
        assert_eq!(same, found.version);
        client_go(&server, "controller_1", 30, 1, "2026-01-02T03:04:08.000000Z");
        let renewed = read(&store, &name()).await;
        assert_ne!(renewed.version, found.version, "a renewal is a sign of life");
        assert_eq!(store.swap(&name(), &found.version, &record("w2", "h2", 42)).await, Ok(Swap::Conflict));

        // Released as client-go does: free, and the token goes on from ours.
        client_go(&server, "", 1, 1, "2026-01-02T03:04:09.000000Z");
        let released = read(&store, &name()).await;
        assert_eq!((is_free(&released), released.token()), (true, Some(Token(41))));
        put(&store, &name(), &released.version, &record("w3", "h2", 42)).await;
        assert_eq!((&spec(&server)["leaseTransitions"], &spec(&server)["holderIdentity"]), (&json!(2), &json!("web-1_h2")));
        assert_eq!(read(&store, &name()).await.holder().map(|holder| holder.id.clone()), Some(HolderId::new("h2")));
    });
}

#[test]
fn whoever_says_no_duration_is_not_taken_for_gone() {
    let server = server();
    block_on(async {
        server.put(&json!({"metadata": {"name": name().as_str()}, "spec": {"holderIdentity": "by-hand"}})).expect("written");
        let found = read(&store(&server.url()), &name()).await;
        assert!(found.record.expect("a record").ttl > Duration::from_secs(86_400));
    });
}

#[test]
fn an_object_that_was_made_anew_is_another_one() {
    let server = server();
    block_on(async {
        let (store, other) = (store(&server.url()), store(&server.url()));
        let absent = read(&store, &name()).await.version;
        let version = put(&store, &name(), &absent, &record("w1", "h1", 5)).await;
        server.delete(name().as_str());
        assert_eq!(store.swap(&name(), &version, &record("w2", "h1", 5)).await, Ok(Swap::Conflict), "a PUT would create it");
        assert_eq!(read(&store, &name()).await.version, Version::Absent);
        // With the same record in it even.
        put(&other, &name(), &Version::Absent, &record("w1", "h1", 5)).await;
        assert_ne!(read(&store, &name()).await.version, version);
        assert_eq!(store.swap(&name(), &version, &record("w3", "h1", 5)).await, Ok(Swap::Conflict));
    });
}

#[test]
fn an_annotation_that_another_program_spoilt_is_an_error_and_never_free() {
    let server = server();
    block_on(async {
        let store = store(&server.url());
        let absent = read(&store, &name()).await.version;
        put(&store, &name(), &absent, &record("w1", "h1", 5)).await;
        for spoilt in ["", "{", "{}", "null", "[1]", "{\"token\": \"x\"}"] {
            let mut object = server.lease(name().as_str()).expect("the object");
            object["metadata"]["annotations"]["lockrun.dev/record"] = json!(spoilt);
            server.put(&object).expect("written");
            assert!(matches!(store.read(&name(), clock::now()).await, Err(StoreError::Refused(_))), "{spoilt}");
        }
    });
}

#[test]
fn a_write_whose_answer_is_lost_is_unknown_and_found_by_its_write() {
    let server = server();
    block_on(async {
        let store = store(&server.url());
        let absent = read(&store, &name()).await.version;
        let version = put(&store, &name(), &absent, &record("w1", "h1", 5)).await;
        for (order, landed) in [(What::CutAfter, true), (What::CutBefore, false), (What::SlowAfter(Duration::from_secs(60)), true)] {
            let before = read(&store, &name()).await.version;
            server.order("update", 1, order.clone());
            let write = format!("{order:?}");
            let swap = store.swap(&name(), &before, &record(&write, "h1", 5)).await;
            assert!(matches!(swap, Err(StoreError::Unknown(_))), "{order:?}: {swap:?}");
            let found = read(&store, &name()).await;
            assert_eq!(found.record.expect("a record").write.as_str() == write, landed, "{order:?}");
        }
        assert_ne!(read(&store, &name()).await.version, version);
    });
}

/// 429 is a pause of at most half an attempt, and no retry: a write is sent once.
#[test]
fn a_server_that_asks_for_time_gets_some_and_what_it_says_is_unknown() {
    let server = server();
    block_on(async {
        let store = store(&server.url());
        let absent = read(&store, &name()).await.version;
        server.requests();
        for (code, reason, retry_after) in [
            (429, "TooManyRequests", Some(1)),
            (429, "TooManyRequests", Some(600)),
            (429, "TooManyRequests", None),
            (500, "InternalError", None),
            (503, "ServiceUnavailable", Some(1)),
            (504, "Timeout", Some(1)),
        ] {
            server.order("create", 1, What::Status(code, reason, retry_after));
            let start = Instant::now();
            let swap = store.swap(&name(), &absent, &record("w1", "h1", 5)).await;
            assert!(matches!(&swap, Err(StoreError::Unknown(why)) if why.contains(&code.to_string())), "{code}: {swap:?}");
            let paused = start.elapsed() >= Duration::from_millis(900);
            assert_eq!(paused, code == 429 && retry_after.is_some(), "{code} {retry_after:?}: {:?}", start.elapsed());
        }
        assert_eq!(server.requests().len(), 6, "none was sent again");
    });
}

#[test]
fn what_will_not_heal_is_refused_with_what_to_do() {
    let server = server();
    block_on(async {
        server.grant(TOKEN, Some(&["get"]));
        let why = refused(store(&server.url()).swap(&name(), &Version::Absent, &held("w", 1)).await);
        assert!(
            why.contains("cannot create resource") && why.contains("bind a Role with get, list, create, update and watch on leases"),
            "{why}"
        );
        server.grant(TOKEN, None);
        let why = refused(store(&server.url()).read(&name(), clock::now()).await.map(|_| Swap::Conflict));
        assert!(why.contains("401") && why.contains("kubeconfig"), "{why}");
        server.grant(TOKEN, Some(&crate::fixture::kubernetes::ROLE));
        let elsewhere = store_for(&server.url().replace("kubernetes:default", "k8s:nowhere"), false);
        assert_eq!(read(&elsewhere, &name()).await.version, Version::Absent);
        let why = refused(elsewhere.swap(&name(), &Version::Absent, &held("w", 1)).await);
        assert!(why.starts_with("namespace nowhere: there is none"), "{why}");
    });
}

fn refused(answer: Result<Swap, StoreError>) -> String {
    match answer {
        Err(StoreError::Refused(why)) => why,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_token_in_a_file_may_be_refused_until_it_is_renewed_and_is_then_used_at_once() {
    let server = server();
    let file = server.path("token");
    std::fs::write(&file, TOKEN).expect("a token");
    let url = format!("k8s:default?kubeconfig={}", server.kubeconfig("rotating", server.port(), &json!({"tokenFile": file})).display());
    block_on(async {
        let store = store_for(&url, false);
        read(&store, &name()).await;
        server.grant(TOKEN, None);
        server.grant("the next", Some(&crate::fixture::kubernetes::ROLE));
        let refused = store.read(&name(), clock::now()).await;
        assert!(matches!(&refused, Err(StoreError::Unknown(why)) if why.contains("401")), "{refused:?}");
        std::fs::write(&file, "the next").expect("a token");
        read(&store, &name()).await;
        // As kubelet does it, before the one before has ended.
        server.grant("the third", Some(&crate::fixture::kubernetes::ROLE));
        std::fs::write(&file, "the third").expect("a token");
        server.grant("the next", None);
        assert!(store.read(&name(), clock::now()).await.is_ok());
    });
}
