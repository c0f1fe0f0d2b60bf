//! What only Redis has: replicas that must confirm, a server that may forget, a message for each release.

use std::time::Duration;

use lockrun::clock;
use lockrun::lease::{Asked, Clocks, LeaseName, Swap, Timing, Version};
use lockrun::store::redis::{Address, Redis};
use lockrun::store::server::ServerStore;
use lockrun::store::{Purpose, Settings, Store, StoreError};

use super::fixture::redis::Redis as Server;
use super::fixture::{self, Server as _};
use super::{assert_of_writes_that_race_exactly_one_is_done, block_on, free, held, is_free, name, put, read};

impl super::Names for ServerStore<Redis> {}

pub fn store(server: &Server) -> ServerStore<Redis> {
    store_at(&server.url(), false)
}

/// One attempt is 2.5 s, as by default.
fn store_at(url: &str, short: bool) -> ServerStore<Redis> {
    let asked = Asked { ttl: Some(Duration::from_secs(60)), ..Asked::default() };
    let settings = Settings {
        purpose: Purpose::Hold { lease: name(), short },
        timing: Timing::new(asked, Clocks::Apart).expect("a good set"),
        now: clock::now,
        wall_ms: clock::wall_ms,
    };
    ServerStore::new(Address::parse(url, &|_| None).expect("a good URL"), settings)
}

/// Waits until `changed` returns; it fails if it does not.
async fn told(store: &ServerStore<Redis>, seen: &Version) {
    let lease = name();
    tokio::time::timeout(fixture::PATIENCE, store.changed(&lease, seen)).await.expect("told");
}

/// Whether it is told within a while in which nothing happens.
async fn told_of_nothing(store: &ServerStore<Redis>, seen: &Version) -> bool {
    let lease = name();
    tokio::time::timeout(Duration::from_millis(200), store.changed(&lease, seen)).await.is_ok()
}

#[test]
fn of_writes_that_race_exactly_one_is_done() {
    let server = Server::start();
    assert_of_writes_that_race_exactly_one_is_done(200, || store(&server));
}

#[test]
fn what_one_try_saw_counts_for_the_next() {
    let server = Server::start();
    block_on(async {
        let holder = store(&server);
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        let start = clock::now();
        let first = read(&store_at(&server.url(), true), &name()).await;
        assert_eq!((first.seen_at, is_free(&first)), (None, false));
        let noted = clock::now();
        let second = read(&store_at(&server.url(), true), &name()).await;
        let seen_at = second.seen_at.expect("noted by the first");
        assert!(start < seen_at && seen_at <= noted, "after the first read, not before it");
        put(&holder, &name(), &version, &held("w2", 1)).await;
        assert_eq!(read(&store_at(&server.url(), true), &name()).await.seen_at, None, "another version");
        assert_eq!(read(&store_at(&server.url(), false), &name()).await.seen_at, None, "who waits for ever watches by itself");
        let sightings = server.ask(&["--raw", "KEYS", "lockrun:sighting:*"]);
        let expiry: i64 = server.ask(&["--raw", "TTL", sightings.trim()]).trim().parse().expect("seconds");
        assert!(expiry > 86_400, "kept, but not for ever: {expiry}");
        assert_eq!(server.ask(&["--raw", "TTL", "lockrun:lease:nightly.backup"]).trim(), "-1", "a record never runs out");
    });
}

#[test]
fn a_release_is_told_at_once_and_so_is_one_that_fell_between_read_and_wait() {
    let server = Server::start();
    block_on(async {
        let (holder, waiter) = (store(&server), store(&server));
        let absent = read(&holder, &name()).await.version;
        let mut version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        // Once it is subscribed it lets the caller look: before that nobody told.
        told(&waiter, &version).await;
        assert!(!told_of_nothing(&waiter, &version).await, "nothing happened");
        version = put(&holder, &name(), &version, &held("w2", 1)).await;
        assert!(!told_of_nothing(&waiter, &version).await, "a renewal wakes nobody");

        let (lease, seen) = (name(), version.clone());
        let mut waiting = std::pin::pin!(waiter.changed(&lease, &seen));
        assert!(tokio::time::timeout(Duration::from_millis(50), waiting.as_mut()).await.is_err());
        version = put(&holder, &name(), &version, &free("w3", 1)).await;
        tokio::time::timeout(fixture::PATIENCE, waiting.as_mut()).await.expect("told while it waits");

        let seen = put(&holder, &name(), &version, &held("w4", 2)).await;
        put(&holder, &name(), &seen, &free("w5", 2)).await; // nobody waits
        told(&waiter, &seen).await;
        assert!(!told_of_nothing(&waiter, &seen).await, "told once");
    });
}

#[test]
fn a_wait_goes_on_over_a_restart_of_the_server() {
    let mut server = Server::start();
    block_on(async {
        let (holder, waiter) = (store(&server), store(&server));
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        told(&waiter, &version).await;
        server.stop();
        server.start_again();
        told(&waiter, &version).await; // subscribed anew
        let version = read(&waiter, &name()).await.version;
        put(&store(&server), &name(), &version, &free("w2", 1)).await;
        told(&waiter, &version).await;
    });
}

