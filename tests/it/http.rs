//! `--http` and `lockrun health`: what is answered by whom, in which order, and that no client costs the lease anything.
//! Must never ask how fast: a request waits for its answer, and what changes is waited for.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::common::gate::Gate;
use crate::common::report::{parse, wait_until_it_waits};
use crate::common::tables::{Table, lock_exclusively};
use crate::common::{PATIENCE, Running, Scene, alive, lockrun_binary, state, wait_until};

const ANYWHERE: &str = "127.0.0.1:0";

fn start(scene: &Scene, args: &[&str], body: &str) -> Running {
    let timing = ["--ttl", "3s", "--heartbeat", "250ms", "--grace", "300ms", "--http", ANYWHERE, "--db"];
    start_with(scene, &timing, args, body)
}

fn start_with(scene: &Scene, timing: &[&str], args: &[&str], body: &str) -> Running {
    let mut command = scene.bare_lockrun(timing);
    scene.start(command.arg(scene.db()).args(args).args(["--", "sh", "-c", &scene.witness(body)]))
}

/// With a TTL so long that a loaded machine does not end it.
fn start_holder(scene: &Scene, body: &str) -> Running {
    let timing = ["--ttl", "60s", "--heartbeat", "250ms", "--grace", "1s", "--http", ANYWHERE, "--db"];
    let holder = start_with(scene, &timing, &[], body);
    scene.wait_for_starts(1);
    wait_for(address(&holder), "/leader", 200);
    holder
}

/// Where it listens, as its log says.
fn address(running: &Running) -> SocketAddr {
    running.wait_for_stderr("listening on http://");
    let log = running.stderr();
    let after = log.split_once("listening on http://").expect("just seen").1;
    after.lines().next().expect("a line").parse().expect("an address")
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

fn send(at: SocketAddr, bytes: &[u8]) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(at)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    Ok(stream)
}

fn receive(mut stream: TcpStream) -> std::io::Result<Answer> {
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::UnexpectedEof)?;
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
    Ok(Answer { status, head: head.to_ascii_lowercase(), body: body.to_string() })
}

