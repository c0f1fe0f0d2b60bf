//! The side file: an empty file beside the database, never unlinked, of which bytes are locked as open-file-description
//! locks. Byte 0 is the turnstile, those of the leases lie from 2^61 up. Must never be the database itself: closing any
//! descriptor of that drops SQLite's own locks.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

/// A side file, as long as its kernel is up. The boot id is compared beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    dev: u64,
    ino: u64,
}

impl Identity {
    pub fn of(metadata: &fs::Metadata) -> Identity {
        Identity { dev: metadata.dev(), ino: metadata.ino() }
    }

    pub fn at(path: &Path) -> Option<Identity> {
        fs::metadata(path).ok().map(|metadata| Identity::of(&metadata))
    }
}

impl std::fmt::Display for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.dev, self.ino)
    }
}

pub fn path_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-lockrun");
    PathBuf::from(name)
}

/// The one that is there. Closed on exec.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// Makes it if it is missing.
pub fn open_or_make(path: &Path, database: &Path) -> io::Result<File> {
    match open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        opened => return opened,
    }
    match OpenOptions::new().read(true).write(true).create_new(true).mode(0o644).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => open_or_make(path, database),
        Err(error) => Err(error),
        Ok(file) => {
            // Whoever may write the database may lock it, also when root made this file.
            if let Ok(metadata) = fs::metadata(database) {
                let _ = std::os::unix::fs::fchown(&file, Some(metadata.uid()), Some(metadata.gid()));
                let _ = file.set_permissions(Permissions::from_mode(metadata.permissions().mode() & 0o666));
            }
            Ok(file)
        }
    }
}

/// Does not wait. `false`: another description has that byte.
pub fn try_lock(file: &File, byte: i64) -> Result<bool, Errno> {
    match set(file, libc::F_WRLCK, byte, false) {
        Ok(()) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Waits. Nothing but a grant ends it, and the end of the process.
pub fn lock(file: &File, byte: i64) -> Result<(), Errno> {
    set(file, libc::F_WRLCK, byte, true)
}

/// For the whole description: duplicates of it may live on elsewhere.
pub fn unlock(file: &File, byte: i64) {
    let _ = set(file, libc::F_UNLCK, byte, false);
}

fn set(file: &File, kind: libc::c_int, byte: i64, wait: bool) -> Result<(), Errno> {
    // SAFETY: an all-zero flock is a valid one.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = kind as libc::c_short;
    range.l_whence = libc::SEEK_SET as libc::c_short;
    range.l_start = byte;
    range.l_len = 1;
    loop {
        let argument = if wait { FcntlArg::F_OFD_SETLKW(&range) } else { FcntlArg::F_OFD_SETLK(&range) };
        match fcntl(file, argument) {
            Ok(_) => return Ok(()),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
