//! What one action does to a guard, to the command and to what the command started: as src/guard/process.rs does it, without
//! processes.

use lockrun::exit::Ended;
use lockrun::lease::{Event, GuardEvent, Machine, RELEASE_TIME, Record, Tenure, Token, WriteId};

use crate::case::{self, Variant};
use crate::front::{Step, name};
use crate::guard::{Order, Tree};
use crate::world::Will;

impl Step<'_> {
    /// What the front says is there at once; a front or guard that is stopped makes it late.
    pub fn order(&mut self, index: usize, order: Order) {
        let guard = &mut self.world.nodes[index].guard;
        if guard.dead {
            return;
        }
        if guard.stopped || self.world.nodes[index].will.is_some() {
            return self.world.nodes[index].guard.unheard.push_back(order);
        }
        self.guard_looks(index);
        let tenure = order.tenure();
        if !self.world.nodes[index].guard.takes(tenure) {
            return self.say(index, GuardEvent::Over(tenure));
        }
        match order {
            Order::Deadline(_, mut at) => {
                let local = self.case.local(&self.world, index);
                if self.case.variant == Variant::GuardStartsLate && at <= local {
                    at = local + self.case.nodes[index].settings.timing.ttl;
                }
                self.world.nodes[index].guard.extend(local, at);
                self.guard_looks(index);
            }
            Order::Spawn(tenure, token) => self.spawn(index, tenure, token),
            Order::Signal(_) | Order::Stop(..) => self.ask_to_end(index),
            Order::Kill(_) => self.begin_to_kill(index),
        }
    }

    fn ask_to_end(&mut self, index: usize) {
        self.world.nodes[index].asked_to_end = self.world.nodes[index].lives();
    }

    fn say(&mut self, index: usize, event: GuardEvent) {
        self.case.tell(&self.world, || format!("    {}'s guard: {event:?}", name(index)));
        self.tell(index, Event::Guard(event));
    }

    fn guard_looks(&mut self, index: usize) {
        let guard = &self.world.nodes[index].guard;
        let due = guard.passed(self.case.local(&self.world, index)) && !guard.over && !guard.dead && !guard.stopped;
        if due && self.case.variant != Variant::GuardIgnoresDeadline {
            self.begin_to_kill(index);
        }
    }

    /// What is due of the guard's own.
    pub fn guard_time(&mut self, index: usize) {
        let local = self.case.local(&self.world, index);
        let timing = &self.case.nodes[index].settings.timing;
        let node = &mut self.world.nodes[index];
        if node.will.as_ref().is_some_and(|will| will.until <= self.world.now) {
            return self.will_is_done(index);
        }
        if let Some(reaped_by) = node.reaped_by.filter(|at| *at <= local) {
            // Between two instants as well.
            if node.lives() && reaped_by > timing.dead_by(node.landed) && self.case.variant == Variant::Sound {
                self.world.breaks(case::LATE);
            }
            return self.reaped(index);
        }
        // The kernel's timer of a guard that is stopped.
        let guard = &node.guard;
        if guard.stopped && !guard.dead && guard.deadline.is_some_and(|at| at + timing.kill_time / 2 <= local) {
            self.case.reach("the guard's own timer");
            return self.guard_dies(index);
        }
        self.guard_looks(index);
    }

    fn spawn(&mut self, index: usize, tenure: Tenure, token: Token) {
        self.guard_looks(index);
        let local = self.case.local(&self.world, index);
        let guard = &mut self.world.nodes[index].guard;
        if guard.tree.is_some() || guard.killing || guard.over || guard.deadline.is_none() || guard.passed(local) {
            return self.case.reach("late spawn");
        }
        self.case.tell(&self.world, || format!("    {} STARTS its command with token {token}", name(index)));
        if token <= self.world.last_token && !self.case.may_overlap(&self.world) {
            self.world.breaks(case::TOKEN);
        }
        self.world.last_token = token.max(self.world.last_token);
        let leaves_children = self.case.leaves_children;
        let tree = Tree { tenure, token, command: true, children: false, leaves_children, ignores_term: false };
        let node = &mut self.world.nodes[index];
        node.asked_to_end = false;
        node.guard.token = Some(token);
        node.guard.tree = Some(tree);
        self.say(index, GuardEvent::Spawned(tenure));
    }

    pub fn command_ends(&mut self, index: usize) {
        let guard = &mut self.world.nodes[index].guard;
        let Some(tree) = &mut guard.tree else { return };
        tree.command = false;
        tree.children = tree.leaves_children && !guard.dead;
        let (tenure, children) = (tree.tenure, tree.children);
        if guard.dead || guard.stopped {
            return; // the rest is told when all is reaped
        }
        let early = self.case.variant == Variant::EmptyTooEarly && children;
        let killing = guard.killing;
        if !children {
            guard.tree = None;
            self.world.nodes[index].asked_to_end = false;
        }
        self.say(index, GuardEvent::Exited(tenure, Ended::Code(0), if children && !early { vec![99] } else { vec![] }));
        if killing && !children {
            self.reaped(index);
        } else if early || !children {
            self.say(index, GuardEvent::Empty(tenure));
        }
    }

    pub fn children_end(&mut self, index: usize) {
        let node = &mut self.world.nodes[index];
        let Some(tree) = &node.guard.tree else { return };
        let tenure = tree.tenure;
        if !node.guard.killing && !node.guard.dead && !node.guard.stopped {
            node.guard.tree = None;
            node.asked_to_end = false;
            self.say(index, GuardEvent::Empty(tenure));
        }
    }

    pub fn begin_to_kill(&mut self, index: usize) {
        let local = self.case.local(&self.world, index);
        let node = &mut self.world.nodes[index];
        if node.guard.killing || node.guard.dead || node.guard.over {
            return;
        }
        node.guard.killing = true;
        self.case.reach("kill");
        let (tenure, lives) = (node.guard.number, node.lives());
        node.reaped_by = lives.then_some(local + self.case.nodes[index].settings.timing.kill_time);
        self.say(index, GuardEvent::Killing(tenure));
        if !lives {
            self.reaped(index);
        }
    }

    /// Nothing of the tree lives: the guard was killing, or is dead and the front was.
    pub fn reaped(&mut self, index: usize) {
        let now = self.world.now;
        let local = self.case.local(&self.world, index);
        let node = &mut self.world.nodes[index];
        node.reaped_by = None;
        node.asked_to_end = false;
        let had_command = node.guard.tree.take().is_some_and(|tree| tree.command);
        if node.guard.dead {
            let tenure = node.machine().map_or(Tenure(0), Machine::tenure);
            return self.say(index, GuardEvent::Empty(tenure));
        }
        node.guard.killing = false;
        let (tenure, front_dead, token) = (node.guard.number, node.guard.front_dead, node.guard.token);
        let over = front_dead || node.guard.deadline.is_none() || node.guard.passed(local);
        if over {
            node.guard.deadline = None;
            node.will = token.map(|token| Will { token, until: now + RELEASE_TIME.as_nanos() as u64, held: false });
        }
        if had_command {
            self.say(index, GuardEvent::Exited(tenure, Ended::Signal(9), vec![]));
        }
        self.say(index, GuardEvent::Empty(tenure));
        if over && token.is_none() {
            self.will_is_done(index);
        }
    }

    /// The last will reads and swaps, and again after a conflict: as good as at once.
    pub fn will(&mut self, index: usize) {
        let Some(Will { token, .. }) = self.world.nodes[index].will else { return };
        let me = &self.case.nodes[index].settings.me.id;
        if let Some(record) = self.world.record.clone().filter(|record| record.token == token)
            && record.holder.as_ref().is_some_and(|holder| holder.id == *me)
        {
            self.case.reach("last will");
            let write = WriteId::from_random(1 << 100 | token.0 as u128);
            self.put(Record { write, holder: None, stopping: false, ..record });
        }
        self.will_is_done(index);
    }

    /// Only now the guard hears its front again.
    fn will_is_done(&mut self, index: usize) {
        let guard = &mut self.world.nodes[index].guard;
        let tenure = guard.number;
        guard.over = true;
        let unheard = std::mem::take(&mut guard.unheard);
        self.world.nodes[index].will = None;
        self.say(index, GuardEvent::Over(tenure));
        for order in unheard {
            self.order(index, order);
        }
    }

    /// The command dies of PDEATHSIG; the front adopts and kills the rest.
    pub fn guard_dies(&mut self, index: usize) {
        let local = self.case.local(&self.world, index);
        let node = &mut self.world.nodes[index];
        if std::mem::replace(&mut node.guard.dead, true) {
            return;
        }
        self.case.reach("guard died");
        let soon = local + self.case.nodes[index].settings.timing.kill_time / 2;
        node.reaped_by = Some(node.reaped_by.map_or(soon, |at| at.min(soon)));
        self.say(index, GuardEvent::Died);
    }

    pub fn guard_goes_on(&mut self, index: usize) {
        let guard = &mut self.world.nodes[index].guard;
        guard.stopped = false;
        let unheard = std::mem::take(&mut guard.unheard);
        // The clock first, then the socket, then the children.
        self.guard_time(index);
        for order in unheard {
            self.order(index, order);
        }
        let node = &mut self.world.nodes[index];
        let Some(tree) = node.guard.tree.as_ref().filter(|tree| !tree.command && !node.guard.killing && !node.guard.dead) else { return };
        let (tenure, left) = (tree.tenure, tree.children);
        if !left {
            node.guard.tree = None;
            node.asked_to_end = false;
        }
        self.say(index, GuardEvent::Exited(tenure, Ended::Code(0), if left { vec![99] } else { vec![] }));
        if !left {
            self.say(index, GuardEvent::Empty(tenure));
        }
    }
}
