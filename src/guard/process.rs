//! The guard: parent of the command, subreaper, one thread, no disk or network I/O while anything below it lives. One
//! duty: nothing below it is alive after the deadline that it was last given, or once the front is dead. Then, when
//! nothing is left, it gives the lease back in the front's place (the last will).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigEvent, SigSet, SigevNotify, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::socket::{MsgFlags, send};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::unistd::{ForkResult, fork};

use super::spawn::{self, Job, Starting};
use super::tree::{self, Killing, Waited};
use super::wire::{self, FromGuard, Received, ToGuard};
use crate::exit::Ended;
use crate::lease::{GuardEvent, Moment, RELEASE_TIME, Scope, Tenure, Token};

/// While it kills past the deadline, the guard shows that it is not stopped by pushing its own death so far away, again and
/// again: the front, as long as there is one, takes a dead guard's place.
const SELF_KILL_WHILE_KILLING: Duration = Duration::from_secs(1);
/// So many looks for what a command left, a millisecond apart; then all that is there counts, dead as it may look.
const WALKS: u32 = 20;
/// The last will is given up then; it gives up by itself before.
const WILL_TIME: Duration = Duration::from_millis(RELEASE_TIME.as_millis() as u64 + 500);

/// What the guard is given by those who know more than it does.
pub struct Parts<'a> {
    pub job: &'a Job,
    /// The pid of the front, as long as it lives.
    pub front: i32,
    pub now: fn() -> Moment,
    /// Gives the lease back, if it is still ours by this token. Run in a child of its own; may block or fail.
    pub last_will: &'a dyn Fn(Token),
}

struct Guard<'a> {
    parts: Parts<'a>,
    socket: OwnedFd,
    timer: TimerFd,
    self_kill: Timer,
    children: SignalFd,
    front_dead: bool,
    /// A command was started before.
    again: bool,
    tenure: TenureState,
}

#[derive(Default)]
struct TenureState {
    number: Tenure,
    /// Set by the first DEADLINE. It is never taken back.
    deadline: Option<Moment>,
    token: Option<Token>,
    locks: Vec<OwnedFd>,
    starting: Option<Starting>,
    command: Option<i32>,
    /// How the command ended, until the front knows that nothing is left of it.
    ended: Option<Ended>,
    /// What it left was told, or there was nothing.
    left_told: bool,
    /// How often what is left was looked for in vain.
    walks: u32,
    killing: Option<Killing>,
    /// Nothing lives and nothing will start.
    over: bool,
}

/// Never returns. `socket` is the guard's end; the front's end is closed in this process already.
pub fn run(socket: OwnedFd, parts: Parts<'_>) -> ! {
    match Guard::new(socket, parts) {
        Ok(mut guard) => guard.serve(),
        // The front sees the socket close and says that the guard died.
        Err(_) => exit(1),
    }
}

fn exit(code: i32) -> ! {
    // SAFETY: no destructors, no flushing: the standard streams are the caller's.
    unsafe { libc::_exit(code) }
}

impl<'a> Guard<'a> {
    fn new(socket: OwnedFd, parts: Parts<'a>) -> nix::Result<Guard<'a>> {
        let _ = nix::sys::prctl::set_name(c"lockrun-guard");
        // Away from the terminal's signals and from kill(0) of the front's neighbours.
        let _ = nix::unistd::setpgid(nix::unistd::Pid::from_raw(0), nix::unistd::Pid::from_raw(0));
        nix::sys::prctl::set_child_subreaper(true)?;
        super::inherited::block_all();
        // An inherited SIG_IGN would make the kernel reap the command without a word.
        super::inherited::set_disposition(libc::SIGCHLD, libc::SIG_DFL);
        let mut chld = SigSet::empty();
        chld.add(Signal::SIGCHLD);
        let children = SignalFd::with_flags(&chld, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        let death = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 });
        let self_kill = Timer::new(nix::time::ClockId::CLOCK_BOOTTIME, death)?;
        Ok(Guard { parts, socket, timer, self_kill, children, front_dead: false, again: false, tenure: TenureState::default() })
    }