fn ask(at: SocketAddr, method: &str, path: &str) -> std::io::Result<Answer> {
    receive(send(at, format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?)
}

fn get(at: SocketAddr, path: &str) -> Answer {
    ask(at, "GET", path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn status(at: SocketAddr) -> Value {
    parse(&get(at, "/status").body)
}

fn wait_for(at: SocketAddr, path: &str, status: u16) {
    wait_until(&format!("{status} at {path}"), || get(at, path).status == status);
}

fn verdicts(at: SocketAddr) -> [u16; 3] {
    ["/livez", "/readyz", "/leader"].map(|path| get(at, path).status)
}

#[test]
fn the_holder_leads_and_the_standby_is_ready_until_it_takes_over() {
    let scene = Scene::new();
    let mut gate = Gate::new(&scene, "go");
    let a = start_holder(&scene, "read gate <go");
    let b = start(&scene, &[], "exec sleep 1000");
    wait_until_its_wait_is_told(&b);
    let (at_a, at_b) = (address(&a), address(&b));
    assert_eq!(verdicts(at_a), [200, 200, 200]);
    assert_eq!(verdicts(at_b), [200, 200, 503]);

    let (of_a, of_b) = (status(at_a), status(at_b));
    assert_eq!((&of_a["state"], &of_b["state"]), (&"holding".into(), &"waiting".into()));
    assert_eq!(of_a["token"], scene.starts()[0].0);
    assert_eq!(of_a["holder"], of_a["process"]);
    assert_eq!((&of_a["process"]["pid"], &of_b["holder"]), (&a.pid().into(), &of_a["process"]), "{of_b}");
    assert!(of_a["kill_in_ms"].as_u64().is_some_and(|ms| ms <= 58_500), "{of_a}");
    assert_eq!((&of_b["token"], &of_b["kill_in_ms"], &of_b["error"]), (&Value::Null, &Value::Null, &Value::Null));

    gate.open();
    assert_eq!(a.finish().code(), 0);
    wait_for(at_b, "/leader", 200);
    assert_eq!(status(at_b)["token"], scene.wait_for_starts(2)[1].0);
    scene.assert_exclusion();
}

fn wait_until_its_wait_is_told(waiter: &Running) {
    wait_until_it_waits(waiter);
    wait_for(address(waiter), "/readyz", 200);
}

#[test]
fn other_paths_and_methods_get_a_line_and_head_gets_no_body() {
    let scene = Scene::new();
    let holder = start_holder(&scene, "exec sleep 1000");
    let at = address(&holder);
    for path in ["/", "/livez/", "/metrics/x", "/favicon.ico"] {
        let answer = get(at, path);
        assert_eq!((answer.status, answer.body.lines().count()), (404, 1), "{path}: {}", answer.body);
    }
    assert_eq!(get(at, "/livez?verbose").status, 200);
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = ask(at, method, "/livez").expect("an answer");
        assert_eq!((answer.status, answer.body.lines().count()), (405, 1), "{method}: {}", answer.body);
        assert!(answer.head.contains("\r\nallow: get, head"), "{method}: {}", answer.head);
    }
    let head = ask(at, "HEAD", "/leader").expect("an answer");
    assert_eq!((head.status, head.body.as_str()), (200, ""));
    // What comes behind a request is not answered, nor are these at all.
    let two = receive(send(at, &b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2)).expect("sent")).expect("an answer");
    assert_eq!((two.status, two.body.matches("HTTP/1").count()), (200, 0), "{}", two.body);
    for garbage in ["\x16\x03\x01\0\0\0\0\0\0\0", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET /livez\r\n\r\n", &"x".repeat(1 << 20)] {
        let answer = send(at, garbage.as_bytes()).and_then(receive).map_or(0, |answer| answer.status);
        assert!(!(200..300).contains(&answer), "{}: {answer}", &garbage[..4]);
    }
    assert_eq!(verdicts(at), [200, 200, 200]);
}

#[test]
fn a_store_away_for_longer_than_the_lease_ends_the_lead_once_and_for_all_in_a_process_that_is_live() {
    let scene = Scene::new();
    let timing = ["--ttl", "6s", "--heartbeat", "250ms", "--grace", "1s", "--http", ANYWHERE, "--db"];
    let holder = start_with(&scene, &timing, &[], "exec sleep 1000");
    let at = address(&holder);
    wait_for(at, "/leader", 200);
    let command = scene.wait_for_starts(1)[0].1;
    let lock = lock_exclusively(&scene.db());
    wait_until("an error that is told", || !status(at)["error"].is_null());
    assert_eq!(verdicts(at), [200, 200, 200], "it is ridden out for as long as the lease is good");
    let mut led = vec![];
    loop {
        let before = alive(command);
        // It ends by itself in between.
        let Ok(leader) = ask(at, "GET", "/leader") else { break };
        let Ok(live) = ask(at, "GET", "/livez") else { break };
        assert_eq!(live.status, 200, "{}", live.body);
        assert!(before || leader.status != 200, "a command that is dead leads no more: {}", leader.body);
        led.push(leader.status == 200);
    }
    assert!(led.is_sorted_by(|earlier, later| earlier >= later), "no way back: {led:?}");
    assert_eq!((led.first(), led.last()), (Some(&true), Some(&false)));
    assert_eq!(holder.finish().code(), 76);
    drop(lock);
}

#[test]
fn a_standby_that_cannot_reach_the_store_is_live_and_not_ready() {
    let scene = Scene::new();
    assert_eq!(scene.run(&mut scene.lockrun(["--", "true"])).code(), 0);
    let lock = lock_exclusively(&scene.db());
    let waiter = start(&scene, &[], "exec sleep 1000");
    let at = address(&waiter);
    wait_until("an error that is told", || !status(at)["error"].is_null());
    assert_eq!(verdicts(at), [200, 503, 503]);
    drop(lock);
    wait_for(at, "/leader", 200);
}

#[test]
fn a_front_that_was_stopped_past_its_deadline_never_says_that_it_leads() {
    let scene = Scene::new();
    let a = start(&scene, &[], "exec sleep 1000");
    let at = address(&a);
    wait_for(at, "/leader", 200);
    let b = start(&scene, &[], "exec sleep 1000");
    wait_until_it_waits(&b);
    a.signal(Signal::SIGSTOP);
    wait_until("a stopped front", || state(a.pid()) == Some('T'));
    let asked: Vec<_> = (0..8).map(|_| send(at, b"GET /leader HTTP/1.1\r\nHost: x\r\n\r\n").expect("the kernel takes it")).collect();
    wait_for(address(&b), "/leader", 200);
    a.signal(Signal::SIGCONT);
    for stream in asked {
        // Answered, or cut off by its end.
        let status = receive(stream).map_or(0, |answer| answer.status);
        assert!([0, 503].contains(&status), "{status}");
    }
    assert_eq!(a.finish().code(), 76);
    scene.assert_exclusion();
}

/// A process whose main thread does nothing, while it is held: no signal wakes it, and its other threads go on. The thread
/// that made it must let it go.
struct Hung(i32);

impl Hung {
    fn new(pid: i32) -> Hung {
        trace(libc::PTRACE_SEIZE, pid);
        trace(libc::PTRACE_INTERRUPT, pid);
        let mut stopped = 0;
        // SAFETY: the status outlives the call, which takes what tracing tells and nothing else.
        assert_eq!(unsafe { libc::waitpid(pid, &mut stopped, libc::__WALL) }, pid);
        Hung(pid)
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        trace(libc::PTRACE_DETACH, self.0);
    }
}

fn trace(request: libc::c_uint, pid: i32) {
    // SAFETY: none of these requests takes an address.
    let done = unsafe { libc::ptrace(request, pid, 0, 0) };
    assert_eq!(done, 0, "{}; the tests run as root", std::io::Error::last_os_error());
}

/// Its one thread of many that does the work: the others go on, and could tell anything.
#[test]
fn a_front_that_hangs_is_not_live() {
    let scene = Scene::new();
    let a = start(&scene, &[], "exec sleep 1000");
    let at = address(&a);
    wait_for(at, "/leader", 200);
    let b = start(&scene, &[], "exec sleep 1000");
    wait_until_it_waits(&b);
    let hung = Hung::new(a.pid());
    wait_for(at, "/livez", 503);
    assert_eq!(verdicts(at), [503, 503, 503], "{}", get(at, "/livez").body);
    wait_for(address(&b), "/leader", 200);
    drop(hung);
    assert_eq!(a.finish().code(), 76);
    scene.assert_exclusion();
}

fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("it is there").count()
}

