//! Which cluster, as whom: kubeconfigs, the pod's account, exec plugins, certificates; and the one line for each that is
//! wrong. Must never find a secret in what lockrun says.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::{World, assert_code};
use crate::common::report::parse;
use crate::common::{Finished, alive, wait_until};
use crate::fixture::Server;
use crate::fixture::kubernetes::{ROLE, TOKEN};

/// `lockrun check` with this user, which shows all that can be wrong.
fn check_as(world: &World, user: &Value) -> Finished {
    let file = world.server.kubeconfig("as", world.server.port(), user);
    check(world, &file)
}

fn check(world: &World, kubeconfig: &Path) -> Finished {
    let finished = world.scene.run(&mut world.lockrun_at(&format!("k8s:?kubeconfig={}", kubeconfig.display()), &["check"]));
    for text in [&finished.stdout, &finished.stderr] {
        assert!(!text.contains("sealed") && !text.contains("PRIVATE KEY"), "a secret is shown: {text}");
    }
    finished
}

pub fn in_default(kubeconfig: &Path) -> String {
    format!("k8s:default?kubeconfig={}", kubeconfig.display())
}

fn assert_refused(finished: &Finished, words: &[&str]) {
    assert_code(finished, 125);
    assert_eq!(finished.stderr.lines().count(), 1, "{}", finished.stderr);
    for word in words {
        assert!(finished.stderr.contains(word), "{word:?} in {}", finished.stderr);
    }
}

pub fn script(world: &World, name: &str, text: &str) -> String {
    let path = world.scene.path(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("a script");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("a mode");
    path.display().to_string()
}

pub fn plugin(command: &str) -> Value {
    json!({"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": command, "interactiveMode": "IfAvailable", "provideClusterInfo": true}})
}

#[test]
fn a_token_that_the_cluster_does_not_know_is_refused() {
    let world = World::new();
    assert_code(&check_as(&world, &json!({"token": TOKEN})), 0);
    assert_refused(&check_as(&world, &json!({"token": "sealed and wrong"})), &["401", "renew the credentials in the kubeconfig"]);
    assert_refused(&check_as(&world, &json!({})), &["401"]);
}

#[test]
fn a_client_certificate_is_presented_and_one_of_a_stranger_refused() {
    let world = World::new();
    let pem = |known: bool| {
        let (certificate, key) = world.server.client_certificate("jane", known);
        std::fs::write(world.server.path("jane.pem"), certificate).expect("a certificate");
        std::fs::write(world.server.path("jane.key"), key).expect("a key");
        json!({"client-certificate": "jane.pem", "client-key": "jane.key"})
    };
    world.server.grant("jane", Some(&ROLE));
    assert_code(&check_as(&world, &pem(true)), 0);
    let stranger = check_as(&world, &pem(false));
    assert!(matches!(stranger.code(), 69 | 125), "{}", stranger.stderr);
    assert_refused(&check_as(&world, &json!({"client-certificate": "none.pem", "client-key": "jane.key"})), &["none.pem"]);
}

#[test]
fn a_server_whose_certificate_does_not_match_is_refused() {
    let world = World::new();
    let (server, user) = (format!("https://127.0.0.1:{}", world.server.port()), json!({"token": TOKEN}));
    let (other, _) = world.server.client_certificate("other", false);
    std::fs::write(world.server.path("other.pem"), other).expect("a certificate");
    let of = |cluster: Value| check(&world, &world.server.kubeconfig_of("of", &cluster, &user));
    assert_refused(&of(json!({"server": server, "certificate-authority": "other.pem"})), &["its certificate", "UnknownIssuer"]);
    assert_refused(&of(json!({"server": server})), &["its certificate"]);
    let wrong_name = json!({"server": server, "certificate-authority": "ca.pem", "tls-server-name": "kubernetes.example"});
    assert_refused(&of(wrong_name), &["its certificate", "kubernetes.example"]);
    assert_code(&of(json!({"server": server, "insecure-skip-tls-verify": true})), 0);
    assert_refused(&of(json!({"server": server, "certificate-authority": "none.pem"})), &["none.pem"]);
    assert_refused(
        &of(json!({"server": format!("{server}/nowhere"), "certificate-authority": "ca.pem"})),
        &["not that of a Kubernetes API server"],
    );
    assert_refused(&of(json!({"server": server, "proxy-url": "http://proxy:3128"})), &["proxy-url"]);
}

