//! What the gateways of a fleet say, summed up for its status and for the Engines': pure.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use sekimori_crds::stream::{Breaker, LATENCY_BOUNDS_MS, Position, Report};
use sekimori_crds::v1alpha1::engine::{BreakerState, EngineVersionMeasures};
use sekimori_crds::v1alpha1::text::StatusText;

use crate::status::Measured;

/// A gateway that lags behind, or is not heard of, for so long is told of, in milliseconds.
pub const STALE_MS: u64 = 60_000;
/// With fewer clients nobody can tell whether their addresses are real.
pub const CLIENTS_MIN: u32 = 20;
/// A report older than this is not summed up, in milliseconds.
const REPORT_AGE_MS_MAX: u64 = 60_000;

/// One gateway.
#[derive(Clone, Copy, Debug)]
pub struct Gateway<'a> {
    /// Its number.
    pub ordinal: u32,
    /// Since when it is there, in milliseconds.
    pub created_ms: u64,
    /// Whether it takes mail.
    pub serves: bool,
    /// Whether it follows, and since when that is so, in milliseconds.
    pub connected: bool,
    /// See `connected`.
    pub since_ms: u64,
    /// Where it stands.
    pub applied: Option<&'a Position>,
    /// Its last report, and when it came, in milliseconds.
    pub report: Option<(u64, &'a Report)>,
}

/// Since when a configuration is the newest one.
#[derive(Clone, Debug, PartialEq)]
pub struct Newest {
    /// Where it stands.
    pub position: Position,
    /// In milliseconds.
    pub since_ms: u64,
}

/// So many things that are wrong with certificates are written out, the others are counted.
const CERTIFICATES_MAX: usize = 4;

/// The sum.
pub fn measured(gateways: &[Gateway<'_>], newest: Option<&Newest>, tenants: usize, removals_waiting: usize, now_ms: u64) -> Measured {
    let fresh = |gateway: &Gateway<'_>| {
        let age = |at: u64| now_ms.saturating_sub(at);
        gateway.report.is_some_and(|(at, _)| age(at) <= REPORT_AGE_MS_MAX)
    };
    let reports: Vec<&Report> = gateways.iter().filter(|gateway| fresh(gateway)).filter_map(|gateway| Some(gateway.report?.1)).collect();
    let current = |gateway: &Gateway<'_>| newest.is_some_and(|newest| gateway.applied == Some(&newest.position));
    let serving: Vec<&Gateway<'_>> = gateways.iter().filter(|gateway| gateway.serves).collect();
    let everywhere = !serving.is_empty() && serving.iter().all(|gateway| current(gateway));
    let (clients, masked) = reports
        .iter()
        .fold((0_u32, 0_u32), |(all, masked), report| (all.saturating_add(report.clients), masked.saturating_add(report.clients_masked)));
    let late = |since_ms: u64| now_ms.saturating_sub(since_ms) >= STALE_MS;
    let stale = gateways.iter().filter(|gateway| {
        // A gateway that never followed is waited for from its start.
        let unheard = !gateway.connected && late(gateway.since_ms.max(gateway.created_ms));
        let behind = gateway.connected && late(gateway.since_ms) && !current(gateway) && newest.is_some_and(|newest| late(newest.since_ms));
        unheard || behind
    });
    Measured {
        runnable_backlog: (!reports.is_empty()).then(|| reports.iter().map(|report| report.runnable).sum()),
        oldest_message_seconds: reports.iter().map(|report| report.oldest_seconds).max(),
        config_revision: newest.filter(|_| everywhere).map(|newest| format!("{}.{}", newest.position.epoch, newest.position.number)),
        tenants: Some(u32::try_from(tenants).unwrap_or(u32::MAX)),
        removals_waiting,
        clients_masked: (clients >= CLIENTS_MIN).then_some(masked >= clients),
        stale: stale.map(|gateway| gateway.ordinal).collect(),
        refused: None,
        certificates: certificates(&reports, now_ms),
    }
}

