//! An image archive: an OCI layout (image-spec 1.1) that is a docker-archive too. One layer, uncompressed; no time, no user name, no order by chance.

use std::fs::File;
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::files::Files;

const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";
/// The user of every image: nobody's files, and the same in a Dockerfile of distroless.
pub const USER: u32 = 65532;

/// An image before it is packed.
#[derive(Debug)]
pub struct Image {
    /// Such as `registry.local/sekimori-mta`.
    pub repository: String,
    /// Such as `1`.
    pub tag: String,
    /// The program and its fixed arguments.
    pub entrypoint: Vec<String>,
    /// `NAME=value`.
    pub environment: Vec<String>,
    /// What is in it.
    pub files: Files,
}

/// An archive on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Archive {
    /// Where.
    pub file: PathBuf,
    /// Such as `registry.local/sekimori-mta`.
    pub repository: String,
    /// Such as `1`.
    pub tag: String,
    /// The manifest's digest, `sha256:...`.
    pub digest: String,
}

impl Archive {
    /// `repository:tag`.
    #[must_use]
    pub fn reference(&self) -> String {
        format!("{}:{}", self.repository, self.tag)
    }

    /// `repository@sha256:...`, which never means anything else.
    #[must_use]
    pub fn pinned(&self) -> String {
        format!("{}@{}", self.repository, self.digest)
    }

    /// Reads what an archive that `Image::write` made says about itself.
    pub fn describe(file: &Path) -> anyhow::Result<Self> {
        let wrong = || format!("{}: not an image archive of `sekimori-e2e images build`", file.display());
        let mut archive = tar::Archive::new(BufReader::new(File::open(file).with_context(|| file.display().to_string())?));
        for entry in archive.entries()? {
            let mut entry = entry?;
            if entry.path_bytes().as_ref() == b"index.json" {
                let mut text = String::new();
                entry.read_to_string(&mut text)?;
                let index: Value = serde_json::from_str(&text).with_context(wrong)?;
                let manifest = index.pointer("/manifests/0").with_context(wrong)?;
                let name = manifest.pointer("/annotations/io.containerd.image.name").and_then(Value::as_str).with_context(wrong)?;
                let (repository, tag) = name.rsplit_once(':').with_context(wrong)?;
                let digest = manifest.get("digest").and_then(Value::as_str).with_context(wrong)?;
                return Ok(Self { file: file.to_owned(), repository: repository.into(), tag: tag.into(), digest: digest.into() });
            }
        }
        Err(anyhow::anyhow!(wrong()))
    }
}

impl Image {
    /// An image with no files yet, from `repository:tag`.
    pub fn new(reference: &str, entrypoint: &[&str]) -> anyhow::Result<Self> {
        let (repository, tag) = reference.rsplit_once(':').with_context(|| format!("{reference}: repository:tag, please"))?;
        ensure!(!tag.contains('/'), "{reference}: repository:tag, please");
        Ok(Self {
            repository: repository.into(),
            tag: tag.into(),
            entrypoint: entrypoint.iter().map(|word| (*word).to_owned()).collect(),
            environment: vec!["PATH=/usr/sbin:/usr/bin:/sbin:/bin".into()],
            files: Files::default(),
        })
    }

    /// Packs it into `directory/<last part of the repository>.tar`.
    pub fn write(&self, directory: &Path) -> anyhow::Result<Archive> {
        let name = self.repository.rsplit('/').next().unwrap_or(&self.repository);
        let file = directory.join(format!("{name}.tar"));
        // Written beside, then renamed: whoever loads it at the same time sees the old one or the new one.
        let new = directory.join(format!(".{name}.tar.{}", std::process::id()));
        let digest = self.pack(&new).with_context(|| new.display().to_string())?;
        std::fs::rename(&new, &file)?;
        Ok(Archive { file, repository: self.repository.clone(), tag: self.tag.clone(), digest })
    }

    fn pack(&self, file: &Path) -> anyhow::Result<String> {
        let layer = Blob::new(self.files.layer()?);
        let config = Blob::json(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Entrypoint": self.entrypoint, "Env": self.environment, "User": format!("{USER}:{USER}"), "WorkingDir": "/"},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest]},
        }))?;
        let manifest = Blob::json(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": config.descriptor(CONFIG_TYPE),
            "layers": [layer.descriptor(LAYER_TYPE)],
        }))?;
        let reference = format!("{}:{}", self.repository, self.tag);
        let mut descriptor = manifest.descriptor(MANIFEST_TYPE);
        descriptor["annotations"] = json!({"io.containerd.image.name": reference, "org.opencontainers.image.ref.name": self.tag});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [descriptor]});
        let docker = json!([{"Config": config.path(), "RepoTags": [reference], "Layers": [layer.path()]}]);
        let mut tar = tar::Builder::new(File::create(file)?);
        // The index first: whoever only wants to know what an archive is need not read the layer.
        append(&mut tar, "oci-layout", serde_json::to_string(&json!({"imageLayoutVersion": "1.0.0"}))?.as_bytes())?;
        append(&mut tar, "index.json", &serde_json::to_vec(&index)?)?;
        append(&mut tar, "manifest.json", &serde_json::to_vec(&docker)?)?;
        for blob in [&manifest, &config, &layer] {
            append(&mut tar, &blob.path(), &blob.bytes)?;
        }
        tar.finish()?;
        Ok(manifest.digest)
    }
}

struct Blob {
    bytes: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        let hex: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        Self { bytes, digest: format!("sha256:{hex}") }
    }

    fn json(value: &Value) -> anyhow::Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }
}

fn append(tar: &mut tar::Builder<File>, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    header.set_mtime(0);
    tar.append_data(&mut header, path, bytes).map_err(Into::into)
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Image {
        let mut image = Image::new("registry.local/a/thing:3", &["/thing"]).expect("a reference");
        image.files.data("/thing", b"program", 0o755);
        image.files.data("/etc/thing.conf", b"x = 1\n", 0o644);
        image
    }

    #[test]
    fn the_same_files_make_the_same_archive() {
        let directory = tempfile::tempdir().expect("a directory");
        let first = image().write(directory.path()).expect("written");
        let bytes = std::fs::read(&first.file).expect("read");
        let second = image().write(directory.path()).expect("written");
        assert_eq!((&first, &bytes), (&second, &std::fs::read(&second.file).expect("read")));
        assert_eq!(Archive::describe(&first.file).expect("described"), first);
        assert_eq!(first.reference(), "registry.local/a/thing:3");
        let mut other = image();
        other.files.data("/etc/thing.conf", b"x = 2\n", 0o644);
        assert_ne!(other.write(directory.path()).expect("written").digest, first.digest);
    }

    #[test]
    fn something_else_is_no_archive() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.tar");
        std::fs::write(&path, [0; 1024]).expect("written");
        assert!(Archive::describe(&path).expect_err("refused").to_string().contains("not an image archive"));
    }
}