    fn serve(&mut self) -> ! {
        loop {
            let starting = self.tenure.starting.as_ref().map(|starting| readable(starting.fd()));
            // The end of the socket stays readable for ever.
            let socket = (!self.front_dead).then(|| readable(self.socket.as_fd()));
            let mut fds = [readable(self.timer.as_fd()), readable(self.children.as_fd())].to_vec();
            fds.extend(starting.into_iter().chain(socket));
            let _ = poll(&mut fds, self.patience());
            let started = self.tenure.starting.is_some() && fds[2].any().unwrap_or(false);
            drop(fds);
            // The deadline first: a flood of messages or of dying children must not put it off.
            self.look_at_the_clock();
            self.receive();
            if started {
                self.on_started();
            }
            self.reap();
            if self.tenure.killing.is_some() {
                self.kill_pass();
            }
        }
    }

    fn patience(&self) -> PollTimeout {
        match &self.tenure.killing {
            Some(killing) => PollTimeout::try_from(killing.pause()).unwrap_or(PollTimeout::ZERO),
            None if self.tenure.ended.is_some() && !self.tenure.left_told => PollTimeout::from(1_u8),
            None => PollTimeout::NONE,
        }
    }

    fn look_at_the_clock(&mut self) {
        let _ = nix::unistd::read(&self.timer, &mut [0; 8]); // it stays readable until it is read
        if self.tenure.deadline.is_some_and(|deadline| deadline <= (self.parts.now)()) {
            self.begin_to_kill();
        }
    }

    /// One message a turn: whoever fills the socket faster than it is read must not keep the guard from the clock.
    fn receive(&mut self) {
        if self.front_dead {
            return;
        }
        match wire::receive(&self.socket) {
            Received::Message(message, lock) => self.on_message(message, lock),
            Received::NotUnderstood | Received::NothingYet => {}
            Received::Closed => {
                self.front_dead = true;
                self.begin_to_kill();
                // Nobody takes its place any more: starved for a second (seen among 50 fork chains), or in a container
                // that was paused past the deadline, it must not leave alive what it has not ended yet.
                self.arm_self_kill(None);
            }
        }
    }

    fn on_message(&mut self, message: ToGuard, lock: Option<OwnedFd>) {
        let tenure = match message {
            ToGuard::Bye => {
                // Nothing of ours lives when the front says so; if it is wrong, nothing may live on.
                if !self.reap() {
                    tree::signal_all(libc::SIGKILL);
                }
                exit(0)
            }
            ToGuard::Lock(tenure)
            | ToGuard::Deadline(tenure, _)
            | ToGuard::Spawn(tenure, _)
            | ToGuard::Signal(tenure, _)
            | ToGuard::Stop(tenure, _)
            | ToGuard::Kill(tenure) => tenure,
        };
        let empty = self.tenure.over
            || (self.tenure.command.is_none() && self.tenure.killing.is_none() && self.tenure.ended.is_none() && self.reap());
        if tenure > self.tenure.number && empty {
            // The locks of the last one close here.
            self.tenure = TenureState { number: tenure, ..TenureState::default() };
            self.arm(None);
        }
        if tenure != self.tenure.number || self.tenure.over {
            return self.say(GuardEvent::Over(tenure));
        }
        match message {
            ToGuard::Lock(_) => match lock {
                Some(lock) => self.keep(lock),
                None => {
                    // No descriptor was free for it: nothing may start that others could not see.
                    self.tenure.over = true;
                    self.say(GuardEvent::Over(tenure));
                }
            },
            ToGuard::Deadline(_, at) => self.extend(at),
            ToGuard::Spawn(_, token) => self.spawn(token),
            ToGuard::Signal(_, number) => {
                if let Some(command) = self.tenure.command {
                    spawn::signal(self.parts.job, command, number);
                }
            }
            ToGuard::Stop(_, scope) => self.stop(scope),
            ToGuard::Kill(_) => self.begin_to_kill(),
            ToGuard::Bye => unreachable!("handled above"),
        }
    }

    /// Before the command starts only the newest counts. After that the command has the first, and a newer one (of a side
    /// file that was made anew) is kept beside it.
    fn keep(&mut self, lock: OwnedFd) {
        self.tenure.locks.truncate(usize::from(self.tenure.command.is_some()));
        self.tenure.locks.push(lock);
    }

    /// A deadline that has passed is passed: `look_at_the_clock` has run since, and kills.
    fn extend(&mut self, at: Moment) {
        let now = (self.parts.now)();
        if self.tenure.killing.is_none() && self.tenure.deadline.is_none_or(|deadline| now < deadline && deadline < at) {
            self.tenure.deadline = Some(at);
            self.arm(Some(at));
        }
        self.look_at_the_clock();
    }

