//! A harness that was killed leaves a whole cluster behind; the next one of that name clears it, and `down` leaves nothing.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, ensure};
use sekimori_e2e::cluster::Cluster;

use crate::support::{Outcome, Scenario, Stage, eventually, own_only};

pub(crate) const SCENARIOS: &[Scenario] =
    &[Scenario { name: "crash::a_killed_harness_is_cleared_and_down_leaves_nothing", run: a_killed_harness_is_cleared_and_down_leaves_nothing }];

fn harness(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sekimori-e2e"));
    command.arg("cluster").args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    command
}

/// Killed when dropped, if it still runs.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn a_killed_harness_is_cleared_and_down_leaves_nothing(stage: &Stage) -> anyhow::Result<Outcome> {
    if let Some(skipped) = own_only(stage) {
        return Ok(skipped);
    }
    let name = Cluster::free_name("crash")?;
    let mut first = Killed(harness(&["up", "--nodes=1", "--name", &name]).spawn()?);
    eventually("the first cluster", 90, || {
        ensure!(first.0.try_wait()?.is_none(), "it ended by itself");
        run_a_pod(&Cluster::attach(&name)?)
    })?;
    let second = harness(&["up", "--nodes=1", "--name", &name]).stderr(Stdio::piped()).output()?;
    ensure!(!second.status.success() && String::from_utf8_lossy(&second.stderr).contains("belongs to process"), "two of one name: {second:?}");
    drop(first);
    ensure!(!traces(&name).is_empty(), "a killed harness should leave its cluster; what is searched for is wrong");
    ensure!(harness(&["up", "--nodes=1", "--name", &name, "--detach"]).status()?.success(), "up over the remains failed");
    run_a_pod(&Cluster::attach(&name)?)?;
    ensure!(harness(&["down", "--name", &name]).status()?.success(), "down failed");
    let left = traces(&name);
    ensure!(left.is_empty(), "left behind: {left:?}");
    // Killed in the middle of its work, at several moments.
    for tenths in [2, 8, 20, 35] {
        let half = Killed(harness(&["up", "--nodes=1", "--name", &name]).stderr(Stdio::null()).spawn()?);
        std::thread::sleep(std::time::Duration::from_millis(tenths * 100));
        drop(half);
        ensure!(harness(&["down", "--name", &name]).status()?.success(), "down after {tenths} tenths of a second failed");
        let left = traces(&name);
        ensure!(left.is_empty(), "left behind after {tenths} tenths of a second: {left:?}");
    }
    Ok(Outcome::Passed)
}

/// A pod with a volume, so that there are mounts, cgroups and namespaces to leave.
fn run_a_pod(cluster: &Cluster) -> anyhow::Result<()> {
    let yaml = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: spool}\nspec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}\n---\n\
         apiVersion: v1\nkind: Pod\nmetadata: {name: left}\nspec:\n  containers: [{name: main, image: \"registry.local/pause:1\", volumeMounts: [{name: spool, mountPath: /spool}]}]\n  \
         volumes: [{name: spool, persistentVolumeClaim: {claimName: spool}}]\n";
    eventually("a pod", 30, || cluster.kubectl(&["apply", "-f", "-"], Some(yaml)).map(drop))?;
    cluster.kubectl(&["wait", "--for=condition=Ready", "pod/left", "--timeout=40s"], None).map(drop).context("a pod with a volume")
}

/// All that is on the machine and bears the cluster's name.
fn traces(name: &str) -> Vec<String> {
    let mut found = vec![];
    let (own, directory) = (format!("sekimori-{name}"), format!("/var/lib/sekimori-cluster/{name}"));
    let mut look = |place: &str, matches: &dyn Fn(&str) -> bool| {
        let entries = std::fs::read_dir(place).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path().display().to_string()).filter(|path| matches(path)));
    };
    let node = format!("{own}-node");
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        look(&hierarchy.path().display().to_string(), &|path| path.contains(&node));
    }
    look("/sys/fs/cgroup", &|path| path.contains(&node));
    look("/run/netns", &|path| path.ends_with(&own) || path.contains(&node));
    look("/var/lib/cni/results", &|path| path.contains(&node));
    look("/run/sekimori-cluster", &|path| path.ends_with(&format!("/{name}.json")));
    look("/var/log/containers", &|path| std::fs::read_link(path).is_ok_and(|target| target.starts_with(&directory)));
    look("/proc", &|path| std::fs::read(format!("{path}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(&directory)));
    if Path::new(&directory).exists() {
        found.push(directory.clone());
    }
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(&directory)).map(str::to_owned));
    found
}
