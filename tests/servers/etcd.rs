//! What only etcd has: its logins, its certificates, what it says when something is wrong with them, and `check`.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use crate::common::{Finished, Scene, wait_until};
use crate::fixture::Server;
use crate::fixture::authority::Authority;
use crate::fixture::etcd::{Etcd, said};

const PASSWORD: &str = "s3cret,/@:%x";
/// As it stands in a URL.
const WRITTEN: &str = "s3cret,%2F@%3A%25x";

/// Users: root, `lockrun` (may do what it must) and `poor` (may do nothing).
fn with_logins(options: &[&str]) -> Etcd {
    let server = Etcd::with(options);
    for args in [
        &["user", "add", "root:root"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "leases"],
        &["role", "grant-permission", "leases", "--prefix=true", "readwrite", "lockrun"],
        &["user", "add", &format!("lockrun:{PASSWORD}")],
        &["user", "grant-role", "lockrun", "leases"],
        &["user", "add", "poor:poor"],
        &["auth", "enable"],
    ] {
        said(&mut server.etcdctl(args));
    }
    server
}

fn as_root(server: &Etcd, args: &[&str]) {
    said(&mut server.etcdctl(&[&["--user", "root:root"], args].concat()));
}

fn with_user(server: &Etcd, user: &str) -> String {
    server.url().replace("://", &format!("://{user}@"))
}

/// A lease that is renewed every two seconds, each attempt with a second.
fn lockrun(scene: &Scene, db: &str, args: &[&str]) -> Command {
    let mut command = scene.bare_lockrun(["--name", "beat", "--ttl", "24s", "--grace", "1s", "--db", db]);
    for name in ["ETCDCTL_USER", "ETCDCTL_PASSWORD", "ETCDCTL_CACERT", "ETCDCTL_CERT", "ETCDCTL_KEY"] {
        command.env_remove(name);
    }
    command.args(args);
    command
}

fn assert_ran(finished: &Finished) {
    assert_eq!((finished.code(), finished.stdout.as_str()), (0, "ran\n"), "{}", finished.stderr);
}

/// 125, nothing started, and these words in what was said last.
fn refuses(scene: &Scene, command: &mut Command, words: &[&str]) {
    let finished = scene.run(command.args(["--", "echo", "ran"]));
    let last = finished.stderr.lines().last().unwrap_or_default();
    assert_eq!((finished.code(), finished.stdout.as_str()), (125, ""), "{}", finished.stderr);
    for word in words {
        assert!(last.contains(word), "{word:?} in {last:?}");
    }
    assert!(!finished.stderr.contains(PASSWORD) && !finished.stderr.contains(WRITTEN), "{}", finished.stderr);
}

#[test]
fn a_user_with_the_right_password_is_let_in_and_the_password_is_never_shown() {
    let (scene, server) = (Scene::new(), with_logins(&[]));
    let url = with_user(&server, &format!("lockrun:{WRITTEN}"));
    let run = ["--", "echo", "ran"];
    assert_ran(&scene.run(&mut lockrun(&scene, &url, &run)));
    assert_ran(&scene.run(lockrun(&scene, &server.url(), &run).env("ETCDCTL_USER", format!("lockrun:{PASSWORD}"))));
    assert_ran(&scene.run(lockrun(&scene, &with_user(&server, "lockrun"), &run).env("ETCDCTL_PASSWORD", PASSWORD)));

    std::fs::write(scene.path("secret"), format!("{url}\n")).expect("a file");
    let from_file = |args: &[&str]| {
        let mut command = scene.bare_lockrun(args);
        command.env("LOCKRUN_DB_FILE", scene.path("secret"));
        scene.run(&mut command)
    };
    let ran = from_file(&["-vvv", "--name", "beat", "--", "echo", "ran"]);
    assert_ran(&ran);
    for finished in [ran, from_file(&["status", "--json"]), from_file(&["status"]), from_file(&["check", "--json"]), from_file(&["check"])]
    {
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
        let said = format!("{}{}", finished.stdout, finished.stderr);
        assert!(!said.contains(PASSWORD) && !said.contains(WRITTEN) && !said.contains("s3cret"), "{said}");
    }
}

