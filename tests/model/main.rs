//! The real lease machine, `claim::judge` inside it, under a model checker (stateright): few machines, one store, and *every*
//! order of what can happen to them, one class of fault for each test. A class that holds says so of every run within its
//! bounds; a simulation says it of the runs that it drew.
//!
//! Modelled: the machines, one guard for each with its command and what that leaves, the store, the way to it, clocks that
//! drift, processes that stop and die. A request may be lost, or late, its answer too, a write may land when it was given up
//! long ago. A front may be stopped between any two things that it does. SIGKILL takes up to the kill time. Bounds: `Budget`
//! says how many faults one run may have, `calm_at` until when; between what is due by itself something may happen at every
//! multiple of `grid`. `LOCKRUN_MODEL_HORIZON=n` puts the calm off by n seconds (half a
//! gigabyte for a million states).
//!
//! All that is random in the machine is an input, and here a function of the state: a write id of node, instant and number, no
//! jitter. So equal states are equal, and time, which never goes back, makes the graph acyclic: what must happen in the end is
//! looked for in the states that nothing follows. (The `eventually` of stateright forgets a path that joins another.) After
//! the calm there is one schedule, the lowest node first. `reached` counts what happened on the way: a flag for each
//! behaviour in the state, as `sometimes` would need it, would multiply the states.
//!
//! Not modelled, and where it is: combinations of faults, many nodes, jitter, `-w`, `-k` (tests/sim); the kernel lock,
//! replaced databases, an application's table (tests/contract, tests/it); messages between a front and its guard, which are in
//! order and at once unless one of them is stopped; a front and a guard that fail together, which is not promised.
//!
//! A run that breaks a rule is told in a line for each thing that happened: the real time, then the step, indented what came
//! of it, with the node's own clock (which shows 1000 s at the start). `cargo test --test model -- --nocapture` shows the
//! number of states of each check, and how the broken variants fail.

mod case;
mod front;
#[path = "../sim/guard.rs"]
mod guard;
mod keeper;
mod store;
mod world;

use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lockrun::lease::Clocks;
use stateright::{Checker, HasDiscoveries, Model};

use case::{Act, Case, Evidence, FREE, OVERLAP, Variant};
use world::{Budget, EVERY, MS, Pace, SECOND};

/// What the margin is made for: one slewing at 8.3 % against the other.
const SLOW_AND_FAST: [Pace; 2] = [Pace(11, 12), Pace(13, 12)];
/// Nothing but at what is due.
const NO_GRID: u64 = 1000 * SECOND;

/// Goes through every state; what was seen on the way, and the rule that was broken first, with the run that broke it.
fn explore(case: Case) -> (Vec<&'static str>, Option<(&'static str, String)>) {
    let started = Instant::now();
    let threads = thread::available_parallelism().map_or(1, usize::from);
    let checker = case.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let reached = checker.model().reached.lock().unwrap_or_else(PoisonError::into_inner).clone();
    println!(
        "{}: {} states, {} distinct, {} steps deep, {:.1} s; {reached:?}",
        thread::current().name().unwrap_or_default(),
        checker.state_count(),
        checker.unique_state_count(),
        checker.max_depth(),
        started.elapsed().as_secs_f64()
    );
    let broken = checker.discoveries().into_iter().next();
    (reached.into_keys().collect(), broken.map(|(rule, path)| (rule, trace(checker.model(), path.into_actions()))))
}

fn trace(case: &Case, actions: Vec<Act>) -> String {
    let case = Case { told: Some(Mutex::default()), nodes: case.nodes.clone(), reached: Mutex::default(), ..*case };
    let first = case.init_states().remove(0);
    actions.into_iter().fold(first, |world, act| case.next_state(&world, act).expect("each has one"));
    let told = case.told.as_ref().expect("set above").lock().unwrap_or_else(PoisonError::into_inner);
    told.clone()
}

