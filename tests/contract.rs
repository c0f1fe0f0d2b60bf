//! One contract for every store, and beside it what only SQLite has. Must never know how a store does it: what the machine
//! relies on is here, the rest is not.

#[path = "fixture/mod.rs"]
mod fixture;
#[cfg(feature = "etcd")]
#[path = "contract/etcd.rs"]
mod of_etcd;
#[cfg(feature = "kubernetes")]
#[path = "contract/kubernetes.rs"]
mod of_kubernetes;
#[cfg(feature = "postgres")]
#[path = "contract/postgres.rs"]
mod of_postgres;
#[cfg(feature = "redis")]
#[path = "contract/redis.rs"]
mod of_redis;

use std::path::Path;
use std::sync::{Arc, Barrier};
use std::task::Poll;
use std::time::Duration;

use lockrun::clock;
use lockrun::lease::claim::{self, Verdict};
use lockrun::lease::{
    Asked, Clocks, Evidence, Finding, Holder, HolderId, KernelLock, LeaseName, Moment, Record, Snapshot, Swap, Timing, Token, Version,
    WriteId,
};
use lockrun::store::memory::MemoryStore;
use lockrun::store::sqlite::{Open, Settings, SqliteStore};
use lockrun::store::{Store, StoreError};
use rusqlite::Connection;
use tempfile::TempDir;

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime").block_on(work)
}

fn name() -> LeaseName {
    LeaseName::new("nightly.backup")
}

fn held(write: &str, token: i64) -> Record {
    let command = vec!["süß".to_string(), "a\"b\\c\nd".to_string(), "日本 🦀".to_string(), String::new()];
    let instance = Some("pod-é".to_string());
    let holder = Holder { id: HolderId::new("id-1"), instance, hostname: "häuschen".into(), pid: 4_194_304, command };
    Record {
        write: WriteId::new(write),
        token: Token(token),
        holder: Some(holder),
        ttl: Duration::from_millis(60_123),
        asked_at: clock::now(),
        acquired_ms: 1_700_000_000_123,
        renewed_ms: 1_700_000_000_456,
        stopping: true,
    }
}

fn free(write: &str, token: i64) -> Record {
    Record { holder: None, stopping: false, ..held(write, token) }
}

/// A store need not keep the instant by which it says what is left.
fn kept(record: &Record) -> Record {
    Record { asked_at: Moment::default(), ..record.clone() }
}

async fn read(store: &impl Store, name: &LeaseName) -> Snapshot {
    store.read(name, clock::now()).await.expect("readable")
}

/// Writes, and returns the new version.
async fn put(store: &impl Store, name: &LeaseName, expect: &Version, record: &Record) -> Version {
    match store.swap(name, expect, record).await {
        Ok(Swap::Done(version)) => version,
        other => panic!("not written: {other:?}"),
    }
}

fn is_free(snapshot: &Snapshot) -> bool {
    claim::judge(snapshot, clock::now(), None, clock::now()) == Verdict::Free
}

/// Names that are like each other, and that this store takes.
trait Names {
    const NAMES: [&str; 7] = ["a", "A", "a/b", "a b", "", "ä", "a%"];
}

impl Names for MemoryStore {}
impl Names for SqliteStore {}
#[cfg(feature = "tls")]
impl Names for lockrun::store::any::AnyStore {}

// What every store must do

async fn the_first_write_is_on_nothing_and_only_one(store: impl Store) {
    let before = read(&store, &name()).await;
    assert_eq!((&before.record, before.finding, is_free(&before)), (&None, Finding::Plain, true));
    let first = held("w1", 1);
    let version = put(&store, &name(), &before.version, &first).await;
    assert_eq!(store.swap(&name(), &before.version, &held("w2", 2)).await, Ok(Swap::Conflict));
    let after = read(&store, &name()).await;
    assert_eq!((after.version, after.record.as_ref().map(kept)), (version, Some(kept(&first))), "a conflict writes nothing");
}

async fn a_swap_needs_the_version_that_stands_now(store: impl Store) {
    let absent = read(&store, &name()).await.version;
    let one = put(&store, &name(), &absent, &held("w1", 1)).await;
    let two = put(&store, &name(), &one, &held("w2", 1)).await;
    assert_ne!(one, two);
    for stale in [&absent, &one, &Version::At("never".into())] {
        assert_eq!(store.swap(&name(), stale, &held("w3", 9)).await, Ok(Swap::Conflict), "{stale:?}");
    }
    let now = read(&store, &name()).await;
    assert_eq!((now.token(), now.version), (Some(Token(1)), two.clone()));
    put(&store, &name(), &two, &held("w4", 1)).await;
}

