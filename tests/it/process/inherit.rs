//! What the command inherits: all that lockrun was given, nothing of lockrun's own but the kernel lock's descriptor.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use super::keeper::Keeper;
use super::{assert_code, lockrun, outlive_the_lease, patient, probe, program, shell_words};
use crate::common::{Running, Scene, lockrun_binary};

/// What `probe inherit` reports.
struct Report {
    values: BTreeMap<String, String>,
    open: BTreeMap<i32, PathBuf>,
}

fn parse(text: &str) -> Report {
    let mut report = Report { values: BTreeMap::new(), open: BTreeMap::new() };
    for line in text.lines() {
        let (key, value) = line.split_once(' ').expect("key and value");
        if key == "fd" {
            let (fd, target) = value.split_once(' ').expect("descriptor and target");
            report.open.insert(fd.parse().expect("a number"), PathBuf::from(target));
        } else {
            report.values.insert(key.to_string(), value.to_string());
        }
    }
    report
}

fn masks(report: &Report) -> (&str, &str) {
    (&report.values["SigIgn"], &report.values["SigBlk"])
}

/// `probe` run by `around` (words before it), with these variables.
fn report_of(scene: &Scene, around: &[&str], variables: &[&str]) -> Report {
    let mut command = program(scene, around.first().copied().unwrap_or(&probe()));
    command.args(around.iter().skip(1)).args(around.first().map(|_| probe()));
    command.envs(variables.iter().map(|name| (*name, "1")));
    let finished = scene.run(&mut command);
    assert_code(&finished, 0);
    parse(&finished.stdout)
}

fn lockrun_words(scene: &Scene) -> Vec<String> {
    let db = scene.db().to_str().expect("UTF-8").to_string();
    [lockrun_binary(), "--ttl", "600s", "--db", &db, "--"].map(str::to_string).to_vec()
}

/// The command's report below `odd` alone, and below `odd` and lockrun.
fn below_odd(scene: &Scene, variables: &[&str]) -> (Report, Report) {
    let (probe, words) = (probe(), lockrun_words(scene));
    // `only -`: what runs the tests may have leaked descriptors into all that it starts.
    let odd = [probe.as_str(), "only", "-", probe.as_str(), "odd"];
    let through: Vec<&str> = odd.into_iter().chain(words.iter().map(String::as_str)).collect();
    (report_of(scene, &odd, variables), report_of(scene, &through, variables))
}

#[test]
fn t15_ignored_and_blocked_signals_reach_the_command_as_they_were_given() {
    let scene = Scene::new();
    for variables in [&[][..], &["IGNCHLD"][..], &["BLKCHLD"][..], &["BLKTERM"][..], &["IGNCHLD", "BLKCHLD", "BLKTERM"][..]] {
        let (direct, through) = below_odd(&scene, variables);
        assert_ne!(masks(&direct), ("0000000000000000", "0000000000000000"), "odd must be odd");
        assert_eq!(masks(&through), masks(&direct), "with {variables:?}");
    }
}

#[test]
fn t16_sigpipe_is_default_in_the_command_unless_the_caller_ignored_it() {
    let scene = Scene::new();
    let words = lockrun_words(&scene);
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    // Compared, because the test's own way to start programs (posix_spawn(3)) may leave 32 and 33 ignored.
    let plain = report_of(&scene, &words, &[]);
    assert_eq!(masks(&plain), masks(&report_of(&scene, &[], &[])));
    assert_eq!(u64::from_str_radix(masks(&plain).0, 16).expect("hexadecimal") & (1 << 12), 0, "SIGPIPE is not ignored");
    let script = format!("trap '' PIPE; exec {} -- '{}'", shell_words(&scene, "600s"), probe());
    let ignored = scene.run(program(&scene, "sh").args(["-c", &script]));
    let ignored = u64::from_str_radix(masks(&parse(&ignored.stdout)).0, 16).expect("hexadecimal");
    assert_eq!(ignored & !(3 << 31), 1 << 12, "32 and 33 as above");
    let quiet = scene.run(&mut patient(&scene, ["-q", "--", "sh", "-c", "yes | head -1"]));
    assert_eq!((quiet.code(), quiet.stdout.as_str(), quiet.stderr.as_str()), (0, "y\n", ""));
}

#[test]
fn t19_the_command_has_the_callers_descriptors_and_the_kernel_locks_and_no_other() {
    let scene = Scene::new();
    let (direct, through) = below_odd(&scene, &[]);
    let given: BTreeSet<i32> = direct.open.keys().copied().collect();
    assert_eq!(given, BTreeSet::from([0, 1, 2, 7]), "what odd gives");
    let lock = scene.path("x.db-lockrun");
    let (locks, others): (Vec<_>, Vec<_>) = through.open.iter().partition(|(_, target)| **target == lock);
    assert_eq!(others.iter().map(|(fd, _)| **fd).collect::<BTreeSet<_>>(), given, "{:?}", through.open);
    assert_eq!(locks.len(), 1, "the kernel lock's descriptor, once: {:?}", through.open);
    assert_eq!(through.open[&7], scene.path("odd-7"));
}

