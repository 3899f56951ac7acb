//! The programs of a cluster, built from their Go modules on first use and kept outside the work tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};

use super::process::run;

const KUBE: &str = "1.36.3";
const ETCD: &str = "3.6.6";
const HELM: &str = "4.3.1";
const COREDNS: &str = "1.15.0";
/// What the modules above want; a go command from 1.21 on fetches it by itself.
const GO: &str = "1.26.0";
const KUBE_MAIN: &str = include_str!("../../cluster/kube/main.go");
const COREDNS_MAIN: &str = include_str!("../../cluster/coredns/main.go");
/// One build, the slowest of which takes 4 minutes on 2 cores.
const BUILD_WITHIN: Duration = Duration::from_secs(3600);

/// The directory with kube, etcd, coredns and helm; builds what is missing, which takes 7 minutes on 2 cores, once.
pub(super) fn ensure() -> anyhow::Result<PathBuf> {
    let directory = cache()?;
    let missing = || PROGRAMS.iter().filter(|program| !directory.join(program.name).exists()).collect::<Vec<&Program>>();
    if missing().is_empty() {
        return Ok(directory);
    }
    fs::create_dir_all(&directory)?;
    // Whoever comes while another builds waits, and finds the work done.
    let lock = fs::File::create(directory.join(".lock"))?;
    lock.lock()?;
    let missing = missing();
    remove_broken_off(&directory)?;
    let go = go_command()?;
    for (index, program) in missing.iter().enumerate() {
        eprintln!(
            "building {} {} from its Go module ({} of {}; about {} on 2 cores, once) ...",
            program.name,
            program.version,
            index + 1,
            missing.len(),
            program.takes
        );
        let started = Instant::now();
        build(&go, program, &directory).with_context(|| format!("building {} {}", program.name, program.version))?;
        eprintln!("  built in {} s", started.elapsed().as_secs());
    }
    eprintln!("kept in {}; Go's own caches (go clean -cache -modcache, some 8 GB) are no longer needed", directory.display());
    Ok(directory)
}

