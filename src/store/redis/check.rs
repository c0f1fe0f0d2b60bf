//! What can be known of a server without changing anything that stays: for `check`, and for whoever starts to hold. Must
//! never fail because a server does not tell of its settings.

use std::time::Duration;

use futures_util::StreamExt;
use redis::{Pipeline, Value, pipe};
use serde_json::json;

use super::info::{Info, Saving};
use super::trouble::read;
use super::{NAMES, Redis, script};
use crate::store::server::may_forget;
use crate::store::{Facts, StoreError};

/// Nothing of value is ever there.
const PROBE: &str = "lockrun:check";

async fn info(redis: &mut Redis) -> Result<(Info, Saving), StoreError> {
    let mut commands = pipe();
    commands.cmd("INFO");
    for setting in ["appendfsync", "save"] {
        commands.cmd("CONFIG").arg("GET").arg(setting);
    }
    let mut answers = redis.ask(&commands).await?.into_iter();
    let info = Info::new(answers.next().unwrap_or_default())?;
    let mut setting = || read::<Vec<String>>(answers.next()).ok().filter(|pair| pair.len() == 2)?.pop();
    Ok((info, Saving { appendfsync: setting(), save: setting() }))
}

pub async fn check(redis: &mut Redis) -> Result<Facts, StoreError> {
    let (info, saving) = info(redis).await?;
    info.fit_to_hold()?;
    let answers = redis.run(&script::PROBE, &[PROBE, NAMES], &[], |_: &mut Pipeline| {}).await?;
    read::<Value>(answers.into_iter().next())?;
    let confirming = redis.address.confirming(info.replicas());
    let mut warnings = info.doubts(&saving, &redis.address);
    let notifications = told(redis).await;
    if let Err(error) = &notifications {
        warnings.push(format!("no notifications: whoever waits looks again every heartbeat ({error})"));
    }
    let mut details = vec![
        ("server_version", info.version().into()),
        ("persistence", info.persistence(&saving).into()),
        ("eviction", info.policy().into()),
        ("replicas", info.replicas().into()),
        ("confirming_replicas", confirming.into()),
        ("notifications", notifications.is_ok().into()),
    ];
    let mut commands = pipe();
    commands.cmd("TIME");
    if let Ok((seconds, micros)) = read::<(i64, i64)>(redis.ask(&commands).await?.pop()) {
        details.push(("server_time_ms", json!(seconds.saturating_mul(1000).saturating_add(micros / 1000))));
    }
    Ok(Facts { details, warnings })
}

pub async fn warning(redis: &mut Redis) -> Result<Option<String>, StoreError> {
    let (info, saving) = info(redis).await?;
    Ok(may_forget(&info.doubts(&saving, &redis.address)))
}

/// Whether a message comes through, on a connection of its own.
async fn told(redis: &mut Redis) -> Result<(), StoreError> {
    let patience: Duration = redis.limit / 4;
    let no_answer = || StoreError::Unknown(format!("nothing came within {patience:?}"));
    let subscribed = tokio::time::timeout(patience, redis.subscribed(PROBE)).await;
    let mut watch = subscribed.map_err(|_| no_answer())??;
    let mut commands = pipe();
    commands.cmd("PUBLISH").arg(PROBE).arg("");
    read::<i64>(redis.ask(&commands).await?.pop())?;
    let message = tokio::time::timeout(patience, watch.on_message().next()).await;
    message.ok().flatten().map(drop).ok_or_else(no_answer)
}
