//! Asks an exec plugin of a kubeconfig for credentials (client.authentication.k8s.io). Must never wait for it on the
//! runtime's thread, nor give it our standard input, which is the command's.

use std::io::ErrorKind;
use std::os::unix::process::CommandExt;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::mpsc;

use k8s_openapi::jiff::Timestamp;
use kube::config::{ExecConfig, ExecInteractiveMode};
use nix::errno::Errno;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{getpid, getppid};
use serde::Deserialize;
use serde_json::json;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;

use crate::store::StoreError;

#[derive(Default)]
pub struct Credential {
    pub token: Option<String>,
    /// Certificate and key, in PEM.
    pub identity: Option<(String, String)>,
    pub expires: Option<Timestamp>,
}

#[derive(Deserialize)]
struct Answer {
    status: Option<Status>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    token: Option<String>,
    client_certificate_data: Option<String>,
    client_key_data: Option<String>,
    expiration_timestamp: Option<Timestamp>,
}

pub async fn ask(plugin: &ExecConfig) -> Result<Credential, StoreError> {
    let program = plugin.command.clone().unwrap_or_default();
    if plugin.interactive_mode == Some(ExecInteractiveMode::Always) {
        return Err(StoreError::Refused(format!("exec plugin {program}: it asks a person (interactiveMode: Always); use another context")));
    }
    let answer = run(command(plugin, &program)).await.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => {
            let hint = plugin.install_hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            StoreError::Refused(format!("exec plugin {program}: {error}; install it, or set PATH{hint}"))
        }
        _ => StoreError::Unknown(format!("exec plugin {program}: {error}")),
    })?;
    // What it said may be a secret, so it is not shown.
    let none = || StoreError::Unknown(format!("exec plugin {program}: it gave no credentials; what it says is above"));
    let status = serde_json::from_slice::<Answer>(&answer).ok().and_then(|answer| answer.status).ok_or_else(none)?;
    let identity = match (status.client_certificate_data, status.client_key_data) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) if status.token.is_none() => return Err(none()),
        (None, None) => None,
        _ => {
            let why = "it gave half of what proves who we are: a certificate and its key belong together; mend the plugin";
            return Err(StoreError::Refused(format!("exec plugin {program}: {why}")));
        }
    };
    Ok(Credential { token: status.token, identity, expires: status.expiration_timestamp })
}

fn command(plugin: &ExecConfig, program: &str) -> Command {
    let mut command = Command::new(program);
    command.args(plugin.args.iter().flatten());
    for variable in plugin.env.iter().flatten() {
        if let (Some(name), Some(value)) = (variable.get("name"), variable.get("value")) {
            command.env(name, value);
        }
    }
    let cluster = plugin.cluster.as_ref().and_then(|cluster| serde_json::to_value(cluster).ok());
    let mut spec = json!({ "interactive": false });
    if let Some(cluster) = cluster {
        spec["cluster"] = cluster;
    }
    let version = plugin.api_version.as_deref().unwrap_or("client.authentication.k8s.io/v1");
    let info = json!({ "apiVersion": version, "kind": "ExecCredential", "spec": spec });
    command.env("KUBERNETES_EXEC_INFO", info.to_string()).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// All that it writes, whatever its status: that may have gone to the front, which reaps all strangers. Dropped before that,
/// it ends the plugin (what that has started itself may go on).
async fn run(command: Command) -> std::io::Result<Vec<u8>> {
    let (told, started) = oneshot::channel();
    let (all_read, until) = mpsc::channel();
    std::thread::Builder::new().name("exec-plugin".to_string()).spawn(move || live(command, told, &until))?;
    let stdout = started.await.map_err(std::io::Error::other)??;
    let (stdout, mut answer) = (pipe::Receiver::from_owned_fd(stdout.into())?, Vec::new());
    loop {
        stdout.readable().await?;
        let mut part = [0; 4096];
        match stdout.try_read(&mut part) {
            Ok(0) => break,
            Ok(length) => answer.extend_from_slice(&part[..length]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    let _ = all_read.send(());
    Ok(answer)
}

/// The plugin dies with this thread, and so never by its pid, which may be another's once the front has reaped it.
fn live(mut command: Command, told: oneshot::Sender<std::io::Result<ChildStdout>>, until: &mpsc::Receiver<()>) {
    let us = getpid();
    let with_us = move || {
        set_pdeathsig(Signal::SIGKILL)?;
        // Somebody else's child by now: we died before it was said.
        if getppid() == us { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: two system calls between fork and exec.
    unsafe { command.pre_exec(with_us) };
    match command.spawn() {
        Err(error) => drop(told.send(Err(error))),
        Ok(mut child) => {
            let stdout = child.stdout.take().ok_or_else(|| ErrorKind::BrokenPipe.into());
            if told.send(stdout).is_ok() && until.recv().is_ok() {
                let _ = child.wait();
            }
        }
    }
}
