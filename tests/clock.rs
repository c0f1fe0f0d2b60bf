//! The machine's own wall clock is set two hours forward and two hours back, under holders and waiters: nothing happens.
//! Everything on the machine sees it, so this suite is the last and runs alone; a helper puts the clock back.

#[path = "it/common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::tables::Table;
use common::{Running, Scene, alive, probe_binary, wait_until};
use rusqlite::Connection;

const TWO_HOURS: i64 = 7200;
/// Of the leases in the scenes.
const TTL: Duration = Duration::from_secs(3);

/// The clock is off for as long as this lives.
struct Step(Child);

impl Step {
    fn by(scene: &Scene, seconds: i64) -> Step {
        let mut command = scene.command(probe_binary());
        command.args(["step-clock", &seconds.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // Not marked as one of the scene: the scene kills its own when a test fails, and then nobody would put the clock back.
        let mut child = command.env_remove(common::MARK).spawn().expect("the helper");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("readable");
        assert_eq!(line, "stepped\n", "setting the clock needs CAP_SYS_TIME; run the tests as root on a machine or VM, not in a container");
        Step(child)
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// How far the wall clock and the monotonic one have gone apart since `self` was made.
struct Drift(SystemTime, Instant);

impl Drift {
    fn now() -> Drift {
        Drift(SystemTime::now(), Instant::now())
    }

    fn seconds(&self) -> i64 {
        let since = |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_millis() as i64;
        (since(SystemTime::now()) - since(self.0) - self.1.elapsed().as_millis() as i64) / 1000
    }
}

struct Pair {
    scene: Scene,
    holder: Running,
    waiter: Running,
}

impl Pair {
    fn start(scene: Scene, args: &[&str]) -> Pair {
        let script = scene.witness("exec sleep 1000");
        let command = |scene: &Scene| {
            let mut command = scene.lockrun(args);
            command.args(["--", "sh", "-c", &script]);
            command
        };
        let holder = scene.start(&mut command(&scene));
        scene.wait_for_starts(1);
        let waiter = scene.start(&mut command(&scene));
        waiter.wait_for_stderr("waiting");
        Pair { scene, holder, waiter }
    }

    fn assert_undisturbed(&mut self) {
        let starts = self.scene.starts();
        assert!(starts.len() == 1 && alive(starts[0].1), "{starts:?}: {}{}", self.holder.stderr(), self.waiter.stderr());
        assert!(self.holder.is_running() && self.waiter.is_running());
        for event in ["lost", "stopping", "killed", "unreachable"] {
            assert!(!self.holder.stderr().contains(event), "{}", self.holder.stderr());
        }
    }
}

fn wall_ms(database: &Connection) -> i64 {
    database.query_row("SELECT renewed_ms FROM lockrun_lease WHERE name = 'slow'", [], |row| row.get(0)).expect("a record")
}

#[test]
fn alone_a_wall_clock_that_is_set_two_hours_either_way_disturbs_nobody() {
    let mut pairs = [Pair::start(Scene::new(), &[]), Pair::start(Table::App.scene(), &["--table", "scheduler_lock"])];
    // One that would not renew by itself while this test runs: it is to do so because of the step.
    let scene = Scene::new();
    let mut slow = scene.bare_lockrun(["--ttl", "2h", "--name", "slow", "--db"]);
    let mut slow = scene.start(slow.arg(scene.db()).args(["--", "sh", "-c", "echo >started; sleep 1000"]));
    scene.wait_for_file("started");
    let database = Connection::open(scene.db()).expect("the database");
    let drift = Drift::now();
    for seconds in [TWO_HOURS, -TWO_HOURS] {
        let before = wall_ms(&database);
        let step = Step::by(&scene, seconds);
        assert!((drift.seconds() - seconds).abs() < 60, "the clock was not set: {}", drift.seconds());
        wait_until("a renewal because of the step", || wall_ms(&database).abs_diff(before) > 3_600_000);
        let since = Instant::now();
        wait_until("longer than the lease", || since.elapsed() > TTL * 2);
        pairs.iter_mut().for_each(Pair::assert_undisturbed);
        drop(step);
        assert!(drift.seconds().abs() < 2, "the clock was not put back: {}", drift.seconds());
        let since = Instant::now();
        wait_until("longer than the lease", || since.elapsed() > TTL * 2);
        pairs.iter_mut().for_each(Pair::assert_undisturbed);
    }
    assert!(slow.is_running());
}
