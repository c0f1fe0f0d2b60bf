//! The origin's behaviours, those of the one-row lock that lockrun comes from, each once on lockrun's own table and once on
//! an application's. Must never rely on how long a heartbeat takes: it looks at the row.

use std::path::Path;
use std::time::Duration;

use crate::common::gate::Gate;
use crate::common::report::{check, only_lock};
use crate::common::tables::{OTHER_HOST, OTHER_PID, Row, Table, hostname};
use crate::common::{Finished, Running, Scene, alive};

macro_rules! on_both_tables {
    ($($test:ident),+ $(,)?) => {
        mod own_table { $(#[test] fn $test() { super::$test(super::Table::Own) })+ }
        mod app_table { $(#[test] fn $test() { super::$test(super::Table::App) })+ }
    };
}

on_both_tables! {
    acquire_succeeds_and_writes_one_row,
    acquire_fails_when_held,
    a_stale_lock_is_taken_over_at_once,
    a_lock_that_is_not_stale_is_not_taken_over,
    release_empties_it,
    release_after_another_took_the_row_leaves_that_row_untouched,
    release_of_a_deleted_row_is_harmless,
    a_heartbeat_succeeds_and_moves_heartbeat_at,
    a_heartbeat_of_a_row_that_another_has_taken_ends_the_command,
    a_heartbeat_of_a_deleted_row_ends_the_command,
    info_has_pid_hostname_created_at_and_heartbeat_at,
    info_is_empty_when_free,
    the_full_life_cycle,
    twelve_heartbeats_fit_into_the_default_ttl,
    b_is_refused_while_a_renews_and_succeeds_after_its_release,
}

/// A holder whose command waits at the gate `go`, and its row.
struct Held {
    table: Table,
    scene: Scene,
    gate: Gate,
    running: Running,
    row: Row,
}

impl Held {
    fn quick(table: Table) -> Held {
        Held::new(table, &[])
    }

    /// Renews each five seconds: what a test does at once after a renewal, the end of the command finds, not the next heartbeat.
    fn slow(table: Table) -> Held {
        Held::new(table, &["--ttl", "60s", "--heartbeat", "5s", "--grace", "1s"])
    }

    fn new(table: Table, timing: &[&str]) -> Held {
        let scene = table.scene();
        let gate = Gate::new(&scene, "go");
        let script = scene.witness("read gate <go");
        let mut command = if timing.is_empty() { scene.lockrun(table.options()) } else { scene.bare_lockrun(timing) };
        if !timing.is_empty() {
            command.arg("--db").arg(scene.db()).args(table.options());
        }
        let running = scene.start(command.args(["--", "sh", "-c", &script]));
        scene.wait_for_starts(1);
        let row = table.wait_for_holder(&scene, running.pid());
        Held { table, scene, gate, running, row }
    }

    /// The pid of its command.
    fn command(&self) -> i32 {
        self.scene.starts()[0].1
    }

    fn end(mut self) -> (Table, Scene, Finished) {
        self.gate.open();
        let finished = self.running.finish();
        (self.table, self.scene, finished)
    }
}

/// `lockrun -n … -- touch ran`
fn try_once(scene: &Scene, table: Table) -> Finished {
    scene.run(scene.lockrun(["-n"]).args(table.options()).args(["--", "touch", "ran"]))
}

fn ran(scene: &Scene) -> bool {
    Path::new(&scene.path("ran")).exists()
}

fn acquire_succeeds_and_writes_one_row(table: Table) {
    let held = Held::quick(table);
    assert_eq!(table.count_rows(&held.scene), 1);
    assert_eq!((held.row.pid, held.row.hostname.clone()), (i64::from(held.running.pid()), hostname()));
    let (_, _, finished) = held.end();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
}

fn acquire_fails_when_held(table: Table) {
    let held = Held::quick(table);
    let refused = try_once(&held.scene, table);
    assert_eq!(refused.code(), 75, "{}", refused.stderr);
    assert!(refused.stderr.contains("held by"), "{}", refused.stderr);
    assert!(refused.stderr.contains(&held.running.pid().to_string()), "it names the holder's pid: {}", refused.stderr);
    assert!(!ran(&held.scene));
    let now = table.row(&held.scene).expect("still held");
    assert_eq!((now.pid, now.created_at), (held.row.pid, held.row.created_at), "the holder's row stays the holder's");
}

fn a_stale_lock_is_taken_over_at_once(table: Table) {
    let scene = table.scene();
    assert_eq!(try_once(&scene, table).code(), 0, "the record is there, and free");
    let stale = table.put_other(&scene, Duration::from_secs(70), Duration::from_secs(60));
    let mut gate = Gate::new(&scene, "go");
    let script = scene.witness("read gate <go");
    // `-n`: whatever it would have to wait for, it does not get.
    let mut command = scene.bare_lockrun(["-n", "--db"]);
    let running = scene.start(command.arg(scene.db()).args(table.options()).args(["--", "sh", "-c", &script]));
    let row = table.wait_for_holder(&scene, running.pid());
    assert_eq!(row.hostname, hostname());
    assert!(row.created_at > stale.heartbeat_at + 60.0, "{row:?} follows {stale:?}");
    assert_eq!(table.count_rows(&scene), 1);
    gate.open();
    assert_eq!(running.finish().code(), 0);
}

/// On lockrun's own table the holder's kernel lock is gone, so that only its time can be waited out or the kernel asked; `-n`
/// does neither.
fn a_lock_that_is_not_stale_is_not_taken_over(table: Table) {
    let scene = table.scene();
    assert_eq!(scene.run(scene.lockrun(["-n"]).args(table.options()).args(["--", "true"])).code(), 0);
    let other = table.put_other(&scene, Duration::ZERO, Duration::from_secs(60));
    if table == Table::Own {
        // A record of another boot says nothing about now but that its time has not been seen to pass.
        crate::common::tables::open(&scene.db())
            .execute("UPDATE lockrun_lease SET boot_id = '00000000-0000-4000-8000-000000000000', asked_boot_ns = 1", [])
            .expect("written");
    }
    let refused = scene.run(scene.bare_lockrun(["-n", "--db"]).arg(scene.db()).args(table.options()).args(["--", "touch", "ran"]));
    assert_eq!(refused.code(), 75, "{}", refused.stderr);
    assert!(refused.stderr.contains(&OTHER_PID.to_string()) && refused.stderr.contains(OTHER_HOST), "{}", refused.stderr);
    assert!(!ran(&scene));
    assert_eq!(table.row(&scene), Some(other));
}

fn release_empties_it(table: Table) {
    let (table, scene, finished) = Held::quick(table).end();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(table.row(&scene), None);
}

fn release_after_another_took_the_row_leaves_that_row_untouched(table: Table) {
    let held = Held::slow(table);
    let other = table.put_other(&held.scene, Duration::ZERO, Duration::from_secs(60));
    let (table, scene, finished) = held.end();
    assert_eq!(table.row(&scene), Some(other));
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
}

fn release_of_a_deleted_row_is_harmless(table: Table) {
    let held = Held::slow(table);
    table.delete_row(&held.scene);
    let (table, scene, finished) = held.end();
    assert_eq!(table.row(&scene), None);
    assert!(!finished.stderr.contains("panicked"), "{}", finished.stderr);
    let next = try_once(&scene, table);
    assert_eq!(next.code(), 0, "the next one is not kept out: {}", next.stderr);
    assert!(ran(&scene));
}

fn a_heartbeat_succeeds_and_moves_heartbeat_at(table: Table) {
    let held = Held::quick(table);
    let second = table.wait_for_renewal(&held.scene, &held.row);
    let third = table.wait_for_renewal(&held.scene, &second);
    assert_eq!(third.created_at, held.row.created_at, "a renewal does not begin a lease");
    let (_, scene, finished) = held.end();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    scene.assert_exclusion();
}

fn a_heartbeat_of_a_row_that_another_has_taken_ends_the_command(table: Table) {
    let held = Held::quick(table);
    let command = held.command();
    let other = table.put_other(&held.scene, Duration::ZERO, Duration::from_secs(60));
    let finished = held.running.finish();
    assert_eq!(finished.code(), 76, "{}", finished.stderr);
    assert!(!alive(command));
    assert!(finished.stderr.contains("lost"), "{}", finished.stderr);
    assert!(finished.stderr.contains(&OTHER_PID.to_string()), "it says who took it: {}", finished.stderr);
    assert_eq!(table.row(&held.scene), Some(other), "a lost lease is not touched again");
}

fn a_heartbeat_of_a_deleted_row_ends_the_command(table: Table) {
    let held = Held::quick(table);
    let command = held.command();
    table.delete_row(&held.scene);
    let finished = held.running.finish();
    assert_eq!(finished.code(), 76, "{}", finished.stderr);
    assert!(!alive(command));
    assert!(finished.stderr.contains("lost"), "{}", finished.stderr);
    assert_eq!(table.row(&held.scene), None, "a lost lease is not written again");
}

fn info_has_pid_hostname_created_at_and_heartbeat_at(table: Table) {
    let held = Held::quick(table);
    table.wait_for_renewal(&held.scene, &held.row);
    let lock = only_lock(&held.scene, table.options());
    assert_eq!(lock["state"], "held", "{lock}");
    assert_eq!(lock["holder"]["pid"], held.running.pid(), "{lock}");
    assert_eq!(lock["holder"]["hostname"], hostname(), "{lock}");
    assert_eq!(lock["ttl_ms"], 3000, "{lock}");
    let (acquired, renewed) = (lock["acquired_at"].as_str().expect("a time"), lock["renewed_at"].as_str().expect("a time"));
    assert!(acquired.ends_with('Z') && acquired.contains('T') && acquired.len() == renewed.len(), "{lock}");
    assert!(acquired < renewed, "renewed after it was acquired: {lock}");
    let row = table.row(&held.scene).expect("held");
    assert!(row.created_at < row.heartbeat_at, "{row:?}");
}

fn info_is_empty_when_free(table: Table) {
    let (table, scene, _) = Held::quick(table).end();
    let lock = only_lock(&scene, table.options());
    assert_eq!(lock["state"], "free", "{lock}");
    assert!(lock["holder"].is_null(), "{lock}");
    assert_eq!(table.row(&scene), None);
}

fn the_full_life_cycle(table: Table) {
    let held = Held::quick(table);
    assert_eq!(try_once(&held.scene, table).code(), 75);
    let renewed = table.wait_for_renewal(&held.scene, &held.row);
    assert_eq!(renewed.pid, held.row.pid);
    let (table, scene, finished) = held.end();
    assert_eq!((finished.code(), table.row(&scene)), (0, None), "{}", finished.stderr);

    let mut gate = Gate::new(&scene, "again");
    let script = scene.witness("read gate <again");
    let second = scene.start(scene.lockrun(["-n"]).args(table.options()).args(["--", "sh", "-c", &script]));
    scene.wait_for_starts(2);
    table.wait_for_holder(&scene, second.pid());
    gate.open();
    assert_eq!(second.finish().code(), 0);
    assert_eq!(table.row(&scene), None);
    scene.assert_exclusion();
}

fn twelve_heartbeats_fit_into_the_default_ttl(table: Table) {
    let scene = table.scene();
    let mut command = scene.bare_lockrun(["--db"]);
    assert_eq!(scene.run(command.arg(scene.db()).args(table.options()).args(["--", "true"])).code(), 0);
    let check = check(&scene, table.options());
    let (ttl, heartbeat) = (check["ttl_ms"].as_u64().expect("a ttl"), check["heartbeat_ms"].as_u64().expect("a heartbeat"));
    assert_eq!(ttl, 60_000, "{check}");
    assert!(heartbeat > 0 && heartbeat * 12 <= ttl, "{check}");
}

fn b_is_refused_while_a_renews_and_succeeds_after_its_release(table: Table) {
    let held = Held::quick(table);
    let mut row = held.row.clone();
    for _ in 0..3 {
        row = table.wait_for_renewal(&held.scene, &row);
        assert_eq!(try_once(&held.scene, table).code(), 75);
    }
    assert!(!ran(&held.scene));
    let (table, scene, finished) = held.end();
    assert_eq!(finished.code(), 0, "{}", finished.stderr);
    assert_eq!(try_once(&scene, table).code(), 0);
    assert!(ran(&scene));
}
