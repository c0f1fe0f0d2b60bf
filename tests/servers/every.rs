//! What is true of lockrun on every server store. Each test has a server of its own. Must never know which one it is.

use std::fs;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::common::gate::Gate;
use crate::common::report::{parse, token_in_log, wait_until_it_waits};
use crate::common::{Finished, Running, Scene, alive, signal, wait_until};
use crate::fixture::Server;
use crate::fixture::proxy::Proxy;

/// TERM 5.2 s after the last good renewal was sent, KILL 6.7 s, dead 7.2 s; free for others 8.8 s after it was last seen.
const SHORT: [&str; 6] = ["--ttl", "8s", "--heartbeat", "1s", "--grace", "1500ms"];
/// Whoever waits for its TTL, or even for its next look, fails the test by its patience.
const LONG: [&str; 2] = ["--ttl", "1h"];
/// How the script of a holder goes on until the test lets it.
const WAITS: &str = "read go <gate";

/// A server and what runs by it.
struct World<S> {
    scene: Scene,
    server: S,
}

impl<S: Server> World<S> {
    fn new() -> World<S> {
        World { scene: Scene::new(), server: S::start() }
    }

    fn lockrun(&self, url: &str, args: &[&str]) -> Command {
        let mut command = self.scene.bare_lockrun(["--name", "beat"]);
        command.env("LOCKRUN_DB", url).args(args);
        command
    }

    /// A copy whose command proves exclusion, and then does `body`.
    fn copy_at(&self, url: &str, times: &[&str], body: &str) -> Running {
        let script = self.scene.witness(body);
        self.scene.start(self.lockrun(url, times).args(["--", "sh", "-c", &script]))
    }

    fn copy(&self, times: &[&str], body: &str) -> Running {
        self.copy_at(&self.server.url(), times, body)
    }

    /// A holder whose command waits at the gate.
    fn holder(&self, times: &[&str]) -> (Gate, Running) {
        let gate = Gate::new(&self.scene, "gate");
        let holder = self.copy(times, WAITS);
        self.scene.wait_for_starts(1);
        (gate, holder)
    }

    fn waiter(&self, times: &[&str]) -> Running {
        let waiter = self.copy(times, "true");
        wait_until_it_waits(&waiter);
        waiter
    }

    fn subcommand(&self, name: &str, args: &[&str]) -> Finished {
        self.scene.run(self.scene.bare_lockrun([name]).env("LOCKRUN_DB", self.server.url()).args(args))
    }

    /// What `status` shows of the one lease.
    fn status(&self) -> serde_json::Value {
        let finished = self.subcommand("status", &["--name", "beat", "--json"]);
        assert!(matches!(finished.code(), 0 | 1), "{} {}", finished.code(), finished.stderr);
        parse(&finished.stdout)["locks"][0].clone()
    }

    fn assert_good(&self, finished: &Finished, starts: usize) {
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
        assert_eq!(self.scene.starts().len(), starts);
        self.scene.assert_exclusion();
    }
}

pub fn a_command_gets_its_token_and_its_exit_code_is_passed_on<S: Server>() {
    let world = World::<S>::new();
    let script = "echo $LOCKRUN_TOKEN $LOCKRUN_NAME $LOCKRUN_HOLDER; exit 42";
    let mut tokens = vec![];
    for _ in 0..2 {
        let finished = world.scene.run(world.lockrun(&world.server.url(), &[]).args(["--", "sh", "-c", script]));
        assert_eq!(finished.code(), 42, "{}", finished.stderr);
        let words: Vec<_> = finished.stdout.split_whitespace().collect();
        assert_eq!((words.len(), words[1]), (3, "beat"), "{words:?}");
        assert_eq!(token_in_log(&finished.stderr), words[0].parse().ok(), "{}", finished.stderr);
        tokens.push(words[0].parse::<i64>().expect("a token"));
        assert!(finished.stderr.contains("released"), "{}", finished.stderr);
    }
    assert!(tokens[0] < tokens[1], "{tokens:?}");
    let status = world.status();
    assert_eq!((&status["state"], &status["token"]), (&"free".into(), &tokens[1].into()), "a release keeps the token");
}

