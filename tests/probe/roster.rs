//! The list of a tree's processes: who was started, and who of them is alive. Used by the helper program and by the tests.
//! Must never take another process for a listed one: an entry carries its start time beside its pid.

use std::fs;
use std::io::Write;
use std::path::Path;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub role: String,
    pub pid: i32,
    /// Field 22 of proc_pid_stat(5).
    started: u64,
}

/// Adds this process to DIR/pids.
pub fn enter(dir: &Path, role: &str) {
    let pid = std::process::id() as i32;
    let (_, started) = look(pid).expect("this process is there");
    let mut file = fs::File::options().append(true).create(true).open(dir.join("pids")).expect("the roster");
    // One write, so that lines of two processes never mix.
    file.write_all(format!("{role} {pid} {started}\n").as_bytes()).expect("the roster is writable");
}

pub fn all(dir: &Path) -> Vec<Member> {
    let text = fs::read_to_string(dir.join("pids")).unwrap_or_default();
    // A write that crosses a page is seen in two parts: what has no end yet is not there yet.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| {
            let mut words = line.split(' ');
            let mut word = || words.next().expect("role, pid and start");
            Member { role: word().to_string(), pid: word().parse().expect("a pid"), started: word().parse().expect("a time") }
        })
        .collect()
}

pub fn alive(dir: &Path) -> Vec<Member> {
    all(dir).into_iter().filter(is_alive).collect()
}

/// Present, the same one as listed, and not a zombie.
pub fn is_alive(member: &Member) -> bool {
    look(member.pid).is_some_and(|(state, started)| started == member.started && state != 'Z' && state != 'X')
}

/// `none`, or the roles.
pub fn describe(members: &[Member]) -> String {
    if members.is_empty() {
        return "none".to_string();
    }
    members.iter().map(|member| member.role.as_str()).collect::<Vec<_>>().join(" ")
}

fn look(pid: i32) -> Option<(char, u64)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; after it come the fields from the third on.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}
