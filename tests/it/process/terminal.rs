//! lockrun in a terminal: below an interactive bash on a pseudo-terminal, as a user types. The lease is long, for a
//! command that is stopped by hand is not renewed.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::{grantpt, posix_openpt, ptsname_r, unlockpt};
use nix::sys::termios::{LocalFlags, SetArg, tcgetattr, tcsetattr};

use super::{assert_does_not_spin, assert_released, caught, find, probe, shell_words, times_caught, wait_for_catcher, wait_for_signal};
use crate::common::{Scene, alive, comm, lockrun_binary, signal, state, wait_until};

const PROMPT: &str = "ready> ";
const PRESSES: usize = 20;

/// The user's side of a terminal, and the session leader on its other side.
struct Terminal {
    master: File,
    leader: Child,
    /// What has come and was not yet waited for.
    text: String,
    /// All that has come, for messages.
    transcript: String,
}

impl Terminal {
    /// COMMAND as the leader of a session with this terminal, without echo: what is read is what programs wrote.
    fn open(command: &mut Command) -> Terminal {
        // Close-on-exec: a terminal hangs up when its last master is closed, and other tests start processes meanwhile.
        let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).expect("a terminal");
        grantpt(&master).expect("granted");
        unlockpt(&master).expect("unlocked");
        let slave = File::options().read(true).write(true).open(ptsname_r(&master).expect("a name")).expect("the other side");
        let mut modes = tcgetattr(&slave).expect("the modes");
        modes.local_flags.remove(LocalFlags::ECHO | LocalFlags::ECHOCTL);
        tcsetattr(&slave, SetArg::TCSANOW, &modes).expect("no echo");
        let side = || Stdio::from(slave.try_clone().expect("a descriptor"));
        command.stdin(side()).stdout(side()).stderr(side());
        // SAFETY: two plain system calls, safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
            })
        };
        let leader = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        // The command has copies of the slave, which would keep the terminal open.
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let master = File::from(own(&master));
        Terminal { master, leader, text: String::new(), transcript: String::new() }
    }

    /// An interactive bash; `$LR -- …` runs lockrun, `$PROBE` the helper.
    fn bash(scene: &Scene) -> Terminal {
        let mut command = for_typing(scene, "bash");
        command.args(["--norc", "--noprofile", "--noediting", "-i"]);
        let mut terminal = Terminal::open(&mut command);
        terminal.wait_for(PROMPT);
        terminal
    }

    fn type_in(&mut self, keys: &str) {
        self.master.write_all(keys.as_bytes()).expect("typed");
    }

    fn line(&mut self, line: &str) {
        self.type_in(&format!("{line}\n"));
    }

    /// Waits for this text and drops all up to its end.
    fn wait_for(&mut self, expected: &str) {
        let mut end = None;
        wait_until(&format!("{expected:?} in the terminal; it shows {:?}", self.transcript), || {
            self.read();
            end = self.text.find(expected);
            end.is_some()
        });
        self.text.drain(..end.expect("just found") + expected.len());
    }

    fn read(&mut self) {
        let mut buffer = [0; 4096];
        loop {
            match self.master.read(&mut buffer) {
                Ok(0) => return,
                Ok(count) => {
                    let text = String::from_utf8_lossy(&buffer[..count]).into_owned();
                    self.text += &text;
                    self.transcript += &text;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // Nothing for now, or nobody has the other side open.
                Err(_) => return,
            }
        }
    }

    /// The terminal is gone, as when a connection breaks.
    fn hang_up(self) -> Child {
        self.leader
    }
}

fn own(master: &impl AsRawFd) -> OwnedFd {
    let copy = fcntl(
        // SAFETY: open for as long as `master` lives, which is longer than this call.
        unsafe { std::os::fd::BorrowedFd::borrow_raw(master.as_raw_fd()) },
        FcntlArg::F_DUPFD_CLOEXEC(3),
    );
    // SAFETY: a new descriptor that nobody else has.
    unsafe { std::os::fd::FromRawFd::from_raw_fd(copy.expect("a descriptor")) }
}

/// A shell with `$LR`, `$PROBE` and our prompt.
fn for_typing(scene: &Scene, shell: &str) -> Command {
    let mut command = scene.command(shell);
    command.env("PS1", PROMPT).env("LC_ALL", "C").env("TERM", "dumb").env_remove("HISTFILE").env("PROBE", probe());
    // Split by the shell at spaces, quotes stay as they are: no path here may hold either.
    command.env("LR", shell_words(scene, "600s").replace('\'', ""));
    command
}

