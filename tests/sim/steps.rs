//! What happens at one instant of the simulation: to a front, at the store, in a guard.

use lockrun::exit::Ended;
use lockrun::lease::{Action, Event, Evidence, GuardEvent, Moment, Reply, Report, Scope, SpawnError, Swap, Tenure, Token, Version};

use crate::guard::{Order, Tree};
use crate::world::{MS, Variant, What, World};

impl World {
    pub fn step(&mut self, node: usize, what: What) {
        match what {
            What::Start => self.start(node),
            What::Wake if self.nodes[node].wake_at == self.now => self.tell(node, Event::Tick),
            What::Wake => {}
            What::Tell(event) => self.tell(node, event),
            What::Continue => self.go_on(node),
            What::Read { run, request, asked } => self.serve_read(node, run, request, asked),
            What::Swap { run, request, expect, record } => {
                let swap = self.write(node, &expect, &record);
                self.answer(node, run, request, Reply::Swapped(swap));
            }
            What::Order(order) => self.hear(node, order),
            What::GuardWake => self.guard_looks(node),
            What::Ends(tenure) => self.command_ends(node, tenure, Ended::Code(0)),
            What::ChildrenEnd(tenure) => self.children_end(node, tenure),
            What::Reaped => self.reaped(node),
            What::SocketClosed => {
                self.nodes[node].guard.front_dead = true;
                self.begin_to_kill(node);
            }
            What::GuardTimer => {
                let guard = &self.nodes[node].guard;
                if guard.stopped && guard.deadline.is_some_and(|deadline| self.self_kill_at(node, deadline) <= self.now) {
                    self.guard_dies(node);
                }
            }
            What::GuardGoesOn => {
                self.nodes[node].guard.stopped = false;
                while let Some(order) = self.nodes[node].guard.unheard.pop_front() {
                    self.hear(node, order);
                }
            }
            What::WillReads(token, holder) => {
                let snapshot = self.store.look(&self.name, Moment::default());
                let ours = snapshot.holder().is_some_and(|h| h.id == holder) && snapshot.token() == Some(token);
                if let Some(record) = snapshot.record.filter(|_| ours) {
                    let write = u128::from(self.random.next());
                    let delay = self.random.within(0..=if self.faults { 2000 * MS } else { 20 * MS });
                    self.later(delay, node, None, What::WillWrites(snapshot.version, World::free(&record, write)));
                }
            }
            What::WillWrites(expect, record) => {
                self.write(node, &expect, &record);
            }
            What::Fault => self.fault(),
            What::Calm => self.calm(),
        }
    }

    // The front

    fn tell(&mut self, node: usize, mut event: Event) {
        if self.nodes[node].stopped {
            return self.nodes[node].backlog.push(event);
        }
        let now = self.clock(node);
        let last = self.nodes[node].last_request;
        if let Event::Reply { request, reply } = &mut event
            && *request != last
        {
            self.count("reply to an older request");
            let write = matches!(reply, Reply::Swapped(_));
            if self.variant == Variant::LateReplyCredited && write && self.nodes[node].last_writes {
                *request = last;
            }
        }
        let Some(machine) = &mut self.nodes[node].machine else { return };
        machine.handle(now, event);
        self.obey(node);
    }

    /// Carries out what the machine wants.
    pub fn obey(&mut self, node: usize) {
        while let Some(action) = self.nodes[node].machine.as_mut().and_then(lockrun::lease::Machine::poll_action) {
            let local = self.nodes[node].local(self.now);
            self.note(|| format!("{node} at {local:?}: {action:?}"));
            match action {
                Action::Read(request) => self.request(node, request, What::Read { run: self.nodes[node].run, request, asked: local }),
                Action::Swap { request, expect, record } => {
                    if record.holder.is_none() && self.nodes[node].guard.tree.is_some() {
                        self.breaks(format!("{node} gives the lease back while something lives"));
                    }
                    self.request(node, request, What::Swap { run: self.nodes[node].run, request, expect, record });
                }
                Action::Watch(version) => self.nodes[node].watch = Some(version),
                Action::Deadline(tenure, mut at) => {
                    if self.variant == Variant::DeadlineFromReply {
                        at = self.nodes[node].settings.timing.kill_at(local);
                    }
                    self.order(node, Order::Deadline(tenure, at));
                }
                Action::Spawn(tenure, token) => self.order(node, Order::Spawn(tenure, token)),
                Action::Forward(tenure, _) => self.order(node, Order::Signal(tenure)),
                Action::Stop(tenure, scope) => self.order(node, Order::Stop(tenure, scope)),
                Action::Kill(tenure) => self.order(node, Order::Kill(tenure)),
                Action::KillGuard => self.guard_dies(node),
                Action::Unlock => {}
                Action::Report(report) => {
                    let ends = self.nodes[node].stopping && !matches!(report, Report::Acquired { .. });
                    self.nodes[node].stopping = ends || matches!(report, Report::Stopping { .. });
                    self.count(named(&report));
                }
                Action::Exit(outcome) => self.ended(node, &outcome),
            }
        }
        let Some(deadline) = self.nodes[node].machine.as_ref().and_then(lockrun::lease::Machine::deadline) else { return };
        let late = self.random.within(0..=3 * MS);
        let wake_at = self.nodes[node].real(deadline).max(self.now) + late;
        self.nodes[node].wake_at = wake_at;
        let run = self.nodes[node].run;
        self.at(wake_at, node, Some(run), What::Wake);
    }

