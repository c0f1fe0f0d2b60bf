//! What `--http` answers, and `lockrun health`, which asks it. Reads what the front tells, decides nothing: the thread that
//! answers has a runtime of its own, and no request ever reaches the front. Must be started when the guard is forked already
//! and before signals are unblocked: neither guard nor command then has its descriptors, and the thread takes no signal.

#[cfg(feature = "http")]
mod answer;
pub mod health;
#[cfg(feature = "http")]
mod metrics;
#[cfg(feature = "http")]
mod server;

#[cfg(feature = "http")]
pub use server::{Site, bind, start};

/// At once. When one more comes, the oldest is closed: whoever says nothing keeps nobody out.
pub const CONNECTIONS: usize = 32;
/// Beside the connections: the socket, the runtime's, and a connection that is about to be closed.
pub const DESCRIPTORS: usize = CONNECTIONS + 5;
