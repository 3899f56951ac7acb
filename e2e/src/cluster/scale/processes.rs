//! What processes of pods and of the control plane cost: memory and CPU time by the kernel's own books. The nodes are network namespaces of this machine, so
//! their processes are this machine's.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde::Serialize;

use crate::process::cpu_seconds;

/// Ticks of the kernel's books in a second.
const TICKS: f64 = 100.0;

/// A process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Process {
    /// The pod or the component.
    pub(super) name: String,
    pub(super) pid: u32,
}

/// What it costs.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Cost {
    pub(super) name: String,
    /// Resident memory now, and at most since [`forget_peak`].
    pub(super) memory_mib: f64,
    pub(super) memory_max_mib: f64,
    /// CPU time since it began, or within a phase.
    pub(super) cpu_seconds: f64,
}

impl Process {
    /// The process of a program in a pod. The kubelet writes the pod's uid into the names of its cgroups.
    pub(super) fn of_pod(pod: &str, uid: &str, program: &str) -> anyhow::Result<Self> {
        let marks = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
        let ids = fs::read_dir("/proc")?.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let found = ids.into_iter().find(|id| {
            let cgroups = fs::read_to_string(format!("/proc/{id}/cgroup")).unwrap_or_default();
            let command = fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let first = command.split(|byte| *byte == 0).next().unwrap_or_default();
            let named = Path::new(String::from_utf8_lossy(first).as_ref()).file_name().is_some_and(|name| name == program);
            named && marks.iter().any(|mark| cgroups.contains(mark))
        });
        let pid = found.with_context(|| format!("no process {program} of pod {pod} ({uid}) on this machine"))?;
        Ok(Self { name: pod.to_owned(), pid })
    }

    /// What it costs now; CPU since it began.
    pub(super) fn cost(&self) -> anyhow::Result<Cost> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).with_context(|| format!("{} has ended", self.name))?;
        let mib = |field: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(field));
            let number = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            number.map(|number| number / 1024.0).with_context(|| format!("{field} of {}", self.name))
        };
        Ok(Cost { name: self.name.clone(), memory_mib: mib("VmRSS:")?, memory_max_mib: mib("VmHWM:")?, cpu_seconds: cpu_seconds(self.pid)? })
    }

    /// The maximum of its memory counts from now on.
    pub(super) fn forget_peak(&self) -> anyhow::Result<()> {
        fs::write(format!("/proc/{}/clear_refs", self.pid), "5").with_context(|| format!("/proc/{}/clear_refs", self.pid))
    }

    /// How long it has run, seconds.
    pub(super) fn age_seconds(&self) -> anyhow::Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        let began = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)?.parse::<f64>().ok());
        let up = fs::read_to_string("/proc/uptime")?;
        let up: f64 = up.split(' ').next().context("/proc/uptime")?.parse()?;
        Ok(up - began.context("field 22 of stat")? / TICKS)
    }
}

/// Costs of a phase, by process.
pub(super) struct Phase {
    processes: Vec<(Process, Cost)>,
}

impl Phase {
    /// Begins to count.
    pub(super) fn begin(processes: &[Process]) -> anyhow::Result<Self> {
        let begin = |process: &Process| {
            process.forget_peak()?;
            Ok((process.clone(), process.cost()?))
        };
        Ok(Self { processes: processes.iter().map(begin).collect::<anyhow::Result<_>>()? })
    }

    /// What it cost so far. A process that ended meanwhile is an error: what it cost is not known.
    pub(super) fn costs(&self) -> anyhow::Result<Vec<Cost>> {
        let cost = |(process, before): &(Process, Cost)| {
            let mut cost = process.cost()?;
            cost.cpu_seconds -= before.cpu_seconds;
            ensure!(cost.cpu_seconds >= 0.0, "{}: its process id is somebody else's now", process.name);
            Ok(cost)
        };
        self.processes.iter().map(cost).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_an_age_and_a_peak_that_can_be_forgotten() {
        let process = Process { name: "this".into(), pid: std::process::id() };
        let age = process.age_seconds().expect("an age");
        assert!((0.0..3600.0).contains(&age), "{age}");
        let large = vec![1_u8; 200 << 20];
        assert!(process.cost().expect("a cost").memory_max_mib > 200.0);
        drop(large);
        let phase = Phase::begin(std::slice::from_ref(&process)).expect("begun");
        let costs = phase.costs().expect("costs");
        let cost = costs.first().expect("one");
        assert!(cost.memory_max_mib >= cost.memory_mib && cost.memory_max_mib < 200.0, "{cost:?}");
    }
}
