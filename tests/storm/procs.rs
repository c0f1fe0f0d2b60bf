//! The harness's children: started here, reaped by one thread. The harness is a subreaper, so that what a killed copy left
//! comes to it. Must never wait for a pid elsewhere: the thread would have taken its status.

use std::collections::HashMap;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::{Pid, setsid};

/// None: it runs. Else its code as a shell shows it.
type Children = HashMap<i32, Option<i32>>;

#[derive(Clone)]
pub struct Procs {
    shared: Arc<(Mutex<Children>, Condvar)>,
    /// Set in the environment of all that is started, so that nothing of it can be overlooked.
    mark: (String, String),
}

impl Procs {
    pub fn new(mark: (String, String)) -> Procs {
        // SAFETY: no pointers.
        assert_eq!(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }, 0);
        let procs = Procs { shared: Arc::default(), mark };
        let shared = Arc::clone(&procs.shared);
        thread::spawn(move || reap(&shared));
        procs
    }

    pub fn spawn(&self, command: &mut Command) -> io::Result<i32> {
        Ok(self.start(command.stdin(Stdio::null()))?.id() as i32)
    }

    /// In a session of its own, marked, with no LOCKRUN_* of the outside. Its status is the reaper's.
    pub fn start(&self, command: &mut Command) -> io::Result<Child> {
        for (key, _) in std::env::vars_os().filter(|(key, _)| key.to_string_lossy().starts_with("LOCKRUN_")) {
            command.env_remove(key);
        }
        command.env(&self.mark.0, &self.mark.1);
        // SAFETY: setsid is a plain system call, safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                setsid()?;
                Ok(())
            });
        }
        // Held meanwhile, so that the reaper cannot see an end before its beginning, nor take one that `spawn` waits for.
        let mut children = self.shared.0.lock().expect("no thread panics");
        let child = command.spawn()?;
        children.insert(child.id() as i32, None);
        Ok(child)
    }

    /// Its code, once, if it has ended.
    pub fn ended(&self, pid: i32) -> Option<i32> {
        let mut children = self.shared.0.lock().expect("no thread panics");
        let code = (*children.get(&pid)?)?;
        children.remove(&pid);
        Some(code)
    }

    pub fn wait(&self, pid: i32, patience: Duration) -> Option<i32> {
        let end = Instant::now() + patience;
        let mut children = self.shared.0.lock().expect("no thread panics");
        while children.get(&pid) == Some(&None) {
            let left = end.checked_duration_since(Instant::now())?;
            children = self.shared.1.wait_timeout(children, left).expect("no thread panics").0;
        }
        children.remove(&pid).flatten()
    }

    /// Runs a tool to its end.
    pub fn run(&self, program: &str, args: &[&str]) -> io::Result<()> {
        let pid = self.spawn(Command::new(program).args(args).current_dir("/").stdout(Stdio::null()))?;
        match self.wait(pid, Duration::from_secs(60)) {
            Some(0) => Ok(()),
            code => Err(io::Error::other(format!("{program} {}: {code:?}", args.join(" ")))),
        }
    }
}

fn reap(shared: &(Mutex<Children>, Condvar)) {
    loop {
        let status = match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(status) => status,
            Err(Errno::ECHILD) => {
                thread::sleep(Duration::from_millis(20));
                continue;
            }
            Err(_) => continue,
        };
        let mut children = shared.0.lock().expect("no thread panics");
        let Some(pid) = status.pid() else { continue };
        let code = match waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG) {
            Ok(WaitStatus::Exited(_, code)) => code,
            Ok(WaitStatus::Signaled(_, signal, _)) => 128 + signal as i32,
            Ok(_) | Err(_) => continue,
        };
        // Orphans are nobody's.
        if let Some(child) = children.get_mut(&pid.as_raw()) {
            *child = Some(code);
            shared.1.notify_all();
        }
    }
}

pub fn send(pid: i32, signal: Signal) {
    // 0 and 1 would be more than one process.
    if pid > 1 {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Name, state and parent, of proc_pid_stat(5).
pub fn look(pid: i32) -> Option<(String, char, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = (stat.split_once('(')?.1.rsplit_once(')')?.0, stat.rsplit_once(')')?.1);
    let mut fields = rest.split_whitespace();
    Some((name.to_string(), fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

pub fn guard_of(front: i32) -> Option<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{front}/task")).ok()?;
    let children: Vec<String> = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("children")).ok()).collect();
    let mut pids = children.iter().flat_map(|text| text.split_whitespace()).filter_map(|pid| pid.parse().ok());
    pids.find(|pid| look(*pid).is_some_and(|(name, ..)| name == "lockrun-guard"))
}
