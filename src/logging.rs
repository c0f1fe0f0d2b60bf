//! Lines on stderr that can neither block nor panic: a full pipe loses lines, a closed one loses all, nothing else changes.
//! Must never write to stdout.

use std::fmt::{self, Write as _};
use std::sync::OnceLock;
use std::sync::mpsc::{self, SyncSender};
use std::time::{Duration, SystemTime};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};

use crate::config::LogFormat;
use crate::text::{json_line, one_line};

/// Lines that wait for a slow reader.
const QUEUE: usize = 256;
/// How long the end of the process waits for the lines to go out.
const PATIENCE: Duration = Duration::from_millis(300);

static WRITER: OnceLock<Option<SyncSender<Message>>> = OnceLock::new();

enum Message {
    Line(Vec<u8>),
    /// Everything before it has been written.
    Flush(SyncSender<()>),
}

/// Must be called once. Starts no thread: the first line does.
pub fn init(format: LogFormat, level: Level) {
    let lines = Lines { format, level, colour: wants_colour() };
    let _ = tracing::subscriber::set_global_default(tracing_subscriber::registry().with(lines));
}

fn wants_colour() -> bool {
    // SAFETY: no pointers.
    let terminal = unsafe { libc::isatty(2) } == 1;
    terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// For the one line (`Failure` sees to that) of an error before anything was started, when there is no lease to name yet.
pub fn say(line: &str) {
    write_out(format!("lockrun: {}\n", shortened(line)).as_bytes());
}

/// Waits a moment for the lines to go out.
pub fn flush() {
    let Some(Some(writer)) = WRITER.get() else { return };
    let (done, wait) = mpsc::sync_channel(1);
    if writer.try_send(Message::Flush(done)).is_ok() {
        let _ = wait.recv_timeout(PATIENCE);
    }
}

fn queue(line: String) {
    let mut line = line.as_bytes();
    // A thread and the wait for it at the end cost a tenth of a short run: pipes and sockets need none.
    if WRITER.get().is_none() {
        match write_at_once(line) {
            Ok(written) if written == line.len() => return,
            Ok(written) => line = &line[written..],
            Err(Errno::EPIPE | Errno::EBADF) => return, // nobody reads it
            Err(_) => {}
        }
    }
    let writer = WRITER.get_or_init(|| {
        let (sender, receiver) = mpsc::sync_channel(QUEUE);
        // It may block for ever in write(2); nobody waits for it for longer than a moment.
        let thread = std::thread::Builder::new().name("log".to_string()).stack_size(128 << 10).spawn(move || {
            for message in receiver {
                match message {
                    Message::Line(line) => write_out(&line),
                    Message::Flush(done) => drop(done.send(())),
                }
            }
        });
        thread.is_ok().then_some(sender)
    });
    if let Some(writer) = writer {
        let _ = writer.try_send(Message::Line(line.to_vec()));
    }
}

/// Never blocks (RWF_NOWAIT), whatever others do with the same pipe or socket meanwhile. Terminals and files refuse it.
fn write_at_once(bytes: &[u8]) -> Result<usize, Errno> {
    let vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: the kernel reads one vector of `bytes` and keeps none of it. -1, in two halves: not at an offset.
    let written = unsafe { libc::syscall(libc::SYS_pwritev2, 2, &vector, 1, -1_i64, -1_i64, libc::RWF_NOWAIT) };
    Errno::result(written).map(|written| written as usize)
}

/// With a look first, so that a full pipe is not entered; a pipe with room takes a line of up to 4096 bytes at once.
fn write_out(line: &[u8]) {
    // SAFETY: whatever descriptor 2 is, it is only borrowed for the call.
    let stderr = unsafe { std::os::fd::BorrowedFd::borrow_raw(2) };
    let mut fds = [PollFd::new(stderr, PollFlags::POLLOUT)];
    if poll(&mut fds, PollTimeout::try_from(PATIENCE).unwrap_or(PollTimeout::ZERO)) == Ok(1) {
        let _ = nix::unistd::write(stderr, line);
    }
}

struct Lines {
    format: LogFormat,
    level: Level,
    colour: bool,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = *event.metadata().level();
        if level > self.level || !event.metadata().target().starts_with("lockrun") {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        queue(match self.format {
            LogFormat::Text => self.text(level, &fields),
            LogFormat::Json => json(level, fields),
        });
    }
}

impl Lines {
    fn text(&self, level: Level, fields: &Fields) -> String {
        let (on, off) = match level {
            _ if !self.colour => ("", ""),
            Level::ERROR => ("\x1b[31m", "\x1b[0m"),
            Level::WARN => ("\x1b[33m", "\x1b[0m"),
            _ => ("", ""),
        };
        format!("{on}lockrun: {}: {}{off}\n", fields.name.as_deref().unwrap_or(""), shortened(&one_line(&fields.msg)))
    }
}

/// Without its middle, if it is longer than a pipe with room surely takes at once: what it is about stands at the beginning,
/// what to do at the end.
fn shortened(line: &str) -> String {
    const END: usize = 450;
    let count = line.chars().count();
    if count <= 2 * END {
        return line.to_string();
    }
    line.chars().take(END).chain(" … ".chars()).chain(line.chars().skip(count - END)).collect()
}

#[derive(Serialize)]
struct JsonLine {
    ts: String,
    level: String,
    event: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    holder: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    msg: String,
}

fn json(level: Level, fields: Fields) -> String {
    let line = JsonLine {
        ts: humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
        level: level.as_str().to_ascii_lowercase(),
        event: fields.event.unwrap_or_default(),
        name: fields.name.unwrap_or_default(),
        token: fields.token,
        holder: fields.holder.as_deref().map(shortened),
        reason: fields.reason.as_deref().map(shortened),
        msg: shortened(&fields.msg),
    };
    json_line(&line)
}

#[derive(Default)]
struct Fields {
    event: Option<String>,
    name: Option<String>,
    token: Option<i64>,
    holder: Option<String>,
    reason: Option<String>,
    msg: String,
}

impl Visit for Fields {
    fn record_i64(&mut self, field: &Field, value: i64) {
        if field.name() == "token" {
            self.token = Some(value);
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let value = value.to_string();
        match field.name() {
            "event" => self.event = Some(value),
            "name" => self.name = Some(value),
            "holder" => self.holder = Some(value),
            "reason" => self.reason = Some(value),
            _ => self.msg = value,
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            self.msg.clear();
            let _ = write!(self.msg, "{value:?}");
        }
    }
}
