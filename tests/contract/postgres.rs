//! What the machine relies on, and PostgreSQL alone does in its own way. Must never need more than its servers.

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use lockrun::clock;
use lockrun::lease::{Asked, Clocks, LeaseName, Swap, Timing, Version};
use lockrun::store::any::{Address, AnyStore};
use lockrun::store::{Purpose, Settings, Store, StoreError};

use super::fixture::Server;
use super::fixture::postgres::{PgBouncer, Postgres};
use super::{assert_of_writes_that_race_exactly_one_is_done, block_on, free, held, name, put, read};

pub fn store(url: &str) -> AnyStore {
    open(url, Purpose::Hold { lease: name(), short: false })
}

fn open(url: &str, purpose: Purpose) -> AnyStore {
    let asked = Asked { ttl: Some(Duration::from_secs(60)), ..Asked::default() };
    let timing = Timing::new(asked, Clocks::Apart).expect("a good set");
    let address = lockrun::store::postgres::Address::parse(url, &|_| None).expect("a good URL");
    AnyStore::new(Address::Postgres(address), Settings { purpose, timing, now: clock::now, wall_ms: clock::wall_ms })
}

/// One of the short tries of cron.
fn short(url: &str) -> AnyStore {
    open(url, Purpose::Hold { lease: name(), short: true })
}

#[test]
fn of_writes_that_race_exactly_one_is_done_at_once_and_through_a_pooler() {
    let server = PgBouncer::start();
    assert_of_writes_that_race_exactly_one_is_done(100, || store(&server.postgres.url()));
    server.postgres.sql("DROP TABLE lockrun_lease, lockrun_meta, lockrun_sighting");
    assert_of_writes_that_race_exactly_one_is_done(100, || store(&server.url()));
}

#[test]
fn copies_that_start_at_once_make_the_tables_once() {
    const COPIES: usize = 20;
    let server = Postgres::start();
    let barrier = Arc::new(Barrier::new(COPIES));
    let copies: Vec<_> = (0..COPIES)
        .map(|_| {
            let (url, barrier) = (server.url(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                barrier.wait();
                block_on(async { store(&url).read(&name(), clock::now()).await.map(|snapshot| snapshot.version) })
            })
        })
        .collect();
    for copy in copies {
        assert_eq!(copy.join().expect("no panic"), Ok(Version::Absent));
    }
}

#[test]
fn what_one_short_try_saw_counts_for_the_next() {
    let server = Postgres::start();
    let url = server.url();
    block_on(async {
        let holder = store(&url);
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        assert_eq!(read(&store(&url), &name()).await.seen_at, None, "who waits for ever watches by itself");
        let start = clock::now();
        assert_eq!(read(&short(&url), &name()).await.seen_at, None);
        let noted = clock::now();
        let seen_at = read(&short(&url), &name()).await.seen_at.expect("noted by the first");
        assert!(start < seen_at && seen_at <= noted, "after the first read, not before it");
        assert_eq!(read(&open(&url, Purpose::Look), &name()).await.seen_at, None, "to look notes nothing");
        put(&holder, &name(), &version, &held("w2", 1)).await;
        assert_eq!(read(&short(&url), &name()).await.seen_at, None, "another version");
        server.sql("UPDATE lockrun_sighting SET seen_boot_ns = 9223372036854775807");
        assert_eq!(read(&short(&url), &name()).await.seen_at, None, "a sighting that is still to come");
        assert!(read(&short(&url), &name()).await.seen_at.is_some(), "and it was put right");
    });
}