#[test]
fn logins_that_will_not_do_are_refused_in_one_clear_line() {
    let (scene, server) = (Scene::new(), with_logins(&[]));
    refuses(&scene, &mut lockrun(&scene, &with_user(&server, &format!("poor:{WRITTEN}")), &[]), &["authentication failed", "password"]);
    refuses(&scene, &mut lockrun(&scene, &with_user(&server, &format!("nobody:{WRITTEN}")), &[]), &["authentication failed", "user"]);
    refuses(&scene, &mut lockrun(&scene, &server.url(), &[]), &["login", "etcd://USER:PASSWORD@HOST"]);
    refuses(&scene, &mut lockrun(&scene, &with_user(&server, "poor:poor"), &[]), &["permission denied", "etcdctl role grant-permission"]);
    refuses(&scene, &mut lockrun(&scene, &with_user(&server, "poor"), &[]), &["without a password", "ETCDCTL_PASSWORD"]);
    for verb in ["status", "check"] {
        let finished = scene.run(&mut scene.bare_lockrun([verb, "--db", &with_user(&server, "poor:poor")]));
        assert_eq!((finished.code(), finished.stderr.lines().count()), (125, 1), "{}", finished.stderr);
    }
}

#[test]
fn a_user_where_none_is_asked_for_is_let_in_and_check_says_so() {
    let (scene, server) = (Scene::new(), Etcd::start());
    let url = with_user(&server, "lockrun:secret");
    assert_ran(&scene.run(&mut lockrun(&scene, &url, &["--", "echo", "ran"])));
    let check = scene.run(&mut scene.bare_lockrun(["check", "--db", &url]));
    assert_eq!(check.code(), 0, "{}", check.stderr);
    assert!(check.stdout.contains("warning: no authentication"), "{}", check.stdout);
}

fn renewed_at(scene: &Scene, url: &str) -> String {
    let status = scene.run(&mut scene.bare_lockrun(["status", "--json", "--name", "beat", "--db", url]));
    let json: serde_json::Value = serde_json::from_str(&status.stdout).unwrap_or_default();
    json["locks"][0]["renewed_at"].as_str().unwrap_or_default().to_string()
}

/// Waits for a renewal that was not there yet.
fn wait_for_a_renewal(scene: &Scene, url: &str) {
    let before = renewed_at(scene, url);
    wait_until("a renewal", || {
        let now = renewed_at(scene, url);
        !now.is_empty() && now != before
    });
}

#[test]
fn a_token_that_runs_out_is_forgotten_or_is_of_old_rights_costs_a_login_and_not_the_lease() {
    // A token lives for a second, a renewal comes every two: each of them needs a new login.
    let (scene, mut server) = (Scene::new(), with_logins(&["--auth-token-ttl", "1"]));
    let url = with_user(&server, &format!("lockrun:{WRITTEN}"));
    let holder = scene.start(&mut lockrun(&scene, &url, &["--", "sh", "-c", &scene.witness("while [ ! -e end ]; do sleep 0.05; done")]));
    scene.wait_for_starts(1);
    wait_for_a_renewal(&scene, &url);
    wait_for_a_renewal(&scene, &url);
    // Who changes the rights makes every token one of old rights.
    as_root(&server, &["role", "add", "another"]);
    as_root(&server, &["user", "grant-role", "lockrun", "another"]);
    wait_for_a_renewal(&scene, &url);
    // A restarted member knows no token.
    server.stop();
    server.start_again();
    wait_for_a_renewal(&scene, &url);
    std::fs::write(scene.path("end"), "").expect("a file");
    let finished = holder.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(finished.stderr.matches("acquired").count(), 1, "{}", finished.stderr);
}

