//! What a cluster can do wrong while a lease is held or waited for. Nothing of it may ever let two commands run.

use std::cell::RefCell;
use std::time::Duration;

use serde_json::json;

use super::{SHORT, UNTIL_GO, World, assert_code, now_ns, since};
use crate::common::report::log_lines;
use crate::common::{Running, alive, wait_until};
use crate::fixture::Server;
use crate::fixture::kubernetes::{ROLE, TOKEN, What};

#[test]
fn an_api_server_that_is_away_longer_than_the_lease_ends_the_command_before_another_may_start() {
    for hung in [false, true] {
        let mut world = World::new();
        let holder = world.start_holder(&SHORT, "exec sleep 600");
        let _waiter = world.start_waiter(&SHORT, "date +%s%N >began; exec sleep 600");
        let command = world.scene.starts()[0].1;
        let gone = now_ns();
        if hung {
            world.server.freeze()
        } else {
            world.server.stop()
        }
        wait_until("the command's end", || !alive(command));
        let ended = since(gone, now_ns());
        assert!(ended < Duration::from_secs(4), "{ended:?}");
        let finished = holder.finish();
        assert_code(&finished, 76);
        assert!(finished.stderr.contains("unreachable") && finished.stderr.contains("stopping: the lease runs out"), "{}", finished.stderr);
        assert!(finished.stderr.contains("lost: cannot reach the store"), "{}", finished.stderr);
        println!("hung {hung}: the command is dead {ended:?} after the last answer, ttl 4 s");
        if hung {
            world.server.thaw()
        } else {
            world.server.start_again()
        }
        world.time_in("began");
        assert_eq!(world.scene.starts().len(), 2);
        world.scene.assert_exclusion();
    }
}

#[test]
fn an_api_server_that_is_away_for_a_moment_is_ridden_out() {
    let world = RefCell::new(World::new());
    let holder = world.borrow().start_holder(&["--ttl", "30s", "--heartbeat", "1s"], UNTIL_GO);
    is_ridden_out(&holder, || world.borrow_mut().server.stop(), || world.borrow_mut().server.start_again(), "refused");
    is_ridden_out(&holder, || world.borrow().server.freeze(), || world.borrow().server.thaw(), "no answer");
    world.borrow().go();
    assert_code(&holder.finish(), 0);
    assert_eq!(world.borrow().spec("holderIdentity"), "");
}

/// The trouble is made, said with this word, ended, and the end said. On a loaded machine another may have come first.
fn is_ridden_out(holder: &Running, make: impl Fn(), end: impl Fn(), word: &str) {
    loop {
        let before = holder.stderr().len();
        let said = |what: &str| holder.stderr().get(before..).is_some_and(|text| text.contains(what));
        make();
        wait_until("the trouble is said", || said("unreachable"));
        end();
        wait_until("the end of it is said", || said("recovered"));
        if said(word) {
            return;
        }
    }
}

#[test]
fn throttling_errors_and_a_right_that_is_taken_away_are_unknown_while_the_lease_is_held() {
    let world = World::new();
    let holder = world.start_holder(&["--ttl", "30s", "--heartbeat", "1s"], UNTIL_GO);
    for (what, word) in [
        (What::Status(429, "TooManyRequests", Some(1)), "unreachable: 429"),
        (What::Status(503, "ServiceUnavailable", None), "unreachable: 503"),
        (What::Status(409, "AlreadyExists", None), "unreachable: 409"),
        (What::CutAfter, "unreachable: it closed the connection"),
        (What::CutBefore, "unreachable: it closed the connection"),
        (What::Slow(Duration::from_secs(2)), "no answer"),
    ] {
        is_ridden_out(&holder, || world.server.order("update", 2, what.clone()), || world.server.call_off_faults(), word);
    }
    for (verbs, word) in [(Some(&["get"][..]), "unreachable: 403: leases.coordination.k8s.io"), (None, "unreachable: 401")] {
        is_ridden_out(&holder, || world.server.grant(TOKEN, verbs), || world.server.grant(TOKEN, Some(&ROLE)), word);
    }
    world.go();
    assert_code(&holder.finish(), 0);
}

