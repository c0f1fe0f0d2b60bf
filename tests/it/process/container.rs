//! lockrun as PID 1 of real containers: an image of nothing but a static lockrun, a static busybox and the helper.
//! Must never leave a container or an image: all carry the scene's name and go with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;
use std::time::Instant;

use super::lockrun;
use crate::common::{PATIENCE, Scene, children, comm, lockrun_binary, state, wait_until};

/// An image named after its scene, and the containers that were started from it. It is dropped before the scene.
struct Docker<'a> {
    scene: &'a Scene,
    name: String,
}

fn docker(args: &[&str]) -> Output {
    // The engine's own builder: the other one is a plugin that may not be there.
    let run = Command::new("docker").args(args).env("DOCKER_BUILDKIT", "0").output();
    run.unwrap_or_else(|error| panic!("docker is needed, run tests/run: {error}"))
}

fn told(args: &[&str]) -> String {
    let output = docker(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "docker {args:?}, is the engine there? run tests/run: {stderr}");
    String::from_utf8_lossy(&output.stdout).trim_end().to_string()
}

/// lockrun and the helper, linked statically; made once per run of the tests.
fn static_folder() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let profile = Path::new(lockrun_binary()).parent().expect("the profile's folder");
        let target = profile.parent().expect("the target folder").join("static");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--release", "--locked", "--bin", "lockrun", "--example", "probe"]);
        cargo.args(["--target", "x86_64-unknown-linux-gnu", "--target-dir"]).arg(&target);
        cargo.current_dir(env!("CARGO_MANIFEST_DIR")).env("RUSTFLAGS", "-C target-feature=+crt-static");
        let built = cargo.output().expect("cargo");
        assert!(built.status.success(), "the static build: {}", String::from_utf8_lossy(&built.stderr));
        target.join("x86_64-unknown-linux-gnu/release")
    })
}

impl<'a> Docker<'a> {
    fn new(scene: &'a Scene) -> Docker<'a> {
        let folder = scene.dir().file_name().expect("a name").to_str().expect("UTF-8");
        // An image's name is in lower case, which a temporary folder's is not; its bytes stay apart in hexadecimal.
        let name = format!("lockrun-it-{}", folder.bytes().map(|byte| format!("{byte:02x}")).collect::<String>());
        let docker = Docker { scene, name };
        let context = scene.path("image");
        fs::create_dir(&context).expect("a folder");
        for (from, to) in [
            (static_folder().join("lockrun"), "lockrun"),
            (static_folder().join("examples/probe"), "probe"),
            (PathBuf::from("/bin/busybox"), "busybox"),
        ] {
            let copied = fs::copy(&from, context.join(to));
            copied.unwrap_or_else(|error| panic!("{} is needed (busybox-static), run tests/run: {error}", from.display()));
        }
        let lines = "FROM scratch\nCOPY busybox lockrun probe /bin/\nENV PATH=/bin\nENTRYPOINT [\"/bin/lockrun\"]\n";
        fs::write(context.join("Dockerfile"), lines).expect("the Dockerfile");
        // No cache: another test's `docker rmi` would take the shared layers away in the middle of this build.
        told(&["build", "-q", "--no-cache", "--force-rm", "-t", &docker.name, context.to_str().expect("UTF-8")]);
        docker
    }

    /// Starts `lockrun --db … ARGS` as PID 1, detached; the scene's folder has the same path inside.
    fn start(&self, part: &str, ttl: &str, args: &[&str]) -> Container {
        let dir = self.scene.dir().to_str().expect("UTF-8");
        let volume = format!("{dir}:{dir}");
        let (name, db) = (format!("{}-{part}", self.name), format!("{dir}/x.db"));
        let mut all = vec!["run", "-d", "--network", "none", "--label", &self.name, "--name", &name, "-v", &volume, "-w", dir];
        all.extend([self.name.as_str(), "--ttl", ttl, "--heartbeat", "250ms", "--grace", "300ms", "--db", &db]);
        all.extend(args);
        told(&all);
        Container { name }
    }

    fn holder(&self, part: &str, body: &str) -> Container {
        let dir = self.scene.dir().to_str().expect("UTF-8");
        self.start(part, "60s", &["--", "probe", "witness", dir, "busybox", "sh", "-c", body])
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        let label = format!("label={}", self.name);
        let ids = docker(&["ps", "-aq", "--filter", &label]).stdout;
        for id in String::from_utf8_lossy(&ids).split_whitespace() {
            docker(&["rm", "-f", "-v", id]);
        }
        docker(&["rmi", "-f", &self.name]);
    }
}

struct Container {
    name: String,
}

impl Container {
    fn inspect(&self, format: &str) -> String {
        told(&["inspect", "-f", format, &self.name])
    }

    /// The exit code, when it has ended.
    fn wait(&self) -> i32 {
        wait_until(&format!("the end of {}; it says: {}", self.name, self.logs()), || self.inspect("{{.State.Running}}") == "false");
        self.inspect("{{.State.ExitCode}}").parse().expect("a code")
    }

    /// PID 1 as the host sees it.
    fn pid(&self) -> i32 {
        self.inspect("{{.State.Pid}}").parse().expect("a pid")
    }

    fn logs(&self) -> String {
        let output = docker(&["logs", &self.name]);
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
    }