async fn a_record_comes_back_exactly(store: impl Store) {
    let mut version = read(&store, &name()).await.version;
    let plain = Holder { id: HolderId::new("x"), instance: None, hostname: String::new(), pid: 0, command: vec![] };
    let records = [
        held("w1", 1),
        held("w2", i64::MAX),
        Record { holder: Some(plain), stopping: false, ..held("w3", 7) },
        Record { ttl: Duration::from_secs(366 * 86_400), ..held("w4", 7) },
        free("w5", 7),
        free("w6", i64::MAX),
    ];
    for record in records {
        version = put(&store, &name(), &version, &record).await;
        let snapshot = read(&store, &name()).await;
        assert_eq!((snapshot.version, snapshot.record.as_ref().map(kept)), (version.clone(), Some(kept(&record))));
    }
}

async fn a_free_record_is_free_and_keeps_its_token(store: impl Store) {
    let absent = read(&store, &name()).await.version;
    let version = put(&store, &name(), &absent, &held("w1", 41)).await;
    put(&store, &name(), &version, &free("w2", 41)).await;
    let snapshot = read(&store, &name()).await;
    assert_eq!((snapshot.token(), snapshot.holder(), is_free(&snapshot)), (Some(Token(41)), None, true));
}

async fn names_do_not_interfere_and_list_shows_all<S: Store + Names>(store: S) {
    assert_eq!(store.list(clock::now()).await.expect("readable").len(), 0);
    let names = S::NAMES.map(LeaseName::new);
    let mut records = vec![];
    for (index, name) in names.iter().enumerate() {
        let absent = read(&store, name).await;
        assert_eq!(absent.record, None, "{name}");
        let record = held(&format!("w{index}"), index as i64);
        put(&store, name, &absent.version, &record).await;
        records.push((name.clone(), kept(&record)));
    }
    let listed = store.list(clock::now()).await.expect("readable");
    let mut listed: Vec<_> = listed.into_iter().map(|(name, snapshot)| (name, kept(&snapshot.record.expect("a record")))).collect();
    listed.sort_by(|one, other| one.0.cmp(&other.0));
    records.sort_by(|one, other| one.0.cmp(&other.0));
    assert_eq!(listed, records);
}

async fn a_fresh_record_is_never_free(store: impl Store) {
    let mut version = read(&store, &name()).await.version;
    for ttl in [Duration::from_secs(2), Duration::from_secs(366 * 86_400)] {
        let record = Record { ttl, ..held(&format!("{ttl:?}"), 1) };
        version = put(&store, &name(), &version, &record).await;
        assert!(!is_free(&read(&store, &name()).await), "{ttl:?}");
    }
}

async fn waiting_for_a_change_may_be_given_up_at_any_time(store: impl Store) {
    let absent = read(&store, &name()).await.version;
    let version = put(&store, &name(), &absent, &held("w1", 1)).await;
    for _ in 0..3 {
        let lease = name();
        let mut changed = std::pin::pin!(store.changed(&lease, &version));
        // Too early is allowed.
        std::future::poll_fn(|context| Poll::Ready(changed.as_mut().poll(context).is_ready())).await;
    }
    let version = put(&store, &name(), &version, &held("w2", 1)).await;
    assert_eq!(read(&store, &name()).await.version, version);
}

/// Several threads, each with a store of its own from `open`, read the same version and write on it, again and again.
fn assert_of_writes_that_race_exactly_one_is_done<S: Store>(rounds: usize, open: impl Fn() -> S + Sync) {
    const RACERS: usize = 3;
    block_on(async { read(&open(), &name()).await });
    let barrier = Barrier::new(RACERS);
    let race = &|racer: usize| {
        let store = open();
        block_on(async {
            let mut won = vec![];
            for round in 0..rounds {
                let before = read(&store, &name()).await;
                barrier.wait(); // all have read the same version
                let record = held(&format!("{racer}/{round}"), round as i64 + 1);
                match store.swap(&name(), &before.version, &record).await.expect("answered") {
                    Swap::Done(_) => won.push(round),
                    Swap::Conflict => {}
                }
                barrier.wait();
            }
            won
        })
    };
    let mut won: Vec<usize> = std::thread::scope(|scope| {
        let racers: Vec<_> = (0..RACERS).map(|racer| scope.spawn(move || race(racer))).collect();
        racers.into_iter().flat_map(|racer| racer.join().expect("no panic")).collect()
    });
    won.sort_unstable();
    assert_eq!(won, (0..rounds).collect::<Vec<_>>());
    assert_eq!(block_on(async { read(&open(), &name()).await }).token(), Some(Token(rounds as i64)));
}

