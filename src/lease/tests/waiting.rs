//! Before the lease is ours.

use super::*;

fn waiting(actions: &[Action]) -> usize {
    reports(actions).into_iter().filter(|report| matches!(report, Report::Waiting { .. })).count()
}

#[test]
fn the_claim_is_a_swap_on_exactly_the_version_that_was_judged() {
    let mut run = Run::new(settings());
    assert_eq!(run.first, [Action::Read(Request(1))]);
    let free = record(None, 41);
    run.shows(1.0, seen(&free, 0.0));
    let (expect, claim) = run.sent.expect("a claim");
    assert_eq!((expect, claim.holder, claim.asked_at, claim.ttl), (version(&free), Some(holder("me")), at(1.0), secs(60.0)));
}

#[test]
fn a_token_is_the_wall_clock_in_milliseconds_and_above_the_last_one() {
    let claimed_after = |token| {
        let mut run = Run::new(settings());
        run.shows(1.0, seen(&record(None, token), 0.0));
        run.record().token
    };
    assert_eq!(claimed_after(41), Token(WALL_MS + 1000));
    assert_eq!(claimed_after(WALL_MS + 999_999), Token(WALL_MS + 1_000_000));
}

#[test]
fn a_grant_starts_the_command_and_its_deadline_counts_from_the_send() {
    let mut run = claiming(settings());
    let actions = run.done(2.4);
    let token = run.record().token;
    assert_eq!(orders(&actions), [&Action::Deadline(Tenure(1), at(58.5)), &Action::Spawn(Tenure(1), token)]);
    assert_eq!(reports(&actions), [&Report::Acquired { token, waited: secs(2.4), holder: HolderId::new("me") }]);
}

#[test]
fn a_grant_that_arrives_too_late_starts_nothing() {
    let mut run = claiming(settings());
    let claim = run.record().clone();
    run.silence_until(48.5);
    run.tick(48.6);
    let reading = run.silence_until(52.0);
    assert!(reads(&reading) > 0);
    let actions = run.shows(52.0, seen(&claim, 8.0));
    assert_eq!((orders(&actions).len(), reports(&actions)), (0, vec![&Report::Recovered, &Report::TooLate]));
    assert_eq!(writes(&actions)[0].holder, None, "it is given back");
    let actions = run.done(52.1);
    assert_eq!((outcome(&actions), reads(&actions), run.machine.tenure()), (None, 1, Tenure(2)), "and waited for again");
}

#[test]
fn a_lost_reply_is_recognised_and_counts_from_its_own_send() {
    let mut run = claiming(settings());
    let claim = run.record().clone();
    run.silence_until(3.0);
    let actions = run.shows(4.0, seen(&claim, 56.0));
    assert_eq!(orders(&actions), [&Action::Deadline(Tenure(1), at(58.5)), &Action::Spawn(Tenure(1), claim.token)]);
}

#[test]
fn a_late_reply_is_not_credited_to_another_write() {
    let mut run = claiming(settings());
    let (first, claim) = (run.request, run.record().clone());
    run.tick(2.5);
    run.silence_until(3.0);
    run.shows(3.0, absent());
    assert_ne!(run.record().write, claim.write, "a second claim, with a fresh id");
    let late = Event::Reply { request: first, reply: Reply::Swapped(Swap::Done(version(&claim))) };
    assert_eq!(run.handle(3.1, late), []);
    assert!(!run.machine.is_holding());
}

#[test]
fn without_a_common_clock_the_version_must_stand_from_after_the_first_reply() {
    let mut run = Run::new(settings());
    let held = Snapshot { evidence: Evidence::NoClock, ..seen(&record(Some("other"), 5), 0.0) };
    run.shows(2.0, held.clone());
    for second in 3..68 {
        run.silence_until(f64::from(second));
        assert_eq!(writes(&run.shows(f64::from(second), held.clone())).len(), 0, "at {second}");
    }
    run.silence_until(68.0);
    run.tick(68.0);
    assert_eq!(writes(&run.shows(68.0, held)).len(), 1, "66 s after 2 s");
}

#[test]
fn a_version_that_another_process_saw_earlier_counts_from_there() {
    let mut run = Run::new(settings());
    let held = Snapshot { evidence: Evidence::NoClock, seen_at: Some(at(-66.0)), ..seen(&record(Some("other"), 5), 0.0) };
    assert_eq!(writes(&run.shows(0.1, held)).len(), 1);
}