/// What a build that was killed left; only under the lock.
fn remove_broken_off(directory: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(".build-") {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

/// Where they are kept: one directory for each set of versions and sources.
pub(super) fn cache() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set: it says where the cluster's programs are kept")?;
    Ok(Path::new(&home).join(".cache/sekimori/cluster-bin").join(versions_hash()))
}

fn versions_hash() -> String {
    let all = PROGRAMS.iter().map(|program| format!("{} {}\n", program.name, program.version)).collect::<String>();
    let digest = Sha256::digest(format!("{all}{KUBE_MAIN}{COREDNS_MAIN}"));
    digest.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

struct Program {
    name: &'static str,
    version: &'static str,
    takes: &'static str,
    source: Source,
}

enum Source {
    /// A main file of ours and the module it is about.
    Ours { main: &'static str, module: &'static str },
    /// A package of a module as it is.
    Theirs { module: &'static str, package: &'static str },
}

const PROGRAMS: [Program; 4] = [
    Program { name: "kube", version: KUBE, takes: "4 minutes", source: Source::Ours { main: KUBE_MAIN, module: "k8s.io/kubernetes" } },
    Program {
        name: "etcd",
        version: ETCD,
        takes: "30 s",
        source: Source::Theirs { module: "go.etcd.io/etcd/server/v3", package: "go.etcd.io/etcd/server/v3" },
    },
    Program {
        name: "helm",
        version: HELM,
        takes: "90 s",
        source: Source::Theirs { module: "helm.sh/helm/v4/cmd/helm", package: "helm.sh/helm/v4/cmd/helm" },
    },
    Program { name: "coredns", version: COREDNS, takes: "60 s", source: Source::Ours { main: COREDNS_MAIN, module: "github.com/coredns/coredns" } },
];

/// A go command that can fetch the toolchain it needs.
fn go_command() -> anyhow::Result<PathBuf> {
    let candidates = [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go"), fallback_go()?];
    for candidate in &candidates {
        if let Ok(answer) = run(Command::new(candidate).arg("version"), None, Duration::from_secs(60))
            && answer.success
            && can_fetch_toolchains(&answer.stdout)
        {
            return Ok(candidate.clone());
        }
    }
    bail!("no go command from 1.21 on is in PATH. `scripts/bootstrap.sh cluster` gets one, or see https://go.dev/doc/install")
}

/// Where `scripts/bootstrap.sh` puts a Go toolchain when Debian's is too old.
fn fallback_go() -> anyhow::Result<PathBuf> {
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(Path::new(&home).join(".cache/sekimori/go/bin/go"))
}

/// "go version go1.26.8 linux/amd64": from 1.21 on a go command fetches a newer toolchain if a module wants it.
fn can_fetch_toolchains(version: &str) -> bool {
    let number = version.split_whitespace().find_map(|word| word.strip_prefix("go1.")).unwrap_or_default();
    number.split(|c: char| !c.is_ascii_digit()).next().and_then(|minor| minor.parse::<u32>().ok()).is_some_and(|minor| minor >= 21)
}

fn build(go: &Path, program: &Program, directory: &Path) -> anyhow::Result<()> {
    let work = directory.join(format!(".build-{}-{}", program.name, std::process::id()));
    fs::create_dir_all(&work)?;
    let done = build_in(go, program, directory, &work);
    fs::remove_dir_all(&work)?;
    done
}

fn build_in(go: &Path, program: &Program, directory: &Path, work: &Path) -> anyhow::Result<()> {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(go);
        command.current_dir(work).args(arguments);
        command.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod -buildvcs=false").env("GOTOOLCHAIN", "auto");
        run(&mut command, None, BUILD_WITHIN)?.checked()
    };
    let header = format!("module cluster/{}\n\ngo {GO}\n", program.name);
    let version = program.version;
    let (module, package) = match program.source {
        Source::Ours { main, module } => {
            fs::write(work.join("main.go"), main)?;
            (module, ".")
        }
        Source::Theirs { module, package } => (module, package),
    };
    fs::write(work.join("go.mod"), &header)?;
    let mut flags = "-s -w".to_owned();
    if program.name == "kube" {
        let described: serde_json::Value = serde_json::from_str(&command(&["mod", "download", "-json", &format!("{module}@v{version}")])?)?;
        let file = described.get("GoMod").and_then(|path| path.as_str()).context("go mod download names no go.mod")?;
        fs::write(work.join("go.mod"), format!("{header}\nrequire {module} v{version}\n\n{}", staging(&fs::read_to_string(file)?, version)))?;
        let minor = version.split('.').nth(1).unwrap_or_default();
        for (name, value) in
            [("gitVersion", format!("v{version}")), ("gitMajor", "1".into()), ("gitMinor", minor.to_owned()), ("gitTreeState", "clean".into())]
        {
            flags.push_str(&format!(" -X k8s.io/component-base/version.{name}={value}"));
        }
    } else {
        command(&["get", &format!("{module}@v{version}")])?;
    }
    // Built beside, then renamed: a build that is broken off leaves no half program.
    let new = work.join("built");
    command(&["build", "-trimpath", "-ldflags", &flags, "-o", &new.display().to_string(), package])?;
    fs::rename(&new, directory.join(program.name)).map_err(Into::into)
}

/// k8s.io/kubernetes requires its staging modules at v0.0.0; each must be replaced by the version published with the release.
fn staging(go_mod: &str, version: &str) -> String {
    let published = format!("v0.{}", version.strip_prefix("1.").unwrap_or(version));
    let modules: BTreeSet<&str> = go_mod
        .lines()
        .filter_map(|line| {
            let mut words = line.trim().trim_start_matches("require ").split_whitespace();
            let module = words.next().filter(|module| module.starts_with("k8s.io/"))?;
            (words.next() == Some("v0.0.0")).then_some(module)
        })
        .collect();
    let lines: String = modules.iter().map(|module| format!("\t{module} => {module} {published}\n")).collect();
    format!("replace (\n{lines})\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn staging_modules_get_the_published_version() {
        let go_mod = "module k8s.io/kubernetes\nrequire (\n\tk8s.io/api v0.0.0\n\tk8s.io/klog/v2 v2.140.0\n\tk8s.io/cri-api v0.0.0 // indirect\n)\nreplace k8s.io/api => ./staging\n";
        assert_eq!(staging(go_mod, "1.36.3"), "replace (\n\tk8s.io/api => k8s.io/api v0.36.3\n\tk8s.io/cri-api => k8s.io/cri-api v0.36.3\n)\n");
    }

    #[test]
    fn an_old_go_is_not_taken() {
        for (version, fits) in [
            ("go version go1.26.8 linux/amd64", true),
            ("go version go1.21 linux/amd64", true),
            ("go version go1.19.8 linux/amd64", false),
            ("", false),
        ] {
            assert_eq!(can_fetch_toolchains(version), fits, "{version}");
        }
    }
}
