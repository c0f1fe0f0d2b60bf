//! Asks an exec plugin of a kubeconfig for credentials (client.authentication.k8s.io). Must never wait for it on the
//! runtime's thread, nor give it our standard input, which is the command's.

use std::io::{ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use k8s_openapi::jiff::Timestamp;
use kube::config::{ExecConfig, ExecInteractiveMode};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use serde::Deserialize;
use serde_json::json;

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
    let command = command(plugin, &program);
    let answer = tokio::task::spawn_blocking(move || run(command)).await.map_err(|error| StoreError::Unknown(error.to_string()))?;
    let answer = answer.map_err(|error| match error.kind() {
        ErrorKind::NotFound | ErrorKind::PermissionDenied => {
            let hint = plugin.install_hint.as_ref().map(|hint| format!("; {hint}")).unwrap_or_default();
            StoreError::Refused(format!("exec plugin {program}: {error}; install it, or set PATH{hint}"))
        }
        _ => StoreError::Unknown(format!("exec plugin {program}: {error}")),
    })?;
    // What it said may be a secret, so it is not shown.
    let none = || StoreError::Unknown(format!("exec plugin {program}: it gave no credentials; what it says is above"));
    let status = serde_json::from_slice::<Answer>(&answer).ok().and_then(|answer| answer.status).ok_or_else(none)?;
    if status.token.is_none() && status.client_certificate_data.is_none() {
        return Err(none());
    }
    Ok(Credential {
        token: status.token,
        identity: status.client_certificate_data.zip(status.client_key_data),
        expires: status.expiration_timestamp,
    })
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

/// It must not outlive us (what it starts itself may). All that it writes, whatever its status: that may have gone to the front, which reaps all strangers.
fn run(mut command: Command) -> std::io::Result<Vec<u8>> {
    // SAFETY: one system call between fork and exec.
    unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
    // The thread that it dies with waits for it here.
    let mut child = command.spawn()?;
    let mut answer = Vec::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_end(&mut answer)?;
    }
    let _ = child.wait();
    Ok(answer)
}
