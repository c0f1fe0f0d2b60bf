//! What one action does to a front. `keeper` has the guards, `store` the store.

use lockrun::lease::{Action, Event, Machine, Moment, Outcome, Record, Reply, Report, Request};

use crate::case::{self, Act, Case, Variant};
use crate::guard::Order;
use crate::world::{Budget, Cut, Front, Wire, World, Write};

/// So many writes of one front at one instant are no protocol.
const TOO_MANY: u8 = 8;

pub struct Step<'a> {
    pub case: &'a Case,
    pub world: World,
    /// The front hears just now of a record in its own name.
    pub sees_itself: bool,
}

impl Step<'_> {
    pub fn act(&mut self, act: Act) {
        let case = self.case;
        match act {
            Act::Pass => {}
            _ => case.tell(&self.world, || format!("{act:?}")),
        }
        match act {
            Act::Pass => self.pass(),
            Act::Serve(node) => self.serve(node, false),
            Act::ServeTwice(node) => self.serve(node, true),
            Act::Deliver(node) => {
                if let Some(Wire::Reply { request, reply }) = self.world.nodes[node].wire.take() {
                    (self.world.nodes[node].held, self.world.nodes[node].wire_until) = (false, Moment::default());
                    self.hear_reply(node, request, reply);
                }
            }
            Act::DeliverStale(node) => self.deliver_stale(node),
            Act::WriteLate(node, number) => {
                let write = self.world.nodes[node].late.remove(number);
                self.case.reach("late write");
                self.write(node, &write);
            }
            Act::Cut(node, cut) => {
                self.world.left.lose(1);
                self.world.nodes[node].cut = cut;
            }
            Act::Mend(node) => self.world.nodes[node].cut = Cut::Nothing,
            Act::Reaped(node) => self.reaped(node),
            Act::Will(node) => self.will(node),
            Act::CommandEnds(node) => {
                if !self.world.nodes[node].asked_to_end {
                    self.world.left.ends -= 1;
                }
                self.command_ends(node);
            }
            Act::ChildrenEnd(node) => self.children_end(node),
            Act::StopFront(node) => {
                self.world.left.processes -= 1;
                self.stop_front(node);
            }
            Act::StopFrontAfter(node, after) => {
                self.world.left.processes -= 1;
                self.world.nodes[node].stop_after = Some(after);
            }
            Act::FrontGoesOn(node) => self.front_goes_on(node),
            Act::KillFront(node) => {
                self.world.left.processes -= 1;
                case.reach("front killed");
                self.front_is_gone(node, Front::Killed);
                self.world.nodes[node].guard.front_dead = true;
                self.begin_to_kill(node);
            }
            Act::StopGuard(node) => {
                self.world.left.processes -= 1;
                self.world.nodes[node].guard.stopped = true;
            }
            Act::GuardGoesOn(node) => self.guard_goes_on(node),
            Act::KillGuard(node) => {
                self.world.left.processes -= 1;
                self.guard_dies(node);
            }
            Act::StepWall(node, by_ms) => {
                self.world.left.steps -= 1;
                self.world.nodes[node].wall_ahead_ms += by_ms;
                self.tell(node, Event::ClockStepped);
            }
            Act::StepStore => {
                self.world.left.steps -= 1;
                self.world.store_ahead += 10 * crate::world::SECOND;
            }
            Act::Signal(node) => {
                self.world.left.requests -= 1;
                self.tell(node, Event::Signal { number: 15, ends: true });
            }
            Act::Touch => {
                self.world.left.requests -= 1;
                self.by_hand(false);
            }
            Act::Free => {
                self.world.left.requests -= 1;
                self.by_hand(true);
            }
        }
    }

    fn pass(&mut self) {
        let before = self.world.now;
        for node in &mut self.world.nodes {
            // To hold the answer that a front which is stopped does not hear is no fault.
            let open = node.wire.is_some() && !node.held && !node.is_cut_off();
            if open && !(node.is_stopped() && matches!(node.wire, Some(Wire::Reply { .. }))) {
                node.held = true;
                self.world.left.lose(1);
            }
            if let Some(will) = node.will.as_mut().filter(|will| !will.held) {
                will.held = true;
                self.world.left.lose(u8::from(node.cut == Cut::Nothing));
            }
        }
        self.world.now = self.case.next_instant(&self.world);
        if before < self.case.calm_at && self.world.now >= self.case.calm_at {
            self.calm();
        }
        for node in 0..self.world.nodes.len() {
            self.world.nodes[node].writes = 0;
            self.guard_time(node);
            self.forget(node);
            let now = self.case.local(&self.world, node);
            let due = |machine: &Machine| machine.deadline().is_some_and(|at| at <= now);
            if self.world.nodes[node].machine().is_some_and(due) {
                self.tell(node, Event::Tick);
            }
        }
    }

    /// From here on nothing is lost or late: what is on its way and was not delivered until now never is.
    fn calm(&mut self) {
        self.case.tell(&self.world, || "calm".to_string());
        for index in 0..self.world.nodes.len() {
            let node = &mut self.world.nodes[index];
            node.late.clear();
            node.stale = None;
            node.stop_after = None;
            node.cut = Cut::Nothing;
            if self.case.budget.losses > 0 {
                node.wire = None;
            }
            if node.is_stopped() {
                self.front_goes_on(index);
            }
            if self.world.nodes[index].guard.stopped {
                self.guard_goes_on(index);
            }
        }
        self.world.left = Budget::NONE;
    }

    /// Leaves out what can have no effect any more: a write that is conditional on a version that is gone, for versions never
    /// come back; an answer to a request that was given up, unless such answers may still come.
    pub fn forget(&mut self, index: usize) {
        let local = self.case.local(&self.world, index);
        if self.world.nodes[index].wire_until <= local {
            self.give_up(index);
        }
        let version = self.world.version();
        let node = &mut self.world.nodes[index];
        node.late.retain(|write| write.expect == version);
        if self.world.left.repeats == 0 || node.machine().is_none() {
            node.stale = None;
        }
    }

    fn give_up(&mut self, index: usize) {
        match self.world.nodes[index].wire.take() {
            Some(Wire::Swap { write, .. }) => self.world.nodes[index].late.push(write),
            Some(Wire::Reply { request, reply }) => self.keep_stale(index, request, &reply),
            Some(Wire::Read { .. }) | None => {}
        }
        let node = &mut self.world.nodes[index];
        (node.wire_until, node.held) = (Moment::default(), false);
    }

    pub fn tell(&mut self, index: usize, event: Event) {
        let now = self.case.clock(&self.world, index);
        match &mut self.world.nodes[index].front {
            Front::Runs(machine) => machine.handle(now, event),
            Front::Stopped(_, backlog) => return backlog.push(event),
            Front::Killed | Front::Exited => return,
        }
        self.obey(index);
        let now = self.case.local(&self.world, index);
        if self.world.nodes[index].machine().and_then(Machine::deadline).is_some_and(|at| at <= now) {
            self.world.breaks(case::TURNS);
        }
    }

    /// Carries out what the machine wants.
    pub fn obey(&mut self, index: usize) {
        loop {
            let node = &mut self.world.nodes[index];
            let Front::Runs(machine) = &mut node.front else { return };
            if node.stop_after == Some(0) {
                let mut rest = machine.clone();
                if std::iter::from_fn(|| rest.poll_action()).any(|action| !matches!(action, Action::Report(_))) {
                    node.stop_after = None;
                    self.case.reach("front stopped in the middle");
                    return self.stop_front(index);
                }
            }
            let Some(action) = machine.poll_action() else { return };
            if !matches!(action, Action::Report(_)) {
                node.stop_after = node.stop_after.map(|after| after.saturating_sub(1));
            }
            self.carry_out(index, action);
        }
    }

    fn carry_out(&mut self, index: usize, action: Action) {
        let local = self.case.local(&self.world, index);
        self.case.tell(&self.world, || format!("    {} at {local:?}: {}", name(index), told(&action)));
        match action {
            Action::Read(request) => self.request(index, Wire::Read { request, asked_at: local }),
            Action::Swap { request, expect, record } => {
                self.world.nodes[index].writes += 1;
                if self.world.nodes[index].writes > TOO_MANY {
                    self.world.breaks(case::TURNS);
                }
                self.request(index, Wire::Swap { request, write: Write { expect, record } });
            }
            Action::Watch(version) => self.world.nodes[index].watch = Some(version),
            Action::Deadline(tenure, mut at) => {
                if self.sees_itself {
                    self.case.reach("lost reply recognised");
                }
                if self.case.variant == Variant::DeadlineFromReply {
                    at = self.case.nodes[index].settings.timing.kill_at(local);
                }
                self.order(index, Order::Deadline(tenure, at));
            }
            Action::Spawn(tenure, token) => self.order(index, Order::Spawn(tenure, token)),
            Action::Forward(tenure, _) => self.order(index, Order::Signal(tenure)),
            Action::Stop(tenure, scope) => self.order(index, Order::Stop(tenure, scope)),
            Action::Kill(tenure) => self.order(index, Order::Kill(tenure)),
            Action::KillGuard => self.guard_dies(index),
            Action::Unlock => {}
            Action::Report(report) => self.case.reach(named(&report)),
            Action::Exit(outcome) => {
                if let Outcome::Signal(_) = outcome {
                    self.case.reach("waiter ended by a signal");
                }
                self.front_is_gone(index, Front::Exited);
            }
        }
    }

    fn request(&mut self, index: usize, wire: Wire) {
        self.give_up(index);
        let local = self.case.local(&self.world, index);
        let node = &mut self.world.nodes[index];
        node.watch = None;
        node.wire = Some(wire);
        node.wire_until = local + self.case.nodes[index].settings.timing.attempt;
    }

    fn front_is_gone(&mut self, index: usize, front: Front) {
        self.give_up(index);
        let node = &mut self.world.nodes[index];
        (node.stale, node.watch, node.stop_after) = (None, None, None);
        node.front = front;
        if node.front == Front::Exited {
            // BYE: the guard is gone with it.
            (node.guard.over, node.guard.deadline) = (true, None);
        }
    }

    fn stop_front(&mut self, index: usize) {
        self.case.reach("front stopped");
        let node = &mut self.world.nodes[index];
        if let Front::Runs(machine) = &node.front {
            node.front = Front::Stopped(machine.clone(), vec![]);
        }
    }

    /// What it was about to do comes first, then what the guard has said, then the clock, as in the supervisor's loop.
    fn front_goes_on(&mut self, index: usize) {
        let node = &mut self.world.nodes[index];
        let Front::Stopped(machine, backlog) = &mut node.front else { return };
        let backlog = std::mem::take(backlog);
        node.front = Front::Runs(machine.clone());
        self.world.free_since = self.world.free_since.map(|_| self.world.now);
        self.obey(index);
        for event in backlog.into_iter().chain([Event::Tick]) {
            self.tell(index, event);
        }
    }

    fn hear_reply(&mut self, index: usize, request: Request, reply: Reply) {
        self.keep_stale(index, request, &reply);
        let me = &self.case.nodes[index].settings.me;
        self.sees_itself = matches!(&reply, Reply::Snapshot(snapshot) if snapshot.holder() == Some(me));
        self.tell(index, Event::Reply { request, reply });
        self.sees_itself = false;
    }

    /// That of the last write. What tells old from new, the number of the request, is the same for a read.
    fn keep_stale(&mut self, index: usize, request: Request, reply: &Reply) {
        if self.world.left.repeats > 0 && matches!(reply, Reply::Swapped(_)) {
            self.world.nodes[index].stale = Some((request, reply.clone()));
        }
    }

    fn deliver_stale(&mut self, index: usize) {
        self.world.left.repeats -= 1;
        self.case.reach("stale reply");
        let Some((mut request, reply)) = self.world.nodes[index].stale.take() else { return };
        if self.case.variant == Variant::LateReplyCredited
            && let Some(Wire::Swap { request: of_another, .. }) = &self.world.nodes[index].wire
        {
            request = *of_another;
        }
        self.tell(index, Event::Reply { request, reply });
    }
}