    fn arm(&mut self, deadline: Option<Moment>) {
        let _ = match deadline {
            None => self.timer.unset(),
            Some(deadline) => {
                let flags = TimerSetTimeFlags::TFD_TIMER_ABSTIME;
                self.timer.set(nix::sys::timerfd::Expiration::OneShot(timespec(deadline)), flags)
            }
        };
        self.arm_self_kill(deadline.map(|deadline| self.overdue(deadline)));
    }

    /// Half a kill time after the deadline, because a guard that is only starved (measured under a CPU quota: 250 ms late)
    /// must not die before it has killed.
    fn overdue(&self, deadline: Moment) -> Moment {
        deadline + self.parts.job.kill_time / 2
    }

    /// A stopped guard cannot kill; its own death makes the front, which is a subreaper too, do it. `None`: far away.
    fn arm_self_kill(&mut self, at: Option<Moment>) {
        let at = at.unwrap_or(Moment::from_nanos(i64::MAX as u64));
        let _ = self.self_kill.set(Expiration::OneShot(timespec(at)), TimerSetTimeFlags::TFD_TIMER_ABSTIME);
    }

    fn spawn(&mut self, token: Token) {
        let tenure = self.tenure.number;
        self.look_at_the_clock();
        if self.tenure.deadline.is_none() {
            self.tenure.over = true; // its message was lost: nothing may start
            return self.say(GuardEvent::Over(tenure));
        }
        if self.tenure.killing.is_some() || self.tenure.command.is_some() {
            return; // Over is said when the kill finds nothing
        }
        self.tenure.token = Some(token);
        match spawn::start(self.parts.job, self.parts.front, token, &self.tenure.locks, self.again) {
            Ok(starting) => {
                self.tenure.command = Some(starting.pid);
                self.tenure.starting = Some(starting);
                self.say(GuardEvent::Spawned(tenure));
            }
            Err(error) => self.say(GuardEvent::NotSpawned(tenure, error)),
        }
        // The directory of the caller must not be kept busy.
        let _ = nix::unistd::chdir("/");
        self.again = true;
    }

    /// False: the command could not be executed.
    fn on_started(&mut self) -> bool {
        let Some(Err(error)) = self.tenure.starting.take().map(Starting::outcome) else { return true };
        self.tenure.command = None;
        self.say(GuardEvent::NotSpawned(self.tenure.number, error));
        false
    }

    fn stop(&mut self, scope: Scope) {
        let signal = self.parts.job.stop_signal;
        match (scope, self.tenure.command) {
            (Scope::Command, Some(command)) => {
                spawn::signal(self.parts.job, command, signal);
                spawn::signal(self.parts.job, command, libc::SIGCONT);
            }
            (Scope::Command, None) => {}
            (Scope::Tree, _) => {
                tree::signal_all(signal);
                tree::signal_all(libc::SIGCONT);
            }
        }
    }

    fn begin_to_kill(&mut self) {
        if self.tenure.killing.is_none() {
            self.tenure.killing = Some(Killing::new((self.parts.now)()));
            self.say(GuardEvent::Killing(self.tenure.number));
        }
    }

    fn kill_pass(&mut self) {
        let now = (self.parts.now)();
        if !self.front_dead {
            let overdue = self.tenure.deadline.map(|deadline| self.overdue(deadline));
            self.arm_self_kill(Some(now + SELF_KILL_WHILE_KILLING).max(overdue));
        }
        let survivors = self.tenure.killing.as_mut().and_then(|killing| killing.strike(now));
        if let Some(command) = self.tenure.command {
            // Whatever has become of /proc: this one is known.
            let _ = tree::send(command, libc::SIGKILL);
        }
        if self.reap() {
            self.end_tenure();
        } else if let Some(survivors) = survivors {
            self.say(GuardEvent::Survivors(self.tenure.number, survivors));
        }
    }

