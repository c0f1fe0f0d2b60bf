//! Parse, don't validate: flags and environment become values that cannot be wrong. The first bad one stops here, with
//! nothing started and nothing changed.

pub mod value;

use std::ffi::{OsStr, OsString};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use tracing::Level;

use crate::cli::{Cli, RunArgs, SignalTo, StoreArgs, Verb};
use crate::error::Failure;
use crate::lease::{Asked, Holder, HolderId, LeaseName, OnLost, Settings, Timing, Wait};
use crate::store::any::Address;
use crate::store::sqlite;
use crate::text::without_password;
use value::{Server, StoreUrl};

/// The environment as lockrun reads it: an empty variable is unset.
pub struct Environment(Vec<(OsString, OsString)>);

impl Environment {
    pub fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Environment {
        Environment(variables.into_iter().collect())
    }

    fn get(&self, name: &str) -> Option<&OsStr> {
        let found = self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_os_str());
        found.filter(|value| !value.is_empty())
    }

    /// A lockrun around this one.
    fn outer_holders(&self) -> Vec<HolderId> {
        let ids = self.get("LOCKRUN_HOLDERS").map(|ids| ids.to_string_lossy().into_owned()).unwrap_or_default();
        ids.split(',').filter(|id| !id.is_empty()).map(HolderId::new).collect()
    }

    /// A flag beats its variable.
    fn or<'a>(&'a self, flag: Option<&'a OsString>, option: &'static str, variable: &'static str) -> Option<Given<'a>> {
        match flag {
            Some(value) => Some(Given { source: option, value }),
            None => self.get(variable).map(|value| Given { source: variable, value }),
        }
    }
}

/// A value and where it came from, for the message.
#[derive(Clone, Copy)]
struct Given<'a> {
    source: &'static str,
    value: &'a OsStr,
}

impl<'a> Given<'a> {
    fn flag(option: &'static str, value: Option<&'a OsString>) -> Option<Given<'a>> {
        value.map(|value| Given { source: option, value })
    }

    fn parse<T>(self, parse: impl FnOnce(&str) -> Result<T, String>) -> Result<T, Failure> {
        let text = self.value.to_str().ok_or_else(|| self.refuse("not UTF-8"))?;
        parse(text).map_err(|why| self.refuse(&why))
    }

    fn refuse(self, why: &str) -> Failure {
        let separator = if self.source.starts_with('-') { ' ' } else { '=' };
        Failure::refused(format!("{}{separator}{}: {why}", self.source, without_password(&self.value.to_string_lossy())))
    }
}

/// Which lease, where, with which times.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: Address,
    /// `None`: a subcommand that looks at all of them.
    pub name: Option<LeaseName>,
    pub timing: Timing,
}

impl Target {
    pub fn lease(&self) -> LeaseName {
        self.one().unwrap_or_else(|| LeaseName::new("default"))
    }

