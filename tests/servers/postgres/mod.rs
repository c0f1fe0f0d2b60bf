//! What only PostgreSQL has: who is let in and how, TLS with libpq's modes, standbys, pgbouncer. Every wrong value has its
//! one line and 125, and no line holds a password.

mod access;

use std::fs;
use std::process::Command;

use crate::common::gate::Gate;
use crate::common::report::{parse, wait_until_it_waits};
use crate::common::{Finished, Scene, wait_until};
use crate::fixture::Server;
use crate::fixture::postgres::{PgBouncer, Postgres, bin};

const SECRET: &str = "p@ss:w/rd 100%";
const ENCODED: &str = "p%40ss%3Aw%2Frd%20100%25";

fn lockrun(scene: &Scene, url: &str, args: &[&str]) -> Command {
    let mut command = scene.bare_lockrun(args);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    command.env("LOCKRUN_DB", url).env("HOME", scene.dir());
    command
}

/// `lockrun --name beat -n -- touch ran`
fn try_it(scene: &Scene, url: &str) -> Command {
    let _ = fs::remove_file(scene.path("ran"));
    lockrun(scene, url, &["--name", "beat", "-n", "--", "touch", "ran"])
}

fn assert_runs(scene: &Scene, command: &mut Command) {
    let finished = scene.run(command);
    assert_eq!((finished.code(), scene.path("ran").exists()), (0, true), "{command:?}: {}", finished.stderr);
}

/// One line with all of `says`, nothing of the password, exit 125, and nothing was started; so too with `check`.
fn assert_refused(scene: &Scene, url: &str, says: &[&str]) {
    for mut command in [try_it(scene, url), lockrun(scene, url, &["check"]), lockrun(scene, url, &["status"])] {
        let finished = scene.run(&mut command);
        assert_eq!((finished.code(), scene.path("ran").exists()), (125, false), "{command:?}: {}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        for text in says {
            assert!(finished.stderr.contains(text), "{text:?} in {:?}", finished.stderr);
        }
        assert_no_secret(&finished);
    }
}

fn assert_no_secret(finished: &Finished) {
    for text in [&finished.stdout, &finished.stderr] {
        assert!(!text.contains("p@ss") && !text.contains("p%40ss") && !text.contains("rd 100"), "{text}");
    }
}

/// alice has a password, and may make tables.
fn with_a_password() -> Postgres {
    let server = Postgres::start();
    server.sql(&format!("CREATE ROLE alice LOGIN PASSWORD '{SECRET}'; GRANT ALL ON SCHEMA public TO alice"));
    server.let_in("host all all 127.0.0.1/32 scram-sha-256");
    server
}

#[test]
fn check_says_what_the_server_is_and_what_it_cannot_promise() {
    let (scene, server) = (Scene::new(), with_a_password());
    let url = format!("postgres://alice:{ENCODED}@127.0.0.1:{}/postgres", server.port());
    let json = scene.run(&mut lockrun(&scene, &url, &["check", "--json"]));
    assert_eq!(json.code(), 0, "{}", json.stderr);
    let check = parse(&json.stdout);
    assert_eq!((&check["store"], &check["notifications"], &check["tables"]), (&"postgres".into(), &true.into(), &false.into()), "{check}");
    assert_eq!((&check["schema"], &check["tls"]), (&"public".into(), &false.into()), "{check}");
    let version = server.sql("SHOW server_version");
    assert_eq!(check["server_version"], version.as_str());
    assert!(check["clock_difference_ms"].as_i64().is_some_and(|difference| difference.abs() < 60_000), "{check}");
    let warnings = check["warnings"].to_string();
    assert!(warnings.contains("synchronous_standby_names") && warnings.contains("fsync is off"), "{warnings}");
    let text = scene.run(&mut lockrun(&scene, &url, &["check"]));
    assert!(text.stdout.contains(&format!("postgres://127.0.0.1:{}/postgres: usable", server.port())), "{}", text.stdout);
    assert!(text.stdout.contains(&version) && text.stdout.contains("warning: "), "{}", text.stdout);
    [json, text].iter().for_each(assert_no_secret);
    assert_eq!(server.sql("SELECT count(*) FROM pg_class WHERE relname LIKE 'lockrun%'"), "0", "it makes nothing");
}