    /// Takes every child that has changed, and tells the front what it needs to know. True: none is left, and with it no
    /// descendant, because orphans become children of this process.
    fn reap(&mut self) -> bool {
        while let Ok(Some(_)) = self.children.read_signal() {}
        let mut ended = None;
        let none_left = loop {
            match tree::wait_any(self.parts.job.terminal) {
                Waited::Ended(pid, how) if self.tenure.command == Some(pid) => ended = Some(how),
                Waited::Stopped(pid) if self.tenure.command == Some(pid) => {
                    self.send(&FromGuard::Stopped(self.tenure.number));
                }
                Waited::Ended(..) | Waited::Stopped(_) => {}
                Waited::Nothing => break false,
                Waited::NoChildren => break true,
            }
        };
        // A child that could not execute ends too, and its report lies in the pipe by then.
        if ended.is_some() && self.on_started() {
            self.tenure.command = None;
            self.tenure.ended = ended;
            self.tenure.left_told = false;
            self.tenure.walks = 0;
        }
        if let Some(ended) = self.tenure.ended {
            self.tell_end(ended, none_left);
        }
        none_left
    }

    /// The end of the command and what it left. One walk may miss a process that changes its parent meanwhile: as long as
    /// there are children and none was found, it is walked again.
    fn tell_end(&mut self, ended: Ended, none_left: bool) {
        let tenure = self.tenure.number;
        if !self.tenure.left_told {
            self.tenure.walks += 1;
            let left = match none_left {
                true => Vec::new(),
                false if self.tenure.walks < WALKS => tree::living_descendants(),
                false => tree::descendants(), // whatever they look like
            };
            if none_left || !left.is_empty() {
                self.tenure.left_told = true;
                self.say(GuardEvent::Exited(tenure, ended, left));
            }
        }
        if none_left && self.tenure.killing.is_none() {
            self.tenure.ended = None;
            self.say(GuardEvent::Empty(tenure));
        }
    }

    /// Nothing lives. After a kill the tenure is over: give the lease back, then the kernel lock, in this order.
    fn end_tenure(&mut self) {
        let tenure = self.tenure.number;
        self.tenure.killing = None;
        self.tenure.ended = None;
        let passed = self.tenure.deadline.is_none_or(|deadline| deadline <= (self.parts.now)());
        self.say(GuardEvent::Empty(tenure));
        if !self.front_dead && !passed {
            // Killed at the front's word (grace over, row taken): it goes on renewing and releases itself.
            return self.arm(self.tenure.deadline);
        }
        self.arm(None);
        // One that is stopped in the middle of this must not keep the kernel lock for ever.
        self.arm_self_kill(Some((self.parts.now)() + WILL_TIME + SELF_KILL_WHILE_KILLING));
        if let Some(token) = self.tenure.token {
            self.run_last_will(token);
        }
        for lock in self.tenure.locks.drain(..) {
            super::unlock(&lock);
        }
        self.arm_self_kill(None);
        self.tenure.deadline = None;
        self.tenure.over = true;
        if self.front_dead {
            exit(0);
        }
        self.say(GuardEvent::Over(tenure));
    }

    /// In a child, because it does I/O that may hang. No exec: this process never had a thread, so a fork of it can do
    /// anything.
    fn run_last_will(&mut self, token: Token) {
        // SAFETY: one thread.
        let Ok(ForkResult::Parent { child }) = (unsafe { fork() }) else {
            self.tenure.locks.clear(); // a hanging child must not keep the kernel lock
            let _ = nix::sys::prctl::set_name(c"lockrun-will");
            (self.parts.last_will)(token);
            exit(0)
        };
        let give_up_at = (self.parts.now)() + WILL_TIME;
        while (self.parts.now)() < give_up_at {
            match tree::wait_any(false) {
                Waited::Ended(pid, _) if pid == child.as_raw() => return,
                Waited::NoChildren => return,
                Waited::Ended(..) | Waited::Stopped(_) | Waited::Nothing => {}
            }
            let mut fds = [readable(self.children.as_fd())];
            let _ = poll(&mut fds, PollTimeout::from(100_u8));
            while let Ok(Some(_)) = self.children.read_signal() {}
        }
        let _ = tree::send(child.as_raw(), libc::SIGKILL);
    }

    fn say(&self, event: GuardEvent) {
        self.send(&FromGuard::Event(event));
    }

    /// Never blocks. A front that does not read is stopped or dead, and the guard acts without it.
    fn send(&self, message: &FromGuard) {
        let _ = send(self.socket.as_raw_fd(), &message.encode(), MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL);
    }
}

/// Never zero, which would disarm a timer.
fn timespec(at: Moment) -> TimeSpec {
    TimeSpec::from_duration(Duration::from_nanos(at.nanos().max(1)))
}

fn readable(fd: BorrowedFd<'_>) -> PollFd<'_> {
    PollFd::new(fd, PollFlags::POLLIN)
}
