//! The rules of the house, checked on the source text of src. Tests inside it (`#[cfg(test)]`) are read like the rest.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// `path` is relative to src; `code` has its comments and strings blanked, line by line.
struct Source {
    path: String,
    text: String,
    code: Vec<String>,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = vec![];
    collect(&root, &mut files);
    files.sort();
    assert!(files.len() > 20, "src is found");
    files
        .into_iter()
        .map(|file| {
            let text = fs::read_to_string(&file).expect("readable");
            let path = file.strip_prefix(&root).expect("below src").to_string_lossy().into_owned();
            Source { path, code: blanked(&text), text }
        })
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => collect(&path, files),
            false if path.extension().is_some_and(|extension| extension == "rs") => files.push(path),
            false => {}
        }
    }
}

/// Line comments and the insides of strings become spaces. Block comments and nested raw strings are not used in src.
fn blanked(text: &str) -> Vec<String> {
    let mut code = String::new();
    let mut rest = text.chars().peekable();
    let mut last = ' ';
    while let Some(letter) = rest.next() {
        match letter {
            '/' if rest.peek() == Some(&'/') => while rest.next_if(|letter| *letter != '\n').is_some() {},
            '"' if last != '\'' => {
                code.push('"');
                while let Some(inside) = rest.next() {
                    match inside {
                        '\\' => drop(rest.next_if(|letter| *letter != '\n')),
                        '"' => break,
                        '\n' => code.push('\n'),
                        _ => {}
                    }
                }
                code.push('"');
            }
            _ => code.push(letter),
        }
        last = letter;
    }
    code.lines().map(str::to_string).collect()
}

/// The modules of this crate that a file names: `crate::x`, also in `use crate::{x, y}`, and `super::x` from the room's door.
fn imports(source: &Source) -> BTreeSet<String> {
    let code = source.code.join("\n");
    let mut found = BTreeSet::new();
    for prefix in ["crate::", "lockrun::"] {
        for (at, _) in code.match_indices(prefix) {
            let after = &code[at + prefix.len()..];
            let names = match after.strip_prefix('{') {
                Some(list) => top_level(&list[..list.find(';').unwrap_or(list.len())]),
                None => vec![after],
            };
            found.extend(names.into_iter().map(word).filter(|name| !name.is_empty()));
        }
    }
    found
}

/// The parts of `a, b::{c, d}, e};` between the commas that stand in no inner braces.
fn top_level(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, vec![]);
    for (at, letter) in list.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        if depth < 0 {
            parts.push(list[start..at].trim());
            break;
        }
    }
    parts
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|letter| letter.is_ascii_lowercase() || *letter == '_').collect()
}

fn room(path: &str) -> &str {
    path.split('/').next().unwrap_or(path).trim_end_matches(".rs")
}

/// `main → app → {config → cli, status, http} → supervisor → {store, guard, clock, told} → lease → exit`: what each may see.
fn may_see(room: &str) -> &'static [&'static str] {
    match room {
        "exit" | "text" => &[],
        "lease" => &["exit"],
        "store" | "clock" => &["lease"],
        "guard" => &["lease", "exit"],
        "signals" => &["guard"],
        "error" => &["exit", "text"],
        "cli" => &["error", "exit", "text"],
        "config" => &["cli", "error", "exit", "lease", "store", "text"],
        "logging" => &["config", "text"],
        "report" => &["exit", "lease"],
        "told" => &["lease"],
        "http" => &["clock", "error", "lease", "report", "text", "told"],
        "status" => &["clock", "config", "error", "exit", "lease", "report", "store", "text"],
        "supervisor" => &["clock", "guard", "lease", "logging", "report", "signals", "store", "told"],
        "app" => &[
            "clock",
            "config",
            "error",
            "exit",
            "guard",
            "http",
            "lease",
            "logging",
            "report",
            "signals",
            "status",
            "store",
            "supervisor",
            "text",
            "told",
        ],
        "main" => &["app", "cli", "clock", "config", "error", "exit", "logging", "signals"],
        "lib" => &[],
        room => panic!("src/{room}: a new room; say here what it may see"),
    }
}

#[test]
fn imports_point_down_only() {
    for source in sources() {
        let room = room(&source.path);
        for seen in imports(&source) {
            assert!(seen == room || may_see(room).contains(&seen.as_str()), "src/{}: {room} must not see {seen}", source.path);
        }
    }
}

/// Finds a word that is not a part of a longer one.
fn has_word(line: &str, wanted: &str) -> bool {
    let part = |letter: char| letter.is_alphanumeric() || letter == '_';
    line.match_indices(wanted)
        .any(|(at, _)| !line[..at].chars().next_back().is_some_and(part) && !line[at + wanted.len()..].chars().next().is_some_and(part))
}

fn none_has(within: &str, words: &[&str]) {
    for source in sources().iter().filter(|source| source.path.starts_with(within)) {
        for (number, line) in source.code.iter().enumerate() {
            for wanted in words {
                assert!(!has_word(line, wanted), "src/{}:{}: {wanted}", source.path, number + 1);
            }
        }
    }
}

