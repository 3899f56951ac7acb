//! What engines said, counted for reports: totals by engine, and single scans since the last report. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use sekimori_crds::stream::{LATENCY_BOUNDS_MS, SAMPLES_MAX};

use crate::queue_id::QueueId;
use crate::verdict::Finding;

/// Engines that are counted at most; a fleet has 32, and may change them while this process lives.
const ENGINES_MAX: usize = 128;

/// How a scan ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Nothing found.
    Clean,
    /// Infected, or spam by the engine's own threshold.
    Detected,
    /// It could not be scanned.
    Unscannable,
    /// No answer.
    Failed,
}

impl Ended {
    /// Of a finding.
    pub const fn of(finding: &Finding) -> Self {
        match finding {
            Finding::Clean => Self::Clean,
            Finding::Spam(score) if score.certain || score.milli >= score.required_milli => Self::Detected,
            Finding::Spam(_) => Self::Clean,
            Finding::Infected(_) => Self::Detected,
            Finding::Unscannable(_) => Self::Unscannable,
            Finding::Failed(_) => Self::Failed,
        }
    }
}

/// Totals of one engine since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Total {
    /// All scans.
    pub scans: u64,
    /// Detections.
    pub detections: u64,
    /// Unscannable ones.
    pub unscannable: u64,
    /// Failed ones.
    pub failures: u64,
    /// Their time together.
    pub milliseconds: u64,
    /// By [`LATENCY_BOUNDS_MS`], and longer.
    pub latency: [u64; LATENCY_BOUNDS_MS.len() + 1],
}

/// One scan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// The message.
    pub message: QueueId,
    /// The engine.
    pub engine: Arc<str>,
    /// How it ended.
    pub ended: Ended,
    /// How long it took.
    pub milliseconds: u32,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Tally {
    totals: BTreeMap<Arc<str>, Total>,
    samples: Vec<Scan>,
    dropped: u64,
}

impl Tally {
    /// A scan ended.
    pub fn add(&mut self, scan: Scan) {
        if self.totals.len() < ENGINES_MAX || self.totals.contains_key(&scan.engine) {
            let total = self.totals.entry(Arc::clone(&scan.engine)).or_default();
            total.scans += 1;
            match scan.ended {
                Ended::Clean => {}
                Ended::Detected => total.detections += 1,
                Ended::Unscannable => total.unscannable += 1,
                Ended::Failed => total.failures += 1,
            }
            let milliseconds = u64::from(scan.milliseconds);
            total.milliseconds += milliseconds;
            let bucket = LATENCY_BOUNDS_MS.partition_point(|bound_ms| *bound_ms < milliseconds);
            if let Some(count) = total.latency.get_mut(bucket) {
                *count += 1;
            }
        }
        if self.samples.len() < SAMPLES_MAX {
            self.samples.push(scan);
        } else {
            self.dropped += 1;
        }
    }

    /// Totals of an engine.
    pub fn total(&self, engine: &str) -> Total {
        self.totals.get(engine).cloned().unwrap_or_default()
    }

    /// Takes the scans since the last call, and how many more there were.
    pub fn take(&mut self) -> (Vec<Scan>, u64) {
        (std::mem::take(&mut self.samples), std::mem::take(&mut self.dropped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(ended: Ended, milliseconds: u32) -> Scan {
        Scan { message: QueueId(1), engine: "clamav".into(), ended, milliseconds }
    }

    #[test]
    fn scans_are_counted_and_sampled_within_bounds() {
        let mut tally = Tally::default();
        for (ended, milliseconds) in
            [(Ended::Clean, 0), (Ended::Detected, 5), (Ended::Failed, 6), (Ended::Unscannable, 10_000), (Ended::Clean, 10_001)]
        {
            tally.add(scan(ended, milliseconds));
        }
        let total = tally.total("clamav");
        assert_eq!((total.scans, total.detections, total.unscannable, total.failures, total.milliseconds), (5, 1, 1, 1, 20_012));
        assert_eq!(total.latency, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1]);
        assert_eq!(tally.take().0.len(), 5);
        (0..1000).for_each(|_| tally.add(scan(Ended::Clean, 1)));
        let (samples, dropped) = tally.take();
        assert_eq!((samples.len(), dropped), (SAMPLES_MAX, 1000 - SAMPLES_MAX as u64));
        assert_eq!(tally.take(), (vec![], 0));
        assert_eq!(tally.total("other"), Total::default());
        (0..1000).for_each(|n| tally.add(Scan { engine: format!("e{n}").into(), ..scan(Ended::Clean, 1) }));
        assert_eq!(tally.totals.len(), ENGINES_MAX);
    }
}