#[test]
fn t19_the_callers_descriptors_from_3_up_are_closed_in_the_front() {
    let scene = Scene::new();
    let mut command = program(&scene, probe());
    command.arg("odd").args(lockrun_words(&scene)).args(["sh", "-c", "touch up; exec sleep 600"]);
    let running = scene.start(&mut command);
    scene.wait_for_file("up");
    assert!(targets(find_child(&scene)).contains(&scene.path("odd-7")), "the command has it");
    assert!(!targets(running.pid()).contains(&scene.path("odd-7")), "a peer of the caller's descriptor must see its end");
    let strange: Vec<PathBuf> = targets(running.guard()).into_iter().filter(|target| target.starts_with(scene.db())).collect();
    assert_eq!(strange, Vec::<PathBuf>::new(), "the guard has the database open");
}

fn find_child(scene: &Scene) -> i32 {
    super::find(scene, "sleep")
}

fn targets(pid: i32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).expect("the process is there");
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
}

#[test]
fn t20_a_closed_stdin_stdout_or_stderr_never_becomes_a_file_of_lockruns() {
    let scene = Scene::new();
    for closed in ["0", "1", "2", "012"] {
        let redirections: String = closed.chars().map(|fd| format!(" {fd}>&-")).collect();
        let report = scene.path(&format!("report-{closed}"));
        let words = shell_words(&scene, "600s");
        let script = format!("exec {words} -- '{}' inherit '{}'{redirections}", probe(), report.display());
        let finished = scene.run(program(&scene, "sh").args(["-c", &script]));
        assert_code(&finished, 0);
        let report = parse(&fs::read_to_string(report).expect("the report"));
        for fd in closed.chars() {
            let target = report.open.get(&(fd as i32 - '0' as i32));
            assert!(target.is_none_or(|target| target == Path::new("/dev/null")), "{fd} was closed and is {target:?}");
        }
        let db = scene.db();
        assert!(!report.open.values().any(|target| *target == db), "{:?}", report.open);
    }
}

#[test]
fn t21_folder_umask_limits_and_environment_are_the_callers() {
    let scene = Scene::new();
    let look = "pwd; umask; ulimit -a; env | sort";
    let prepare = "umask 027; ulimit -n 777; ulimit -c 0; cd /usr; export A='b c' B=";
    let words = shell_words(&scene, "600s");
    let direct = scene.run(program(&scene, "bash").args(["-c", &format!("{prepare}; exec bash -c '{look}'")]));
    let through = scene.run(program(&scene, "bash").args(["-c", &format!("{prepare}; exec {words} -- bash -c '{look}'")]));
    assert!(direct.stdout.contains("/usr\n0027\n") && direct.stdout.contains("777") && direct.stdout.contains("A=b c"));
    let documented = ["LOCKRUN_TOKEN=", "LOCKRUN_NAME=", "LOCKRUN_HOLDER=", "LOCKRUN_HOLDERS="];
    let (own, rest): (Vec<&str>, Vec<&str>) =
        through.stdout.lines().partition(|line| documented.iter().any(|variable| line.starts_with(variable)));
    assert_eq!(rest, direct.stdout.lines().collect::<Vec<_>>());
    assert!(own.iter().any(|line| line.starts_with("LOCKRUN_TOKEN=")), "{own:?}");
}

#[test]
fn t22_the_callers_folder_is_not_kept_busy_and_a_relative_database_is_still_renewed() {
    let scene = Scene::new();
    let mount = scene.path("mount");
    fs::create_dir(&mount).expect("a folder");
    let keeper = Keeper::mount(&scene, &["-t", "tmpfs", "tmpfs"], &mount);
    let args = ["--ttl", "3s", "--heartbeat", "250ms", "--grace", "300ms", "--db", "../x.db"];
    let mut command = scene.bare_lockrun(args);
    command.args(["--", "sh", "-c", "cd /; touch \"$OUTSIDE/up\"; exec sleep 600"]);
    command.env("OUTSIDE", scene.dir()).current_dir(&mount);
    let mut running: Running = scene.start(super::detached(&mut command));
    scene.wait_for_file("up");
    let unmounted = keeper.unmount();
    assert!(unmounted, "the folder is busy");
    outlive_the_lease(&mut running);
    let second = scene.run(&mut lockrun(&scene, ["-n", "--", "true"]));
    assert_code(&second, 75);
}

#[test]
fn t44_listen_pid_names_the_command_and_the_watchdog_is_lockruns() {
    let scene = Scene::new();
    let words = shell_words(&scene, "600s");
    let script = format!(
        "export LISTEN_PID=$$ LISTEN_FDS=1 WATCHDOG_PID=$$ WATCHDOG_USEC=3000000; exec {words} -- \
         bash -c 'echo pid=$$ listen=$LISTEN_PID fds=$LISTEN_FDS; env | grep -c ^WATCHDOG_; readlink /proc/$$/fd/3' 3<x"
    );
    fs::write(scene.path("x"), "").expect("a file");
    let finished = scene.run(program(&scene, "bash").args(["-c", &script]));
    let lines: Vec<&str> = finished.stdout.lines().collect();
    let (pid, rest) = lines[0].strip_prefix("pid=").and_then(|line| line.split_once(' ')).expect("the first line");
    assert_eq!(rest, format!("listen={pid} fds=1"));
    assert_eq!(lines[1], "0", "WATCHDOG_* reached the command");
    assert_eq!(Path::new(lines[2]), scene.path("x"), "descriptor 3 is the caller's");
    let other = format!("LISTEN_PID=1 LISTEN_FDS=1 exec {words} -- sh -c 'echo $LISTEN_PID'");
    let finished = scene.run(program(&scene, "sh").args(["-c", &other]));
    assert_eq!(finished.stdout, "1\n", "what was meant for another process stays so");
}
