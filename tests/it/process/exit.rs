//! How a run ends, as the caller sees it.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;

use super::{assert_code, assert_died_of, assert_released, patient, program, shell_words};
use crate::common::Scene;

#[test]
fn t01_the_exit_code_is_the_commands() {
    let scene = Scene::new();
    for code in [0, 1, 42, 75, 76, 125, 126, 255] {
        let finished = scene.run(&mut patient(&scene, ["--", "sh", "-c", &format!("exit {code}")]));
        assert_code(&finished, code);
    }
    assert_released(&scene);
}

#[test]
fn t02_a_command_that_exits_127_is_passed_on_and_leaves_the_lease_free() {
    let scene = Scene::new();
    let finished = scene.run(&mut patient(&scene, ["--", "sh", "-c", "exit 127"]));
    assert_code(&finished, 127);
    assert_released(&scene);
}

#[test]
fn t03_lockrun_dies_of_the_signal_that_its_command_died_of() {
    let scene = Scene::new();
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGKILL, libc::SIGUSR1, libc::SIGPIPE, libc::SIGALRM, 37] {
        let finished = scene.run(&mut patient(&scene, ["--", "sh", "-c", &format!("kill -{signal} $$")]));
        assert_died_of(&finished, signal);
    }
    let script = format!("{} -- sh -c 'kill -TERM $$'; echo code=$?", shell_words(&scene, "600s"));
    let finished = scene.run(program(&scene, "sh").args(["-c", &script]));
    assert_eq!(finished.stdout, "code=143\n");
    assert_released(&scene);
}

#[test]
fn t05_lockrun_adds_no_core_dump_of_its_own() {
    let scene = Scene::new();
    let alone = scene.run(program(&scene, "sh").args(["-c", "ulimit -c unlimited; exec sh -c 'kill -SEGV $$'"]));
    assert!(alone.status.core_dumped(), "no core can be dumped here, so this test shows nothing: run tests/run, as root");
    let words = shell_words(&scene, "600s");
    let finished = scene.run(program(&scene, "sh").args(["-c", &format!("ulimit -c unlimited; exec {words} -- sh -c 'kill -SEGV $$'")]));
    assert_died_of(&finished, libc::SIGSEGV);
    assert!(!finished.status.core_dumped(), "the core of lockrun itself");
}

#[test]
fn t06_what_cannot_be_executed_is_126_or_127_and_leaves_the_lease_free() {
    let scene = Scene::new();
    let not_executable = scene.path("script");
    std::fs::write(&not_executable, "#!/bin/sh\n").expect("a script");
    std::fs::set_permissions(&not_executable, PermissionsExt::from_mode(0o644)).expect("its mode");
    let not_executable = not_executable.to_str().expect("UTF-8");
    let folder = scene.dir().to_str().expect("UTF-8");
    for (command, code) in [("/none/such", 127), ("no-such-command-anywhere", 127), (not_executable, 126), (folder, 126)] {
        let finished = scene.run(&mut patient(&scene, ["--", command]));
        assert_code(&finished, code);
        assert!(finished.stderr.contains(command), "stderr must name {command}: {}", finished.stderr);
        assert_released(&scene);
    }
}

#[test]
fn t07_bad_usage_is_125_and_runs_nothing() {
    let scene = Scene::new();
    let db = scene.db();
    let db = db.to_str().expect("UTF-8");
    for args in [
        &["--db", db, "--bogus", "--", "touch", "ran"][..],
        &["--db", db][..],
        &["--db", db, "--"][..],
        &["--db", db, "touch", "ran"][..],
        &["--db", db, "--ttl", "5s", "--grace", "10s", "--", "touch", "ran"][..],
        &["--", "touch", "ran"][..],
    ] {
        let finished = scene.run(&mut scene.bare_lockrun(args));
        assert_code(&finished, 125);
        assert_ne!(finished.stderr, "", "{args:?} must be explained");
        assert!(!scene.path("ran").exists(), "{args:?} ran the command");
    }
}

#[test]
fn t08_arguments_arrive_byte_for_byte() {
    let scene = Scene::new();
    let mut command = patient(&scene, ["--", "sh", "-c", r#"printf '<%s>' "$@""#, "sh", "-h", "--db", "", "--", "a b", "status"]);
    command.arg(OsString::from_vec(vec![0xff, b'\n', 0xfe]));
    command.args(["--version", "*", "$HOME"]);
    let out = scene.path("bytes");
    command.stdout(std::fs::File::create(&out).expect("a file"));
    let finished = scene.start_redirected(command.stderr(std::process::Stdio::null())).finish();
    assert_code(&finished, 0);
    let bytes = std::fs::read(out).expect("the output");
    assert_eq!(bytes, b"<-h><--db><><--><a b><status><\xff\n\xfe><--version><*><$HOME>", "{}", String::from_utf8_lossy(&bytes));
}

#[test]
fn t28_in_a_pipeline_only_the_tree_is_ended_and_the_reader_sees_the_end() {
    let scene = Scene::new();
    let words = shell_words(&scene, "600s");
    let script = format!("{words} -- sh -c 'sleep 600 & echo a; kill -TERM $$' | {{ cat; echo the reader is alive; }}");
    let finished = scene.run(program(&scene, "sh").args(["-c", &script]));
    assert_eq!(finished.stdout, "a\nthe reader is alive\n");
    assert_code(&finished, 0);
}
