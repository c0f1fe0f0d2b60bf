//! Compares README, packaging and systemd with the real lockrun and with the tools that read those files. Must never skip:
//! a tool that is missing fails the test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{Role, RoleBinding};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// lockrun's defaults on SQLite: the grace, and the kill time after it.
const GRACE: Duration = Duration::from_secs(10);
const KILL_TIME: Duration = Duration::from_secs(1);

const README: &str = "README.md";
const COMPOSE: &str = "packaging/docker/compose.yaml";
const KUBERNETES: &str = "packaging/kubernetes/one-node.yaml";
const DEPLOYMENT: &str = "packaging/kubernetes/deployment.yaml";
const RIGHTS: &str = "packaging/kubernetes/rights.yaml";
const KUSTOMIZATION: &str = "packaging/kubernetes/kustomization.yaml";
const UNIT: &str = "systemd/lockrun@.service";
const CRON: &str = "packaging/cron/lockrun";
const IMAGE: &str = "packaging/docker/Dockerfile";
const APP_IMAGE: &str = "packaging/docker/app.Dockerfile";

// Kubernetes

#[test]
fn the_kubernetes_manifests_have_only_fields_that_kubernetes_knows() {
    for file in [KUBERNETES, DEPLOYMENT, RIGHTS] {
        for document in yaml(&read(file)) {
            match document["kind"].as_str() {
                Some("Deployment") => assert_round_trip::<Deployment>(file, &document),
                Some("PersistentVolumeClaim") => assert_round_trip::<PersistentVolumeClaim>(file, &document),
                Some("ServiceAccount") => assert_round_trip::<ServiceAccount>(file, &document),
                Some("Role") => assert_round_trip::<Role>(file, &document),
                Some("RoleBinding") => assert_round_trip::<RoleBinding>(file, &document),
                kind => panic!("{file}: no type for kind {kind:?} in this test; add it"),
            }
        }
    }
}

/// Every manifest of the folder is a part of it, but the one that stands alone.
#[test]
fn the_kustomization_names_the_manifests_and_their_image() {
    let kustomization = &yaml(&read(KUSTOMIZATION))[0];
    let folder = Path::new(KUSTOMIZATION).parent().expect("a folder");
    let files = fs::read_dir(root().join(folder)).expect("the folder").map(|entry| entry.expect("an entry").file_name());
    let alone = [KUBERNETES, KUSTOMIZATION].map(|file| Path::new(file).file_name().expect("a name"));
    let others: BTreeSet<_> = files.filter(|name| !alone.contains(&&**name)).map(|name| name.into_string().expect("UTF-8")).collect();
    let named = kustomization["resources"].as_array().expect("resources");
    assert_eq!(named.iter().map(|name| name.as_str().expect("a name").to_string()).collect::<BTreeSet<_>>(), others);
    assert_eq!(kustomization["images"][0]["name"].as_str(), replicas().1.image.as_deref());
}

/// The Deployment of replicas on many nodes: its pods, and their one container.
fn replicas() -> (Deployment, Container, PodSpec) {
    let [document] = &yaml(&read(DEPLOYMENT))[..] else { panic!("{DEPLOYMENT}: one Deployment") };
    let deployment: Deployment = serde_json::from_value(document.clone()).expect("a Deployment");
    let pod = deployment.spec.template.spec.clone().expect("a pod spec");
    let [container] = &pod.containers[..] else { panic!("{DEPLOYMENT}: one container") };
    (deployment.clone(), container.clone(), pod.clone())
}

