//! While the record is ours.

use super::*;
use crate::exit::Ended;

const T1: Tenure = Tenure(1);

/// The renewal of 5 s was answered like this; the machine reads next.
fn after_renewal(run: &mut Run, reply: Reply) {
    run.tick(5.0);
    let actions = run.reply(5.1, reply);
    if reads(&actions) == 0 {
        run.silence_until(5.9);
    }
}

#[test]
fn the_lease_is_renewed_at_every_heartbeat_with_a_fresh_write() {
    let mut run = holding(settings());
    let claim = run.record().clone();
    assert_eq!(run.machine.deadline(), Some(at(5.0)));
    run.tick(5.0);
    let (expect, renewal) = run.sent.clone().expect("a renewal");
    assert_eq!((expect, renewal.asked_at, renewal.token), (version(&claim), at(5.0), claim.token));
    assert_ne!(renewal.write, claim.write);
    run.done(5.1);
    assert_eq!(run.machine.deadline(), Some(at(10.0)));
}

#[test]
fn the_deadline_counts_from_the_send_not_from_the_reply() {
    let mut run = holding(settings());
    run.tick(5.0);
    assert_eq!(run.done(7.4), [Action::Deadline(T1, at(5.0 + 58.5))]);
}

#[test]
fn an_error_is_unknown_and_is_ridden_out_until_term_at() {
    let mut run = holding(settings());
    let actions = run.silence_until(48.5);
    assert_eq!(orders(&actions), [] as [&Action; 0]);
    assert_eq!(reports(&actions), [&Report::Unreachable("no answer in time".into())]);
    assert!(reads(&actions) > 10, "it goes on trying");
    assert_eq!(orders(&run.tick(48.5)), [&Action::Stop(T1, Scope::Command)]);
}

#[test]
fn refused_while_holding_is_no_more_than_unknown() {
    let mut run = holding(settings());
    after_renewal(&mut run, Reply::Refused("disk full".into()));
    let mine = run.record().clone();
    run.shows(6.0, seen(&mine, 50.0));
    assert!(run.machine.is_holding());
    assert_eq!(run.machine.deadline(), Some(at(10.0)), "the refused write had landed");
}

#[test]
fn a_blip_inside_the_lease_is_said_to_be_over_by_a_confirmed_write_only() {
    let mut run = holding(settings());
    let claim = run.record().clone();
    after_renewal(&mut run, unknown());
    let actions = run.shows(6.0, seen(&claim, 50.0));
    assert_eq!((reports(&actions).len(), writes(&actions).len()), (0, 1), "the renewal had not landed: again");
    let actions = run.done(6.1);
    assert_eq!(actions, [Action::Report(Report::Recovered), Action::Deadline(T1, at(6.0 + 58.5))]);
}

#[test]
fn once_term_is_sent_nothing_brings_the_lease_back() {
    let mut run = holding(settings());
    run.silence_until(48.5);
    run.tick(48.5);
    let renewal = run.record().clone();
    run.silence_until(50.0);
    let actions = run.shows(50.0, seen(&renewal, 20.0));
    assert_eq!(reports(&actions), [] as [&Report; 0], "no recovery");
    run.guard(51.0, GuardEvent::Exited(T1, Ended::Code(0), vec![]));
    run.guard(51.0, GuardEvent::Empty(T1));
    run.done(51.1);
    let actions = run.done(51.2);
    assert_eq!(outcome(&actions), Some(&Outcome::Lost));
    assert!(reports(&actions).contains(&&Report::Lost(Lost::Unreachable("no answer in time".into()))));
}

#[test]
fn kill_falls_at_term_plus_grace_even_when_renewed() {
    let mut run = holding(settings());
    run.silence_until(48.5);
    run.tick(48.5);
    run.silence_until(50.0);
    let mine = run.record().clone();
    run.shows(50.0, seen(&mine, 20.0));
    run.tick(50.1);
    run.done(50.2);
    let actions = run.silence_until(58.5);
    assert_eq!(orders(&actions).iter().filter(|order| matches!(order, Action::Kill(_))).count(), 0);
    let actions = run.tick(58.5);
    assert_eq!(actions[..2], [Action::Kill(T1), Action::Report(Report::Killed(Killed::GraceOver))]);
}