#[test]
fn an_archive_and_a_subscriber_are_no_standbys() {
    let (scene, server) = (Scene::new(), Postgres::with(&["wal_level=logical"]));
    let start = |program: &str, args: &[&str]| {
        let mut command = scene.command(bin(program));
        command.args(["-U", "postgres", "-p", &server.port().to_string()]).arg("-h").arg(server.folder()).args(args);
        scene.start(&mut command)
    };
    let slot = ["-d", "postgres", "--slot", "s"];
    let made = start("pg_recvlogical", &[&slot[..], &["--create-slot", "--plugin", "test_decoding"]].concat()).finish();
    assert_eq!(made.code(), 0, "{}", made.stderr);
    let _subscriber = start("pg_recvlogical", &[&slot[..], &["--start", "--file", "-"]].concat());
    let _archive = start("pg_receivewal", &["-D", "."]);
    let readers = |count: &str| wait_until(count, || server.sql("SELECT count(*) FROM pg_stat_replication") == count);
    let has_standby = || {
        let check = scene.run(&mut lockrun(&scene, &server.url(), &["check"]));
        assert_eq!(check.code(), 0, "{}", check.stderr);
        check.stdout.contains("not synchronous (there is one)")
    };
    readers("2");
    assert!(!has_standby());
    let _standby = server.standby(&[]);
    readers("3");
    assert!(has_standby());
}

#[test]
fn no_password_is_in_a_log_or_in_what_status_shows() {
    let (scene, server) = (Scene::new(), with_a_password());
    let url = format!("postgres://alice:{ENCODED}@127.0.0.1:{}/postgres", server.port());
    let mut gate = Gate::new(&scene, "gate");
    let holder = scene.start(
        lockrun(&scene, &url, &["-v", "--name", "beat", "--", "sh", "-c", "echo >started; read go <gate"]).env("LOCKRUN_LOG", "debug"),
    );
    wait_until("the command", || scene.path("started").exists());
    let waiter = scene.start(&mut lockrun(&scene, &url, &["-v", "--name", "beat", "--", "true"]));
    wait_until_it_waits(&waiter);
    let status = scene.run(&mut lockrun(&scene, &url, &["status", "--json"]));
    assert_eq!(status.code(), 0, "{}", status.stderr);
    assert_eq!(parse(&status.stdout)["locks"][0]["state"], "held");
    for pid in [holder.pid(), waiter.pid()] {
        let title = fs::read(format!("/proc/{pid}/cmdline")).expect("alive");
        assert!(!String::from_utf8_lossy(&title).contains("p%40ss"));
    }
    gate.open();
    let (holder, waiter) = (holder.finish(), waiter.finish());
    assert_eq!((holder.code(), waiter.code()), (0, 0), "{} {}", holder.stderr, waiter.stderr);
    [holder, waiter, status].iter().for_each(assert_no_secret);
}

