//! What the contract is on etcd beside what it is everywhere: sightings, wake-ups, and clusters that were rebuilt or compacted.

use std::future::Future;
use std::task::Poll;
use std::time::Duration;

use lockrun::clock;
use lockrun::lease::{Asked, Clocks, LeaseName, Record, Swap, Timing, Token, Version};
use lockrun::store::any::{Address, AnyStore};
use lockrun::store::{Purpose, Settings, Store, StoreError, etcd};

use crate::fixture::Server;
use crate::fixture::etcd::{Etcd, said};
use crate::{assert_of_writes_that_race_exactly_one_is_done, block_on, free, held, is_free, name, put, read};

pub fn store(url: &str) -> AnyStore {
    open(url, Purpose::Hold { lease: name(), short: false })
}

/// As `-n` opens it.
fn short(url: &str) -> AnyStore {
    open(url, Purpose::Hold { lease: name(), short: true })
}

fn open(url: &str, purpose: Purpose) -> AnyStore {
    let address = etcd::Address::parse(url, &|_| None).expect("a URL");
    let timing = Timing::new(Asked { ttl: Some(Duration::from_secs(60)), ..Asked::default() }, Clocks::Apart).expect("a good set");
    AnyStore::new(Address::Etcd(address), Settings { purpose, timing, now: clock::now, wall_ms: clock::wall_ms })
}

/// Whether it comes by itself; it must not take until the machine's own next look.
async fn told(changed: impl Future<Output = ()>) {
    tokio::time::timeout(Duration::from_secs(60), changed).await.expect("told of the change");
}

/// Lets `changed` get as far as to wait, and gives up.
async fn give_up_after_a_while(store: &AnyStore, lease: &LeaseName, seen: &Version) {
    let waited = tokio::time::timeout(Duration::from_millis(300), store.changed(lease, seen)).await;
    assert!(waited.is_err(), "nothing has changed");
}

#[test]
fn of_writes_that_race_exactly_one_is_done() {
    let server = Etcd::start();
    assert_of_writes_that_race_exactly_one_is_done(100, || store(&server.url()));
}

#[test]
fn what_one_short_try_saw_counts_for_the_next() {
    let server = Etcd::start();
    block_on(async {
        let holder = store(&server.url());
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        let start = clock::now();
        let first = read(&short(&server.url()), &name()).await;
        assert_eq!((first.seen_at, is_free(&first)), (None, false));
        let noted = clock::now();
        let second = read(&short(&server.url()), &name()).await;
        let seen_at = second.seen_at.expect("noted by the first");
        assert!(start < seen_at && seen_at <= noted, "after the first read, not before it");
        let version = put(&holder, &name(), &version, &held("w2", 1)).await;
        assert_eq!(read(&short(&server.url()), &name()).await.seen_at, None, "another version");
        assert!(read(&short(&server.url()), &name()).await.seen_at.expect("noted anew") > seen_at);
        assert_eq!(read(&holder, &name()).await.seen_at, None, "whoever waits for ever watches by itself");
        put(&holder, &name(), &version, &free("w3", 1)).await;
        assert_eq!(read(&short(&server.url()), &name()).await.seen_at, None, "there is nobody to watch");
        let leases = holder.list(clock::now()).await.expect("readable");
        assert_eq!(leases.len(), 1, "a sighting is no lease");
    });
    let granted = said(&mut server.etcdctl(&["lease", "list"]));
    assert!(granted.starts_with("found 1 leases"), "of its kind one for all versions: {granted}");
}

#[test]
fn a_release_is_told_at_once_also_when_nobody_was_waiting() {
    let server = Etcd::start();
    block_on(async {
        let (holder, waiter) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;

        // Between read and wait, before there was any watch.
        let seen = read(&waiter, &name()).await.version;
        let version = put(&holder, &name(), &version, &free("w2", 1)).await;
        told(waiter.changed(&name(), &seen)).await;

        // While it waits.
        let version = put(&holder, &name(), &version, &held("w3", 2)).await;
        let seen = read(&waiter, &name()).await.version;
        let lease = name();
        let mut changed = std::pin::pin!(waiter.changed(&lease, &seen));
        tokio::time::timeout(Duration::from_millis(300), changed.as_mut()).await.expect_err("nothing has changed");
        let version = put(&holder, &name(), &version, &free("w4", 2)).await;
        told(changed).await;

        // A wait that was given up, and a release before the next one.
        let version = put(&holder, &name(), &version, &held("w5", 3)).await;
        let seen = read(&waiter, &name()).await.version;
        give_up_after_a_while(&waiter, &name(), &seen).await;
        let version = put(&holder, &name(), &version, &free("w6", 3)).await;
        told(waiter.changed(&name(), &seen)).await;
        assert_eq!(read(&waiter, &name()).await.version, version);
    });
}

