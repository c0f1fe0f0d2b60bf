//! What `check` shows of an etcd: what it is, whether this user may read and write here, and what is set in a way that is
//! rarely meant. Must never change anything.

use std::time::Duration;

use serde_json::Value;
use tokio::task::JoinSet;

use super::address::Login;
use super::api::{
    self, Compare, MemberListRequest, MemberListResponse, PutRequest, RangeRequest, RangeResponse, StatusRequest, StatusResponse,
    TxnRequest, TxnResponse,
};
use super::connection::{Answer, Connection};
use super::watch::Watch;
use super::{PREFIX, PREFIX_END, SIGHTINGS};
use crate::lease::LeaseName;
use crate::store::{Facts, StoreError};

/// Revisions up to which an etcd may not have been compacted because it is new.
const YOUNG: i64 = 5_000;

pub async fn check(connection: &mut Connection) -> Result<Facts, StoreError> {
    let revision = may_read_and_write(connection).await?;
    let kept_whole = is_kept_whole(connection).await;
    let status: Answer<StatusResponse> = connection.call(api::STATUS, StatusRequest {}).await?;
    let status = status.message;
    // Some versions tell this to root alone.
    let members = connection.call(api::MEMBER_LIST, MemberListRequest {}).await.ok();
    let members: Option<MemberListResponse> = members.map(|answer| answer.message);
    let silent = silent_endpoints(connection).await;
    let watched = tokio::time::timeout(share(connection), Watch::open(connection, &LeaseName::new(""))).await;
    let address = connection.address();

    let mut warnings = Vec::new();
    warnings.extend(history(revision, kept_whole));
    // Alarms: no space, or members that differ.
    warnings.extend(status.errors.iter().map(|error| format!("etcd itself reports: {error}")));
    let voting = members.as_ref().map(|list| list.members.iter().filter(|member| !member.is_learner).count());
    match voting {
        Some(1) => warnings.push("a cluster of one member: while it is down no lease can be taken or renewed; three ride out the loss of one".to_string()),
        Some(2) => warnings.push("a cluster of two members needs both of them: it is more fragile than one; three ride out the loss of one".to_string()),
        Some(voting) if address.endpoints.len() == 1 => warnings.push(format!(
            "one endpoint of {voting} members: while it is down this lockrun cannot reach the others; name them all, separated by commas (unless it is a load balancer)"
        )),
        Some(_) | None => {}
    }
    // One alone differs from nobody.
    warnings.extend(old_bug(&status.version).filter(|_| voting != Some(1)));
    warnings.extend(silent.iter().map(|why| format!("an endpoint does not answer: {why}")));
    let pushed = matches!(watched, Ok(Ok(_)));
    if !pushed {
        let why = "watches do not get through (a proxy that keeps streams back?): a waiter sees a release at its next look only, once a heartbeat";
        warnings.push(why.to_string());
    }
    let auth = match (address.login(), &address.tls) {
        (Login::Token(_), _) => Some(true),
        (Login::NotAsked, _) => Some(false),
        // A client certificate may be a login too.
        (Login::NotYet, Some(tls)) if tls.identity.is_some() => None,
        (Login::NotYet, _) => Some(false),
    };
    if auth == Some(false) {
        warnings.push(
            "no authentication: whoever reaches this etcd may take or free every lease; user and password are not looked at".to_string(),
        );
    }
    if address.tls.is_none() && address.user.is_some() {
        warnings.push("no TLS: the password goes over the network as it is; write etcds:// where etcd has TLS".to_string());
    }
    if may_write(connection, SIGHTINGS).await == Some(false) {
        warnings.push(format!(
            "no right to write below {SIGHTINGS}: what a short try (-n, -w) has seen of a dead holder is not there for the next; \
             grant the prefix lockrun"
        ));
    }
    let details = vec![
        ("server_version", status.version.into()),
        ("members", voting.map_or(Value::Null, Value::from)),
        ("endpoints_that_answer", (connection.address().endpoints.len() - silent.len()).into()),
        ("tls", connection.address().tls.is_some().into()),
        ("authentication", auth.map_or(Value::Null, Value::from)),
        ("notifications", if pushed { "watch" } else { "none" }.into()),
    ];
    Ok(Facts { details, warnings })
}

/// What one of several questions may take of the time for all of them.
fn share(connection: &Connection) -> Duration {
    connection.limit() / 4
}

/// Of all leases; without one of the two rights it says so. The store's revision.
async fn may_read_and_write(connection: &mut Connection) -> Result<i64, StoreError> {
    let all = RangeRequest { key: PREFIX.into(), range_end: PREFIX_END.into(), limit: 1, ..RangeRequest::default() };
    let all: Answer<RangeResponse> = connection.call(api::RANGE, all).await?;
    connection.call::<_, TxnResponse>(api::TXN, never(PREFIX)).await?;
    Ok(all.message.header.unwrap_or_default().revision)
}