#[test]
fn the_kubernetes_replicas_are_rolled_out_without_a_gap_and_probed_where_lockrun_listens() {
    let (deployment, container, _) = replicas();
    let spec = deployment.spec;
    assert_eq!(spec.replicas, Some(3));
    assert_eq!(spec.selector.match_labels, spec.template.metadata.expect("metadata").labels, "the selector finds its own pods");
    let rolling = spec.strategy.and_then(|strategy| strategy.rolling_update).expect("a rolling update");
    assert_eq!((rolling.max_surge, rolling.max_unavailable), (Some(IntOrString::String("100%".into())), Some(IntOrString::Int(0))));

    let [port] = &container.ports.expect("ports")[..] else { panic!("one port") };
    let [line] = &command_lines(DEPLOYMENT)[..] else { panic!("one command line") };
    assert_eq!(line.option(&["--http"]), Some(format!(":{}", port.container_port).as_str()));
    for (probe, path) in [(container.liveness_probe, "/livez"), (container.readiness_probe, "/readyz")] {
        let get = probe.and_then(|probe| probe.http_get).expect("a probe by HTTP");
        assert_eq!((get.path.as_deref(), get.port), (Some(path), IntOrString::String(port.name.clone().expect("a name"))));
    }
    let environment = container.env.expect("an environment");
    let value = |name: &str| environment.iter().find(|variable| variable.name == name).unwrap_or_else(|| panic!("{DEPLOYMENT}: no {name}"));
    let field = |name: &str| value(name).value_from.as_ref().and_then(|from| from.field_ref.as_ref()).expect("a field").field_path.clone();
    assert_eq!((field("POD_NAME").as_str(), field("POD_UID").as_str()), ("metadata.name", "metadata.uid"));
    assert_eq!(value("LOCKRUN_INSTANCE").value, Some(format!("$(POD_UID)/{}", container.name)), "of this container of this pod");
    let order = |name: &str| environment.iter().position(|variable| variable.name == name);
    assert!(order("POD_UID") < order("LOCKRUN_INSTANCE"), "only what stands before it is put in");
}

#[test]
fn the_kubernetes_account_has_the_rights_that_lockrun_needs_on_its_lease_and_no_others() {
    let documents = yaml(&read(RIGHTS));
    let [account, role, binding] = &documents[..] else { panic!("{RIGHTS}: an account, a Role, a RoleBinding") };
    let account: ServiceAccount = serde_json::from_value(account.clone()).expect("an account");
    let role: Role = serde_json::from_value(role.clone()).expect("a Role");
    let binding: RoleBinding = serde_json::from_value(binding.clone()).expect("a RoleBinding");
    assert_eq!(replicas().2.service_account_name, account.metadata.name);
    assert_eq!((binding.role_ref.kind.as_str(), Some(binding.role_ref.name)), ("Role", role.metadata.name));
    let [subject] = &binding.subjects.expect("subjects")[..] else { panic!("one subject") };
    assert_eq!((subject.kind.as_str(), Some(&subject.name)), ("ServiceAccount", account.metadata.name.as_ref()));

    let lease = command_lines(DEPLOYMENT)[0].option(&["--name"]).expect("--name").to_string();
    let mut verbs = Vec::new();
    for rule in role.rules.expect("rules") {
        assert_eq!((rule.api_groups, rule.resources), (Some(vec!["coordination.k8s.io".into()]), Some(vec!["leases".into()])));
        let named = rule.resource_names.map(|names| names == [lease.clone()]);
        // What is made has no name yet.
        assert_eq!(named, (rule.verbs != ["create"]).then_some(true), "{:?}", rule.verbs);
        verbs.extend(rule.verbs);
    }
    verbs.sort_unstable();
    assert_eq!(verbs, ["create", "get", "list", "update", "watch"]);
}

#[test]
fn the_kubernetes_pods_share_one_node_and_the_folder_of_the_database() {
    let (claim, deployment) = manifest();
    let spec = deployment.spec;
    assert_eq!(spec.replicas, Some(3));
    let pod = spec.template.spec.expect("a pod spec");
    let labels = spec.template.metadata.expect("metadata").labels;
    assert_eq!(spec.selector.match_labels, labels, "the selector finds its own pods");

    let terms = pod.affinity.and_then(|a| a.pod_affinity).and_then(|a| a.required_during_scheduling_ignored_during_execution);
    let [term] = &terms.expect("pods are kept together")[..] else { panic!("one term") };
    assert_eq!(term.topology_key, "kubernetes.io/hostname");
    assert_eq!(term.label_selector.as_ref().expect("a selector").match_labels, labels, "they are drawn to each other");

    let [volume] = &pod.volumes.expect("volumes")[..] else { panic!("one volume") };
    let source = volume.persistent_volume_claim.as_ref().expect("a claim");
    assert_eq!(Some(&source.claim_name), claim.metadata.name.as_ref());
    let [container] = &pod.containers[..] else { panic!("one container") };
    let [mount] = &container.volume_mounts.as_ref().expect("mounts")[..] else { panic!("one mount") };
    assert_eq!((&mount.name, &mount.sub_path), (&volume.name, &None));
    for line in command_lines(KUBERNETES) {
        assert_eq!(Path::new(line.db().expect("--db")).parent(), Some(Path::new(&mount.mount_path)));
    }
}