#[test]
fn a_renewal_wakes_nobody_up() {
    let server = Etcd::start();
    block_on(async {
        let (holder, waiter) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        let mut version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        let seen = read(&waiter, &name()).await.version;
        let lease = name();
        let mut changed = std::pin::pin!(waiter.changed(&lease, &seen));
        tokio::time::timeout(Duration::from_millis(300), changed.as_mut()).await.expect_err("nothing has changed");
        for beat in 0..3 {
            version = put(&holder, &name(), &version, &held(&format!("beat {beat}"), 1)).await;
            std::future::poll_fn(|context| Poll::Ready(changed.as_mut().poll(context).is_ready())).await;
            tokio::time::timeout(Duration::from_millis(100), changed.as_mut()).await.expect_err("only a renewal");
        }
        put(&holder, &name(), &version, &free("freed", 1)).await;
        told(changed).await;
    });
}

#[test]
fn a_watch_outlives_a_compaction() {
    let server = Etcd::start();
    block_on(async {
        let (holder, waiter) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        let seen = read(&waiter, &name()).await.version;
        let status = said(&mut server.etcdctl(&["put", "other", "x", "-w", "json"]));
        for _ in 0..3 {
            said(&mut server.etcdctl(&["put", "other", "x"]));
        }
        let json: serde_json::Value = serde_json::from_str(&status).expect("JSON");
        said(&mut server.etcdctl(&["compaction", &json["header"]["revision"].to_string()]));
        give_up_after_a_while(&waiter, &name(), &seen).await;
        put(&holder, &name(), &version, &free("w2", 1)).await;
        told(waiter.changed(&name(), &seen)).await;
    });
}

#[test]
fn a_cluster_that_was_rebuilt_is_not_taken_for_the_old_one() {
    let mut server = Etcd::start();
    let url = server.url();
    block_on(async {
        let holder = store(&url);
        let absent = read(&holder, &name()).await.version;
        let ours = held("w1", 1);
        let version = put(&holder, &name(), &absent, &ours).await;
        server.start_empty();
        // The same revision, another's record.
        let other = store(&url);
        let absent = read(&other, &name()).await.version;
        let theirs = put(&other, &name(), &absent, &held("w2", 9)).await;
        let revision = |version: &Version| match version {
            Version::At(text) => text.split(' ').next().map(str::to_string),
            Version::Absent => None,
        };
        assert_eq!(revision(&version), revision(&theirs), "or this shows nothing");
        let swap = swap_until_answered(&holder, &version, &Record { token: Token(1), ..held("w3", 1) }).await;
        assert_eq!(swap, Swap::Conflict);
        told(holder.changed(&name(), &version)).await;
        assert_eq!(read(&holder, &name()).await.token(), Some(Token(9)));
    });
}

/// The first try after a restart finds the old connection broken.
async fn swap_until_answered(store: &AnyStore, version: &Version, record: &Record) -> Swap {
    loop {
        match store.swap(&name(), version, record).await {
            Ok(swap) => return swap,
            Err(StoreError::Unknown(_)) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_list_of_many_leases_is_whole() {
    let server = Etcd::start();
    block_on(async {
        let store = store(&server.url());
        for index in 0..450 {
            put(&store, &LeaseName::new(format!("many/{index}")), &Version::Absent, &held("w", index)).await;
        }
        let mut tokens: Vec<i64> = store
            .list(clock::now())
            .await
            .expect("readable")
            .iter()
            .filter_map(|(_, snapshot)| snapshot.token())
            .map(|token| token.0)
            .collect();
        tokens.sort_unstable();
        assert_eq!(tokens, (0..450).collect::<Vec<_>>());
    });
}

#[test]
fn a_record_that_another_program_wrote_is_refused_and_never_free() {
    let server = Etcd::start();
    for strange in ["", "null", "{}", "not json", r#"{"write":"w"}"#, "\u{fffd}"] {
        said(&mut server.etcdctl(&["put", &format!("lockrun/{}", name()), strange]));
        block_on(async {
            let store = store(&server.url());
            let snapshot = store.read(&name(), clock::now()).await;
            assert!(matches!(&snapshot, Err(StoreError::Refused(_))), "{strange}: {snapshot:?}");
            let listed = store.list(clock::now()).await;
            assert!(matches!(&listed, Err(StoreError::Refused(why)) if why.contains(name().as_str())), "{strange}: {listed:?}");
            let swap = store.swap(&name(), &Version::Absent, &held("w", 1)).await;
            assert_eq!(swap, Ok(Swap::Conflict), "{strange}");
        });
    }
}

#[test]
fn check_warns_of_a_history_that_was_never_compacted() {
    let server = Etcd::start();
    block_on(async {
        let store = store(&server.url());
        let warned = async || store.check().await.expect("it answers").warnings.iter().any(|why| why.contains("never compacted"));
        assert!(!warned().await, "it is new");
        let mut version = Version::Absent;
        for beat in 0..5_001 {
            version = put(&store, &name(), &version, &free(&beat.to_string(), 1)).await;
        }
        assert!(warned().await);
        said(&mut server.etcdctl(&["compaction", "4000"]));
        assert!(!warned().await);
    });
}