#[test]
fn a_renewal_of_the_holder_starts_the_watching_anew() {
    let mut run = Run::new(settings());
    let held = Snapshot { evidence: Evidence::NoClock, ..seen(&record(Some("other"), 5), 0.0) };
    run.shows(0.0, held.clone());
    run.tick(50.0);
    let renewed = Snapshot { version: Version::At("renewed".into()), ..held };
    run.shows(50.0, renewed.clone());
    run.tick(70.0);
    assert_eq!(writes(&run.shows(70.0, renewed)).len(), 0);
}

#[test]
fn a_conflict_is_looked_at_again_and_not_a_reason_to_end() {
    let mut run = claiming(settings());
    assert_eq!(run.conflict(0.1), [Action::Read(Request(3))]);
}

#[test]
fn what_may_have_changed_is_looked_at_at_once() {
    let mut run = Run::new(settings());
    let held = record(Some("other"), 5);
    let actions = run.shows(0.1, seen(&held, 40.0));
    assert_eq!(actions.last(), Some(&Action::Watch(version(&held))));
    assert_eq!(run.handle(0.2, Event::Changed), [Action::Read(Request(2))]);
    run.shows(0.3, seen(&held, 40.0));
    assert_eq!(run.handle(0.4, Event::ClockStepped), [Action::Read(Request(3))]);
}

#[test]
fn a_signal_while_waiting_ends_it_at_once() {
    let mut run = Run::new(settings());
    run.shows(0.1, seen(&record(Some("other"), 5), 40.0));
    assert_eq!(run.signal(1.0, 15), [Action::Exit(Outcome::Signal(15))]);
    assert_eq!(run.machine.deadline(), None);
}

#[test]
fn a_signal_while_a_claim_is_in_flight_gives_a_landing_claim_back() {
    let mut run = claiming(settings());
    assert_eq!(run.signal(0.1, 15), []);
    let actions = run.done(0.2);
    assert_eq!((orders(&actions).len(), writes(&actions)[0].holder.clone()), (0, None));
    assert_eq!(outcome(&run.done(0.3)), Some(&Outcome::Signal(15)));

    let mut run = claiming(settings());
    run.signal(0.1, 15);
    assert_eq!(run.conflict(0.2), [Action::Exit(Outcome::Signal(15))]);
}

#[test]
fn a_nested_lockrun_does_not_wait_for_the_one_around_it() {
    let mut run = Run::new(Settings { outer: vec![HolderId::new("outer")], ..settings() });
    assert_eq!(outcome(&run.shows(0.1, seen(&record(Some("outer"), 5), 40.0))), Some(&Outcome::WouldWaitForItself));
}

#[test]
fn with_n_a_held_lease_is_an_answer_at_once() {
    let mut run = Run::new(Settings { wait: Wait::No, ..settings() });
    let expected = Outcome::NotAcquired(Some(holder("other")), Some(secs(40.0)));
    assert_eq!(outcome(&run.shows(0.1, seen(&record(Some("other"), 5), 40.0))), Some(&expected));
}

#[test]
fn with_n_a_store_that_is_busy_for_a_moment_is_tried_again_and_then_unreachable() {
    let mut run = Run::new(Settings { wait: Wait::No, ..settings() });
    assert_eq!(outcome(&run.reply(2.4, unknown())), None);
    assert_eq!(reads(&run.silence_until(2.8)), 1);
    assert_eq!(outcome(&run.reply(2.8, unknown())), Some(&Outcome::Unreachable("no route".into())));
}

#[test]
fn a_wait_that_runs_out_says_who_held_it() {
    let mut run = Run::new(Settings { wait: Wait::For(secs(3.0)), ..settings() });
    run.shows(0.1, seen(&record(Some("other"), 5), 40.0));
    run.silence_until(3.0);
    assert_eq!(outcome(&run.tick(3.0)), Some(&Outcome::NotAcquired(Some(holder("other")), None)));
}

#[test]
fn a_wait_that_runs_out_on_errors_says_unreachable() {
    let mut run = Run::new(Settings { wait: Wait::For(secs(3.0)), ..settings() });
    run.reply(0.1, unknown());
    run.silence_until(3.0);
    assert_eq!(outcome(&run.tick(3.0)), Some(&Outcome::Unreachable("no answer in time".into())));
}

#[test]
fn a_claim_that_is_in_flight_when_the_wait_runs_out_is_waited_for() {
    let mut run = claiming(Settings { wait: Wait::For(secs(1.0)), ..settings() });
    assert_eq!(run.tick(1.0), []);
    assert_eq!(orders(&run.done(1.1)).len(), 2, "started");
}