/// With the calm after so many seconds.
fn holds(case: Case, calm_at: f64, must_reach: &[&str]) {
    let more: f64 = std::env::var("LOCKRUN_MODEL_HORIZON").map_or(0.0, |more| more.parse().expect("LOCKRUN_MODEL_HORIZON: seconds"));
    let (reached, broken) = explore(case.until(calm_at + more));
    if let Some((rule, trace)) = broken {
        panic!("{trace}not so: {rule}");
    }
    for what in must_reach {
        assert!(reached.contains(what), "no run comes to: {what}");
    }
}

#[test]
fn two_holders_ride_out_two_messages_lost_or_late_or_outages() {
    let budget = Budget { losses: 2, ..Budget::NONE };
    let reached = [
        "late write",
        "lost reply recognised",
        "too late",
        "recovered",
        "stopping",
        "killed after the grace",
        "killed at the deadline",
        "lost: unreachable",
        "last will",
    ];
    holds(Case { budget, ..Case::new(2, Evidence::None) }, 2.1, &reached);
}

#[test]
fn a_holder_counts_from_the_send_of_what_was_confirmed_late() {
    let budget = Budget { losses: 2, ..Budget::NONE };
    // Some answers are late and still in time.
    let case = Case { budget, first_holds: true, only_first: true, grid: 500 * MS, ..Case::new(2, Evidence::None) };
    holds(case, 3.3, &["recovered", "killed at the deadline", "last will"]);
}

#[test]
fn two_holders_ride_out_any_number_of_messages_lost_or_late() {
    let budget = Budget { losses: EVERY, ..Budget::NONE };
    holds(Case { budget, ..Case::new(2, Evidence::None) }, 1.3, &["late write", "lost reply recognised", "too late", "conflict"]);
}

#[test]
fn two_holders_ride_out_answers_that_come_again_and_writes_carried_out_twice() {
    let budget = Budget { losses: 1, repeats: 2, ..Budget::NONE };
    holds(Case { budget, ..Case::new(2, Evidence::None) }, 1.3, &["stale reply", "carried out twice", "conflict"]);
}

#[test]
fn two_clocks_that_drift_are_covered_by_the_margin() {
    let budget = Budget { losses: 1, ..Budget::NONE };
    let reached = ["taken over", "killed at the deadline", "last will", "release unconfirmed"];
    holds(Case { budget, ..Case::new(2, Evidence::None) }.paced(SLOW_AND_FAST), 4.6, &reached);
}

#[test]
fn a_wall_clock_or_a_stores_clock_that_steps_decides_nothing() {
    let budget = Budget { steps: 2, ends: 1, ..Budget::NONE };
    holds(Case { budget, first_holds: true, ..Case::new(2, Evidence::None) }, 1.7, &["acquired", "released"]);
}

#[test]
fn a_front_or_a_guard_may_stop_or_die_at_any_point() {
    let budget = Budget { processes: 1, ..Budget::NONE };
    let reached = [
        "front stopped in the middle",
        "front killed",
        "late spawn",
        "late write",
        "guard hangs",
        "guard died",
        "the guard's own timer",
        "killed at the deadline",
        "lost: stopped",
        "last will",
    ];
    holds(Case { budget, ..Case::new(2, Evidence::None) }, 4.4, &reached);
}

#[test]
fn a_front_or_a_guard_may_stop_or_die_while_a_command_ends_and_leaves_something() {
    let budget = Budget { processes: 1, ends: 1, ..Budget::NONE };
    let case = Case { budget, leaves_children: true, first_holds: true, ..Case::new(2, Evidence::OneKernel) };
    holds(case, 1.4, &["left behind", "front killed", "guard died", "last will", "killed after the grace"]);
}

/// With the name of a living holder taken out of the record two may run until the next heartbeat and a kill time after it.
#[test]
fn signals_and_changes_of_the_record_by_hand_are_obeyed() {
    let budget = Budget { requests: 2, ends: 1, ..Budget::NONE };
    let reached = ["freed by hand", "killed at once", "lost: gone", "lost: taken", "waiter ended by a signal", "released"];
    holds(Case { budget, first_holds: true, ..Case::new(2, Evidence::None) }, 1.7, &reached);
}

