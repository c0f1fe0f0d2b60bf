//! Signals that are sent to lockrun: which reach the command, which do not, and that none is lost, at whatever moment.

use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;

use super::{
    assert_code, assert_died_of, assert_does_not_spin, assert_released, caught, find, patient, probe, program, times_caught,
    wait_for_catcher, wait_for_signal,
};
use crate::common::{Running, Scene, alive, lockrun_binary, wait_until};

/// CHLD is lockrun's own business; TTIN and TTOU are of the terminal.
const KEPT: [i32; 3] = [libc::SIGCHLD, libc::SIGTTIN, libc::SIGTTOU];
/// The kernel's word for a fault of the receiver itself; PIPE belongs to whoever writes.
const NOT_SENT: [i32; 8] =
    [libc::SIGILL, libc::SIGTRAP, libc::SIGABRT, libc::SIGBUS, libc::SIGFPE, libc::SIGSEGV, libc::SIGSYS, libc::SIGPIPE];

fn send(running: &Running, signal: i32) {
    // SAFETY: a plain system call; the test has not waited for this process, so the pid is still its own.
    assert_eq!(unsafe { libc::kill(running.pid(), signal) }, 0, "the front is gone: {}", running.stderr());
}

/// A lockrun whose command writes down its signals; LAST ends it.
fn catcher(scene: &Scene, options: &[&str], part: &[&str]) -> Running {
    let probe = probe();
    let running = scene.start(&mut patient(scene, [options, &["--", &probe], part].concat()));
    wait_for_catcher(&scene.path("caught"));
    running
}

#[test]
fn t09_every_signal_but_a_few_reaches_the_command_once_and_in_the_order_sent() {
    let scene = Scene::new();
    let mut running = catcher(&scene, &[], &["sigcatch", "caught", "64"]);
    let file = scene.path("caught");
    let mut expected = Vec::new();
    for signal in (1..=64).filter(|signal| !matches!(signal, 9 | 19 | 32 | 33) && !NOT_SENT.contains(signal)) {
        assert!(running.is_running(), "lockrun ended before signal {signal}: {}", running.stderr());
        send(&running, signal);
        if !KEPT.contains(&signal) {
            wait_for_signal(&file, signal);
            expected.push(signal);
        }
    }
    assert_code(&running.finish(), 0);
    assert_eq!(caught(&file).iter().map(|(signal, _)| *signal).collect::<Vec<_>>(), expected);
}

#[test]
fn t09_signals_reach_the_commands_children_only_when_asked_to() {
    for (options, expected) in [(&[][..], 0), (&["--signal-to", "child"][..], 0), (&["--signal-to", "group"][..], 1)] {
        let scene = Scene::new();
        let running = catcher(&scene, options, &["sigcatch-pair", "caught", "child"]);
        send(&running, libc::SIGUSR1);
        wait_for_signal(&scene.path("caught"), libc::SIGUSR1);
        if expected > 0 {
            wait_for_signal(&scene.path("child"), libc::SIGUSR1);
        }
        // A second signal: what was still on its way of the first is there when this one is.
        send(&running, libc::SIGUSR2);
        wait_for_signal(&scene.path("caught"), libc::SIGUSR2);
        assert_eq!(times_caught(&scene.path("child"), libc::SIGUSR1), expected, "with {options:?}");
        assert_eq!(times_caught(&scene.path("caught"), libc::SIGUSR1), 1, "with {options:?}");
    }
}

#[test]
fn t09_the_stop_signal_takes_the_place_of_term_and_of_no_other() {
    let scene = Scene::new();
    let running = catcher(&scene, &["--stop-signal", "USR1"], &["sigcatch", "caught", "12"]);
    for (sent, arrives) in [(libc::SIGTERM, libc::SIGUSR1), (libc::SIGINT, libc::SIGINT), (libc::SIGUSR2, libc::SIGUSR2)] {
        send(&running, sent);
        wait_for_signal(&scene.path("caught"), arrives);
    }
    assert_code(&running.finish(), 0);
    let signals: Vec<i32> = caught(&scene.path("caught")).iter().map(|(signal, _)| *signal).collect();
    assert_eq!(signals, [libc::SIGUSR1, libc::SIGINT, libc::SIGUSR2]);
}

