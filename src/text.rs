//! Text from outside, made fit to be shown: on one line, with no orders to a terminal, with no password. Must never know
//! what it is about.

use std::fmt::Write as _;

use serde::Serialize;

/// Ends a line, orders a terminal about, or turns around the letters that follow.
fn is_unfit(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// What a person, a store or a record says may hold anything.
pub fn one_line(text: &str) -> String {
    text.chars().map(|c| if is_unfit(c) { ' ' } else { c }).collect()
}

/// A line of JSON that says the same on a terminal as in a file: serde_json leaves DEL and what is above as it is.
pub fn json_line(value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).unwrap_or_default();
    let mut line = String::with_capacity(json.len() + 1);
    for c in json.chars() {
        match is_unfit(c) {
            // Only within a string can such a letter stand; all of them are below U+10000.
            true => drop(write!(line, "\\u{:04x}", u32::from(c))),
            false => line.push(c),
        }
    }
    line.push('\n');
    line
}

/// The text up to where a password may begin: behind `://` or `password=`, or at a colon with an `@` somewhere behind it.
/// Mistyped URLs, and URLs in the wrong place, are shown by this too.
pub fn without_password(text: &str) -> String {
    let lower = text.to_ascii_lowercase();
    let marks = ["://", "password="].map(|mark| lower.find(mark).map(|at| at + mark.len()));
    let colon = lower.find(':').filter(|colon| lower[*colon..].contains('@')).map(|colon| colon + 1);
    match marks.into_iter().chain([colon]).flatten().min() {
        Some(end) => format!("{}…", &text[..end]),
        None => text.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_ends_the_line_or_orders_a_terminal_about() {
        assert_eq!(one_line("a\nb\x1b[2J\u{9b}1m\u{202e}\u{2028}é"), "a b [2J 1m  é");
    }

    #[test]
    fn json_says_all_of_it_in_letters_that_do_nothing() {
        let line = json_line(&"a\n\x1b\u{9b}\u{7f}\u{202e}é\"");
        assert_eq!(line, "\"a\\n\\u001b\\u009b\\u007f\\u202eé\\\"\"\n");
        assert_eq!(serde_json::from_str::<String>(&line).expect("JSON"), "a\n\x1b\u{9b}\u{7f}\u{202e}é\"");
    }

    #[test]
    fn a_password_is_left_out_and_the_rest_is_shown() {
        for (text, shown) in [
            ("postgres://u:secret@h/d", "postgres:…"),
            ("mysql://h/d?pw=secret", "mysql://…"),
            ("\"redis://:secret@h\"", "\"redis:…"),
            ("postgres//u:secret@h/d", "postgres//u:…"),
            ("host=h Password=secret user=u", "host=h Password=…"),
            ("a:b", "a:b"),
            ("dir/a@b:c.db", "dir/a@b:c.db"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }
}
