//! Every exit code of the contract, each as a caller sees it. Must never look at a code without saying what the command did.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::{fs, iter};

use nix::sys::signal::Signal;

use crate::common::gate::Gate;
use crate::common::report::{parse, subcommand, wait_until_it_waits};
use crate::common::tables::{Table, locked_rollback_database};
use crate::common::{Finished, Running, Scene, signal, wait_until};

/// A holder whose command waits at the gate.
fn hold(scene: &Scene) -> (Gate, Running) {
    let gate = Gate::new(scene, "hold");
    let script = scene.witness("read gate <hold");
    let running = scene.start(&mut scene.lockrun(["--", "sh", "-c", &script]));
    scene.wait_for_starts(1);
    (gate, running)
}

fn run(scene: &Scene, args: &[&str]) -> Finished {
    scene.run(&mut scene.lockrun(args))
}

/// Names of all that is in the scene's folder, apart from the logs of the harness.
fn files(scene: &Scene) -> Vec<String> {
    let entries = fs::read_dir(scene.dir()).expect("a folder").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<_> = entries.map(|name| name.to_string_lossy().into_owned()).filter(|name| !name.starts_with("log-")).collect();
    names.sort();
    names
}

#[test]
fn the_commands_own_exit_code_is_passed_on() {
    let scene = Scene::new();
    for code in [0, 1, 2, 42, 69, 75, 76, 125, 126, 127, 128, 255] {
        let finished = run(&scene, &["--", "sh", "-c", &format!("exit {code}")]);
        assert_eq!(finished.status.code(), Some(code), "{}", finished.stderr);
        assert_eq!(Table::Own.row(&scene), None, "released after exit {code}");
    }
}

#[test]
fn lockrun_dies_of_the_signal_that_the_command_died_of() {
    let scene = Scene::new();
    for (name, signal) in [
        ("TERM", Signal::SIGTERM),
        ("INT", Signal::SIGINT),
        ("HUP", Signal::SIGHUP),
        ("KILL", Signal::SIGKILL),
        ("USR1", Signal::SIGUSR1),
        ("ABRT", Signal::SIGABRT),
        ("SEGV", Signal::SIGSEGV),
    ] {
        let finished = run(&scene, &["--", "sh", "-c", &format!("ulimit -c 0; kill -{name} $$; read gate </dev/null; exit 3")]);
        assert_eq!(finished.status.signal(), Some(signal as i32), "{name}: {:?} {}", finished.status, finished.stderr);
        assert_eq!(Table::Own.row(&scene), None, "released after {name}");
    }
}

#[test]
fn a_shell_shows_128_and_the_signal() {
    let scene = Scene::new();
    let mut shell = scene.command("sh");
    shell.args(["-c", "\"$@\"; echo $? >code", "sh", crate::common::lockrun_binary(), "--db"]).arg(scene.db());
    scene.run(shell.args(["--", "sh", "-c", "kill -TERM $$"]));
    assert_eq!(scene.wait_for_file("code"), "143\n");
}

#[test]
fn a_signal_while_waiting_ends_lockrun_by_that_signal_and_nothing_is_started() {
    let scene = Scene::new();
    let (mut gate, holder) = hold(&scene);
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        let waiter = scene.start(&mut scene.lockrun(["--", "touch", "ran"]));
        wait_until_it_waits(&waiter);
        waiter.signal(signal);
        let finished = waiter.finish();
        assert_eq!(finished.status.signal(), Some(signal as i32), "{:?} {}", finished.status, finished.stderr);
    }
    gate.open();
    assert_eq!(holder.finish().code(), 0, "the holder was not touched");
    assert!(!scene.path("ran").exists());
}

#[test]
fn a_store_that_cannot_be_reached_within_the_wait_is_69() {
    let scene = Scene::new();
    let _lock = locked_rollback_database(&scene.db());
    for wait in [&["-n"][..], &["-w", "500ms"], &["-w", "500ms", "-E", "9"], &["-n", "-E", "9"]] {
        let finished = scene.run(scene.lockrun(wait).args(["--", "touch", "ran"]));
        assert_eq!(finished.code(), 69, "{wait:?}: -E is for a held lease alone: {}", finished.stderr);
        assert_ne!(finished.stderr, "", "it says why");
    }
    assert!(!scene.path("ran").exists());
}