#[test]
fn an_api_server_that_is_starting_refuses_nobody_for_good() {
    let world = World::new();
    world.server.starting(true);
    let early = world.start(&["--ttl", "60s"], UNTIL_GO);
    early.wait_for_stderr("unreachable: 403");
    assert_code(&world.scene.run(&mut world.lockrun(&["check"])), 69);
    world.server.starting(false);
    world.scene.wait_for_starts(1);
    let waiter = world.start_waiter(&["--ttl", "60s", "--heartbeat", "600ms"], "exit 0");
    world.server.starting(true);
    waiter.wait_for_stderr("unreachable: 403");
    world.server.starting(false);
    world.go();
    assert_code(&early.finish(), 0);
    assert_code(&waiter.finish(), 0);
    world.scene.assert_exclusion();
}

/// What it was allowed once it waits for; what it never was ends it.
#[test]
fn a_right_that_is_taken_away_from_a_waiter_is_waited_for() {
    let world = World::new();
    let holder = world.start_holder(&["--ttl", "60s"], UNTIL_GO);
    let waiter = world.start_waiter(&["--ttl", "60s", "--heartbeat", "600ms"], "exit 0");
    for (verbs, word) in [(Some(&["list"][..]), "unreachable: 403"), (None, "unreachable: 401")] {
        is_ridden_out(&waiter, || world.server.grant(TOKEN, verbs), || world.server.grant(TOKEN, Some(&ROLE)), word);
    }
    world.go();
    assert_code(&holder.finish(), 0);
    assert_code(&waiter.finish(), 0);

    world.server.grant(TOKEN, Some(&["get", "list", "watch"]));
    let finished = world.scene.run(world.lockrun(&[]).args(["--", "touch", "ran"]));
    assert_code(&finished, 125);
    assert!(finished.stderr.contains("cannot update resource"), "{}", finished.stderr);
}

#[test]
fn a_lost_answer_to_the_claim_starts_the_command_once() {
    let world = World::new();
    for what in [What::CutAfter, What::SlowAfter(Duration::from_secs(5))] {
        world.server.order("create", 1, what.clone());
        world.server.order("update", 1, what);
        let finished = world.scene.run(world.lockrun(&["--ttl", "20s"]).args(["--", "sh", "-c", &world.scene.witness("exit 0")]));
        assert_code(&finished, 0);
    }
    assert_eq!(world.scene.starts().len(), 2);
    world.scene.assert_exclusion();
}

#[test]
fn a_watch_that_fails_in_every_way_only_delays_the_waiter() {
    let world = World::new();
    let holder = world.start_holder(&["--ttl", "30s", "--heartbeat", "600ms"], UNTIL_GO);
    let waiter = world.start_waiter(&["--ttl", "30s", "--heartbeat", "600ms"], "exit 0");
    world.server.compact();
    world.server.close_watches();
    world.server.order("watch", 2, What::Status(410, "Expired", None));
    world.server.order("watch", 2, What::Status(403, "Forbidden", None));
    world.server.order("watch", 2, What::CutBefore);
    world.server.close_watches();
    // At last it stands again, and tells nothing.
    world.server.stale_watches(true);
    world.go();
    assert_code(&holder.finish(), 0);
    assert_code(&waiter.finish(), 0);
    world.scene.assert_exclusion();
}

#[test]
fn an_object_that_is_deleted_under_a_holder_ends_the_command_at_once() {
    let world = World::new();
    let holder = world.start_holder(&["--ttl", "60s", "--heartbeat", "600ms", "--log-format", "json"], "exec sleep 600");
    world.server.delete("beat");
    let finished = holder.finish();
    assert_code(&finished, 76);
    let lost: Vec<_> = log_lines(&finished.stderr).into_iter().filter(|line| line["event"] == "lost").collect();
    assert_eq!(lost.len(), 1, "{}", finished.stderr);
    assert_eq!(lost[0]["reason"], json!("record gone"));
}

#[test]
fn a_waiter_without_the_right_is_refused_and_one_without_a_server_is_69() {
    let mut world = World::new();
    world.server.grant(TOKEN, Some(&["list"]));
    let finished = world.scene.run(world.lockrun(&[]).args(["--", "touch", "ran"]));
    assert_code(&finished, 125);
    assert!(
        finished.stderr.contains("cannot get resource") && finished.stderr.contains("bind a Role with get, list, create"),
        "{}",
        finished.stderr
    );
    world.server.stop();
    let finished = world.scene.run(world.lockrun(&["-w", "1s"]).args(["--", "touch", "ran"]));
    assert_code(&finished, 69);
    assert!(!world.scene.path("ran").exists());
}