/// How long `changed` takes to tell of a release that is written when `wait` is over, or before, if it is `None`.
async fn told_of_a_release(url: &str, wait: Option<Duration>) -> Duration {
    let (holder, waiter) = (store(url), store(url));
    let lease = LeaseName::new(format!("{}/{wait:?}", "long ".repeat(40)));
    let absent = read(&holder, &lease).await.version;
    let version = put(&holder, &lease, &absent, &held("w1", 1)).await;
    assert_eq!(read(&waiter, &lease).await.version, version);
    if wait.is_none() {
        put(&holder, &lease, &version, &free("w2", 1)).await;
    }
    let mut released = Instant::now();
    let mut changed = std::pin::pin!(waiter.changed(&lease, &version));
    if let Some(wait) = wait {
        let early = tokio::time::timeout(wait, &mut changed).await;
        assert!(early.is_err(), "nothing changed yet");
        put(&holder, &lease, &version, &free("w2", 1)).await;
        released = Instant::now();
    }
    changed.await;
    released.elapsed()
}

#[test]
fn who_waits_is_told_of_a_release_at_once_also_of_one_that_fell_between_read_and_wait() {
    let server = Postgres::start();
    block_on(async {
        let told = told_of_a_release(&server.url(), Some(Duration::from_secs(3))).await;
        assert!(told < Duration::from_millis(500), "{told:?}: by notification, not by looking once a second");
        told_of_a_release(&server.url(), None).await;
    });
}

#[test]
fn through_a_pooler_that_swallows_notifications_who_waits_looks_once_a_second() {
    let server = PgBouncer::start();
    block_on(async {
        let told = told_of_a_release(&server.url(), Some(Duration::from_secs(2))).await;
        assert!(told < Duration::from_secs(5), "{told:?}");
        told_of_a_release(&server.url(), None).await;
    });
}

#[test]
fn a_pooler_that_gives_each_client_its_own_connection_passes_notifications_on() {
    let server = PgBouncer::before(Postgres::start(), "pool_mode = session\ndefault_pool_size = 10");
    block_on(async {
        let told = told_of_a_release(&server.url(), Some(Duration::from_secs(3))).await;
        assert!(told < Duration::from_millis(500), "{told:?}");
    });
}

#[test]
fn a_renewal_wakes_nobody() {
    let server = Postgres::start();
    block_on(async {
        let (holder, waiter) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        let version = put(&holder, &name(), &absent, &held("w1", 1)).await;
        let lease = name();
        let mut changed = std::pin::pin!(waiter.changed(&lease, &version));
        let early = tokio::time::timeout(Duration::from_secs(1), &mut changed).await;
        assert!(early.is_err());
        let version = put(&holder, &name(), &version, &held("w2", 1)).await;
        let woken = tokio::time::timeout(Duration::from_secs(1), &mut changed).await;
        assert!(woken.is_err());
        put(&holder, &name(), &version, &free("w3", 1)).await;
        changed.await;
    });
}

#[test]
fn a_store_whose_tables_are_dropped_or_emptied_has_no_record_and_is_never_written_as_if_nothing_were() {
    let server = Postgres::start();
    block_on(async {
        for loss in ["DELETE FROM lockrun_lease", "DROP TABLE lockrun_lease", "DROP TABLE lockrun_lease, lockrun_meta, lockrun_sighting"] {
            let holder = store(&server.url());
            let before = read(&holder, &name()).await.version;
            let version = put(&holder, &name(), &before, &held("w1", 1)).await;
            server.sql(loss);
            assert_eq!(holder.swap(&name(), &version, &held("w2", 1)).await, Ok(Swap::Conflict), "{loss}");
            let after = read(&holder, &name()).await;
            assert_eq!((after.record, after.version), (None, Version::Absent), "{loss}");
            // The next start makes them anew, also where only some are gone.
            server.sql("DROP TABLE IF EXISTS lockrun_meta");
            let next = store(&server.url());
            let absent = read(&next, &name()).await.version;
            let version = put(&next, &name(), &absent, &held("w3", 1)).await;
            put(&next, &name(), &version, &free("w4", 1)).await;
            server.sql("DELETE FROM lockrun_lease");
        }
    });
}

