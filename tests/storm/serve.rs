//! A server in a process of its own, which does what it is told on stdin, a word a line, and says when it is done. It ends, and
//! the server with it, when nobody can tell it anything any more. A server that is killed loses nothing that it has written, since
//! the page cache outlives it: whether the fixtures have it fsync makes no difference here.

use std::io::{Write, stdin, stdout};

use crate::asked::Engine;
use crate::fixture::Server;
use crate::fixture::etcd::Etcd;
use crate::fixture::postgres::Postgres;
use crate::fixture::redis::Redis;

pub const PORT: &str = "port";
/// Followed by a port.
pub const URL_AT: &str = "url ";
pub const STOP: &str = "stop";
pub const START: &str = "start";
pub const FREEZE: &str = "freeze";
pub const THAW: &str = "thaw";
pub const END: &str = "end";

pub fn run(engine: Engine) {
    match engine {
        Engine::Postgres => serve(Postgres::start()),
        Engine::Etcd => serve(Etcd::start()),
        Engine::Redis => serve(Redis::start()),
        Engine::RedisInMemory => serve(Redis::without_persistence()),
    }
}

fn serve(mut server: impl Server) {
    for word in stdin().lines().map_while(Result::ok) {
        let mut answer = String::new();
        match word.as_str() {
            PORT => answer = server.port().to_string(),
            STOP => server.stop(),
            START => server.start_again(),
            FREEZE => server.freeze(),
            THAW => server.thaw(),
            END => break,
            word => {
                let port = word.strip_prefix(URL_AT).and_then(|port| port.parse().ok());
                answer = server.url_at(port.expect("one of the words above"));
            }
        }
        if writeln!(stdout(), "{answer}").is_err() {
            return;
        }
    }
    drop(server);
    let _ = writeln!(stdout());
}
