//! Standard streams that are held open, closed, broken or full.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::process::Stdio;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::{assert_code, assert_released, lockrun, outlive_the_lease, program, shell_words};
use crate::common::Scene;

#[test]
fn t31_a_leftover_that_holds_stdout_open_is_ended_so_the_reader_sees_the_end() {
    let scene = Scene::new();
    // An hour: the test's patience ends before that.
    let script = format!("out=$({} -- sh -c 'setsid sleep 3600 & echo hi'); echo \"[$out]\"", shell_words(&scene, "600s"));
    let finished = scene.run(program(&scene, "sh").args(["-c", &script]));
    assert_eq!(finished.stdout, "[hi]\n");
    assert_code(&finished, 0);
}

/// Runs past the end of an unrenewed lease, with much to say, and on to the command's own exit code.
fn lives_with_stderr(stderr: Option<Stdio>) {
    let scene = Scene::new();
    let script = "touch up; until [ -e go ]; do sleep 0.1; done; setsid sleep 3600 2>/dev/null & exit 3";
    let mut running = match stderr {
        Some(stderr) => {
            let mut command = lockrun(&scene, ["-v", "--", "sh", "-c", script]);
            scene.start_redirected(command.stdout(Stdio::null()).stderr(stderr))
        }
        None => {
            let line = format!("exec {} -v -- sh -c \"$SCRIPT\" 2>&-", shell_words(&scene, "3s"));
            scene.start(program(&scene, "sh").args(["-c", &line]).env("SCRIPT", script))
        }
    };
    scene.wait_for_file("up");
    outlive_the_lease(&mut running);
    std::fs::write(scene.path("go"), "").expect("go");
    assert_code(&running.finish(), 3);
    assert_released(&scene);
}

#[test]
fn t41_a_closed_stderr_changes_nothing() {
    lives_with_stderr(None);
}

#[test]
fn t41_a_stderr_whose_reader_is_gone_changes_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    lives_with_stderr(Some(Stdio::from(OwnedFd::from(writer))));
}

#[test]
fn t41_a_full_stderr_that_nobody_reads_changes_nothing() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    fill(&writer);
    lives_with_stderr(Some(Stdio::from(OwnedFd::from(writer))));
    drop(reader);
}

#[test]
fn t41_dev_full_as_stderr_changes_nothing() {
    let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
    lives_with_stderr(Some(Stdio::from(full)));
}

/// Writes until not one byte more goes in, and leaves it blocking, as a caller's is.
fn fill(mut writer: &std::io::PipeWriter) {
    fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).expect("non-blocking");
    for size in [65536, 1] {
        while writer.write(&vec![b'x'; size]).is_ok() {}
    }
    fcntl(writer, FcntlArg::F_SETFL(OFlag::empty())).expect("blocking");
}
