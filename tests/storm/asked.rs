//! What the command line asks for. Must never take a database that somebody needs.

use std::path::{Path, PathBuf};

use crate::faults::{self, Kind, Needs, Rule, Table};
use crate::history;

pub struct Asked {
    pub seconds: u64,
    pub store: Store,
    pub seed: u64,
    pub faults: Vec<&'static Rule>,
    pub lockrun: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// Several, in folders of their own.
    Sqlite,
    /// The file named.
    SqliteAt(PathBuf),
    /// Several servers of our own.
    Server(Engine),
    /// One that runs already.
    ServerAt(Engine, String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Engine {
    Postgres,
    Etcd,
    Redis,
    /// One that forgets all when it is killed.
    RedisInMemory,
}

impl Engine {
    const ALL: [Engine; 4] = [Engine::Postgres, Engine::Etcd, Engine::Redis, Engine::RedisInMemory];

    pub fn by_name(name: &str) -> Option<Engine> {
        Engine::ALL.into_iter().find(|engine| engine.name() == name)
    }

    pub fn name(self) -> &'static str {
        match self {
            Engine::Postgres => "postgres",
            Engine::Etcd => "etcd",
            Engine::Redis => "redis",
            Engine::RedisInMemory => "redis-in-memory",
        }
    }

    fn of_url(url: &str) -> Option<Engine> {
        match url.split_once("://")?.0 {
            "postgres" | "postgresql" => Some(Engine::Postgres),
            "etcd" | "etcds" => Some(Engine::Etcd),
            "redis" | "rediss" => Some(Engine::Redis),
            _ => None,
        }
    }

    /// What stands before the server's place in a URL, its port, and what stands after it. No error shows the URL: it may hold a
    /// password.
    pub fn split(self, url: &str) -> Result<(&str, u16, &str), String> {
        let (scheme, rest) = url.split_once("://").ok_or_else(|| "--store: not a URL".to_string())?;
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let start = rest[..end].rfind('@').map_or(0, |at| at + 1);
        let (host, port) = rest[start..end].split_once(':').unwrap_or((&rest[start..end], ""));
        let usual = match self {
            Engine::Postgres => 5432,
            Engine::Etcd => 2379,
            Engine::Redis | Engine::RedisInMemory => 6379,
        };
        let port = if port.is_empty() { Ok(usual) } else { port.parse() };
        match port {
            Ok(port) if ["localhost", "127.0.0.1"].contains(&host) => {
                let before = scheme.len() + "://".len();
                Ok((&url[..before + start], port, &url[before + end..]))
            }
            Ok(_) | Err(_) => Err("--store: name one server on this machine, as localhost or 127.0.0.1".to_string()),
        }
    }
}

impl Store {
    fn parse(text: &str) -> Result<Store, String> {
        if let Some(engine) = Engine::by_name(text) {
            return Ok(Store::Server(engine));
        }
        if let Some(engine) = Engine::of_url(text) {
            engine.split(text)?;
            return Ok(Store::ServerAt(engine, text.to_string()));
        }
        database(text).map(Store::SqliteAt)
    }

    pub fn table(&self) -> &'static Table {
        match self {
            Store::Sqlite | Store::SqliteAt(_) => &faults::sqlite::TABLE,
            Store::Server(_) | Store::ServerAt(..) => &faults::server::TABLE,
        }
    }

    /// What its rings offer at most.
    fn kind(&self) -> Kind {
        match self {
            Store::Sqlite => Kind::SqliteOnDisk,
            Store::SqliteAt(_) => Kind::SqliteInFolder,
            Store::Server(_) => Kind::OwnServer,
            Store::ServerAt(..) => Kind::GivenServer,
        }
    }
}

pub fn usage() -> String {
    format!(
        "usage: tests/torture SECONDS [--store STORE] [--seed N] [--faults A,B] [--lockrun PATH]
  --store    postgres, etcd or redis: servers of its own
             redis-in-memory: the same, forgetting all when they are killed, which must be found out
             the URL of such a server on this machine: it is not killed, and records of new leases stay in it
             a path or sqlite:PATH: a new database in an empty folder
             not given: several new databases in a temporary folder
  --seed     which faults come in which order; if not given: another one each time, which is printed
  --faults   none, or of {}
             on a server of {}
             (not given: all but {}, which steps the clock of the whole machine)
  --lockrun  another program in lockrun's place",
        faults::sqlite::TABLE.known(),
        faults::server::TABLE.known(),
        faults::CLOCK
    )
}

pub fn parse(args: &[&str]) -> Result<Asked, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    let lockrun = here.parent().and_then(Path::parent).expect("in examples").join("lockrun");
    let mut asked = Asked { seconds: 0, store: Store::Sqlite, seed: history::now() as u64 % 1_000_000, faults: Vec::new(), lockrun };
    let mut faults = None;
    let mut args = args.iter().copied();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or_else(|| format!("{arg}: a value is missing"));
        match arg {
            "--store" => asked.store = Store::parse(value()?)?,
            "--seed" => asked.seed = value()?.parse().map_err(|_| "--seed: not a number".to_string())?,
            "--faults" => faults = Some(value()?),
            "--lockrun" => asked.lockrun = PathBuf::from(value()?),
            seconds => asked.seconds = seconds.parse().map_err(|_| format!("{seconds}: not known, and not a number of seconds"))?,
        }
    }
    if asked.seconds == 0 {
        return Err("say for how many seconds".to_string());
    }
    let kind = asked.store.kind();
    let rules = asked.store.table().asked(faults)?.into_iter();
    let (fit, rest) = rules.partition(|rule: &&Rule| rule.needs == Needs::Machine || kind.has(rule.needs));
    asked.faults = fit;
    rest.iter().for_each(|rule: &&Rule| println!("left out, not for a store that is given: {}", rule.name));
    asked.lockrun = asked.lockrun.canonicalize().map_err(|error| format!("{}: {error}", asked.lockrun.display()))?;
    Ok(asked)
}

/// A new database in an empty folder only: the faults delete and damage what they find there.
fn database(url: &str) -> Result<PathBuf, String> {
    let path = url.strip_prefix("sqlite:").unwrap_or(url);
    if path.contains("://") {
        return Err("--store: no such kind of store".to_string());
    }
    let path = std::path::absolute(path).map_err(|error| error.to_string())?;
    let mut beside = path.parent().map(std::fs::read_dir).transpose().map_err(|error| format!("--store {url}: its folder: {error}"))?;
    if beside.as_mut().is_none_or(|beside| beside.next().is_some()) {
        return Err(format!("--store {url}: it will be deleted and damaged; name a new file in an empty folder"));
    }
    Ok(path)
}
