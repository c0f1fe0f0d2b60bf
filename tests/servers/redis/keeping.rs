//! What the server keeps, forgets and refuses, and what comes of that; what `check`, `status` and the log say of it.

use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::{brief, check, refused, run, unreachable, url, with, works};
use crate::common::report::{parse, wait_until_it_waits};
use crate::common::{Running, Scene, wait_until};
use crate::fixture::Server;
use crate::fixture::redis::Redis;

#[test]
fn a_server_that_may_drop_a_lease_is_refused_and_the_setting_named() {
    let scene = Scene::new();
    let redis = Redis::with(&["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"]);
    refused(&scene, &redis.url(), &["maxmemory-policy", "allkeys-lru", "noeviction"]);
    redis.ask(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    works(&scene, &redis.url());
    works(&scene, &Redis::with(&["--maxmemory-policy", "allkeys-lru"]).url()); // without a limit nothing is dropped
}

#[test]
fn a_server_that_takes_no_writes_for_now_is_unreachable_and_says_why() {
    let scene = Scene::new();
    let full = Redis::with(&["--maxmemory", "1", "--maxmemory-policy", "noeviction"]);
    unreachable(&scene, &full.url(), &["memory is full"]);
    let lonely = Redis::with(&["--min-replicas-to-write", "1"]);
    unreachable(&scene, &lonely.url(), &["min-replicas-to-write"]);
    let busy = Redis::with(&["--lua-time-limit", "1"]);
    let mut script = scene.start(scene.command("redis-cli").args(["-p", &busy.port().to_string(), "EVAL", "while true do end", "0"]));
    wait_until("it is busy", || busy.ask(&["PING"]).contains("BUSY"));
    unreachable(&scene, &busy.url(), &["busy with a script"]);
    busy.ask(&["SCRIPT", "KILL"]);
    wait_until("the script ends", || !script.is_running());
    works(&scene, &busy.url());
}

#[test]
fn a_replica_is_waited_for_until_it_is_the_primary() {
    let scene = Scene::new();
    let primary = Redis::start();
    let replica = primary.replica();
    unreachable(&scene, &replica.url(), &["replica", "primary"]);
    let waiter = scene.start(&mut with(&scene, &replica.url(), &["--name", "a", "--", "true"]));
    waiter.wait_for_stderr("unreachable");
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    assert_eq!(waiter.finish().code(), 0);
}

/// A holder whose command has started, and runs until it is killed.
fn holder(scene: &Scene, redis: &Redis) -> Running {
    let holder = scene.start(&mut brief(scene, &redis.url(), &scene.witness("exec sleep 100")));
    scene.wait_for_starts(1);
    holder
}

fn assert_killed_at_once(scene: &Scene, holder: Running, reason: &str) {
    let ended = holder.finish();
    assert_eq!(ended.code(), 76, "{}", ended.stderr);
    assert!(ended.stderr.contains(reason) && !ended.stderr.contains("stopping"), "{}", ended.stderr);
    assert!(scene.processes().is_empty(), "nothing of it is alive");
}

#[test]
fn a_record_that_is_deleted_under_a_holder_ends_it_at_once() {
    let scene = Scene::new();
    let redis = Redis::start();
    let holder = holder(&scene, &redis);
    redis.ask(&["DEL", "lockrun:lease:a"]);
    assert_killed_at_once(&scene, holder, "record gone");
    works(&scene, &redis.url());
}

#[test]
fn a_server_that_restarts_empty_ends_its_holder_at_once() {
    let scene = Scene::new();
    let mut redis = Redis::without_persistence();
    let holder = holder(&scene, &redis);
    redis.stop();
    redis.start_again();
    assert_killed_at_once(&scene, holder, "record gone");
}

/// A port that leads to one server or another, as a name does that is moved at a fail-over.
struct Moving {
    port: u16,
    target: Arc<AtomicU16>,
    open: Arc<Mutex<Vec<TcpStream>>>,
}

impl Moving {
    fn to(redis: &Redis) -> Moving {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let (target, open) = (Arc::new(AtomicU16::new(redis.port())), Arc::new(Mutex::new(Vec::new())));
        let (to, all) = (Arc::clone(&target), Arc::clone(&open));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(("127.0.0.1", to.load(Ordering::SeqCst))) else { continue };
                let both = [(&client, &server), (&server, &client)];
                for (from, into) in both.map(|(from, into)| (from.try_clone(), into.try_clone())) {
                    let (mut from, mut into) = (from.expect("duplicated"), into.expect("duplicated"));
                    std::thread::spawn(move || std::io::copy(&mut from, &mut into));
                }
                all.lock().expect("no panic").extend([client, server]);
            }
        });
        Moving { port, target, open }
    }

    fn move_to(&self, redis: &Redis) {
        self.target.store(redis.port(), Ordering::SeqCst);
        for stream in self.open.lock().expect("no panic").drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

#[test]
fn a_replica_that_was_promoted_without_the_claim_ends_the_holder_at_once() {
    let scene = Scene::new();
    let redis = Redis::start();
    works(&scene, &redis.url());
    let replica = redis.replica();
    replica.ask(&["REPLICAOF", "NO", "ONE"]); // it has the record before the claim
    let address = Moving::to(&redis);
    let holder = scene.start(&mut brief(&scene, &redis.url_at(address.port), &scene.witness("exec sleep 100")));
    scene.wait_for_starts(1);
    address.move_to(&replica);
    assert_killed_at_once(&scene, holder, "lost");
}

#[test]
fn a_lease_outlives_a_fail_over_to_a_replica_that_has_it() {
    let scene = Scene::new();
    let mut redis = Redis::start();
    let replica = redis.replica();
    let address = Moving::to(&redis);
    let holder = scene.start(&mut brief(&scene, &redis.url_at(address.port), &scene.witness("exec sleep 100")));
    scene.wait_for_starts(1);
    redis.stop();
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    let write = || replica.ask(&["--raw", "HGET", "lockrun:lease:a", "write"]);
    let claim = write();
    assert_ne!(claim.trim(), "", "the claim was waited for");
    address.move_to(&replica);
    wait_until("a renewal at the new primary", || write() != claim);
    holder.signal(Signal::SIGTERM);
    let ended = holder.finish();
    assert!(ended.code() == 128 + 15 && ended.stderr.contains("released"), "{} {}", ended.code(), ended.stderr);
}

#[test]
fn what_cannot_be_promised_is_said_once_at_the_start_and_in_check() {
    let scene = Scene::new();
    for (settings, words) in [
        (&["--appendonly", "no"][..], Some("forgets everything")),
        (&["--appendonly", "no", "--save", "60 1"], Some("last snapshot")),
        (&["--appendfsync", "everysec"], Some("last second")),
        (&[], None),
    ] {
        let redis = Redis::with(settings);
        let finished = run(&scene, &redis.url(), &["--name", "a", "--", "true"]);
        let said = finished.stderr.lines().filter(|line| line.contains("forget")).count();
        assert_eq!((finished.code(), said), (0, usize::from(words.is_some())), "{settings:?}: {}", finished.stderr);
        let warnings = check(&scene, &redis.url())["warnings"].to_string();
        match words {
            Some(words) => assert!(finished.stderr.contains(words) && warnings.contains(words), "{words}: {} {warnings}", finished.stderr),
            None => assert_eq!(warnings, "[]"),
        }
    }
}

#[test]
fn check_and_status_say_what_they_know() {
    let scene = Scene::new();
    let redis = Redis::start();
    let replica = redis.replica();
    let empty = run(&scene, &redis.url(), &["status"]);
    assert_eq!((empty.code(), empty.stdout.as_str()), (0, "no lease was ever taken here\n"));
    let keys = redis.ask(&["KEYS", "*"]);
    let facts = check(&scene, &redis.url());
    assert_eq!((&facts["store"], &facts["usable"], &facts["replicas"]), (&"redis".into(), &true.into(), &1.into()), "{facts}");
    assert_eq!((&facts["confirming_replicas"], &facts["eviction"]), (&1.into(), &"noeviction".into()), "{facts}");
    assert_eq!((&facts["persistence"], &facts["notifications"]), (&"appendonly always".into(), &true.into()), "{facts}");
    assert!(facts["clock_difference_ms"].as_i64().is_some_and(|ms| ms.abs() < 60_000), "{facts}");
    assert!(facts["server_version"].as_str().is_some_and(|version| version.starts_with("Redis ")), "{facts}");
    let warnings = |facts: &Value| facts["warnings"].to_string();
    assert!(warnings(&facts).contains("asynchronous") && warnings(&facts).contains("?wait=1 forbids it"), "{facts}");
    let strict = check(&scene, &format!("{}?wait=1", redis.url()));
    assert!(warnings(&strict).contains("asynchronous") && !warnings(&strict).contains("goes on without them"), "{strict}");
    let text = run(&scene, &redis.url(), &["check"]);
    assert!(text.code() == 0 && text.stdout.contains("usable") && text.stdout.contains("warning: replication"), "{}", text.stdout);
    wait_until("what check left", || redis.ask(&["KEYS", "*"]) == keys);
    drop(replica);

    let holder = holder(&scene, &redis);
    let locks = parse(&run(&scene, &redis.url(), &["status", "--json"]).stdout);
    let lock = &locks["locks"][0];
    assert_eq!((&lock["name"], &lock["state"], &lock["expires_in_ms"]), (&"a".into(), &"held".into(), &serde_json::Value::Null), "{locks}");
    assert_eq!(lock["holder"]["pid"], holder.pid(), "{locks}");
    holder.signal(Signal::SIGTERM);
    holder.finish();
    assert_eq!(run(&scene, &redis.url(), &["status", "--name", "a"]).code(), 1, "free");
}

#[test]
fn a_waiter_that_may_not_subscribe_gets_it_by_looking() {
    let scene = Scene::new();
    let redis = Redis::start();
    redis.ask(&["ACL", "SETUSER", "u", "on", ">hunter2", "~lockrun:*", "resetchannels", "+@all"]);
    let url = url("u:hunter2@", &redis);
    let first = scene.start(&mut brief(&scene, &url, &scene.witness("exec sleep 100")));
    scene.wait_for_starts(1);
    let second = scene.start(&mut brief(&scene, &url, &scene.witness("true")));
    wait_until_it_waits(&second);
    first.signal(Signal::SIGTERM);
    assert_eq!(second.finish().code(), 0);
    first.finish();
    scene.assert_exclusion();
}
