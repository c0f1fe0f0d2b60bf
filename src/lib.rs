//! lockrun runs one command under a lease lock, so that of all the copies started anywhere one runs at a time.
//!
//! **The promise:** no process that lockrun started is alive after the moment another copy may start.
//!
//! **Not promised:** no lease stops what has already left the process (a write on its way, a job handed to another daemon):
//! for that the command gets a fencing token. A machine that is paused whole may run some milliseconds after it wakes.
//! Processes of another user cannot be killed, nor one in an uninterruptible call before the call returns.
//!
//! # Data flow
//!
//! `argv → cli → config → app`; app forks the [`guard`] (the command's parent) before any thread exists, then starts the
//! [`supervisor`] (the front: one loop), which drives the pure [`lease::Machine`] against a [`store`]:
//! read, judge, swap in the claim, give the guard a deadline, spawn; renew by swap; stop or kill in time; when nothing is
//! left alive, swap in a free record.
//!
//! # Imports
//!
//! `main → app → {config → cli, status, http} → supervisor → {store, guard, clock, told} → lease → exit`. Nothing points up.
//! `store`, `guard`, `clock` and `told` never see each other; `lease` sees `std` and `exit` only; `text` sees nothing.
//! `tests/house.rs` checks it.
//!
//! # Invariants
//!
//! 1. Each side rounds against itself: the holder counts from before the request was sent, a waiter from after the reply.
//! 2. `renew_at < term_at ≤ kill_at < dead_by ≤ asked_at + ttl·(1 − drift)`; settings that cannot hold are refused.
//! 3. The deadline waits for nobody: not for the store, not for stderr, not for a flood of signals.
//! 4. Once TERM is sent for a lost lease there is no way back. A grant that arrives after its `term_at` starts nothing.
//! 5. The lease is renewed while the command is being stopped, and released only when nothing is left alive.
//! 6. The TTL that counts is the record's. Tokens only grow; a record is never deleted. Every write has a fresh id.
//! 7. A store error means unknown, never "no".
//!
//! # Deliberately absent
//!
//! No shell, no restarts, no schedule, no `cgroup.kill`, no `--keep-descendants`, no advisory locks of a server.

pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod error;
pub mod exit;
pub mod guard;
pub mod http;
pub mod lease;
pub mod logging;
pub mod report;
pub mod signals;
pub mod status;
pub mod store;
pub mod supervisor;
pub mod text;
pub mod told;
