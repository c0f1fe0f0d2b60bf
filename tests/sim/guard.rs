//! The guard as src/guard/process.rs is, without processes: the last deadline it was given, enforced by its own clock.

use std::collections::VecDeque;

use lockrun::lease::{Moment, Scope, Tenure, Token};

/// What the front tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    Deadline(Tenure, Moment),
    Spawn(Tenure, Token),
    Signal(Tenure),
    Stop(Tenure, Scope),
    Kill(Tenure),
}

impl Order {
    pub fn tenure(&self) -> Tenure {
        match self {
            Order::Deadline(tenure, _) | Order::Spawn(tenure, _) | Order::Signal(tenure) | Order::Stop(tenure, _) | Order::Kill(tenure) => {
                *tenure
            }
        }
    }
}

/// A command and all that it started.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Tree {
    pub tenure: Tenure,
    pub token: Token,
    pub command: bool,
    pub children: bool,
    pub leaves_children: bool,
    pub ignores_term: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Guard {
    pub number: Tenure,
    pub deadline: Option<Moment>,
    pub token: Option<Token>,
    pub tree: Option<Tree>,
    pub killing: bool,
    pub over: bool,
    pub front_dead: bool,
    /// Its process is gone; what is left of the tree is the front's to kill.
    pub dead: bool,
    /// SIGSTOP: it hears and does nothing.
    pub stopped: bool,
    pub unheard: VecDeque<Order>,
}

impl Guard {
    /// Takes a new tenure only with an empty tree. False: this order is of a tenure that is over or not to be had.
    pub fn takes(&mut self, tenure: Tenure) -> bool {
        let empty = self.over || (self.tree.is_none() && !self.killing);
        if tenure > self.number && empty {
            let unheard = std::mem::take(&mut self.unheard);
            *self = Guard { number: tenure, front_dead: self.front_dead, unheard, ..Guard::default() };
        }
        tenure == self.number && !self.over
    }

    /// Never extends one that has passed, never goes back to an earlier one.
    pub fn extend(&mut self, now: Moment, at: Moment) {
        if !self.killing && self.deadline.is_none_or(|deadline| now < deadline && deadline < at) {
            self.deadline = Some(at);
        }
    }

    pub fn passed(&self, now: Moment) -> bool {
        self.deadline.is_some_and(|deadline| deadline <= now)
    }
}
