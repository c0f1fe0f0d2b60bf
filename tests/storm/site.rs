//! The server of a ring, and a network in between for each copy, so that one copy can be cut off alone. Must never start a
//! server in this process: the harness reaps whatever ends in it, and would take from the fixtures what they wait for.

use std::io::{self, BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

use crate::asked::Engine;
use crate::fixture::proxy::Proxy;
use crate::serve;
use crate::world::World;

pub struct Site {
    /// None: the server is somebody else's.
    server: Option<Mutex<Server>>,
    /// One for each copy.
    pub proxies: Vec<Proxy>,
    urls: Vec<String>,
}

/// The process that has the server.
struct Server {
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Site {
    pub fn own(engine: Engine, copies: usize, world: &World) -> io::Result<Site> {
        let mut command = Command::new(&world.player);
        // Its folder lies in ours, so that the keeper removes it.
        command.args(["serve", engine.name()]).current_dir(&world.root).env("TMPDIR", &world.root);
        let mut child = world.procs.start(command.stdin(Stdio::piped()).stdout(Stdio::piped()))?;
        let (ask, answers) = (child.stdin.take().expect("piped"), BufReader::new(child.stdout.take().expect("piped")));
        let mut server = Server { ask, answers };
        let port = server.tell(serve::PORT).parse().map_err(io::Error::other)?;
        let proxies: Vec<Proxy> = (0..copies).map(|_| Proxy::start(port)).collect();
        let urls = proxies.iter().map(|proxy| server.tell(&format!("{}{}", serve::URL_AT, proxy.port()))).collect();
        Ok(Site { server: Some(Mutex::new(server)), proxies, urls })
    }

    pub fn given(url: &str, engine: Engine, copies: usize) -> Result<Site, String> {
        let (before, port, after) = engine.split(url)?;
        let proxies: Vec<Proxy> = (0..copies).map(|_| Proxy::start(port)).collect();
        let urls = proxies.iter().map(|proxy| format!("{before}127.0.0.1:{}{after}", proxy.port())).collect();
        Ok(Site { server: None, proxies, urls })
    }

    /// As the copy of this number reaches the server.
    pub fn url(&self, copy: usize) -> &str {
        &self.urls[copy]
    }

    /// One of the words of `serve`; returns when it is done.
    pub fn tell(&self, word: &str) {
        let server = self.server.as_ref().expect("only a server of our own is killed or frozen");
        server.lock().expect("no thread panics").tell(word);
    }
}

impl Server {
    fn tell(&mut self, word: &str) -> String {
        writeln!(self.ask, "{word}").expect("the server's process lives");
        let mut answer = String::new();
        let length = self.answers.read_line(&mut answer).expect("the server's process answers");
        assert!(length > 0, "the server's process ended; why stands above");
        answer.trim_end().to_string()
    }
}

impl Drop for Server {
    /// Waits: the keeper ends what is left, and a server that is killed leaves its folder.
    fn drop(&mut self) {
        self.tell(serve::END);
    }
}
