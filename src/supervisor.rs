//! The one loop: events in, actions out. It carries what the machine decides to the store and the guard, and their answers
//! back. Must never decide, and never block.

use std::future::{Future, pending};
use std::io;
use std::pin::Pin;

use crate::clock::{self, Sleeper, StepWatch};
use crate::guard::{Adopted, FromGuard, Guard, ToGuard};
use crate::lease::{Action, Event, GuardEvent, LeaseName, Machine, Moment, Outcome, Reply, Report, Request, Token};
use crate::signals::{self, Heard, Signals};
use crate::store::{Store, StoreError};
use crate::told::{Teller, Trouble};
use crate::{logging, report};

type InFlight<'a> = Pin<Box<dyn Future<Output = (Request, Reply)> + 'a>>;
type Watch<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

pub struct Supervisor<'a, S: Store> {
    store: &'a S,
    name: &'a LeaseName,
    guard: &'a Guard,
    signals: Signals,
    stop_signal: i32,
    machine: Machine,
    /// Of the lease that is held, for the log.
    token: Option<Token>,
    sleeper: Sleeper,
    steps: StepWatch,
    /// The guard is dead, and its work is done here: the next pass is due then.
    kill_again_at: Option<Moment>,
    /// The command was stopped from its terminal: stop too, once nothing is in flight.
    suspend: bool,
    /// The SIGCONT that ended our stop is still to be heard. The shell sent it to the whole group: passed on late, it would
    /// undo the next Ctrl-Z of the command before the guard has seen it.
    resumed: bool,
    /// For those who only look.
    teller: Option<Teller>,
}

