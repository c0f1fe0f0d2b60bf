//! What the server says of itself (INFO), and what comes of it: whether it can be trusted with a record, and what it cannot
//! promise. Must never guess: what is not said is named as such.

use redis::Value;

use super::address::Address;
use super::trouble::{cluster, read, refused, unknown};
use crate::store::StoreError;

pub struct Info(String);

/// What CONFIG GET says of it; `None`: not allowed, as in many managed services.
#[derive(Default)]
pub struct Saving {
    pub appendfsync: Option<String>,
    pub save: Option<String>,
}

impl Info {
    pub fn new(answer: Value) -> Result<Info, StoreError> {
        read(Some(answer)).map(Info)
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    pub fn version(&self) -> String {
        match (self.field("valkey_version"), self.field("redis_version")) {
            (Some(version), _) => format!("Valkey {version}"),
            (None, version) => format!("Redis {}", version.unwrap_or("?")),
        }
    }

    pub fn policy(&self) -> &str {
        self.field("maxmemory_policy").unwrap_or("?")
    }

    pub fn is_primary(&self) -> Result<(), StoreError> {
        match self.field("role") {
            Some("master") => Ok(()),
            // After a fail-over the address may be right again.
            Some(_) => unknown("the server is a read-only replica; name the primary"),
            None => refused("it does not say whether it is a primary (INFO replication); it is no Redis that lockrun can use"),
        }
    }

    /// Replicas that have caught up: one that is still getting its first copy confirms nothing.
    pub fn replicas(&self) -> usize {
        let replica = |line: &str| {
            let number = line.strip_prefix("slave").and_then(|rest| rest.split_once(':'));
            number.is_some_and(|(number, state)| number.parse::<u32>().is_ok() && state.contains("state=online"))
        };
        self.0.lines().filter(|line| replica(line)).count()
    }

    pub fn fit_to_hold(&self) -> Result<(), StoreError> {
        if self.field("redis_mode") == Some("cluster") || self.field("cluster_enabled") == Some("1") {
            return cluster();
        }
        let limited = self.field("maxmemory").is_none_or(|bytes| bytes != "0");
        match self.policy() {
            "noeviction" => {}
            _ if !limited => {}
            policy => {
                return refused(format!(
                    "maxmemory-policy is {policy}: when its memory is full the server may drop a lease; set it to noeviction (CONFIG SET \
                     maxmemory-policy noeviction), or use a server of its own"
                ));
            }
        }
        self.is_primary()
    }

    pub fn persistence(&self, saving: &Saving) -> String {
        match (self.field("aof_enabled"), &saving.appendfsync, &saving.save) {
            (Some("1"), fsync, _) => format!("appendonly {}", fsync.as_deref().unwrap_or("?")),
            (_, _, Some(save)) if save.is_empty() => "none".to_string(),
            (_, _, _) => "snapshots".to_string(),
        }
    }

    /// What it can forget, and when.
    pub fn doubts(&self, saving: &Saving, address: &Address) -> Vec<String> {
        let mut doubts = Vec::new();
        match (self.field("aof_enabled"), saving.appendfsync.as_deref(), saving.save.as_deref()) {
            (Some("1"), Some("always"), _) => {}
            (Some("1"), Some("everysec"), _) => {
                doubts.push(
                    "a server that crashes can forget what it confirmed in the last second or two (appendfsync is everysec, not always)"
                        .into(),
                );
            }
            (Some("1"), Some(_), _) => {
                doubts.push(
                    "a server that crashes can forget what it confirmed in the last half minute (appendfsync is no, not always)".into(),
                );
            }
            (Some("1"), None, _) => {
                doubts.push("whether a server that crashes forgets the last second cannot be seen (CONFIG GET is not allowed); only appendfsync always does not".into());
            }
            (_, _, Some("")) => doubts.push("a server that restarts forgets everything (appendonly is no, save is empty)".into()),
            (_, _, _) => doubts.push("a server that restarts forgets what came after its last snapshot (appendonly is no)".into()),
        }
        match (self.replicas(), address.confirming(self.replicas())) {
            (0, 0) => {}
            (_, 0) => doubts.push("replication is asynchronous, and wait=0: a fail-over can forget a lease".into()),
            (_, confirming) => {
                doubts.push(format!(
                    "replication is asynchronous: a fail-over to a replica that was not among the {confirming} that confirmed can forget a lease"
                ));
                if address.confirming(0) == 0 {
                    doubts
                        .push(format!("a primary that is cut off from its replicas goes on without them (?wait={confirming} forbids it)"));
                }
            }
        }
        doubts
    }
}
