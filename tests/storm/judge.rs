//! Judges a history: overlaps, tokens, how long nobody ran against what the faults allow, and how each copy ended. Pure: must
//! never look at anything but the lines that it is given.

use std::collections::BTreeMap;

use crate::faults::{self, LATE, Leaves, Rule, SLACK, Table, Times, sqlite};
use crate::history::{ALL, Event, Line};

const NO_FAULT: &str = "(none: the command ended)";

/// One injected fault. Times in microseconds, as in the history.
struct Span {
    rule: &'static Rule,
    ring: String,
    from: i64,
    to: i64,
}

impl Span {
    /// Until then nobody need run.
    fn idle_until(&self) -> i64 {
        let after_start = self.from + micros(self.rule.after_start);
        let after_end = self.rule.after_end.map_or(after_start, |after| self.to + micros(after));
        after_start.max(after_end) + micros(SLACK)
    }

    /// Until then a copy may end because of it: one that was stopped hears of it when it is woken.
    fn ends_until(&self) -> i64 {
        self.idle_until().max(self.to + micros(SLACK))
    }
}

#[derive(Default, Clone, Debug, PartialEq)]
pub struct Row {
    pub injected: usize,
    pub hand_overs: usize,
    /// The longest time with nobody running, and what was allowed then, in microseconds.
    pub longest: i64,
    pub allowed: i64,
}

#[derive(Default, Debug)]
pub struct Verdict {
    /// What is wrong, and the number of the line (from 0) that shows it.
    pub problems: Vec<(usize, String)>,
    pub rows: BTreeMap<&'static str, Row>,
    pub starts: usize,
    pub overlaps: usize,
    /// Overlaps that lie in the window that lease.md 5 names.
    pub excused: usize,
    pub tokens_fallen: usize,
    pub ends: BTreeMap<i32, usize>,
}

/// `lines` in any order; the numbers in the verdict are places in `lines` sorted by time.
pub fn judge(lines: &mut [Line], table: &Table) -> Verdict {
    lines.sort_by_key(|line| line.t);
    let lines = &*lines;
    let spans = spans(lines, table);
    let mut verdict = Verdict::default();
    for span in &spans {
        verdict.rows.entry(span.rule.name).or_default().injected += 1;
    }
    let mut rings: Vec<&str> = lines.iter().map(|line| line.ring.as_str()).filter(|ring| *ring != ALL).collect();
    rings.sort_unstable();
    rings.dedup();
    for ring in rings {
        let spans: Vec<&Span> = spans.iter().filter(|span| span.ring == ring || span.ring == ALL).collect();
        let own: Vec<(usize, &Line)> = lines.iter().enumerate().filter(|(_, line)| line.ring == ring).collect();
        judge_ring(&own, &spans, &table.times, &mut verdict);
    }
    verdict.problems.sort();
    verdict
}

fn spans(lines: &[Line], table: &Table) -> Vec<Span> {
    let last = lines.last().map_or(0, |line| line.t);
    let over: BTreeMap<u64, i64> =
        lines.iter().filter_map(|line| if let Event::Over { id } = line.event { Some((id, line.t)) } else { None }).collect();
    let span = |line: &Line| {
        let Event::Fault { id, kind, .. } = &line.event else { return None };
        let rule = table.by_name(kind).expect("a fault of the table");
        Some(Span { rule, ring: line.ring.clone(), from: line.t, to: *over.get(id).unwrap_or(&last) })
    };
    lines.iter().filter_map(span).collect()
}

fn judge_ring(lines: &[(usize, &Line)], spans: &[&Span], times: &Times, verdict: &mut Verdict) {
    let mut last_token = None;
    let mut closed = false;
    for (place, (number, line)) in lines.iter().enumerate() {
        let mut wrong = |text: String| verdict.problems.push((*number, format!("{}: {text}", line.ring)));
        match &line.event {
            Event::Start { token, idle_since, .. } => {
                if last_token.is_some_and(|last| *token <= last) {
                    wrong(format!("token {token} does not rise above {}", last_token.unwrap_or_default()));
                    verdict.tokens_fallen += 1;
                }
                last_token = last_token.max(Some(*token));
                verdict.starts += 1;
                judge_gap(*number, line, *idle_since, spans, true, verdict);
            }
            Event::Overlap { token, pid, with } => {
                let alone = |later: &&(usize, &Line)| matches!(&later.1.event, Event::Alone { pid: other, .. } if other == pid);
                let next = |later: &&(usize, &Line)| matches!(later.1.event, Event::Start { .. } | Event::Close { .. });
                let later = &lines[place + 1..];
                let until = later.iter().find(alone).or_else(|| later.iter().find(next)).map_or(line.t, |later| later.1.t);
                verdict.overlaps += 1;
                if spans.iter().any(|span| is_excused(span, times, line.t, until)) {
                    verdict.excused += 1;
                } else {
                    wrong(format!("overlap: {token} ran beside {with} for {} ms", (until - line.t) / 1000));
                }
            }
            Event::Exit { copy, code, .. } => {
                *verdict.ends.entry(*code).or_default() += 1;
                if let Some(text) = judge_exit(*code, line.t, closed, spans) {
                    wrong(format!("copy {copy} ended with {code}: {text}"));
                }
            }
            Event::Said { copy, text } => wrong(format!("copy {copy} said: {text}")),
            Event::Close { idle_since } => {
                closed = true;
                judge_gap(*number, line, *idle_since, spans, false, verdict);
            }
            Event::Open | Event::Alone { .. } | Event::Fault { .. } | Event::Over { .. } => {}
        }
    }
}

