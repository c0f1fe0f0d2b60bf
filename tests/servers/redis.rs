//! Redis alone: who may come in and how, what it says of itself, and what comes of a server that forgets or refuses.

use std::io::{Read, Write};
use std::net::TcpListener;

use nix::sys::signal::Signal;

use crate::common::report::{parse, wait_until_it_waits};
use crate::common::{Finished, Scene};
use crate::fixture::redis::{Certificates, Redis};
use crate::fixture::{Server, free_port};

const SECRET: &str = "hunter2%2Fhunter2"; // hunter2/hunter2
/// What README asks an admin to allow.
const RIGHTS: &str = "~lockrun:* &lockrun:* +select +info +wait +eval +evalsha +hmget +hset +sadd +smembers +get +set +publish +subscribe";

/// TERM 1.65 s, KILL 1.95 s, dead 2.7 s after the last good renewal.
const TIMES: [&str; 6] = ["--ttl", "3s", "--heartbeat", "250ms", "--grace", "300ms"];

fn with(scene: &Scene, url: &str, args: &[&str]) -> std::process::Command {
    let mut command = scene.bare_lockrun(TIMES);
    command.args(args).env("LOCKRUN_DB", url).env_remove("REDISCLI_AUTH");
    command
}

fn run(scene: &Scene, url: &str, args: &[&str]) -> Finished {
    scene.run(&mut with(scene, url, args))
}

/// The main form and `check` end with 125 and one line that has all of `words`; nothing was started.
fn refused(scene: &Scene, url: &str, words: &[&str]) {
    for args in [&["--name", "a", "--", "touch", "ran"][..], &["check"]] {
        let finished = run(scene, url, args);
        assert_eq!(finished.code(), 125, "{args:?}: {}", finished.stderr);
        assert_eq!((finished.stderr.lines().count(), finished.stdout.as_str()), (1, ""), "{}", finished.stderr);
        for word in words {
            assert!(finished.stderr.contains(word), "{word:?} in {}", finished.stderr);
        }
        assert!(!finished.stderr.contains("hunter2"), "{}", finished.stderr);
        assert!(!scene.path("ran").exists());
    }
}

/// 69 with such a line, for the time being.
fn unreachable(scene: &Scene, url: &str, words: &[&str]) {
    let finished = run(scene, url, &["--name", "a", "-n", "--", "touch", "ran"]);
    assert_eq!(finished.code(), 69, "{}", finished.stderr);
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} in {}", finished.stderr);
    }
    assert!(!scene.path("ran").exists());
}

fn works(scene: &Scene, url: &str) {
    let finished = run(scene, url, &["--name", "a", "-n", "-q", "--", "true"]);
    assert_eq!((finished.code(), finished.stderr.as_str()), (0, ""));
}

fn check(scene: &Scene, url: &str) -> serde_json::Value {
    let finished = run(scene, url, &["check", "--json"]);
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    parse(&finished.stdout)
}

fn url(credentials: &str, redis: &Redis) -> String {
    format!("redis://{credentials}127.0.0.1:{}", redis.port())
}

#[test]
fn a_password_is_taken_from_the_url_or_as_redis_cli_takes_it() {
    let scene = Scene::new();
    let redis = Redis::with(&["--requirepass", "hunter2/hunter2"]);
    works(&scene, &url(&format!(":{SECRET}@"), &redis));
    works(&scene, &url(&format!("default:{SECRET}@"), &redis));
    refused(&scene, &url(":hunter2@", &redis), &["password"]);
    refused(&scene, &url("nobody:hunter2@", &redis), &["password"]);
    refused(&scene, &url("", &redis), &["wants a password", "REDISCLI_AUTH"]);
    let mut command = with(&scene, &url("", &redis), &["--name", "a", "--", "true"]);
    assert_eq!(scene.run(command.env("REDISCLI_AUTH", "hunter2/hunter2")).code(), 0);
    let open = Redis::start();
    refused(&scene, &url(":hunter2@", &open), &["has no password"]);
}