#[test]
fn slow_clients_and_floods_cost_neither_renewals_nor_descriptors_nor_the_answers_to_others() {
    const RENEWALS: usize = 20;
    let scene = Scene::new();
    let mut holder = start_holder(&scene, "exec sleep 1000");
    let (at, before) = (address(&holder), descriptors(holder.pid()));
    let over = AtomicBool::new(false);
    let flood = |bytes: Vec<u8>| {
        move |over: &AtomicBool| {
            while !over.load(Ordering::Relaxed) {
                let Ok(mut stream) = send(at, &bytes) else { continue };
                let _ = stream.read(&mut [0; 64]);
            }
        }
    };
    let floods = [
        flood(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000)),
        flood([b"GET / HTTP/1.1\r\nx: ".to_vec(), vec![b'y'; 1 << 20]].concat()),
        flood(format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(10_000)).into_bytes()),
        flood(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\nx".to_vec()),
    ];
    std::thread::scope(|scope| {
        let over = &over;
        for flood in floods {
            scope.spawn(move || flood(over));
        }
        let slow: Vec<_> = (0..200).filter_map(|number| send(at, &b"GET /livez HTTP/1.1\r\nx: "[..number % 20]).ok()).collect();
        // Whatever comes of it, the flood must end.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut row = Table::Own.row(&scene).expect("held");
            for _ in 0..RENEWALS {
                row = Table::Own.wait_for_renewal(&scene, &row);
                let open = descriptors(holder.pid());
                assert!(open <= before + 33, "{open} descriptors, {before} before");
            }
            // A flood may cut one off.
            wait_until("an answer", || ask(at, "GET", "/livez").is_ok_and(|answer| answer.status == 200));
        }));
        over.store(true, Ordering::Relaxed);
        drop(slow);
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    assert!(holder.is_running());
    assert_eq!(verdicts(at), [200, 200, 200]);
    wait_until("all of them closed", || descriptors(holder.pid()) <= before + 1);
    // Nobody else comes: it is its own slowness that ends it.
    let half = send(at, b"GET /livez HTTP/1.1\r\nx: ").expect("sent");
    assert!((&half).read(&mut [0; 64]).is_ok_and(|count| count == 0), "closed");
    let peak = fs::read_to_string(format!("/proc/{}/status", holder.pid())).expect("it is there");
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<u64>().ok());
    assert!(peak.is_some_and(|kib| kib < 64 << 10), "{peak:?} KiB");
    assert_eq!(scene.starts().len(), 1);
}

