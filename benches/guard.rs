//! What the guard costs: `cargo bench --bench guard`. Memory of both processes while a command runs (proc_pid_smaps(5)),
//! how many processes lockrun adds, and the time of one fork of a process of its size.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, fork};

fn main() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut front = Command::new(env!("CARGO_BIN_EXE_lockrun"))
        .args(["-q", "--db"])
        .arg(dir.path().join("x.db"))
        .args(["--", "sleep", "600"])
        .stdin(Stdio::null())
        .spawn()
        .expect("lockrun starts");
    let guard = wait_for(&mut front, |front| child_named(front, "lockrun-guard"));
    let command = wait_for(&mut front, |_| child_named(guard, "sleep"));
    println!("processes: front {}, guard {guard}, command {command}: one fork more than the command's own", front.id());
    println!("{:<8} {:>9} {:>9} {:>13} {:>13}", "", "Rss kB", "Pss kB", "Pss anon kB", "private kB");
    for (name, pid) in [("front", front.id() as i32), ("guard", guard)] {
        let fields = ["Rss:", "Pss:", "Pss_Anon:", "Private_Clean:", "Private_Dirty:"];
        let [rss, pss, anon, clean, dirty] = fields.map(|field| smaps(pid, field));
        println!("{name:<8} {rss:>9} {pss:>9} {anon:>13} {:>13}", clean + dirty);
    }
    let [whole, anon] = ["Pss:", "Pss_Anon:"].map(|field| smaps(guard, field));
    println!("the guard's own: {anon} kB, its share of all anonymous pages (asked for: less than 300): {}", met(anon));
    println!("whole Pss: {whole} kB ({}); {} kB of it are half of the pages of files that the front maps too", met(whole), whole - anon);
    println!("fork and exit of a process like this one, median of 500: {:?}", fork_time());
    // SIGTERM reaches the command; lockrun ends after it.
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(front.id() as i32), nix::sys::signal::Signal::SIGTERM).expect("there");
    front.wait().expect("ends");
}

fn met(kb: u64) -> &'static str {
    if kb < 300 { "met" } else { "MISSED" }
}

fn wait_for(front: &mut Child, mut find: impl FnMut(i32) -> Option<i32>) -> i32 {
    let pid = front.id() as i32;
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        match find(pid) {
            Some(found) => return found,
            None if Instant::now() > end => {
                let _ = front.kill();
                panic!("lockrun did not start its command");
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn child_named(parent: i32, name: &str) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children")).ok()?;
    let mut pids = children.split_whitespace().filter_map(|pid| pid.parse::<i32>().ok());
    pids.find(|pid| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name))
}

fn smaps(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = text.lines().find(|line| line.starts_with(field)).expect("the field");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn fork_time() -> Duration {
    let mut times: Vec<Duration> = (0..500)
        .map(|_| {
            let start = Instant::now();
            // SAFETY: this program has one thread, and the child only exits.
            match unsafe { fork() }.expect("a fork") {
                ForkResult::Parent { child } => {
                    waitpid(child, None).expect("its end");
                    start.elapsed()
                }
                // SAFETY: nothing is to be cleaned up.
                ForkResult::Child => unsafe { libc::_exit(0) },
            }
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}
