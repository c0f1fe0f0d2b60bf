//! The real lockrun on Leases: what people and other clients see of it, who gets it when, and what a cluster can do wrong.

mod access;
mod beside;
mod faults;
mod renewed;

use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::common::report::{parse, wait_until_it_waits};
use crate::common::{Running, Scene, alive, children, comm, signal, wait_until};
use crate::fixture::Server;
use crate::fixture::kubernetes::{Kubernetes, TOKEN};

/// TERM 2.8 s, KILL 3.1 s, dead 3.6 s after the last good renewal; an attempt has 300 ms.
const SHORT: [&str; 6] = ["--ttl", "4s", "--heartbeat", "600ms", "--grace", "300ms"];

/// What a command does until `go`.
const UNTIL_GO: &str = "while ! test -e go; do sleep 0.02; done";

struct World {
    scene: Scene,
    server: Kubernetes,
}

impl World {
    fn new() -> World {
        World { scene: Scene::new(), server: Kubernetes::start() }
    }

    /// `lockrun ARGS --db kubernetes:… --name beat`; with `ARGS` first, so that a subcommand may be one.
    fn lockrun(&self, args: &[&str]) -> Command {
        self.lockrun_at(&self.server.url(), args)
    }

    fn lockrun_at(&self, url: &str, args: &[&str]) -> Command {
        let mut command = self.scene.bare_lockrun(args);
        for key in ["KUBECONFIG", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "POD_NAME", "POD_UID"] {
            command.env_remove(key);
        }
        command.args(["--db", url, "--name", "beat"]).env("HOME", self.scene.dir());
        command
    }

    /// A copy whose command, a shell script, proves by the kernel that no other runs.
    fn start(&self, args: &[&str], body: &str) -> Running {
        self.scene.start(self.lockrun(args).args(["--", "sh", "-c", &self.scene.witness(body)]))
    }

    fn start_holder(&self, args: &[&str], body: &str) -> Running {
        let holder = self.start(args, body);
        self.scene.wait_for_starts(1);
        holder
    }

    fn start_waiter(&self, args: &[&str], body: &str) -> Running {
        let waiter = self.start(args, body);
        wait_until_it_waits(&waiter);
        waiter
    }

    fn go(&self) {
        std::fs::write(self.scene.path("go"), "").expect("a file");
    }

    fn lease(&self) -> Value {
        self.server.lease("beat").expect("the object")
    }

    fn spec(&self, field: &str) -> Value {
        self.lease()["spec"][field].clone()
    }

    /// When the file was written, by its content: `date +%s%N`.
    fn time_in(&self, file: &str) -> u128 {
        wait_until(file, || std::fs::read_to_string(self.scene.path(file)).is_ok_and(|text| text.ends_with('\n')));
        self.scene.wait_for_file(file).trim().parse().expect("nanoseconds")
    }
}

fn now_ns() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos()
}

fn since(ns: u128, later: u128) -> Duration {
    Duration::from_nanos(u64::try_from(later.saturating_sub(ns)).expect("not centuries"))
}

fn assert_code(finished: &crate::common::Finished, code: i32) {
    assert_eq!(finished.code(), code, "{}", finished.stderr);
}

#[test]
fn it_runs_the_command_and_the_object_reads_well_meanwhile_and_afterwards() {
    let world = World::new();
    let body = "touch up; while ! test -e go; do sleep 0.02; done; exit 42";
    let command = &mut world.lockrun(&["--ttl", "20s"]);
    let holder = world.scene.start(command.env("POD_NAME", "beat-7f").env("POD_UID", "u-1").args(["--", "sh", "-c", body]));
    world.scene.wait_for_file("up");
    let identity = world.spec("holderIdentity").as_str().expect("a holder").to_string();
    assert!(identity.starts_with("beat-7f_") && identity.len() == "beat-7f_".len() + 32, "{identity}");
    assert_eq!((world.spec("leaseDurationSeconds"), world.spec("leaseTransitions")), (json!(20), json!(0)));

    let status = world.scene.run(&mut world.lockrun(&["status", "--json"]));
    assert_code(&status, 0);
    let lock = &parse(&status.stdout)["locks"][0];
    assert_eq!((&lock["name"], &lock["state"], &lock["holder"]["pid"]), (&json!("beat"), &json!("held"), &json!(holder.pid())));
    assert_eq!(lock["ttl_ms"], 20_000);

    world.go();
    assert_code(&holder.finish(), 42);
    assert_eq!((world.spec("holderIdentity"), world.spec("leaseDurationSeconds")), (json!(""), json!(1)));
    let status = world.scene.run(&mut world.lockrun(&["status"]));
    assert!(status.stdout.starts_with("beat: free, token 1"), "{}", status.stdout);
}