/// Whether the first revision of all can still be asked about.
async fn is_kept_whole(connection: &mut Connection) -> bool {
    let first = RangeRequest { key: PREFIX.into(), revision: 1, ..RangeRequest::default() };
    connection.call::<_, RangeResponse>(api::RANGE, first).await.is_ok()
}

/// Every renewal is a revision, and etcd compacts none of them by itself.
fn history(revision: i64, kept_whole: bool) -> Option<String> {
    (kept_whole && revision > YOUNG).then(|| {
        format!(
            "its history was never compacted ({revision} revisions): every renewal adds one, until its space is used up and no lease \
             can be renewed; start etcd with --auto-compaction-retention=1"
        )
    })
}

/// `None`: it did not answer that.
async fn may_write(connection: &mut Connection, key: &str) -> Option<bool> {
    match connection.call::<_, TxnResponse>(api::TXN, never(key)).await {
        Ok(_) => Some(true),
        Err(StoreError::Refused(_)) => Some(false),
        Err(StoreError::Unknown(_)) => None,
    }
}

/// A write that the server has to allow, and that it never carries out: no key was made at revision -1.
fn never(key: &str) -> TxnRequest {
    let put = PutRequest { key: key.into(), ..PutRequest::default() };
    TxnRequest::put_if(vec![Compare::created_at(key.as_bytes(), -1)], put)
}

/// All are asked at once, so that the dead ones cost one share of the time.
async fn silent_endpoints(connection: &Connection) -> Vec<String> {
    let address = connection.address();
    let limit = share(connection);
    let mut asked = JoinSet::new();
    for index in 0..address.endpoints.len() {
        let one = address.only(index);
        let name = one.endpoints[0].to_string();
        asked.spawn(async move {
            let answer = async {
                let mut connection = Connection::open(&one, limit).await?;
                connection.call::<_, StatusResponse>(api::STATUS, StatusRequest {}).await
            };
            match tokio::time::timeout(limit, answer).await {
                Ok(Ok(status)) if status.message.leader != 0 => None,
                Ok(Ok(_)) => Some(format!("{name}: it knows no leader")),
                Ok(Err(error)) => Some(format!("{name}: {error}")),
                Err(_) => Some(format!("{name}: no answer in time")),
            }
        });
    }
    let mut silent = Vec::new();
    while let Some(answer) = asked.join_next().await {
        silent.extend(answer.ok().flatten());
    }
    silent.sort();
    silent
}

/// Of etcd's bugs those by which members can come to disagree, so that two swaps from one version may both be done (etcd's
/// CHANGELOG; its bugs in leases are none of ours: no record is on one).
fn old_bug(version: &str) -> Option<String> {
    let mut numbers = version.split(['.', '-']).map(|number| number.parse::<u32>().ok());
    let (major, minor, patch) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let (when, fixed) = match (major, minor, patch) {
        (3, 5, 0..=2) => ("after a crash under load", "3.5.3"),
        (3, 5, 3..=5) => ("after a crash while one is defragmented", "3.5.6"),
        (3, ..4, _) | (3, 4, 0..=7) => ("after a crash", "3.4.8"),
        (3, 4, 8..=37) => ("when one is defragmented while it catches up by a snapshot", "3.4.38"),
        (3, 5, 6..=22) => ("when one is defragmented while it catches up by a snapshot", "3.5.23"),
        (3, 6, 0..=4) => ("when one is defragmented while it catches up by a snapshot", "3.6.5"),
        _ => return None,
    };
    Some(format!("etcd {version}: members can come to differ {when}, and then two may hold a lease; fixed in {fixed}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_in_which_members_can_come_to_differ_are_named_with_the_one_that_is_repaired() {
        for (version, fixed) in [
            ("3.3.27", Some("3.4.8")),
            ("3.4.7", Some("3.4.8")),
            ("3.4.23", Some("3.4.38")),
            ("3.4.38", None),
            ("3.5.0", Some("3.5.3")),
            ("3.5.5", Some("3.5.6")),
            ("3.5.22", Some("3.5.23")),
            ("3.5.23", None),
            ("3.6.0-rc.1", Some("3.6.5")),
            ("3.6.5", None),
            ("3.7.0", None),
            ("4.0.0", None),
            ("", None),
            ("none", None),
        ] {
            let found = old_bug(version);
            assert_eq!(found.is_some(), fixed.is_some(), "{version}: {found:?}");
            assert!(fixed.is_none_or(|fixed| found.is_some_and(|why| why.ends_with(fixed))), "{version}");
        }
    }
}