#[test]
fn refused_while_waiting_ends_it_at_once() {
    let mut run = Run::new(settings());
    let actions = run.reply(0.1, Reply::Refused("not a database".into()));
    assert_eq!(outcome(&actions), Some(&Outcome::Refused("not a database".into())));
}

#[test]
fn an_error_while_waiting_is_said_once_and_its_end_too() {
    let mut run = Run::new(settings());
    assert_eq!(reports(&run.reply(0.1, unknown())), [&Report::Unreachable("no route".into())]);
    assert_eq!(reports(&run.silence_until(9.0)), [] as [&Report; 0]);
    let actions = run.shows(9.0, seen(&record(Some("other"), 5), 40.0));
    assert_eq!(reports(&actions)[0], &Report::Recovered);
}

#[test]
fn a_guard_that_dies_while_waiting_ends_it() {
    let mut run = Run::new(settings());
    let actions = run.guard(0.1, GuardEvent::Died);
    assert_eq!(reports(&actions), [&Report::Lost(Lost::GuardDied)]);
    assert_eq!(outcome(&actions), Some(&Outcome::Lost));
}

#[test]
fn with_the_kernel_lock_in_hand_the_guard_has_a_deadline_before_anything_starts() {
    let mut run = Run::new(settings());
    let actions = run.shows(1.0, Snapshot { lock: KernelLock::Ours, ..seen(&record(Some("other"), 5), 40.0) });
    assert_eq!(orders(&actions), [&Action::Deadline(Tenure(1), at(59.5))]);
}

#[test]
fn a_guard_that_let_go_of_the_kernel_lock_begins_a_new_tenure() {
    let mut run = Run::new(settings());
    run.shows(1.0, Snapshot { lock: KernelLock::Ours, ..seen(&record(Some("other"), 5), 40.0) });
    let actions = run.guard(70.0, GuardEvent::Over(Tenure(1)));
    assert!(actions.contains(&Action::Unlock));
    assert_eq!(run.machine.tenure(), Tenure(2));
    assert_eq!(run.guard(70.1, GuardEvent::Over(Tenure(1))), [], "said of the old one");
}

#[test]
fn waiting_is_said_when_the_holder_changes_and_rarely_else() {
    let mut run = Run::new(settings());
    let mut said = vec![];
    for second in 0..8000 {
        let time = f64::from(second);
        run.tick(time);
        run.machine.handle(now(time, 0), Event::Changed);
        run.actions();
        let name = if second < 5000 { "one" } else { "two" };
        let actions = run.shows(time, seen(&record(Some(name), 5), 40.0));
        said.extend(vec![second; waiting(&actions)]);
    }
    assert_eq!(said, [0, 10, 70, 670, 4270, 5000, 5010, 5070, 5670]);
}

#[test]
fn a_waiter_whose_store_answers_with_errors_pauses_between_its_tries() {
    let mut run = Run::new(settings());
    run.shows(0.0, seen(&record(Some("other"), 5), 40.0));
    let mut tries = 0;
    while let Some(next) = run.machine.deadline().filter(|next| *next < at(20.0)) {
        run.events += 1;
        run.machine.handle(Now { at: next, ..now(0.0, run.events) }, Event::Tick);
        while reads(&run.actions()) > 0 {
            tries += 1;
            assert!(tries < 100, "at {next:?} without a pause");
            let error = Event::Reply { request: run.request, reply: unknown() };
            run.machine.handle(Now { at: next, ..now(0.0, run.events) }, error);
        }
    }
    assert!(tries > 10);
}

#[test]
fn a_wait_that_runs_out_before_the_store_has_answered_says_unreachable() {
    let mut run = Run::new(Settings { wait: Wait::For(secs(1.0)), ..settings() });
    assert_eq!(outcome(&run.tick(1.0)), Some(&Outcome::Unreachable("no answer in time".into())));
}

#[test]
fn a_recognised_claim_gives_the_guard_no_later_deadline_than_its_own() {
    let mut run = Run::new(settings());
    run.shows(0.0, Snapshot { lock: KernelLock::Ours, ..absent() });
    let claim = run.record().clone();
    run.silence_until(4.0);
    let actions = run.shows(4.0, Snapshot { lock: KernelLock::Ours, ..seen(&claim, 56.0) });
    assert_eq!(orders(&actions), [&Action::Deadline(Tenure(1), at(58.5)), &Action::Spawn(Tenure(1), claim.token)]);
}
