//! etcd's URLs: what is put together from good parts is read as these parts; anything else is refused in words that do not
//! repeat it, or harmless.

use std::ffi::OsString;

use lockrun::store::etcd::Address;
use proptest::collection::vec;
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
fn endpoint() -> impl Strategy<Value = (String, String)> {
    let host = prop_oneof![
        "[a-z][a-z0-9.-]{0,20}".prop_map(|host| (host.clone(), host)),
        any::<[u16; 8]>().prop_map(|parts| {
            let address = std::net::Ipv6Addr::from(parts);
            (format!("[{address}]"), format!("[{address}]"))
        })
    ];
    (host, proptest::option::of(1..=u16::MAX)).prop_map(|((written, shown), port)| match port {
        Some(port) => (format!("{written}:{port}"), format!("{shown}:{port}")),
        None => (written, format!("{shown}:2379")),
    })
}

#[test]
fn good_parts_are_read_as_they_were_meant_and_the_user_is_not_shown() {
    let users = proptest::option::of((hostile_text().prop_filter("a name", |name| !name.is_empty()), hostile_text()));
    check(600, (vec(endpoint(), 1..4), users, any::<bool>(), select(vec!["", "/"])), |(endpoints, user, tls, end)| {
        let hosts: Vec<&str> = endpoints.iter().map(|(written, _)| written.as_str()).collect();
        let login = user.as_ref().map(|(name, password)| format!("{}:{}@", percent(name), percent(password))).unwrap_or_default();
        let scheme = if tls { "etcds" } else { "etcd" };
        let address = Address::parse(&format!("{scheme}://{login}{}{end}", hosts.join(",")), &none).expect("a good URL");
        let shown: Vec<&str> = endpoints.iter().map(|(_, shown)| shown.as_str()).collect();
        assert_eq!(address.to_string(), format!("{scheme}://{}", shown.join(",")));
        assert_eq!(format!("{address:?}"), address.to_string());
        assert_eq!(address.user.map(|user| (user.name, user.password)), user);
    });
}

#[test]
fn anything_else_is_refused_in_one_line_that_does_not_repeat_it() {
    let text = prop_oneof![hostile_text(), "[a-z0-9:@/?#%,\\[\\]&=.-]{0,40}"];
    check(4_000, (text, any::<bool>()), |(text, tls)| {
        let secret = "hunter2hunter2";
        let url = format!("etcd{}://u:{secret}{text}@h", if tls { "s" } else { "" });
        match Address::parse(&url, &none) {
            Ok(address) => assert!(!format!("{address} {address:?}").contains(secret), "{url:?}"),
            Err(why) => assert!(is_one_line(&why) && !why.contains(secret), "{url:?}: {why:?}"),
        }
    });
}

#[test]
fn etcdctls_variables_count_where_the_url_says_nothing() {
    let variables = |name: &str| match name {
        "ETCDCTL_USER" => Some(OsString::from("root:p:w")),
        "ETCDCTL_PASSWORD" => Some(OsString::from("other")),
        "ETCDCTL_CACERT" => Some(OsString::from("/ca.pem")),
        "ETCDCTL_CERT" => Some(OsString::from("/cert.pem")),
        "ETCDCTL_KEY" => Some(OsString::from("/key.pem")),
        "ETCDCTL_ENDPOINTS" => panic!("the URL names the endpoints"),
        _ => None,
    };
    let login = |url: &str| Address::parse(url, &variables).map(|address| address.user.map(|user| (user.name, user.password)));
    let pair = |name: &str, password: &str| Ok(Some((name.to_string(), password.to_string())));
    assert_eq!(login("etcd://h"), pair("root", "p:w"));
    assert_eq!(login("etcd://u@h"), pair("u", "other"));
    assert_eq!(login("etcd://u:own@h"), pair("u", "own"));
    let tls = |url: &str| Address::parse(url, &variables).expect("a good URL").tls.expect("TLS");
    assert_eq!(tls("etcds://h").ca, Some("/ca.pem".into()));
    assert_eq!(tls("etcds://h?cacert=%2Fown.pem&cert=/c&key=/k").ca, Some("/own.pem".into()));
    assert_eq!(tls("etcds://h?cert=/c&key=/k").identity, Some(("/c".into(), "/k".into())));
    assert!(Address::parse("etcd://h", &variables).expect("a good URL").tls.is_none(), "the scheme alone asks for TLS");
}