#[test]
fn n_is_75_and_names_the_holder() {
    let world = World::new();
    let _holder = world.start_holder(&["--ttl", "60s"], "exec sleep 600");
    for _ in 0..2 {
        let finished = world.scene.run(world.lockrun(&["-n"]).args(["--", "touch", "ran"]));
        assert_code(&finished, 75);
        assert!(finished.stderr.contains("held by "), "{}", finished.stderr);
    }
    assert!(!world.scene.path("ran").exists());
}

#[test]
fn a_database_in_a_file_is_read_as_from_the_command_line() {
    let world = World::new();
    std::fs::write(world.scene.path("secret"), format!("{}\n", world.server.url())).expect("a file");
    let command = &mut world.scene.bare_lockrun(["--name", "beat", "--", "sh", "-c", "echo $LOCKRUN_NAME"]);
    let finished = world.scene.run(command.env("LOCKRUN_DB_FILE", world.scene.path("secret")));
    assert_eq!((finished.code(), finished.stdout.as_str()), (0, "beat\n"), "{}", finished.stderr);
}

#[test]
fn a_name_that_no_lease_object_can_have_is_refused_with_the_rule() {
    let world = World::new();
    for name in ["Beat", "a/b", "a_b", "-a", "a.", "a..b"] {
        let args = ["--db", &world.server.url(), &format!("--name={name}"), "--", "touch", "ran"];
        let finished = world.scene.run(&mut world.scene.bare_lockrun(args));
        assert_code(&finished, 125);
        assert!(finished.stderr.contains("DNS subdomain") && finished.stderr.lines().count() == 1, "{name}: {}", finished.stderr);
    }
}

/// Nobody waits for a TTL: the watch tells.
#[test]
fn a_release_is_handed_over_by_the_watch() {
    let world = World::new();
    let mut spans = vec![];
    let _holder = world.start_holder(&["--ttl", "60s"], "while ! test -e go0; do sleep 0.01; done; date +%s%N >ended0");
    let mut waiters = vec![];
    for round in 0..5 {
        let next = round + 1;
        let body = format!("date +%s%N >began{round}; while ! test -e go{next}; do sleep 0.01; done; date +%s%N >ended{next}");
        waiters.push(world.start_waiter(&["--ttl", "60s"], &body));
        // Its watch stands once it has been asked for.
        wait_until("a watch", || world.server.requests().iter().any(|(verb, _)| verb == "watch"));
        std::fs::write(world.scene.path(&format!("go{round}")), "").expect("a file");
        spans.push(since(world.time_in(&format!("ended{round}")), world.time_in(&format!("began{round}"))));
    }
    spans.sort();
    println!("from the last act of one command to the first of the next: {spans:?}");
    assert!(spans[2] < Duration::from_secs(2), "{spans:?}");
    std::fs::write(world.scene.path("go5"), "").expect("a file");
    world.scene.assert_exclusion();
}

#[test]
fn a_front_that_is_killed_leaves_its_lease_by_the_last_will() {
    let world = World::new();
    let holder = world.start_holder(&["--ttl", "60s"], "exec sleep 600");
    let _waiter = world.start_waiter(&["--ttl", "60s"], "date +%s%N >began; exec sleep 600");
    let killed = now_ns();
    holder.signal(Signal::SIGKILL);
    let span = since(killed, world.time_in("began"));
    println!("from kill -9 of the front to the next command: {span:?}");
    assert!(span < Duration::from_secs(20), "not by the TTL: {span:?}");
    world.scene.assert_exclusion();
}

#[test]
fn when_all_is_killed_the_next_waits_for_the_ttl_by_its_own_clock() {
    let world = World::new();
    let holder = world.start_holder(&SHORT, "exec sleep 600");
    let _waiter = world.start_waiter(&SHORT, "date +%s%N >began; exec sleep 600");
    // Stopped first: whichever of them outlived the other by a moment would release the lease.
    let both = [holder.pid(), holder.guard()];
    for number in [Signal::SIGSTOP, Signal::SIGKILL] {
        both.iter().for_each(|pid| signal(*pid, number));
    }
    // The last renewal is at most a heartbeat old.
    let killed = now_ns();
    let span = since(killed, world.time_in("began"));
    println!("from kill -9 of everything to the next command, ttl 4 s: {span:?}");
    assert!(span > Duration::from_millis(4400 - 900), "before the holder's TTL was over: {span:?}");
    world.scene.assert_exclusion();
}

