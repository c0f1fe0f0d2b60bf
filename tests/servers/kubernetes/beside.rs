//! Beside a client of another kind on the same Lease. The test plays client-go's leader election
//! (tools/leaderelection/leaderelection.go and resourcelock/leaselock.go): it goes by the spec alone, keeps the metadata that
//! it read, and judges by its own clock since it saw the spec change.

use std::time::{Duration, Instant};

use k8s_openapi::jiff::{Timestamp, fmt::strtime};
use serde_json::{Value, json};

use super::{SHORT, World, assert_code, now_ns, since};
use crate::common::wait_until;
use crate::fixture::kubernetes::Kubernetes;

/// One candidate: identity, and LeaseDuration in seconds.
struct Elector<'a> {
    server: &'a Kubernetes,
    identity: &'a str,
    seconds: u64,
    observed: Option<(Value, Instant)>,
}

impl<'a> Elector<'a> {
    fn new(server: &'a Kubernetes, identity: &'a str, seconds: u64) -> Elector<'a> {
        Elector { server, identity, seconds, observed: None }
    }

    fn object(&self) -> Value {
        self.server.lease("beat").unwrap_or_else(|| json!({"metadata": {"name": "beat", "namespace": "default"}, "spec": {}}))
    }

    /// tryAcquireOrRenew: whether it leads now.
    fn try_acquire_or_renew(&mut self) -> bool {
        let mut object = self.object();
        let spec = object["spec"].clone();
        if self.observed.as_ref().is_none_or(|(observed, _)| *observed != spec) {
            self.observed = Some((spec.clone(), Instant::now()));
        }
        let holder = spec["holderIdentity"].as_str().unwrap_or_default().to_string();
        let observed_at = self.observed.as_ref().expect("just set").1;
        // Older releases go by their own LeaseDuration, newer ones by the record's.
        let valid = observed_at + Duration::from_secs(self.seconds) > Instant::now();
        if !holder.is_empty() && valid && holder != self.identity {
            return false;
        }
        let now = now();
        let (acquired, transitions) = match holder == self.identity {
            true => (spec["acquireTime"].clone(), spec["leaseTransitions"].as_i64().unwrap_or(0)),
            false => (json!(now), spec["leaseTransitions"].as_i64().unwrap_or(-1) + 1),
        };
        object["spec"] = json!({
            "holderIdentity": self.identity, "leaseDurationSeconds": self.seconds, "acquireTime": acquired, "renewTime": now,
            "leaseTransitions": transitions,
        });
        let done = self.server.put(&object);
        if let Ok(written) = &done {
            self.observed = Some((written["spec"].clone(), Instant::now()));
        }
        done.is_ok()
    }

    /// ReleaseOnCancel.
    fn release(&mut self) {
        let mut object = self.object();
        let (now, transitions) = (now(), object["spec"]["leaseTransitions"].clone());
        object["spec"] = json!({
            "holderIdentity": "", "leaseDurationSeconds": 1, "acquireTime": now, "renewTime": now, "leaseTransitions": transitions,
        });
        self.server.put(&object).expect("released");
    }
}

fn now() -> String {
    strtime::format("%Y-%m-%dT%H:%M:%S%.6fZ", Timestamp::now()).expect("a time")
}

#[test]
fn a_client_go_holder_is_waited_for_and_its_release_is_taken_at_once() {
    let world = World::new();
    let mut elector = Elector::new(&world.server, "controller-7f_0c", 15);
    assert!(elector.try_acquire_or_renew());
    let waiter = world.start_waiter(&["--ttl", "15s"], "date +%s%N >began");
    waiter.wait_for_stderr("held by controller-7f_0c since");
    assert!(elector.try_acquire_or_renew());
    let finished = world.scene.run(world.lockrun(&["-n"]).args(["--", "true"]));
    assert_code(&finished, 75);
    let status = crate::common::report::parse(&world.scene.run(&mut world.lockrun(&["status", "--json"])).stdout);
    let holder = &status["locks"][0]["holder"];
    assert_eq!((&holder["id"], &holder["pid"], &status["locks"][0]["ttl_ms"]), (&json!("controller-7f_0c"), &Value::Null, &json!(15_000)));
    wait_until("a watch", || world.server.requests().iter().any(|(verb, _)| verb == "watch"));
    let released = now_ns();
    elector.release();
    let span = since(released, world.time_in("began"));
    println!("from client-go's release to our command: {span:?}");
    assert_code(&waiter.finish(), 0);
}

