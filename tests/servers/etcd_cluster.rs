//! Three members: the loss of any one of them, the leader too, costs no lease; nor does an endpoint that swallows packets.

use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use nix::sys::socket::{Backlog, listen};

use crate::common::{Running, Scene, wait_until};
use crate::fixture::etcd::Cluster;

const UNTIL_TOLD: &str = "while [ ! -e end ]; do sleep 0.05; done";

/// TERM 8 s after the last good renewal; one every half second, each attempt with 200 ms.
fn lockrun(scene: &Scene, db: &str) -> Command {
    scene.bare_lockrun(["--name", "beat", "--ttl", "10s", "--heartbeat", "500ms", "--grace", "500ms", "--db", db])
}

fn holder(scene: &Scene, db: &str) -> Running {
    scene.start(lockrun(scene, db).args(["--", "sh", "-c", &scene.witness(UNTIL_TOLD)]))
}

/// What a member that answers says of the last renewal.
fn renewed_at(scene: &Scene, db: &str) -> Option<String> {
    let status = scene.run(&mut scene.bare_lockrun(["status", "--json", "--name", "beat", "--db", db]));
    let json: serde_json::Value = serde_json::from_str(&status.stdout).ok()?;
    Some(json["locks"][0]["renewed_at"].as_str()?.to_string())
}

/// Twice, because one may have been on its way before.
fn wait_for_renewals(scene: &Scene, db: &str) {
    for _ in 0..2 {
        let before = renewed_at(scene, db);
        wait_until("a renewal", || renewed_at(scene, db).is_some_and(|now| before.as_ref() != Some(&now)));
    }
}

/// The holder goes on, then ends; a waiter is next, with a greater token.
fn hand_over(scene: &Scene, db: &str, holder: Running) {
    let waiter = scene.start(lockrun(scene, db).args(["--", "sh", "-c", &scene.witness("true")]));
    waiter.wait_for_stderr("waiting");
    std::fs::write(scene.path("end"), "").expect("a file");
    let finished = holder.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(finished.stderr.matches("acquired").count(), 1, "kept all the time: {}", finished.stderr);
    let finished = waiter.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(scene.starts().len(), 2);
    scene.assert_exclusion();
}

#[test]
fn a_leader_that_is_killed_under_a_holder_costs_no_lease_twice_over() {
    let (scene, mut cluster) = (Scene::new(), Cluster::start());
    let url = cluster.url();
    let holder = holder(&scene, &url);
    scene.wait_for_starts(1);
    for _ in 0..2 {
        let leader = cluster.leader();
        cluster.kill(leader);
        wait_for_renewals(&scene, &url);
        cluster.start_again(leader);
    }
    hand_over(&scene, &url, holder);
}

#[test]
fn a_leader_that_is_frozen_under_a_holder_costs_no_lease() {
    let (scene, cluster) = (Scene::new(), Cluster::start());
    let url = cluster.url();
    let holder = holder(&scene, &url);
    scene.wait_for_starts(1);
    let leader = cluster.leader();
    cluster.freeze(leader);
    wait_for_renewals(&scene, &url);
    cluster.thaw(leader);
    hand_over(&scene, &url, holder);
}

#[test]
fn members_that_are_lost_one_after_the_other_cost_no_lease() {
    let (scene, mut cluster) = (Scene::new(), Cluster::start());
    let url = cluster.url();
    let holder = holder(&scene, &url);
    scene.wait_for_starts(1);
    for index in 0..3 {
        cluster.freeze(index);
        wait_for_renewals(&scene, &url);
        cluster.thaw(index);
        cluster.kill(index);
        wait_for_renewals(&scene, &url);
        cluster.start_again(index);
    }
    hand_over(&scene, &url, holder);
}

#[test]
fn a_waiter_whose_member_is_frozen_is_told_of_the_release_all_the_same() {
    let (scene, cluster) = (Scene::new(), Cluster::start());
    let url = cluster.url();
    let holder = holder(&scene, &url);
    scene.wait_for_starts(1);
    // The waiter begins with the first; a follower, so that nothing else stands still.
    let index = (0..3).find(|index| *index != cluster.leader()).expect("one of three");
    let first = format!("{},{}", host(&cluster, index), hosts_but(&cluster, index));
    let waiter = scene.start(lockrun(&scene, &format!("etcd://{first}")).args(["--", "sh", "-c", &scene.witness("true")]));
    waiter.wait_for_stderr("waiting");
    cluster.freeze(index);
    std::fs::write(scene.path("end"), "").expect("a file");
    assert_eq!(holder.finish().code(), 0);
    let finished = waiter.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    scene.assert_exclusion();
    cluster.thaw(index);
}