/// Nobody ran from `since` to this line: the faults that touch this time must allow it.
fn judge_gap(number: usize, line: &Line, since: i64, spans: &[&Span], hand_over: bool, verdict: &mut Verdict) {
    let mut until = since + micros(SLACK);
    let mut cause = NO_FAULT;
    // In the order of their beginnings: one that begins before the ring need be well again puts that moment off.
    for span in spans.iter().filter(|span| span.from <= line.t && span.idle_until() >= since) {
        if span.from <= until {
            if span.rule.name != LATE {
                cause = span.rule.name;
            }
            until = until.max(span.idle_until());
        }
    }
    let (idle, allowed) = (line.t - since, until - since);
    let row = verdict.rows.entry(cause).or_default();
    row.hand_overs += usize::from(hand_over);
    if idle > row.longest {
        (row.longest, row.allowed) = (idle, allowed);
    }
    if idle > allowed {
        let text = format!("{}: nobody ran for {} ms, allowed were {} ({cause})", line.ring, idle / 1000, allowed / 1000);
        verdict.problems.push((number, text));
    }
}

fn is_excused(span: &Span, times: &Times, from: i64, until: i64) -> bool {
    let window = micros(times.heartbeat + times.heartbeat / 2 + times.kill_time + SLACK);
    span.rule.leaves == Leaves::TwoForAMoment && span.from <= from && until <= span.to + window
}

/// What is wrong with a copy that ended so, if anything is.
fn judge_exit(code: i32, at: i64, closed: bool, spans: &[&Span]) -> Option<String> {
    let near = |span: &&&Span| span.from <= at && at <= span.ends_until();
    let damaged = || {
        let before = spans.iter().filter(|span| span.from <= at);
        let damage = |span: &&Span| matches!(span.rule.leaves, Leaves::Damage | Leaves::Truncated);
        // The last that harmed it or made it anew; a copy may take some time to say so.
        let last = before.clone().filter(|span| damage(span) || sqlite::makes_anew(span.rule)).max_by_key(|span| span.from);
        last.is_some_and(damage) || before.filter(near).any(damage)
    };
    let unusable = || spans.iter().filter(near).any(|span| matches!(span.rule.leaves, Leaves::Unusable | Leaves::ReadOnly));
    let unmapped = || spans.iter().filter(near).any(|span| matches!(span.rule.leaves, Leaves::Truncated | Leaves::ReadOnly));
    let faulty = || spans.iter().any(|span| near(&span)) || damaged();
    let good = match code {
        _ if faults::OWN_CODES.contains(&code) => true,
        // 128 + TERM or KILL, of the command or of the front.
        76 | 137 | 143 => closed || faulty(),
        125 => damaged() || unusable(),
        135 => unmapped(),
        _ => false,
    };
    if good {
        return None;
    }
    Some(match code {
        76 | 137 | 143 => "with no fault near".to_string(),
        125 => "though nothing had damaged or refused the database".to_string(),
        _ => "which nothing explains".to_string(),
    })
}

fn micros(millis: i64) -> i64 {
    millis * 1000
}

/// The table, and the verdict in words.
pub fn describe(verdict: &Verdict) -> String {
    let mut text = format!("{:<26} {:>8} {:>10} {:>12} {:>12}\n", "fault", "injected", "hand-overs", "longest gap", "allowed");
    for (name, row) in &verdict.rows {
        let seconds = |micros: i64| format!("{:.2} s", micros as f64 / 1e6);
        let (longest, allowed) = (seconds(row.longest), seconds(row.allowed));
        text += &format!("{name:<26} {:>8} {:>10} {longest:>12} {allowed:>12}\n", row.injected, row.hand_overs);
    }
    let ends: Vec<String> = verdict.ends.iter().map(|(code, times)| format!("{code}: {times}")).collect();
    text += &format!("copies ended with (code: times) {}\n", ends.join(", "));
    text += &format!(
        "{} starts, {} overlaps ({} in the window of both files removed), {} tokens that did not rise, {} problems\n",
        verdict.starts,
        verdict.overlaps,
        verdict.excused,
        verdict.tokens_fallen,
        verdict.problems.len()
    );
    text
}