#[test]
fn contexts_and_namespaces_are_those_of_kubectl() {
    let world = World::new();
    let file = world.server.kubeconfig("config", world.server.port(), &json!({"token": TOKEN}));
    let at = |url: &str| {
        let mut command = world.lockrun_at(url, &["check", "--json"]);
        world.scene.run(command.env("KUBECONFIG", &file))
    };
    for (url, namespace) in [
        ("kubernetes:", "default"),
        ("k8s:kube-system", "kube-system"),
        ("k8s:?context=other", "team-a"),
        ("k8s:default?context=other", "default"),
    ] {
        let finished = at(url);
        assert_code(&finished, 0);
        assert_eq!(parse(&finished.stdout)["namespace"], namespace, "{url}");
    }
    assert_refused(&at("k8s:?context=none"), &["none", "config"]);
    assert_refused(&at("k8s:Team"), &["not the name of a namespace"]);
    assert_refused(&at("kubernetes://default"), &["no slashes"]);
    assert_refused(&at("k8s:?timeout=3"), &["context=NAME and kubeconfig=PATH"]);
    assert_refused(&at("k8s:gone"), &["namespace gone: there is none"]);

    // Relative, and read after lockrun has left its folder; the file of the home folder; none at all.
    std::fs::copy(&file, world.server.path("copy")).expect("a copy");
    let mut relative = world.lockrun_at("k8s:", &[]);
    relative.env("KUBECONFIG", "copy").current_dir(world.server.path("")).args(["--", "true"]);
    assert_code(&world.scene.run(&mut relative), 0);
    assert_refused(&world.scene.run(&mut world.lockrun_at("k8s:", &["check"])), &["no cluster", "KUBECONFIG"]);
    std::fs::create_dir(world.scene.path(".kube")).expect("a folder");
    std::fs::write(world.scene.path(".kube/config"), "{not yaml").expect("a file");
    assert_refused(&world.scene.run(&mut world.lockrun_at("k8s:", &["check"])), &[".kube/config", "not a kubeconfig"]);
}

#[test]
fn an_exec_plugin_that_gives_nothing_is_named() {
    let world = World::new();
    assert_refused(&check_as(&world, &plugin("/no/such/plugin")), &["exec plugin /no/such/plugin", "install it"]);
    let mute = script(&world, "mute", "echo sealed; exit 3");
    let finished = check_as(&world, &plugin(&mute));
    assert!(finished.code() == 69 && finished.stderr.contains("it gave no credentials"), "{}", finished.stderr);
    let half = json!({"kind": "ExecCredential", "status": {"token": TOKEN, "clientCertificateData": "sealed"}});
    let half = script(&world, "half", &format!("echo '{half}'"));
    assert_refused(&check_as(&world, &plugin(&half)), &["exec plugin", "a certificate and its key belong together"]);
    // A slow one is waited for from attempt to attempt, and asked once.
    let dir = world.scene.dir().display();
    let answer = json!({"kind": "ExecCredential", "status": {"token": TOKEN, "expirationTimestamp": "2099-01-01T00:00:00Z"}});
    let slow = script(&world, "slow", &format!("echo x >>{dir}/asked; sleep 2; echo '{answer}'"));
    let file = world.server.kubeconfig("slow", world.server.port(), &plugin(&slow));
    let mut lockrun = world.lockrun_at(&in_default(&file), &["--ttl", "4s", "--heartbeat", "600ms"]);
    assert_code(&world.scene.run(lockrun.args(["--", "true"])), 0);
    assert_eq!(std::fs::read_to_string(world.scene.path("asked")).expect("asked"), "x\n");
    let mut always = plugin(&slow);
    always["exec"]["interactiveMode"] = json!("Always");
    assert_refused(&check_as(&world, &always), &["asks a person"]);
}

#[test]
fn an_exec_plugin_that_hangs_does_not_outlive_lockrun() {
    let world = World::new();
    let hung =
        script(&world, "hung", &format!("echo $$ >{dir}/new && mv {dir}/new {dir}/pid; exec sleep 600", dir = world.scene.dir().display()));
    let file = world.server.kubeconfig("hung", world.server.port(), &plugin(&hung));
    let mut lockrun = world.lockrun_at(&in_default(&file), &[]);
    let waiter = world.scene.start(lockrun.args(["--", "true"]));
    let pid = world.scene.wait_for_file("pid").trim().parse().expect("a pid");
    assert!(alive(pid));
    waiter.signal(Signal::SIGKILL);
    wait_until("its end", || !alive(pid));
}