/// What is wrong with certificates, each thing once however many gateways say it.
fn certificates(reports: &[&Report], now_ms: u64) -> Vec<String> {
    let mut said = BTreeSet::new();
    for certificate in reports.iter().flat_map(|report| &report.certificates) {
        let name = &certificate.name;
        if !certificate.trouble.is_empty() {
            said.insert(format!("Secret {name} {}", certificate.trouble));
        }
        let end_s = certificate.not_after_seconds;
        if end_s > 0 && end_s <= now_ms / 1000 {
            let end = i64::try_from(end_s).ok().and_then(|seconds| Timestamp::from_second(seconds).ok()).unwrap_or(Timestamp::MAX);
            said.insert(format!("Secret {name}: the certificate ended on {end}, and is still offered to clients: renew it"));
        }
    }
    let more = said.len().saturating_sub(CERTIFICATES_MAX);
    let mut texts: Vec<String> = said.into_iter().take(CERTIFICATES_MAX).collect();
    if more > 0 {
        texts.push(format!("and {more} more"));
    }
    texts
}

/// One engine over all gateways.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineMeasures {
    /// The worst of all.
    pub breaker: Option<BreakerState>,
    /// Gateways that say something of it.
    pub gateways: usize,
    /// Of those, gateways that take mail and have not had the known sample found by it yet: mail is judged without it there.
    pub unproved: usize,
    /// The oldest.
    pub signature_age_seconds: Option<u64>,
    /// By version, as the engines say it.
    pub versions: Vec<EngineVersionMeasures>,
}

/// Sums up what gateways say of one engine.
pub fn engine<'a>(name: &str, reports: impl IntoIterator<Item = &'a Report>) -> EngineMeasures {
    let mut sums: BTreeMap<&str, (u64, u64, u64, [u64; 12])> = BTreeMap::new();
    let mut measures = EngineMeasures::default();
    let rank = |state: BreakerState| match state {
        BreakerState::Closed => 0,
        BreakerState::HalfOpen => 1,
        BreakerState::Open => 2,
    };
    let all = reports.into_iter().flat_map(|report| report.engines.iter().map(|engine| (report.serving, engine)));
    for (serving, report) in all.filter(|(_, engine)| engine.name == name) {
        measures.gateways += 1;
        measures.unproved += usize::from(serving && report.breaker() == Breaker::Unknown);
        let (scans, detections, failures, latency) = sums.entry(&report.version).or_default();
        *scans += report.scans;
        *detections += report.detections;
        *failures += report.failures;
        latency.iter_mut().zip(&report.latency).for_each(|(sum, count)| *sum += count);
        let breaker = match report.breaker() {
            Breaker::Unknown => None,
            Breaker::Closed => Some(BreakerState::Closed),
            Breaker::Open => Some(BreakerState::Open),
            Breaker::HalfOpen => Some(BreakerState::HalfOpen),
        };
        measures.breaker = [measures.breaker, breaker].into_iter().flatten().max_by_key(|state| rank(*state));
        if report.signatures_age_seconds > 0 {
            measures.signature_age_seconds = measures.signature_age_seconds.max(Some(report.signatures_age_seconds));
        }
    }
    measures.versions = sums
        .into_iter()
        .take(16)
        .map(|(version, (scans, detections, failures, latency))| EngineVersionMeasures {
            version: StatusText(if version.is_empty() { "unknown".to_owned() } else { version.chars().take(64).collect() }),
            scans: Some(scans),
            detections: Some(detections),
            errors: Some(failures),
            p99_milliseconds: percentile(&latency, 99),
        })
        .collect();
    measures
}

/// The upper bound of the counter that holds this percentile. `None`: there was no scan, or it is beyond the last bound.
fn percentile(latency: &[u64; 12], percent: u64) -> Option<u64> {
    let all: u64 = latency.iter().sum();
    let wanted = (all * percent).div_ceil(100);
    let mut below = 0;
    let index = latency.iter().position(|count| {
        below += count;
        all > 0 && below >= wanted
    })?;
    LATENCY_BOUNDS_MS.get(index).copied()
}

#[cfg(test)]
mod tests {
    use sekimori_crds::snapshot::RollingHash;
    use sekimori_crds::stream::EngineReport;

    use super::*;

    fn position(number: u64) -> Position {
        Position::new(3, number, RollingHash::default())
    }

