//! The messages between front and guard: one datagram of a SOCK_SEQPACKET socketpair each, a tag, the tenure, then
//! little-endian numbers. Both ends are one binary, but a datagram that is not understood is dropped, never guessed at.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{CmsgIterator, ControlMessageOwned, MsgFlags, recvmsg};

use crate::exit::Ended;
use crate::lease::{GuardEvent, Moment, Scope, SpawnError, Tenure, Token};

/// Longest datagram; a list of pids is cut to fit.
pub const MAX: usize = 512;
const MAX_PIDS: usize = 50;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToGuard {
    /// With a descriptor: the kernel lock, to be kept as long as anything of this tenure lives.
    Lock(Tenure),
    /// Nothing of this tenure is alive after that instant.
    Deadline(Tenure, Moment),
    Spawn(Tenure, Token),
    /// To the command (or its group).
    Signal(Tenure, i32),
    /// The stop signal, and SIGCONT so that one who is stopped hears it.
    Stop(Tenure, Scope),
    Kill(Tenure),
    /// The lease is released: no last will.
    Bye,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FromGuard {
    Event(GuardEvent),
    /// The command was stopped by a terminal signal.
    Stopped(Tenure),
}

impl ToGuard {
    pub fn encode(&self) -> Vec<u8> {
        match self {
            ToGuard::Lock(tenure) => message(1, *tenure, &[]),
            ToGuard::Deadline(tenure, at) => message(2, *tenure, &[at.nanos() as i64]),
            ToGuard::Spawn(tenure, token) => message(3, *tenure, &[token.0]),
            ToGuard::Signal(tenure, number) => message(4, *tenure, &[i64::from(*number)]),
            ToGuard::Stop(tenure, Scope::Command) => message(5, *tenure, &[]),
            ToGuard::Stop(tenure, Scope::Tree) => message(6, *tenure, &[]),
            ToGuard::Kill(tenure) => message(7, *tenure, &[]),
            ToGuard::Bye => message(8, Tenure(0), &[]),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<ToGuard> {
        let (tag, tenure, numbers) = parts(bytes)?;
        Some(match (tag, numbers.as_slice()) {
            (1, []) => ToGuard::Lock(tenure),
            (2, [at]) => ToGuard::Deadline(tenure, Moment::from_nanos(*at as u64)),
            (3, [token]) => ToGuard::Spawn(tenure, Token(*token)),
            (4, [number]) => ToGuard::Signal(tenure, i32::try_from(*number).ok().filter(|number| (1..=64).contains(number))?),
            (5, []) => ToGuard::Stop(tenure, Scope::Command),
            (6, []) => ToGuard::Stop(tenure, Scope::Tree),
            (7, []) => ToGuard::Kill(tenure),
            (8, []) => ToGuard::Bye,
            _ => return None,
        })
    }
}

impl FromGuard {
    pub fn encode(&self) -> Vec<u8> {
        let event = match self {
            FromGuard::Stopped(tenure) => return message(1, *tenure, &[]),
            FromGuard::Event(event) => event,
        };
        match event {
            GuardEvent::Spawned(tenure) => message(2, *tenure, &[]),
            GuardEvent::NotSpawned(tenure, error) => {
                let (step, errno) = match error {
                    SpawnError::Exec(errno) => (0, errno),
                    SpawnError::Directory(errno) => (1, errno),
                    SpawnError::Fork(errno) => (2, errno),
                };
                message(3, *tenure, &[step, i64::from(*errno)])
            }
            GuardEvent::Exited(tenure, ended, left) => {
                let (kind, number) = match ended {
                    Ended::Code(code) => (0, code),
                    Ended::Signal(signal) => (1, signal),
                };
                let numbers: Vec<i64> = [kind, i64::from(*number)].into_iter().chain(pids(left)).collect();
                message(4, *tenure, &numbers)
            }
            GuardEvent::Killing(tenure) => message(5, *tenure, &[]),
            GuardEvent::Survivors(tenure, left) => message(6, *tenure, &pids(left).collect::<Vec<i64>>()),
            GuardEvent::Empty(tenure) => message(7, *tenure, &[]),
            GuardEvent::Over(tenure) => message(8, *tenure, &[]),
            GuardEvent::Died => message(9, Tenure(0), &[]),
        }
    }

    pub fn decode(bytes: &[u8]) -> Option<FromGuard> {
        let (tag, tenure, numbers) = parts(bytes)?;
        Some(FromGuard::Event(match (tag, numbers.as_slice()) {
            (1, []) => return Some(FromGuard::Stopped(tenure)),
            (2, []) => GuardEvent::Spawned(tenure),
            (3, [step, errno]) => {
                let errno = i32::try_from(*errno).ok()?;
                let error = match step {
                    0 => SpawnError::Exec(errno),
                    1 => SpawnError::Directory(errno),
                    2 => SpawnError::Fork(errno),
                    _ => return None,
                };
                GuardEvent::NotSpawned(tenure, error)
            }
            (4, [kind, number, left @ ..]) => {
                let number = i32::try_from(*number).ok()?;
                let ended = match kind {
                    0 => Ended::Code(number),
                    1 => Ended::Signal(number),
                    _ => return None,
                };
                GuardEvent::Exited(tenure, ended, from_pids(left)?)
            }
            (5, []) => GuardEvent::Killing(tenure),
            (6, left) => GuardEvent::Survivors(tenure, from_pids(left)?),
            (7, []) => GuardEvent::Empty(tenure),
            (8, []) => GuardEvent::Over(tenure),
            (9, []) => GuardEvent::Died,
            _ => return None,
        }))
    }
}

/// More would help nobody who reads the line.
fn pids(left: &[i32]) -> impl Iterator<Item = i64> {
    left.iter().take(MAX_PIDS).map(|pid| i64::from(*pid))
}

fn from_pids(numbers: &[i64]) -> Option<Vec<i32>> {
    numbers.iter().map(|number| i32::try_from(*number).ok()).collect()
}

fn message(tag: u8, tenure: Tenure, numbers: &[i64]) -> Vec<u8> {
    let mut bytes = vec![tag];
    bytes.extend(tenure.0.to_le_bytes());
    bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    debug_assert!(bytes.len() <= MAX);
    bytes
}

fn parts(bytes: &[u8]) -> Option<(u8, Tenure, Vec<i64>)> {
    let (tag, rest) = bytes.split_first()?;
    let (tenure, rest) = rest.split_first_chunk::<4>()?;
    let (numbers, []) = rest.as_chunks::<8>() else { return None };
    Some((*tag, Tenure(u32::from_le_bytes(*tenure)), numbers.iter().map(|number| i64::from_le_bytes(*number)).collect()))
}

/// What the guard's end of the socket gave.
pub enum Received {
    Message(ToGuard, Option<OwnedFd>),
    NotUnderstood,
    NothingYet,
    /// The front is dead.
    Closed,
}

/// Does not wait. A descriptor that comes along is closed on exec.
pub fn receive(socket: &OwnedFd) -> Received {
    let mut bytes = [0; MAX];
    let mut iov = [IoSliceMut::new(&mut bytes)];
    // As many as one message can carry (SCM_MAX_FD): where room is short nix tells of none, and those that came stay open.
    let mut space = nix::cmsg_space!([libc::c_int; 253]);
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let (length, lock) = loop {
        match recvmsg::<()>(socket.as_raw_fd(), &mut iov, Some(&mut space), flags) {
            Ok(message) if message.bytes > 0 => break (message.bytes, message.cmsgs().ok().and_then(descriptor)),
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Received::NothingYet,
            Ok(_) | Err(_) => return Received::Closed,
        }
    };
    ToGuard::decode(&bytes[..length]).map_or(Received::NotUnderstood, |message| Received::Message(message, lock))
}

fn descriptor(messages: CmsgIterator<'_>) -> Option<OwnedFd> {
    let mut found = None;
    for message in messages {
        if let ControlMessageOwned::ScmRights(fds) = message {
            for fd in fds {
                // SAFETY: the kernel has just made it for us; all but the last are closed here.
                found = Some(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_comes_back_as_it_was_sent() {
        let tenure = Tenure(7);
        let to_guard = [
            ToGuard::Lock(tenure),
            ToGuard::Deadline(tenure, Moment::from_nanos(u64::MAX)),
            ToGuard::Spawn(tenure, Token(-1)),
            ToGuard::Signal(tenure, 64),
            ToGuard::Stop(tenure, Scope::Command),
            ToGuard::Stop(tenure, Scope::Tree),
            ToGuard::Kill(tenure),
            ToGuard::Bye,
        ];
        for message in to_guard {
            assert_eq!(ToGuard::decode(&message.encode()), Some(message));
        }
        let events = [
            GuardEvent::Spawned(tenure),
            GuardEvent::NotSpawned(tenure, SpawnError::Directory(2)),
            GuardEvent::Exited(tenure, Ended::Signal(9), vec![1, i32::MAX]),
            GuardEvent::Killing(tenure),
            GuardEvent::Survivors(tenure, vec![]),
            GuardEvent::Empty(tenure),
            GuardEvent::Over(tenure),
            GuardEvent::Died,
        ];
        for message in events.map(FromGuard::Event).into_iter().chain([FromGuard::Stopped(tenure)]) {
            assert_eq!(FromGuard::decode(&message.encode()), Some(message));
        }
    }

    #[test]
    fn a_list_of_pids_is_cut_to_fit_a_datagram() {
        let many = FromGuard::Event(GuardEvent::Survivors(Tenure(1), (1..1000).collect()));
        assert!(many.encode().len() <= MAX);
    }

    #[test]
    fn what_is_not_understood_is_dropped() {
        let good = ToGuard::Spawn(Tenure(1), Token(2)).encode();
        for cut in 0..good.len() {
            assert_eq!(ToGuard::decode(&good[..cut]), None);
        }
        assert_eq!(ToGuard::decode(&[0; 5]), None);
        assert_eq!(ToGuard::decode(&ToGuard::Signal(Tenure(1), 65).encode()), None);
        assert_eq!(FromGuard::decode(&[200; 13]), None);
    }
}
