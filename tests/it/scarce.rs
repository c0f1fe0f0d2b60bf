//! A machine that has too little of something. The command runs, or one line says what is missing; never a half start.

use crate::common::Scene;

/// One line that names the limit, or the command ran.
#[test]
fn a_low_limit_of_descriptors_is_enough_or_is_named() {
    let mut codes = vec![];
    for limit in 6..=24 {
        let scene = Scene::new();
        let script = format!("ulimit -n {limit}; exec \"$@\"");
        let mut command = scene.command("sh");
        command.args(["-c", &script, "sh"]).arg(crate::common::lockrun_binary()).arg("--db").arg(scene.db());
        let finished = scene.run(command.args(["-n", "--", "sh", "-c", "echo ran"]));
        match finished.code() {
            0 => assert_eq!(finished.stdout, "ran\n", "limit {limit}: {}", finished.stderr),
            code => {
                assert_eq!((code, finished.stdout.as_str()), (125, ""), "limit {limit}: {}", finished.stderr);
                assert!(finished.stderr.contains("open files"), "limit {limit}: {}", finished.stderr);
                assert_eq!(finished.stderr.lines().count(), 1, "limit {limit}: {}", finished.stderr);
            }
        }
        codes.push(finished.code());
    }
    assert!(codes.is_sorted_by(|few, more| few >= more), "more descriptors are never worse: {codes:?}");
    assert_eq!((codes.first(), codes[14]), (Some(&125), 0), "6 are too few, 20 are enough: {codes:?}");
}

#[test]
fn a_descriptor_limit_that_the_callers_own_files_use_up_is_named() {
    let scene = Scene::new();
    let script = "ulimit -n 20; for fd in 3 4 5 6 7 8 9; do eval \"exec $fd</dev/null\"; done; exec \"$@\"";
    let mut command = scene.command("sh");
    command.args(["-c", script, "sh"]).arg(crate::common::lockrun_binary()).arg("--db").arg(scene.db());
    let finished = scene.run(command.args(["--", "touch", "ran"]));
    assert_eq!(finished.code(), 125, "{}", finished.stderr);
    assert!(finished.stderr.contains("open files") && !scene.path("ran").exists(), "{}", finished.stderr);
}

#[test]
fn without_proc_nothing_is_started_and_proc_is_named() {
    let scene = Scene::new();
    let mut command = scene.command("unshare");
    command.args(["--mount", "sh", "-c", "mount -t tmpfs none /proc && exec \"$@\"", "sh"]);
    command.arg(crate::common::lockrun_binary()).arg("--db").arg(scene.db());
    let finished = scene.run(command.args(["--", "touch", "ran"]));
    assert_eq!(finished.code(), 125, "{}", finished.stderr);
    assert!(finished.stderr.starts_with("lockrun: /proc: ") && finished.stderr.lines().count() == 1, "{}", finished.stderr);
    assert!(!scene.path("ran").exists() && !scene.db().exists(), "nothing was changed");
}
