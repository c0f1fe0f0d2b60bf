//! What a standby and a holder cost while nothing happens: memory, wake-ups, processor time of front and guard.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::stage::{self, Stage, Tool};
use crate::{Findings, number};

/// lockrun's default: a twelfth of a minute.
const HEARTBEAT: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Default, PartialEq)]
struct Use {
    /// A thread went to sleep; what ends that is a wake-up.
    sleeps: u64,
    /// A thread had to make room for another: the machine is busy.
    preempted: u64,
    /// On a processor, by proc_pid_schedstat.
    ran_ns: u64,
}

pub fn table_of(dir: &Path, findings: &mut Findings) {
    let span = Duration::from_secs(number("BENCH_IDLE_SECONDS", 30) as u64);
    println!("\nidle for {span:?}, lockrun with its defaults (a heartbeat each {HEARTBEAT:?})");
    println!("{:<30} {:>9} {:>12} {:>10} {:>10} {:>14}", "", "Pss kB", "private kB", "wake-ups", "preempted", "processor ms");
    let tools = [Some(stage::lockrun(dir, &[])), stage::flock(dir)];
    for tool in tools.into_iter().flatten() {
        of(&tool, dir, span, findings);
    }
}

fn of(tool: &Tool, dir: &Path, span: Duration, findings: &mut Findings) {
    let stage = Stage::new(tool, dir, 1, false);
    let ((holder, guard), (standby, standby_guard)) = (stage.holder().expect("it runs"), stage.waiter());
    let rows = [("holder", Some(holder)), ("holder's guard", guard), ("standby", Some(standby)), ("standby's guard", standby_guard)];
    let rows: Vec<(&str, i32)> = rows.into_iter().filter_map(|(what, pid)| Some((what, pid?))).collect();
    // It says again that it waits after 10 s, and then after 70.
    std::thread::sleep(Duration::from_secs(11));
    // What that leaves to do is done once nothing has moved for a second.
    let standby_alone = || [Some(standby), standby_guard].into_iter().flatten().map(used).collect::<Vec<Use>>();
    let mut seen = standby_alone();
    for _ in 0..30 {
        std::thread::sleep(Duration::from_secs(1));
        let now = standby_alone();
        if std::mem::replace(&mut seen, now.clone()) == now {
            break;
        }
    }
    let before: Vec<Use> = rows.iter().map(|(_, pid)| used(*pid)).collect();
    std::thread::sleep(span);
    let mut pss = [0, 0];
    for ((what, pid), before) in rows.iter().zip(&before) {
        let after = used(*pid);
        let (wakeups, ran) = (after.sleeps - before.sleeps, after.ran_ns - before.ran_ns);
        let preempted = after.preempted - before.preempted;
        let [whole, clean, dirty] = ["Pss:", "Private_Clean:", "Private_Dirty:"].map(|field| smaps(*pid, field));
        let name = format!("{} {what}", tool.name);
        println!("{name:<30} {whole:>9} {:>12} {wakeups:>10} {preempted:>10} {:>14.2}", clean + dirty, ran as f64 / 1e6);
        pss[usize::from(what.starts_with("standby"))] += whole;
        if tool.name != "lockrun" {
            continue;
        }
        let beats = span.div_duration_f64(HEARTBEAT);
        let each = wakeups as f64 / beats;
        match *what {
            "holder" => findings.at_most_number("wake-ups of an idle holder's front, per heartbeat", each, 2.0),
            "holder's guard" => findings.at_most_number("wake-ups of an idle holder's guard, per heartbeat", each, 2.0),
            _ => findings.at_most_number(&format!("wake-ups of an idle {what}"), wakeups as f64, 0.0),
        }
    }
    if tool.name == "lockrun" {
        findings.at_most_number("Pss of a holder's front and guard, MB", pss[0] as f64 / 1024.0, 6.0);
        findings.at_most_number("Pss of a standby's front and guard, MB", pss[1] as f64 / 1024.0, 6.0);
    }
}

/// Of all its threads.
fn used(pid: i32) -> Use {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it runs").filter_map(|task| Some(task.ok()?.path()));
    tasks.fold(Use::default(), |sum, task| {
        let status = fs::read_to_string(task.join("status")).unwrap_or_default();
        let schedstat = fs::read_to_string(task.join("schedstat")).unwrap_or_default();
        Use {
            sleeps: sum.sleeps + number_behind(&status, "voluntary_ctxt_switches:"),
            preempted: sum.preempted + number_behind(&status, "nonvoluntary_ctxt_switches:"),
            ran_ns: sum.ran_ns + number_behind(&schedstat, ""),
        }
    })
}

fn number_behind(text: &str, key: &str) -> u64 {
    let found = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok());
    found.unwrap_or(0)
}

fn smaps(pid: i32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("smaps_rollup");
    let line = text.lines().find(|line| line.starts_with(field)).expect("the field");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}