    /// After SIGCONT: the clock first, then the guard, then the rest, as the supervisor's loop does.
    fn go_on(&mut self, node: usize) {
        if !self.nodes[node].stopped {
            return;
        }
        self.note(|| format!("{node} goes on"));
        self.nodes[node].stopped = false;
        let run = self.nodes[node].run;
        let (guard, rest): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.nodes[node].backlog).into_iter().partition(|event| matches!(event, Event::Guard(_)));
        for event in [Event::Tick].into_iter().chain(guard).chain(rest) {
            if self.nodes[node].run == run {
                self.tell(node, event);
            }
        }
    }

    // The store

    fn serve_read(&mut self, node: usize, run: u32, request: lockrun::lease::Request, asked: Moment) {
        let mut snapshot = self.store.look(&self.name, asked);
        if self.variant == Variant::WaitersTtl
            && let Some(record) = &mut snapshot.record
            && let Evidence::Left(left) = &mut snapshot.evidence
        {
            *left = (*left + self.nodes[node].settings.timing.ttl).saturating_sub(record.ttl);
        }
        if self.variant == Variant::SeenTooEarly {
            snapshot.seen_at = Some(asked - self.nodes[node].settings.timing.ttl);
        }
        self.answer(node, run, request, Reply::Snapshot(snapshot));
    }

    fn write(&mut self, node: usize, expect: &Version, record: &lockrun::lease::Record) -> Swap {
        let before = self.store.look(&self.name, Moment::default());
        let swap = self.store.try_swap(&self.name, expect, record);
        if swap == Swap::Conflict {
            return swap;
        }
        self.note(|| format!("{node}: the store has {:?} token {} {}", record.holder.as_ref().map(|h| &h.id), record.token, record.write));
        if before.token() > Some(record.token) {
            self.breaks(format!("token {} after {:?}", record.token, before.token()));
        }
        let lives = |token| self.nodes.iter().any(|n| n.guard.tree.as_ref().is_some_and(|tree| tree.token == token));
        if record.holder.is_none() && lives(record.token) {
            self.breaks(format!("the lease is free while something of token {} lives", record.token));
        }
        for other in 0..self.nodes.len() {
            if self.nodes[other].watch.take_if(|seen| seen == expect).is_some() && !self.random.per_mille(100) {
                let delay = self.random.within(0..=5 * MS);
                self.mine(delay, other, What::Tell(Event::Changed));
            }
        }
        swap
    }

    // The guard

    fn hear(&mut self, node: usize, order: Order) {
        if self.nodes[node].guard.dead {
            return;
        }
        if self.nodes[node].guard.stopped {
            return self.nodes[node].guard.unheard.push_back(order);
        }
        self.guard_looks(node);
        let tenure = order.tenure();
        if !self.nodes[node].guard.takes(tenure) {
            return self.say(node, GuardEvent::Over(tenure));
        }
        let local = self.nodes[node].local(self.now);
        match order {
            Order::Deadline(_, mut at) => {
                if self.variant == Variant::GuardStartsLate && at <= local {
                    at = local + self.nodes[node].settings.timing.ttl;
                }
                self.nodes[node].guard.extend(local, at);
                let wake = self.nodes[node].real(at).max(self.now) + self.random.within(0..=2 * MS);
                let run = self.nodes[node].run;
                self.at(wake, node, Some(run), What::GuardWake);
                self.guard_looks(node);
            }
            Order::Spawn(tenure, token) => self.spawn(node, tenure, token),
            Order::Signal(tenure) => {
                if self.nodes[node].guard.tree.as_ref().is_some_and(|tree| !tree.ignores_term) {
                    let span = self.random.within(0..=self.ttl / 8);
                    self.mine(span, node, What::Ends(tenure));
                }
            }
            Order::Stop(tenure, scope) => {
                if self.nodes[node].guard.tree.as_ref().is_some_and(|tree| !tree.ignores_term) {
                    let span = self.random.within(0..=self.ttl / 8);
                    self.mine(span, node, What::Ends(tenure));
                    if scope == Scope::Tree {
                        self.mine(span, node, What::ChildrenEnd(tenure));
                    }
                }
            }
            Order::Kill(_) => self.begin_to_kill(node),
        }
    }

    fn guard_looks(&mut self, node: usize) {
        let n = &self.nodes[node];
        let due = n.guard.passed(n.local(self.now)) && !n.guard.over && !n.guard.dead && !n.guard.stopped;
        if due && self.variant != Variant::GuardIgnoresDeadline {
            self.begin_to_kill(node);
        }
    }

    fn spawn(&mut self, node: usize, tenure: Tenure, token: Token) {
        self.guard_looks(node);
        let n = &self.nodes[node];
        let late = n.guard.killing || n.guard.deadline.is_none() || n.guard.passed(n.local(self.now));
        if n.guard.tree.is_some() || late {
            return self.count("late spawn");
        }
        self.nodes[node].guard.token = Some(token);
        if self.faults && self.random.per_mille(10) {
            return self.say(node, GuardEvent::NotSpawned(tenure, SpawnError::Fork(11)));
        }
        self.note(|| format!("{node} STARTS its command, token {token}"));
        self.count("start");
        if let Some(other) = self.nodes.iter().position(|n| n.guard.tree.is_some()) {
            self.breaks(format!("{node} starts its command while that of {other} lives"));
        }
        if token <= self.last_token {
            self.breaks(format!("a start with token {token} after one with {}", self.last_token));
        }
        self.last_token = token;
        self.starts_when_calm += u32::from(!self.faults);
        let (leaves_children, ignores_term) = (self.random.per_mille(200), self.random.per_mille(300));
        self.nodes[node].guard.tree = Some(Tree { tenure, token, command: true, children: false, leaves_children, ignores_term });
        self.say(node, GuardEvent::Spawned(tenure));
        let longest = self.random.of(&[1, 8, 8, if self.faults { 32 } else { 8 }]);
        let span = self.random.within(0..=self.ttl * longest / 8);
        self.mine(span, node, What::Ends(tenure));
    }

    fn command_ends(&mut self, node: usize, tenure: Tenure, ended: Ended) {
        let guard = &mut self.nodes[node].guard;
        let Some(tree) = guard.tree.as_mut().filter(|tree| tree.tenure == tenure && tree.command) else { return };
        tree.command = false;
        tree.children = tree.leaves_children && !guard.dead;
        let children = tree.children;
        if guard.dead || guard.stopped {
            return; // the rest is told when all is reaped
        }
        let killing = guard.killing;
        let early = self.variant == Variant::EmptyTooEarly && children;
        self.say(node, GuardEvent::Exited(tenure, ended, if children && !early { vec![99] } else { vec![] }));
        if children {
            self.count("left behind");
            let span = self.random.within(0..=self.ttl);
            self.mine(span, node, What::ChildrenEnd(tenure));
        }
        if !children {
            self.nodes[node].guard.tree = None;
        }
        // One that kills says so when its pass has found nothing.
        if early || !children && !killing {
            self.say(node, GuardEvent::Empty(tenure));
        }
    }

    fn children_end(&mut self, node: usize, tenure: Tenure) {
        let guard = &mut self.nodes[node].guard;
        let done = guard.tree.as_ref().is_some_and(|tree| tree.tenure == tenure && !tree.command && tree.children);
        if done && !guard.killing && !guard.dead && !guard.stopped {
            guard.tree = None;
            self.say(node, GuardEvent::Empty(tenure));
        }
    }

    fn begin_to_kill(&mut self, node: usize) {
        let guard = &mut self.nodes[node].guard;
        if guard.killing || guard.dead {
            return;
        }
        guard.killing = true;
        let (tenure, empty) = (guard.number, guard.tree.is_none());
        self.say(node, GuardEvent::Killing(tenure));
        let kill_time = self.nodes[node].settings.timing.kill_time.as_nanos() as u64;
        let span = if empty { 0 } else { self.random.within(0..=kill_time) };
        self.note(|| format!("{node}: the guard kills"));
        self.count("kill");
        self.mine(span, node, What::Reaped);
    }

    /// Nothing of the tree lives: the guard was killing, or is dead and the front was.
    fn reaped(&mut self, node: usize) {
        self.note(|| format!("{node}: all is reaped"));
        let local = self.nodes[node].local(self.now);
        let guard = &mut self.nodes[node].guard;
        let had_command = guard.tree.take().is_some_and(|tree| tree.command);
        if guard.dead {
            let tenure = self.nodes[node].machine.as_ref().map_or(Tenure(0), lockrun::lease::Machine::tenure);
            return self.tell(node, Event::Guard(GuardEvent::Empty(tenure)));
        }
        guard.killing = false;
        let (tenure, front_dead, token) = (guard.number, guard.front_dead, guard.token);
        let passed = guard.deadline.is_none() || guard.passed(local);
        if had_command {
            self.say(node, GuardEvent::Exited(tenure, Ended::Signal(9), vec![]));
        }
        self.say(node, GuardEvent::Empty(tenure));
        if !front_dead && !passed {
            return;
        }
        if let Some(token) = token
            && !(self.faults && self.random.per_mille(300))
        {
            self.count("last will");
            let holder = self.nodes[node].settings.me.id.clone();
            let delay = self.random.within(0..=20 * MS);
            self.later(delay, node, None, What::WillReads(token, holder));
        }
        let guard = &mut self.nodes[node].guard;
        (guard.over, guard.deadline) = (true, None);
        if front_dead {
            self.nodes[node].run += 1;
            let pause = self.random.within(MS..=self.ttl / 4);
            return self.later(pause, node, None, What::Start);
        }
        self.say(node, GuardEvent::Over(tenure));
    }

    fn self_kill_at(&self, node: usize, deadline: Moment) -> u64 {
        self.nodes[node].real(deadline) + 100 * MS
    }

    /// The command dies of PDEATHSIG; the front adopts and kills the rest.
    fn guard_dies(&mut self, node: usize) {
        let kill_time = self.nodes[node].settings.timing.kill_time.as_nanos() as u64;
        if std::mem::replace(&mut self.nodes[node].guard.dead, true) {
            return;
        }
        self.note(|| format!("{node}: the guard is dead"));
        self.count("guard died");
        self.say(node, GuardEvent::Died);
        let span = self.random.within(3 * MS..=kill_time / 2);
        self.mine(span, node, What::Reaped);
    }

    // Faults

    fn fault(&mut self) {
        if !self.faults {
            return;
        }
        let node = self.random.within(0..=self.nodes.len() as u64 - 1) as usize;
        let span = self.random.within(0..=self.ttl * 2);
        let next = self.random.within(0..=self.ttl / 2);
        self.later(next, 0, None, What::Fault);
        let whole = {
            let n = &self.nodes[node];
            n.machine.is_some() && !n.stopped && !n.guard.front_dead && !n.guard.dead
        };
        // Front and guard together only while there is nothing to guard: the rest is not promised without a kernel lock.
        let guarded = !self.nodes[node].guard.stopped;
        let nothing = self.nodes[node].guard.tree.is_none();
        match self.random.within(0..=9) {
            0..=3 if whole && (guarded || nothing) => {
                self.note(|| format!("{node} is stopped"));
                self.count("front stopped");
                self.nodes[node].stopped = true;
                self.mine(span, node, What::Continue);
            }
            4 if whole && guarded => {
                self.note(|| format!("{node} is killed"));
                self.count("front killed");
                self.nodes[node].machine = None;
                let delay = self.random.within(0..=MS);
                self.mine(delay, node, What::SocketClosed);
            }
            5 if whole && guarded => self.guard_dies(node),
            // One that is stopped while it kills dies of its timer too; that it had begun changes nothing.
            6 if whole && guarded && !self.nodes[node].guard.killing => {
                self.note(|| format!("{node}: the guard is stopped"));
                self.nodes[node].guard.stopped = true;
                self.watch_stopped_guard(node, span);
            }
            7 => self.outage_until = self.now + span / 2,
            8 => self.mine(0, node, What::Tell(Event::ClockStepped)),
            _ => self.mine(0, node, What::Tell(Event::Signal { number: 15, ends: true })),
        }
    }

    /// Its own timer kills it soon after its deadline; one that has none goes on after a while.
    fn watch_stopped_guard(&mut self, node: usize, span: u64) {
        let run = self.nodes[node].run;
        match self.nodes[node].guard.deadline {
            Some(deadline) => {
                let at = self.self_kill_at(node, deadline).max(self.now);
                self.at(at, node, Some(run), What::GuardTimer);
            }
            None => self.mine(span, node, What::GuardGoesOn),
        }
    }

    fn calm(&mut self) {
        self.faults = false;
        self.outage_until = 0;
        self.note(|| "no more faults".to_string());
        for node in 0..self.nodes.len() {
            self.go_on(node);
        }
    }
}

fn named(report: &Report) -> &'static str {
    match report {
        Report::Waiting { .. } => "waiting",
        Report::Unreachable(_) => "unreachable",
        Report::Recovered => "recovered",
        Report::Acquired { .. } => "acquired",
        Report::TooLate => "too late",
        Report::LeftBehind(..) => "left behind, stopped",
        Report::Stopping { .. } => "stopping",
        Report::Killed(_) => "killed",
        Report::Survivors(_) => "survivors",
        Report::GuardHangs => "guard hangs",
        Report::PutBack => "put back",
        Report::Lost(_) => "lost",
        Report::Released => "released",
        Report::ReleaseUnconfirmed { .. } => "release unconfirmed",
    }
}
