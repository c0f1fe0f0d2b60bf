//! Who has a kernel lock, and whether one could be taken: for people. Looks from outside, changes nothing.

use std::fs;
use std::path::Path;

use super::side::{self, Identity};

/// Why the kernel lock of a database could not be taken, for `check`; changes nothing.
pub fn trouble(database: &Path) -> Option<String> {
    let path = side::path_of(database);
    let shown = path.display();
    match fs::symlink_metadata(&path) {
        Ok(metadata) if !metadata.is_file() => Some(format!("{shown}: not a plain file; remove it")),
        Ok(_) => nix::unistd::eaccess(&path, nix::unistd::AccessFlags::R_OK | nix::unistd::AccessFlags::W_OK)
            .err()
            .map(|errno| format!("{shown}: {}; give it the owner and mode of the database", errno.desc().to_lowercase())),
        Err(_) => None, // it will be made
    }
}

/// The processes with a descriptor that has this byte of the side file locked, as fdinfo (proc_pid_fdinfo(5)) shows it.
pub fn of(path: &Path, byte: i64) -> Vec<i32> {
    let Some(side) = Identity::at(path) else { return Vec::new() };
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(|pid| has_lock(*pid, side, byte)).collect()
}

/// First what locks a descriptor has, then which file it is: a file on a dead network mount must not be touched.
fn has_lock(pid: i32, side: Identity, byte: i64) -> bool {
    let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return false };
    let byte = byte.to_string();
    let locks = |line: &str| line.starts_with("lock:") && line.split_whitespace().rev().nth(1) == Some(&byte);
    fds.flatten().any(|fd| {
        fs::read_to_string(fd.path()).is_ok_and(|info| info.lines().any(locks))
            && Identity::at(Path::new(&format!("/proc/{pid}/fd/{}", fd.file_name().to_string_lossy()))) == Some(side)
    })
}