/// The value of each sample, by name and labels.
fn samples(at: SocketAddr) -> std::collections::BTreeMap<String, f64> {
    let text = get(at, "/metrics").body;
    assert!(text.ends_with("# EOF\n"), "{text}");
    let mut types = std::collections::BTreeMap::new();
    let mut found = std::collections::BTreeMap::new();
    for line in text.lines().filter(|line| *line != "# EOF" && !line.starts_with("# HELP ")) {
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("a type");
            assert!(["gauge", "counter", "histogram"].contains(&kind), "known to every reader: {line}");
            assert!(types.insert(name.to_string(), kind.to_string()).is_none(), "once: {line}");
            continue;
        }
        let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line:?}"));
        let family = name.split('{').next().expect("a name");
        let known = |end: &str, kind: &str| family.strip_suffix(end).and_then(|name| types.get(name)).is_some_and(|of| of == kind);
        let histogram = ["_sum", "_count", "_bucket"].into_iter().any(|end| known(end, "histogram"));
        assert!(known("", "gauge") || known("_total", "counter") || histogram, "of its type: {line}");
        assert!(name.contains("{lease=\"default\""), "{line}");
        found.insert(name.replace("lease=\"default\",", "").replace("{lease=\"default\"}", ""), value.parse().expect("a number"));
    }
    found
}