    /// The one lease that is asked for, if it is one.
    pub fn one(&self) -> Option<LeaseName> {
        self.address.app_lease().or_else(|| self.name.clone())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// Everything that the main form needs.
#[derive(Debug)]
pub struct Run {
    pub target: Target,
    pub settings: Settings,
    pub command: Vec<OsString>,
    /// The caller's, with what the command must not see taken out and lockrun's own put in; the token comes later.
    pub environment: Vec<(OsString, OsString)>,
    pub directory: Option<PathBuf>,
    pub conflict_code: i32,
    pub stop_signal: i32,
    pub to_group: bool,
    pub http: Option<SocketAddr>,
    pub log_format: LogFormat,
    pub log_level: Level,
}

pub enum Config {
    Run(Box<Run>),
    Status { target: Target, json: bool },
    Check { target: Target, json: bool, token: Option<i64> },
    Health { at: SocketAddr, path: &'static str },
}

impl Config {
    /// `random` becomes the holder's id.
    pub fn new(cli: Cli, environment: Environment, random: u128) -> Result<Config, Failure> {
        let Some(verb) = &cli.verb else { return run(cli, environment, random).map(|run| Config::Run(Box::new(run))) };
        if let Some(option) = cli.run.first_given() {
            return Err(Failure::refused(format!("{option}: not an option of a subcommand; leave it out")));
        }
        if !cli.command.is_empty() {
            return Err(Failure::refused("a subcommand takes no command; leave it out"));
        }
        let target = || target(&cli.store, &environment, false);
        Ok(match verb {
            Verb::Status { json } => Config::Status { target: target()?, json: *json },
            Verb::Check { json, token } => {
                let target = target()?;
                let token = Given::flag("--token", token.as_ref()).map(|given| given.parse(value::token)).transpose()?;
                Config::Check { target, json: *json, token }
            }
            Verb::Health { addr } => {
                let given = environment.or(addr.as_ref(), "--addr", "LOCKRUN_HTTP");
                let given =
                    given.ok_or_else(|| Failure::refused("no address; give --addr (or LOCKRUN_HTTP) as to the lockrun's --http"))?;
                let (at, path) = given.parse(value::health_address)?;
                Config::Health { at, path }
            }
        })
    }
}

fn target(args: &StoreArgs, environment: &Environment, running: bool) -> Result<Target, Failure> {
    let asked = Asked {
        ttl: duration(environment.or(args.ttl.as_ref(), "--ttl", "LOCKRUN_TTL"))?,
        heartbeat: duration(environment.or(args.heartbeat.as_ref(), "--heartbeat", "LOCKRUN_HEARTBEAT"))?,
        grace: duration(environment.or(args.grace.as_ref(), "--grace", "LOCKRUN_GRACE"))?,
    };
    let app_table = Given::flag("--table", args.table.as_ref()).map(|given| given.parse(value::table)).transpose()?;
    // Inside another lockrun LOCKRUN_NAME is that one's. Subcommands read it: they are asked about the lease around them.
    let nested = running && !environment.outer_holders().is_empty();
    let given = match &args.name {
        Some(value) => Some(Given { source: "--name", value }),
        None if nested || app_table.is_some() => None,
        None => environment.or(None, "--name", "LOCKRUN_NAME"),
    };
    let name = given.map(|given| given.parse(value::lease_name)).transpose()?;
    // An application's own TTL is 60 s unless it is given, whatever else is asked for.
    let asked = Asked { ttl: asked.ttl.or(app_table.as_ref().map(|_| Duration::from_secs(60))), ..asked };
    let address = match database(args, environment)? {
        StoreUrl::Sqlite(path) => {
            let place = sqlite::look(&path, args.allow_fs).map_err(|why| Failure::refused(format!("{}: {why}", path.display())))?;
            Address::Sqlite { place, app_table }
        }
        StoreUrl::Server(server, url) => {
            if let Some(option) = app_table.map(|_| "--table").or(args.allow_fs.then_some("--allow-fs")) {
                return Err(Failure::refused(format!("{option}: it is about a SQLite file; leave it out with {server}")));
            }
            if running && name.is_none() {
                return Err(Failure::refused(format!("{server}: others may use this server too; name the lease with --name")));
            }
            server_address(server, &url, environment).map_err(|why| Failure::refused(format!("{server}:…: {why}")))?
        }
    };
    if let (Some(name), Some(given)) = (&name, given) {
        address.check_name(name).map_err(|why| given.refuse(&why))?;
    }
    let timing = Timing::new(asked, address.clocks()).map_err(|error| Failure::refused(error.to_string()))?;
    Ok(Target { address, name, timing })
}

fn server_address(server: Server, url: &str, environment: &Environment) -> Result<Address, String> {
    let variable = |name: &str| environment.get(name).map(OsStr::to_os_string);
    match server {
        #[cfg(feature = "postgres")]
        Server::Postgres => crate::store::postgres::Address::parse(url, &variable).map(Address::Postgres),
        #[cfg(feature = "etcd")]
        Server::Etcd => crate::store::etcd::Address::parse(url, &variable).map(Address::Etcd),
        #[cfg(feature = "redis")]
        Server::Redis => crate::store::redis::Address::parse(url, &variable).map(Address::Redis),
        #[cfg(feature = "kubernetes")]
        Server::Kubernetes => crate::store::kubernetes::Address::parse(url, &variable).map(Address::Kubernetes),
        #[allow(unreachable_patterns)] // with all of them built in
        _ => {
            let _ = (url, variable);
            Err(format!("this lockrun is built without {server}; use a path (SQLite)"))
        }
    }
}

fn database(args: &StoreArgs, environment: &Environment) -> Result<StoreUrl, Failure> {
    if let Some(value) = &args.db {
        return StoreUrl::parse(value).map_err(|why| Failure::refused(format!("--db {why}")));
    }
    match (environment.get("LOCKRUN_DB"), environment.get("LOCKRUN_DB_FILE")) {
        (Some(_), Some(_)) => Err(Failure::refused("LOCKRUN_DB and LOCKRUN_DB_FILE are both set; unset one")),
        (Some(value), None) => StoreUrl::parse(value).map_err(|why| Failure::refused(format!("LOCKRUN_DB={why}"))),
        (None, Some(file)) => value::from_file(file).map_err(|why| Failure::refused(format!("LOCKRUN_DB_FILE={why}"))),
        (None, None) => Err(Failure::refused("no store; give --db x.db (or LOCKRUN_DB)")),
    }
}

fn duration(given: Option<Given<'_>>) -> Result<Option<Duration>, Failure> {
    given.map(|given| given.parse(value::duration)).transpose()
}

fn run(cli: Cli, environment: Environment, random: u128) -> Result<Run, Failure> {
    let Cli { store, run: args, verb: _, command } = cli;
    if command.is_empty() {
        return Err(Failure::refused("no command; write: lockrun --db x.db -- celery beat"));
    }
    if command[0].is_empty() {
        return Err(Failure::refused("the command is empty; write: lockrun --db x.db -- celery beat"));
    }
    let wait = wait(&args, &environment)?;
    let conflict_code = Given::flag("--conflict-exit-code", args.conflict_exit_code.as_ref())
        .map_or(Ok(crate::exit::CONFLICT), |given| given.parse(value::exit_code))?;
    let on_lost = environment.or(args.on_lost.as_ref(), "--on-lost", "LOCKRUN_ON_LOST");
    let on_lost = on_lost.map_or(Ok(OnLost::Exit), |given| given.parse(value::on_lost))?;
    let stop_signal =
        Given::flag("--stop-signal", args.stop_signal.as_ref()).map_or(Ok(libc::SIGTERM), |given| given.parse(value::signal))?;
    let kill_after = duration(Given::flag("--kill-after", args.kill_after.as_ref()))?;
    let instance = environment.or(args.instance.as_ref(), "--instance", "LOCKRUN_INSTANCE");
    if let Some(given) = instance.filter(|_| std::process::id() != 1) {
        return Err(given.refuse("only for PID 1 of a container, whose death ends the whole tree; leave it out here"));
    }
    let instance = instance.map(|given| given.parse(value::instance)).transpose()?;
    // The one around it has that address.
    let inner = !environment.outer_holders().is_empty() && args.http.is_none();
    let http = environment.or(args.http.as_ref(), "--http", "LOCKRUN_HTTP").filter(|_| !inner);
    let http = http.map(|given| given.parse(value::http_address)).transpose()?;
    let log_format = environment.or(args.log_format.as_ref(), "--log-format", "LOCKRUN_LOG_FORMAT");
    let log_format = log_format.map_or(Ok(LogFormat::Text), |given| given.parse(value::log_format))?;
    let log_level = log_level(&args, &environment, wait)?;
    let target = target(&store, &environment, true)?;

    let me = Holder {
        id: HolderId::from_random(random),
        instance,
        hostname: hostname::get().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default(),
        pid: std::process::id(),
        command: command.iter().map(|word| word.to_string_lossy().into_owned()).collect(),
    };
    let outer = environment.outer_holders();
    let environment = for_command(environment, &me.id, &outer, &target.lease());
    let settings = Settings { me, outer, timing: target.timing, wait, on_lost, kill_after };
    Ok(Run {
        target,
        settings,
        command,
        environment,
        directory: std::env::current_dir().ok(),
        conflict_code,
        stop_signal,
        to_group: args.signal_to == Some(SignalTo::Group),
        http,
        log_format,
        log_level,
    })
}

fn wait(args: &RunArgs, environment: &Environment) -> Result<Wait, Failure> {
    if args.nonblock {
        return Ok(Wait::No);
    }
    Ok(match duration(environment.or(args.wait.as_ref(), "--wait", "LOCKRUN_WAIT"))? {
        None => Wait::Forever,
        Some(Duration::ZERO) => Wait::No,
        Some(span) => Wait::For(span),
    })
}

fn log_level(args: &RunArgs, environment: &Environment, wait: Wait) -> Result<Level, Failure> {
    let default = match wait {
        Wait::Forever => Level::INFO,
        Wait::For(_) | Wait::No => Level::WARN, // cron mails whatever is said
    };
    let level = environment.or(None, "", "LOCKRUN_LOG").map_or(Ok(default), |given| given.parse(value::log_level))?;
    // tracing's order: an error is "less" than a warning.
    let order = [Level::ERROR, Level::WARN, Level::INFO, Level::DEBUG];
    let at = order.iter().position(|candidate| *candidate == level).unwrap_or(2);
    Ok(order[(at + usize::from(args.verbose)).saturating_sub(usize::from(args.quiet)).min(3)])
}

fn for_command(environment: Environment, me: &HolderId, outer: &[HolderId], name: &LeaseName) -> Vec<(OsString, OsString)> {
    const NOT_FOR_THE_COMMAND: [&str; 7] =
        ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LOCKRUN_TOKEN", "LOCKRUN_NAME", "LOCKRUN_HOLDER", "LOCKRUN_HOLDERS"];
    let mut variables = environment.0;
    variables.retain(|(key, _)| !NOT_FOR_THE_COMMAND.iter().any(|name| key == name));
    // With this holder, so that a lockrun below knows whom it must not wait for.
    let holders: Vec<&str> = outer.iter().chain([me]).map(HolderId::as_str).collect();
    variables.push(("LOCKRUN_NAME".into(), name.as_str().into()));
    variables.push(("LOCKRUN_HOLDER".into(), me.as_str().into()));
    variables.push(("LOCKRUN_HOLDERS".into(), holders.join(",").into()));
    variables
}
