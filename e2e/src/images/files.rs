//! The files of an image, from this machine: programs with the shared libraries that they load, directories, text.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::cluster::process::run;

/// By absolute path in the image, so sorted.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<PathBuf, Entry>);

#[derive(Debug)]
enum Entry {
    Directory(u32),
    Link(PathBuf),
    Data { bytes: Vec<u8>, mode: u32 },
}

impl Files {
    /// A file with this content.
    pub fn data(&mut self, at: &str, bytes: &[u8], mode: u32) {
        self.0.insert(at.into(), Entry::Data { bytes: bytes.to_vec(), mode });
    }

    /// An empty directory, such as `/tmp` with 0o1777.
    pub fn directory(&mut self, at: &str, mode: u32) {
        self.0.insert(at.into(), Entry::Directory(mode));
    }

    /// A file of this machine under another path, with the shared libraries that it loads if it is a program.
    pub fn program_at(&mut self, from: &Path, at: &str) -> anyhow::Result<()> {
        let bytes = fs::read(from).with_context(|| from.display().to_string())?;
        self.libraries_of(from, &bytes)?;
        self.data(at, &bytes, 0o755);
        Ok(())
    }

    /// A file or a directory of this machine where it is, with all below it and all shared libraries.
    pub fn same(&mut self, path: &Path) -> anyhow::Result<()> {
        // Debian's /lib is a link to usr/lib: a file has one true path, and the links are made for every image.
        let parent = path.parent().unwrap_or_else(|| Path::new("/"));
        let parent = fs::canonicalize(parent).with_context(|| path.display().to_string())?;
        let at = path.file_name().map_or_else(|| parent.clone(), |name| parent.join(name));
        if self.0.contains_key(&at) {
            return Ok(());
        }
        let metadata = fs::symlink_metadata(&at).with_context(|| at.display().to_string())?;
        if metadata.is_symlink() {
            self.0.insert(at.clone(), Entry::Link(fs::read_link(&at)?));
            return self.same(&fs::canonicalize(&at).with_context(|| at.display().to_string())?);
        }
        if metadata.is_dir() {
            for entry in fs::read_dir(&at)? {
                self.same(&entry?.path())?;
            }
            return Ok(());
        }
        let bytes = fs::read(&at).with_context(|| at.display().to_string())?;
        self.libraries_of(&at, &bytes)?;
        // What only root may read here is of no use to the image's user.
        let mode = if metadata.permissions().mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        self.0.insert(at, Entry::Data { bytes, mode });
        Ok(())
    }

    fn libraries_of(&mut self, path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
        if !bytes.starts_with(b"\x7fELF") {
            return Ok(());
        }
        // A static program has none, and ldd says so with exit code 1.
        let listed = run(Command::new("ldd").arg(path), None, Duration::from_secs(30))?.stdout;
        for line in listed.lines() {
            if line.contains("not found") {
                bail!("{}: {}", path.display(), line.trim());
            }
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.same(Path::new(library))?;
            }
        }
        Ok(())
    }

    /// The layer: every file root's and readable by all, every directory named, no time.
    pub(super) fn layer(&self) -> anyhow::Result<Vec<u8>> {
        let mut all: BTreeMap<&Path, &Entry> = BTreeMap::new();
        let (plain, usr) = (
            Entry::Directory(0o755),
            ["bin", "lib", "lib64", "sbin"].map(|name| (PathBuf::from("/").join(name), Entry::Link(Path::new("usr").join(name)))),
        );
        let merged = self.0.keys().any(|path| path.starts_with("/usr"));
        if merged {
            all.extend(usr.iter().map(|(path, entry)| (path.as_path(), entry)));
        }
        for (path, entry) in &self.0 {
            for parent in path.ancestors().skip(1).filter(|parent| parent.parent().is_some()) {
                all.entry(parent).or_insert(&plain);
            }
            all.insert(path, entry);
        }
        let mut tar = tar::Builder::new(vec![]);
        for (path, entry) in all {
            let name = path.strip_prefix("/").unwrap_or(path);
            let mut header = tar::Header::new_gnu();
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            header.set_size(0);
            match entry {
                Entry::Directory(mode) => {
                    header.set_entry_type(tar::EntryType::Directory);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, name, std::io::empty())?;
                }
                Entry::Link(target) => {
                    header.set_entry_type(tar::EntryType::Symlink);
                    header.set_mode(0o777);
                    tar.append_link(&mut header, name, target)?;
                }
                Entry::Data { bytes, mode } => {
                    header.set_size(bytes.len() as u64);
                    header.set_mode(*mode);
                    tar.append_data(&mut header, name, bytes.as_slice())?;
                }
            }
        }
        tar.into_inner().map_err(Into::into)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_libraries_and_the_links_to_usr() {
        let mut files = Files::default();
        files.program_at(Path::new("/bin/true"), "/usr/bin/true").expect("packed");
        let layer = files.layer().expect("a layer");
        let mut archive = tar::Archive::new(layer.as_slice());
        let names: Vec<String> = archive
            .entries()
            .expect("entries")
            .map(|entry| {
                let entry = entry.expect("an entry");
                assert_eq!((entry.header().mtime().expect("a time"), entry.header().uid().expect("a user")), (0, 0));
                entry.path().expect("a path").display().to_string()
            })
            .collect();
        assert!(names.iter().any(|name| name.ends_with("libc.so.6")), "{names:?}");
        assert!(["usr/bin/true", "lib64", "usr"].iter().all(|name| names.iter().any(|n| n.trim_end_matches('/') == *name)), "{names:?}");
        assert!(names.is_sorted(), "{names:?}");
    }
}
