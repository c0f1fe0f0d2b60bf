//! An etcd of our own, on free ports of the loopback, in a temporary folder; ended by its pid.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::stage::spawn;
use crate::tool;

pub struct Etcd {
    server: Child,
    client: PathBuf,
    endpoint: String,
    _data: tempfile::TempDir,
}

impl Etcd {
    /// `None`, and a word about it, if it is not installed or does not start.
    pub fn start() -> Option<Etcd> {
        let (server, client) = (tool("etcd", "etcd-server")?, tool("etcdctl", "etcd-client")?);
        let data = tempfile::tempdir().expect("a temporary folder");
        let (endpoint, peer) = (free(), free());
        let mut command = Command::new(server);
        command.arg("--data-dir").arg(data.path().join("data"));
        command.args(["--listen-client-urls", &endpoint, "--advertise-client-urls", &endpoint]);
        command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
        command.args(["--initial-cluster", &format!("default={peer}")]);
        let server = spawn(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()));
        let etcd = Etcd { server, client, endpoint, _data: data };
        let end = Instant::now() + Duration::from_secs(20);
        while !etcd.client().args(["endpoint", "health"]).output().is_ok_and(|output| output.status.success()) {
            if Instant::now() > end {
                println!("etcd: does not answer, left out");
                return None;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Some(etcd)
    }

    pub fn client(&self) -> Command {
        let mut command = Command::new(&self.client);
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(&self.endpoint);
        command
    }

    pub fn keys(&self, prefix: &str) -> usize {
        let output = self.client().args(["get", "--prefix", "--keys-only", prefix]).output().expect("etcdctl runs");
        String::from_utf8_lossy(&output.stdout).lines().filter(|line| !line.is_empty()).count()
    }
}

impl Drop for Etcd {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn free() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    format!("http://{}", listener.local_addr().expect("its address"))
}
