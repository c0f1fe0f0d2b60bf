//! What is on the disk, and when: the claim before the command starts; nothing waits for the disk after that.

use std::path::{Path, PathBuf};

use crate::common::Scene;

/// Writes a line for each file that the program has put on the disk.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int report(const char *call, int fd) {
    char link[64], path[512] = {0}, line[600];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    if (readlink(link, path, sizeof path - 1) < 0) return -1;
    int length = snprintf(line, sizeof line, "%s\n", path);
    int log = open(getenv("SYNC_LOG"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    int (*real)(int) = dlsym(RTLD_NEXT, call);
    int result = real(fd);
    if (log < 0 || write(log, line, length) != length) abort();
    close(log);
    return result;
}

int fsync(int fd) { return report("fsync", fd); }
int fdatasync(int fd) { return report("fdatasync", fd); }
"#;

/// A scene, and the library that notes what is synced.
fn watched() -> (Scene, PathBuf) {
    let scene = Scene::new();
    let (source, library) = (scene.path("shim.c"), scene.path("shim.so"));
    std::fs::write(&source, SHIM).expect("the source");
    let built = scene.run(scene.command("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source).arg("-ldl"));
    assert!(built.status.success(), "a C compiler is needed, run tests/run: {}", built.stderr);
    (scene, library)
}

/// What is synced before the command starts, and after that.
fn synced(scene: &Scene, library: &Path, log: &str) -> (Vec<String>, Vec<String>) {
    let log = scene.path(log);
    let script = format!("echo started >>'{}'; sleep 1", log.display());
    let mut command = scene.lockrun(["--", "sh", "-c", &script]);
    assert_eq!(scene.run(command.env("LD_PRELOAD", library).env("SYNC_LOG", &log)).code(), 0);
    let lines = std::fs::read_to_string(&log).expect("a log");
    let (before, after) = lines.split_once("started\n").expect("the command ran");
    let names = |part: &str| part.lines().map(|path| path.rsplit('/').next().unwrap_or_default().to_string()).collect();
    (names(before), names(after))
}

#[test]
fn a_claim_is_on_the_disk_before_its_command_starts_and_nothing_waits_for_the_disk_after_that() {
    let (scene, library) = watched();
    assert_eq!(scene.run(&mut scene.lockrun(["--", "true"])).code(), 0);
    for run in 1..=3 {
        let (before, after) = synced(&scene, &library, &format!("sync{run}"));
        assert!(before.contains(&"x.db-wal".to_string()), "the claim of run {run}: {before:?}");
        assert_eq!(after, [""; 0], "renewals and the release of run {run}");
    }
}

#[test]
fn a_new_database_is_on_the_disk_before_its_log_and_its_folder_after_it() {
    let (scene, library) = watched();
    let (before, after) = synced(&scene, &library, "sync");
    let folder = scene.path("").file_name().expect("a name").to_string_lossy().into_owned();
    assert_eq!((before, after), (vec!["x.db".to_string(), "x.db-wal".to_string(), folder], vec![]));
}