#[test]
fn a_password_is_in_no_output() {
    let scene = Scene::new();
    let mut redis = Redis::with(&["--requirepass", "hunter2/hunter2"]);
    let url = url(&format!(":{SECRET}@"), &redis);
    std::fs::write(scene.path("secret"), format!("{url}\n")).expect("a file");
    let mut command = scene.bare_lockrun(TIMES);
    let holder = scene.start(command.args(["-v", "--name", "a", "--", "sleep", "100"]).env("LOCKRUN_DB_FILE", scene.path("secret")));
    holder.wait_for_stderr("acquired");
    let mut said = String::new();
    for args in [&["status"][..], &["status", "--json"], &["check"], &["check", "--json"], &["--name", "a", "-n", "-v", "--", "true"]] {
        let finished = run(&scene, &url, args);
        said += &format!("{}{}", finished.stdout, finished.stderr);
    }
    assert!(said.contains(&format!("redis://127.0.0.1:{}", redis.port())), "{said}");
    redis.stop();
    for args in [&["status"][..], &["check"], &["--name", "a", "-n", "-v", "--", "true"]] {
        said += &run(&scene, &url, args).stderr;
    }
    let lost = holder.finish();
    assert_eq!(lost.code(), 76);
    said += &lost.stderr;
    assert!(said.contains("unreachable") && !said.contains("hunter2"), "{said}");
}

#[test]
fn a_user_with_the_rights_that_are_asked_for_can_do_all_of_it_and_each_missing_one_is_named() {
    let scene = Scene::new();
    let redis = Redis::with(&["--requirepass", "admin"]);
    let admin = |args: &[&str]| redis.ask_as(None, "admin", args);
    let set = |rights: &[&str]| {
        let answer = admin(&[&["ACL", "SETUSER", "u", "reset", "on", ">hunter2"], rights].concat());
        assert!(answer.contains("OK"), "{answer}");
    };
    assert!(include_str!("../../README.md").contains(RIGHTS));
    let all: Vec<&str> = RIGHTS.split(' ').collect();
    let url = format!("{}/1", url("u:hunter2@", &redis));
    set(&all);
    works(&scene, &url);
    assert_eq!(check(&scene, &url)["notifications"], true);
    for missing in &all {
        let rest: Vec<&str> = all.iter().copied().filter(|right| right != missing).collect();
        set(&rest);
        match *missing {
            // What may be missing: whoever waits looks by time, and a first EVAL is enough.
            "&lockrun:*" | "+publish" | "+subscribe" => {
                works(&scene, &url);
                let check = check(&scene, &url);
                let warnings = check["warnings"].to_string();
                assert!(check["notifications"] == false && warnings.contains("no notifications"), "{missing}: {check}");
            }
            // Only where there are replicas; only after a restart of the server; only for those who try; for `check` alone.
            "+wait" | "+eval" => works(&scene, &url),
            "+get" | "+set" | "+smembers" => {
                let finished = run(&scene, &url, &["check"]);
                assert!(finished.code() == 125 && finished.stderr.contains("a right is missing"), "{missing}: {}", finished.stderr);
            }
            "~lockrun:*" => refused(&scene, &url, &["a right is missing", "ACL SETUSER"]),
            command => refused(&scene, &url, &["a right is missing", "ACL SETUSER", &command[1..]]),
        }
    }
}

#[test]
fn a_server_is_believed_by_its_certificate_alone() {
    let scene = Scene::new();
    let certificates = Certificates::new();
    let redis = Redis::with(&certificates.server(false).iter().map(String::as_str).collect::<Vec<_>>());
    let ca = certificates.path("ca.crt").display().to_string();
    let tls = |host: &str, parameters: &str| format!("rediss://{host}:{}{parameters}", redis.port());
    works(&scene, &tls("127.0.0.1", &format!("?cacert={ca}")));
    works(&scene, &tls("localhost", &format!("?cacert={ca}")));
    let waited = check(&scene, &tls("127.0.0.1", &format!("?cacert={ca}")));
    assert_eq!(waited["notifications"], true, "{waited}");
    refused(&scene, &tls("127.0.0.1", "?cacert=/no/such"), &["cacert", "/no/such", "No such file"]);
    let stranger = Certificates::new();
    refused(&scene, &tls("127.0.0.1", &format!("?cacert={}", stranger.path("ca.crt").display())), &["certificate", "cacert"]);
    refused(&scene, &tls("127.0.0.1", &format!("?cacert={}", stranger.path("ca.key").display())), &["cacert", "no certificate"]);
    refused(&scene, &tls("127.0.0.1", ""), &["certificate", "cacert"]);
    let plain = Redis::start();
    unreachable(&scene, &format!("rediss://127.0.0.1:{}?cacert={ca}", plain.port()), &["no answer to TLS", "redis://"]);
    unreachable(&scene, &format!("redis://127.0.0.1:{}", redis.port()), &["rediss://"]);
}