#[test]
fn kill_waits_for_no_grace_that_the_lease_does_not_have() {
    let mut run = holding(settings());
    let actions = run.tick(58.5);
    assert_eq!(actions[..2], [Action::Kill(T1), Action::Report(Report::Killed(Killed::Deadline))], "woken at last");
}

#[test]
fn a_reply_that_comes_with_the_deadline_comes_after_it() {
    let mut run = holding(settings());
    assert_eq!(writes(&run.tick(48.4)).len(), 1, "woken late, in time to ask");
    let actions = run.done(48.5);
    assert_eq!(orders(&actions)[0], &Action::Stop(T1, Scope::Command));
}

#[test]
fn a_conflict_with_another_holder_kills_at_once_without_grace() {
    let mut run = holding(settings());
    after_renewal(&mut run, Reply::Swapped(Swap::Conflict));
    let other = record(Some("other"), WALL_MS + 99);
    let actions = run.shows(5.2, seen(&other, 50.0));
    assert_eq!(orders(&actions), [&Action::Kill(T1)]);
    assert_eq!(reports(&actions)[0], &Report::Lost(Lost::TakenBy(holder("other"))));
    run.guard(5.3, GuardEvent::Killing(T1));
    let actions = run.guard(5.4, GuardEvent::Empty(T1));
    assert_eq!(actions, [Action::Exit(Outcome::Lost)], "nothing to release, nothing said twice");
}

#[test]
fn a_conflict_with_ones_own_lost_reply_goes_on() {
    let mut run = holding(settings());
    run.tick(5.0);
    let first = run.record().clone();
    run.tick(7.5);
    run.silence_until(8.0);
    run.shows(8.0, seen(&record_of_claim(&run), 50.0));
    run.conflict(8.1);
    let actions = run.shows(8.2, seen(&first, 57.0));
    assert_eq!(orders(&actions), [&Action::Deadline(T1, at(5.0 + 58.5))], "it counts from its own send");
}

fn record_of_claim(run: &Run) -> Record {
    Record { write: WriteId::new("the claim's"), ..run.record().clone() }
}

#[test]
fn a_free_record_or_none_kills_at_once() {
    for gone in [absent(), seen(&record(None, WALL_MS + 99), 0.0)] {
        let mut run = holding(settings());
        after_renewal(&mut run, Reply::Swapped(Swap::Conflict));
        let actions = run.shows(5.2, gone);
        assert_eq!(actions[0], Action::Report(Report::Lost(Lost::RecordGone)));
        assert_eq!(orders(&actions), [&Action::Kill(T1)]);
    }
}

#[test]
fn the_same_holder_under_another_token_is_not_this_lease() {
    let mut run = holding(settings());
    after_renewal(&mut run, Reply::Swapped(Swap::Conflict));
    let older = Record { token: Token(1), ..run.record().clone() };
    assert_eq!(orders(&run.shows(5.2, seen(&older, 50.0))), [&Action::Kill(T1)]);
}

#[test]
fn a_row_that_the_application_removed_kills_at_once_and_is_released() {
    let mut run = holding(settings());
    after_renewal(&mut run, Reply::Swapped(Swap::Conflict));
    let mine = run.record().clone();
    let removed = Snapshot { finding: Finding::RowRemoved, version: Version::At("without row".into()), ..seen(&mine, 50.0) };
    let actions = run.shows(5.2, removed);
    assert_eq!((orders(&actions), writes(&actions).len()), (vec![&Action::Kill(T1)], 0));
    assert_eq!(writes(&run.silence_until(30.0)).len(), 0, "no renewal brings it back");
    run.guard(30.0, GuardEvent::Empty(T1));
    let (expect, record) = run.sent.clone().expect("a release");
    assert_eq!((expect, record.holder), (Version::At("without row".into()), None));
    assert_eq!(outcome(&run.done(30.1)), Some(&Outcome::Lost));
}