/// The front, a child of this process.
fn front(parent: i32) -> i32 {
    let mut found = None;
    wait_until("the front", || {
        found = crate::common::children(parent).into_iter().find(|pid| comm(*pid) == "lockrun");
        found.is_some()
    });
    found.expect("just found")
}

fn kinds(scene: &Scene, file: &str) -> Vec<(i32, i32)> {
    caught(&scene.path(file))
}

#[test]
fn t23_one_ctrl_c_reaches_each_process_once_and_from_the_kernel() {
    let scene = Scene::new();
    let mut terminal = Terminal::bash(&scene);
    terminal.line("$LR -- $PROBE sigcatch-pair caught child");
    wait_for_catcher(&scene.path("caught"));
    // Often: a second one that comes before the first is taken is one with it, and would not show.
    for press in 1..=PRESSES {
        terminal.type_in("\x03");
        for file in ["caught", "child"] {
            wait_until("INT", || times_caught(&scene.path(file), libc::SIGINT) >= press);
        }
    }
    // What lockrun forwarded of it would come before this.
    signal(front(terminal.leader.id() as i32), nix::sys::signal::Signal::SIGUSR2);
    wait_for_signal(&scene.path("caught"), libc::SIGUSR2);
    let of = |file: &str, number: i32| kinds(&scene, file).into_iter().filter(|(signal, _)| *signal == number).collect::<Vec<_>>();
    // 128 is SI_KERNEL.
    assert_eq!(of("caught", libc::SIGINT), [(libc::SIGINT, 128); PRESSES]);
    assert_eq!(of("child", libc::SIGINT), [(libc::SIGINT, 128); PRESSES]);
    assert_eq!(of("child", libc::SIGUSR2), []);
}

#[test]
fn t24_ctrl_backslash_reaches_the_command_once() {
    let scene = Scene::new();
    let mut terminal = Terminal::bash(&scene);
    terminal.line("$LR -- $PROBE sigcatch caught 12; echo code=$?");
    wait_for_catcher(&scene.path("caught"));
    for press in 1..=PRESSES {
        terminal.type_in("\x1c");
        wait_until("QUIT", || times_caught(&scene.path("caught"), libc::SIGQUIT) >= press);
    }
    signal(front(terminal.leader.id() as i32), nix::sys::signal::Signal::SIGUSR2);
    terminal.wait_for("code=0");
    let mut expected = vec![(libc::SIGQUIT, 128); PRESSES];
    expected.push((libc::SIGUSR2, 0));
    assert_eq!(kinds(&scene, "caught"), expected);
}

#[test]
fn t24_ctrl_z_stops_the_job_and_fg_resumes_it() {
    let scene = Scene::new();
    let mut terminal = Terminal::bash(&scene);
    terminal.line("$LR -- sleep 600");
    let sleep = find(&scene, "sleep");
    let front = front(terminal.leader.id() as i32);
    for _ in 0..3 {
        terminal.type_in("\x1a");
        terminal.wait_for("Stopped");
        terminal.wait_for(PROMPT);
        assert_eq!((state(sleep), state(front)), (Some('T'), Some('T')));
        terminal.line("fg");
        wait_until("a resumed job", || state(sleep) == Some('S') && state(front) == Some('S'));
    }
    terminal.type_in("\x03");
    terminal.wait_for(PROMPT);
    terminal.line("echo code=$?");
    terminal.wait_for("code=130");
    assert!(!alive(sleep));
    assert_released(&scene);
}

#[test]
fn t24_a_job_resumed_in_the_background_runs_on() {
    let scene = Scene::new();
    let mut terminal = Terminal::bash(&scene);
    terminal.line("$LR -- sleep 600");
    let sleep = find(&scene, "sleep");
    terminal.type_in("\x1a");
    terminal.wait_for("Stopped");
    terminal.wait_for(PROMPT);
    terminal.line("bg");
    wait_until("a resumed job", || state(sleep) == Some('S'));
    terminal.line("kill %1; wait %1; echo code=$?");
    terminal.wait_for("code=143");
    assert!(!alive(sleep));
}

#[test]
fn t25_ctrl_c_ends_a_shell_loop() {
    let scene = Scene::new();
    let mut terminal = Terminal::bash(&scene);
    terminal.line("for i in 1 2 3; do echo run-$i; $LR -- sleep 600; done");
    find(&scene, "sleep");
    terminal.type_in("\x03");
    terminal.wait_for(PROMPT);
    assert!(terminal.transcript.contains("run-1") && !terminal.transcript.contains("run-2"), "{}", terminal.transcript);
    assert_released(&scene);
}

