//! Drives the real lockrun as a user would. One binary, so that it links once.

mod arguments;
mod bad_input;
mod common;
mod durable;
mod exit_codes;
mod faults;
#[cfg(feature = "http")]
mod http;
mod interop;
mod many;
mod origin;
mod process;
mod removed;
mod scarce;
mod scheduler;
mod settings;
mod standby;