fn manifest() -> (PersistentVolumeClaim, Deployment) {
    let documents = yaml(&read(KUBERNETES));
    let [claim, deployment] = &documents[..] else { panic!("{KUBERNETES}: a claim and a Deployment") };
    (serde_json::from_value(claim.clone()).expect("a claim"), serde_json::from_value(deployment.clone()).expect("a Deployment"))
}

/// The type drops fields that it does not know; what comes back must be what was written.
fn assert_round_trip<T: Serialize + DeserializeOwned>(file: &str, document: &Value) {
    let typed: T = serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{file}: {error}"));
    assert_eq!(&serde_json::to_value(typed).expect("it was read"), document, "{file}: right as left, or a field is unknown");
}

#[test]
fn the_kubernetes_probes_ask_the_port_on_which_lockrun_answers_and_let_a_pod_that_waits_be_ready() {
    let pod = manifest().1.spec.template.spec.expect("a pod spec");
    let [container] = &pod.containers[..] else { panic!("one container") };
    let [port] = &container.ports.as_ref().expect("ports")[..] else { panic!("one port") };
    assert_eq!(command_lines(KUBERNETES)[0].option(&["--http"]), Some(&*format!(":{}", port.container_port)));
    for (probe, path) in [(&container.liveness_probe, "/livez"), (&container.readiness_probe, "/readyz")] {
        let asked = probe.as_ref().and_then(|probe| probe.http_get.as_ref()).expect("a probe");
        let name = port.name.clone().map(k8s_openapi::apimachinery::pkg::util::intstr::IntOrString::String);
        assert_eq!((asked.path.as_deref(), Some(&asked.port)), (Some(path), name.as_ref()));
    }
}

// How long a stop takes

#[test]
fn every_platform_leaves_lockrun_the_time_that_a_stop_takes() {
    let seconds = |pod: &PodSpec| {
        let seconds = pod.termination_grace_period_seconds.expect("terminationGracePeriodSeconds");
        Duration::from_secs(u64::try_from(seconds).expect("not negative"))
    };
    let one_node = manifest().1.spec.template.spec.expect("a pod spec");
    let compose = &yaml(&read(COMPOSE))[0]["services"]["beat"]["stop_grace_period"];
    for (file, given) in [
        (KUBERNETES, seconds(&one_node)),
        (DEPLOYMENT, seconds(&replicas().2)),
        (COMPOSE, duration(compose.as_str().expect("stop_grace_period"))),
        (UNIT, duration(&unit_setting("TimeoutStopSec"))),
    ] {
        let lines = command_lines(file);
        assert_eq!(lines.len(), 1, "{file}");
        let kill_after = lines[0].option(&["-k", "--kill-after"]).expect("--kill-after, or a stop has no bound");
        let grace = lines[0].option(&["--grace"]).map_or(GRACE, duration);
        let needed = duration(kill_after) + grace + KILL_TIME;
        assert!(given > needed, "{file}: {given:?} must be more than {needed:?} (--kill-after, --grace, kill time)");
    }
}

fn duration(text: &str) -> Duration {
    humantime::parse_duration(text).unwrap_or_else(|error| panic!("{text:?}: {error}"))
}

// systemd

#[test]
fn systemd_accepts_the_unit() {
    let dir = temp_dir();
    let unit = read(UNIT).replace("/usr/bin/lockrun", env!("CARGO_BIN_EXE_lockrun"));
    let path = dir.path().join("lockrun@.service");
    fs::write(&path, unit).expect("the copy of the unit");
    // Units of this machine are left out: what systemd has to say about them is no fault of ours.
    let units = format!("{}:/usr/lib/systemd/system:/lib/systemd/system", dir.path().display());
    let verify = run(Command::new("systemd-analyze").arg("verify").arg(&path).env("SYSTEMD_UNIT_PATH", units));
    assert_eq!((verify.status.code(), text(&verify)), (Some(0), String::new()));
}

#[test]
fn the_unit_signals_lockrun_only_and_keeps_the_database_in_its_state_directory() {
    for (key, value) in [("Type", "exec"), ("KillMode", "mixed"), ("RestartPreventExitStatus", "125")] {
        assert_eq!(unit_setting(key), value, "{key}");
    }
    let folder = format!("/var/lib/{}", unit_setting("StateDirectory"));
    assert_eq!(Path::new(command_lines(UNIT)[0].db().expect("--db")).parent(), Some(Path::new(&folder)));
}

