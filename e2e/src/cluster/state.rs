//! What is known of a cluster outside the process that made it: its name, its lock, its state file. A name is the cluster's identity: network namespaces,
//! cgroups and CNI networks carry it.

use std::fs::{self, File, TryLockError};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};

use super::process::Namespace;

/// Where locks and states stand. Gone after a reboot, as the namespaces are.
const RUN: &str = "/run/sekimori-cluster";
/// More nodes than this have no address in the plan of `network`.
pub const NODES_MAX: usize = 9;

/// What another process must know to use a cluster or to clear it away.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(super) struct State {
    pub(super) name: String,
    pub(super) nodes: usize,
    /// Everything the cluster writes, apart from what this file's module names.
    pub(super) directory: PathBuf,
    /// Where kube, etcd, coredns and helm are.
    pub(super) binaries: PathBuf,
    /// Where names outside the cluster are asked; none: SERVFAIL at once.
    pub(super) upstream_dns: Option<SocketAddr>,
    /// It outlives the process that made it.
    pub(super) detached: bool,
    /// `up` came to its end.
    pub(super) complete: bool,
}

impl State {
    pub(super) fn read(name: &str) -> Option<Self> {
        serde_json::from_slice(&fs::read(state_file(name)).ok()?).ok()
    }

    pub(super) fn write(&self) -> anyhow::Result<()> {
        let file = state_file(&self.name);
        let new = file.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&new, &file).with_context(|| file.display().to_string())
    }

    pub(super) fn forget(&self) {
        fs::remove_file(state_file(&self.name)).ok();
    }

    /// The namespace of the control plane, where clients run too.
    pub(super) fn control(&self) -> Namespace {
        Namespace(format!("sekimori-{}", self.name))
    }

    pub(super) fn node(&self, number: usize) -> Namespace {
        Namespace(format!("sekimori-{}-node{number}", self.name))
    }

    pub(super) fn node_directory(&self, number: usize) -> PathBuf {
        self.directory.join(format!("node{number}"))
    }

    pub(super) fn pki(&self, file: &str) -> String {
        self.directory.join("pki").join(file).display().to_string()
    }

    pub(super) fn log(&self, component: &str) -> PathBuf {
        self.directory.join("log").join(format!("{component}.log"))
    }

    pub(super) fn binary(&self, name: &str) -> String {
        self.binaries.join(name).display().to_string()
    }
}

/// Names of the clusters that left a state file.
pub(super) fn names() -> Vec<String> {
    let entries = fs::read_dir(RUN).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".json")?.to_owned())).collect();
    names.sort_unstable();
    names
}

/// A cluster's name goes into names of namespaces, so "a" and "a-node1" must not both be possible.
pub(super) fn check_name(name: &str) -> anyhow::Result<()> {
    let fits = (1..=20).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    ensure!(fits, "cluster name {name:?}: 1 to 20 of a-z and 0-9, please");
    Ok(())
}

/// Where a cluster of this name writes if nothing else is said.
pub(super) fn default_directory(name: &str) -> PathBuf {
    Path::new("/var/lib/sekimori-cluster").join(name)
}

/// Held while a cluster of this name is made, used by its owner, or taken down; freed by the kernel when the process ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "held for its lock")] File);

impl Lock {
    pub(super) fn take(name: &str) -> anyhow::Result<Self> {
        fs::create_dir_all(RUN).with_context(|| format!("{RUN}: a cluster needs root"))?;
        let path = Path::new(RUN).join(format!("{name}.lock"));
        let mut file = File::options().create(true).truncate(false).read(true).write(true).open(&path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = fs::read_to_string(&path).unwrap_or_default();
                bail!("cluster {name} belongs to process {} at the moment: end that first, or take another name", owner.trim())
            }
            Err(TryLockError::Error(error)) => return Err(error).context(path.display().to_string()),
        }
        file.set_len(0)?;
        std::io::Write::write_all(&mut file, std::process::id().to_string().as_bytes())?;
        Ok(Self(file))
    }
}

fn state_file(name: &str) -> PathBuf {
    Path::new(RUN).join(format!("{name}.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_could_meet_are_refused() {
        for (name, fits) in
            [("dev", true), ("e2e1", true), ("", false), ("a-node1", false), ("A", false), ("a/b", false), ("abcdefghijklmnopqrstu", false)]
        {
            assert_eq!(check_name(name).is_ok(), fits, "{name}");
        }
    }
}