#[test]
fn three_holders_ride_out_a_loss_and_a_process_that_stops_or_dies() {
    let budget = Budget { losses: 1, processes: 1, ..Budget::NONE };
    holds(Case { budget, ..Case::new(3, Evidence::None) }, 0.5, &["conflict", "front killed", "last will"]);
}

/// A model that cannot fail proves nothing: what is broken outside the machine must break this rule.
fn must_break(case: Case, calm_at: f64, rule: &str) {
    let variant = case.variant;
    let (_, broken) = explore(case.until(calm_at));
    let (broken, trace) = broken.unwrap_or_else(|| panic!("{variant:?} was not caught"));
    println!("{trace}not so: {broken}");
    assert_eq!(broken, rule);
}

fn variant(variant: Variant, evidence: Evidence, budget: Budget) -> Case {
    Case { variant, budget, grid: NO_GRID, ..Case::new(2, evidence) }
}

const ONE_LOSS: Budget = Budget { losses: 1, ..Budget::NONE };
const ONE_PROCESS: Budget = Budget { processes: 1, ..Budget::NONE };

#[test]
fn a_deadline_that_counts_from_the_reply_is_caught() {
    must_break(variant(Variant::DeadlineFromReply, Evidence::None, ONE_PROCESS), 4.0, OVERLAP);
}

#[test]
fn a_deadline_that_counts_from_the_reply_is_caught_on_one_kernels_clock_too() {
    must_break(variant(Variant::DeadlineFromReply, Evidence::OneKernel, ONE_PROCESS), 4.0, OVERLAP);
}

#[test]
fn no_margin_between_clocks_that_drift_is_caught() {
    let mut case = variant(Variant::NoMargin, Evidence::None, ONE_LOSS).paced(SLOW_AND_FAST);
    case.nodes[0].settings.timing.margin = Duration::ZERO;
    must_break(case, 4.0, OVERLAP);
}

#[test]
fn a_stores_clock_that_decides_and_steps_is_caught() {
    must_break(variant(Variant::StoresClockDecides, Evidence::None, Budget { steps: 1, ..Budget::NONE }), 2.0, OVERLAP);
}

#[test]
fn a_front_that_can_be_stopped_with_no_guard_to_watch_it_is_caught() {
    must_break(variant(Variant::GuardIgnoresDeadline, Evidence::None, ONE_PROCESS), 4.0, OVERLAP);
}

#[test]
fn a_guard_that_starts_a_command_late_is_caught() {
    must_break(variant(Variant::GuardStartsLate, Evidence::None, ONE_PROCESS), 4.0, OVERLAP);
}

#[test]
fn watching_that_counts_from_before_the_read_is_caught() {
    let case = variant(Variant::SeenFromRequest, Evidence::None, Budget { losses: 2, ..Budget::NONE });
    must_break(Case { first_holds: true, ..case }.paced(SLOW_AND_FAST), 3.9, OVERLAP);
}

#[test]
fn a_waiter_that_goes_by_its_own_ttl_is_caught() {
    let mut case = variant(Variant::WaitersTtl, Evidence::OneKernel, ONE_LOSS);
    case.nodes[1].settings.timing = case::timing(Duration::from_secs(2), Clocks::OneKernel);
    must_break(case, 3.0, OVERLAP);
}

#[test]
fn a_late_reply_that_is_credited_to_another_request_is_caught() {
    let case = variant(Variant::LateReplyCredited, Evidence::None, Budget { losses: 2, repeats: 1, ..Budget::NONE });
    must_break(Case { first_holds: true, ..case }.paced(SLOW_AND_FAST), 4.5, OVERLAP);
}

#[test]
fn a_lease_that_is_given_back_before_the_tree_is_empty_is_caught() {
    let case = variant(Variant::EmptyTooEarly, Evidence::None, Budget { ends: 1, ..Budget::NONE });
    must_break(Case { leaves_children: true, ..case }, 2.0, FREE);
}
