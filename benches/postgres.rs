//! PostgreSQL, fsync on, over loopback. `cargo bench --bench postgres`: what a claim, a renewal, a release and a hand-over
//! take. `cargo bench --bench postgres -- held [LEASES] [SECONDS]` (2000, 120): so many copies of the real lockrun hold a
//! lease each, TTL 30 s; how many lost it, and what that asks of the server.

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockrun::clock;
use lockrun::lease::{Asked, Clocks, Holder, HolderId, LeaseName, Record, Swap, Timing, Token, Version, WriteId};
use lockrun::store::any::{Address, AnyStore};
use lockrun::store::{Purpose, Settings, Store};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use fixture::Server;
use fixture::postgres::Postgres;

const ROUNDS: usize = 500;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |index: usize, default| args.get(index).map_or(default, |arg| arg.parse::<u64>().expect("a number"));
    match args.first().map(String::as_str) {
        Some("held") => held(number(1, 2000), number(2, 120)),
        _ => latencies(),
    }
}

fn store(url: &str) -> AnyStore {
    let timing = Timing::new(Asked::default(), Clocks::Apart).expect("the default");
    let address = lockrun::store::postgres::Address::parse(url, &|_| None).expect("a good URL");
    let purpose = Purpose::Hold { lease: LeaseName::new("bench"), short: false };
    AnyStore::new(Address::Postgres(address), Settings { purpose, timing, now: clock::now, wall_ms: clock::wall_ms })
}

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

async fn swap(store: &AnyStore, version: &Version, held: bool) -> Version {
    match store.swap(&LeaseName::new("bench"), version, &record(held, 1)).await {
        Ok(Swap::Done(version)) => version,
        other => panic!("not written: {other:?}"),
    }
}

fn latencies() {
    let server = Postgres::with(&["fsync=on"]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (mut claims, mut renewals, mut releases, mut hand_overs) = (vec![], vec![], vec![], vec![]);
    runtime.block_on(async {
        let (holder, waiter, name) = (store(&server.url()), store(&server.url()), LeaseName::new("bench"));
        let mut version = holder.read(&name, clock::now()).await.expect("readable").version;
        waiter.read(&name, clock::now()).await.expect("readable");
        for _ in 0..ROUNDS {
            for (times, held) in [(&mut claims, true), (&mut renewals, true), (&mut releases, false)] {
                let asked = Instant::now();
                version = swap(&holder, &version, held).await;
                times.push(asked.elapsed());
            }
        }
        for _ in 0..ROUNDS {
            version = swap(&holder, &version, true).await;
            let seen = version.clone();
            let wait = async {
                waiter.changed(&name, &seen).await;
                let free = waiter.read(&name, clock::now()).await.expect("readable").version;
                let claimed = swap(&waiter, &free, true).await;
                (claimed, Instant::now())
            };
            let release = async {
                // Long enough for the waiter to listen: what it hears then is the notification alone.
                tokio::time::sleep(Duration::from_millis(20)).await;
                let asked = Instant::now();
                swap(&holder, &seen, false).await;
                asked
            };
            let ((claimed, at), asked) = tokio::join!(wait, release);
            version = claimed;
            hand_overs.push(at - asked);
        }
    });
    println!("{:<40} {:>9} {:>9} {:>9}", "", "p50 us", "p99 us", "max us");
    for (what, mut times) in [
        ("claim", claims),
        ("renewal", renewals),
        ("release and notify", releases),
        ("release to the waiter's claim committed", hand_overs),
    ] {
        times.sort_unstable();
        let [p50, p99, max] = [times.len() / 2, times.len() * 99 / 100, times.len() - 1].map(|index| times[index].as_micros());
        println!("{what:<40} {p50:>9} {p99:>9} {max:>9}");
    }
}

fn held(leases: u64, seconds: u64) {
    let connections = format!("max_connections={}", leases + 50);
    let server = Postgres::with(&["fsync=on", "autovacuum=on", "shared_buffers=128MB", &connections]);
    let started = Instant::now();
    let mut copies: Vec<Child> = (0..leases)
        .map(|index| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lockrun"));
            command.env("LOCKRUN_DB", server.url()).args(["-q", "--ttl", "30s", "--name", &format!("lease-{index}")]);
            command
                .args(["--", "sleep", "1000000"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .expect("a copy")
        })
        .collect();
    let number = |sql: &str| server.sql(sql).parse::<f64>().expect(sql);
    let there = || server.sql("SELECT to_regclass('lockrun_lease') IS NOT NULL") == "t";
    let holding = || there() && number("SELECT count(*) FROM lockrun_lease WHERE holder IS NOT NULL") >= leases as f64;
    while !holding() {
        assert!(started.elapsed() < Duration::from_secs(600), "not all of them hold");
        std::thread::sleep(Duration::from_millis(500));
    }
    println!("{leases} leases, ttl 30 s: all held after {:.1} s", started.elapsed().as_secs_f64());
    let transactions = || number("SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'");
    // Until the server has counted what the start has cost.
    std::thread::sleep(Duration::from_secs(15));
    let tokens = server.sql("SELECT sum(token) FROM lockrun_lease");
    let (transactions_before, cpu_before, fronts_before) = (transactions(), cpu(server.pids()), cpu(copies.iter().map(pid)));
    std::thread::sleep(Duration::from_secs(seconds));
    let per_second = |before: f64, after: f64| (after - before) / seconds as f64;
    let requests = per_second(transactions_before, transactions());
    let (server_cpu, fronts_cpu) = (per_second(cpu_before, cpu(server.pids())), per_second(fronts_before, cpu(copies.iter().map(pid))));
    let sessions = number("SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lockrun'");
    let memory = |pids: Vec<i32>| pids.iter().map(|pid| private_kib(*pid)).sum::<u64>() / 1024;
    let (server_memory, fronts_memory) = (memory(server.pids()), memory(copies.iter().map(pid).collect()));
    let unchanged = server.sql("SELECT sum(token) FROM lockrun_lease") == tokens && holding();
    copies.iter().for_each(|copy| kill(Pid::from_raw(pid(copy)), Signal::SIGTERM).expect("a copy that runs"));
    // A copy that was lost, or could not claim, exits by itself with a code.
    let lost = copies.iter_mut().filter_map(|copy| copy.wait().ok()).filter(|status| status.signal() != Some(15)).count();
    let free = number("SELECT count(*) FROM lockrun_lease WHERE holder IS NULL");
    println!("over {seconds} s: {lost} lost, tokens {}, {free} released at the end", if unchanged { "as they were" } else { "CHANGED" });
    println!(
        "{requests:.0} transactions/s over {sessions} connections; server {:.1} % of one CPU, {server_memory} MiB; fronts {:.1} %, {fronts_memory} MiB",
        server_cpu * 100.0,
        fronts_cpu * 100.0
    );
    assert!(lost == 0 && unchanged && free == leases as f64);
}

fn pid(copy: &Child) -> i32 {
    copy.id() as i32
}

/// Seconds of CPU of these processes so far. Each of them has one thread, and uses less than a tick of the clock at a time.
fn cpu(pids: impl IntoIterator<Item = i32>) -> f64 {
    let nanoseconds = |pid| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    };
    pids.into_iter().filter_map(nanoseconds).sum::<u64>() as f64 / 1e9
}

fn private_kib(pid: i32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let of = |line: &str| line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
    text.lines().filter(|line| line.starts_with("Private_")).filter_map(of).sum()
}
