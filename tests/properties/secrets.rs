//! A password in a store's URL, wherever the URL was put by mistake and however it was mistyped, is in no line.

use std::ffi::OsString;

use lockrun::cli::{self, Parsed};
use lockrun::config::{Config, Environment};
use proptest::prelude::*;
use proptest::sample::select;

use crate::check;

/// (the URL, what must not be shown).
fn url() -> impl Strategy<Value = (String, String)> {
    let forms = select(vec![
        "postgres://u:PASSWORD@h/d",
        "postgresql://:PASSWORD@h:5432/d?sslmode=require",
        "etcd://root:PASSWORD@h1,h2",
        "redis://:PASSWORD@h/0",
        "rediss://u:PASSWORD@h",
        "mysql://u:PASSWORD@h/d",
        "sqlite://u:PASSWORD@h/x.db",
        "POSTGRES://u:PASSWORD@h/d",
        "postgres+asyncpg://u:PASSWORD@h/d",
        "my_db://u:PASSWORD@h/d",
        "postgres//u:PASSWORD@h/d",
        "postgres:/u:PASSWORD@h/d",
        "//u:PASSWORD@h/d",
        "user_1:PASSWORD@h",
        "postgres://h/d?user=u&password=PASSWORD",
        "host=h user=u password=PASSWORD dbname=d",
    ]);
    let before = select(vec!["", "", "", "\"", "'", " ", "\t", "\n", "DATABASE_URL=", "jdbc:", "sqlite:", "\u{feff}", "é"]);
    let after = select(vec!["", "", "\"", "'", " ", "\n", "\r\n", "?x=@", " --name a"]);
    let around = || select(vec!["", "@", ":", "/", "%40", "%2F%", " ", "'", "\"", "\n", "#", "?", "&", "=", "…", "://", "password=", "\\"]);
    (forms, before, after, around(), around(), "[a-z0-9]{8}").prop_map(|(form, before, after, left, right, secret)| {
        let secret = format!("hunter{secret}");
        (format!("{before}{}{after}", form.replace("PASSWORD", &format!("{left}{secret}{right}"))), secret)
    })
}

/// Argument lists and variables with URL in the place of a URL, or of something else.
fn places() -> impl Strategy<Value = (Vec<&'static str>, &'static str)> {
    let arguments: Vec<Vec<&str>> = vec![
        vec!["--db", "URL", "--", "true"],
        vec!["--db=URL", "--", "true"],
        vec!["--db", "URL", "celery", "beat"],
        vec!["--db=URL", "celery", "beat"],
        vec!["celery", "--db", "URL"],
        vec!["URL", "--", "true"],
        vec!["URL"],
        vec!["--database", "URL", "--", "true"],
        vec!["--database=URL", "--", "true"],
        vec!["-d", "URL", "--", "true"],
        vec!["--db", "x.db", "--name", "URL", "--", "true"],
        vec!["--db", "x.db", "--ttl=URL", "--", "true"],
        vec!["--db", "x.db", "--on-lost", "URL", "--", "true"],
        vec!["--db", "x.db", "--signal-to", "URL", "--", "true"],
        vec!["--db", "x.db", "--nonblock=URL", "--", "true"],
        vec!["--db", "x.db", "--instance", "URL", "--", "true"],
        vec!["--db", "x.db", "-c", "URL"],
        vec!["--db", "x.db", "-EURL", "--", "true"],
        vec!["--db", "URL", "--db", "URL", "--", "true"],
        vec!["status", "URL"],
        vec!["status", "--db", "URL", "--json=URL"],
        vec!["check", "--db", "x.db", "--token", "URL"],
        vec!["check", "--db", "URL"],
        vec!["pause", "--db", "URL"],
    ];
    let variables = select(vec!["", "", "LOCKRUN_DB", "LOCKRUN_DB_FILE", "LOCKRUN_NAME", "LOCKRUN_TTL", "LOCKRUN_LOG", "LOCKRUN_INSTANCE"]);
    let plain = vec!["--", "true"];
    prop_oneof![(select(arguments), Just("")), (Just(plain), variables.prop_filter("one", |variable| !variable.is_empty()))]
}

#[test]
fn a_password_is_never_shown() {
    check(1_500, (url(), places()), |((url, secret), (words, variable))| {
        let argv = ["lockrun"].into_iter().chain(words).map(|word| OsString::from(word.replace("URL", &url)));
        let argv: Vec<OsString> = argv.collect();
        let mut variables = vec![];
        if !variable.is_empty() {
            variables.push((OsString::from(variable), OsString::from(&url)));
        }
        let failure = match cli::parse(&argv) {
            Err(failure) => failure,
            Ok(Parsed::Print(text)) => panic!("{text}"),
            Ok(Parsed::Cli(cli)) => match Config::new(*cli, Environment::new(variables), 1) {
                Err(failure) => failure,
                // A server's address is good; it is shown in what follows.
                Ok(config) => {
                    let target = match &config {
                        Config::Run(run) => &run.target,
                        Config::Status { target, .. } | Config::Check { target, .. } => target,
                    };
                    assert!(target.address.is_server(), "{argv:?}: accepted");
                    assert!(!format!("{} {target:?}", target.address).contains(&secret), "{target:?}");
                    return;
                }
            },
        };
        assert_eq!(failure.code, 125);
        assert!(!failure.line.contains(&secret), "{failure}");
    });
}

#[test]
fn a_password_in_a_file_is_never_shown() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let file = dir.path().join("secret");
    check(500, url(), |(url, secret)| {
        std::fs::write(&file, &url).expect("a file");
        let shown = match lockrun::config::value::from_file(file.as_os_str()) {
            Ok(store) => format!("{store:?}"),
            Err(why) => why,
        };
        assert!(!shown.contains(&secret), "{shown}");
    });
}
