//! Configuration from the world: manifests in a directory, the last good snapshot on disk, and putting a new one in force.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sekimori_crds::compile::{self, Compiled, Input, Options, Problem};
use sekimori_crds::snapshot::{Part, PartKey, Snapshot, TenantPart};
use sekimori_crds::vocabulary::TenantState;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A manifest larger than this is refused.
const FILE_BYTES_MAX: u64 = 32 << 20;
/// More files than this in the directory are refused.
const FILES_MAX: usize = 10_000;

/// Why manifests could not even be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The directory or a file.
    #[error("{path}: {cause}")]
    Io {
        /// Path.
        path: PathBuf,
        /// Cause.
        cause: std::io::Error,
    },
    /// Nothing there.
    #[error("{dir}: no *.yaml file in it; write the manifests there (example: manifests/quickstart)")]
    Empty {
        /// Directory.
        dir: PathBuf,
    },
    /// Too many or too large.
    #[error("{path}: larger than the limit of {limit}")]
    Limit {
        /// Path.
        path: PathBuf,
        /// Limit.
        limit: String,
    },
}

/// Manifests as they were read.
pub struct Manifests {
    /// What `compile` made of them.
    pub compiled: Compiled,
    /// Problems of files that are no YAML at all: then nothing is removed, as nobody knows what stood in them.
    pub unreadable: Vec<Problem>,
    /// Digest of the files, to notice a change.
    pub digest: [u8; 32],
}

impl Manifests {
    /// Reads and compiles a directory. Blocking.
    pub fn read(dir: &Path, options: &Options) -> Result<Self, ReadError> {
        let files = read_files(dir)?;
        let mut documents = vec![];
        let mut unreadable = vec![];
        for (name, text) in &files {
            match compile::read_documents(name, text) {
                Ok(read) => documents.extend(read),
                Err(problem) => unreadable.push(problem),
            }
        }
        let digest = digest(&files);
        Ok(Self { compiled: compile::compile(&Input { documents }, options), unreadable, digest })
    }

    /// All problems, those of unreadable files first.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.unreadable.iter().chain(&self.compiled.problems)
    }
}

/// Digest of a directory's manifests; an error counts as a state of its own, so that its end is noticed too.
pub fn digest_of(dir: &Path) -> [u8; 32] {
    read_files(dir).map_or([0; 32], |files| digest(&files))
}

fn digest(files: &[(String, String)]) -> [u8; 32] {
    let mut hasher = Sha256::new();
    for (name, text) in files {
        for bytes in [name.as_bytes(), text.as_bytes()] {
            hasher.update((bytes.len() as u64).to_be_bytes());
            hasher.update(bytes);
        }
    }
    hasher.finalize().into()
}

/// Every `*.yaml` and `*.yml` of the directory itself, sorted by name.
fn read_files(dir: &Path) -> Result<Vec<(String, String)>, ReadError> {
    let io_error = |path: &Path| {
        let path = path.to_owned();
        move |cause| ReadError::Io { path, cause }
    };
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).map_err(io_error(dir))? {
        let path = entry.map_err(io_error(dir))?.path();
        if !path.extension().is_some_and(|e| e == "yaml" || e == "yml") || path.is_dir() {
            continue;
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let mut text = String::new();
        let file = std::fs::File::open(&path).map_err(io_error(&path))?;
        file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(io_error(&path))?;
        if text.len() as u64 > FILE_BYTES_MAX {
            return Err(ReadError::Limit { path, limit: format!("{FILE_BYTES_MAX} bytes a file") });
        }
        files.insert(name, text);
        if files.len() > FILES_MAX {
            return Err(ReadError::Limit { path: dir.to_owned(), limit: format!("{FILES_MAX} files") });
        }
    }
    if files.is_empty() {
        return Err(ReadError::Empty { dir: dir.to_owned() });
    }
    Ok(files.into_iter().collect())
}

/// The last good configuration, as kept on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastGood {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Tenants that are gone from it, but had mail in the queue.
    pub removed: Vec<TenantPart>,
}

