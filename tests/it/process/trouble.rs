//! Trouble around lockrun: a busy database, an overloaded machine, a wall clock that steps. Nothing is to be lost for it.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rusqlite::{Connection, params};

use super::keeper::Keeper;
use super::{
    TTL, assert_code, assert_dead_in_time_when_stopped, assert_found_nobody, caught, lockrun, next_copy, outlive_the_lease, pass_until,
    patient, probe, program, roster, start_tree, timed, wait_for_catcher,
};
use crate::common::{Scene, wait_until};

/// Nobody else writes in the scene's database for as long as the connection lives.
pub fn lock_database(scene: &Scene) -> Connection {
    let connection = Connection::open(scene.db()).expect("the database");
    connection.busy_timeout(Duration::from_secs(30)).expect("a time-out");
    connection.execute_batch("BEGIN EXCLUSIVE").expect("the database's lock");
    connection
}

/// Every record of every lease is gone, as if an operator had cleaned up.
pub fn delete_records(scene: &Scene) {
    let connection = lock_database(scene);
    let named = "SELECT DISTINCT s.name FROM sqlite_master s JOIN pragma_table_info(s.name) c
                 WHERE s.type = 'table' AND s.name LIKE 'lockrun%' AND c.name = ?1";
    let mut statement = connection.prepare(named).expect("a statement");
    let tables = statement.query_map(params!["name"], |row| row.get::<_, String>(0)).expect("the tables");
    let tables: Vec<String> = tables.map(|name| name.expect("a name")).collect();
    assert!(!tables.is_empty(), "no table of lockrun's with a column `name`");
    for table in tables {
        connection.execute(&format!("DELETE FROM \"{table}\""), []).expect("deleted");
    }
    connection.execute_batch("COMMIT").expect("committed");
}

#[test]
fn t38_a_database_that_is_busy_for_less_than_the_lease_disturbs_nobody() {
    let scene = Scene::new();
    // TERM would come 4.2 s after the last renewal.
    let ttl = Duration::from_secs(6);
    let mut command = timed(&scene, "6s");
    let mut holder = scene.start(command.args(["--", &probe(), "sigcatch", "caught", "12"]));
    wait_for_catcher(&scene.path("caught"));
    let locked = lock_database(&scene);
    let since = Instant::now();
    pass_until(since + Duration::from_secs(2));
    drop(locked);
    pass_until(since + ttl + Duration::from_secs(1));
    assert!(holder.is_running(), "{}", holder.stderr());
    holder.signal(Signal::SIGUSR2);
    assert_code(&holder.finish(), 0);
    let signals: Vec<i32> = caught(&scene.path("caught")).iter().map(|(signal, _)| *signal).collect();
    assert_eq!(signals, [libc::SIGUSR2], "ended before there was need");
}

#[test]
fn t39_alone_sixty_four_busy_loops_cost_nobody_the_lease_and_delay_no_kill() {
    let scene = Scene::new();
    let _hogs: Vec<_> = (0..64).map(|_| scene.start(scene.command(probe()).args(["hog", "120"]))).collect();
    let finished = scene.run(&mut lockrun(&scene, ["--", "sh", "-c", "sleep 60; exit 3"]));
    assert_code(&finished, 3);
    for event in ["lost", "stopping", "killed"] {
        assert!(!finished.stderr.contains(event), "{}", finished.stderr);
    }
    let holder = start_tree(&scene, lockrun(&scene, [""; 0]));
    let next = next_copy(&scene, lockrun(&scene, [""; 0]));
    assert_dead_in_time_when_stopped(&scene, &holder);
    assert_found_nobody(&scene, next);
}

