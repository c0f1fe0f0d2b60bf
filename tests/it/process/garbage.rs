//! Garbage on the pipe between front and guard, put there through the front's own end: the guard keeps its duty.

use std::fs;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use lockrun::guard::ToGuard;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, getsockopt, sendmsg, sockopt};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;

use super::{assert_code, assert_found_nobody, next_copy, start_tree, timed};
use crate::common::{Running, Scene, alive, wait_until};

/// A duplicate of the front's end (pidfd_getfd(2)): its one socket that keeps datagrams apart.
fn end_of(front: i32) -> OwnedFd {
    // SAFETY: no pointers; what comes back is checked, and owned by nobody else.
    let owned = |fd: libc::c_long| (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) });
    // SAFETY: as above.
    let process = owned(unsafe { libc::syscall(libc::SYS_pidfd_open, front, 0) }).expect("the front is there");
    let numbers = fs::read_dir(format!("/proc/{front}/fd")).expect("its descriptors").flatten();
    let numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    // SAFETY: as above.
    let all = numbers.filter_map(|number| owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) }));
    let mut sockets = all.filter(|fd| getsockopt(fd, sockopt::SockType) == Ok(SockType::SeqPacket));
    sockets.next().expect("the right to take it: run tests/run, as root")
}

/// Datagrams that say nothing, nearly messages among them. An empty one would be the end of the pipe.
fn garbage() -> Vec<Vec<u8>> {
    let bytes = prop_oneof![
        proptest::collection::vec(any::<u8>(), 1..40),
        (0..12_u8, proptest::collection::vec(any::<u8>(), 4..30)).prop_map(|(tag, rest)| [vec![tag], rest].concat()),
        proptest::collection::vec(any::<u8>(), 500..600),
    ];
    let mut runner = TestRunner::deterministic();
    let all = std::iter::from_fn(|| Some(bytes.new_tree(&mut runner).expect("bytes").current()));
    all.filter(|bytes| ToGuard::decode(bytes).is_none()).take(1000).collect()
}

fn send(socket: &OwnedFd, bytes: &[u8], fds: &[i32]) -> nix::Result<usize> {
    let rights = [ControlMessage::ScmRights(fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    sendmsg::<()>(socket.as_raw_fd(), &[IoSlice::new(bytes)], rights, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL, None)
}

/// How many descriptors of the process lead to that file.
fn descriptors(pid: i32, file: &std::path::Path) -> usize {
    let all = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is alive").flatten();
    all.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == file)).count()
}

/// With a lease so long that a starved machine does not keep the guard from its work in time.
fn holder(scene: &Scene) -> Running {
    start_tree(scene, timed(scene, "6s"))
}

#[test]
fn garbage_and_descriptors_that_nobody_asked_for_change_nothing() {
    let scene = Scene::new();
    let mut holder = holder(&scene);
    let (socket, guard) = (end_of(holder.pid()), holder.guard());
    let path = fs::canonicalize(scene.dir()).expect("a folder").join("given");
    let given = fs::File::create(&path).expect("a file");
    for (number, bytes) in garbage().iter().enumerate() {
        let fds = vec![given.as_raw_fd(); [0, 0, 0, 1, 2, 3, 200][number % 7]];
        wait_until("room on the pipe", || send(&socket, bytes, &fds) != Err(nix::errno::Errno::EAGAIN));
    }
    // Answered when all before it has been read.
    wait_until("the guard closed them", || descriptors(guard, &path) == 0);
    assert!(holder.is_running() && alive(guard), "{}", holder.stderr());
    holder.signal(Signal::SIGTERM);
    let finished = holder.finish();
    assert!(!finished.stderr.contains("lost"), "{}", finished.stderr);
}

#[test]
fn a_flood_of_garbage_does_not_put_off_the_deadline() {
    let scene = Scene::new();
    let holder = holder(&scene);
    let socket = end_of(holder.pid());
    let next = next_copy(&scene, timed(&scene, "6s"));
    let (garbage, over) = (garbage(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    for bytes in &garbage {
                        let _ = send(&socket, bytes, &[]);
                    }
                }
            });
        }
        holder.signal(Signal::SIGSTOP);
        // Whatever becomes of it, the flood must end.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| assert_found_nobody(&scene, next)));
        over.store(true, Ordering::Relaxed);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    holder.signal(Signal::SIGCONT);
    assert_code(&holder.finish(), 76);
}