#[test]
fn the_metrics_tell_what_happens() {
    let scene = Scene::new();
    let holder = start_holder(&scene, "exec sleep 1000");
    let at = address(&holder);
    let first = samples(at);
    assert_eq!((first["lockrun_held"], first["lockrun_token"]), (1.0, scene.starts()[0].0 as f64));
    assert_eq!((first["lockrun_state{state=\"holding\"}"], first["lockrun_state{state=\"waiting\"}"]), (1.0, 0.0));
    assert!((0.0..=58.5).contains(&first["lockrun_deadline_seconds"]), "{first:?}");
    assert_eq!((first["lockrun_acquisitions_total"], first["lockrun_transitions_total{to=\"holding\"}"]), (1.0, 1.0));
    let renewals = "lockrun_renewals_total";
    wait_until("three more renewals", || samples(at)[renewals] >= first[renewals] + 3.0);

    let second = samples(at);
    assert_eq!(second[renewals], second["lockrun_renewal_duration_seconds_count"]);
    assert_eq!(second[renewals], second["lockrun_renewal_duration_seconds_bucket{le=\"+Inf\"}"]);
    assert!(second["lockrun_renewal_duration_seconds_sum"] > first["lockrun_renewal_duration_seconds_sum"]);
    let errors = |samples: &std::collections::BTreeMap<String, f64>| -> f64 {
        samples.iter().filter(|(name, _)| name.starts_with("lockrun_store_errors_total")).map(|(_, value)| value).sum()
    };
    let (before, lock) = (errors(&second), lock_exclusively(&scene.db()));
    wait_until("errors that are counted", || errors(&samples(at)) >= before + 2.0);
    assert_eq!((samples(at)["lockrun_held"], samples(at)["lockrun_store_up"]), (1.0, 0.0));
    drop(lock);
    wait_until("a store that works", || samples(at)["lockrun_store_up"] == 1.0);

    let standby = start(&scene, &[], "true");
    wait_until_its_wait_is_told(&standby);
    let of_standby = samples(address(&standby));
    assert_eq!((of_standby["lockrun_held"], of_standby.get("lockrun_token")), (0.0, None));
    wait_until("a wait that is counted", || {
        samples(address(&standby))["lockrun_wait_seconds_total"] > of_standby["lockrun_wait_seconds_total"]
    });

    let open = receive(send(at, b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept: application/openmetrics-text;q=1\r\n\r\n").expect("sent"));
    assert!(open.expect("an answer").head.contains("content-type: application/openmetrics-text; version=1.0.0"));
    assert!(get(at, "/metrics").head.contains("content-type: text/plain; version=0.0.4"));
}

#[test]
fn health_exits_with_0_1_69_or_125_and_one_line() {
    let scene = Scene::new();
    let holder = start_holder(&scene, "exec sleep 1000");
    let standby = start(&scene, &[], "true");
    wait_until_its_wait_is_told(&standby);
    let (at, by) = (address(&holder), address(&standby));
    let other = TcpListener::bind(ANYWHERE).expect("a port");
    let strange = other.local_addr().expect("its address");
    let nobody = TcpListener::bind(ANYWHERE).and_then(|listener| listener.local_addr()).expect("a free port");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for answer in [&b""[..], b"SSH-2.0-x\r\n", b"HTTP/1.1 404 Not Found\r\n\r\n"] {
                let (mut stream, _) = other.accept().expect("asked");
                let _ = stream.read(&mut [0; 1000]);
                let _ = stream.write_all(answer);
            }
        });
        let health = |address: &str| scene.run(&mut scene.bare_lockrun(["health", "--addr", address]));
        for (address, code) in [
            (at.to_string(), 0),
            (format!("{at}/livez"), 0),
            (format!("{at}/leader"), 0),
            (format!("0.0.0.0:{}", at.port()), 0),
            (format!(":{}/leader", at.port()), 0),
            (by.to_string(), 0),
            (format!("{by}/leader"), 1),
            (nobody.to_string(), 69),
            (strange.to_string(), 69),
            (strange.to_string(), 125),
            (strange.to_string(), 125),
            (format!("{at}/metrics"), 125),
            ("127.0.0.1:0".to_string(), 125),
            ("localhost".to_string(), 125),
        ] {
            let finished = health(&address);
            let said = if code < 2 { &finished.stdout } else { &finished.stderr };
            assert_eq!((finished.code(), said.lines().count()), (code, 1), "{address}: {}{}", finished.stdout, finished.stderr);
        }
    });
    assert_eq!(scene.run(&mut scene.bare_lockrun(["health"])).code(), 125);
    assert_eq!(scene.run(scene.bare_lockrun(["health"]).env("LOCKRUN_HTTP", by.to_string())).code(), 0);
    // One that takes the question and says nothing.
    let finished = scene.run(&mut scene.bare_lockrun(["health", "--addr", &strange.to_string()]));
    assert_eq!(finished.code(), 69, "{}", finished.stderr);
    let stopped = holder;
    stopped.signal(Signal::SIGSTOP);
    wait_until("a stopped front", || state(stopped.pid()) == Some('T'));
    assert_eq!(scene.run(&mut scene.bare_lockrun(["health", "--addr", &at.to_string()])).code(), 69);
    stopped.signal(Signal::SIGCONT);
}

#[test]
fn an_address_that_cannot_be_is_refused_in_one_line_and_nothing_is_started() {
    let scene = Scene::new();
    let taken = TcpListener::bind(ANYWHERE).expect("a port");
    let taken = taken.local_addr().expect("its address").to_string();
    for (address, says) in [
        (taken.as_str(), "port is taken"),
        ("192.0.2.1:8080", "no address of this machine"),
        ("8080", "[::1]:8080"),
        ("localhost:8080", "127.0.0.1:8080"),
        (":x", ":8080"),
        ("127.0.0.1:65536", "a port"),
    ] {
        for command in [
            &mut scene.lockrun(["--http", address, "--", "touch", "ran"]),
            scene.lockrun(["--", "touch", "ran"]).env("LOCKRUN_HTTP", address),
        ] {
            let finished = scene.run(command);
            assert_eq!((finished.code(), finished.stderr.lines().count()), (125, 1), "{address}: {}", finished.stderr);
            assert!(finished.stderr.contains(address) && finished.stderr.contains(says), "{address}: {}", finished.stderr);
        }
    }
    assert!(!scene.db().exists() && !scene.path("ran").exists(), "nothing was changed");
    wait_until("no guard left", || scene.processes().is_empty());
}

/// The inode of the socket that listens there.
fn listener(at: SocketAddr) -> Option<String> {
    let table = fs::read_to_string("/proc/net/tcp").expect("the table");
    let port = format!(":{:04X}", at.port());
    let mut rows = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    rows.find(|row| row[1].ends_with(&port) && row[3] == "0A").map(|row| row[9].to_string())
}