macro_rules! contract {
    ($($test:ident),+ $(,)?) => {
        #[cfg(feature = "kubernetes")]
        mod kubernetes {
            use super::fixture::{Server, kubernetes::apiserver::Any};
            $(#[test] fn $test() {
                let server = Any::start();
                super::block_on(super::$test(super::of_kubernetes::store(&server.url())))
            })+
        }
        mod memory {
            $(#[test] fn $test() { super::block_on(super::$test(super::MemoryStore::new(true))) })+
        }
        mod memory_without_one_clock {
            $(#[test] fn $test() { super::block_on(super::$test(super::MemoryStore::new(false))) })+
        }
        mod sqlite {
            $(#[test] fn $test() {
                let folder = super::folder();
                super::block_on(super::$test(super::sqlite(folder.path())))
            })+
        }
        mod sqlite_with_the_kernel_lock {
            $(#[test] fn $test() {
                let folder = super::folder();
                super::block_on(super::$test(super::locking(folder.path())))
            })+
        }
        #[cfg(feature = "redis")]
        mod redis {
            $(#[test] fn $test() {
                let server = <super::fixture::redis::Redis as super::fixture::Server>::start();
                super::block_on(super::$test(super::of_redis::store(&server)))
            })+
        }
        #[cfg(feature = "etcd")]
        mod etcd {
            use super::fixture::{Server, etcd::Etcd};
            $(#[test] fn $test() {
                let server = Etcd::start();
                super::block_on(super::$test(super::of_etcd::store(&server.url())))
            })+
        }
        #[cfg(feature = "postgres")]
        mod postgres {
            use super::fixture::{Server, postgres::Postgres};
            $(#[test] fn $test() {
                let server = Postgres::start();
                super::block_on(super::$test(super::of_postgres::store(&server.url())))
            })+
        }
        #[cfg(feature = "postgres")]
        mod postgres_through_pgbouncer {
            use super::fixture::{Server, postgres::PgBouncer};
            $(#[test] fn $test() {
                let server = PgBouncer::start();
                super::block_on(super::$test(super::of_postgres::store(&server.url())))
            })+
        }
    };
}

contract!(
    the_first_write_is_on_nothing_and_only_one,
    a_swap_needs_the_version_that_stands_now,
    a_record_comes_back_exactly,
    a_free_record_is_free_and_keeps_its_token,
    names_do_not_interfere_and_list_shows_all,
    a_fresh_record_is_never_free,
    waiting_for_a_change_may_be_given_up_at_any_time,
);

// SQLite

fn folder() -> TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn settings(folder: &Path, lock: Option<LeaseName>) -> Settings {
    let asked = Asked { ttl: Some(Duration::from_secs(60)), ..Asked::default() };
    Settings {
        path: folder.join("x.db"),
        open: Open::Create,
        lock,
        app_table: None,
        timing: Timing::new(asked, Clocks::OneKernel).expect("a good set"),
        now: clock::now,
        wall_ms: clock::wall_ms,
    }
}

/// The record alone decides.
fn sqlite(folder: &Path) -> SqliteStore {
    SqliteStore::new(settings(folder, None))
}

fn locking(folder: &Path) -> SqliteStore {
    SqliteStore::new(settings(folder, Some(name())))
}

fn sql(folder: &Path, text: &str) {
    Connection::open(folder.join("x.db")).and_then(|connection| connection.execute_batch(text)).expect(text);
}

#[test]
fn of_writes_that_race_exactly_one_is_done() {
    let folder = folder();
    assert_of_writes_that_race_exactly_one_is_done(300, || sqlite(folder.path()));
}

