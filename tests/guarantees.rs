//! docs/guarantees.md is held to what is there: each command of it names tests that exist, and its SQL refuses late writes.

use std::fs;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, named_params};

const DOCUMENT: &str = include_str!("../docs/guarantees.md");

/// `module::name` of every test below a file or folder; a file's own name is its module, as cargo shows it.
fn tests_in(paths: Vec<PathBuf>) -> Vec<String> {
    let mut files = paths;
    let mut names = vec![];
    while let Some(path) = files.pop() {
        if path.is_dir() {
            files.extend(fs::read_dir(&path).expect("a folder").map(|entry| entry.expect("an entry").path()));
            continue;
        }
        let module = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap_or_default();
        let tests = text.split("#[test]").skip(1).filter_map(|after| after.split_once("fn ")?.1.split_once('(').map(|(name, _)| name));
        names.extend(tests.map(|name| format!("{module}::{name}")));
        // One for each server, by a macro.
        let every = text.split("\npub fn ").skip(1).filter_map(|after| after.split_once("<S: Server>()").map(|(name, _)| name));
        names.extend(every.map(|name| format!("{module}::{name}")));
    }
    names
}

/// Where the tests of `cargo test --test SUITE` stand; nowhere, if there is no such suite.
fn suite(name: &str) -> Vec<PathBuf> {
    if name.is_empty() || !name.chars().all(|c| c.is_ascii_lowercase()) {
        return vec![];
    }
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests");
    [tests.join(name), tests.join(format!("{name}.rs"))].into_iter().filter(|path| path.exists()).collect()
}

#[test]
fn every_command_of_the_guarantees_names_tests_that_exist() {
    let rows = DOCUMENT.lines().filter(|line| line.starts_with('|')).filter_map(|line| line.rsplit('|').nth(1));
    let quoted = rows.flat_map(|cell| cell.split('`').skip(1).step_by(2));
    let mut commands = 0;
    for command in quoted {
        let (name, filter) = command.split_once(' ').unwrap_or((command, ""));
        let paths = suite(name);
        if paths.is_empty() {
            continue;
        }
        let tests = tests_in(paths);
        assert!(tests.iter().any(|test| test.contains(filter)), "`{command}`: no test of {name} has this in its name");
        commands += 1;
    }
    assert!(commands > 20, "the table is found");
}

fn sql() -> Vec<&'static str> {
    let blocks: Vec<&str> = DOCUMENT.split("```sql\n").skip(1).filter_map(|after| after.split_once("```")).map(|(sql, _)| sql).collect();
    assert_eq!(blocks.len(), 2);
    blocks
}

#[test]
fn a_write_with_an_older_token_is_refused_by_the_sql_of_the_guarantees() {
    let database = Connection::open_in_memory().expect("a database");
    database.execute_batch("CREATE TABLE report (id INTEGER PRIMARY KEY, body TEXT, fence BIGINT)").expect("a table");
    let [update, insert] = sql()[..] else { panic!("an UPDATE and an INSERT") };
    let write = |statement: &str, token: i64| {
        database.execute(statement, named_params! {":id": 1, ":body": token.to_string(), ":token": token}).expect("valid SQL")
    };
    assert_eq!(write(insert, 5), 1, "nothing was there");
    assert_eq!([write(update, 7), write(update, 7), write(update, 8), write(update, 7)], [1, 1, 1, 0], "rows changed");
    assert_eq!([write(insert, 7), write(insert, 8), write(insert, 9), write(update, 8)], [0, 1, 1, 0], "rows changed");
    let body: String = database.query_row("SELECT body FROM report", [], |row| row.get(0)).expect("one row");
    assert_eq!(body, "9");
}
