//! Storage: a StorageClass without a provisioner, and local volumes made beforehand, a directory each. Nothing fsyncs to a disk of its own here: these
//! volumes are for behaviour, not for figures.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use super::state::State;

/// The StorageClass, which is the default one.
pub const STORAGE_CLASS: &str = "sekimori-local";
/// Volumes of each node.
pub(super) const VOLUMES_PER_NODE: usize = 12;

/// The directory of a volume. Anybody may write there, as on a node where an administrator made room for pods without root.
pub(super) fn directory(state: &State, node: usize, volume: usize) -> anyhow::Result<PathBuf> {
    let path = state.directory.join(format!("volumes/node{node}/{volume}"));
    fs::create_dir_all(&path)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777))?;
    Ok(path)
}

/// Class and volumes as YAML.
pub(super) fn manifests(state: &State) -> anyhow::Result<String> {
    let mut text = format!(
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {STORAGE_CLASS}, annotations: {{storageclass.kubernetes.io/is-default-class: \"true\"}}}}\n\
         provisioner: kubernetes.io/no-provisioner\nvolumeBindingMode: WaitForFirstConsumer\nreclaimPolicy: Retain\n"
    );
    for node in 1..=state.nodes {
        for volume in 1..=VOLUMES_PER_NODE {
            text.push_str(&manifest(state, node, volume)?);
        }
    }
    Ok(text)
}

/// One volume as a YAML document.
pub(super) fn manifest(state: &State, node: usize, volume: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(
        text,
        "---\napiVersion: v1\nkind: PersistentVolume\nmetadata: {{name: node{node}-{volume}, labels: {{sekimori.dev/local-volume: \"true\"}}}}\nspec:\n  \
         capacity: {{storage: 100Gi}}\n  accessModes: [ReadWriteOnce]\n  persistentVolumeReclaimPolicy: Retain\n  storageClassName: {STORAGE_CLASS}\n  \
         local: {{path: {}}}\n  nodeAffinity:\n    required:\n      nodeSelectorTerms:\n      \
         - matchExpressions: [{{key: kubernetes.io/hostname, operator: In, values: [node{node}]}}]",
        directory(state, node, volume)?.display()
    )?;
    Ok(text)
}

/// "node2-7" is node 2, volume 7.
pub(super) fn numbers(name: &str) -> Option<(usize, usize)> {
    let (node, volume) = name.strip_prefix("node")?.split_once('-')?;
    Some((node.parse().ok()?, volume.parse().ok()?))
}
