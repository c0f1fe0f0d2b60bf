//! A record as JSON, for the stores that keep one text per lease. Another program may have written it: what cannot be read
//! is refused by name, never guessed at.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::lease::{Holder, HolderId, Moment, Record, Token, WriteId};
use crate::store::StoreError;

#[derive(Serialize, Deserialize)]
struct Text {
    write: String,
    token: i64,
    holder: Option<HolderText>,
    ttl_ms: u64,
    acquired_ms: i64,
    renewed_ms: i64,
    #[serde(default)]
    stopping: bool,
}

#[derive(Serialize, Deserialize)]
struct HolderText {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    instance: Option<String>,
    hostname: String,
    pid: u32,
    command: Vec<String>,
}

pub fn to_json(record: &Record) -> String {
    let holder = record.holder.as_ref().map(|holder| HolderText {
        id: holder.id.to_string(),
        instance: holder.instance.clone(),
        hostname: holder.hostname.clone(),
        pid: holder.pid,
        command: holder.command.clone(),
    });
    let text = Text {
        write: record.write.to_string(),
        token: record.token.0,
        holder,
        ttl_ms: u64::try_from(record.ttl.as_millis()).unwrap_or(u64::MAX),
        acquired_ms: record.acquired_ms,
        renewed_ms: record.renewed_ms,
        stopping: record.stopping,
    };
    serde_json::to_string(&text).expect("text and numbers are always JSON")
}

/// `asked_at` is the holder's own instant, which means nothing here, and is not kept.
pub fn from_json(text: &[u8]) -> Result<Record, StoreError> {
    let text: Text = serde_json::from_slice(text)
        .map_err(|error| StoreError::Refused(format!("its record is not one of lockrun's ({error}); remove it, or take another --name")))?;
    let holder = text.holder.map(|holder| Holder {
        id: HolderId::new(holder.id),
        instance: holder.instance,
        hostname: holder.hostname,
        pid: holder.pid,
        command: holder.command,
    });
    Ok(Record {
        write: WriteId::new(text.write),
        token: Token(text.token),
        holder,
        ttl: Duration::from_millis(text.ttl_ms),
        asked_at: Moment::default(),
        acquired_ms: text.acquired_ms,
        renewed_ms: text.renewed_ms,
        stopping: text.stopping,
    })
}