impl LastGood {
    /// Reads it from a state directory; nothing there, or something that cannot be used, is no last good form.
    pub fn read(state: &Path) -> Option<Self> {
        let path = state.join("snapshot");
        let text = std::fs::read(&path).ok()?;
        match serde_json::from_slice(&text) {
            Ok(last) => Some(last),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the last good snapshot cannot be read and is not used");
                None
            }
        }
    }

    /// Writes it: never half.
    pub fn write(&self, state: &Path) -> std::io::Result<()> {
        let (path, new) = (state.join("snapshot"), state.join("snapshot.new"));
        let file = {
            use std::os::unix::fs::OpenOptionsExt as _;
            // It holds TLS keys.
            std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?
        };
        let mut writer = std::io::BufWriter::new(&file);
        serde_json::to_writer(&mut writer, self)?;
        // Not left to its drop, which would not tell of a full disk.
        writer.flush()?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        std::fs::File::open(state)?.sync_all()
    }

    /// What follows from new manifests: rejected objects keep their last good form, and a tenant that is gone but has mail (or may have) is remembered.
    pub fn merge(&self, new: &Manifests, now_s: u64, mut has_mail: impl FnMut(&str) -> bool) -> Self {
        let mut compiled = new.compiled.clone();
        if !new.unreadable.is_empty() {
            // Nobody knows what stood in a file that is no YAML: nothing counts as gone.
            compiled.rejected.extend(self.snapshot.parts.keys().filter(|key| !compiled.snapshot.parts.contains_key(key)).cloned());
        }
        let mut snapshot = compiled.over(&self.snapshot);
        self.remember_suspensions(&mut snapshot, now_s);
        let mut removed = vec![];
        let gone = self.snapshot.parts.values().filter_map(|part| match part {
            Part::Tenant(tenant) => Some(&**tenant),
            Part::Fleet(_) => None,
        });
        for tenant in gone.chain(&self.removed) {
            let key = PartKey::Tenant { namespace: tenant.namespace.clone(), name: tenant.name.clone() };
            let known =
                snapshot.parts.contains_key(&key) || removed.iter().any(|r: &TenantPart| r.namespace == tenant.namespace && r.name == tenant.name);
            if !known && has_mail(&format!("{}/{}", tenant.namespace, tenant.name)) {
                removed.push(tenant.clone());
            }
        }
        Self { snapshot, removed }
    }
}

impl LastGood {
    /// A manifest does not say since when a tenant is suspended, but after seven days its mail is refused for good: so it counts from when it was first seen.
    fn remember_suspensions(&self, snapshot: &mut Snapshot, now_s: u64) {
        for (key, part) in &mut snapshot.parts {
            if let Part::Tenant(tenant) = part
                && tenant.state == TenantState::Suspended
                && tenant.suspended_since.is_none()
            {
                let before = match self.snapshot.parts.get(key) {
                    Some(Part::Tenant(before)) if before.state == TenantState::Suspended => before.suspended_since,
                    _ => None,
                };
                tenant.suspended_since = Some(before.unwrap_or(now_s));
            }
        }
    }
}

/// Logs problems, and counts what is wrong.
pub fn report(problems: &[&Problem]) {
    for problem in problems {
        match problem.severity {
            compile::Severity::Error => tracing::error!("{problem}"),
            compile::Severity::Warning => tracing::warn!("{problem}"),
        }
    }
}

/// Shared handle on where the configuration comes from.
#[derive(Clone)]
pub struct Source {
    /// Directory.
    pub dir: PathBuf,
    /// How to compile it.
    pub options: Arc<Options>,
}

impl Source {
    /// From the command line.
    pub fn new(manifests: &Path, local: &crate::cli::Local) -> Self {
        let options = Options {
            engine_endpoints: local.engines.iter().cloned().collect(),
            resolvers: local.resolvers.iter().map(ToString::to_string).collect(),
            standalone: true,
            default_namespace: "default".into(),
        };
        Self { dir: manifests.to_owned(), options: Arc::new(options) }
    }
}

#[cfg(test)]
mod tests {
    use sekimori_crds::vocabulary::TenantState;

    use super::*;

    fn manifests(dir: &Path, state: &str) -> Manifests {
        let text = format!(
            "apiVersion: sekimori.dev/v1alpha1
kind: GatewayFleet
metadata: {{name: local}}
spec: {{hostname: mx.localhost, listeners: [{{name: smtp, port: 2525}}], tenants: {{ownership: Trust}}}}
---
apiVersion: sekimori.dev/v1alpha1
kind: TenantDomain
metadata: {{name: t}}
spec: {{fleetRef: {{name: local}}, domains: [example.com], state: {state}, routes: [{{name: r, host: mail.example.com}}]}}
"
        );
        std::fs::write(dir.join("gateway.yaml"), text).expect("written");
        Manifests::read(dir, &Options::default()).expect("readable")
    }

    fn suspended_since(last: &LastGood) -> Option<u64> {
        last.snapshot.tenants().next().and_then(|(_, tenant)| tenant.suspended_since)
    }

    #[test]
    fn a_suspension_counts_from_when_it_was_first_seen() {
        let dir = tempfile::tempdir().expect("a directory");
        let none = |_: &str| false;
        let active = LastGood::default().merge(&manifests(dir.path(), "Active"), 50, none);
        assert_eq!(suspended_since(&active), None);
        let first = active.merge(&manifests(dir.path(), "Suspended"), 100, none);
        assert_eq!(suspended_since(&first), Some(100));
        first.write(dir.path()).expect("written");
        let kept = LastGood::read(dir.path()).expect("readable");
        assert_eq!(suspended_since(&kept.merge(&manifests(dir.path(), "Suspended"), 900, none)), Some(100), "over a restart, too");
        let back = kept.merge(&manifests(dir.path(), "Active"), 1000, none);
        assert_eq!(suspended_since(&back.merge(&manifests(dir.path(), "Suspended"), 1100, none)), Some(1100), "a new suspension is a new one");
        assert!(kept.snapshot.tenants().all(|(_, tenant)| tenant.state == TenantState::Suspended));
    }
}
