//! Credentials and certificates that change under lockrun: what is new is used, and what works is kept until it is there.

use std::time::Instant;

use k8s_openapi::jiff::{SignedDuration, Timestamp};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use super::access::{in_default, plugin, script};
use super::{SHORT, UNTIL_GO, World, assert_code};
use crate::common::report::parse;
use crate::common::{Finished, Running, alive, wait_until};
use crate::fixture::Server;
use crate::fixture::kubernetes::{Kubernetes, ROLE, TOKEN};

/// A holder, as this user of a kubeconfig, whose command runs until `let_go`.
fn hold_as(world: &World, user: &Value) -> Running {
    let file = world.server.kubeconfig("user", world.server.port(), user);
    let mut lockrun = world.lockrun_at(&in_default(&file), &["--ttl", "60s", "--heartbeat", "500ms"]);
    let holder = world.scene.start(lockrun.args(["--", "sh", "-c", &format!("touch up; {UNTIL_GO}")]));
    world.scene.wait_for_file("up");
    holder
}

fn let_go(world: &World, holder: Running) -> Finished {
    world.go();
    let finished = holder.finish();
    assert_code(&finished, 0);
    assert!(!finished.stderr.contains("sealed"), "{}", finished.stderr);
    finished
}

/// And nothing was ever said to be wrong.
fn let_go_undisturbed(world: &World, holder: Running) {
    let finished = let_go(world, holder);
    assert!(!finished.stderr.contains("unreachable"), "{}", finished.stderr);
}

/// The last of them began after the call.
fn wait_for_renewals(world: &World, count: usize) {
    world.server.requests();
    let mut seen = 0;
    wait_until("renewals", || {
        seen += world.server.requests().iter().filter(|(verb, _)| verb == "update").count();
        seen >= count
    });
}

fn cluster(server: &Kubernetes) -> Value {
    json!({"server": format!("https://127.0.0.1:{}", server.port()), "certificate-authority": server.path("ca.pem")})
}

