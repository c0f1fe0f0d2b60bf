//! Skeleton.

use std::fmt;
use std::time::Duration;

use super::server::{Client, Stored, Variable};
use super::{Facts, StoreError};
use crate::lease::{LeaseName, Record, Swap, Version};

#[derive(Clone, Debug)]
pub struct Address {
    shown: String,
}

impl Address {
    /// The error names what is wrong, never the URL, which may hold a password.
    pub fn parse(_url: &str, _variable: Variable<'_>) -> Result<Address, String> {
        Err("not built yet".to_string())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

pub struct Redis {}

impl Client for Redis {
    type Address = Address;

    async fn connect(_address: &Address, _create: bool, _limit: Duration) -> Result<Redis, StoreError> {
        Err(StoreError::Refused("not built yet".to_string()))
    }

    async fn get(&mut self, _name: &LeaseName) -> Result<Option<Stored>, StoreError> {
        Err(StoreError::Refused("not built yet".to_string()))
    }

    async fn swap(&mut self, _name: &LeaseName, _expect: &Version, _record: &Record) -> Result<Swap, StoreError> {
        Err(StoreError::Refused("not built yet".to_string()))
    }

    async fn sighting(&mut self, _name: &LeaseName, _boot_id: &str, _version: &str, _seen_ns: i64) -> Result<Option<i64>, StoreError> {
        Err(StoreError::Refused("not built yet".to_string()))
    }

    async fn list(&mut self) -> Result<Vec<(LeaseName, Stored)>, StoreError> {
        Err(StoreError::Refused("not built yet".to_string()))
    }

    async fn changed(&mut self, _name: &LeaseName, _seen: &Version) -> Result<(), StoreError> {
        Err(StoreError::Refused("not built yet".to_string()))
    }

    async fn check(&mut self) -> Result<Facts, StoreError> {
        Err(StoreError::Refused("not built yet".to_string()))
    }
}