#[test]
fn a_certificate_of_another_host_is_refused() {
    let scene = Scene::new();
    let certificates = Certificates::new();
    let other = |file: &str| certificates.path(file).display().to_string();
    let arguments = ["--tls-port", "PORT", "--tls-auth-clients", "no"];
    let files = ["--tls-ca-cert-file", &other("ca.crt"), "--tls-cert-file", &other("client.crt"), "--tls-key-file", &other("client.key")];
    let redis = Redis::with(&[&arguments[..], &files].concat());
    refused(&scene, &format!("rediss://127.0.0.1:{}?cacert={}", redis.port(), other("ca.crt")), &["certificate", "host"]);
}

#[test]
fn a_server_may_want_a_certificate_of_ours() {
    let scene = Scene::new();
    let certificates = Certificates::new();
    let redis = Redis::with(&certificates.server(true).iter().map(String::as_str).collect::<Vec<_>>());
    let path = |file: &str| certificates.path(file).display().to_string();
    let tls = |parameters: &str| format!("rediss://127.0.0.1:{}?cacert={}{parameters}", redis.port(), path("ca.crt"));
    works(&scene, &tls(&format!("&cert={}&key={}", path("client.crt"), path("client.key"))));
    refused(&scene, &tls(""), &["cert"]);
    let stranger = Certificates::new();
    let strange = |file: &str| stranger.path(file).display().to_string();
    refused(&scene, &tls(&format!("&cert={}&key={}", strange("client.crt"), strange("client.key"))), &["cert"]);
    refused(&scene, &tls(&format!("&cert={}&key={}", path("client.crt"), path("server.key"))), &["cert", "key"]);
    refused(&scene, &tls(&format!("&cert={}&key=/no/such", path("client.crt"))), &["/no/such"]);
}

#[test]
fn a_server_of_another_kind_is_refused() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1000]);
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n");
        }
    });
    refused(&scene, &format!("redis://127.0.0.1:{port}"), &["does not speak as Redis does"]);
}

#[test]
fn a_cluster_and_a_database_that_is_not_there_are_refused() {
    let scene = Scene::new();
    let cluster = Redis::with(&["--cluster-enabled", "yes"]);
    refused(&scene, &cluster.url(), &["Redis Cluster"]);
    let redis = Redis::with(&["--databases", "2"]);
    works(&scene, &format!("{}/1", redis.url()));
    refused(&scene, &format!("{}/2", redis.url()), &["no database of that number"]);
}

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
    crate::common::wait_until("it is busy", || busy.ask(&["PING"]).contains("BUSY"));
    unreachable(&scene, &busy.url(), &["busy with a script"]);
    busy.ask(&["SCRIPT", "KILL"]);
    crate::common::wait_until("the script ends", || !script.is_running());
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

/// A holder whose command runs until it is killed, after `before` was seen on its stderr.
fn holder(scene: &Scene, redis: &Redis) -> crate::common::Running {
    let holder = scene.start(&mut with(scene, &redis.url(), &["--name", "a", "--", "sh", "-c", &scene.witness("exec sleep 100")]));
    scene.wait_for_starts(1);
    holder
}

