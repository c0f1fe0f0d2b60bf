//! What bad input gets: one line, 125, nothing started, nothing changed. Must never accept a line that does not say what was
//! wrong, nor a folder that looks different afterwards.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use crate::common::{Scene, lockrun_binary};

/// A folder apart from the harness's logs, in which lockrun is run and nothing may change.
struct Room {
    scene: Scene,
}

impl Room {
    /// With a database, an application's and untouched by lockrun, in `x.db`.
    fn new() -> Room {
        let scene = Scene::new();
        fs::create_dir(scene.path("room")).expect("a folder");
        let room = Room { scene };
        let connection = rusqlite::Connection::open(room.path("x.db")).expect("a new database");
        connection.execute_batch("CREATE TABLE app(x)").expect("the application's table");
        room
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.scene.path("room").join(name)
    }

    fn lockrun(&self, args: &[&str]) -> Command {
        let mut command = self.scene.bare_lockrun(args);
        command.current_dir(self.scene.path("room"));
        command
    }

    /// Name, kind, mode, size, time of change and content of everything below.
    fn listing(&self) -> BTreeMap<String, String> {
        let mut found = BTreeMap::new();
        list(&self.scene.path("room"), &mut found);
        found
    }

    /// Runs it and returns the one line that it got.
    fn refused(&self, command: &mut Command) -> String {
        let before = self.listing();
        let finished = self.scene.run(command);
        let stderr = &finished.stderr;
        assert_eq!(finished.code(), 125, "{command:?}: {stderr}");
        assert_eq!(finished.stdout, "", "{command:?}");
        assert_eq!(stderr.lines().count(), 1, "one line for {command:?}: {stderr}");
        assert!(stderr.starts_with("lockrun: "), "{command:?}: {stderr}");
        assert_eq!(self.listing(), before, "{command:?} changed something");
        stderr.clone()
    }

    /// `lockrun ARGS -- touch ran` is refused with a line that has all of `words` in it.
    fn refuses(&self, args: &[&str], words: &[&str]) {
        assert_says(&self.refused(self.lockrun(args).args(["--", "touch", "ran"])), words);
    }

    /// So is `lockrun check ARGS`.
    fn check_refuses_too(&self, args: &[&str], words: &[&str]) {
        assert_says(&self.refused(self.lockrun(&["check"]).args(args)), words);
    }
}

fn list(folder: &Path, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let meta = fs::symlink_metadata(&path).expect("its status");
        let content = if meta.is_file() { fs::read(&path).expect("its content") } else { Vec::new() };
        let line =
            format!("{:o} {} {}.{} {:?}", meta.mode(), meta.len(), meta.mtime(), meta.mtime_nsec(), content.escape_ascii().to_string());
        found.insert(path.display().to_string(), line);
        if meta.is_dir() {
            list(&path, found);
        }
    }
}

fn assert_says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} in {line:?}");
    }
}

#[test]
fn timing_that_cannot_hold_is_refused_with_the_relation_that_must_hold() {
    let room = Room::new();
    for (args, words) in [
        (&["--ttl", "5s", "--grace", "10s"][..], &["ttl", "grace", "12."][..]),
        (&["--ttl", "6s", "--heartbeat", "3s"], &["ttl", "heartbeat"]),
        (&["--ttl", "1s"], &["ttl", "2"]),
        (&["--ttl", "0"], &["ttl"]),
    ] {
        let args = [&["--db", "x.db"], args].concat();
        room.refuses(&args, words);
        room.check_refuses_too(&args, words);
    }
}

#[test]
fn values_that_are_none_are_refused_by_name() {
    let room = Room::new();
    for (args, words) in [
        (["--ttl", "soon"], ["--ttl", "soon"]),
        (["--ttl", "-5s"], ["--ttl", ""]),
        (["--ttl", ""], ["--ttl", ""]),
        (["--heartbeat", "5 parsecs"], ["--heartbeat", "parsecs"]),
        (["--grace", "1e99999"], ["--grace", ""]),
        (["--wait", "99999999999999999999d"], ["--wait", ""]),
        (["--kill-after", "x"], ["--kill-after", "x"]),
        (["--conflict-exit-code", "256"], ["--conflict-exit-code", "256"]),
        (["--conflict-exit-code", "-1"], ["--conflict-exit-code", ""]),
        (["--stop-signal", "NOPE"], ["--stop-signal", "NOPE"]),
        (["--signal-to", "all"], ["--signal-to", "all"]),
        (["--on-lost", "cry"], ["--on-lost", "cry"]),
        (["--log-format", "xml"], ["--log-format", "xml"]),
        (["--bogus", "x"], ["--bogus", ""]),
    ] {
        room.refuses(&[&["--db", "x.db"][..], &args].concat(), &words);
    }
}