#[test]
fn what_is_left_shrinks_from_when_the_holder_asked_and_not_from_when_it_was_written() {
    let folder = folder();
    block_on(async {
        let store = sqlite(folder.path());
        let absent = read(&store, &name()).await.version;
        let asked_at = clock::now();
        let record = Record { asked_at: asked_at - Duration::from_secs(20), ..held("w1", 1) };
        let version = put(&store, &name(), &absent, &record).await;
        let snapshot = sqlite(folder.path()).read(&name(), asked_at).await.expect("readable");
        assert_eq!(snapshot.evidence, Evidence::Left(record.ttl - Duration::from_secs(20)), "of the record's own TTL");
        let snapshot = store.read(&name(), asked_at + Duration::from_secs(50)).await.expect("readable");
        assert_eq!((snapshot.evidence, is_free(&snapshot)), (Evidence::Left(Duration::ZERO), true));
        assert_eq!(snapshot.version, version);
    });
}

#[test]
fn what_one_try_saw_of_another_boots_record_counts_for_the_next() {
    let folder = folder();
    block_on(async {
        let store = sqlite(folder.path());
        let absent = read(&store, &name()).await.version;
        put(&store, &name(), &absent, &held("w1", 1)).await;
        sql(folder.path(), "UPDATE lockrun_lease SET boot_id = 'another'");
        let start = clock::now();
        let first = read(&sqlite(folder.path()), &name()).await;
        assert_eq!((first.evidence, first.seen_at, is_free(&first)), (Evidence::NoClock, None, false));
        let noted = clock::now();
        let second = read(&sqlite(folder.path()), &name()).await;
        let seen_at = second.seen_at.expect("noted by the first");
        assert!(start < seen_at && seen_at <= noted, "after the first read, not before it");
        sql(folder.path(), "UPDATE lockrun_lease SET write_id = 'renewed'");
        assert_eq!(read(&sqlite(folder.path()), &name()).await.seen_at, None, "another version");
        sql(folder.path(), "UPDATE lockrun_sighting SET seen_boot_ns = 9223372036854775807");
        assert_eq!(read(&sqlite(folder.path()), &name()).await.seen_at, None, "a sighting that is still to come");
    });
}

#[test]
fn a_kernel_lock_that_came_free_is_evidence_and_one_that_is_taken_keeps_all_others_out() {
    let folder = folder();
    block_on(async {
        let holder = locking(folder.path());
        let absent = read(&holder, &name()).await;
        assert_eq!(absent.lock, KernelLock::Ours);
        put(&holder, &name(), &absent.version, &held("w1", 1)).await;
        let waiter = locking(folder.path());
        let waiting = read(&waiter, &name()).await;
        assert_eq!((waiting.lock, is_free(&waiting)), (KernelLock::Others, false));
        holder.unlock();
        let gone = read(&waiter, &name()).await;
        assert!(matches!(gone.evidence, Evidence::Gone(_)), "{:?}", gone.evidence);
        assert!(!is_free(&gone), "SIGKILL was sent; dying takes a moment");
    });
}

#[test]
fn a_database_that_was_replaced_is_never_written_as_if_nothing_were() {
    for gone in ["removed", "moved", "replaced by an empty one", "replaced by another one"] {
        let folder = folder();
        let path = folder.path().join("x.db");
        block_on(async {
            let store = locking(folder.path());
            let absent = read(&store, &name()).await.version;
            let version = put(&store, &name(), &absent, &held("w1", 5)).await;
            let aside = tempfile::tempdir_in(folder.path()).expect("a folder");
            for end in ["", "-wal", "-shm"] {
                let from = folder.path().join(format!("x.db{end}"));
                match gone {
                    "moved" => std::fs::rename(&from, aside.path().join(format!("x.db{end}"))).expect("moved"),
                    _ => std::fs::remove_file(&from).expect("removed"),
                }
            }
            match gone {
                "replaced by an empty one" => std::fs::write(&path, "").expect("written"),
                "replaced by another one" => {
                    let other = sqlite(folder.path());
                    let absent = read(&other, &name()).await.version;
                    put(&other, &name(), &absent, &held("w1", 3)).await; // of the same write even
                    sql(folder.path(), "UPDATE lockrun_lease SET holder = 'somebody else', write_id = 'theirs'");
                }
                _ => {}
            }
            let swap = store.swap(&name(), &version, &held("w2", 5)).await;
            assert!(matches!(swap, Ok(Swap::Conflict) | Err(StoreError::Unknown(_))), "{gone}: {swap:?}");
            let snapshot = read(&store, &name()).await;
            assert_eq!((snapshot.finding, snapshot.lock), (Finding::Replaced, KernelLock::Ours), "{gone}");
            let token = if gone == "replaced by another one" { Some(Token(3)) } else { None };
            assert_eq!(snapshot.token(), token, "{gone}");
            put(&store, &name(), &snapshot.version, &held("w3", 5)).await;
            let others_see = read(&sqlite(folder.path()), &name()).await;
            assert_eq!((others_see.token(), others_see.finding), (Some(Token(5)), Finding::Plain), "{gone}: put back where all look");
        });
    }
}