/// What a plugin answers.
fn credential(status: &Value) -> String {
    json!({"apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status}).to_string()
}

fn in_seconds(seconds: i64) -> String {
    (Timestamp::now() + SignedDuration::from_secs(seconds)).to_string()
}

/// How often a plugin was asked that writes a line to `asked` each time.
fn asked(world: &World) -> usize {
    std::fs::read_to_string(world.scene.path("asked")).expect("asked").lines().count()
}

#[test]
fn an_exec_plugin_is_asked_once_and_anew_when_its_token_is_refused() {
    let world = World::new();
    let answer = |token: &str| std::fs::write(world.scene.path("answer"), credential(&json!({"token": token}))).expect("an answer");
    answer(TOKEN);
    let dir = world.scene.dir().display();
    let command = script(&world, "plugin", &format!("echo \"$KUBERNETES_EXEC_INFO\" >>{dir}/asked; cat {dir}/answer; cat >>{dir}/stdin"));
    let holder = hold_as(&world, &plugin(&command));
    wait_for_renewals(&world, 2);
    assert_eq!(asked(&world), 1, "once for all requests");
    let info = parse(std::fs::read_to_string(world.scene.path("asked")).expect("asked").trim());
    assert_eq!((&info["kind"], &info["spec"]["interactive"]), (&json!("ExecCredential"), &json!(false)));
    assert!(info["spec"]["cluster"]["server"].is_string(), "{info}");

    answer("sealed-next");
    world.server.grant("sealed-next", Some(&ROLE));
    world.server.grant(TOKEN, None);
    wait_for_renewals(&world, 2);
    assert_eq!(asked(&world), 2);
    let finished = let_go(&world, holder);
    assert!(finished.stderr.contains("unreachable: 401"), "{}", finished.stderr);
}

#[test]
fn credentials_that_end_soon_are_renewed_before_they_are_refused() {
    let world = World::new();
    let answer = |name: &str, token: &str, seconds: i64| {
        let text = credential(&json!({"token": token, "expirationTimestamp": in_seconds(seconds)}));
        std::fs::write(world.scene.path(name), text).expect("an answer");
    };
    answer("answer", TOKEN, 20);
    answer("next", "sealed-next", 3600);
    world.server.grant("sealed-next", Some(&ROLE));
    let dir = world.scene.dir().display();
    let command = script(&world, "plugin", &format!("echo x >>{dir}/asked; cat {dir}/answer; cp {dir}/next {dir}/answer"));
    let holder = hold_as(&world, &plugin(&command));
    wait_until("new ones", || asked(&world) == 2);
    wait_for_renewals(&world, 3);
    world.server.grant(TOKEN, None);
    wait_for_renewals(&world, 2);
    let_go_undisturbed(&world, holder);
    assert_eq!(asked(&world), 2);
}

/// In a mount namespace of its own, /run is as in a pod.
#[test]
fn the_account_of_a_pod_is_used_and_its_token_that_rotates() {
    let world = World::new();
    std::fs::write(world.scene.path("token"), TOKEN).expect("a token");
    let account = "/run/secrets/kubernetes.io/serviceaccount";
    let (dir, ca) = (world.scene.dir().display(), world.server.path("ca.pem").display().to_string());
    let pod = format!(
        "mount -t tmpfs none /run && mkdir -p {account} && cp {ca} {account}/ca.crt && printf team-a >{account}/namespace && \
         ln -s {dir}/token {account}/token && exec \"$@\""
    );
    let mut command = world.scene.command("unshare");
    command.args(["--mount", "sh", "-c", &pod, "sh", crate::common::lockrun_binary()]);
    command.args(["--ttl", "60s", "--heartbeat", "500ms", "--db", "kubernetes:", "--name", "beat", "--"]);
    command.args(["sh", "-c", &format!("touch up; {UNTIL_GO}")]);
    command.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", world.server.port().to_string());
    let holder = world.scene.start(command.env("HOME", world.scene.dir()).env_remove("KUBECONFIG"));
    wait_until("it runs", || world.scene.path("up").exists() || holder.stderr().contains("mount:"));
    assert!(!holder.stderr().contains("mount:"), "as root, see tests/run: {}", holder.stderr());

    std::fs::write(world.scene.path("token"), "sealed-next").expect("a token");
    world.server.grant("sealed-next", Some(&ROLE));
    world.server.grant(TOKEN, None);
    wait_for_renewals(&world, 2);
    // Some remove it once a process has started.
    std::fs::remove_file(world.scene.path("token")).expect("it is there");
    wait_for_renewals(&world, 2);
    let_go_undisturbed(&world, holder);
}

#[test]
fn a_waiter_whose_credentials_may_heal_waits_on() {
    let world = World::new();
    std::fs::write(world.scene.path("token"), "sealed and old").expect("a token");
    let user = json!({"tokenFile": world.scene.path("token")});
    let file = world.server.kubeconfig("file", world.server.port(), &user);
    let mut lockrun = world.lockrun_at(&in_default(&file), &["--ttl", "60s"]);
    let waiter = world.scene.start(lockrun.args(["--", "true"]));
    waiter.wait_for_stderr("unreachable: 401");
    std::fs::write(world.scene.path("token"), TOKEN).expect("a token");
    assert_code(&waiter.finish(), 0);
}

#[test]
fn credentials_that_end_soon_are_used_until_others_are_there() {
    let world = World::new();
    let (dir, answer) = (world.scene.dir().display(), credential(&json!({"token": TOKEN, "expirationTimestamp": in_seconds(20)})));
    let hangs = script(
        &world,
        "plugin",
        &format!("test -e {dir}/asked && echo $$ >{dir}/pid && exec sleep 600; touch {dir}/asked; echo '{answer}'"),
    );
    let holder = hold_as(&world, &plugin(&hangs));
    let pid = world.scene.wait_for_file("pid").trim().parse().expect("a pid");
    wait_for_renewals(&world, 4);
    assert!(alive(pid));
    let_go_undisturbed(&world, holder);
    wait_until("the plugin's end", || !alive(pid));
}

/// Some keep a token until it ends.
#[test]
fn a_plugin_that_gives_the_same_again_is_not_asked_by_each_request() {
    let world = World::new();
    let (dir, answer) = (world.scene.dir().display(), credential(&json!({"token": TOKEN, "expirationTimestamp": in_seconds(20)})));
    let same = script(&world, "plugin", &format!("echo x >>{dir}/asked; echo '{answer}'"));
    let began = Instant::now();
    let holder = hold_as(&world, &plugin(&same));
    wait_for_renewals(&world, 10);
    let (times, elapsed) = (asked(&world), began.elapsed());
    assert!(times <= 2 + usize::try_from(elapsed.as_secs() / 5).expect("small"), "{times} times in {elapsed:?}");
    let_go(&world, holder);
}

#[test]
fn what_stands_in_the_kubeconfig_goes_before_a_plugin() {
    let world = World::new();
    let mut user = plugin("/no/such/plugin");
    user["token"] = json!(TOKEN);
    let_go(&world, hold_as(&world, &user));
}

#[test]
fn a_token_file_that_is_empty_or_does_not_answer_leaves_the_last_token() {
    let world = World::new();
    let file = world.scene.path("token");
    let put = |token: &str| {
        std::fs::write(world.scene.path("new"), token).expect("a token");
        std::fs::rename(world.scene.path("new"), &file).expect("a token");
    };
    // Whoever opens it to read waits for a writer.
    let hang = || {
        mkfifo(&world.scene.path("new"), Mode::S_IRWXU).expect("a fifo");
        std::fs::rename(world.scene.path("new"), &file).expect("a token");
    };
    put(TOKEN);
    let holder = hold_as(&world, &json!({"tokenFile": file}));
    put("\n");
    wait_for_renewals(&world, 3);
    hang();
    wait_for_renewals(&world, 3);
    let hung = world.scene.path("hung");
    std::fs::rename(&file, &hung).expect("it is there");
    put("sealed-next");
    world.server.grant("sealed-next", Some(&ROLE));
    drop(std::fs::File::options().write(true).open(hung).expect("a fifo"));
    wait_for_renewals(&world, 3);
    world.server.grant(TOKEN, None);
    hang();
    wait_for_renewals(&world, 3);
    let_go_undisturbed(&world, holder);
}

#[test]
fn an_authority_that_is_replaced_is_read_anew_by_holder_and_waiter() {
    let mut world = World::new();
    let holder = hold_as(&world, &json!({"token": TOKEN}));
    let waiter = world.start_waiter(&["--ttl", "60s", "--heartbeat", "500ms"], "exit 0");
    let authority = world.server.change_authority();
    for copy in [&holder, &waiter] {
        copy.wait_for_stderr("unreachable: its certificate: ");
    }
    std::fs::write(world.server.path("ca.pem"), authority).expect("an authority");
    for copy in [&holder, &waiter] {
        copy.wait_for_stderr("recovered");
    }
    let_go(&world, holder);
    assert_code(&waiter.finish(), 0);
}

/// An authority that is not to be trusted any more.
#[test]
fn files_are_read_anew_every_five_minutes() {
    let world = World::new();
    let holder = hold_as(&world, &json!({"token": TOKEN}));
    let good = std::fs::read(world.server.path("ca.pem")).expect("an authority");
    let (stranger, _) = world.server.client_certificate("stranger", false);
    std::fs::write(world.server.path("ca.pem"), "no certificate").expect("an authority");
    world.server.step_clock(301);
    wait_for_renewals(&world, 3);
    assert!(!holder.stderr().contains("unreachable"), "what works is kept: {}", holder.stderr());
    std::fs::write(world.server.path("ca.pem"), stranger).expect("an authority");
    holder.wait_for_stderr("unreachable: its certificate: ");
    std::fs::write(world.server.path("ca.pem"), good).expect("an authority");
    holder.wait_for_stderr("recovered");
    let_go(&world, holder);
}

/// With kubectl, while lockrun runs: another context of the file.
#[test]
fn a_context_that_is_another_by_now_moves_nobody() {
    let (world, other) = (World::new(), Kubernetes::start());
    let user = json!({"token": TOKEN});
    let holder = hold_as(&world, &user);
    let mut text = parse(&std::fs::read_to_string(world.server.path("user")).expect("a kubeconfig"));
    text["clusters"].as_array_mut().expect("clusters").push(json!({"name": "d", "cluster": cluster(&other)}));
    text["contexts"][1]["context"]["cluster"] = json!("d");
    text["current-context"] = json!("other");
    world.server.replace("user", &text);
    world.server.grant(TOKEN, None);
    holder.wait_for_stderr("unreachable: 401");
    world.server.grant(TOKEN, Some(&ROLE));
    holder.wait_for_stderr("recovered");
    let_go(&world, holder);
    assert!(other.leases().is_empty());
}

/// Another server of this name.
#[test]
fn a_server_that_is_another_by_now_is_not_gone_to() {
    let (world, other) = (World::new(), Kubernetes::start());
    let user = json!({"token": TOKEN});
    let file = world.server.kubeconfig_of("user", &cluster(&world.server), &user);
    let mut lockrun = world.lockrun_at(&in_default(&file), &SHORT);
    let holder = world.scene.start(lockrun.args(["--", "sh", "-c", "touch up; exec sleep 600"]));
    world.scene.wait_for_file("up");
    world.server.kubeconfig_of("user", &cluster(&other), &user);
    world.server.grant(TOKEN, None);
    let finished = holder.finish();
    assert_code(&finished, 76);
    assert!(finished.stderr.contains("names another server by now"), "{}", finished.stderr);
    assert!(other.requests().is_empty());
}