#[test]
fn a_replaced_database_is_put_back_only_with_the_kernel_lock_and_an_older_token() {
    let put_back = |lock, record: Option<Record>| {
        let mut run = holding(settings());
        after_renewal(&mut run, Reply::Swapped(Swap::Conflict));
        let snapshot = record.map_or(absent(), |record| seen(&record, 0.0));
        let actions = run.shows(5.2, Snapshot { finding: Finding::Replaced, lock, ..snapshot });
        let killed = orders(&actions).contains(&&Action::Kill(T1));
        assert_ne!(killed, reports(&actions).contains(&&Report::PutBack));
        assert_eq!(writes(&actions).len(), usize::from(!killed));
        !killed
    };
    assert!(put_back(KernelLock::Ours, None));
    assert!(put_back(KernelLock::Ours, Some(record(None, 5))));
    assert!(!put_back(KernelLock::Ours, Some(record(None, WALL_MS + 99_999))), "somebody ran by it since");
    assert!(!put_back(KernelLock::Others, None));
    assert!(!put_back(KernelLock::None, None));
}

#[test]
fn a_database_that_is_put_back_has_our_token_and_the_deadline_of_that_write() {
    let mut run = holding(settings());
    let token = run.record().token;
    after_renewal(&mut run, Reply::Swapped(Swap::Conflict));
    run.shows(5.2, Snapshot { finding: Finding::Replaced, lock: KernelLock::Ours, ..absent() });
    assert_eq!((run.record().token, run.record().holder.clone()), (token, Some(holder("me"))));
    assert_eq!(run.done(5.3), [Action::Deadline(T1, at(5.2 + 58.5))]);
}

#[test]
fn renewal_goes_on_while_the_command_is_being_stopped() {
    let mut run = holding(settings());
    let actions = run.guard(1.0, GuardEvent::Exited(T1, Ended::Code(3), vec![44]));
    assert_eq!(orders(&actions), [&Action::Stop(T1, Scope::Tree)]);
    run.tick(5.0);
    assert!(run.record().stopping && run.record().holder.is_some());
    assert_eq!(run.done(5.1), [Action::Deadline(T1, at(63.5))]);
    run.tick(10.0);
    let actions = run.tick(11.0);
    assert_eq!(actions, [Action::Kill(T1), Action::Report(Report::Killed(Killed::GraceOver))]);
    run.done(11.1);
    assert_eq!(writes(&run.tick(16.0)).len(), 1, "also while it is being killed");
}

#[test]
fn release_comes_only_when_the_tree_is_empty() {
    let mut run = holding(settings());
    run.guard(1.0, GuardEvent::Exited(T1, Ended::Code(3), vec![44]));
    assert!(run.record().holder.is_some());
    let token = run.record().token;
    run.guard(1.1, GuardEvent::Empty(T1));
    assert_eq!((run.record().holder.clone(), run.record().token), (None, token), "free, and the token stays");
    let actions = run.done(1.2);
    assert_eq!(actions, [Action::Report(Report::Released), Action::Exit(Outcome::Command(Ended::Code(3)))]);
}

#[test]
fn a_renewal_in_flight_is_waited_for_before_the_release() {
    let mut run = holding(settings());
    run.tick(5.0);
    run.guard(5.1, GuardEvent::Exited(T1, Ended::Code(0), vec![]));
    assert_eq!(run.guard(5.1, GuardEvent::Empty(T1)), []);
    let renewed = version(run.record());
    run.done(5.2);
    let (expect, record) = run.sent.clone().expect("a release");
    assert_eq!((expect, record.holder), (renewed, None));
}

#[test]
fn a_release_that_cannot_be_confirmed_runs_out_by_itself() {
    let mut run = holding(settings());
    run.guard(1.0, GuardEvent::Exited(T1, Ended::Code(0), vec![]));
    run.guard(1.0, GuardEvent::Empty(T1));
    run.reply(1.1, unknown());
    run.silence_until(6.0);
    let actions = run.tick(6.0);
    assert_eq!(reports(&actions), [&Report::ReleaseUnconfirmed { runs_out_in: secs(54.0) }], "two attempts");
    assert_eq!(outcome(&actions), Some(&Outcome::Command(Ended::Code(0))));
}

