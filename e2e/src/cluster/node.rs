//! A node: containerd, kubelet and kube-proxy in a network namespace, cgroups and directories of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::process::{self, Namespace, kill_all, must, run, tail, wait_until};
use super::state::State;
use super::{CONTROL_ADDRESS, network, node_address};
use crate::images::archive::Archive;

/// The image of every sandbox.
pub(super) const PAUSE: &str = "registry.local/pause:1";

/// Starts a node, anew or after `kill`: containerd first, then its images, then the rest.
pub(super) fn start(state: &State, number: usize, images: &[PathBuf]) -> anyhow::Result<()> {
    let (node, directory) = (state.node(number), state.node_directory(number));
    fs::create_dir_all(directory.join("cni"))?;
    network::cable(state, number, true)?;
    let containerd = directory.join("containerd.toml");
    fs::write(&containerd, containerd_toml(&directory))?;
    fs::write(directory.join("cni/10-pods.conflist"), cni(state, number))?;
    let log = state.log(&format!("node{number}-containerd"));
    node.start(&log, &["containerd".into(), "-c".into(), containerd.display().to_string()])?;
    wait_until("containerd", Duration::from_secs(30), || must(ctr(state, number).arg("version")).map(drop)).with_context(|| tail(&log))?;
    for image in images {
        load(state, number, image)?;
    }
    cgroups(&node)?;
    let kubelet = directory.join("kubelet.yaml");
    fs::write(&kubelet, kubelet_yaml(state, number))?;
    let line = vec![
        state.binary("kube"),
        "kubelet".into(),
        format!("--config={}", kubelet.display()),
        format!("--kubeconfig={}", state.pki(&format!("node{number}.kubeconfig"))),
        format!("--hostname-override=node{number}"),
        format!("--node-ip={}", node_address(number)),
        format!("--root-dir={}", directory.join("kubelet").display()),
    ];
    node.start(&state.log(&format!("node{number}-kubelet")), &line)?;
    let proxy = directory.join("proxy.yaml");
    fs::write(&proxy, proxy_yaml(state, number))?;
    let line = vec![state.binary("kube"), "kube-proxy".into(), format!("--config={}", proxy.display())];
    node.start(&state.log(&format!("node{number}-proxy")), &line)?;
    Ok(())
}

/// A node is lost: everything on it dies at once and nobody is told.
pub(super) fn kill(state: &State, number: usize) -> anyhow::Result<()> {
    if state.control().exists() {
        // The cable may be gone with a run that died half way.
        network::cable(state, number, false).ok();
    }
    let node = state.node(number);
    kill_all(&node.0, || node.processes())?;
    kill_all(&format!("pods of {}", node.0), || pod_processes(&node))?;
    let tasks = state.node_directory(number).join("state/io.containerd.runtime.v2.task/k8s.io");
    for task in fs::read_dir(tasks).into_iter().flatten().flatten() {
        // Kept in /run by every containerd of the machine alike: the shim's socket and runc's state.
        if let Ok(socket) = fs::read_to_string(task.path().join("address")) {
            fs::remove_file(socket.trim().trim_start_matches("unix://")).ok();
        }
        fs::remove_dir_all(Path::new("/run/containerd/runc/k8s.io").join(task.file_name())).ok();
    }
    Ok(())
}

/// Imports an image archive, under its tag and under its digest.
pub(super) fn load(state: &State, number: usize, archive: &Path) -> anyhow::Result<()> {
    let described = Archive::describe(archive)?;
    let mut command = ctr(state, number);
    // Without a base name ctr would call the digest reference "import-<date>@sha256:...".
    command.args(["images", "import", "--digests", "--base-name", &described.repository]).arg(archive);
    run(&mut command, None, Duration::from_secs(180))?.checked().with_context(|| format!("node{number}: image {}", archive.display()))?;
    let names = must(ctr(state, number).args(["images", "ls", "-q"]))?;
    for name in [described.reference(), described.pinned()] {
        ensure!(names.lines().any(|line| line == name), "node{number}: {name} is not there after the import of {}", archive.display());
    }
    Ok(())
}

/// In the node's namespace though its socket is a file: so whoever clears the node finds an import of a killed harness too.
fn ctr(state: &State, number: usize) -> Command {
    let mut command = state.node(number).command("ctr");
    command.arg("--address").arg(state.node_directory(number).join("containerd.sock")).args(["--namespace", "k8s.io"]);
    command
}

/// cgroup hierarchies (v1) or the one (v2), as far as they are mounted.
pub(super) fn cgroup_roots() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    if root.join("cgroup.controllers").exists() {
        return vec![root.to_owned()];
    }
    // "unified" too: beside the v1 hierarchies runc makes a group in each one that is mounted.
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !path.is_symlink()).collect()
}

/// Two kubelets on one machine need a root each.
fn cgroups(node: &Namespace) -> anyhow::Result<()> {
    for root in cgroup_roots() {
        let own = root.join(&node.0);
        fs::create_dir_all(&own).with_context(|| own.display().to_string())?;
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if root.ends_with("cpuset") {
                // A new cpuset is empty, and no process may enter it.
                fs::write(own.join(file), fs::read(root.join(file))?).with_context(|| own.join(file).display().to_string())?;
            }
        }
    }
    Ok(())
}