#[test]
fn the_lease_machine_has_no_clock_no_input_and_no_runtime() {
    let foreign = [
        "tokio",
        "nix",
        "libc",
        "tracing",
        "rusqlite",
        "serde",
        "Instant",
        "SystemTime",
        "std::io",
        "std::fs",
        "std::net",
        "std::process",
        "std::thread",
        "std::os",
        "std::env",
        "async",
        "await",
        "unsafe",
    ];
    none_has("lease", &foreign);
    for source in sources().iter().filter(|source| source.path.starts_with("lease")) {
        for line in source.code.iter().filter(|line| line.trim_start().starts_with("use ")) {
            let from = line.trim_start().trim_start_matches("use ").split("::").next().unwrap_or_default();
            let own_enum = from.starts_with(|letter: char| letter.is_ascii_uppercase());
            assert!(own_enum || ["std", "super", "crate"].contains(&from), "src/{}: {line}", source.path);
        }
        assert!(!source.code.iter().any(|line| line.contains("use std::{")), "src/{}: one line for each part of std", source.path);
    }
}

#[test]
fn only_the_clock_reads_a_clock() {
    for source in sources().iter().filter(|source| source.path != "clock.rs") {
        for (number, line) in source.code.iter().enumerate() {
            let here = format!("src/{}:{}: only clock.rs reads a clock: {line}", source.path, number + 1);
            // How long the front waits for the guard to end after all is over decides nothing about a lease.
            let dismissal = source.path == "guard/mod.rs" && line.contains("Instant::now()") && line.contains("end");
            assert!(dismissal || !line.contains("Instant::now"), "{here}");
            // The time that a log line shows.
            let shown = source.path == "logging.rs" && line.contains("format_rfc3339");
            assert!((shown || !line.contains("SystemTime::now")) && !has_word(line, "clock_gettime"), "{here}");
        }
    }
}

/// `query_row` resets the statement and hides that a COMMIT inside it failed (lease-facts.md 0).
#[test]
fn no_write_to_sqlite_is_a_query() {
    let mut queries = 0;
    for source in sources().iter().filter(|source| source.path.starts_with("store")) {
        for (at, _) in source.text.match_indices("query_row").chain(source.text.match_indices("query_map")) {
            queries += 1;
            // The statement may stand in a constant or variable just above.
            let start = source.text[..at].char_indices().rev().nth(500).map_or(0, |(start, _)| start);
            let statement = &source.text[start..];
            let near: String = statement.chars().take(700).collect();
            let call: String = source.text[at..].chars().take(200).collect();
            for verb in ["INSERT ", "UPDATE ", "DELETE "] {
                assert!(!call.contains(&format!("\"{verb}")), "src/{}: {verb}in {call}", source.path);
            }
            assert!(!near.contains("RETURNING"), "src/{}: a write that returns rows near {call}", source.path);
        }
    }
    assert!(queries > 3, "the queries are found");
}

#[test]
fn nothing_is_printed_past_the_log_and_nothing_is_left_unfinished() {
    for source in sources() {
        for (number, line) in source.code.iter().enumerate() {
            for word in ["todo!", "dbg!", "unimplemented!", "print!", "println!", "eprint!", "eprintln!"] {
                let found = line.match_indices(word).any(|(at, _)| !line[..at].ends_with(|letter: char| letter.is_alphanumeric()));
                assert!(!found, "src/{}:{}: {word}", source.path, number + 1);
            }
        }
    }
}

#[test]
fn every_unsafe_says_why_it_is_sound() {
    let mut count = 0;
    for source in sources() {
        let lines: Vec<&str> = source.text.lines().collect();
        for number in (0..source.code.len()).filter(|number| has_word(&source.code[*number], "unsafe")) {
            count += 1;
            let above = &lines[number.saturating_sub(4)..number];
            assert!(above.iter().any(|line| line.contains("SAFETY:")), "src/{}:{}: no SAFETY comment", source.path, number + 1);
        }
    }
    assert!(count > 5, "they are found");
}

#[test]
fn files_are_short_and_say_first_what_they_hold() {
    for source in sources() {
        let lines = source.text.lines().count();
        assert!(lines < 450, "src/{}: {lines} lines", source.path);
        assert!(source.text.starts_with("//!"), "src/{}: opens without //!", source.path);
    }
}

#[test]
fn the_checks_of_this_file_see_what_they_must() {
    let text = "use crate::{a, b::{c, d}, e};\nlet x = crate::f::g(\"crate::h\"); // crate::i\nlet q = '\"'; crate::j::K;\n";
    let source = Source { path: "x.rs".into(), code: blanked(text), text: text.into() };
    assert_eq!(imports(&source).into_iter().collect::<String>(), "abefj");
    assert!(has_word("x = unsafe {", "unsafe") && !has_word("my_unsafe", "unsafe"));
}

#[test]
fn every_rule_that_the_mutations_break_still_stands_where_they_break_it() {
    let check = std::process::Command::new("/usr/bin/python3")
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mutation"), "--check"])
        .output()
        .expect("python3; tests/run installs it");
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stderr));
}
