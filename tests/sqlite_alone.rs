//! lockrun built with SQLite alone: `cargo test --no-default-features --test sqlite_alone`. With the other stores built in
//! nothing of it is true, so nothing of it is there.
#![cfg(not(any(feature = "postgres", feature = "etcd", feature = "redis", feature = "kubernetes", feature = "http")))]

use std::process::{Command, Output};

fn lockrun(args: &[&str]) -> (i32, Output) {
    let output = Command::new(env!("CARGO_BIN_EXE_lockrun")).args(args).env_remove("LOCKRUN_DB").output().expect("it runs");
    (output.status.code().expect("no signal"), output)
}

#[test]
fn it_runs_a_command_and_knows_who_held_the_lease() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let db = folder.path().join("x.db").display().to_string();
    let (code, output) = lockrun(&["--db", &db, "--", "sh", "-c", "echo $LOCKRUN_NAME; exit 42"]);
    assert_eq!((code, output.stdout.as_slice()), (42, &b"default\n"[..]), "{output:?}");
    let (code, output) = lockrun(&["status", "--db", &db, "--json"]);
    assert_eq!((code, String::from_utf8_lossy(&output.stdout).contains("\"state\":\"free\"")), (0, true), "{output:?}");
}

#[test]
fn a_store_that_is_not_built_in_is_refused_by_name_and_no_password_is_shown() {
    for scheme in ["postgres", "postgresql", "etcd", "etcds", "redis", "rediss", "kubernetes", "k8s"] {
        let (code, output) = lockrun(&["--db", &format!("{scheme}://user:secret@host/db"), "--name", "beat", "--", "false"]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((code, said.lines().count()), (125, 1), "{said}");
        assert!(said.contains("built without") && said.contains("use a path (SQLite)") && !said.contains("secret"), "{said}");
    }
}