#[test]
fn a_client_go_holder_that_stops_renewing_is_followed_after_its_own_duration() {
    let world = World::new();
    let mut elector = Elector::new(&world.server, "controller-1", 2);
    assert!(elector.try_acquire_or_renew());
    let waiter = world.start_waiter(&SHORT, "date +%s%N >began");
    let mut last = now_ns();
    for _ in 0..20 {
        last = now_ns();
        assert!(elector.try_acquire_or_renew(), "nobody took it from a holder that renews");
        std::thread::sleep(Duration::from_millis(200)); // its RetryPeriod
    }
    let span = since(last, world.time_in("began"));
    println!("from client-go's last renewal to our command, its duration 2 s: {span:?}");
    assert!(span > Duration::from_millis(2200), "{span:?}");
    assert_code(&waiter.finish(), 0);
    assert_eq!(world.spec("leaseTransitions"), 1);
}

#[test]
fn a_client_go_candidate_waits_for_us_while_we_renew_and_takes_over_from_what_is_free() {
    let world = World::new();
    let holder = world.start_holder(&SHORT, "while ! test -e go; do sleep 0.02; done");
    let mut elector = Elector::new(&world.server, "controller-1", 4);
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        assert!(!elector.try_acquire_or_renew(), "taken from a holder that renews");
        std::thread::sleep(Duration::from_millis(300)); // its RetryPeriod
    }
    world.go();
    assert_code(&holder.finish(), 0);
    assert!(elector.try_acquire_or_renew());
    assert_eq!((world.spec("holderIdentity"), world.spec("leaseTransitions")), (json!("controller-1"), json!(1)));
    // Our annotations are still there, and not believed.
    assert!(world.lease()["metadata"]["annotations"]["lockrun.dev/record"].is_string());
    let finished = world.scene.run(world.lockrun(&["-n"]).args(["--", "true"]));
    assert!(finished.code() == 75 && finished.stderr.contains("held by controller-1"), "{}", finished.stderr);
}

#[test]
fn a_client_that_takes_it_all_the_same_makes_us_end_the_command_at_once() {
    let world = World::new();
    let holder = world.start_holder(&["--ttl", "60s", "--heartbeat", "600ms"], "exec sleep 600");
    let theirs = || {
        let mut object = world.lease();
        for (field, value) in [("holderIdentity", json!("robber")), ("leaseDurationSeconds", json!(15)), ("renewTime", json!(now()))] {
            object["spec"][field] = value;
        }
        object
    };
    wait_until("it is taken", || world.server.put(&theirs()).is_ok());
    let finished = holder.finish();
    assert_code(&finished, 76);
    assert!(finished.stderr.contains("lost: taken by robber"), "{}", finished.stderr);
    assert_eq!(world.spec("holderIdentity"), "robber", "and left alone");
}

#[test]
fn a_token_grows_over_a_tenure_of_another_client() {
    let world = World::new();
    let token = || {
        let finished = world.scene.run(world.lockrun(&[]).args(["--", "sh", "-c", "echo $LOCKRUN_TOKEN"]));
        finished.stdout.trim().parse::<i64>().unwrap_or_else(|error| panic!("{error}: {}", finished.stderr))
    };
    let first = token();
    let mut elector = Elector::new(&world.server, "controller-1", 15);
    assert!(elector.try_acquire_or_renew());
    elector.release();
    assert!(first < token());
}