#[test]
fn without_a_limit_lockrun_waits_for_the_store_and_says_so() {
    let scene = Scene::new();
    let lock = locked_rollback_database(&scene.db());
    let mut running = scene.start(&mut scene.lockrun(["--", "sh", "-c", "exit 42"]));
    wait_until("a word about it", || !running.stderr().is_empty());
    assert!(running.is_running());
    drop(lock);
    assert_eq!(running.finish().code(), 42);
}

#[test]
fn a_held_lease_is_75_with_n_and_when_the_wait_runs_out() {
    let scene = Scene::new();
    let (mut gate, holder) = hold(&scene);
    for wait in [&["-n"][..], &["--nonblock"], &["-w", "0"], &["--wait", "300ms"]] {
        let finished = scene.run(scene.lockrun(wait).args(["--", "touch", "ran"]));
        assert_eq!(finished.code(), 75, "{wait:?}: {}", finished.stderr);
        assert!(finished.stderr.contains("held by"), "{wait:?}: {}", finished.stderr);
    }
    let by_variable = scene.run(scene.lockrun(["--", "touch", "ran"]).env("LOCKRUN_WAIT", "0"));
    assert_eq!(by_variable.code(), 75, "{}", by_variable.stderr);
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert!(!scene.path("ran").exists());
}

#[test]
fn a_wait_that_does_not_run_out_gets_the_lease() {
    let scene = Scene::new();
    let (mut gate, holder) = hold(&scene);
    let waiter = scene.start(&mut scene.lockrun(["-w", "10m", "-v", "--", "sh", "-c", "exit 42"]));
    wait_until_it_waits(&waiter);
    gate.open();
    assert_eq!((holder.finish().code(), waiter.finish().code()), (0, 42));
}

#[test]
fn the_conflict_exit_code_stands_in_for_75() {
    let scene = Scene::new();
    let (mut gate, holder) = hold(&scene);
    for args in [&["-n", "-E", "0"][..], &["-n", "-E", "9"], &["-w", "200ms", "--conflict-exit-code", "255"]] {
        let finished = scene.run(scene.lockrun(args).args(["--", "touch", "ran"]));
        assert_eq!(finished.code().to_string(), args[args.len() - 1], "{args:?}: {}", finished.stderr);
    }
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert!(!scene.path("ran").exists());
}

#[test]
fn a_lost_lease_is_76() {
    let scene = Scene::new();
    let (_gate, holder) = hold(&scene);
    Table::Own.delete_row(&scene);
    let finished = holder.finish();
    assert_eq!(finished.code(), 76, "{}", finished.stderr);
}

#[test]
fn a_command_that_is_not_found_is_127_and_the_lease_is_released() {
    let scene = Scene::new();
    for command in ["no-such-program", "./no-such-program", "/no/such/program"] {
        let finished = run(&scene, &["-n", "--", command]);
        assert_eq!(finished.code(), 127, "{}", finished.stderr);
        assert!(finished.stderr.contains(command), "it names the command: {}", finished.stderr);
        assert_eq!(Table::Own.row(&scene), None);
    }
    assert_eq!(run(&scene, &["-n", "--", "true"]).code(), 0, "the lease is free");
}

#[test]
fn a_command_that_cannot_be_executed_is_126_and_the_lease_is_released() {
    let scene = Scene::new();
    fs::write(scene.path("plain"), "#!/bin/sh\ntouch ran\n").expect("a file");
    fs::set_permissions(scene.path("plain"), fs::Permissions::from_mode(0o644)).expect("a mode");
    fs::create_dir(scene.path("folder")).expect("a folder");
    for command in ["./plain", "./folder"] {
        let finished = run(&scene, &["-n", "--", command]);
        assert_eq!(finished.code(), 126, "{}", finished.stderr);
        assert!(finished.stderr.contains(command), "it names the command: {}", finished.stderr);
        assert_eq!(Table::Own.row(&scene), None);
    }
    assert_eq!(run(&scene, &["-n", "--", "true"]).code(), 0, "the lease is free");
    assert!(!scene.path("ran").exists());
}

