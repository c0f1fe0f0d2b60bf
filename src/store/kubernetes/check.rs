//! What `check` shows of a cluster: its version, and whether this account may do what lockrun does. Changes nothing: the
//! rights are asked for, and the write is a dry run.

use http::Request;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SelfSubjectRulesReview, SelfSubjectRulesReviewSpec,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::apimachinery::pkg::version::Info;
use serde::Serialize;
use serde_json::Value;

use super::api::{Api, http_date};
use crate::store::{Facts, StoreError};

/// What a holder and a waiter cannot do without, and what wakes a waiter.
const NEEDED: [&str; 3] = ["get", "create", "update"];
const TO_BE_TOLD: [&str; 2] = ["list", "watch"];

/// lease.md 5; README says it too.
const BESIDE_OTHERS: &str = "beside another kind of client on the same Lease (client-go's leader election) keep --ttl at or below that client's own lease \
     duration: some go by theirs, not by ours";
const CANNOT: &str = "a cluster that is restored from a backup under a holder may forget its claim; only the token tells then";

pub async fn check(api: &Api) -> Result<Facts, StoreError> {
    let (version, date) = api.ask::<Info>("get the version", get("/version")).await?;
    let mut missing = Vec::new();
    for verb in NEEDED.into_iter().chain(TO_BE_TOLD) {
        if !may(api, verb).await? {
            missing.push(verb);
        }
    }
    if !missing.is_empty() {
        api.must_be_ready().await?;
    }
    let mut warnings = vec![BESIDE_OTHERS.to_string(), CANNOT.to_string()];
    let namespace = api.namespace();
    let role =
        format!("bind a Role with get, list, create, update and watch on leases (coordination.k8s.io) in namespace {namespace} to it");
    if !missing.is_empty() {
        // A Role may be for some leases by name. Which one is meant is not known here; the read that follows asks for it.
        let named = named(api).await?;
        let by_name = |verb: &&str| named.iter().any(|(of, _)| of == verb || of == "*");
        if missing.iter().any(by_name) {
            let mut names: Vec<&str> = named.iter().map(|(_, name)| name.as_str()).collect();
            names.sort_unstable();
            names.dedup();
            warnings.push(format!("this account has rights on some leases only: {}", names.join(", ")));
        }
        missing.retain(|verb| !by_name(verb));
    }
    let lacks = |verbs: &[&str]| missing.iter().filter(|verb| verbs.contains(verb)).copied().collect::<Vec<_>>().join(", ");
    if !lacks(&NEEDED).is_empty() {
        return Err(StoreError::Refused(format!("this account may not {} leases in namespace {namespace}; {role}", lacks(&NEEDED))));
    }
    let mut probe = Lease::default();
    probe.metadata.name = Some("lockrun-check".to_string());
    api.put(&probe, true).await?;
    let notified = lacks(&TO_BE_TOLD).is_empty();
    if !notified {
        let verbs = lacks(&TO_BE_TOLD);
        warnings.push(format!("this account may not {verbs} leases: a waiter learns of a release only once a heartbeat; {role}"));
    }
    let server_time = date.as_deref().and_then(http_date);
    let details = vec![
        ("namespace", namespace.into()),
        ("server_version", version.git_version.into()),
        ("server_time_ms", server_time.map_or(Value::Null, |time| time.as_millisecond().into())),
        ("notifications", notified.into()),
    ];
    Ok(Facts { details, warnings })
}

async fn may(api: &Api, verb: &str) -> Result<bool, StoreError> {
    let attributes = ResourceAttributes {
        group: Some("coordination.k8s.io".to_string()),
        resource: Some("leases".to_string()),
        namespace: Some(api.namespace().to_string()),
        verb: Some(verb.to_string()),
        ..ResourceAttributes::default()
    };
    let spec = SelfSubjectAccessReviewSpec { resource_attributes: Some(attributes), ..Default::default() };
    let review = SelfSubjectAccessReview { spec, ..Default::default() };
    let (review, _) = api.ask::<SelfSubjectAccessReview>("ask for its rights", post("selfsubjectaccessreviews", &review)?).await?;
    Ok(review.status.is_some_and(|status| status.allowed))
}

/// Verbs on leases that are given for one name only, with that name.
async fn named(api: &Api) -> Result<Vec<(String, String)>, StoreError> {
    let spec = SelfSubjectRulesReviewSpec { namespace: Some(api.namespace().to_string()) };
    let review = SelfSubjectRulesReview { spec, ..Default::default() };
    let (review, _) = api.ask::<SelfSubjectRulesReview>("ask for its rights", post("selfsubjectrulesreviews", &review)?).await?;
    let has = |list: &Option<Vec<String>>, word: &str| list.iter().flatten().any(|item| item == word || item == "*");
    let rules = review.status.unwrap_or_default().resource_rules;
    let rules = rules.iter().filter(|rule| has(&rule.api_groups, "coordination.k8s.io") && has(&rule.resources, "leases"));
    let pairs = rules.flat_map(|rule| {
        let names = rule.resource_names.iter().flatten();
        names.flat_map(|name| rule.verbs.iter().map(|verb| (verb.clone(), name.clone())))
    });
    Ok(pairs.collect())
}

fn post(kind: &str, review: &impl Serialize) -> Result<Request<Vec<u8>>, StoreError> {
    let request = Request::post(format!("/apis/authorization.k8s.io/v1/{kind}")).header(http::header::CONTENT_TYPE, "application/json");
    let body = serde_json::to_vec(review).map_err(|error| StoreError::Refused(error.to_string()))?;
    request.body(body).map_err(|error| StoreError::Refused(error.to_string()))
}

fn get(path: &'static str) -> Request<Vec<u8>> {
    let mut request = Request::new(Vec::new());
    *request.uri_mut() = http::Uri::from_static(path);
    request
}