#[test]
fn a_server_that_forgot_everything_has_another_version_for_all() {
    let mut server = Server::without_persistence();
    block_on(async {
        let holder = store(&server);
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 5)).await;
        server.stop();
        server.start_again();
        let swap = holder.swap(&name(), &version, &held("w2", 5)).await;
        assert!(matches!(swap, Ok(Swap::Conflict) | Err(StoreError::Unknown(_))), "{swap:?}");
        assert_eq!(read(&holder, &name()).await.record, None);
        assert_eq!(holder.swap(&name(), &version, &held("w3", 5)).await, Ok(Swap::Conflict));
    });
}

#[test]
fn a_write_that_too_few_replicas_have_is_unknown_also_when_it_is_read_again() {
    let server = Server::start();
    let replica = server.replica();
    block_on(async {
        let holder = store(&server);
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        assert!(replica.ask(&["HGET", "lockrun:lease:nightly.backup", "write"]).contains("w1"), "it was waited for");

        replica.freeze();
        let swap = holder.swap(&name(), &version, &held("w2", 1)).await;
        assert!(matches!(&swap, Err(StoreError::Unknown(why)) if why.contains("0 of the 1 replicas")), "{swap:?}");
        let again = holder.read(&name(), clock::now()).await;
        assert!(matches!(&again, Err(StoreError::Unknown(why)) if why.contains("0 of the 1 replicas")), "{again:?}");
        let other = store(&server);
        assert_eq!(read(&other, &name()).await.token().map(|token| token.0), Some(1), "others may look");

        replica.thaw();
        let seen = read(&holder, &name()).await;
        assert_eq!(seen.version, Version::At("w2".into()), "it had landed, and now is confirmed");
        put(&holder, &name(), &seen.version, &held("w3", 1)).await;
    });
}

#[test]
fn a_release_waits_for_no_replica_and_wait_says_how_many_there_must_be() {
    let server = Server::start();
    block_on(async {
        let strict = store_at(&format!("{}?wait=1", server.url()), false);
        let absent = read(&strict, &name()).await.version;
        let swap = strict.swap(&name(), &absent, &held("w1", 1)).await;
        assert!(matches!(&swap, Err(StoreError::Unknown(why)) if why.contains("0 of the 1 replicas")), "{swap:?}");
        let replica = server.replica();
        let seen = read(&strict, &name()).await;
        replica.freeze();
        put(&strict, &name(), &seen.version, &free("w2", 1)).await;
        let seen = read(&strict, &name()).await;
        put(&store_at(&format!("{}?wait=0", server.url()), false), &name(), &seen.version, &held("w3", 2)).await;
        replica.thaw();
    });
}

#[test]
fn a_replica_is_no_place_to_hold_and_its_primary_is_again() {
    let server = Server::start();
    let replica = server.replica();
    block_on(async {
        let misled = store(&replica);
        let read_there = misled.read(&name(), clock::now()).await;
        assert!(matches!(&read_there, Err(StoreError::Unknown(why)) if why.contains("replica")), "{read_there:?}");
        replica.ask(&["REPLICAOF", "NO", "ONE"]);
        let absent = read(&misled, &name()).await.version;
        let version = put(&misled, &name(), &absent, &held("w1", 1)).await;
        // Demoted under an open connection: what it shows may be old.
        replica.ask(&["REPLICAOF", "127.0.0.1", &server.port().to_string()]);
        let read_there = misled.read(&name(), clock::now()).await;
        assert!(matches!(&read_there, Err(StoreError::Unknown(_))), "{read_there:?}");
        let swap = misled.swap(&name(), &version, &held("w2", 1)).await;
        assert!(matches!(&swap, Err(StoreError::Unknown(why)) if why.contains("replica")), "{swap:?}");
    });
}

#[test]
fn what_another_program_wrote_is_refused_and_never_free() {
    let server = Server::start();
    let key = "lockrun:lease:nightly.backup";
    let good = r#"{"write":"w","token":1,"holder":null,"ttl_ms":1,"acquired_ms":1,"renewed_ms":1}"#;
    for spoilt in [
        &["SET", key, "x"][..],
        &["HSET", key, "write", "w"],
        &["HSET", key, "record", good],
        &["HSET", key, "write", "another", "record", good],
        &["HSET", key, "write", "", "record", good],
        &["HSET", key, "write", "w", "record", "{"],
        &["HSET", key, "write", "w", "record", "null"],
    ] {
        server.ask(&["DEL", key]);
        server.ask(spoilt);
        block_on(async {
            let store = store(&server);
            let seen = store.read(&name(), clock::now()).await;
            assert!(matches!(seen, Err(StoreError::Refused(_))), "{spoilt:?}: {seen:?}");
            let swap = store.swap(&name(), &Version::Absent, &held("w1", 1)).await;
            assert!(matches!(swap, Ok(Swap::Conflict) | Err(StoreError::Refused(_))), "{spoilt:?}: {swap:?}");
            let other = store.read(&LeaseName::new("another lease"), clock::now()).await;
            assert_eq!(other.map(|snapshot| snapshot.record), Ok(None), "{spoilt:?}: the store goes on");
        });
    }
}

#[test]
fn databases_of_one_server_do_not_interfere() {
    let server = Server::start();
    block_on(async {
        let (one, other) = (store_at(&format!("{}/1", server.url()), false), store(&server));
        let absent = read(&one, &name()).await.version;
        put(&one, &name(), &absent, &held("w1", 1)).await;
        assert_eq!(read(&other, &name()).await.record, None);
        assert_eq!(other.list(clock::now()).await.expect("readable").len(), 0);
        assert_eq!(one.list(clock::now()).await.expect("readable").len(), 1);
    });
}