fn assert_killed_at_once(scene: &Scene, holder: crate::common::Running, reason: &str) {
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

#[test]
fn a_replica_that_was_promoted_without_the_claim_ends_the_holder_at_once() {
    let scene = Scene::new();
    let redis = Redis::start();
    works(&scene, &redis.url());
    let replica = redis.replica();
    replica.ask(&["REPLICAOF", "NO", "ONE"]); // it has the record before the claim
    let holder = holder(&scene, &redis);
    // Another server at the address of the first: what it has is what counts.
    redis.ask(&["REPLICAOF", "127.0.0.1", &replica.port().to_string()]);
    crate::common::wait_until("the older data", || redis.ask(&["INFO", "replication"]).contains("master_link_status:up"));
    redis.ask(&["REPLICAOF", "NO", "ONE"]);
    assert_killed_at_once(&scene, holder, "lost");
}

#[test]
fn a_lease_outlives_a_fail_over_to_a_replica_that_has_it() {
    let scene = Scene::new();
    let mut redis = Redis::start();
    let replica = redis.replica();
    let mut holder = holder(&scene, &redis);
    redis.stop();
    replica.ask(&["REPLICAOF", "NO", "ONE"]);
    let started = std::time::Instant::now();
    let stored = replica.ask(&["--raw", "HGET", "lockrun:lease:a", "record"]);
    assert!(stored.contains("\"holder\":{"), "the claim was waited for: {stored}");
    assert!(started.elapsed() < std::time::Duration::from_secs(60) && holder.is_running());
    let waiter = scene.start(&mut with(&scene, &replica.url(), &["--name", "a", "--", "sh", "-c", &scene.witness("true")]));
    assert_eq!(holder.finish().code(), 76, "its own server is gone");
    assert_eq!(waiter.finish().code(), 0);
    scene.assert_exclusion();
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
        let finished = run(&scene, &redis.url(), &["--name", "a", "--", "sleep", "0.6"]);
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
    assert!(facts["warnings"].to_string().contains("asynchronous"), "{facts}");
    let text = run(&scene, &redis.url(), &["check"]);
    assert!(text.code() == 0 && text.stdout.contains("usable") && text.stdout.contains("warning: replication"), "{}", text.stdout);
    crate::common::wait_until("what check left", || redis.ask(&["KEYS", "*"]) == keys);
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
    let first = scene.start(&mut with(&scene, &url, &["--name", "a", "--", "sh", "-c", &scene.witness("exec sleep 100")]));
    scene.wait_for_starts(1);
    let second = scene.start(&mut with(&scene, &url, &["--name", "a", "--", "sh", "-c", &scene.witness("true")]));
    wait_until_it_waits(&second);
    first.signal(Signal::SIGTERM);
    assert_eq!(second.finish().code(), 0);
    first.finish();
    scene.assert_exclusion();
}

#[test]
fn a_url_that_is_none_is_refused_and_names_what_is_wrong() {
    let scene = Scene::new();
    let port = free_port();
    for (url, words) in [
        ("redis:x".to_string(), &["redis://"][..]),
        ("redis://".to_string(), &["no host"]),
        ("redis://h:port".to_string(), &["port"]),
        ("redis://h:0".to_string(), &["port"]),
        ("redis://h/x".to_string(), &["database"]),
        ("redis://a,b".to_string(), &["one host"]),
        ("redis://[::1".to_string(), &["["]),
        (format!("redis://u@127.0.0.1:{port}"), &["REDISCLI_AUTH"]),
        (format!("redis://127.0.0.1:{port}?ca=x"), &["cacert"]),
        (format!("redis://127.0.0.1:{port}?cacert=x"), &["rediss://"]),
        (format!("rediss://127.0.0.1:{port}?cert=x"), &["key"]),
        (format!("redis://127.0.0.1:{port}?wait=all"), &["wait"]),
        ("redis://:hunter2%@h".to_string(), &["%25"]),
        ("redis://:hunter2#x@h".to_string(), &["%23"]),
        ("redis://:hunter2/x@h".to_string(), &["%XX"]),
        ("redis://:hunter2?x@h".to_string(), &["%XX"]),
        ("redis://h?hunter2=x".to_string(), &["%3F"]),
    ] {
        refused(&scene, &url, words);
    }
}
