//! Many holders of many leases in one database, each a whole lockrun: none may lose its lease. What a renewal takes among
//! them is measured by one more, which does nothing else.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lockrun::clock;
use lockrun::lease::{Asked, Clocks, Holder, HolderId, LeaseName, Record, Swap, Timing, Token, WriteId};
use lockrun::store::Store;
use lockrun::store::sqlite::{self, Open, Settings, SqliteStore};
use nix::sys::signal::Signal;

use crate::stage::{send, spawn};
use crate::{Findings, LOCKRUN, Times, number};

const TTL: Duration = Duration::from_secs(10);
/// Between two renewals that are measured.
const PAUSE: Duration = Duration::from_millis(20);

/// Ends its copies, by their pids.
struct Holders(Vec<Child>);

impl Drop for Holders {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill(); // the guard ends the command
            let _ = child.wait();
        }
    }
}

pub fn table_of(dir: &Path, findings: &mut Findings) {
    let (holders, span) = (number("BENCH_HOLDERS", 1000), Duration::from_secs(number("BENCH_HOLD_SECONDS", 60) as u64));
    println!("\n{holders} holders of {holders} leases in one database, TTL {TTL:?}, for {span:?}");
    let database = dir.join("many.db");
    let mut copies = Holders(vec![]);
    for index in 0..holders {
        let mut command = Command::new(LOCKRUN);
        command.arg("-q").arg("--db").arg(&database).args(["--ttl", "10s", "--name", &format!("lease-{index}"), "--", "sleep", "100000"]);
        copies.0.push(spawn(command.stdin(Stdio::null())));
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime");
    let mut times = runtime.block_on(renewals(&database, holders, span));
    // Whoever had lost its lease would have ended with 76.
    let ended: Vec<_> = copies.0.iter_mut().filter_map(|copy| copy.try_wait().expect("a child")).collect();
    for copy in &copies.0 {
        send(copy.id() as i32, Signal::SIGTERM);
    }
    let unlike: Vec<_> = copies.0.iter_mut().filter_map(|copy| Some(copy.wait().ok()?).filter(|status| !by_term(status))).collect();
    crate::head("");
    times.row("a renewal among them", None);
    println!(
        "p99 of a renewal: {:.2} ms, the longest of {}: {:.2} ms",
        crate::millis(times.at(99)),
        times.len(),
        crate::millis(times.at(100))
    );
    findings.is(
        &format!("leases lost by {holders} holders: {} {ended:?} {unlike:?}", ended.len().max(unlike.len())),
        ended.is_empty() && unlike.is_empty(),
    );
}

/// As the command did, which SIGTERM ended.
fn by_term(status: &std::process::ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(status) == Some(libc::SIGTERM)
}

/// Once all of them hold, for so long.
async fn renewals(database: &Path, holders: usize, span: Duration) -> Times {
    let name = LeaseName::new("probe");
    let store = SqliteStore::new(Settings {
        path: sqlite::look(database, false).expect("a place").path,
        open: Open::Create,
        lock: Some(name.clone()),
        app_table: None,
        timing: Timing::new(Asked { ttl: Some(TTL), ..Asked::default() }, Clocks::OneKernel).expect("good"),
        now: clock::now,
        wall_ms: clock::wall_ms,
    });
    let end = Instant::now() + Duration::from_secs(120);
    loop {
        let held = store.list(clock::now()).await.map(|rows| rows.iter().filter(|(_, snapshot)| snapshot.holder().is_some()).count());
        if held.is_ok_and(|held| held == holders) {
            break;
        }
        assert!(Instant::now() < end, "not all of them hold their lease");
        std::thread::sleep(Duration::from_millis(200));
    }
    let holder = Holder { id: HolderId::new("probe"), instance: None, hostname: "host".into(), pid: 1, command: vec![] };
    let mut times = Times::default();
    let mut version = store.read(&name, clock::now()).await.expect("a record").version;
    let end = Instant::now() + span;
    while Instant::now() < end {
        let record = Record {
            write: WriteId::from_random(clock::random()),
            token: Token(1),
            holder: Some(holder.clone()),
            ttl: TTL,
            asked_at: clock::now(),
            acquired_ms: 0,
            renewed_ms: clock::wall_ms(),
            stopping: false,
        };
        let asked = Instant::now();
        match store.swap(&name, &version, &record).await {
            Ok(Swap::Done(done)) => version = done,
            other => panic!("a renewal: {other:?}"),
        }
        times.push(asked.elapsed());
        std::thread::sleep(PAUSE);
    }
    times
}