/// `etcds://`, with the authority and, if any, the certificate that the client shows.
fn over_tls(server: &Etcd, host: &str, ca: &Path, identity: Option<&(std::path::PathBuf, std::path::PathBuf)>) -> String {
    let identity = identity.map(|(cert, key)| format!("&cert={}&key={}", cert.display(), key.display())).unwrap_or_default();
    format!("etcds://{host}:{}?cacert={}{identity}", server.port(), ca.display())
}

#[test]
fn certificates_are_looked_at_both_ways_and_what_is_wrong_with_them_is_said() {
    let scene = Scene::new();
    let (server, authority) = Etcd::with_certificates();
    let (ca, own) = (authority.certificate(), authority.sign("beat", &[]));
    let stranger = Authority::new(scene.dir(), "stranger");
    let strange = stranger.sign("intruder", &[]);
    let run = ["--", "echo", "ran"];
    let good = over_tls(&server, "127.0.0.1", &ca, Some(&own));
    assert_ran(&scene.run(&mut lockrun(&scene, &good, &run)));
    let mut by_variables = lockrun(&scene, &format!("etcds://127.0.0.1:{}", server.port()), &run);
    by_variables.env("ETCDCTL_CACERT", &ca).env("ETCDCTL_CERT", &own.0).env("ETCDCTL_KEY", &own.1);
    assert_ran(&scene.run(&mut by_variables));

    let refused = |url: &str, words: &[&str]| refuses(&scene, &mut lockrun(&scene, url, &[]), words);
    refused(&over_tls(&server, "127.0.0.1", &stranger.certificate(), Some(&own)), &["certificate", "cacert=FILE"]);
    refused(&over_tls(&server, "localhost", &ca, Some(&own)), &["certificate", "localhost", "host's name"]);
    refused(&over_tls(&server, "127.0.0.1", &ca, None), &["client certificate", "cert=FILE"]);
    refused(&over_tls(&server, "127.0.0.1", &ca, Some(&strange)), &["client certificate", "cert=FILE"]);
    refused(&over_tls(&server, "127.0.0.1", &ca, Some(&(own.0.clone(), strange.1.clone()))), &["client certificate or key", "key"]);
    refused(&over_tls(&server, "127.0.0.1", Path::new("/no/such/ca.pem"), Some(&own)), &["/no/such/ca.pem", "No such file"]);
    refused(&over_tls(&server, "127.0.0.1", &own.1, Some(&own)), &["no certificate in it"]);
    refused(&format!("etcds://127.0.0.1:{}", server.port()), &["certificate"]);

    let plain = scene.run(&mut lockrun(&scene, &format!("etcd://127.0.0.1:{}", server.port()), &["-n", "--", "echo", "ran"]));
    assert_eq!((plain.code(), plain.stdout.as_str()), (69, ""), "{}", plain.stderr);
    assert!(plain.stderr.contains("if it wants TLS, write etcds://"), "{}", plain.stderr);

    let check = scene.run(&mut scene.bare_lockrun(["check", "--json", "--db", &good]));
    assert_eq!(check.code(), 0, "{}", check.stderr);
    let json: serde_json::Value = serde_json::from_str(&check.stdout).expect("JSON");
    assert_eq!((json["tls"].as_bool(), &json["authentication"]), (Some(true), &serde_json::Value::Null));
}

#[test]
fn a_server_that_has_no_tls_is_named_as_that() {
    let (scene, server) = (Scene::new(), Etcd::start());
    Authority::new(scene.dir(), "ca");
    let url = format!("etcds://127.0.0.1:{}?cacert=ca.pem", server.port());
    let finished = scene.run(&mut lockrun(&scene, &url, &["-n", "--", "echo", "ran"]));
    assert_eq!((finished.code(), finished.stdout.as_str()), (69, ""), "{}", finished.stderr);
    assert!(finished.stderr.contains("if it has no TLS, write etcd://"), "{}", finished.stderr);
}