#[test]
fn without_a_majority_the_command_is_ended_before_anybody_else_can_start() {
    let (scene, mut cluster) = (Scene::new(), Cluster::start());
    let url = cluster.url();
    let first = holder(&scene, &url);
    scene.wait_for_starts(1);
    let [one, two] = match cluster.leader() {
        0 => [0, 1],
        1 => [1, 2],
        _ => [2, 0],
    };
    cluster.kill(one);
    cluster.kill(two);
    let finished = first.finish();
    assert_eq!(finished.code(), 76, "{}", finished.stderr);
    assert!(finished.stderr.contains("unreachable"), "{}", finished.stderr);
    cluster.start_again(one);
    cluster.start_again(two);
    let next = holder(&scene, &url);
    scene.wait_for_starts(2);
    std::fs::write(scene.path("end"), "").expect("a file");
    assert_eq!(next.finish().code(), 0);
    scene.assert_exclusion();
}

fn host(cluster: &Cluster, index: usize) -> String {
    format!("127.0.0.1:{}", cluster.port(index))
}

fn hosts_but(cluster: &Cluster, left_out: usize) -> String {
    (0..3).filter(|index| *index != left_out).map(|index| host(cluster, index)).collect::<Vec<_>>().join(",")
}

/// A port that swallows whatever is sent to it: nobody accepts, and there is no room for more.
struct Swallows {
    port: u16,
    _held: (TcpListener, Vec<TcpStream>),
}

impl Swallows {
    fn new() -> Swallows {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        listen(&listener, Backlog::new(0).expect("a length")).expect("it listens");
        let address = listener.local_addr().expect("its address");
        let mut taken = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            taken.push(stream);
        }
        Swallows { port: address.port(), _held: (listener, taken) }
    }
}

#[test]
fn endpoints_that_refuse_or_swallow_packets_are_passed_over_within_one_attempt() {
    let (scene, cluster, swallows) = (Scene::new(), Cluster::start(), Swallows::new());
    let refused = crate::fixture::free_port();
    let url = format!("etcd://127.0.0.1:{},127.0.0.1:{refused},{}", swallows.port, hosts_but(&cluster, 0));
    let mut patient = scene.bare_lockrun(["--name", "beat", "--ttl", "24s", "--db", &url]);
    let holder = scene.start(patient.args(["--", "sh", "-c", &scene.witness(UNTIL_TOLD)]));
    scene.wait_for_starts(1);
    wait_for_renewals(&scene, &url);
    std::fs::write(scene.path("end"), "").expect("a file");
    let finished = holder.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert!(!finished.stderr.contains("unreachable"), "no request was lost: {}", finished.stderr);
    let check = scene.run(&mut scene.bare_lockrun(["check", "--json", "--db", &url]));
    assert_eq!(check.code(), 0, "{}", check.stderr);
    let json: serde_json::Value = serde_json::from_str(&check.stdout).expect("JSON");
    assert_eq!((json["members"].as_u64(), json["endpoints_that_answer"].as_u64()), (Some(3), Some(2)), "{json}");
    for port in [swallows.port, refused] {
        assert!(json["warnings"].to_string().contains(&format!("an endpoint does not answer: 127.0.0.1:{port}")), "{json}");
    }
}

#[test]
fn check_says_when_one_endpoint_of_several_members_is_all_that_is_named() {
    let (scene, cluster) = (Scene::new(), Cluster::start());
    let check = scene.run(&mut scene.bare_lockrun(["check", "--db", &format!("etcd://{}", host(&cluster, 0))]));
    assert_eq!(check.code(), 0, "{}", check.stderr);
    assert!(check.stdout.contains("one endpoint of 3 members") && check.stdout.contains("members 3"), "{}", check.stdout);
}

/// `lockrun` where `many` is 127.0.0.2 and 127.0.0.1, in this order, in a mount namespace that ends with it.
#[test]
fn of_one_name_with_several_addresses_one_that_never_answers_is_passed_over() {
    let (scene, server) = (Scene::new(), <crate::fixture::etcd::Etcd as crate::fixture::Server>::start());
    let port = crate::fixture::Server::port(&server);
    // It accepts, as a member does that hangs, and says nothing.
    let _silent = TcpListener::bind(("127.0.0.2", port)).expect("the other address");
    std::fs::write(scene.path("hosts"), "127.0.0.2 many\n127.0.0.1 many\n").expect("a file");
    let mut command = scene.command("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "sh", "-c", "mount --bind hosts /etc/hosts && exec \"$@\"", "sh", crate::common::lockrun_binary()]);
    command.args(["--db", &format!("etcd://many:{port}"), "--name", "beat", "--", "sh", "-c", &scene.witness(UNTIL_TOLD)]);
    let holder = scene.start(&mut command);
    scene.wait_for_starts(1);
    std::fs::write(scene.path("end"), "").expect("a file");
    let finished = holder.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert!(!finished.stderr.contains("unreachable"), "no request was lost: {}", finished.stderr);
}