    #[test]
    fn gateways_are_summed_up() {
        let (here, before) = (position(9), position(8));
        let report =
            |runnable, oldest_seconds, clients, clients_masked| Report { runnable, oldest_seconds, clients, clients_masked, ..Report::default() };
        let (one, two, old) = (report(3, 10, 15, 15), report(4, 70, 10, 10), report(1000, 9999, 100, 0));
        let gateway =
            |ordinal, applied, report| Gateway { ordinal, created_ms: 0, serves: true, connected: true, since_ms: 900_000, applied, report };
        let newest = Newest { position: here.clone(), since_ms: 1_000_000 };
        let all = [
            gateway(0, Some(&here), Some((1_000_000, &one))),
            gateway(1, Some(&here), Some((1_000_000, &two))),
            gateway(2, Some(&here), Some((900_000, &old))),
        ];
        let sum = measured(&all, Some(&newest), 7, 0, 1_000_001);
        assert_eq!(
            (sum.runnable_backlog, sum.oldest_message_seconds, sum.config_revision.as_deref(), sum.tenants),
            (Some(7), Some(70), Some("3.9"), Some(7))
        );
        assert_eq!((sum.clients_masked, sum.stale.as_slice()), (Some(true), [].as_slice()));
        let behind = [gateway(0, Some(&here), None), gateway(1, Some(&before), None)];
        let early = measured(&behind, Some(&newest), 7, 0, 1_059_999);
        assert_eq!((early.config_revision, early.stale.as_slice(), early.clients_masked), (None, [].as_slice(), None));
        assert_eq!(measured(&behind, Some(&newest), 7, 0, 1_060_000).stale, [1]);
        let gone = [Gateway { connected: false, since_ms: 1_000_000, ..gateway(4, Some(&here), None) }];
        assert_eq!(measured(&gone, Some(&newest), 7, 0, 1_059_999).stale, [] as [u32; 0]);
        assert_eq!(measured(&gone, Some(&newest), 7, 0, 1_060_000).stale, [4]);
    }

    #[test]
    fn what_is_wrong_with_a_certificate_is_said_once() {
        use sekimori_crds::stream::CertificateReport;
        let certificate =
            |name: &str, not_after_seconds, trouble: &str| CertificateReport { name: name.into(), not_after_seconds, trouble: trouble.into() };
        let report = |certificates| Report { certificates, ..Report::default() };
        let (one, two) = (
            report(vec![certificate("fine", 2_000, ""), certificate("old", 1_000, "")]),
            report(vec![certificate("old", 1_000, ""), certificate("bad", 0, "cannot be used")]),
        );
        let said = certificates(&[&one, &two], 1_000_000);
        assert_eq!(said.len(), 2, "{said:?}");
        assert_eq!(said[0], "Secret bad cannot be used");
        assert!(said[1].starts_with("Secret old: the certificate ended on 1970-01-01T00:16:40Z"), "{said:?}");
        assert_eq!(certificates(&[&one], 999_999), [] as [String; 0], "it ends with that second");
    }

    #[test]
    fn engines_are_summed_up_by_version_and_the_worst_breaker_counts() {
        let engine_report = |version: &str, breaker: Breaker, scans, slow| EngineReport {
            name: "clamav".into(),
            version: version.into(),
            breaker: breaker.into(),
            scans,
            detections: 1,
            latency: vec![0, scans - slow, 0, 0, 0, 0, slow],
            signatures_age_seconds: scans,
            ..EngineReport::default()
        };
        let report = |engines| Report { engines, ..Report::default() };
        let reports = [
            report(vec![engine_report("1.4", Breaker::Closed, 100, 0)]),
            report(vec![engine_report("1.4", Breaker::Open, 900, 20), EngineReport::default()]),
        ];
        let sum = engine("clamav", &reports);
        assert_eq!((sum.breaker, sum.signature_age_seconds), (Some(BreakerState::Open), Some(900)));
        assert_eq!((sum.gateways, sum.unproved), (2, 0));
        let untested = |serving| Report { serving, ..report(vec![engine_report("", Breaker::Unknown, 1, 0)]) };
        let sum_with = engine("clamav", &[reports[0].clone(), untested(true), untested(false)]);
        assert_eq!((sum_with.breaker, sum_with.gateways, sum_with.unproved), (Some(BreakerState::Closed), 3, 1), "one that starts is waited for");
        let version = &sum.versions[0];
        assert_eq!((&*version.version.0, version.scans, version.detections, version.p99_milliseconds), ("1.4", Some(1000), Some(2), Some(500)));
        assert_eq!(engine("other", &reports), EngineMeasures::default());
        assert_eq!(percentile(&[0; 12], 99), None);
        let mut beyond = [0; 12];
        beyond[11] = 5;
        assert_eq!(percentile(&beyond, 99), None);
    }
}