#[test]
fn of_several_hosts_the_one_that_takes_writes_is_used_also_after_a_fail_over() {
    let scene = Scene::new();
    let mut primary = Postgres::start();
    let standby = primary.standby(&[]);
    let (first, second) = (standby.port(), primary.port());
    let url = format!("postgres://postgres@127.0.0.1:{first},127.0.0.1:{second}/postgres");
    let finished = scene.run(&mut try_it(&scene, &standby.url()));
    assert_eq!((finished.code(), finished.stderr.contains("standby")), (69, true), "{}", finished.stderr);
    let mut gate = Gate::new(&scene, "gate");
    let body = scene.witness("read go <gate");
    let holder =
        scene.start(&mut lockrun(&scene, &url, &["--ttl", "60s", "--heartbeat", "500ms", "--name", "beat", "--", "sh", "-c", &body]));
    scene.wait_for_starts(1);
    let written = primary.sql("SELECT pg_current_wal_lsn()");
    wait_until("the standby has it", || standby.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{written}'")) == "t");
    primary.stop();
    standby.promote();
    // From here on only what the other host has counts.
    let before = standby.sql("SELECT write_id FROM lockrun_lease");
    wait_until("a renewal at the other host", || standby.sql("SELECT write_id FROM lockrun_lease") != before);
    gate.open();
    let finished = holder.finish();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_runs(&scene, &mut try_it(&scene, &url));
    scene.assert_exclusion();
}

#[test]
fn a_server_that_is_told_to_be_read_only_is_unreachable_and_not_refused() {
    let (scene, server) = (Scene::new(), Postgres::start());
    assert_runs(&scene, &mut try_it(&scene, &server.url()));
    server.sql("ALTER DATABASE postgres SET default_transaction_read_only = on");
    let finished = scene.run(&mut try_it(&scene, &server.url()));
    assert_eq!((finished.code(), finished.stderr.contains("read-only")), (69, true), "{}", finished.stderr);
}

#[test]
fn a_host_that_does_not_answer_does_not_eat_the_time() {
    let (scene, server) = (Scene::new(), Postgres::start());
    // The kernel connects, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = silent.local_addr().expect("bound").port();
    let url = format!("postgres://postgres@127.0.0.1:{port},127.0.0.1:{}/postgres", server.port());
    assert_runs(&scene, &mut try_it(&scene, &url));
    assert_runs(&scene, &mut try_it(&scene, &format!("{url}?connect_timeout=1")));
}

#[test]
fn it_works_through_a_pgbouncer_in_transaction_mode_and_says_so() {
    let (scene, server) = (Scene::new(), PgBouncer::start());
    let mut gate = Gate::new(&scene, "gate");
    let body = scene.witness("read go <gate");
    let times = ["--ttl", "60s", "--heartbeat", "250ms", "--name", "beat", "--", "sh", "-c"];
    let holder = scene.start(&mut lockrun(&scene, &server.url(), &[&times[..], &[&body]].concat()));
    scene.wait_for_starts(1);
    let next = scene.witness("true");
    let waiter = scene.start(&mut lockrun(&scene, &server.url(), &[&times[..], &[&next]].concat()));
    wait_until_it_waits(&waiter);
    let check = parse(&scene.run(&mut lockrun(&scene, &server.url(), &["check", "--json"])).stdout);
    assert_eq!(check["notifications"], false, "{check}");
    assert!(check["warnings"].to_string().contains("once a second"), "{check}");
    let before = server.postgres.sql("SELECT write_id FROM lockrun_lease");
    wait_until("a renewal", || server.postgres.sql("SELECT write_id FROM lockrun_lease") != before);
    gate.open();
    let (holder, waiter) = (holder.finish(), waiter.finish());
    assert_eq!((holder.code(), waiter.code()), (0, 0), "{} {}", holder.stderr, waiter.stderr);
    assert_eq!(scene.starts().len(), 2);
    scene.assert_exclusion();
}

#[test]
fn what_a_pgbouncer_refuses_is_refused_and_what_passes_is_waited_for() {
    let (scene, mut server) = (Scene::new(), PgBouncer::start());
    let url = server.url();
    assert_refused(&scene, &format!("{url}?options=-csearch_path%3Djobs"), &["options", "ignore_startup_parameters"]);
    assert_refused(
        &scene,
        &format!("postgres://postgres@127.0.0.1:{}/none", server.port()),
        &["none", "check user, password and database"],
    );
    server.postgres.stop();
    let finished = scene.run(&mut try_it(&scene, &url));
    assert_eq!(finished.code(), 69, "{}", finished.stderr);
    server.postgres.start_again();
    wait_until("the server behind it", || scene.run(&mut try_it(&scene, &url)).code() == 0);
}