pub fn of_many_copies_that_start_at_once_one_runs_at_a_time<S: Server>() {
    const COPIES: usize = 8;
    let world = World::<S>::new();
    let copies: Vec<_> = (0..COPIES).map(|_| world.copy(&[], "sleep 0.02")).collect();
    for copy in copies {
        let finished = copy.finish();
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
    }
    assert_eq!(world.scene.starts().len(), COPIES);
    world.scene.assert_exclusion();
}

pub fn a_held_lease_is_shown_with_its_holder_and_not_waited_for_with_n<S: Server>() {
    let world = World::<S>::new();
    let (mut gate, holder) = world.holder(&LONG);
    let refused = world.scene.run(world.lockrun(&world.server.url(), &["-n", "--", "touch", "ran"]).arg("x"));
    assert_eq!((refused.code(), world.scene.path("ran").exists()), (75, false), "{}", refused.stderr);
    assert!(refused.stderr.contains("held by") && refused.stderr.contains(&holder.pid().to_string()), "{}", refused.stderr);
    let status = world.status();
    assert_eq!((&status["state"], &status["holder"]["pid"]), (&"held".into(), &holder.pid().into()), "{status}");
    assert_eq!((&status["ttl_ms"], &status["expires_in_ms"]), (&3_600_000.into(), &serde_json::Value::Null), "no clock in common");
    let check = world.subcommand("check", &["--name", "beat", "--token", &status["token"].to_string()]);
    assert_eq!(check.code(), 0, "{} {}", check.stdout, check.stderr);
    gate.open();
    world.assert_good(&holder.finish(), 1);
    let check = world.subcommand("check", &["--name", "beat", "--token", &status["token"].to_string()]);
    assert_eq!(check.code(), 1, "released: {} {}", check.stdout, check.stderr);
}

