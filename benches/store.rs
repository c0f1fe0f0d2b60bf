//! What each operation of a store takes: `cargo bench --bench store`. SQLite, and a Redis on this machine that writes to its
//! disk before it answers, beside the store in memory, which does nothing but keep the record: what is left is the price of
//! the database.

#[cfg(feature = "redis")]
#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::cell::Cell;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use lockrun::clock;
use lockrun::lease::{Asked, Clocks, Holder, HolderId, LeaseName, Record, Swap, Timing, Token, Version, WriteId};
use lockrun::store::Store;
use lockrun::store::memory::MemoryStore;
use lockrun::store::sqlite::{Open, Settings, SqliteStore};

fn record(held: bool, token: i64) -> Record {
    let command = vec!["celery".to_string(), "beat".to_string()];
    let holder = Holder { id: HolderId::from_random(clock::random()), instance: None, hostname: "web-1".to_string(), pid: 4121, command };
    Record {
        write: WriteId::from_random(clock::random()),
        token: Token(token),
        holder: held.then_some(holder),
        ttl: Duration::from_secs(60),
        asked_at: clock::now(),
        acquired_ms: clock::wall_ms(),
        renewed_ms: clock::wall_ms(),
        stopping: false,
    }
}

/// A claim has a new token, and is on the disk when it is answered; a renewal has the same, and need not be.
fn operations<S: Store>(criterion: &mut Criterion, store: &S, kind: &str) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let name = LeaseName::new("bench");
    let version = Cell::new(Version::Absent);
    let token = Cell::new(1);
    let swap = |record: &Record| match runtime.block_on(store.swap(&name, &version.replace(Version::Absent), record)) {
        Ok(Swap::Done(at)) => version.set(at),
        Ok(Swap::Conflict) => panic!("nobody else writes here"),
        Err(error) => panic!("{error}"),
    };
    let mut group = criterion.benchmark_group(kind);
    group.bench_function("claim and release", |bencher| {
        bencher.iter(|| {
            token.set(token.get() + 1);
            swap(&record(true, token.get()));
            swap(&record(false, token.get()));
        });
    });
    swap(&record(true, token.get()));
    group.bench_function("renewal", |bencher| bencher.iter(|| swap(&record(true, token.get()))));
    group.bench_function("read", |bencher| bencher.iter(|| runtime.block_on(store.read(&name, clock::now())).expect("readable")));
    group.finish();
}

fn stores(criterion: &mut Criterion) {
    operations(criterion, &MemoryStore::new(true), "memory");
    let folder = tempfile::tempdir().expect("a temporary folder");
    let settings = Settings {
        path: folder.path().join("x.db"),
        open: Open::Create,
        lock: Some(LeaseName::new("bench")),
        app_table: None,
        timing: Timing::new(Asked::default(), Clocks::OneKernel).expect("the defaults hold"),
        now: clock::now,
        wall_ms: clock::wall_ms,
    };
    operations(criterion, &SqliteStore::new(settings), "sqlite");
    #[cfg(feature = "redis")]
    redis(criterion);
}

#[cfg(feature = "redis")]
fn redis(criterion: &mut Criterion) {
    use fixture::Server;
    use lockrun::store::redis::{Address, Redis};
    use lockrun::store::server::ServerStore;
    use lockrun::store::{Purpose, Settings};

    let open = |server: &fixture::redis::Redis| {
        let settings = Settings {
            purpose: Purpose::Hold { lease: LeaseName::new("bench"), short: false },
            timing: Timing::new(Asked::default(), Clocks::Apart).expect("the defaults hold"),
            now: clock::now,
            wall_ms: clock::wall_ms,
        };
        let address = Address::parse(&server.url(), &|_| None).expect("a good URL");
        ServerStore::<Redis>::new(address, settings)
    };
    let server = fixture::redis::Redis::start();
    operations(criterion, &open(&server), "redis");
    operations(criterion, &open(&fixture::redis::Redis::with(&["--appendfsync", "everysec"])), "redis, appendfsync everysec");
    let primary = fixture::redis::Redis::start();
    let _replica = primary.replica();
    operations(criterion, &open(&primary), "redis with a replica that must confirm");
}

criterion_group!(benches, stores);
criterion_main!(benches);