#[test]
fn to_look_makes_nothing() {
    let server = Postgres::start();
    block_on(async {
        let viewer = open(&server.url(), Purpose::Look);
        assert_eq!(read(&viewer, &name()).await.record, None);
        assert_eq!(viewer.list(clock::now()).await, Ok(vec![]));
        viewer.check().await.expect("usable");
    });
    assert_eq!(server.sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'lockrun%'"), "0");
}

#[test]
fn a_row_that_another_program_spoilt_is_an_error_that_names_it() {
    let server = Postgres::start();
    block_on(async {
        let holder = store(&server.url());
        let absent = read(&holder, &name()).await.version;
        put(&holder, &name(), &absent, &held("w1", 1)).await;
        for (spoil, what) in [("ttl_ms = 0", "ttl_ms"), ("ttl_ms = -1", "ttl_ms"), ("pid = -1", "pid"), ("pid = 5000000000", "pid")] {
            server.sql(&format!("BEGIN; UPDATE lockrun_lease SET {spoil}; COMMIT"));
            let Err(StoreError::Refused(why)) = store(&server.url()).read(&name(), clock::now()).await else { panic!("{spoil}: read") };
            assert!(why.contains(what) && why.contains("nightly.backup"), "{why}");
            server.sql("UPDATE lockrun_lease SET ttl_ms = 60000, pid = 1");
        }
        server.sql("UPDATE lockrun_lease SET command = 'no JSON', hostname = NULL, pid = NULL, instance = NULL");
        let holder = read(&holder, &name()).await.holder().cloned().expect("held");
        assert_eq!((holder.command, holder.pid), (vec!["no JSON".to_string()], 0));
    });
}

#[test]
fn a_servers_own_settings_change_nothing() {
    let settings = ["standard_conforming_strings=off", "default_transaction_isolation=serializable", "synchronous_commit=off"];
    let settings = [&settings[..], &["bytea_output=escape", "datestyle=german", "client_min_messages=debug5"]].concat();
    let server = Postgres::with(&settings);
    block_on(async {
        super::a_record_comes_back_exactly(store(&server.url())).await;
        server.sql("DELETE FROM lockrun_lease");
        super::names_do_not_interfere_and_list_shows_all(store(&server.url())).await;
    });
    assert_of_writes_that_race_exactly_one_is_done(100, || store(&server.url()));
}

/// After a fail-over nobody would know of it: two would run.
#[test]
fn a_claim_that_the_standbys_may_not_have_is_not_found_as_ours_until_they_have_it() {
    let server = Postgres::start();
    let wait_for_standbys = |names: &str| {
        server.sql(&format!("ALTER SYSTEM SET synchronous_standby_names = '{names}'"));
        server.sql("SELECT pg_reload_conf()");
        while server.sql("SHOW synchronous_standby_names") != names {}
    };
    block_on(async {
        let (holder, other) = (store(&server.url()), store(&server.url()));
        let absent = read(&holder, &name()).await.version;
        wait_for_standbys("one");
        let claim = holder.swap(&name(), &absent, &held("w1", 1)).await;
        assert!(matches!(claim, Err(StoreError::Unknown(_))), "{claim:?}");
        // As a restart of the server does.
        server.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'");
        while read(&other, &name()).await.record.is_none() {}
        for _ in 0..2 {
            let found = holder.read(&name(), clock::now()).await;
            assert!(matches!(found, Err(StoreError::Unknown(_))), "{found:?}");
        }
        wait_for_standbys("");
        while holder.read(&name(), clock::now()).await.is_err() {}
        assert_eq!(read(&holder, &name()).await.holder(), held("w1", 1).holder.as_ref());
    });
}

#[test]
fn tables_of_a_newer_lockrun_are_left_alone() {
    let server = Postgres::start();
    block_on(async { read(&store(&server.url()), &name()).await });
    server.sql("UPDATE lockrun_meta SET value = 2");
    let refused = block_on(async { store(&server.url()).read(&name(), clock::now()).await });
    assert!(matches!(&refused, Err(StoreError::Refused(why)) if why.contains("newer lockrun")), "{refused:?}");
}