#[test]
fn t09_kill_after_ends_a_command_that_does_not_heed_a_stop_signal() {
    let scene = Scene::new();
    let running = catcher(&scene, &["--kill-after", "200ms"], &["sigcatch", "caught"]);
    send(&running, libc::SIGTERM);
    let finished = running.finish();
    assert_died_of(&finished, libc::SIGKILL);
    assert_eq!(times_caught(&scene.path("caught"), libc::SIGTERM), 1);
    assert_released(&scene);
}

#[test]
fn t10_a_real_time_signal_reaches_the_command_as_often_as_it_was_sent() {
    let scene = Scene::new();
    let running = catcher(&scene, &[], &["sigcatch", "caught", "38"]);
    for _ in 0..5 {
        send(&running, 37);
    }
    wait_until("five of signal 37", || times_caught(&scene.path("caught"), 37) == 5);
    send(&running, 38);
    assert_code(&running.finish(), 0);
    assert_eq!(times_caught(&scene.path("caught"), 37), 5);
}

#[test]
fn t11_winch_and_cont_reach_the_command_once() {
    let scene = Scene::new();
    let running = catcher(&scene, &[], &["sigcatch", "caught", "12"]);
    for signal in [libc::SIGWINCH, libc::SIGCONT] {
        send(&running, signal);
        wait_for_signal(&scene.path("caught"), signal);
    }
    send(&running, libc::SIGUSR2);
    assert_code(&running.finish(), 0);
    let signals: Vec<i32> = caught(&scene.path("caught")).iter().map(|(signal, _)| *signal).collect();
    assert_eq!(signals, [libc::SIGWINCH, libc::SIGCONT, libc::SIGUSR2]);
}

#[test]
fn t12_a_hundred_sigchld_from_outside_change_nothing() {
    let scene = Scene::new();
    let running = scene.start(&mut patient(&scene, ["--", "sh", "-c", "touch up; until [ -e go ]; do sleep 0.1; done; exit 7"]));
    scene.wait_for_file("up");
    for _ in 0..100 {
        send(&running, libc::SIGCHLD);
    }
    assert_does_not_spin(running.pid());
    std::fs::write(scene.path("go"), "").expect("go");
    assert_code(&running.finish(), 7);
}

#[test]
fn t13_a_signal_while_waiting_ends_lockrun_by_it_and_starts_nothing() {
    let scene = Scene::new();
    let mut holder = scene.start(&mut patient(&scene, ["--", "sh", "-c", &scene.witness("exec sleep 600")]));
    scene.wait_for_starts(1);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let waiter = scene.start(&mut patient(&scene, ["--", "touch", "ran"]));
        waiter.wait_for_stderr("waiting");
        waiter.signal(signal);
        assert_died_of(&waiter.finish(), signal as i32);
    }
    assert!(!scene.path("ran").exists(), "a waiter's command ran");
    let starts = scene.starts();
    assert_eq!(starts.len(), 1);
    assert!(holder.is_running() && alive(starts[0].1), "the holder was disturbed: {}", holder.stderr());
}

/// Ends `runs` lockruns by TERM, each at a random time after its start, at most `longest`.
fn stop_early(runs: u64, longest: Duration) {
    let scene = Scene::new();
    let mut random = Random::new();
    println!("seed {}", random.state);
    for run in 0..runs {
        let delay = Duration::from_nanos(random.below(longest.as_nanos() as u64));
        let running = scene.start(&mut patient(&scene, ["--name", &format!("run-{run}"), "--", "sleep", "30"]));
        let moment = Instant::now() + delay;
        while Instant::now() < moment {
            std::hint::spin_loop();
        }
        running.signal(Signal::SIGTERM);
        let finished = running.finish();
        let status = finished.status;
        println!("run {run}: TERM after {delay:?}: {status}");
        // A lost TERM shows as the sleep's own end, exit code 0.
        assert_died_of(&finished, libc::SIGTERM);
        let left: Vec<i32> = scene.processes().into_iter().filter(|pid| crate::common::comm(*pid) == "sleep").collect();
        assert_eq!(left, Vec::<i32>::new(), "run {run}: lockrun is gone and its command is not");
    }
    wait_until("the end of the guards", || scene.processes().is_empty());
}

