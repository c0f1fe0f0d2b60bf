//! The pipe between front and guard: any bytes are a message or nothing, and a message comes back as it was sent.

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::path::Path;

use lockrun::exit::Ended;
use lockrun::guard::wire::{self, FromGuard, Received, ToGuard};
use lockrun::lease::{GuardEvent, Moment, Scope, SpawnError, Tenure, Token};
use nix::sys::socket::{AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::check;

fn to_guard() -> impl Strategy<Value = ToGuard> {
    let tenure = any::<u32>().prop_map(Tenure);
    prop_oneof![
        tenure.clone().prop_map(ToGuard::Lock),
        (tenure.clone(), any::<u64>()).prop_map(|(tenure, at)| ToGuard::Deadline(tenure, Moment::from_nanos(at))),
        (tenure.clone(), any::<i64>()).prop_map(|(tenure, token)| ToGuard::Spawn(tenure, Token(token))),
        (tenure.clone(), 1..=64_i32).prop_map(|(tenure, number)| ToGuard::Signal(tenure, number)),
        (tenure.clone(), any::<bool>()).prop_map(|(tenure, tree)| ToGuard::Stop(tenure, if tree { Scope::Tree } else { Scope::Command })),
        tenure.prop_map(ToGuard::Kill),
        Just(ToGuard::Bye),
    ]
}

fn from_guard() -> impl Strategy<Value = FromGuard> {
    let tenure = any::<u32>().prop_map(Tenure);
    let pids = || vec(any::<i32>(), 0..70);
    let ended = (any::<bool>(), any::<i32>()).prop_map(|(code, number)| if code { Ended::Code(number) } else { Ended::Signal(number) });
    let error = (0..3, any::<i32>()).prop_map(|(step, errno)| match step {
        0 => SpawnError::Exec(errno),
        1 => SpawnError::Directory(errno),
        _ => SpawnError::Fork(errno),
    });
    let event = prop_oneof![
        tenure.clone().prop_map(GuardEvent::Spawned),
        (tenure.clone(), error).prop_map(|(tenure, error)| GuardEvent::NotSpawned(tenure, error)),
        (tenure.clone(), ended, pids()).prop_map(|(tenure, ended, left)| GuardEvent::Exited(tenure, ended, left)),
        tenure.clone().prop_map(GuardEvent::Killing),
        (tenure.clone(), pids()).prop_map(|(tenure, left)| GuardEvent::Survivors(tenure, left)),
        tenure.clone().prop_map(GuardEvent::Empty),
        tenure.clone().prop_map(GuardEvent::Over),
        Just(GuardEvent::Died),
    ];
    prop_oneof![8 => event.prop_map(FromGuard::Event), 1 => tenure.prop_map(FromGuard::Stopped)]
}

/// Bytes that are nearly a message, and bytes that are not.
fn datagram() -> impl Strategy<Value = Vec<u8>> {
    let near = (0..12_u8, any::<u32>(), vec(prop_oneof![any::<i64>(), -3..70_i64], 0..4), vec(any::<u8>(), 0..2));
    let near = near.prop_map(|(tag, tenure, numbers, more)| {
        let numbers = numbers.into_iter().flat_map(i64::to_le_bytes);
        [tag].into_iter().chain(tenure.to_le_bytes()).chain(numbers).chain(more).collect()
    });
    prop_oneof![3 => near, 1 => vec(any::<u8>(), 0..64), 1 => vec(any::<u8>(), wire::MAX - 9..wire::MAX + 40)]
}

#[test]
fn a_message_comes_back_as_it_was_sent() {
    check(2_000, to_guard(), |message| {
        let bytes = message.encode();
        assert!(bytes.len() <= wire::MAX);
        assert_eq!(ToGuard::decode(&bytes), Some(message));
    });
    check(2_000, from_guard(), |message| {
        let bytes = message.encode();
        assert!(bytes.len() <= wire::MAX);
        let back = FromGuard::decode(&bytes).expect("a message");
        let start = |message: &FromGuard| match message {
            // A list is cut to fit.
            FromGuard::Event(GuardEvent::Exited(tenure, ended, left)) => {
                (Some((*tenure, Some(*ended))), left.iter().take(50).copied().collect())
            }
            FromGuard::Event(GuardEvent::Survivors(tenure, left)) => (Some((*tenure, None)), left.iter().take(50).copied().collect()),
            FromGuard::Event(_) | FromGuard::Stopped(_) => (None, Vec::new()),
        };
        assert_eq!(start(&back), start(&message));
        assert!(start(&message).0.is_some() || back == message);
    });
}

#[test]
fn bytes_that_are_no_message_are_none_and_a_message_is_written_in_one_way() {
    check(5_000, datagram(), |bytes| {
        if let Some(message) = ToGuard::decode(&bytes) {
            assert!(message == ToGuard::Bye || message.encode() == bytes, "{message:?}");
        }
        if let Some(message) = FromGuard::decode(&bytes) {
            let cut = matches!(message, FromGuard::Event(GuardEvent::Died | GuardEvent::Exited(..) | GuardEvent::Survivors(..)));
            assert!(cut || message.encode() == bytes, "{message:?}");
        }
    });
}

/// The descriptors of this process that lead to that file.
fn descriptors_of(path: &Path) -> usize {
    let path = std::fs::canonicalize(path).expect("there");
    let all = std::fs::read_dir("/proc/self/fd").expect("/proc").flatten();
    all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|target| target == path)).count()
}

#[test]
fn a_datagram_with_any_descriptors_leaves_at_most_the_one_that_it_gives() {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).expect("a socket");
    let given = tempfile::NamedTempFile::new().expect("a file");
    let bytes =
        prop_oneof![datagram(), to_guard().prop_map(|message| message.encode())].prop_filter("not the end", |bytes| !bytes.is_empty());
    check(500, (bytes, prop_oneof![0..5_usize, 250..254_usize]), |(bytes, count)| {
        let fds = vec![given.as_raw_fd(); count];
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if count == 0 { &[] } else { &rights[..] };
        sendmsg::<()>(ours.as_raw_fd(), &[IoSlice::new(&bytes)], rights, MsgFlags::empty(), None).expect("sent");
        let expected = (bytes.len() <= wire::MAX).then(|| ToGuard::decode(&bytes)).flatten();
        match (wire::receive(&theirs), expected) {
            (Received::Message(message, lock), Some(expected)) => {
                assert_eq!((message, lock.is_some()), (expected, count > 0));
                assert_eq!(descriptors_of(given.path()), 1 + usize::from(lock.is_some()));
            }
            (Received::NotUnderstood, None) => {}
            (_, expected) => panic!("{expected:?}"),
        }
        assert_eq!(descriptors_of(given.path()), 1, "some of {count} stayed open");
        assert!(matches!(wire::receive(&theirs), Received::NothingYet));
    });
}
