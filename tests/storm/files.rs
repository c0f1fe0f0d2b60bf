//! The database of a ring: its files, and where they lie. Must never touch one that it did not make.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};

use crate::history::now;
use crate::procs::Procs;

const DISK: u64 = 24 << 20;

pub struct Files {
    pub db: PathBuf,
    /// When the side file was last removed, in microseconds.
    bared: AtomicI64,
}

impl Files {
    fn new(db: PathBuf) -> Files {
        Files { db, bared: AtomicI64::new(0) }
    }

    pub fn in_folder(dir: &Path) -> io::Result<Files> {
        fs::create_dir(dir.join("db"))?;
        Ok(Files::new(dir.join("db/x.db")))
    }

    pub fn on_disk(dir: &Path, procs: &Procs) -> io::Result<Files> {
        let files = Files::in_folder(dir)?;
        let (image, folder) = (dir.join("disk"), dir.join("db"));
        File::create(&image)?.set_len(DISK)?;
        let path = |path: &Path| path.to_str().expect("UTF-8").to_string();
        // Blocks as large as pages, as any but the smallest disks have: SQLite makes room for its -shm by a byte in each
        // page, and where that is not a whole page, to write to the rest of it on a full disk is SIGBUS.
        procs.run("mkfs.ext4", &["-q", "-b", "4096", "-m", "0", &path(&image)])?;
        procs.run("mount", &["-o", "loop", &path(&image), &path(&folder)])?;
        Ok(files)
    }

    /// The keeper looks in the ring's folder for what must be undone.
    pub fn given(db: &Path, dir: &Path) -> io::Result<Files> {
        std::os::unix::fs::symlink(db.parent().expect("a folder"), dir.join("db"))?;
        Ok(Files::new(db.to_path_buf()))
    }

    /// The database's path with this at its end.
    pub fn beside(&self, ending: &str) -> PathBuf {
        let mut path = self.db.as_os_str().to_owned();
        path.push(ending);
        path.into()
    }

    pub fn remove(&self, endings: &[&str]) {
        for ending in endings {
            if *ending == "-lockrun" {
                self.bared.store(now(), Ordering::Relaxed);
            }
            let _ = fs::remove_file(self.beside(ending));
        }
    }

    /// The kernel lock that a command of that time inherited is the one that others wait for. If not, the side file having been
    /// removed under it, what front and guard leave when both are gone at once keeps nobody out (lease.md 6).
    pub fn covers_since(&self, start: i64) -> bool {
        start > self.bared.load(Ordering::Relaxed) + 1_000_000
    }
}