/// As a container whose memory.oom.group killed it whole, and that the kubelet starts again in the same pod.
#[test]
fn a_container_that_was_killed_whole_takes_over_from_itself_at_once() {
    let world = World::new();
    let start = |marker: &str| {
        let mut command = world.scene.command("unshare");
        command.args([
            "--fork",
            "--kill-child",
            "--pid",
            "--mount-proc",
            crate::common::lockrun_binary(),
            "--ttl",
            "60s",
            "--name",
            "beat",
            "--db",
        ]);
        command.arg(world.server.url()).env("LOCKRUN_INSTANCE", "u-1/beat");
        let body = world.scene.witness(&format!("touch {marker}; exec sleep 600"));
        world.scene.start(command.args(["--", "sh", "-c", &body]))
    };
    let first = start("one");
    wait_until("the first", || world.scene.path("one").exists() || first.stderr().contains("unshare:"));
    assert!(!first.stderr().contains("unshare:"), "as root, see tests/run: {}", first.stderr());
    let init = children(first.pid()).into_iter().find(|pid| comm(*pid) == "lockrun").expect("lockrun as init");
    signal(init, Signal::SIGKILL);
    wait_until("the container's end", || !alive(init));
    let killed = now_ns();
    let _second = start("two");
    world.scene.wait_for_file("two");
    println!("from the start of the container to its command: {:?}", since(killed, now_ns()));
    assert_eq!(world.scene.starts().len(), 2);
    world.scene.assert_exclusion();
}

#[test]
fn check_says_what_the_cluster_is_and_what_it_cannot_promise() {
    let world = World::new();
    let json = world.scene.run(&mut world.lockrun(&["check", "--json"]));
    assert_code(&json, 0);
    let check = parse(&json.stdout);
    assert_eq!(
        (&check["store"], &check["namespace"], &check["server_version"]),
        (&json!("kubernetes"), &json!("default"), &json!("v1.33.0-tests"))
    );
    assert_eq!(check["notifications"], true);
    assert!(world.server.leases().is_empty(), "nothing was written");
    let text = world.scene.run(&mut world.lockrun(&["check"])).stdout;
    assert!(text.contains("kubernetes:default at 127.0.0.1") && text.contains("v1.33.0-tests"), "{text}");
    assert!(text.contains("keep --ttl at or below that client's own lease duration"), "{text}");

    world.server.grant(TOKEN, Some(&["get", "create", "update"]));
    let deaf = world.scene.run(&mut world.lockrun(&["check"]));
    assert!(deaf.code() == 0 && deaf.stdout.contains("may not list, watch leases"), "{}", deaf.stdout);
    world.server.grant(TOKEN, Some(&["get", "list", "watch"]));
    let blind = world.scene.run(&mut world.lockrun(&["check"]));
    assert!(
        blind.code() == 125 && blind.stderr.contains("may not create, update leases in namespace default; bind a Role"),
        "{}",
        blind.stderr
    );
}

/// The Role of packaging/kubernetes.
#[test]
fn rights_on_one_lease_alone_are_enough_to_hold_it_and_to_wait_for_it() {
    let world = World::new();
    world.server.grant(TOKEN, Some(&["get/beat", "list/beat", "update/beat", "watch/beat", "create"]));
    let check = world.scene.run(&mut world.lockrun(&["check"]));
    assert!(check.code() == 0 && check.stdout.contains("rights on some leases only: beat\n"), "{}{}", check.stdout, check.stderr);
    let holder = world.start_holder(&["--ttl", "60s"], "while ! test -e go; do sleep 0.01; done");
    let waiter = world.start_waiter(&["--ttl", "60s"], "exit 0");
    wait_until("a watch", || world.server.requests().contains(&("watch".to_string(), "beat".to_string())));
    world.go();
    assert_code(&holder.finish(), 0);
    assert_code(&waiter.finish(), 0);
    assert_code(&world.scene.run(world.lockrun(&["-n"]).args(["--", "true"])), 0);
    let url = world.server.url();
    let all = world.scene.run(&mut world.scene.bare_lockrun(["status", "--db", &url]));
    assert!(all.code() == 125 && all.stderr.contains("cannot list resource"), "{}", all.stderr);
}
