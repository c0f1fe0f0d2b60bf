//! lockrun as the init of a PID namespace: signals of default action do not end it, and it adopts strangers.

use super::{assert_code, lockrun, program, shell_words};
use crate::common::{Running, Scene, children, comm, state, wait_until};

/// `unshare --fork --pid --mount-proc lockrun … -- sh -c SCRIPT`
fn as_init(scene: &Scene, script: &str) -> Running {
    let words = shell_words(scene, "600s");
    let line = format!("exec unshare --fork --kill-child --pid --mount-proc {words} -- sh -c \"$SCRIPT\"");
    let running = scene.start(program(scene, "sh").args(["-c", &line]).env("SCRIPT", script));
    wait_until("a PID namespace", || {
        let stderr = running.stderr();
        assert!(!stderr.contains("unshare:"), "cannot make a PID namespace, run tests/run, as root: {stderr}");
        stderr.contains("acquired") || !children(running.pid()).is_empty()
    });
    running
}

fn init_of(unshare: &Running) -> i32 {
    let mut found = None;
    wait_until("lockrun as init", || {
        found = children(unshare.pid()).into_iter().find(|pid| comm(*pid) == "lockrun");
        found.is_some()
    });
    found.expect("just found")
}

#[test]
fn t04_as_pid_1_a_death_by_a_signal_is_128_and_the_signal() {
    let scene = Scene::new();
    for (signal, code) in [("TERM", 143), ("KILL", 137), ("SEGV", 139)] {
        let finished = as_init(&scene, &format!("kill -{signal} $$")).finish();
        assert_code(&finished, code);
    }
    assert_code(&as_init(&scene, "exit 42").finish(), 42);
    assert_code(&scene.run(&mut lockrun(&scene, ["-n", "--", "true"])), 0);
}

#[test]
fn t04_as_pid_1_a_term_ends_the_command_and_lockrun() {
    let scene = Scene::new();
    let unshare = as_init(&scene, "touch up; exec sleep 600");
    scene.wait_for_file("up");
    crate::common::signal(init_of(&unshare), nix::sys::signal::Signal::SIGTERM);
    assert_code(&unshare.finish(), 143);
}

#[test]
fn t04_as_pid_1_a_term_while_waiting_is_143_and_starts_nothing() {
    let scene = Scene::new();
    let _holder = scene.start(&mut super::patient(&scene, ["--", "sh", "-c", "touch up; exec sleep 600"]));
    scene.wait_for_file("up");
    let unshare = as_init(&scene, "touch ran");
    unshare.wait_for_stderr("waiting");
    crate::common::signal(init_of(&unshare), nix::sys::signal::Signal::SIGTERM);
    assert_code(&unshare.finish(), 143);
    assert!(!scene.path("ran").exists());
}

#[test]
fn t29_orphans_of_the_command_and_of_strangers_leave_no_zombie() {
    let scene = Scene::new();
    let orphans = "for i in 1 2 3 4 5 6 7 8 9 10; do (sh -c 'echo x >>ended' &); done";
    let unshare = as_init(&scene, &format!("{orphans}; touch up; exec sleep 600"));
    scene.wait_for_file("up");
    let init = init_of(&unshare);
    // As `docker exec` does: a process of the namespace that is no descendant of the guard; init adopts its orphans.
    let inside = scene.run(scene.command("nsenter").args(["--pid", "--target", &init.to_string(), "sh", "-c", orphans]));
    assert_code(&inside, 0);
    let ended = || std::fs::read_to_string(scene.path("ended")).unwrap_or_default().lines().count();
    wait_until("twenty orphans have run", || ended() == 20);
    let below = |pid: i32| children(pid).into_iter().map(|child| (comm(child), state(child))).collect::<Vec<_>>();
    let guard = children(init).into_iter().find(|pid| comm(*pid) == "lockrun-guard").expect("the guard");
    // Nothing but the guard and the command is left below them, neither alive nor as a zombie.
    wait_until("an end of the zombies", || below(init).len() == 1 && below(guard).len() == 1);
}
