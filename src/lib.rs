pub mod clock;
pub mod exit;
pub mod guard;
pub mod lease;
pub mod store;
