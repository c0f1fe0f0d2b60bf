//! lockrun beside `etcdctl lock` on one etcd: from the end of the holder's command to the start of the waiter's.
//! `cargo bench --bench etcd`. Both are measured by the same two FIFOs, turn by turn; needs etcd-server and etcd-client.

#[path = "../tests/fixture/mod.rs"]
mod fixture;

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use fixture::Server;
use fixture::etcd::Etcd;

const ROUNDS: usize = 100;
/// The first rounds only warm the caches.
const WARM: usize = 5;
/// For what a waiter does after its watch stands, before it sleeps.
const SETTLE: Duration = Duration::from_millis(30);

/// How to run `sh -c SCRIPT` under the lock NAME.
type Start<'a> = &'a dyn Fn(&str, &str) -> Command;

fn main() {
    for (title, etcd) in [("in memory, without fsync", Etcd::start()), ("on this disk, with fsync", Etcd::on_disk())] {
        let url = etcd.url();
        let lockrun = |name: &str, script: &str| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_lockrun"));
            command.args(["--db", &url, "--name", name, "-q", "--", "sh", "-c", script]);
            command
        };
        let etcdctl = |name: &str, script: &str| etcd.etcdctl(&["lock", name, "sh", "-c", script]);
        let rows: [(&str, Start<'_>); 2] = [("lockrun", &lockrun), ("etcdctl lock", &etcdctl)];
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS + WARM {
            for ((name, start), times) in rows.iter().zip(&mut times) {
                let time = hand_over(&etcd, &format!("{}-{round}", name.replace(' ', "-")), start);
                if round >= WARM {
                    times.push(time);
                }
            }
        }
        println!("\nhand-over on an etcd {title}: {ROUNDS} of each, in turn");
        println!("{:<16} {:>10} {:>10} {:>10}", "", "median ms", "p90 ms", "max ms");
        for ((name, _), times) in rows.iter().zip(&mut times) {
            times.sort();
            let millis = |index: usize| times[index].as_secs_f64() * 1e3;
            println!("{name:<16} {:>10.2} {:>10.2} {:>10.2}", millis(ROUNDS / 2), millis(ROUNDS * 9 / 10), millis(ROUNDS - 1));
        }
    }
}

fn hand_over(etcd: &Etcd, name: &str, start: Start<'_>) -> Duration {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let fifo = |name: &str| {
        let path = folder.path().join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).expect("a fifo");
        path
    };
    let (go, up, taken) = (fifo("go"), fifo("up"), fifo("taken"));
    let quiet = |mut command: Command| -> Child { command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("it starts") };
    let script = format!("echo up >{}; read line <{}", up.display(), go.display());
    let mut holder = quiet(start(name, &script));
    read_line(&up);
    let mut go = OpenOptions::new().write(true).open(&go).expect("the holder reads");
    let mut waiter = quiet(start(name, &format!("echo taken >{}", taken.display())));
    wait_for_watchers(etcd, "1");
    std::thread::sleep(SETTLE);
    let begin = Instant::now();
    go.write_all(b"go\n").expect("written");
    read_line(&taken);
    let time = begin.elapsed();
    for child in [&mut holder, &mut waiter] {
        assert!(child.wait().expect("waitable").success());
    }
    wait_for_watchers(etcd, "0");
    time
}

fn read_line(path: &Path) {
    let mut text = String::new();
    File::open(path).and_then(|mut file| file.read_to_string(&mut text)).expect("readable");
}

/// The watch of whoever waits stands, as the server counts it; who holds the lock has none.
fn wait_for_watchers(etcd: &Etcd, count: &str) {
    loop {
        let mut metrics = String::new();
        let mut stream = TcpStream::connect(("127.0.0.1", etcd.port())).expect("etcd answers");
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_string(&mut metrics).map(drop)).expect("metrics");
        let watchers = metrics.lines().find_map(|line| line.strip_prefix("etcd_debugging_mvcc_watcher_total "));
        if watchers == Some(count) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