#[test]
fn a_server_of_another_kind_is_refused() {
    let scene = Scene::new();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            let mut connection = connection.expect("accepted");
            let mut bytes = [0; 64];
            let _ = connection.read(&mut bytes);
            let _ = connection.write_all(b"-ERR unknown command 'PRI'\r\n");
            let _ = connection.read(&mut bytes);
        }
    });
    refuses(&scene, &mut lockrun(&scene, &format!("etcd://127.0.0.1:{port}"), &[]), &["no etcd"]);
}

#[test]
fn check_says_what_this_etcd_is_and_changes_nothing() {
    let (scene, server) = (Scene::new(), Etcd::start());
    let revision = || {
        let got = said(&mut server.etcdctl(&["get", "x", "-w", "json"]));
        serde_json::from_str::<serde_json::Value>(&got).expect("JSON")["header"]["revision"].clone()
    };
    let before = revision();
    let check = scene.run(&mut scene.bare_lockrun(["check", "--json", "--name", "beat", "--db", &server.url()]));
    assert_eq!(check.code(), 0, "{}", check.stderr);
    let json: serde_json::Value = serde_json::from_str(&check.stdout).expect("JSON");
    assert_eq!(
        (json["store"].as_str(), json["members"].as_u64(), json["endpoints_that_answer"].as_u64()),
        (Some("etcd"), Some(1), Some(1))
    );
    assert_eq!(
        (json["notifications"].as_str(), json["tls"].as_bool(), json["authentication"].as_bool()),
        (Some("watch"), Some(false), Some(false))
    );
    assert!(json["server_version"].as_str().is_some_and(|version| version.starts_with("3.")), "{json}");
    assert!(json["warnings"].to_string().contains("one member"), "{json}");
    let text = scene.run(&mut scene.bare_lockrun(["check", "--db", &server.url()])).stdout;
    assert!(text.contains(": usable (") && text.contains("server version 3.") && text.contains("warning: "), "{text}");
    assert_eq!(revision(), before, "nothing was written");
}

#[test]
fn an_etcd_whose_space_is_used_up_is_said_to_be_just_that() {
    let (scene, server) = (Scene::new(), Etcd::with(&["--quota-backend-bytes", "100000"]));
    let fill = "x".repeat(50_000);
    wait_until("the alarm", || !server.etcdctl(&["put", "fill", &fill]).output().expect("etcdctl").status.success());
    let check = scene.run(&mut scene.bare_lockrun(["check", "--db", &server.url()]));
    assert_eq!(check.code(), 69, "{}", check.stdout);
    assert!(check.stderr.contains("space exceeded") && check.stderr.contains("etcdctl alarm disarm"), "{}", check.stderr);
    let run = scene.run(&mut lockrun(&scene, &server.url(), &["-n", "--", "echo", "ran"]));
    assert_eq!((run.code(), run.stdout.as_str()), (69, ""), "{}", run.stderr);
}

#[test]
fn status_shows_who_holds_it() {
    let (scene, server) = (Scene::new(), Etcd::start());
    let holder =
        scene.start(&mut lockrun(&scene, &server.url(), &["--", "sh", "-c", &scene.witness("while [ ! -e end ]; do sleep 0.05; done")]));
    let token = scene.wait_for_starts(1)[0].0;
    let status = scene.run(&mut scene.bare_lockrun(["status", "--json", "--db", &server.url()]));
    let json: serde_json::Value = serde_json::from_str(&status.stdout).expect("JSON");
    let lock = &json["locks"][0];
    assert_eq!((lock["name"].as_str(), lock["state"].as_str(), lock["token"].as_i64()), (Some("beat"), Some("held"), Some(token)));
    assert_eq!((lock["holder"]["pid"].as_i64(), &lock["expires_in_ms"]), (Some(holder.pid().into()), &serde_json::Value::Null), "{lock}");
    std::fs::write(scene.path("end"), "").expect("a file");
    assert_eq!(holder.finish().code(), 0);
    let status = scene.run(&mut scene.bare_lockrun(["status", "--name", "beat", "--db", &server.url()]));
    assert_eq!((status.code(), status.stdout), (1, format!("beat: free, token {token}\n")));
}
