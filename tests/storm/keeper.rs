//! Undoes all that a run did to the machine, however the run ends: a process of its own waits on a pipe, and when the harness
//! is done or dead it thaws, kills by the mark, unmounts and removes. Must never read or write a file on a disk of a ring
//! before it has thawed it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::time::{ClockId, clock_gettime, clock_settime};

use crate::procs;

pub const MARK: &str = "LR_TORTURE";
/// Holds wall clock minus CLOCK_BOOTTIME, in nanoseconds, while a fault has stepped the former.
pub const CLOCK_FILE: &str = "clock";
const FIFREEZE: libc::Ioctl = 0xC004_5877u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xC004_5878u32 as libc::Ioctl;
const FS_IMMUTABLE_FL: libc::c_long = 0x10;

pub struct Keeper {
    child: Child,
}

impl Keeper {
    pub fn start(root: &Path) -> Keeper {
        let mut command = Command::new(std::env::current_exe().expect("this program"));
        command.arg("keep").arg(root).current_dir("/").stdin(Stdio::piped());
        // With no mark of anybody's in its environment: who ends a run by its mark must leave somebody to thaw its disks.
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        // SAFETY: setsid is a plain system call, safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                Ok(())
            });
        }
        Keeper { child: command.spawn().expect("the keeper") }
    }

    /// Waits until all is undone. The folder stays only if `keep`.
    pub fn finish(mut self, keep: bool) {
        let word: &[u8] = if keep { b"keep" } else { b"drop" };
        let _ = self.child.stdin.take().expect("its pipe").write_all(word);
        // The reaper may take its status: then this is an error, and it has ended too.
        let _ = self.child.wait();
    }
}

/// The keeper's own process.
pub fn run(root: &Path) {
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: ignoring a signal runs no code of ours.
        unsafe { signal(ignored, SigHandler::SigIgn) }.expect("ignored");
    }
    let mut word = String::new();
    let _ = std::io::stdin().read_to_string(&mut word);
    put_clock_back(root);
    for mount in mounts(root) {
        let _ = thaw(&mount);
    }
    if word.is_empty() {
        // The harness is dead, and the servers' processes have seen that too: they end by themselves, with their folders.
        thread::sleep(Duration::from_millis(500));
    }
    // Twice or more: a process may fork while it is looked for.
    for _ in 0..200 {
        let left = marked(root);
        left.iter().for_each(|pid| procs::send(*pid, Signal::SIGKILL));
        if left.is_empty() {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
    for mount in mounts(root) {
        let _ = Command::new("umount").arg("--lazy").arg(&mount).status();
    }
    for ring in fs::read_dir(root).into_iter().flatten().flatten() {
        free_files(&ring.path().join("db"));
    }
    if word != "keep" {
        let _ = fs::remove_dir_all(root);
    }
}

/// Every live process that carries the mark, zombies left out.
fn marked(root: &Path) -> Vec<i32> {
    let mark = format!("{MARK}={}", root.display());
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let has_mark = |pid: &i32| {
        let environ = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environ.split(|byte| *byte == 0).any(|entry| entry == mark.as_bytes())
    };
    pids.filter(has_mark).filter(|pid| procs::look(*pid).is_some_and(|(_, state, _)| state != 'Z' && state != 'X')).collect()
}

fn mounts(root: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/mounts").unwrap_or_default();
    text.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).filter(|path| path.starts_with(root)).collect()
}

/// Opened while it is not frozen; the thaw needs no other call on it.
pub fn freeze(folder: &Path, meanwhile: impl FnOnce()) -> std::io::Result<()> {
    let folder = File::open(folder)?;
    // SAFETY: the argument is not used.
    if unsafe { libc::ioctl(folder.as_raw_fd(), FIFREEZE, 0) } != 0 {
        return Err(std::io::Error::last_os_error());
    }
    meanwhile();
    // SAFETY: as above.
    match unsafe { libc::ioctl(folder.as_raw_fd(), FITHAW, 0) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

fn thaw(folder: &Path) -> std::io::Result<()> {
    let folder = File::open(folder)?;
    // SAFETY: the argument is not used.
    unsafe { libc::ioctl(folder.as_raw_fd(), FITHAW, 0) };
    Ok(())
}

/// Immutable (chattr(1) +i): not even root can write, and what is open already gets EPERM too. A file system cannot be
/// remounted read-only while anything in it is open for writing (EBUSY).
pub fn set_immutable(path: &Path, on: bool) -> std::io::Result<()> {
    let file = File::open(path)?;
    let mut flags: libc::c_long = 0;
    // SAFETY: both calls read or write one number that outlives them.
    let done = unsafe {
        libc::ioctl(file.as_raw_fd(), libc::FS_IOC_GETFLAGS, &mut flags) == 0 && {
            flags = if on { flags | FS_IMMUTABLE_FL } else { flags & !FS_IMMUTABLE_FL };
            libc::ioctl(file.as_raw_fd(), libc::FS_IOC_SETFLAGS, &flags) == 0
        }
    };
    if done { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

pub fn free_files(folder: &Path) {
    let _ = set_immutable(folder, false);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_file()) {
            let _ = set_immutable(&entry.path(), false);
        }
    }
}

/// Steps the wall clock, and puts it back where it would be by now.
pub fn step_clock(root: &Path, by: i64, meanwhile: impl FnOnce()) -> std::io::Result<()> {
    let boot = nanos(ClockId::CLOCK_BOOTTIME);
    let offset = nanos(ClockId::CLOCK_REALTIME) - boot;
    fs::write(root.join(CLOCK_FILE), offset.to_string())?;
    set_clock(nanos(ClockId::CLOCK_BOOTTIME) + offset + by)?;
    meanwhile();
    put_clock_back(root);
    Ok(())
}

fn put_clock_back(root: &Path) {
    let file = root.join(CLOCK_FILE);
    let Some(offset) = fs::read_to_string(&file).ok().and_then(|offset| offset.parse::<i64>().ok()) else { return };
    if set_clock(nanos(ClockId::CLOCK_BOOTTIME) + offset).is_ok() {
        let _ = fs::remove_file(file);
    }
}

fn nanos(clock: ClockId) -> i64 {
    let now = clock_gettime(clock).expect("a clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}

fn set_clock(nanos: i64) -> std::io::Result<()> {
    let time = Duration::from_nanos(nanos.try_into().map_err(std::io::Error::other)?);
    clock_settime(ClockId::CLOCK_REALTIME, time.into()).map_err(std::io::Error::from)
}
