//! Who may come in, and how: passwords, users, certificates; and what is no Redis, or none that lockrun can use.

use std::io::{Read, Write};
use std::net::TcpListener;

use super::{TIMES, check, refused, run, unreachable, url, with, works};
use crate::common::Scene;
use crate::fixture::redis::{Certificates, Redis};
use crate::fixture::{Server, free_port};

const SECRET: &str = "hunter2%2Fhunter2"; // hunter2/hunter2
/// What README asks an admin to allow.
const RIGHTS: &str = "~lockrun:* &lockrun:* +select +info +wait +eval +evalsha +hmget +hset +sadd +smembers +get +set +publish +subscribe";

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
    assert!(include_str!("../../../README.md").contains(RIGHTS));
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