pub fn name(index: usize) -> &'static str {
    ["a", "b", "c"][index]
}

fn told(action: &Action) -> String {
    match action {
        Action::Swap { record, .. } => format!("Swap({})", told_record(record)),
        Action::Watch(_) => "Watch".to_string(),
        Action::Report(report) => format!("says: {}", named(report)),
        other => format!("{other:?}"),
    }
}

pub fn told_record(record: &Record) -> String {
    let holder = record.holder.as_ref().map_or("nobody", |holder| holder.id.as_str());
    format!("held by {holder}, token {}, asked at {:?}", record.token, record.asked_at)
}

/// A behaviour that a check must come to.
fn named(report: &Report) -> &'static str {
    use lockrun::lease::{Killed, Lost};
    match report {
        Report::Waiting { .. } => "waiting",
        Report::Unreachable(_) => "unreachable",
        Report::Recovered => "recovered",
        Report::Acquired { .. } => "acquired",
        Report::TooLate => "too late",
        Report::LeftBehind(..) => "left behind",
        Report::Stopping { .. } => "stopping",
        Report::Killed(Killed::Deadline) => "killed at the deadline",
        Report::Killed(Killed::GraceOver) => "killed after the grace",
        Report::Killed(Killed::KillAfter) => "killed after a signal",
        Report::Killed(Killed::Lost) => "killed at once",
        Report::Survivors(_) => "survivors",
        Report::GuardHangs => "guard hangs",
        Report::PutBack => "put back",
        Report::Lost(Lost::Unreachable(_)) => "lost: unreachable",
        Report::Lost(Lost::Stopped) => "lost: stopped",
        Report::Lost(Lost::TakenBy(_)) => "lost: taken",
        Report::Lost(Lost::RecordGone) => "lost: gone",
        Report::Lost(Lost::Replaced) => "lost: replaced",
        Report::Lost(Lost::GuardDied) => "lost: guard died",
        Report::Released => "released",
        Report::ReleaseUnconfirmed { .. } => "release unconfirmed",
    }
}