fn unit_setting(key: &str) -> String {
    let unit = read(UNIT);
    let values: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix('=')).collect();
    let [value] = values[..] else { panic!("{UNIT}: {key}= occurs {} times", values.len()) };
    value.to_string()
}

// Docker

#[test]
fn compose_accepts_the_file_and_mounts_the_folder_of_the_database() {
    let mut compose = if run_if_there(Command::new("docker").args(["compose", "version"])).is_some_and(|o| o.status.success()) {
        let mut docker = Command::new("docker");
        docker.arg("compose");
        docker
    } else {
        Command::new("docker-compose")
    };
    let config = run(compose.arg("-f").arg(root().join(COMPOSE)).arg("config"));
    assert!(config.status.success(), "{}", text(&config));

    let service = &yaml(&read(COMPOSE))[0]["services"]["beat"];
    assert_eq!(service["deploy"]["replicas"], 3);
    let folder = Path::new(command_lines(COMPOSE)[0].db().expect("--db")).parent().expect("a folder").display().to_string();
    assert_eq!(service["volumes"], serde_json::json!([format!("lockrun:{folder}")]));
}

#[test]
fn the_docker_images_build_as_documented_and_the_application_user_can_take_a_lease() {
    let dockerfile = read(IMAGE);
    let documented = |start: &str| {
        let found = dockerfile.lines().map(|line| line.trim_start_matches(['#', ' '])).find(|line| line.starts_with(start));
        found.unwrap_or_else(|| panic!("{IMAGE}: no line with {start:?}")).to_string()
    };
    succeed(Command::new("sh").arg("-c").arg(documented("RUSTFLAGS=")).env_remove("RUSTFLAGS"));

    let lockrun = Image::new("lockrun");
    succeed(Command::new("sh").arg("-c").arg(documented("docker build").replace("-t lockrun ", &format!("-t {} ", lockrun.0))));

    // A base with a shell, made here, so that nothing is pulled.
    let (base, app, dir) = (Image::new("base"), Image::new("app"), temp_dir());
    fs::copy("/bin/busybox", dir.path().join("busybox")).expect("/bin/busybox, from busybox-static; tests/run installs it");
    let prepare = "FROM scratch\nCOPY busybox /bin/busybox\nRUN [\"/bin/busybox\", \"--install\", \"-s\", \"/bin\"]\n";
    fs::write(dir.path().join("Dockerfile"), prepare).expect("a Dockerfile");
    succeed(Command::new("docker").args(["build", "--force-rm", "-t", &base.0]).arg(dir.path()));

    let example = read(APP_IMAGE).replace("FROM lockrun ", &format!("FROM {} ", lockrun.0));
    fs::write(dir.path().join("Dockerfile"), example).expect("a Dockerfile");
    let arg = format!("BASE={}", base.0);
    succeed(Command::new("docker").args(["build", "--force-rm", "--build-arg", &arg, "-t", &app.0]).arg(dir.path()));

    let container = ["run", "--rm", "-v", "/var/lib/lockrun", &app.0];
    let line = ["lockrun", "--db", "/var/lib/lockrun/app.db", "--", "sh", "-c", "echo user $(id -u) token $LOCKRUN_TOKEN"];
    let ran = succeed(Command::new("docker").args(container).args(line));
    assert!(String::from_utf8_lossy(&ran.stdout).starts_with("user 10001 token 1"), "{}", text(&ran));
}

/// A tag of this test alone. The image goes when the test ends.
struct Image(String);

impl Image {
    fn new(name: &str) -> Image {
        Image(format!("lockrun-packaging-{name}-{}", std::process::id()))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        run_if_there(Command::new("docker").args(["image", "rm", "--force", &self.0]));
    }
}

// Command lines

#[test]
fn every_lockrun_command_line_in_the_files_is_accepted() {
    for file in [README, COMPOSE, KUBERNETES, DEPLOYMENT, UNIT, CRON, APP_IMAGE] {
        // The one option of it that a build may not have yet.
        if file == DEPLOYMENT && !long_options(&help(&[])).contains("--http") {
            continue;
        }
        let lines = command_lines(file);
        assert!(!lines.is_empty(), "{file}: no command line was found in it");
        for line in lines {
            line.assert_accepted(file);
        }
    }
}

#[derive(Debug)]
struct CommandLine {
    env: Vec<(String, String)>,
    /// Without the program.
    args: Vec<String>,
}