#[test]
fn status_of_a_named_lease_is_0_while_held_and_1_when_free() {
    let scene = Scene::new();
    let (mut gate, holder) = hold(&scene);
    let held = subcommand(&scene, "status", &["--name", "default"]);
    assert_eq!(held.code(), 0, "{}", held.stderr);
    assert_eq!(parse(&held.stdout)["locks"][0]["state"], "held");
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    let free = subcommand(&scene, "status", &["--name", "default"]);
    assert_eq!(free.code(), 1, "{}", free.stderr);
    assert_eq!(parse(&free.stdout)["locks"][0]["state"], "free");
    let all = subcommand(&scene, "status", &[]);
    assert_eq!(all.code(), 0, "without a name there is an answer, and no question: {}", all.stderr);
}

#[test]
fn status_of_a_missing_database_is_125_and_creates_nothing() {
    let scene = Scene::new();
    for json in [&[][..], &["--json"]] {
        let before = files(&scene);
        let finished = scene.run(scene.bare_lockrun(["status", "--db"]).arg(scene.db()).args(json));
        assert_eq!(finished.code(), 125, "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
        assert!(finished.stderr.contains("x.db"), "{}", finished.stderr);
        assert_eq!(finished.stdout, "");
        assert_eq!(files(&scene), before);
    }
}

#[test]
fn status_and_check_of_a_store_that_cannot_be_reached_are_69() {
    let scene = Scene::new();
    let _lock = locked_rollback_database(&scene.db());
    for name in ["status", "check"] {
        let finished = subcommand(&scene, name, &[]);
        assert_eq!(finished.code(), 69, "{name}: {}{}", finished.stdout, finished.stderr);
    }
}

#[test]
fn check_of_a_usable_store_is_0() {
    let scene = Scene::new();
    assert_eq!(run(&scene, &["--", "true"]).code(), 0);
    let finished = scene.run(scene.bare_lockrun(["check", "--db"]).arg(scene.db()));
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_ne!(finished.stdout, "", "it tells the times and the promises");
}

#[test]
fn check_of_a_token_is_0_while_it_holds_and_1_when_it_does_not() {
    let scene = Scene::new();
    let (mut gate, holder) = hold(&scene);
    let token = scene.starts()[0].0;
    let ask = |token: i64| {
        let finished = subcommand(&scene, "check", &["--token", &token.to_string()]);
        (finished.code(), parse(&finished.stdout)["holds"].as_bool())
    };
    assert_eq!(ask(token), (0, Some(true)));
    assert_eq!(ask(token - 1), (1, Some(false)));
    assert_eq!(ask(token + 1), (1, Some(false)));
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert_eq!(ask(token), (1, Some(false)), "it has been released");
}

#[test]
fn as_pid_1_lockrun_exits_with_128_and_the_commands_signal() {
    let scene = Scene::new();
    let mut command = in_a_pid_namespace(&scene);
    let finished = scene.run(command.arg("--db").arg(scene.db()).args(["--", "sh", "-c", "kill -TERM $$"]));
    assert_eq!(finished.status.code(), Some(143), "{:?} {}", finished.status, finished.stderr);
}

#[test]
fn as_pid_1_lockrun_that_is_stopped_while_waiting_exits_with_128_and_the_signal() {
    let scene = Scene::new();
    let (mut gate, holder) = hold(&scene);
    let mut command = in_a_pid_namespace(&scene);
    let waiter = scene.start(command.arg("--db").arg(scene.db()).args(["--", "touch", "ran"]));
    wait_until_it_waits(&waiter);
    // unshare(1) waits for its child, which is PID 1 of the new namespace.
    let first = crate::common::children(waiter.pid());
    assert_eq!(first.len(), 1, "{first:?}");
    signal(first[0], Signal::SIGTERM);
    let finished = waiter.finish();
    assert_eq!(finished.status.code(), Some(143), "{:?} {}", finished.status, finished.stderr);
    gate.open();
    assert_eq!(holder.finish().code(), 0);
    assert!(!scene.path("ran").exists());
}

/// `lockrun` as PID 1 of a namespace of its own; without root a user namespace gives the right to it.
fn in_a_pid_namespace(scene: &Scene) -> Command {
    let mut command = scene.command("unshare");
    let user = (!nix::unistd::geteuid().is_root()).then_some("--map-root-user");
    command.args(iter::once("--pid").chain(user)).args(["--fork", "--mount-proc", crate::common::lockrun_binary()]);
    command
}