#[test]
fn t26_an_interactive_shell_below_lockrun_has_job_control() {
    let scene = Scene::new();
    let mut terminal = Terminal::bash(&scene);
    terminal.line("$LR -- bash --norc --noprofile --noediting -i");
    terminal.wait_for(PROMPT);
    terminal.line("echo lease=$LOCKRUN_NAME");
    terminal.wait_for("lease=default");
    terminal.line("sleep 600");
    let sleep = find(&scene, "sleep");
    terminal.type_in("\x1a");
    terminal.wait_for("Stopped");
    terminal.wait_for(PROMPT);
    terminal.line("jobs");
    terminal.wait_for("Stopped");
    assert_eq!(state(sleep), Some('T'));
    terminal.line("fg");
    wait_until("a resumed job", || state(sleep) == Some('S'));
    terminal.type_in("\x03");
    terminal.wait_for(PROMPT);
    terminal.line("exit 9");
    terminal.wait_for(PROMPT);
    terminal.line("echo code=$?");
    terminal.wait_for("code=9");
    assert!(!terminal.transcript.contains("no job control"), "{}", terminal.transcript);
}

#[test]
fn t27_a_background_job_that_reads_the_terminal_is_stopped_and_fg_lets_it_read() {
    let scene = Scene::new();
    let mut terminal = Terminal::bash(&scene);
    // bash speaks of a stopped background job before the next prompt.
    terminal.line("$LR -- sh -c 'touch up; read line; echo \"got <$line>\"' &");
    scene.wait_for_file("up");
    let shell = find(&scene, "sh");
    wait_until("a stopped job", || state(shell) == Some('T'));
    terminal.line("echo the foreground is here");
    terminal.wait_for("the foreground is here");
    wait_until("a stopped front", || state(front(terminal.leader.id() as i32)) == Some('T'));
    terminal.line("jobs");
    terminal.wait_for("Stopped");
    terminal.wait_for(PROMPT);
    terminal.line("fg");
    wait_until("a resumed job", || state(shell) == Some('S'));
    terminal.line("hello");
    terminal.wait_for("got <hello>");
    terminal.wait_for(PROMPT);
}

#[test]
fn t42_a_terminal_that_is_closed_means_one_hup_and_a_released_lease() {
    let scene = Scene::new();
    // A shell that leads the session dies of the hang-up, and the kernel then tells its foreground group.
    let mut command = for_typing(&scene, "sh");
    command.args(["-c", "$LR -- $PROBE sigcatch-pair caught child; exit 1"]);
    let terminal = Terminal::open(&mut command);
    wait_for_catcher(&scene.path("caught"));
    let front = front(terminal.leader.id() as i32);
    let mut leader = terminal.hang_up();
    leader.wait().expect("waited");
    hung_up_once_and_released(&scene, front);
}

#[test]
fn t42_a_front_that_leads_its_terminals_session_passes_the_hang_up_on() {
    let scene = Scene::new();
    // As with `docker run -t` or `ssh -t host lockrun …`: the kernel tells the session leader alone.
    let mut command = scene.command(lockrun_binary());
    command.args(["--ttl", "600s", "--heartbeat", "250ms", "--grace", "300ms", "--db"]).arg(scene.db());
    let terminal = Terminal::open(command.args(["--", &probe(), "sigcatch-pair", "caught", "child"]));
    wait_for_catcher(&scene.path("caught"));
    let mut leader = terminal.hang_up();
    hung_up_once_and_released(&scene, leader.id() as i32);
    leader.wait().expect("waited");
}

/// Leaves nothing running: the catcher, which outlives a HUP, is ended by TERM.
fn hung_up_once_and_released(scene: &Scene, front: i32) {
    let file = scene.path("caught");
    wait_for_signal(&file, libc::SIGHUP);
    assert_does_not_spin(front);
    signal(front, nix::sys::signal::Signal::SIGUSR2);
    wait_for_signal(&file, libc::SIGUSR2);
    assert_eq!(times_caught(&file, libc::SIGHUP), 1);
    signal(scene_catcher(scene, front), nix::sys::signal::Signal::SIGKILL);
    wait_until("the end of the front", || !alive(front));
    assert_released(scene);
}

/// The command: the guard's child.
fn scene_catcher(scene: &Scene, front: i32) -> i32 {
    let guard = crate::common::children(front).into_iter().find(|pid| comm(*pid) == "lockrun-guard").expect("the guard");
    let probes = crate::common::children(guard).into_iter().find(|pid| comm(*pid) == "probe");
    probes.unwrap_or_else(|| panic!("no catcher in {:?}", scene.processes()))
}