/// What runs in the cgroups of a node's pods.
fn pod_processes(node: &Namespace) -> Vec<u32> {
    let mut all = vec![];
    for root in cgroup_roots() {
        let mut directories = vec![root.join(&node.0)];
        while let Some(directory) = directories.pop() {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            all.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()));
            directories.extend(fs::read_dir(&directory).into_iter().flatten().flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
    }
    all
}

fn containerd_toml(directory: &Path) -> String {
    let d = directory.display();
    format!(
        "version = 2\nroot = \"{d}/root\"\nstate = \"{d}/state\"\n[grpc]\naddress = \"{d}/containerd.sock\"\n[ttrpc]\naddress = \"{d}/containerd.ttrpc\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\nconf_dir = \"{d}/cni\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\nSystemdCgroup = false\n"
    )
}

fn cni(state: &State, number: usize) -> String {
    let (network, length) = network::pods(number);
    serde_json::json!({
        "cniVersion": "1.0.0",
        "name": state.node(number).0,
        "plugins": [
            {
                "type": "bridge", "bridge": "pods", "isGateway": true, "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": state.node_directory(number).join("ipam"),
                    "ranges": [[{"subnet": format!("{network}/{length}")}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            },
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}

fn kubelet_yaml(state: &State, number: usize) -> String {
    let directory = state.node_directory(number);
    serde_json::json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"webhook": {"enabled": true}, "anonymous": {"enabled": false}, "x509": {"clientCAFile": state.pki("ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", state.node(number).0),
        "failCgroupV1": false,
        "failSwapOn": false,
        "containerRuntimeEndpoint": format!("unix://{}/containerd.sock", directory.display()),
        "podLogsDir": directory.join("pod-logs"),
        "resolvConf": "",
        "clusterDNS": [CONTROL_ADDRESS],
        "clusterDomain": "cluster.local",
        "maxOpenFiles": 20000,
        "serializeImagePulls": false,
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "0%", "nodefs.available": "0%", "nodefs.inodesFree": "0%", "imagefs.available": "0%"},
        "syncFrequency": "10s",
        "enforceNodeAllocatable": [],
        "tlsCertFile": state.pki(&format!("node{number}-server.crt")),
        "tlsPrivateKeyFile": state.pki(&format!("node{number}-server.key")),
    })
    .to_string()
}

fn proxy_yaml(state: &State, number: usize) -> String {
    serde_json::json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": state.pki("kube-proxy.kubeconfig")},
        "mode": "iptables",
        "clusterCIDR": "10.88.0.0/16",
        "conntrack": {"maxPerCore": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
        "hostnameOverride": format!("node{number}"),
    })
    .to_string()
}

/// What a node left on the machine: cgroups, mounts, CNI results and the pods' namespaces, its own namespace.
pub(super) fn clear(state: &State, number: usize) -> anyhow::Result<()> {
    kill(state, number)?;
    let node = state.node(number);
    wait_until(&format!("cgroups of {}", node.0), Duration::from_secs(10), || {
        cgroup_roots().iter().map(|root| root.join(&node.0)).filter(|own| own.exists()).try_for_each(|own| remove_cgroup(&own))
    })?;
    unmount_below(&state.node_directory(number))?;
    clear_cni(&node);
    if node.exists() {
        must(&mut process::words(&format!("ip netns del {}", node.0)))?;
    }
    Ok(())
}

fn remove_cgroup(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten().filter(|entry| entry.path().is_dir()) {
        remove_cgroup(&entry.path())?;
    }
    fs::remove_dir(directory).with_context(|| directory.display().to_string())
}

/// Mount points at or below a directory, deepest first.
pub(super) fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let text = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut all: Vec<PathBuf> =
        text.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from).filter(|path| path.starts_with(directory)).collect();
    all.sort_unstable();
    all.reverse();
    all
}

fn unmount_below(directory: &Path) -> anyhow::Result<()> {
    for mount in mounts_below(directory) {
        must(Command::new("umount").arg("--lazy").arg(&mount))?;
    }
    Ok(())
}

/// Pods that died without a farewell left a result and a network namespace each.
fn clear_cni(node: &Namespace) {
    let results = Path::new("/var/lib/cni/results");
    let prefix = format!("{}-", node.0);
    for entry in fs::read_dir(results).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(container) = name.strip_prefix(&prefix) else { continue };
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        for namespace in pod_namespaces(&text) {
            must(&mut process::words(&format!("ip netns del {namespace}"))).ok();
        }
        fs::remove_file(entry.path()).ok();
        let container = container.rsplit_once('-').map_or(container, |(id, _)| id);
        fs::remove_file(results.join(format!("cni-loopback-{container}-lo"))).ok();
    }
}

/// Names like cni-5a1f0c7e-9f0e-4a55-8a55-0d6b0a2a4c11 in a CNI result.
fn pod_namespaces(result: &str) -> std::collections::BTreeSet<String> {
    result
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-'))
        .filter(|word| {
            word.len() == 40 && word.strip_prefix("cni-").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-'))
        })
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_namespaces_are_found_in_a_result() {
        let result = r#"{"netns":"/var/run/netns/cni-5a1f0c7e-9f0e-4a55-8a55-0d6b0a2a4c11","x":"cni-loopback","sandbox":"/var/run/netns/cni-5a1f0c7e-9f0e-4a55-8a55-0d6b0a2a4c11"}"#;
        assert_eq!(pod_namespaces(result).into_iter().collect::<Vec<_>>(), ["cni-5a1f0c7e-9f0e-4a55-8a55-0d6b0a2a4c11"]);
    }
}
