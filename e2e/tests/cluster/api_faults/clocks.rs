//! Clocks apart: the operator's is hours before or behind the API server's and the gateways', by a library that is loaded into its process. Its monotonic
//! clock is left alone, as on a machine whose date is wrong.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::process::run;
use serde_json::json;

use super::behind::Behind;
use super::on;
use crate::installation::{FLEET, SYSTEM, condition, rolled_out};
use crate::support::{Outcome, Stage, eventually};

/// Debian's package libfaketime.
const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
/// The object that carries it into the pods, and the directory there.
const CLOCK: &str = "clock";
/// How far apart clocks are, as the library is told, and in seconds.
const SHIFTS: [(&str, i64); 2] = [("+2h", 7200), ("-2h", -7200)];

pub(super) fn clocks_apart(stage: &Stage) -> anyhow::Result<Outcome> {
    if !Path::new(LIBRARY).is_file() {
        return Ok(Outcome::Skipped(format!("{LIBRARY} is missing: apt-get install libfaketime")));
    }
    on(stage, "clocks", |behind| {
        let shifted = Shifted::prepare(behind)?;
        let fleet = behind.installation.fleet(stage, "clocks-moving", 2, "")?;
        for (shift, seconds) in SHIFTS {
            let lease = behind.lease()?;
            shifted.set(shift)?;
            behind.is_well(90)?;
            let now = behind.lease()?;
            ensure!(now.epoch > lease.epoch && now.holder != lease.holder, "another operator leads: {lease:?}, then {now:?}");
            let apart = shifted.apart(&now.holder)?;
            ensure!((apart - seconds).abs() < 60, "the leader's clock is {apart} s apart, not {seconds}");
            let name = format!("clock{}", seconds.unsigned_abs() + u64::from(seconds < 0));
            let programmed = crate::support::seconds(|| behind.steady.serve(&name, &format!("{name}.example"), ""))?;
            behind.each_gateway_takes(&format!("user@{name}.example"))?;
            // Pods come and go by times that two clocks wrote: of their creation, of their drain.
            let scaled = crate::support::seconds(|| [1, 2].into_iter().try_for_each(|replicas| scales(&fleet, replicas)))?;
            behind.is_well(20)?;
            behind.is_untouched()?;
            println!(
                "  the operator's clock {apart} s apart: a tenant is Programmed after {programmed:.1} s, a fleet of two scaled to one and back in {scaled:.1} s, epoch {} -> {}",
                lease.epoch, now.epoch
            );
        }
        drop(shifted);
        behind.is_well(90)?;
        behind.steady.serve("clock-right", "clock-right.example", "")?;
        behind.each_gateway_takes("user@clock-right.example")
    })
}

fn scales(fleet: &crate::installation::Fleet<'_>, replicas: usize) -> anyhow::Result<()> {
    let patch = json!({"spec": {"replicas": replicas}}).to_string();
    fleet.namespace.kubectl(&["patch", "gatewayfleet", FLEET, "--type=merge", "-p", &patch])?;
    eventually(&format!("a fleet of {replicas}"), 60, || {
        let ready = condition(&fleet.namespace, &format!("gatewayfleet/{FLEET}"), "Ready")?;
        let (pods, endpoints) = (fleet.uids()?, fleet.endpoints()?);
        ensure!(ready.status == "True" && pods.len() == replicas && endpoints.len() == replicas, "{ready:?}, {pods:?}, {endpoints:?}");
        Ok(())
    })
    .with_context(|| fleet.explain())
}

/// The operator with another clock; dropped, it has the right one again.
struct Shifted<'a>(&'a Behind<'a>);

impl<'a> Shifted<'a> {
    fn prepare(behind: &'a Behind<'a>) -> anyhow::Result<Self> {
        let shifted = Self(behind);
        behind.stage.kubectl(&["--namespace", SYSTEM, "create", "configmap", CLOCK, &format!("--from-file=libfaketime.so.1={LIBRARY}")])?;
        Ok(shifted)
    }

    fn set(&self, shift: &str) -> anyhow::Result<()> {
        let variables = variables(shift).map(|(name, value)| json!({"name": name, "value": value}));
        self.patch(
            &json!({"name": CLOCK, "configMap": {"name": CLOCK}}),
            &json!({"name": CLOCK, "mountPath": "/clock", "readOnly": true}),
            &variables,
        )
    }

    fn patch(&self, volume: &serde_json::Value, mount: &serde_json::Value, variables: &[serde_json::Value]) -> anyhow::Result<()> {
        let container = json!({"name": "operator", "env": variables, "volumeMounts": [mount]});
        let patch = json!({"spec": {"template": {"spec": {"volumes": [volume], "containers": [container]}}}}).to_string();
        self.0.stage.kubectl(&["--namespace", SYSTEM, "patch", "deployment", "sekimori-operator", "--type=strategic", "-p", &patch])?;
        rolled_out(&self.0.stage.cluster)
    }

    /// By how many seconds the process's clock is ahead of its node's: of a line that it wrote, and of when the kubelet got it.
    fn apart(&self, pod: &str) -> anyhow::Result<i64> {
        let log = self.0.stage.kubectl(&["--namespace", SYSTEM, "logs", pod, "--timestamps", "--tail=1"])?;
        let (got, line) = log.trim().split_once(' ').with_context(|| format!("a line of the log: {log:?}"))?;
        let line: serde_json::Value = serde_json::from_str(line)?;
        Ok(unix_seconds(line["timestamp"].as_str().context("a timestamp")?)? - unix_seconds(got)?)
    }
}

impl Drop for Shifted<'_> {
    fn drop(&mut self) {
        let delete = |key: &str, value: &str| json!({key: value, "$patch": "delete"});
        let variables = variables("").map(|(name, _)| delete("name", name));
        self.patch(&delete("name", CLOCK), &delete("mountPath", "/clock"), &variables).ok();
        self.0.stage.kubectl(&["--namespace", SYSTEM, "delete", "configmap", CLOCK, "--ignore-not-found"]).ok();
    }
}

fn variables(shift: &str) -> [(&'static str, &str); 5] {
    [
        ("LD_PRELOAD", "/clock/libfaketime.so.1"),
        ("FAKETIME", shift),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ("DONT_FAKE_MONOTONIC", "1"),
        ("FAKETIME_DISABLE_SHM", "1"),
    ]
}

fn unix_seconds(timestamp: &str) -> anyhow::Result<i64> {
    let mut date = std::process::Command::new("date");
    run(date.args(["--utc", "+%s", "--date", timestamp]), None, Duration::from_secs(5))?.checked()?.trim().parse().map_err(Into::into)
}
