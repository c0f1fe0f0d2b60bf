//! Drives the real lockrun as a user would. One binary, so that it links once.

mod common;

mod process;