#[test]
fn a_bad_variable_is_refused_by_its_name() {
    let room = Room::new();
    for (key, value) in
        [("LOCKRUN_TTL", "soon"), ("LOCKRUN_WAIT", "x"), ("LOCKRUN_ON_LOST", "cry"), ("LOCKRUN_NAME", "a b"), ("LOCKRUN_LOG", "loud")]
    {
        let line = room.refused(room.lockrun(&["--db", "x.db", "--", "touch", "ran"]).env(key, value));
        assert_says(&line, &[value]);
    }
}

#[test]
fn flags_that_contradict_each_other_are_refused() {
    let room = Room::new();
    room.refuses(&["--db", "x.db", "--name", "beat", "--table", "app"], &["--name", "--table"]);
    room.refuses(&["--db", "x.db", "--nonblock", "--wait", "5s"], &["--nonblock", "--wait"]);
}

#[test]
fn no_store_is_refused_and_the_option_named() {
    let room = Room::new();
    room.refuses(&[], &["--db", "LOCKRUN_DB"]);
    let empty = room.refused(room.lockrun(&["--", "touch", "ran"]).env("LOCKRUN_DB", ""));
    assert_says(&empty, &["--db"]);
}

#[test]
fn a_path_that_is_a_folder_is_refused() {
    let room = Room::new();
    fs::create_dir(room.path("folder")).expect("a folder");
    for path in ["folder", "folder/", "sqlite:folder", "."] {
        room.refuses(&["--db", path], &["folder"]);
        room.check_refuses_too(&["--db", path], &["folder"]);
    }
}

#[test]
fn a_path_in_a_folder_that_does_not_exist_is_refused() {
    let room = Room::new();
    room.refuses(&["--db", "no/such/x.db"], &["no/such"]);
    room.check_refuses_too(&["--db", "no/such/x.db"], &["no/such"]);
}

#[test]
fn a_file_that_is_no_sqlite_database_is_refused() {
    let room = Room::new();
    fs::write(room.path("notes.txt"), "what a nice day. ".repeat(500)).expect("a file");
    fs::write(room.path("short.txt"), "x").expect("a file");
    for path in ["notes.txt", "short.txt"] {
        room.refuses(&["--db", path], &[path, "SQLite"]);
        room.check_refuses_too(&["--db", path], &[path, "SQLite"]);
    }
}

#[test]
fn a_variable_for_a_file_that_names_the_database_itself_is_refused_with_the_right_variable() {
    let room = Room::new();
    let line = room.refused(room.lockrun(&["--", "touch", "ran"]).env("LOCKRUN_DB_FILE", "x.db"));
    assert!(line.replace("LOCKRUN_DB_FILE", "").contains("LOCKRUN_DB"), "{line}");
    let missing = room.refused(room.lockrun(&["--", "touch", "ran"]).env("LOCKRUN_DB_FILE", "no-such-file"));
    assert_says(&missing, &["LOCKRUN_DB_FILE", "no-such-file"]);
}

#[test]
fn a_bare_name_of_a_server_is_no_path() {
    let room = Room::new();
    for name in ["redis", "postgres"] {
        room.refuses(&["--db", name, "--name", "beat"], &[name, &format!("./{name}")]);
    }
    let finished = room.scene.run(&mut room.lockrun(&["--db", "./redis", "--", "true"]));
    assert_eq!(finished.code(), 0, "so written it is one: {}", finished.stderr);
}

#[test]
fn a_scheme_that_is_unknown_is_refused_and_its_password_not_shown() {
    let room = Room::new();
    for (store, scheme) in [("mysql://user:secret@host/db", "mysql"), ("https://user:secret@host/x.db", "https")] {
        let line = room.refused(&mut room.lockrun(&["--db", store, "--name", "beat", "--", "touch", "ran"]));
        assert_says(&line, &[scheme]);
        assert!(!line.contains("secret"), "{line}");
    }
}

/// These are stores to come: whoever builds one takes it out of here.
#[test]
fn a_name_with_bad_characters_or_length_is_refused() {
    let room = Room::new();
    let long = "x".repeat(254);
    for name in ["a b", "a:b", "ä", "a\nb", "a'b", "", &long] {
        let line = room.refused(&mut room.lockrun(&["--db", "x.db", "--name", name, "--", "touch", "ran"]));
        assert_says(&line, &["name"]);
        room.check_refuses_too(&["--db", "x.db", "--name", name], &["name"]);
    }
}

#[test]
fn a_name_of_253_allowed_characters_is_accepted() {
    let room = Room::new();
    for name in ["x".repeat(253), "Az09._-/".to_string(), "x".to_string()] {
        let finished = room.scene.run(&mut room.lockrun(&["--db", "x.db", "--name", &name, "--", "true"]));
        assert_eq!(finished.code(), 0, "{name}: {}", finished.stderr);
    }
}

#[test]
fn no_command_is_refused() {
    let room = Room::new();
    for args in [&["--db", "x.db"][..], &["--db", "x.db", "--"]] {
        assert_says(&room.refused(&mut room.lockrun(args)), &["command"]);
    }
}