    fn wait_for_log(&self, text: &str) {
        wait_until(&format!("{text:?} in the log of {}", self.name), || self.logs().contains(text));
    }
}

/// Free this very moment, seen from the host: its kernel is the containers'.
#[track_caller]
fn assert_released(scene: &Scene) {
    let finished = scene.run(&mut lockrun(scene, ["-n", "--", "true"]));
    assert_eq!(finished.code(), 0, "the lease is not free: {}", finished.stderr);
}

#[test]
fn the_containers_exit_code_is_the_commands() {
    let scene = Scene::new();
    let docker = Docker::new(&scene);
    for (part, body, code) in [("a", "exit 42", 42), ("b", "kill -TERM $$", 143), ("c", "kill -KILL $$", 137)] {
        assert_eq!(docker.start(part, "60s", &["--", "busybox", "sh", "-c", body]).wait(), code, "{body}");
        assert_released(&scene);
    }
    assert_eq!(docker.start("d", "60s", &["--", "no-such-command"]).wait(), 127);
}

#[test]
fn docker_stop_ends_the_command_by_term_within_the_grace_and_releases() {
    let scene = Scene::new();
    let docker = Docker::new(&scene);
    let container = docker.holder("a", "trap 'echo term >term; exit 3' TERM; touch up; while :; do busybox sleep 0.05; done");
    scene.wait_for_file("up");
    // Longer than the test's patience: if TERM did not do it, the test says so.
    let grace = (PATIENCE.as_secs() * 2).to_string();
    let started = Instant::now();
    told(&["stop", "-t", &grace, &container.name]);
    assert!(started.elapsed() < PATIENCE, "ended by docker's KILL after {:?}", started.elapsed());
    assert_eq!(container.wait(), 3);
    assert_eq!(scene.wait_for_file("term"), "term\n");
    assert_released(&scene);
}

#[test]
fn docker_kill_with_a_signal_reaches_the_command() {
    let scene = Scene::new();
    let docker = Docker::new(&scene);
    let container = docker.start("a", "60s", &["--", "probe", "sigcatch", "caught", "12"]);
    super::wait_for_catcher(&scene.path("caught"));
    told(&["kill", "-s", "USR1", &container.name]);
    super::wait_for_signal(&scene.path("caught"), libc::SIGUSR1);
    told(&["kill", "-s", "USR2", &container.name]);
    assert_eq!(container.wait(), 0);
    let signals: Vec<i32> = super::caught(&scene.path("caught")).iter().map(|(signal, _)| *signal).collect();
    assert_eq!(signals, [libc::SIGUSR1, libc::SIGUSR2]);
}

#[test]
fn orphans_of_docker_exec_leave_no_zombie() {
    let scene = Scene::new();
    let docker = Docker::new(&scene);
    let container = docker.holder("a", "touch up; exec busybox sleep 600");
    scene.wait_for_file("up");
    let orphans = "for i in 1 2 3 4 5 6 7 8 9 10; do (busybox sh -c 'echo x >>ended' &); done";
    told(&["exec", &container.name, "busybox", "sh", "-c", orphans]);
    let ended = || fs::read_to_string(scene.path("ended")).unwrap_or_default().lines().count();
    wait_until("ten orphans have run", || ended() == 10);
    let below = || children(container.pid()).into_iter().map(|pid| (comm(pid), state(pid))).collect::<Vec<_>>();
    wait_until("an end of the zombies", || below().iter().all(|(name, _)| name == "lockrun-guard"));
    assert_eq!(container.inspect("{{.State.Running}}"), "true");
}

#[test]
fn three_containers_on_one_volume_run_one_at_a_time() {
    let scene = Scene::new();
    let docker = Docker::new(&scene);
    let turns: Vec<Container> = ["a", "b", "c"].iter().map(|part| docker.holder(part, "busybox sleep 0.5; exit 0")).collect();
    for container in &turns {
        assert_eq!(container.wait(), 0, "{}", container.logs());
    }
    assert_eq!(scene.starts().len(), 3);
    scene.assert_exclusion();
}

#[test]
fn when_the_holder_is_killed_another_takes_over_after_the_kill_time_and_not_after_the_ttl() {
    let scene = Scene::new();
    let docker = Docker::new(&scene);
    let holder = docker.start("a", "600s", &["--", "probe", "witness", scene_dir(&scene), "busybox", "sleep", "600"]);
    scene.wait_for_starts(1);
    let waiting = docker.start("b", "600s", &["--", "probe", "witness", scene_dir(&scene), "busybox", "true"]);
    waiting.wait_for_log("waiting");
    told(&["kill", &holder.name]);
    // The TTL is ten minutes: a copy that waits for its end does not start within the test's patience.
    assert_eq!(waiting.wait(), 0, "{}", waiting.logs());
    assert_eq!(scene.starts().len(), 2);
    scene.assert_exclusion();
}

#[test]
fn a_grandchild_that_closed_its_descriptors_never_overlaps_the_next_container() {
    let scene = Scene::new();
    let docker = Docker::new(&scene);
    let dir = scene_dir(&scene);
    // Only the witness stays open below: the kernel lock is free as soon as lockrun and the guard are dead.
    let tree = ["--", "probe", "witness", dir, "probe", "only", "9", "probe", "tree", dir];
    let mut holder = docker.start("first", "600s", &tree);
    for round in 0..5 {
        scene.wait_for_starts(round + 1);
        scene.wait_for_file("ready");
        let next = docker.start(&format!("round-{round}"), "600s", &tree);
        next.wait_for_log("waiting");
        fs::remove_file(scene.path("ready")).expect("removed before the next tree stands");
        told(&["kill", &holder.name]);
        scene.wait_for_starts(round + 2);
        holder = next;
        scene.assert_exclusion();
    }
}

fn scene_dir(scene: &Scene) -> &str {
    scene.dir().to_str().expect("UTF-8")
}
