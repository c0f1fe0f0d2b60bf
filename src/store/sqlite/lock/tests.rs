//! Several descriptions of one lock, as several processes have it.

use std::fs;
use std::os::fd::AsRawFd;

use super::*;

fn now() -> Moment {
    Moment::from_nanos(7)
}

#[test]
fn the_byte_of_a_name_never_changes() {
    assert_eq!(byte_of("default"), 4428644419968964799);
    assert_eq!(byte_of("nightly/backup"), 4361205080714135828);
}

#[test]
fn one_description_has_the_lock_and_the_next_gets_it_when_it_is_given_back() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("x.db");
    let (first, second) = (KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now));
    let other_name = KernelLock::new(&database, "b", now);
    assert!(matches!(first.look(), Standing::Ours { .. }));
    assert_eq!(second.look(), Standing::Others);
    assert!(matches!(other_name.look(), Standing::Ours { .. }));
    assert_eq!(first.holders(), [std::process::id() as i32]);
    let duplicate = first.take_fresh().expect("for the guard");
    assert!(first.take_fresh().is_none(), "handed over once");
    first.unlock();
    assert!(matches!(second.look(), Standing::Ours { .. }), "a duplicate ({}) does not keep it", duplicate.as_raw_fd());
}

#[test]
fn a_lock_that_comes_while_a_look_says_others_is_not_slept_over() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("x.db");
    let (first, second) = (KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now));
    assert!(matches!(first.look(), Standing::Ours { .. }));
    assert_eq!(second.look(), Standing::Others);
    assert!(matches!(second.wait_for_it(), Ahead::Waiting));
    assert_eq!(second.look(), Standing::Others, "its own thread waits");
    first.unlock();
    let handed = (0..10_000).find_map(|_| {
        std::thread::yield_now();
        second.take_fresh().or_else(|| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            None
        })
    });
    assert!(handed.is_some(), "it came, and the guard has it");
    assert!(matches!(second.wait_for_it(), Ahead::Granted), "but no look has shown it yet");
    assert!(matches!(second.look(), Standing::Ours { .. }));
    assert!(matches!(second.wait_for_it(), Ahead::Nothing));
}

#[test]
fn a_lock_that_is_wanted_no_more_is_let_go_of_when_it_comes() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("x.db");
    let (first, second, third) =
        (KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now));
    assert!(matches!(first.look(), Standing::Ours { .. }));
    assert!(matches!(second.wait_for_it(), Ahead::Waiting));
    second.unlock();
    first.unlock();
    let third_has_it = (0..10_000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        matches!(third.look(), Standing::Ours { .. })
    });
    assert!(third_has_it);
    assert!(second.take_fresh().is_none());
}

/// Blocks on the lock in its own thread.
fn waiter(database: &Path) -> KernelLock {
    let lock = KernelLock::new(database, "a", now);
    assert!(matches!(lock.wait_for_it(), Ahead::Waiting));
    blocks_on_the_file_at_the_path(&lock);
    lock
}

fn blocks_on_the_file_at_the_path(lock: &KernelLock) {
    let there = (0..10_000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(1));
        let side = lock.inner.state().thread.as_ref().and_then(|thread| thread.side);
        side.is_some() && side == lock.inner.side_at_path()
    });
    assert!(there);
}

#[test]
fn waiters_of_a_side_file_that_was_removed_come_to_the_new_one_when_the_holder_does() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("x.db");
    let holder = KernelLock::new(&database, "a", now);
    assert!(matches!(holder.look(), Standing::Ours { .. }));
    let _in_the_guard = holder.take_fresh().expect("for the guard");
    let waiters = [waiter(&database), waiter(&database)];
    fs::remove_file(side::path_of(&database)).expect("removed");
    assert!(matches!(holder.look(), Standing::Ours { .. }));
    assert_eq!(holder.inner.state().old.len(), 1, "kept until the record is written");
    holder.let_go_of_old();
    waiters.iter().for_each(blocks_on_the_file_at_the_path);
}

#[test]
fn waiters_come_to_the_new_side_file_also_when_another_was_there_before_the_holder() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("x.db");
    let (holder, newcomer) = (KernelLock::new(&database, "a", now), KernelLock::new(&database, "a", now));
    assert!(matches!(holder.look(), Standing::Ours { .. }));
    let _in_the_guard = holder.take_fresh().expect("for the guard");
    let waiter = waiter(&database);
    fs::remove_file(side::path_of(&database)).expect("removed");
    assert!(matches!(newcomer.look(), Standing::Ours { .. }));
    assert_eq!(holder.look(), Standing::Others);
    holder.let_go_of_old();
    blocks_on_the_file_at_the_path(&waiter);
    newcomer.unlock();
    drop(newcomer);
    assert_eq!(holder.take_fresh().map(|_| ()), None, "what it had of the old one counts for nothing");
}

#[test]
fn a_side_file_that_was_removed_is_made_and_locked_anew() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let database = dir.path().join("x.db");
    let lock = KernelLock::new(&database, "a", now);
    let Standing::Ours { side, .. } = lock.look() else { panic!("free") };
    let keep_inode = File::open(side::path_of(&database)).expect("there");
    fs::remove_file(side::path_of(&database)).expect("removed");
    let Standing::Ours { side: new, .. } = lock.look() else { panic!("free again") };
    assert_ne!(side, new, "the old inode is in use by {}", keep_inode.as_raw_fd());
    assert!(lock.take_fresh().is_some(), "the guard must keep the new one too");
}