#[test]
fn t14_a_term_in_the_first_5_ms_is_never_lost() {
    stop_early(400, Duration::from_millis(5));
}

#[test]
fn t14_a_term_around_the_start_of_the_command_is_never_lost() {
    // How long a start takes here and now, so that the moments fall around the fork of the command.
    let scene = Scene::new();
    let started = Instant::now();
    let running = scene.start(&mut patient(&scene, ["--", "sh", "-c", "touch up; exec sleep 600"]));
    scene.wait_for_file("up");
    let took = started.elapsed();
    println!("a start takes {took:?}");
    drop(running);
    stop_early(200, took * 3 / 2);
}

/// xorshift64*, seeded by the clock, or by the variable SEED to repeat a run.
struct Random {
    state: u64,
}

impl Random {
    fn new() -> Random {
        let given = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
        let clock = || SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        Random { state: given.unwrap_or_else(clock) | 1 }
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) % limit
    }
}

/// `VARIABLES probe odd lockrun … -- COMMAND`.
fn below_odd(scene: &Scene, variables: &[&str], options: &[&str], command: &[&str]) -> Running {
    let db = scene.db();
    let mut odd = program(scene, probe());
    odd.args(["odd", lockrun_binary(), "--ttl", "600s", "--heartbeat", "250ms", "--db"]).arg(db);
    odd.args(options).arg("--").args(command).envs(variables.iter().map(|name| (*name, "1")));
    scene.start(odd.stdin(Stdio::null()))
}

#[test]
fn t17_a_caller_that_ignores_sigchld_gets_the_exit_code_at_once() {
    let scene = Scene::new();
    let started = Instant::now();
    let finished = below_odd(&scene, &["IGNCHLD"], &[], &["sh", "-c", "sleep 0.2; exit 7"]).finish();
    assert_code(&finished, 7);
    assert!(started.elapsed() < Duration::from_secs(20), "it did not hear of the end: {:?}", started.elapsed());
    assert_released(&scene);
}

#[test]
fn t18_term_is_forwarded_also_when_the_caller_blocked_it_and_sigchld() {
    let scene = Scene::new();
    for variables in [&["BLKTERM"][..], &["BLKCHLD"][..], &["BLKTERM", "BLKCHLD", "IGNCHLD"][..]] {
        let file = scene.path(&variables.concat());
        // The catcher unblocks for itself: a command that keeps TERM blocked is not ended by it.
        let name = file.to_str().expect("UTF-8");
        let running = below_odd(&scene, variables, &[], &[&probe(), "sigcatch", name, "15"]);
        wait_for_catcher(&file);
        send(&running, libc::SIGTERM);
        assert_code(&running.finish(), 0);
        assert_eq!(caught(&file).iter().map(|(signal, _)| *signal).filter(|signal| *signal != 18).collect::<Vec<_>>(), [15]);
    }
}

#[test]
fn t18_a_command_that_keeps_term_blocked_is_ended_by_kill_after() {
    let scene = Scene::new();
    let running = below_odd(&scene, &["BLKTERM"], &["--kill-after", "200ms"], &["sleep", "600"]);
    find(&scene, "sleep");
    send(&running, libc::SIGTERM);
    assert_died_of(&running.finish(), libc::SIGKILL);
}

#[test]
fn t18_a_waiter_ends_by_term_also_when_the_caller_blocked_it() {
    let scene = Scene::new();
    let _holder = scene.start(&mut patient(&scene, ["--", "sh", "-c", "touch up; exec sleep 600"]));
    scene.wait_for_file("up");
    let waiter = below_odd(&scene, &["BLKTERM", "BLKCHLD"], &[], &["touch", "ran"]);
    waiter.wait_for_stderr("waiting");
    send(&waiter, libc::SIGTERM);
    assert_died_of(&waiter.finish(), libc::SIGTERM);
    assert!(!scene.path("ran").exists());
}