fn has_socket(pid: i32, inode: &str) -> bool {
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).expect("it is there").flatten();
    fds.filter_map(|fd| fs::read_link(fd.path()).ok()).any(|target| target.to_string_lossy() == format!("socket:[{inode}]"))
}

#[test]
fn neither_guard_nor_command_has_the_socket_and_it_is_gone_with_the_front() {
    let scene = Scene::new();
    let holder = start_holder(&scene, "exec sleep 1000");
    let (at, guard, command) = (address(&holder), holder.guard(), scene.starts()[0].1);
    let inode = listener(at).expect("it listens");
    assert_eq!([holder.pid(), guard, command].map(|pid| has_socket(pid, &inode)), [true, false, false]);
    // Another lockrun does not share it.
    let second = scene.run(&mut scene.lockrun(["--name", "other", "--http", &at.to_string(), "--", "touch", "ran"]));
    assert_eq!(second.code(), 125, "{}", second.stderr);
    assert!(!scene.path("ran").exists());

    // A guard that cannot go on to kill, and a front that is dead.
    let hung = Hung::new(guard);
    holder.signal(Signal::SIGKILL);
    assert_eq!(holder.finish().code(), 137);
    assert!(alive(guard) && alive(command));
    let third = scene.run(&mut scene.lockrun(["--name", "other", "--http", &at.to_string(), "--", "touch", "ran"]));
    assert_eq!(third.code(), 0, "the port is free: {}", third.stderr);
    assert!(alive(guard) && alive(command));
    drop(hung);
    // And free again when one has ended.
    TcpListener::bind(at).expect("free");
}

#[test]
fn the_thread_takes_no_signal_and_is_there_only_if_asked_for() {
    let scene = Scene::new();
    let holder = start_holder(&scene, "trap 'exit 42' TERM; while :; do sleep 0.01; done");
    let threads = |pid: i32| -> Vec<String> {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("it is there").flatten();
        tasks.filter_map(|task| fs::read_to_string(task.path().join("status")).ok()).collect()
    };
    let of_http = threads(holder.pid()).into_iter().find(|status| status.starts_with("Name:\thttp\n")).expect("a thread");
    let blocked = of_http.lines().find_map(|line| line.strip_prefix("SigBlk:\t")).expect("a mask");
    let blocked = u64::from_str_radix(blocked, 16).expect("a number");
    for number in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1, libc::SIGCHLD, libc::SIGCONT] {
        assert!(blocked & (1 << (number - 1)) != 0, "signal {number}: {blocked:x}");
    }
    holder.signal(Signal::SIGTERM);
    assert_eq!(holder.finish().code(), 42);

    let plain = scene.start(&mut scene.lockrun(["--", "sh", "-c", "echo >plain; exec sleep 1000"]));
    scene.wait_for_file("plain");
    assert!(threads(plain.pid()).iter().all(|status| !status.starts_with("Name:\thttp\n")));
}

#[test]
fn a_lockrun_inside_does_not_want_the_address_of_the_one_around_it() {
    let scene = Scene::new();
    let port = TcpListener::bind(ANYWHERE).and_then(|listener| listener.local_addr()).expect("a free port");
    let mut outer = scene.lockrun(["--", lockrun_binary(), "--db"]);
    let finished = scene.run(outer.arg(scene.path("inner.db")).args(["--", "echo", "ran"]).env("LOCKRUN_HTTP", port.to_string()));
    assert_eq!((finished.code(), finished.stdout.as_str()), (0, "ran\n"), "{}", finished.stderr);
    assert_eq!(finished.stderr.matches("listening").count(), 1, "{}", finished.stderr);
}

#[test]
fn a_low_limit_of_descriptors_is_named_before_anything_is_started() {
    let scene = Scene::new();
    let mut command = scene.command("sh");
    command.args(["-c", "ulimit -n 30; exec \"$@\"", "sh", lockrun_binary(), "--http", ANYWHERE, "--db"]).arg(scene.db());
    let finished = scene.run(command.args(["--", "touch", "ran"]));
    assert_eq!(finished.code(), 125, "{}", finished.stderr);
    assert!(finished.stderr.contains("open files") && !scene.path("ran").exists(), "{}", finished.stderr);
}
