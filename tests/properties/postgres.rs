//! URLs of PostgreSQL as anybody may write them: read, or refused in one line that shows nothing of a password.

use lockrun::store::postgres::Address;
use proptest::prelude::*;
use proptest::sample::select;

use crate::{check, hostile_text, is_one_line};

/// Texts that are nearly one, put together from what has a meaning in it.
fn url_like() -> impl Strategy<Value = String> {
    let mark = select(vec![
        "@",
        ":",
        "/",
        "?",
        "&",
        "=",
        ",",
        "[",
        "]",
        "%",
        "%2F",
        "%00",
        "%zz",
        "://",
        "host",
        "port=5432",
        "sslmode=verify-full",
        "ssl=true",
        "sslrootcert=system",
        "options=-c%20x%3D1",
        "hostaddr=::1",
        "password=",
        "user=",
        "h",
        "127.0.0.1",
        "[::1]:5",
        "99999",
        "é",
    ]);
    let part = prop_oneof![6 => mark.prop_map(str::to_string), 1 => hostile_text()];
    proptest::collection::vec(part, 0..12).prop_map(|parts| format!("postgres://{}", parts.concat()))
}

/// As a client of libpq would write it into a URL.
fn encoded(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[test]
fn any_url_is_read_or_refused_in_one_line() {
    check(3_000, url_like(), |url| match Address::parse(&url, &|_| None) {
        Ok(address) => assert!(address.to_string().starts_with("postgres:"), "{address}"),
        Err(why) => assert!(is_one_line(&why) && why.len() > 10, "{why:?}"),
    });
}

#[test]
fn a_password_of_any_letters_is_taken_and_never_shown() {
    let password = hostile_text().prop_map(|text| format!("hunter2{}", text.replace('\0', "")));
    check(1_000, (password, any::<bool>()), |(password, behind)| {
        let secret = encoded(&password);
        let url = if behind { format!("postgres://u@h/d?password={secret}") } else { format!("postgres://u:{secret}@h/d") };
        let address = Address::parse(&url, &|_| None).expect("a good URL");
        assert_eq!(format!("{address} {address:?}"), "postgres://h:5432/d Address(postgres://h:5432/d)");
    });
}