#[test]
fn on_lost_wait_goes_back_to_waiting_in_a_new_tenure() {
    let mut run = holding(Settings { on_lost: OnLost::Wait, ..settings() });
    after_renewal(&mut run, Reply::Swapped(Swap::Conflict));
    run.shows(5.2, seen(&record(Some("other"), WALL_MS + 99), 50.0));
    let actions = run.guard(5.4, GuardEvent::Empty(T1));
    assert_eq!((actions[0].clone(), reads(&actions), run.machine.tenure()), (Action::Unlock, 1, Tenure(2)));
    let free = record(None, WALL_MS + 99);
    run.shows(6.0, seen(&free, 0.0));
    assert_eq!(run.done(6.1).last(), Some(&Action::Spawn(Tenure(2), run.record().token)));
    assert_eq!(run.guard(6.2, GuardEvent::Empty(T1)), [], "of the old tenure");
}

#[test]
fn a_guard_that_dies_loses_the_lease_and_the_release_waits_for_the_tree() {
    let mut run = holding(Settings { on_lost: OnLost::Wait, ..settings() });
    assert_eq!(run.guard(1.0, GuardEvent::Died), [Action::Report(Report::Lost(Lost::GuardDied))]);
    assert!(writes(&run.tick(5.0))[0].holder.is_some(), "renewed as long as something lives");
    run.done(5.1);
    run.guard(5.2, GuardEvent::Empty(T1));
    let actions = run.done(5.3);
    assert_eq!(reports(&actions), [&Report::Released]);
    assert_eq!(outcome(&actions), Some(&Outcome::Lost), "without a guard nothing can be started again");
}

#[test]
fn a_guard_that_does_not_answer_a_kill_is_killed() {
    let mut run = holding(settings());
    run.tick(58.5);
    assert_eq!(run.machine.deadline(), Some(at(59.0)), "half of the kill time");
    assert_eq!(run.tick(59.0), [Action::Report(Report::GuardHangs), Action::KillGuard]);

    let mut run = holding(settings());
    run.tick(58.5);
    run.guard(58.6, GuardEvent::Killing(T1));
    assert_eq!(orders(&run.silence_until(70.0)), [] as [&Action; 0], "one that has begun is left to it");
}

#[test]
fn a_guard_that_does_not_answer_to_spawn_is_killed_before_the_lease_is_held_for_nothing() {
    let mut run = granted(settings());
    run.tick(5.0);
    run.done(5.1);
    assert_eq!(orders(&run.tick(10.1)), [&Action::KillGuard]);
    run.guard(10.2, GuardEvent::Died);
    run.done(10.3);
    run.guard(10.4, GuardEvent::Empty(T1));
    assert_eq!(outcome(&run.done(10.5)), Some(&Outcome::Lost));
}

#[test]
fn a_tree_that_was_empty_before_the_deadline_is_not_lost_when_the_front_was_stopped_over_it() {
    let mut run = holding(settings());
    let actions = run.guard(70.0, GuardEvent::Exited(T1, Ended::Code(0), vec![]));
    assert_eq!(reports(&actions), [] as [&Report; 0]);
    assert!(writes(&actions)[0].holder.is_none(), "the release");
    assert_eq!(outcome(&run.done(70.1)), Some(&Outcome::Command(Ended::Code(0))));
}

#[test]
fn a_guard_that_killed_by_its_own_clock_ends_the_lease() {
    let mut run = holding(settings());
    let actions = run.guard(1.0, GuardEvent::Killing(T1));
    assert_eq!(actions, [Action::Report(Report::Killed(Killed::Deadline))]);
    run.guard(1.1, GuardEvent::Empty(T1));
    assert_eq!(outcome(&run.done(1.2)), Some(&Outcome::Lost));
}

#[test]
fn a_spawn_that_the_guard_refused_is_no_loss_and_is_tried_again() {
    let mut run = claiming(settings());
    run.done(0.1);
    run.guard(0.2, GuardEvent::Over(T1));
    assert_eq!(run.record().holder, None, "given back");
    let actions = run.done(0.3);
    assert_eq!((outcome(&actions), reads(&actions), run.machine.tenure()), (None, 1, Tenure(2)));
}

#[test]
fn a_tenure_that_is_over_after_a_start_is_lost() {
    let mut run = holding(settings());
    run.guard(1.0, GuardEvent::Over(T1));
    assert_eq!(outcome(&run.done(1.1)), Some(&Outcome::Lost));
}