impl CommandLine {
    /// From words that may hold one: `[NAME=VALUE]... lockrun ARG...`, or the way that needs no installation.
    fn find(words: &[String]) -> Option<CommandLine> {
        let assignments = words.iter().take_while(|word| word.starts_with("LOCKRUN_") && word.contains('=')).count();
        let (env, words) = words.split_at(assignments);
        let cargo = ["cargo", "run", "--release", "--"];
        let args = if words.first().is_some_and(|word| word == "lockrun" || word.ends_with("/lockrun")) {
            &words[1..]
        } else if words.iter().take(4).eq(cargo.iter()) {
            &words[4..]
        } else {
            return None;
        };
        let env = env.iter().filter_map(|word| word.split_once('=')).map(|(key, value)| (key.into(), value.into())).collect();
        Some(CommandLine { env, args: args.to_vec() })
    }

    /// lockrun's own arguments, and the command if there is one.
    fn parts(&self) -> (&[String], Option<&[String]>) {
        match self.args.iter().position(|arg| arg == "--") {
            Some(at) => (&self.args[..at], Some(&self.args[at + 1..])),
            None => (&self.args, None),
        }
    }

    fn option(&self, names: &[&str]) -> Option<&str> {
        let own = self.parts().0;
        own.windows(2).find(|pair| names.contains(&pair[0].as_str())).map(|pair| pair[1].as_str())
    }

    fn db(&self) -> Option<&str> {
        let env = self.env.iter().find(|(key, _)| key == "LOCKRUN_DB").map(|(_, value)| value.as_str());
        self.option(&["--db"]).or(env)
    }

    /// Runs it with the database in a temporary folder and with `true` as the command.
    fn assert_accepted(&self, file: &str) {
        let dir = temp_dir();
        let db = dir.path().join("x.db").display().to_string();
        let (own, command) = self.parts();
        if own.first().is_some_and(|word| word == "health") {
            // Whoever has that port on this machine, if anybody does.
            let asked = run(lockrun().envs(self.env.clone()).env("LOCKRUN_HTTP", "127.0.0.1:1").args(own));
            assert!(asked.status.code().is_some_and(|code| [0, 1, 69].contains(&code)), "{file}: {self:?}: {}", text(&asked));
            return;
        }
        let written = self.db().unwrap_or_else(|| panic!("{file}: {self:?}: no database"));
        let http = self.option(&["--http"]);
        // %i is systemd's.
        let mine = |word: &String| match word {
            word if word == written => db.clone(),
            word if Some(word.as_str()) == http => "127.0.0.1:0".to_string(),
            word => word.replace("%i", "instance"),
        };
        let mut real = lockrun();
        real.envs(self.env.iter().map(|(key, value)| (key, mine(value)))).args(own.iter().map(mine));
        let accepted: &[i32] = match command {
            Some(command) => {
                assert!(!command.is_empty(), "{file}: {self:?}: no command");
                real.args(["--", "true"]);
                &[0]
            }
            // A subcommand: it needs a database, and it may answer "no".
            None => {
                succeed(lockrun().args(["--db", &db, "--", "true"]));
                &[0, 1]
            }
        };
        let done = run(&mut real);
        assert!(done.status.code().is_some_and(|code| accepted.contains(&code)), "{file}: {self:?}: {:?} {}", done.status, text(&done));
    }
}

fn command_lines(file: &'static str) -> Vec<CommandLine> {
    let content = read(file);
    let words = match file {
        README => readme_blocks().into_iter().flat_map(|(language, block)| words_of(&language, &block)).collect(),
        COMPOSE | KUBERNETES | DEPLOYMENT => words_of("yaml", &content),
        UNIT => words_of("ini", &content),
        CRON => words_of("crontab", &content),
        IMAGE | APP_IMAGE => words_of("dockerfile", &content),
        other => panic!("{other}: of no known language"),
    };
    words.iter().filter_map(|words| CommandLine::find(words)).collect()
}