impl<'a, S: Store> Supervisor<'a, S> {
    /// Inside the runtime.
    pub fn new(
        store: &'a S,
        name: &'a LeaseName,
        guard: &'a Guard,
        signals: Signals,
        machine: Machine,
        stop_signal: i32,
        teller: Option<Teller>,
    ) -> io::Result<Supervisor<'a, S>> {
        let (sleeper, steps) = (Sleeper::new()?, StepWatch::new()?);
        Ok(Supervisor {
            store,
            name,
            guard,
            signals,
            stop_signal,
            machine,
            token: None,
            sleeper,
            steps,
            kill_again_at: None,
            suspend: false,
            resumed: false,
            teller,
        })
    }

    pub async fn run(mut self) -> Outcome {
        let mut request: Option<InFlight<'a>> = None;
        let mut watch: Option<Watch<'a>> = None;
        loop {
            while let Some(action) = self.machine.poll_action() {
                if let (Some(teller), Some(_), Action::Read(_) | Action::Swap { .. }) = (&mut self.teller, &request, &action) {
                    teller.trouble(Trouble::Timeout); // the machine waits no longer for the one in flight
                }
                match action {
                    Action::Read(number) => {
                        watch = None;
                        let (store, name) = (self.store, self.name);
                        request = Some(Box::pin(async move { (number, reply(store.read(name, clock::now()).await.map(Reply::Snapshot))) }));
                    }
                    Action::Swap { request: number, expect, record } => {
                        watch = None;
                        let (store, name) = (self.store, self.name);
                        let swap = async move { reply(store.swap(name, &expect, &record).await.map(Reply::Swapped)) };
                        request = Some(Box::pin(async move { (number, swap.await) }));
                    }
                    Action::Watch(version) => {
                        let (store, name) = (self.store, self.name);
                        watch = Some(Box::pin(async move { store.changed(name, &version).await }));
                    }
                    Action::Deadline(tenure, at) => self.guard.send(&ToGuard::Deadline(tenure, at)),
                    Action::Spawn(tenure, token) => self.guard.send(&ToGuard::Spawn(tenure, token)),
                    Action::Forward(tenure, signal) => self.guard.send(&ToGuard::Signal(tenure, signal)),
                    Action::Stop(tenure, scope) => self.guard.send(&ToGuard::Stop(tenure, scope)),
                    Action::Kill(tenure) => self.guard.send(&ToGuard::Kill(tenure)),
                    Action::KillGuard => self.guard.kill(),
                    Action::Unlock => self.store.unlock(),
                    Action::Report(report) => self.tell(&report),
                    Action::Exit(outcome) => {
                        self.show(None);
                        return outcome;
                    }
                }
            }
            if self.suspend && request.is_none() {
                self.stop_myself();
                self.machine.handle(clock::snapshot(), Event::Tick);
                continue;
            }
            if request.is_none() {
                self.listen_to_all(); // the claim is through, or there is somebody to wait for
            }
            let deadline = self.kill_again_at.into_iter().chain(self.machine.deadline()).min();
            self.show(deadline);
            let event = tokio::select! {
                biased; // a flood of signals or of replies must not put off a deadline
                () = self.sleeper.sleep_until(deadline) => self.on_time(),
                message = self.guard.receive() => self.on_guard(message),
                heard = self.signals.next() => self.on_signal(heard),
                (number, reply) = current(&mut request) => {
                    request = None;
                    self.on_reply(number, reply)
                }
                () = current(&mut watch) => {
                    watch = None;
                    Event::Changed
                }
                () = self.steps.stepped() => Event::ClockStepped,
            };
            self.machine.handle(clock::snapshot(), event);
        }
    }

    fn show(&mut self, due_at: Option<Moment>) {
        if let Some(teller) = &mut self.teller {
            teller.tell(clock::now(), clock::wall_ms(), self.machine.view(), due_at);
        }
    }

    fn tell(&mut self, report: &Report) {
        if let Some(teller) = &mut self.teller {
            teller.on_report(report);
        }
        if let Report::Acquired { token, .. } = report {
            self.token = Some(*token);
        }
        report::tell(self.name, self.token, report, || self.store.lock_holders());
        if let Report::Released = report {
            self.token = None;
        }
    }

    fn listen_to_all(&mut self) {
        if let Err(error) = self.signals.listen_to_all() {
            report::warn(self.name, format!("signals: {error}; some will not be passed on"));
        }
    }

    fn on_time(&mut self) -> Event {
        self.listen_to_all(); // also where the store does not answer
        // After a stop the guard may have told already what the clock would only guess at.
        if let Some(message) = self.guard.pending() {
            return self.on_guard(message);
        }
        let now = clock::now();
        if self.kill_again_at.is_none_or(|at| now < at) {
            return Event::Tick;
        }
        let tenure = self.machine.tenure();
        match self.guard.kill_adopted(now) {
            Adopted::Nothing => {
                self.kill_again_at = None;
                Event::Guard(GuardEvent::Empty(tenure))
            }
            Adopted::Something(pause, survivors) => {
                self.kill_again_at = Some(now + pause);
                survivors.map_or(Event::Tick, |pids| Event::Guard(GuardEvent::Survivors(tenure, pids)))
            }
        }
    }

    fn on_guard(&mut self, message: FromGuard) -> Event {
        match message {
            FromGuard::Event(event) => {
                if event == GuardEvent::Died {
                    self.kill_again_at = Some(clock::now());
                }
                Event::Guard(event)
            }
            FromGuard::Stopped(tenure) if tenure == self.machine.tenure() => {
                self.suspend = true;
                Event::ClockStepped // renew, so that the stop begins with a whole lease
            }
            FromGuard::Stopped(_) => Event::Tick,
        }
    }

    fn on_signal(&mut self, heard: Heard) -> Event {
        let holding = self.machine.is_holding();
        match heard {
            Heard::Child => {
                self.guard.reap_strangers();
                Event::Tick
            }
            // With a command it is the command that stops, and the guard that tells.
            Heard::Suspend => {
                self.suspend |= !holding;
                Event::Tick
            }
            Heard::Forward(libc::SIGCONT) if self.resumed => {
                self.resumed = false;
                Event::Tick
            }
            Heard::Forward(signal) | Heard::Terminal(signal) if !holding => {
                if signals::ends_a_waiter(signal) {
                    return Event::Signal { number: signal, ends: true };
                }
                self.suspend |= signal == libc::SIGTSTP;
                Event::Tick
            }
            Heard::Forward(signal) => {
                let number = if signal == libc::SIGTERM { self.stop_signal } else { signal };
                Event::Signal { number, ends: signals::asks_to_end(number, self.stop_signal) }
            }
            Heard::Terminal(_) => Event::Tick,
        }
    }

    fn on_reply(&mut self, request: Request, reply: Reply) -> Event {
        // First the guard gets the kernel lock, so that what the machine does next finds it there.
        if let Some(lock) = self.store.new_lock() {
            self.guard.send_lock(self.machine.tenure(), &lock);
        }
        if let Some(warning) = self.store.warning() {
            report::warn(self.name, warning);
        }
        if let Some(teller) = &mut self.teller {
            teller.on_reply(&reply);
        }
        Event::Reply { request, reply }
    }

    /// Job control: the shell must see this process stop. Nothing is in flight, so no transaction is left open.
    fn stop_myself(&mut self) {
        self.suspend = false;
        if self.machine.is_holding() {
            report::warn(self.name, "stopped with the command; the lease runs out unless both are continued in time");
        }
        logging::flush();
        // SAFETY: no pointers. Returns when the process is continued.
        unsafe { libc::raise(libc::SIGSTOP) };
        self.resumed = true;
    }
}

fn reply(result: Result<Reply, StoreError>) -> Reply {
    match result {
        Ok(reply) => reply,
        Err(StoreError::Unknown(error)) => Reply::Unknown(error),
        Err(StoreError::Refused(error)) => Reply::Refused(error),
    }
}

/// The future that is there, or none for ever. Dropping this does not drop it.
async fn current<T>(future: &mut Option<Pin<Box<dyn Future<Output = T> + '_>>>) -> T {
    match future {
        Some(future) => future.await,
        None => pending().await,
    }
}
