//! What goes wrong around a command: its front or guard killed or stopped, its database locked away. Must never take an empty
//! process list for proof: the next copy itself looks for what is left of the former, by flock and by pid.

use std::fs;

use nix::sys::signal::Signal;

use crate::common::gate::Gate;
use crate::common::report::{only_lock, wait_until_it_waits};
use crate::common::tables::{boottime_ns, lock_exclusively, open, own_row};
use crate::common::{Running, Scene, alive, signal, state, wait_until};

/// A setsid grandchild that keeps what it inherited, the witness's descriptor 9 among it.
const KEEPS_DESCRIPTORS: &str = "setsid sh -c 'echo $$ >grand.new; mv grand.new grand; exec sleep 1000' & wait";

/// A setsid grandchild that closed everything from 3 up: neither the witness nor a lock file knows of it, its pid alone does.
const CLOSES_DESCRIPTORS: &str = "/usr/bin/python3 -c '\
import os, time
os.setsid()
os.closerange(3, 65536)
open(\"grand.new\", \"w\").write(str(os.getpid()))
os.rename(\"grand.new\", \"grand\")
time.sleep(1000)' & wait";

/// Says in `survivors` if the former copy's command or grandchild is alive, then waits for nothing.
const LOOKS_FOR_SURVIVORS: &str = "for pid in $(cat grand) $(head -n 1 starts | cut -d' ' -f2); do \
     if kill -0 $pid 2>/dev/null && ! grep -q '^State:.Z' /proc/$pid/status; then echo $pid >>survivors; fi; done";

/// Writes CLOCK_BOOTTIME (ns) to `alive` as long as it lives, and to `term` at each SIGTERM, which does not end it.
const RECORDS_ITS_LIFE: &str = "exec /usr/bin/python3 -c '\
import os, signal, time
now = lambda: b\"%d\\n\" % time.clock_gettime_ns(time.CLOCK_BOOTTIME)
mode = os.O_WRONLY | os.O_CREAT | os.O_APPEND
life = os.open(\"alive\", mode)
signal.signal(signal.SIGTERM, lambda *_: os.write(os.open(\"term\", mode), now()))
while True:
    os.write(life, now())
    time.sleep(0.002)'";

/// Copy A runs a command with a grandchild, copy B waits.
struct Two {
    scene: Scene,
    a: Running,
    b: Running,
    command: i32,
    grandchild: i32,
}

impl Two {
    fn start(body: &str) -> Two {
        let scene = Scene::new();
        let a = run_script(&scene, body);
        let command = scene.wait_for_starts(1)[0].1;
        let grandchild = scene.wait_for_file("grand").trim().parse().expect("a pid");
        let b = run_script(&scene, LOOKS_FOR_SURVIVORS);
        wait_until_it_waits(&b);
        Two { scene, a, b, command, grandchild }
    }

    /// B runs, and finds that nothing of A's tree is alive.
    fn assert_b_follows_a_dead_tree(self) {
        let finished = self.b.finish();
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
        assert_eq!(self.scene.starts().len(), 2);
        self.scene.assert_exclusion();
        assert!(!self.scene.path("survivors").exists(), "B saw them alive: {:?}", fs::read_to_string(self.scene.path("survivors")));
        assert!(!alive(self.command) && !alive(self.grandchild));
    }
}

fn run_script(scene: &Scene, body: &str) -> Running {
    scene.start(&mut scene.lockrun(["--", "sh", "-c", &scene.witness(body)]))
}

fn stop(pid: i32) {
    signal(pid, Signal::SIGSTOP);
    wait_until("a stopped process", || state(pid) == Some('T'));
}

fn front_killed(body: &str) {
    let mut two = Two::start(body);
    two.a.signal(Signal::SIGKILL);
    wait_until("the death of the front", || !two.a.is_running());
    two.assert_b_follows_a_dead_tree();
}

fn guard_killed(body: &str) {
    let mut two = Two::start(body);
    signal(two.a.guard(), Signal::SIGKILL);
    let code = ended_with(&mut two.a);
    assert_eq!(code, Some(76), "{}", two.a.stderr());
    two.assert_b_follows_a_dead_tree();
}

fn front_stopped(body: &str) {
    let mut two = Two::start(body);
    stop(two.a.pid());
    two.scene.wait_for_starts(2);
    assert_eq!(state(two.a.pid()), Some('T'), "the other copy took over although this one is only stopped");
    two.a.signal(Signal::SIGCONT);
    let code = ended_with(&mut two.a);
    assert_eq!(code, Some(76), "{}", two.a.stderr());
    two.assert_b_follows_a_dead_tree();
}

fn guard_stopped(body: &str) {
    let mut two = Two::start(body);
    stop(two.a.guard());
    let code = ended_with(&mut two.a);
    assert_eq!(code, Some(76), "{}", two.a.stderr());
    two.assert_b_follows_a_dead_tree();
}

fn ended_with(running: &mut Running) -> Option<i32> {
    wait_until("the end of the front", || !running.is_running());
    running.child.wait().expect("ended").code()
}

macro_rules! with_both_grandchildren {
    ($($test:ident),+ $(,)?) => {
        mod a_setsid_grandchild_does_not_outlive_its_lease_when {
            $(#[test] fn $test() { super::$test(super::KEEPS_DESCRIPTORS) })+
        }
        mod a_setsid_grandchild_without_descriptors_does_not_outlive_its_lease_when {
            $(#[test] fn $test() { super::$test(super::CLOSES_DESCRIPTORS) })+
        }
    };
}

with_both_grandchildren! { front_killed, guard_killed, front_stopped, guard_stopped }

/// Not promised to die, but promised to keep the next one out as long as it keeps the inherited descriptor.
#[test]
fn a_setsid_grandchild_that_outlives_front_and_guard_keeps_the_next_copy_out_and_status_names_it() {
    let two = Two::start(KEEPS_DESCRIPTORS);
    let guard = two.a.guard();
    // Stopped first, so that neither can clear up when the other dies.
    stop(two.a.pid());
    stop(guard);
    signal(guard, Signal::SIGKILL);
    two.a.signal(Signal::SIGKILL);
    assert_eq!(two.a.finish().code(), 137);
    let grandchild = two.grandchild;
    wait_until("a record that has run out", || only_lock(&two.scene, &[])["state"] == "expired");
    assert!(alive(grandchild), "nobody is left to end it");
    let lock = only_lock(&two.scene, &[]);
    let blocking = lock["blocked_by_pids"].as_array().expect("a list of pids");
    assert!(blocking.iter().any(|pid| *pid == grandchild), "{lock}");
    assert_eq!(two.scene.starts().len(), 1, "the next copy waits");

    signal(grandchild, Signal::SIGKILL);
    let finished = two.b.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert!(!two.scene.path("survivors").exists());
    two.scene.assert_exclusion();
}

#[test]
fn a_database_locked_for_longer_than_the_ttl_ends_the_command_before_its_lease_runs_out() {
    const TTL_NS: i64 = 3_000_000_000;
    let scene = Scene::new();
    let a = run_script(&scene, RECORDS_ITS_LIFE);
    scene.wait_for_file("alive");
    let b = run_script(&scene, "true");
    wait_until_it_waits(&b);

    let lock = lock_exclusively(&scene.db());
    let asked = own_row(&lock, "default").expect("held").asked_boot_ns;
    let finished = a.finish();
    assert_eq!(finished.code(), 76, "{}", finished.stderr);
    let termed: i64 = fs::read_to_string(scene.path("term")).expect("a TERM first").lines().next().expect("one").parse().expect("ns");
    let life = fs::read_to_string(scene.path("alive")).expect("its life");
    let last: i64 = life.lines().last().expect("many").parse().expect("ns");
    assert!(asked < termed && termed < asked + TTL_NS, "TERM within the lease: {} ns after the last renewal was sent", termed - asked);
    assert!(last < asked + TTL_NS, "dead before the lease ran out: {} ns after the last renewal was sent", last - asked);
    assert_eq!(scene.starts().len(), 1, "nobody can have claimed it yet");

    drop(lock);
    let finished = b.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(scene.starts().len(), 2);
    scene.assert_exclusion();
}

#[test]
fn a_database_locked_for_a_shorter_time_is_ridden_out() {
    const HEARTBEAT_NS: i64 = 250_000_000;
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let script = scene.witness("trap 'echo TERM >>term' TERM; read gate <go; exit 42");
    let timing = ["--ttl", "30s", "--heartbeat", "250ms", "--grace", "1s", "--db"];
    let running = scene.start(scene.bare_lockrun(timing).arg(scene.db()).args(["--", "sh", "-c", &script]));
    scene.wait_for_starts(1);

    let lock = lock_exclusively(&scene.db());
    let before = own_row(&lock, "default").expect("held").asked_boot_ns;
    // The fault lasts for several renewals that fail, and for a small part of the TTL.
    wait_until("five missed renewals", || boottime_ns() > before + 6 * HEARTBEAT_NS);
    drop(lock);
    wait_until("a renewal after it", || own_row(&open(&scene.db()), "default").is_some_and(|own| own.asked_boot_ns > before));

    gate.open();
    let finished = running.finish();
    assert_eq!(finished.code(), 42, "the command's own: {}", finished.stderr);
    assert!(!scene.path("term").exists(), "the command was never disturbed");
    assert_eq!(scene.starts().len(), 1);
}

/// The lease is lost at once, also for a command that ends well in the same moment.
#[test]
fn the_guards_death_is_76_whatever_the_command_exits_with() {
    let scene = Scene::new();
    let _gate = Gate::new(&scene, "go");
    let mut running = run_script(&scene, "trap 'exit 0' TERM; read gate <go");
    scene.wait_for_starts(1);
    signal(running.guard(), Signal::SIGKILL);
    let code = ended_with(&mut running);
    assert_eq!(code, Some(76), "{}", running.stderr());
    assert!(!running.stderr().is_empty(), "it says why");
    let own = own_row(&open(&scene.db()), "default").expect("a record");
    assert_eq!(own.holder, None, "the front has ended the rest and released");
}