/// Everything in this text that somebody will execute, each split into words.
fn words_of(language: &str, content: &str) -> Vec<Vec<String>> {
    let lines = content.replace("\\\n", " ");
    let lines = lines.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let split = |line: &str| shell_words::split(line).unwrap_or_else(|error| panic!("{line}: {error}"));
    let list = |text: &str| serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{text}: exec form: {error}"));
    match language {
        "sh" => lines.map(split).collect(),
        // Five fields of time, then the user.
        "crontab" => lines.map(split).filter(|words| words.len() > 6).map(|words| words[6..].to_vec()).collect(),
        "ini" => lines.filter_map(|line| line.strip_prefix("ExecStart=")).map(split).collect(),
        "dockerfile" => {
            let instructions = ["CMD ", "ENTRYPOINT ", "HEALTHCHECK CMD "];
            lines.filter_map(|line| instructions.iter().find_map(|start| line.strip_prefix(start))).map(list).collect()
        }
        "yaml" => {
            let mut found = Vec::new();
            yaml(content).iter().for_each(|document| exec_forms(document, &mut found));
            found
        }
        "sql" | "text" => Vec::new(),
        other => panic!("a block in the language {other:?}: say here how its command lines are found"),
    }
}

/// Every `command` (compose and Kubernetes) with its `args`, wherever it stands.
fn exec_forms(value: &Value, found: &mut Vec<Vec<String>>) {
    let strings = |value: &Value| -> Vec<String> {
        let list = value.as_array().unwrap_or_else(|| panic!("{value}: not in exec form"));
        list.iter().map(|word| word.as_str().expect("a string").to_string()).collect()
    };
    match value {
        Value::Object(map) => {
            if let Some(command) = map.get("command") {
                found.push([strings(command), map.get("args").map(strings).unwrap_or_default()].concat());
            }
            map.values().for_each(|value| exec_forms(value, found));
        }
        Value::Array(list) => list.iter().for_each(|value| exec_forms(value, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

// README

#[test]
fn the_readme_has_every_exit_code_of_the_help_and_no_other() {
    let readme: BTreeSet<_> = readme_table("## Exit codes").iter().flat_map(|row| exit_codes(&row[0])).collect();
    assert!(readme.len() > 4, "{README}: the table was not found: {readme:?}");
    let help = help(&[]);
    let (_, listed) = help.split_once("xit codes").expect("lockrun --help lists its exit codes");
    assert_eq!(readme, exit_codes(listed), "left README, right --help");
}

#[test]
fn the_readme_has_every_option_of_the_help_and_no_other() {
    let readme: BTreeSet<_> = readme_table("## Options").iter().flat_map(|row| long_options(&row[0])).collect();
    let help = help(&[]);
    let (_, options) = help.split_once("\nOptions:\n").expect("lockrun --help lists its options");
    let known: BTreeSet<_> = long_options(options).into_iter().filter(|name| name != "--help" && name != "--version").collect();
    assert_eq!(readme, known, "left README, right --help");
}

#[test]
fn every_option_that_the_readme_names_anywhere_exists() {
    let known: BTreeSet<_> = [&[][..], &["status"], &["check"], &["health"]].into_iter().flat_map(|of| long_options(&help(of))).collect();
    // Prose only: blocks are executed by another test, or belong to other tools.
    let prose: String = read(README).split("```").step_by(2).collect();
    // Of tests/run, cargo, tests/torture and etcdctl.
    let foreign = ["--without", "--bench", "--path", "--no-default-features", "--store", "--prefix"];
    for option in long_options(&prose) {
        assert!(known.contains(&option) || foreign.contains(&&*option), "{README}: {option} is not in --help");
    }
}

#[test]
fn the_files_that_the_readme_names_exist() {
    let readme = read(README);
    let targets: Vec<_> = readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()).collect();
    assert!(!targets.is_empty());
    for target in targets.into_iter().filter(|target| !target.contains("://") && !target.starts_with('#')) {
        assert!(root().join(target).exists(), "{README}: {target} does not exist");
    }
}

#[test]
fn the_times_in_the_readme_are_those_that_check_prints() {
    let readme = read(README);
    let (_, below) = readme.split_once("With the defaults, counted from").expect("the sentence with the times");
    let times: Vec<_> =
        below.lines().next().unwrap_or_default().split(' ').filter(|word| word.contains('.') && word.parse::<f64>().is_ok()).collect();
    assert_eq!(times.len(), 3, "TERM, KILL, dead: {times:?}");
    let dir = temp_dir();
    let db = dir.path().join("x.db");
    succeed(lockrun().arg("--db").arg(&db).args(["--", "true"]));
    let check = run(lockrun().args(["check", "--db"]).arg(&db));
    for time in times {
        assert!(text(&check).contains(time), "{README}: {time} s is not in: {}", text(&check));
    }
}

#[test]
fn the_environment_in_the_readme_is_the_one_that_a_command_gets() {
    let readme: BTreeSet<_> = readme_table("## The command's environment").iter().map(|row| row[0].trim_matches('`').to_string()).collect();
    let dir = temp_dir();
    let (outer, inner) = (dir.path().join("outer.db"), dir.path().join("inner.db"));
    let mut nested = lockrun();
    nested.arg("--db").arg(outer).args(["--", env!("CARGO_BIN_EXE_lockrun"), "--db"]).arg(inner).args(["--", "env"]);
    let names = String::from_utf8(succeed(&mut nested).stdout).expect("UTF-8");
    let names = names.lines().filter_map(|line| line.split_once('=')).map(|(name, _)| name.to_string());
    assert_eq!(readme, names.filter(|name| name.starts_with("LOCKRUN_")).collect(), "left README, right env");
}

#[test]
fn the_sql_in_the_readme_refuses_a_write_with_an_older_token() {
    let blocks = readme_blocks();
    let (_, update) = blocks.iter().find(|(language, _)| language == "sql").expect("an example in SQL");
    let database = rusqlite::Connection::open_in_memory().expect("a database");
    database
        .execute_batch("CREATE TABLE report (id BIGINT, body TEXT, fence BIGINT); INSERT INTO report VALUES (1, 'old', 0)")
        .expect("a table");
    let write =
        |token: i64| database.execute(update, rusqlite::named_params! {":id": 1, ":body": "new", ":token": token}).expect("valid SQL");
    assert_eq!([write(7), write(7), write(8), write(7)], [1, 1, 1, 0], "rows changed");
}

#[test]
fn the_readme_asks_for_the_rust_that_the_crate_asks_for() {
    assert!(read(README).contains(concat!("(", env!("CARGO_PKG_RUST_VERSION"), " or later)")));
}

/// (language, content) of every fenced block.
fn readme_blocks() -> Vec<(String, String)> {
    let readme = read(README);
    let blocks = readme.split("```").skip(1).step_by(2);
    blocks.filter_map(|block| block.split_once('\n')).map(|(language, content)| (language.to_string(), content.to_string())).collect()
}

/// The rows of the first table below a heading, without its head.
fn readme_table(heading: &str) -> Vec<Vec<String>> {
    let readme = read(README);
    let (_, below) = readme.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("{README}: no {heading}"));
    let rows = below.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|')).skip(2);
    rows.map(|row| row.trim_matches('|').split('|').map(|cell| cell.trim().to_string()).collect()).collect()
}

fn help(of: &[&str]) -> String {
    let help = succeed(lockrun().args(of).arg("--help"));
    String::from_utf8(help.stdout).expect("UTF-8")
}

fn long_options(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_lowercase() || c == '-'));
    words.filter(|word| word.starts_with("--") && word.len() > 3).map(|word| word.trim_end_matches('-').to_string()).collect()
}

