//! Many holders on one database: `cargo bench --bench renewals -- [PROCESSES] [SECONDS] [HEARTBEAT_MS]` (1000, 30, 5000; a
//! heartbeat of 0 is as often as it goes). Each process renews a lease of its own; how long a renewal takes, and how many were
//! not done, in lockrun's own file (write-ahead log) and in an application's (rollback journal).

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lockrun::clock;
use lockrun::lease::{Asked, Clocks, Holder, HolderId, LeaseName, Record, Swap, Timing, Token, WriteId};
use lockrun::store::Store;
use lockrun::store::sqlite::{Open, Settings, SqliteStore};

const HOLDER: &str = "holder";

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if args.first().is_some_and(|arg| arg == HOLDER) {
        return hold(&args[1..]);
    }
    let number = |index: usize, default| args.get(index).map_or(default, |arg| arg.parse::<u64>().expect("a number"));
    let (processes, seconds, heartbeat_ms) = (number(0, 1000), number(1, 30), number(2, 5000));
    println!("{processes} processes, a renewal every {heartbeat_ms} ms, {seconds} s");
    println!("{:<18} {:>8} {:>9} {:>9} {:>9} {:>9} {:>7}", "", "renewals", "p50 ms", "p90 ms", "p99 ms", "max ms", "failed");
    for (mode, schema) in [("own (WAL)", ""), ("application's", "CREATE TABLE application (id INTEGER PRIMARY KEY)")] {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("x.db");
        rusqlite::Connection::open(&path).and_then(|database| database.execute_batch(schema)).expect("a database");
        report(mode, &measure(&path, processes, seconds, heartbeat_ms));
    }
}

/// The milliseconds of each renewal, or what went wrong.
fn measure(path: &Path, processes: u64, seconds: u64, heartbeat_ms: u64) -> Vec<Result<f64, String>> {
    // All claim their leases in turn before the first renews.
    let start_ns = clock::now().nanos() + (2 + processes / 100) * 1_000_000_000;
    let end_ns = start_ns + seconds * 1_000_000_000;
    let children: Vec<_> = (0..processes)
        .map(|index| {
            let phase_ns = start_ns + heartbeat_ms * 1_000_000 * index / processes;
            let mut command = Command::new(std::env::current_exe().expect("this program"));
            command.arg(HOLDER).arg(path).args([index, phase_ns, end_ns, heartbeat_ms].map(|number| number.to_string()));
            command.stdout(Stdio::piped()).spawn().expect("a process")
        })
        .collect();
    let outputs = children.into_iter().map(|child| child.wait_with_output().expect("its output").stdout);
    let text: String = outputs.map(|output| String::from_utf8(output).expect("text")).collect();
    text.lines().map(|line| line.parse().map_err(|_| line.to_string())).collect()
}

fn report(mode: &str, results: &[Result<f64, String>]) {
    let mut times: Vec<f64> = results.iter().filter_map(|result| result.as_ref().ok().copied()).collect();
    times.sort_by(f64::total_cmp);
    let at =
        |share: f64| times.get(((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1))).copied().unwrap_or(f64::NAN);
    let [p50, p90, p99, max] = [0.5, 0.9, 0.99, 1.0].map(at);
    let failed = results.len() - times.len();
    println!("{mode:<18} {:>8} {p50:>9.2} {p90:>9.2} {p99:>9.2} {max:>9.2} {failed:>7}", times.len());
    if let Some(error) = results.iter().find_map(|result| result.as_ref().err()) {
        println!("    {error}");
    }
}

/// One process: claims, then renews on its beat, and prints what each renewal took. What fails is read again, as a holder does.
fn hold(args: &[String]) {
    let number = |index: usize| args[index].parse::<u64>().expect("a number");
    let (index, phase_ns, end_ns, heartbeat_ms) = (number(1), number(2), number(3), number(4));
    let name = LeaseName::new(format!("lease-{index}"));
    let store = SqliteStore::new(Settings {
        path: args[0].clone().into(),
        open: Open::Create,
        lock: Some(name.clone()),
        app_table: None,
        timing: Timing::new(Asked::default(), Clocks::OneKernel).expect("the default"),
        now: clock::now,
        wall_ms: clock::wall_ms,
    });
    let holder = Holder { id: HolderId::new("bench"), instance: None, hostname: "host".into(), pid: 1, command: vec!["command".into()] };
    let mut lines = String::new();
    tokio::runtime::Builder::new_current_thread().enable_io().build().expect("a runtime").block_on(async {
        let mut next_ns = phase_ns;
        let mut version = None;
        while next_ns < end_ns {
            let Some(expected) = version.take() else {
                version = store.read(&name, clock::now()).await.ok().map(|snapshot| snapshot.version);
                continue;
            };
            let record = Record {
                write: WriteId::from_random(clock::random()),
                token: Token(1),
                holder: Some(holder.clone()),
                ttl: Duration::from_secs(60),
                asked_at: clock::now(),
                acquired_ms: 0,
                renewed_ms: clock::wall_ms(),
                stopping: false,
            };
            let asked = Instant::now();
            let counts = clock::now().nanos() >= phase_ns;
            let line = match store.swap(&name, &expected, &record).await {
                Ok(Swap::Done(done)) => {
                    version = Some(done);
                    format!("{}\n", asked.elapsed().as_secs_f64() * 1e3)
                }
                Ok(Swap::Conflict) => "conflict\n".to_string(),
                Err(error) => format!("{error}\n"),
            };
            if counts {
                lines += &line;
                next_ns = (next_ns + heartbeat_ms * 1_000_000).max(clock::now().nanos());
            }
            std::thread::sleep(Duration::from_nanos(next_ns.saturating_sub(clock::now().nanos())));
        }
    });
    print!("{lines}");
}
