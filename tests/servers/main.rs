//! The real lockrun against real servers. `every` holds what is true of each store; a file beside it what only one kind of
//! server has: credentials, TLS, what it says in `check`.

#[path = "../it/common/mod.rs"]
mod common;
#[path = "../fixture/mod.rs"]
mod fixture;
#[cfg(feature = "postgres")]
mod postgres;
