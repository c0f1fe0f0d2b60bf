//! A Redis URL: what is put together from good parts is read as these parts; anything else is refused in words that do not
//! repeat it, or harmless.

use std::ffi::OsString;

use lockrun::store::redis::Address;
use proptest::prelude::*;
use proptest::sample::select;

use crate::{check, hostile_text, is_one_line};

fn none(_: &str) -> Option<OsString> {
    None
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// (as it is written, as it is shown).
fn place() -> impl Strategy<Value = (String, String)> {
    let host = prop_oneof![
        "[a-z][a-z0-9._-]{0,20}",
        any::<[u8; 4]>().prop_map(|parts| std::net::Ipv4Addr::from(parts).to_string()),
        any::<[u16; 8]>().prop_map(|parts| format!("[{}]", std::net::Ipv6Addr::from(parts))),
    ];
    (host, proptest::option::of(1..=u16::MAX)).prop_map(|(host, port)| match port {
        Some(port) => (format!("{host}:{port}"), format!("{host}:{port}")),
        None => (host.clone(), format!("{host}:6379")),
    })
}

#[test]
fn good_parts_are_read_as_they_were_meant_and_the_user_is_not_shown() {
    let user = proptest::option::of((proptest::option::of(hostile_text()), "[a-z0-9]{8}", hostile_text()));
    let db = proptest::option::of(any::<u32>());
    check(800, (place(), user, db, any::<bool>(), select(vec!["", "?wait=2", "?wait=0&"])), |((place, shown), user, db, tls, end)| {
        let scheme = if tls { "rediss" } else { "redis" };
        let secret = user.as_ref().map(|(_, secret, _)| format!("hunter{secret}"));
        let login = user
            .as_ref()
            .map(|(name, secret, rest)| format!("{}:hunter{secret}{}@", percent(name.as_deref().unwrap_or_default()), percent(rest)));
        let path = db.map(|db| format!("/{db}")).unwrap_or_default();
        let url = format!("{scheme}://{}{place}{path}{end}", login.unwrap_or_default());
        let address = Address::parse(&url, &none).unwrap_or_else(|why| panic!("{url:?}: {why}"));
        assert_eq!(address.to_string(), format!("{scheme}://{shown}/{}", db.unwrap_or(0)));
        assert!(secret.is_none_or(|secret| !format!("{address} {address:?}").contains(&secret)));
    });
}

#[test]
fn anything_else_is_refused_in_one_line_that_does_not_repeat_it() {
    let text = prop_oneof![hostile_text(), "[a-z0-9:@/?#%,\\[\\]&=.-]{0,40}"];
    check(4_000, (text, any::<bool>()), |(text, tls)| {
        let secret = "hunter2hunter2";
        let url = format!("redis{}://u:{secret}{text}@h", if tls { "s" } else { "" });
        match Address::parse(&url, &none) {
            Ok(address) => assert!(!format!("{address} {address:?}").contains(secret), "{url:?}"),
            Err(why) => assert!(is_one_line(&why) && !why.contains(secret), "{url:?}: {why:?}"),
        }
    });
}

#[test]
fn any_text_at_all_is_read_or_refused() {
    check(2_000, hostile_text(), |text| {
        for url in [text.clone(), format!("redis:{text}"), format!("rediss://{text}"), format!("redis://h?{text}")] {
            if let Err(why) = Address::parse(&url, &none) {
                assert!(is_one_line(&why), "{url:?}: {why:?}");
            }
        }
    });
}