#[test]
fn a_busy_database_is_unknown_within_one_attempt() {
    let folder = folder();
    block_on(async {
        let store = sqlite(folder.path());
        let absent = read(&store, &name()).await.version;
        let version = put(&store, &name(), &absent, &held("w1", 1)).await;
        let other = Connection::open(folder.path().join("x.db")).expect("opened");
        other.execute_batch("BEGIN EXCLUSIVE").expect("nobody else writes");
        let start = clock::now();
        let swap = store.swap(&name(), &version, &held("w2", 1)).await;
        assert!(matches!(&swap, Err(StoreError::Unknown(why)) if why.contains("locked")), "{swap:?}");
        let attempt = settings(folder.path(), None).timing.attempt;
        assert!(clock::now().since(start) < attempt, "it says so before the machine gives up on it");
        other.execute_batch("COMMIT").expect("given back");
        assert_eq!(read(&store, &name()).await.version, version, "nothing was written");
        put(&store, &name(), &version, &held("w3", 1)).await;
    });
}

/// Each makes the row of a held lease into one that lockrun never wrote.
const STRANGE: [&str; 23] = [
    "ttl_ms = 0",
    "ttl_ms = -1",
    "ttl_ms = 'long'",
    "ttl_ms = 1e300",
    "ttl_ms = x'00'",
    "ttl_ms = 9223372036854775807",
    "token = 'seven'",
    "token = 1.5",
    "holder = 5",
    "holder = x'ff'",
    "holder = ''",
    "pid = -1",
    "pid = 99999999999",
    "pid = 'one'",
    "command = '{not json'",
    "instance = x'ff'",
    "write_id = 17",
    "stopping = 'yes'",
    "asked_boot_ns = 9223372036854775807",
    "asked_boot_ns = 'now'",
    "asked_boot_ns = -1",
    "asked_boot_ns = -9223372036854775807 - 1",
    "boot_id = x'00'",
];

#[test]
fn a_row_that_another_program_spoilt_is_an_error_or_held_but_never_free() {
    for strange in STRANGE {
        let folder = folder();
        block_on(async {
            let store = sqlite(folder.path());
            let absent = read(&store, &name()).await.version;
            put(&store, &name(), &absent, &held("w1", 1)).await;
            sql(folder.path(), &format!("UPDATE lockrun_lease SET {strange}"));
            match store.read(&name(), clock::now()).await {
                Ok(snapshot) => assert!(!is_free(&snapshot), "{strange}: {snapshot:?}"),
                Err(StoreError::Refused(_)) => {}
                Err(error) => panic!("{strange}: {error:?}"),
            }
            let again = store.read(&LeaseName::new("another lease"), clock::now()).await;
            assert_eq!(again.map(|snapshot| snapshot.record), Ok(None), "{strange}: the store goes on");
        });
    }
}

#[test]
fn an_instant_that_is_still_to_come_is_no_clock() {
    let folder = folder();
    block_on(async {
        let store = sqlite(folder.path());
        let absent = read(&store, &name()).await.version;
        put(&store, &name(), &absent, &held("w1", 1)).await;
        sql(folder.path(), "UPDATE lockrun_lease SET asked_boot_ns = asked_boot_ns + 1000000000000");
        assert_eq!(read(&store, &name()).await.evidence, Evidence::NoClock);
    });
}

#[test]
fn many_that_open_one_new_database_at_once_all_get_it() {
    let folder = folder();
    let path = folder.path().to_path_buf();
    let barrier = Arc::new(Barrier::new(16));
    let starts: Vec<_> = (0..16)
        .map(|_| {
            let (path, barrier) = (path.clone(), Arc::clone(&barrier));
            std::thread::spawn(move || {
                let store = sqlite(&path);
                barrier.wait();
                block_on(async { store.read(&name(), clock::now()).await.map(|snapshot| snapshot.record) })
            })
        })
        .collect();
    for start in starts {
        assert_eq!(start.join().expect("no panic"), Ok(None));
    }
}