pub fn other_names_are_other_leases<S: Server>() {
    let world = World::<S>::new();
    let (mut gate, holder) = world.holder(&LONG);
    let mut command = world.scene.bare_lockrun(["--name", "other", "-n", "--", "true"]);
    let other = world.scene.run(command.env("LOCKRUN_DB", world.server.url()));
    assert_eq!(other.code(), 0, "{}", other.stderr);
    let status = world.subcommand("status", &["--json"]);
    let names: Vec<_> = parse(&status.stdout)["locks"].as_array().expect("locks").iter().map(|lock| lock["name"].to_string()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    gate.open();
    world.assert_good(&holder.finish(), 1);
}

pub fn without_a_name_nothing_is_started<S: Server>() {
    let world = World::<S>::new();
    let mut command = world.scene.bare_lockrun(["--", "true"]);
    let finished = world.scene.run(command.env("LOCKRUN_DB", world.server.url()));
    assert_eq!((finished.code(), finished.stderr.contains("--name")), (125, true), "{}", finished.stderr);
}

pub fn a_server_that_is_away_is_waited_for_and_with_n_called_unreachable<S: Server>() {
    let mut world = World::<S>::new();
    world.server.stop();
    let finished = world.scene.run(world.lockrun(&world.server.url(), &["-n", "--", "touch"]).arg("ran"));
    assert_eq!(finished.code(), 69, "{}", finished.stderr);
    let waiter = world.copy(&[], "true");
    waiter.wait_for_stderr("unreachable");
    world.server.start_again();
    world.assert_good(&waiter.finish(), 1);
}

pub fn the_next_copy_is_told_when_the_command_ends<S: Server>() {
    let world = World::<S>::new();
    let (mut gate, holder) = world.holder(&LONG);
    let waiter = world.waiter(&LONG);
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    world.assert_good(&waiter.finish(), 2);
}

pub fn a_front_that_is_killed_leaves_nothing_behind_and_the_lease_free<S: Server>() {
    let world = World::<S>::new();
    let (_gate, holder) = world.holder(&LONG);
    let waiter = world.waiter(&LONG);
    holder.signal(Signal::SIGKILL);
    world.assert_good(&waiter.finish(), 2);
    let pid = world.scene.starts()[0].1;
    assert!(!alive(pid), "the command of the dead front");
    holder.finish();
}

pub fn a_guard_that_is_killed_leaves_nothing_behind_and_the_lease_free<S: Server>() {
    let world = World::<S>::new();
    let (_gate, holder) = world.holder(&LONG);
    let waiter = world.waiter(&LONG);
    signal(holder.guard(), Signal::SIGKILL);
    assert_eq!(holder.finish().code(), 76);
    world.assert_good(&waiter.finish(), 2);
}

pub fn when_both_are_killed_the_next_waits_for_the_ttl_by_its_own_clock<S: Server>() {
    let world = World::<S>::new();
    let (_gate, holder) = world.holder(&SHORT);
    let waiter = world.waiter(&SHORT);
    let guard = holder.guard();
    signal(guard, Signal::SIGSTOP); // or it would run the last will before it dies
    let killed_at = std::time::Instant::now();
    holder.signal(Signal::SIGKILL);
    signal(guard, Signal::SIGKILL);
    world.assert_good(&waiter.finish(), 2);
    // The last beat may be one heartbeat older than the kill.
    let waited = killed_at.elapsed().as_secs_f64();
    assert!(waited > 8.8 - 1.5, "taken over after {waited} s");
    holder.finish();
}

pub fn a_server_that_comes_back_within_the_lease_is_ridden_out<S: Server>() {
    let mut world = World::<S>::new();
    let (mut gate, holder) = world.holder(&["--ttl", "5m", "--heartbeat", "500ms"]);
    let token = world.status()["token"].clone();
    for round in 1..=3 {
        world.server.stop();
        let lines = |word: &str| holder.stderr().lines().filter(|line| line.contains(word)).count();
        wait_until("unreachable", || lines("unreachable") == round);
        world.server.start_again();
        wait_until("recovered", || lines("recovered") == round);
    }
    assert_eq!(world.status()["token"], token);
    gate.open();
    world.assert_good(&holder.finish(), 1);
}

/// A holder at `url` in trouble for longer than its lease, and a second copy that waits all the time.
fn lost_while<S: Server>(world: &mut World<S>, url: &str, trouble: impl FnOnce(&mut S), over: impl FnOnce(&mut S)) {
    let body = "trap 'echo term >>ladder; exit 0' TERM; trap 'echo end >>ladder' EXIT; while :; do sleep 0.05; done";
    let holder = world.copy_at(url, &SHORT, body);
    let command = world.scene.wait_for_starts(1)[0].1;
    let waiter = world.waiter(&SHORT);
    trouble(&mut world.server);
    let finished = holder.finish();
    assert_eq!(finished.code(), 76, "{}", finished.stderr);
    assert!(!alive(command));
    assert_eq!(fs::read_to_string(world.scene.path("ladder")).expect("written"), "term\nend\n", "asked to end before it was killed");
    assert!(finished.stderr.contains("lost: cannot reach the store"), "{}", finished.stderr);
    over(&mut world.server);
    world.assert_good(&waiter.finish(), 2);
}

pub fn a_server_away_for_longer_than_the_lease_ends_the_command_before_another_may_start<S: Server>() {
    let mut world = World::<S>::new();
    let url = world.server.url();
    lost_while(&mut world, &url, S::stop, S::start_again);
}

pub fn a_server_that_hangs_for_longer_than_the_lease_ends_the_command_before_another_may_start<S: Server>() {
    let mut world = World::<S>::new();
    let url = world.server.url();
    lost_while(&mut world, &url, |server| server.freeze(), |server| server.thaw());
}

pub fn a_partition_ends_the_command_before_another_starts_and_what_arrives_late_changes_nothing<S: Server>() {
    let mut world = World::<S>::new();
    let proxy = Proxy::start(world.server.port());
    let url = world.server.url_at(proxy.port());
    lost_while(&mut world, &url, |_| proxy.hold(), |_| ());
    // The waiter had its turn. A third copy holds, and now the last renewals of the first one arrive.
    let gate = Gate::new(&world.scene, "gate");
    let third = world.copy(&LONG, WAITS);
    world.scene.wait_for_starts(3);
    let before = world.status();
    proxy.pass();
    proxy.wait_until_delivered();
    let after = world.status();
    assert_eq!((&before["state"], &after["holder"], &after["token"]), (&"held".into(), &before["holder"], &before["token"]));
    let mut gate = gate;
    gate.open();
    world.assert_good(&third.finish(), 3);
}

/// Whatever byte of an answer is the last that arrives: the claim happened or not, and the copy finds out.
pub fn a_connection_reset_in_the_middle_of_a_claim_starts_the_command_once<S: Server>() {
    let world = World::<S>::new();
    let proxy = Proxy::start(world.server.port());
    let url = world.server.url_at(proxy.port());
    let mut starts = 0;
    let (mut bytes, mut step) = (0, 1);
    loop {
        let resets = proxy.resets();
        proxy.reset_after(bytes);
        let finished = world.copy_at(&url, &LONG, "true").finish();
        starts += 1;
        world.assert_good(&finished, starts);
        if proxy.resets() == resets {
            break; // a whole run needs no more answers than that
        }
        bytes += step;
        step = step * 5 / 4 + 1;
    }
    assert!(starts > 5, "{starts}");
}

pub fn renewals_whose_answers_are_lost_are_recognised_or_sent_again<S: Server>() {
    let world = World::<S>::new();
    let proxy = Proxy::start(world.server.port());
    let gate = Gate::new(&world.scene, "gate");
    let holder = world.copy_at(&world.server.url_at(proxy.port()), &["--ttl", "5m", "--heartbeat", "300ms"], WAITS);
    world.scene.wait_for_starts(1);
    let token = world.status()["token"].clone();
    let count = |word: &str| holder.stderr().lines().filter(|line| line.contains(word)).count();
    for round in 1..=5 {
        proxy.lose_replies();
        wait_until("unreachable", || count("unreachable") == round);
        proxy.pass();
        proxy.reset();
        wait_until("recovered", || count("recovered") == round);
    }
    for bytes in 0..20 {
        let resets = proxy.resets();
        proxy.reset_after(bytes * 3);
        wait_until("a reset", || proxy.resets() > resets);
    }
    assert_eq!((&world.status()["state"], &world.status()["token"]), (&"held".into(), &token));
    let mut gate = gate;
    gate.open();
    world.assert_good(&holder.finish(), 1);
}

/// A machine of its own: a network namespace, with a cable to this one that the test pulls out.
pub fn a_machine_that_is_cut_off_ends_its_command_before_another_machine_starts_it<S: Server>() {
    let world = World::<S>::new();
    let proxy = Proxy::start(world.server.port());
    let host = Host::new();
    let url = world.server.url_on(&host.gateway, proxy.port());
    let body = "trap 'echo term >>ladder; exit 0' TERM; while :; do sleep 0.05; done";
    let script = world.scene.witness(body);
    let mut command = host.command(&world.scene);
    let holder = world.scene.start(command.env("LOCKRUN_DB", &url).args(["--name", "beat"]).args(SHORT).args(["--", "sh", "-c", &script]));
    let pid = world.scene.wait_for_starts(1)[0].1;
    let waiter = world.waiter(&SHORT);
    host.pull_the_cable();
    let finished = holder.finish();
    assert_eq!((finished.code(), alive(pid)), (76, false), "{}", finished.stderr);
    assert_eq!(fs::read_to_string(world.scene.path("ladder")).expect("written"), "term\n");
    world.assert_good(&waiter.finish(), 2);
}

struct Host {
    name: String,
    gateway: String,
}

impl Host {
    fn new() -> Host {
        // One number for both ends, the addresses and the name; a test that runs beside this one has another.
        static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = (std::process::id() * 8 + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed)) % 16_000;
        let name = format!("lr{number}");
        let net = format!("10.213.{}.{}", number / 64, number % 64 * 4);
        let host = Host { name, gateway: address(&net, 1) };
        let Host { name, gateway } = &host;
        ip(&format!("netns add {name}"));
        ip(&format!("link add {name}a type veth peer name {name}b netns {name}"));
        ip(&format!("addr add {gateway}/30 dev {name}a"));
        ip(&format!("link set {name}a up"));
        ip(&format!("-n {name} addr add {}/30 dev {name}b", address(&net, 2)));
        ip(&format!("-n {name} link set {name}b up"));
        host
    }

    /// `lockrun` on that machine.
    fn command(&self, scene: &Scene) -> Command {
        let mut command = scene.command("ip");
        command.args(["netns", "exec", &self.name, crate::common::lockrun_binary()]);
        command
    }

    fn pull_the_cable(&self) {
        ip(&format!("link set {}a down", self.name));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
        let _ = Command::new("ip").args(["link", "delete", &format!("{}a", self.name)]).stderr(std::process::Stdio::null()).status();
    }
}

fn address(net: &str, number: u32) -> String {
    let (start, last) = net.rsplit_once('.').expect("an address");
    format!("{start}.{}", last.parse::<u32>().expect("a number") + number)
}

fn ip(line: &str) {
    let output = Command::new("ip").args(line.split(' ')).output().expect("iproute2 is there; tests/run installs it");
    assert!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
}