#[test]
fn a_disk_that_fills_under_a_holder_costs_it_nothing() {
    let scene = Scene::new();
    let folder = scene.path("disk");
    std::fs::create_dir(&folder).expect("a folder");
    let _disk = Keeper::mount(&scene, &["-t", "tmpfs", "-o", "size=8m", "tmpfs"], &folder);
    let db = folder.join("x.db");
    let mut command = scene.bare_lockrun(["--ttl", "3s", "--heartbeat", "20ms", "--grace", "100ms", "--db"]);
    let mut holder = scene.start(command.arg(&db).args(["--", "sh", "-c", "echo >started; sleep 1000"]));
    scene.wait_for_file("started");
    let renewed_ms = || -> i64 {
        let connection = Connection::open(&db).expect("the database");
        connection.query_row("SELECT renewed_ms FROM lockrun_lease", [], |row| row.get(0)).expect("a record")
    };
    let before = renewed_ms();
    wait_until("a renewal", || renewed_ms() > before);
    let filled = std::fs::write(folder.join("fill"), vec![0; 16 << 20]);
    assert_eq!(filled.map_err(|error| error.kind()), Err(std::io::ErrorKind::StorageFull));
    // Long past the TTL, and past the length at which the write-ahead log is copied back.
    let full = renewed_ms();
    wait_until("renewals on a full disk", || renewed_ms() > full + 9000 || !holder.is_running());
    // A loaded machine may miss an attempt of 10 ms; that is another reason.
    assert!(holder.is_running() && !holder.stderr().contains("disk"), "{}", holder.stderr());
}

/// Steps the wall clock of one program: the machine's own is not the test's to set. What the steps cannot show is the
/// kernel's word of a step (TFD_TIMER_CANCEL_ON_SET).
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long step(void) {
    char text[32] = {0};
    const char *path = getenv("WALL_CLOCK_STEP");
    int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return 0;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    return got > 0 ? atol(text) : 0;
}

int clock_gettime(clockid_t id, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, id, now);
    if (result == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) now->tv_sec += step();
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec fine;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &fine);
    now->tv_sec = fine.tv_sec;
    now->tv_usec = fine.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"#;

/// The environment of a program whose wall clock goes by the file `step`, in seconds.
fn shim(scene: &Scene) -> [(&'static str, std::path::PathBuf); 2] {
    let (source, library) = (scene.path("shim.c"), scene.path("shim.so"));
    std::fs::write(&source, SHIM).expect("the source");
    let built = scene.run(scene.command("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&source));
    assert!(built.status.success(), "a C compiler is needed, run tests/run: {}", built.stderr);
    [("LD_PRELOAD", library), ("WALL_CLOCK_STEP", scene.path("step"))]
}

fn set_step(scene: &Scene, seconds: i64) {
    // By rename, so that no reader sees an empty file.
    std::fs::write(scene.path("step.new"), seconds.to_string()).expect("the step");
    std::fs::rename(scene.path("step.new"), scene.path("step")).expect("the step");
}

#[test]
fn t45_a_step_of_the_wall_clock_ends_nobody_early_and_nobody_late() {
    let scene = Scene::new();
    let stepped = shim(&scene);
    set_step(&scene, -3600);
    let now = scene.run(program(&scene, "date").arg("+%s").envs(stepped.clone()));
    let real = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_secs();
    let off = real.abs_diff(now.stdout.trim().parse().expect("seconds"));
    assert!((3000..4200).contains(&off), "the shim does not work: {off}");
    set_step(&scene, 0);
    let mut holder = start_tree(&scene, {
        let mut command = lockrun(&scene, [""; 0]);
        command.envs(stepped);
        command
    });
    let next = next_copy(&scene, lockrun(&scene, [""; 0]));
    for seconds in [3600, 0, -3600] {
        set_step(&scene, seconds);
        outlive_the_lease(&mut holder);
    }
    assert_eq!(scene.starts().len(), 1, "the next copy started too early");
    assert_eq!(roster::alive(scene.dir()).len(), 8, "somebody was ended too early: {}", holder.stderr());
    // With the clock an hour back: no later than ever.
    assert_dead_in_time_when_stopped(&scene, &holder);
    assert_found_nobody(&scene, next);
}

#[test]
fn t45_a_waiter_whose_wall_clock_is_ahead_takes_nothing() {
    let scene = Scene::new();
    let stepped = shim(&scene);
    let mut holder = start_tree(&scene, patient(&scene, [""; 0]));
    let mut command = patient(&scene, [""; 0]);
    let next = next_copy(&scene, {
        command.envs(stepped);
        command
    });
    for seconds in [3600, -3600, 24 * 3600] {
        set_step(&scene, seconds);
        pass_until(Instant::now() + TTL);
        assert!(holder.is_running() && scene.starts().len() == 1, "{}", next.stderr());
    }
    holder.signal(Signal::SIGKILL);
    assert_found_nobody(&scene, next);
}