#[test]
fn a_command_without_the_two_dashes_is_refused_and_shown_how_to_write_it() {
    let room = Room::new();
    assert_says(&room.refused(&mut room.lockrun(&["--db", "x.db", "celery", "beat"])), &["-- celery beat"]);
    assert_says(&room.refused(&mut room.lockrun(&["--db", "x.db", "touch", "ran"])), &["-- touch ran"]);
}

#[test]
fn a_shell_line_as_for_flock_is_refused_and_shown_how_to_write_it() {
    let room = Room::new();
    assert_says(&room.refused(&mut room.lockrun(&["--db", "x.db", "-c", "a | b"])), &["-- sh -c 'a | b'"]);
}

#[test]
fn an_instance_is_refused_to_all_but_pid_1() {
    let room = Room::new();
    room.refuses(&["--db", "x.db", "--instance", "pod-1"], &["--instance", "PID 1"]);
}

#[test]
fn a_table_of_another_shape_is_refused() {
    let room = Room::new();
    room.refuses(&["--db", "x.db", "--table", "app"], &["app"]);
}

#[test]
fn an_unwritable_folder_is_refused() {
    let room = Room::new();
    fs::create_dir(room.path("closed")).expect("a folder");
    if nix::unistd::geteuid().is_root() {
        // Modes do not bind root; a file system that is mounted read-only does.
        for run in [&["--"][..], &["check"]] {
            let outcome = mounted(&room, "mount -t tmpfs -o ro none closed", run, "closed/x.db");
            assert_refused(&outcome, &["closed"]);
        }
    } else {
        fs::set_permissions(room.path("closed"), fs::Permissions::from_mode(0o555)).expect("a mode");
        room.refuses(&["--db", "closed/x.db"], &["closed"]);
        room.check_refuses_too(&["--db", "closed/x.db"], &["closed"]);
    }
}

/// Each path of a bind mount has its own -wal, -shm and side file, so this one has no override.
#[test]
fn a_database_file_that_is_itself_a_mount_point_is_refused_without_override() {
    let room = Room::new();
    for run in [&["--"][..], &["check"], &["--allow-fs", "--"]] {
        assert_refused(&mounted(&room, "mount --bind x.db x.db", run, "x.db"), &["x.db", "mount"]);
    }
}

/// mqueue(7) is on every kernel, can be mounted without a device or a server, and has files that can be made and deleted (so
/// that nothing else refuses it first), but keeps no bytes in them. NFS, SMB and 9p, which are meant, need one or the other.
#[test]
fn a_file_system_on_which_sqlite_cannot_lock_is_refused_and_the_server_stores_named() {
    let room = Room::new();
    fs::create_dir(room.path("queue")).expect("a folder");
    for run in [&["--"][..], &["check"]] {
        assert_refused(&mounted(&room, "mount -t mqueue none queue", run, "queue/x.db"), &["queue", "postgres"]);
    }
}

/// What lockrun did within mounts of its own.
struct Outcome {
    code: i32,
    stderr: String,
    before: String,
    after: String,
}

/// `lockrun --db DB [-- touch ran]` in the room, after `mount`, in a mount namespace that ends with it: whatever becomes of
/// the test, nothing stays mounted. Without root a user namespace gives the right to mount.
fn mounted(room: &Room, mount: &str, run: &[&str], db: &str) -> Outcome {
    let before = room.listing();
    let mut command = room.scene.command("unshare");
    if !nix::unistd::geteuid().is_root() {
        command.arg("--map-root-user");
    }
    let script =
        format!("{mount} || exit 99; ls -lAR --full-time . >../before; \"$@\"; code=$?; ls -lAR --full-time . >../after; exit $code");
    command.args(["--mount", "--ipc", "sh", "-c", &script, "sh", lockrun_binary()]).current_dir(room.scene.path("room"));
    let finished = match run {
        ["check"] => room.scene.run(command.args(["check", "--db", db])),
        [options @ .., "--"] => room.scene.run(command.args(["--db", db]).args(options).args(["--", "touch", "ran"])),
        other => panic!("{other:?}"),
    };
    assert_ne!(finished.code(), 99, "this machine lets nobody mount: {}", finished.stderr);
    assert_eq!(room.listing(), before, "{mount}: lockrun changed something");
    let [before, after] = ["before", "after"].map(|name| fs::read_to_string(room.scene.path(name)).expect("a listing"));
    Outcome { code: finished.code(), stderr: finished.stderr, before, after }
}

fn assert_refused(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.code, 125, "{}", outcome.stderr);
    assert_eq!(outcome.stderr.lines().count(), 1, "{}", outcome.stderr);
    assert_eq!(outcome.before, outcome.after, "{}", outcome.stderr);
    assert_says(&outcome.stderr, words);
}
