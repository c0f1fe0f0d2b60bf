//! `/metrics`: what was told last, in text that is OpenMetrics 1.0 and Prometheus' 0.0.4 at once. Must never have a type that
//! only one of them knows (info, stateset).

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::Site;
use super::answer::word;
use crate::lease::{Moment, State};
use crate::told::{BOUNDS_MS, Told, Trouble};

/// The type to look for in `Accept`, and the whole of it.
pub const OPEN: (&str, &str) = ("application/openmetrics-text", "application/openmetrics-text; version=1.0.0; charset=utf-8");
pub const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";

const STATES: [State; 6] = [State::Waiting, State::Starting, State::Holding, State::Stopping, State::Releasing, State::Over];
const TROUBLES: [Trouble; 3] = [Trouble::Timeout, Trouble::Unknown, Trouble::Refused];

pub fn text(site: &Site, told: &Told, now: Moment) -> String {
    let mut registry = Registry::with_labels([("lease".into(), site.name.as_str().to_string().into())].into_iter());
    registry.register_collector(Box::new(Page { told: told.clone(), now, started_ms: site.started_ms }));
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Page {
    told: Told,
    now: Moment,
    started_ms: i64,
}

impl Collector for Page {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut page = Writer(encoder);
        self.lease(&mut page)?;
        self.counts(&mut page)?;
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.family("lockrun_build_info", "Always 1", MetricType::Gauge, |metric| {
            ConstGauge::new(1_i64).encode(metric.encode_family(&version)?)
        })?;
        page.gauge("process_start_time_seconds", "Start of the process, unix time", self.started_ms as f64 / 1000.0)
    }
}

impl Page {
    fn lease(&self, page: &mut Writer<'_>) -> fmt::Result {
        let view = &self.told.view;
        let held = view.lease.filter(|lease| self.now < lease.kill_at);
        page.gauge("lockrun_held", "1 while the lease is this process's own and its deadline has not passed", i64::from(held.is_some()))?;
        if let Some(lease) = held {
            page.gauge("lockrun_token", "Fencing token of the lease; absent while it is not held", lease.token.0)?;
            let left = lease.kill_at.since(self.now).as_secs_f64();
            page.gauge("lockrun_deadline_seconds", "Until SIGKILL unless the lease is renewed; absent while it is not held", left)?;
        }
        page.family("lockrun_state", "1 for the state that this process is in", MetricType::Gauge, |metric| {
            STATES.into_iter().try_for_each(|state| {
                ConstGauge::new(i64::from(state == view.state)).encode(metric.encode_family(&[("state", word(state))])?)
            })
        })?;
        let up = view.error.is_none() && view.answered;
        page.gauge("lockrun_store_up", "1 if the store did what it was asked last", i64::from(up))
    }

    fn counts(&self, page: &mut Writer<'_>) -> fmt::Result {
        let counts = &self.told.counts;
        let renewals = counts.renewals.values().sum();
        page.counter("lockrun_renewals", "Confirmed renewals", renewals)?;
        let help = "From the sending of a renewal to its confirmation";
        page.family("lockrun_renewal_duration_seconds", help, MetricType::Histogram, |metric| {
            let bounds = BOUNDS_MS.into_iter().map(Some).chain([None]);
            let count = |bound: Option<u64>| counts.renewals.get(&bound).copied().unwrap_or_default();
            let seconds = |bound: Option<u64>| bound.map_or(f64::INFINITY, |ms| ms as f64 / 1000.0);
            let buckets: Vec<(f64, u64)> = bounds.map(|bound| (seconds(bound), count(bound))).collect();
            metric.encode_histogram::<NoLabelSet>(counts.renewing.as_secs_f64(), renewals, &buckets, None)
        })?;
        page.family("lockrun_transitions", "Changes into a state", MetricType::Counter, |metric| {
            STATES.into_iter().try_for_each(|state| {
                let count = counts.transitions.get(&state).copied().unwrap_or_default();
                ConstCounter::new(count).encode(metric.encode_family(&[("to", word(state))])?)
            })
        })?;
        page.counter("lockrun_acquisitions", "Leases acquired", counts.acquired)?;
        page.counter("lockrun_losses", "Leases lost", counts.lost)?;
        let waiting = if self.told.view.state == State::Waiting { self.now.since(self.told.since) } else { Default::default() };
        let waited = (counts.waited + waiting).as_secs_f64();
        page.counter("lockrun_wait_seconds", "Time spent waiting, the present wait included", waited)?;
        page.family("lockrun_store_errors", "Requests to the store that did not succeed", MetricType::Counter, |metric| {
            TROUBLES.into_iter().try_for_each(|trouble| {
                let count = counts.errors.get(&trouble).copied().unwrap_or_default();
                ConstCounter::new(count).encode(metric.encode_family(&[("kind", kind(trouble))])?)
            })
        })?;
        page.counter("lockrun_store_conflicts", "Writes that came second: contention, no error of the store's", counts.conflicts)
    }
}

fn kind(trouble: Trouble) -> &'static str {
    match trouble {
        Trouble::Timeout => "timeout",
        Trouble::Unknown => "unknown",
        Trouble::Refused => "refused",
    }
}

struct Writer<'a>(DescriptorEncoder<'a>);

impl Writer<'_> {
    fn family(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        write: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
    ) -> fmt::Result {
        write(&mut self.0.encode_descriptor(name, help, None, kind)?)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, |metric| metric.encode_gauge(&value))
    }

    /// `name` without `_total`, which the encoder adds.
    fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        self.family(name, help, MetricType::Counter, |metric| metric.encode_counter::<NoLabelSet, _, f64>(&value, None))
    }
}