/// The numbers in it that sysexits.h and a shell use for more than success, failure and misuse.
fn exit_codes(text: &str) -> BTreeSet<u32> {
    let numbers = text.split(|c: char| !c.is_ascii_alphanumeric()).filter_map(|word| word.parse().ok());
    numbers.filter(|number| (64..=128).contains(number)).collect()
}

// Helpers

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &str) -> String {
    fs::read_to_string(root().join(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
}

fn yaml(content: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(content).unwrap_or_else(|error| panic!("YAML: {error}"))
}

fn temp_dir() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("lockrun-packaging-").tempdir().expect("a temporary folder")
}

/// The real lockrun, with no LOCKRUN_* of the outside.
fn lockrun() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_lockrun"));
    std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("LOCKRUN_")).for_each(|(key, _)| {
        command.env_remove(key);
    });
    command
}

fn run_if_there(command: &mut Command) -> Option<Output> {
    command.current_dir(root()).stdin(Stdio::null()).output().ok()
}

fn run(command: &mut Command) -> Output {
    run_if_there(command).unwrap_or_else(|| panic!("{:?} is missing; tests/run installs what the tests need", command.get_program()))
}

fn succeed(command: &mut Command) -> Output {
    let done = run(command);
    assert!(done.status.success(), "{command:?}: {:?}\n{}", done.status, text(&done));
    done
}

fn text(output: &Output) -> String {
    [&*String::from_utf8_lossy(&output.stdout), &*String::from_utf8_lossy(&output.stderr)].concat()
}