#[test]
fn what_the_guard_says_of_another_tenure_is_dropped() {
    let mut run = holding(settings());
    let other = Tenure(2);
    let events = [GuardEvent::Empty(other), GuardEvent::Over(other), GuardEvent::Killing(other), GuardEvent::Survivors(other, vec![1])];
    for event in events {
        assert_eq!(run.guard(1.0, event), []);
    }
}

#[test]
fn a_command_that_cannot_be_started_gives_the_lease_back() {
    let mut run = claiming(settings());
    run.done(0.1);
    run.guard(0.2, GuardEvent::NotSpawned(T1, SpawnError::Exec(2)));
    assert_eq!(run.record().holder, None);
    assert_eq!(outcome(&run.done(0.3)), Some(&Outcome::NotSpawned(SpawnError::Exec(2))));
}

#[test]
fn signals_go_to_the_command_and_kill_after_counts_from_the_first_that_ends_it() {
    let mut run = holding(Settings { kill_after: Some(secs(3.0)), ..settings() });
    assert_eq!(run.handle(0.5, Event::Signal { number: 10, ends: false }), [Action::Forward(T1, 10)]);
    assert_eq!(run.signal(1.0, 15), [Action::Forward(T1, 15)]);
    assert_eq!(run.signal(3.0, 15), [Action::Forward(T1, 15)]);
    assert_eq!(run.machine.deadline(), Some(at(4.0)));
    assert_eq!(run.tick(3.9), []);
    assert_eq!(run.tick(4.0), [Action::Kill(T1), Action::Report(Report::Killed(Killed::KillAfter))]);
}

#[test]
fn without_kill_after_a_forwarded_signal_leaves_the_command_its_time() {
    let mut run = holding(settings());
    run.signal(1.0, 15);
    for second in 1..40 {
        run.tick(f64::from(5 * second));
        assert_eq!(run.done(f64::from(5 * second) + 0.1).len(), 1, "a new deadline and nothing else");
    }
}

#[test]
fn a_step_of_the_clock_is_followed_by_a_renewal_at_once() {
    let mut run = holding(settings());
    let actions = run.handle(1.0, Event::ClockStepped);
    assert_eq!(writes(&actions)[0].asked_at, at(1.0));
}

#[test]
fn survivors_are_named_and_the_lease_is_kept_for_them() {
    let mut run = holding(settings());
    run.tick(58.5);
    run.guard(58.6, GuardEvent::Killing(T1));
    assert_eq!(reports(&run.guard(59.6, GuardEvent::Survivors(T1, vec![9]))), [&Report::Survivors(vec![9])]);
    run.silence_until(70.0);
    assert!(run.machine.is_holding());
}

#[test]
fn a_guard_that_dies_while_a_late_grant_is_given_back_ends_the_run() {
    let mut run = claiming(settings());
    run.done(0.1);
    run.guard(0.2, GuardEvent::Over(T1));
    run.guard(0.3, GuardEvent::Died);
    let actions = run.done(0.4);
    assert_eq!(reports(&actions), [&Report::Released, &Report::Lost(Lost::GuardDied)]);
    assert_eq!(outcome(&actions), Some(&Outcome::Lost), "with no guard a new claim would hold the lease and start nothing");
}

#[test]
fn a_release_that_is_confirmed_after_it_was_given_up_is_no_claim() {
    let mut run = granted(settings());
    let claimed = run.record().clone();
    run.guard(0.2, GuardEvent::Over(T1));
    run.reply(0.3, unknown());
    run.silence_until(3.0);
    run.shows(3.0, seen(&claimed, 57.0));
    let (release, free) = (run.request, version(run.record()));
    assert!(run.record().holder.is_none(), "released again, and that is on its way");
    let actions = run.tick(5.2);
    assert!(matches!(reports(&actions)[..], [Report::ReleaseUnconfirmed { .. }]));
    assert_eq!(reads(&actions), 1, "back to waiting");
    let late = Event::Reply { request: release, reply: Reply::Swapped(Swap::Done(free)) };
    assert_eq!(run.handle(5.3, late), []);
    assert!(!run.machine.is_holding(), "the record is free, and another may take it");
}
