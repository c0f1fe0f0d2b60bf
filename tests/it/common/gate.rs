//! A named pipe by which a test holds back what it started and lets it go. Must never be a matter of time.

use std::fs::{File, OpenOptions};
use std::io::Write;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::Scene;

/// A pipe in the scene's folder. `read gate <NAME` in a shell waits for it; one `open` lets one reader go on.
pub struct Gate {
    pipe: File,
}

impl Gate {
    pub fn new(scene: &Scene, name: &str) -> Gate {
        let path = scene.path(name);
        mkfifo(&path, Mode::S_IRWXU).expect("a pipe");
        // Both ends, so that neither this open nor that of a reader ever blocks.
        let pipe = OpenOptions::new().read(true).write(true).open(path).expect("the pipe");
        Gate { pipe }
    }

    pub fn open(&mut self) {
        self.pipe.write_all(b"go\n").expect("room in the pipe");
    }
}
