//! Many copies at one moment. Must never start them one by one: a pipe lets all of them go at once.

use std::fs::{self, File, OpenOptions};
use std::process::Command;

use nix::sys::stat::Mode;

use crate::common::gate::Gate;
use crate::common::tables::Table;
use crate::common::{Running, Scene, lockrun_binary, wait_until};

/// `count` copies of `lockrun ARGS`, each about to be executed, all let go in the same moment. Keep the file: it holds the
/// starting gate open for those that the kernel has not run yet.
fn start_together(scene: &Scene, count: usize, args: &dyn Fn(&mut Command)) -> (Vec<Running>, File) {
    nix::unistd::mkfifo(&scene.path("start"), Mode::S_IRWXU).expect("a pipe");
    let copies = (0..count)
        .map(|_| {
            // Opening a pipe to read it waits until somebody has it open to write.
            let mut shell = scene.command("sh");
            args(shell.args(["-c", "echo >>ready; : <start; exec \"$@\"", "sh", lockrun_binary()]));
            scene.start(&mut shell)
        })
        .collect();
    wait_until("all copies at the start", || fs::read(scene.path("ready")).is_ok_and(|ready| ready.len() == count));
    (copies, OpenOptions::new().write(true).open(scene.path("start")).expect("the starting gate"))
}

fn of_a_hundred_one_runs(table: Table) {
    const COPIES: usize = 100;
    let scene = table.scene();
    assert_eq!(scene.db().exists(), table == Table::App, "lockrun's own database does not exist yet");
    let mut gate = Gate::new(&scene, "go");
    let script = scene.witness("read gate <go; exit 42");
    let (mut copies, _start) = start_together(&scene, COPIES, &|command| {
        command.args(["-n", "--db"]).arg(scene.db()).args(table.options()).args(["--", "sh", "-c", &script]);
    });
    wait_until("the end of all but one", || copies.iter_mut().map(Running::is_running).filter(|running| *running).count() <= 1);
    let winner = copies.iter_mut().position(Running::is_running).expect("one has the lease, and its command waits");
    let winner = copies.remove(winner);
    for copy in copies {
        let finished = copy.finish();
        assert_eq!(finished.code(), 75, "{}", finished.stderr);
        assert!(finished.stderr.contains("held by"), "{}", finished.stderr);
        assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    }
    scene.wait_for_starts(1);
    gate.open();
    assert_eq!(winner.finish().code(), 42);
    assert_eq!(scene.starts().len(), 1);
    scene.assert_exclusion();
    assert_eq!(table.row(&scene), None);
}

#[test]
fn of_a_hundred_copies_started_at_once_on_a_new_database_one_runs_and_the_others_exit_with_75() {
    of_a_hundred_one_runs(Table::Own);
}

#[test]
fn of_a_hundred_copies_started_at_once_on_an_applications_table_one_runs_and_the_others_exit_with_75() {
    of_a_hundred_one_runs(Table::App);
}

fn thirty_run_one_after_the_other(table: Table) {
    const COPIES: usize = 30;
    let scene = table.scene();
    let script = scene.witness("exit 0");
    let (copies, _start) = start_together(&scene, COPIES, &|command| {
        command.arg("--db").arg(scene.db()).args(table.options()).args(["--", "sh", "-c", &script]);
    });
    for copy in copies {
        let finished = copy.finish();
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
    }
    assert_eq!(scene.starts().len(), COPIES);
    scene.assert_exclusion();
    assert_eq!(table.row(&scene), None);
}

#[test]
fn thirty_waiting_copies_run_one_after_the_other() {
    thirty_run_one_after_the_other(Table::Own);
}

#[test]
fn thirty_waiting_copies_on_an_applications_table_run_one_after_the_other() {
    thirty_run_one_after_the_other(Table::App);
}

/// Names share a file and nothing else.
#[test]
fn copies_of_different_names_run_at_the_same_time_in_one_database() {
    const NAMES: usize = 10;
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let copies: Vec<_> = (0..NAMES)
        .map(|number| {
            let name = format!("lease-{number}");
            let script = "echo \"$LOCKRUN_NAME\" >>running; read gate <go";
            scene.start(&mut scene.lockrun(["-n", "--name", &name, "--", "sh", "-c", script]))
        })
        .collect();
    wait_until("all of them running", || fs::read_to_string(scene.path("running")).unwrap_or_default().lines().count() == NAMES);
    (0..NAMES).for_each(|_| gate.open());
    for copy in copies {
        let finished = copy.finish();
        assert_eq!(finished.code(), 0, "{}", finished.stderr);
    }
    let running = fs::read_to_string(scene.path("running")).expect("ten names");
    let mut names: Vec<_> = running.lines().collect();
    names.sort_unstable();
    assert_eq!(names, (0..NAMES).map(|number| format!("lease-{number}")).collect::<Vec<_>>());
}
