//! The images of this project: the same files that the Dockerfiles install.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, bail, ensure};
use sha2::{Digest as _, Sha256};

use super::archive::{Archive, Image};
use crate::cluster::process::run;

/// Where images of a local cluster seem to come from. Nothing is ever pulled from there.
pub const REGISTRY: &str = "registry.local";
const IDLE: &str = include_str!("../../cluster/idle/idle.c");

/// Every image that `build` knows.
pub const NAMES: [&str; 6] = ["sekimori-mta", "sekimori-operator", "sekimori-e2e", "sekimori-slot-idle", "clamav", "rspamd"];

/// Builds these images from our programs in `binaries` and from Debian's packages; returns the archives.
pub fn build(names: &[String], binaries: &Path, tag: &str, out: &Path) -> anyhow::Result<Vec<Archive>> {
    fs::create_dir_all(out)?;
    names
        .iter()
        .map(|name| {
            let image = match name.as_str() {
                "sekimori-mta" | "sekimori-operator" | "sekimori-e2e" => ours(binaries, name, tag),
                "sekimori-slot-idle" => slot_idle(tag),
                "clamav" => clamav(tag),
                "rspamd" => rspamd(tag),
                _ => bail!("no image {name}; there are: {}", NAMES.join(", ")),
            };
            image.and_then(|image| image.write(out)).with_context(|| format!("image {name}"))
        })
        .collect()
}

/// The sandbox of every pod.
pub fn pause(reference: &str) -> anyhow::Result<Image> {
    idle(reference)
}

/// What an engine's second slot runs until it is needed: 800 kB of image and next to no memory.
pub fn slot_idle(tag: &str) -> anyhow::Result<Image> {
    idle(&format!("{REGISTRY}/sekimori-slot-idle:{tag}"))
}

fn idle(reference: &str) -> anyhow::Result<Image> {
    let directory = tempfile::tempdir()?;
    let (source, program) = (directory.path().join("idle.c"), directory.path().join("idle"));
    fs::write(&source, IDLE)?;
    let mut compiler = Command::new("gcc");
    // Without a build id and a path, so that the same source makes the same program.
    compiler.args(["-static", "-O2", "-s", "-Wl,--build-id=none", "-o"]).arg(&program).arg(&source).current_dir(directory.path());
    run(&mut compiler, None, std::time::Duration::from_secs(60))?.checked()?;
    let mut image = Image::new(reference, &["/idle"])?;
    image.files.data("/idle", &fs::read(&program)?, 0o755);
    Ok(image)
}

/// One of our programs: the binary, what it loads, certificates of authorities, a user, `/tmp`.
pub fn ours(binaries: &Path, name: &str, tag: &str) -> anyhow::Result<Image> {
    let program = binaries.join(name);
    ensure!(program.is_file(), "{}: build it first (cargo build --release -p {name})", program.display());
    let path = format!("/usr/bin/{name}");
    let mut image = Image::new(&format!("{REGISTRY}/{name}:{tag}"), &[&path])?;
    image.files.program_at(&program, &path)?;
    let plugin = binaries.join("kubectl-sekimori");
    if name == "sekimori-operator" && plugin.is_file() {
        image.files.program_at(&plugin, "/usr/bin/kubectl-sekimori")?;
    }
    base(&mut image)?;
    Ok(image)
}

fn base(image: &mut Image) -> anyhow::Result<()> {
    let files = &mut image.files;
    files.data("/etc/passwd", b"root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n", 0o644);
    files.data("/etc/group", b"root:x:0:\nnonroot:x:65532:\n", 0o644);
    files.data("/etc/nsswitch.conf", b"hosts: files dns\n", 0o644);
    files.directory("/tmp", 0o1777);
    let authorities = Path::new("/etc/ssl/certs/ca-certificates.crt");
    files.data("/etc/ssl/certs/ca-certificates.crt", &fs::read(authorities).with_context(|| authorities.display().to_string())?, 0o644);
    Ok(())
}

/// Debian's clamd with a database that knows the EICAR test file alone.
pub fn clamav(tag: &str) -> anyhow::Result<Image> {
    let mut image = Image::new(&format!("{REGISTRY}/clamav:{tag}"), &["/usr/sbin/clamd", "--config-file=/etc/clamav/clamd.conf"])?;
    image.files.same(Path::new("/usr/sbin/clamd")).context("Debian package clamav-daemon")?;
    let configuration = "Foreground yes\nLocalSocket /run/sekimori/engine/engine.sock\nLocalSocketMode 666\nFixStaleSocket yes\nDatabaseDirectory /var/lib/clamav\n\
                         TemporaryDirectory /tmp\nStreamMaxLength 64M\nMaxScanTime 20000\nAlertExceedsMax yes\nAlertEncrypted yes\nLogTime yes\nMaxThreads 4\n";
    image.files.data("/etc/clamav/clamd.conf", configuration.as_bytes(), 0o644);
    let [whole, part] = signatures();
    image.files.data("/var/lib/clamav/test.hsb", whole.as_bytes(), 0o644);
    image.files.data("/var/lib/clamav/test.ndb", part.as_bytes(), 0o644);
    base(&mut image)?;
    Ok(image)
}

/// The test file by its hash, and its characteristic text anywhere (files inside mail, with more around them). ClamAV's manual, "Creating signatures".
fn signatures() -> [String; 2] {
    // In two pieces, so that a scanner does not mistake this program for the test virus.
    let eicar = [r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-", "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"].concat();
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let hash = hex(&Sha256::digest(&eicar));
    let text = hex(["EICAR-STANDARD-", "ANTIVIRUS-TEST-FILE"].concat().as_bytes());
    [format!("{hash}:{}:Eicar-Test-Signature:73\n", eicar.len()), format!("Eicar-Test-Signature:0:*:{text}\n")]
}

/// Debian's rspamd with its rules, without what needs a network or a Redis.
pub fn rspamd(tag: &str) -> anyhow::Result<Image> {
    let arguments = [
        "/usr/bin/rspamd",
        "--no-fork",
        "--insecure",
        "--config=/etc/rspamd/sekimori.conf",
        "--var=RUNDIR=/tmp",
        "--var=DBDIR=/tmp",
        "--var=LOGDIR=/tmp",
        "--var=LOCAL_CONFDIR=/etc/rspamd/sekimori",
    ];
    let mut image = Image::new(&format!("{REGISTRY}/rspamd:{tag}"), &arguments)?;
    for path in ["/usr/bin/rspamd", "/usr/lib/rspamd", "/usr/share/rspamd", "/etc/rspamd"] {
        image.files.same(Path::new(path)).context("Debian package rspamd")?;
    }
    let own = [
        ("sekimori.conf", RSPAMD),
        ("sekimori/override.d/options.inc", "dns { timeout = 0.5s; retransmits = 1; }\ncontrol_socket = \"/tmp/control.sock mode=0600\";\n"),
        ("sekimori/local.d/rbl.conf", "enabled = false;\n"),
        ("sekimori/local.d/fuzzy_check.conf", "enabled = false;\n"),
        ("sekimori/local.d/asn.conf", "enabled = false;\n"),
        ("sekimori/local.d/mx_check.conf", "enabled = false;\n"),
    ];
    for (name, text) in own {
        image.files.data(&format!("/etc/rspamd/{name}"), text.as_bytes(), 0o644);
    }
    base(&mut image)?;
    Ok(image)
}

/// Included with a priority, because a `dns` written beside the include of options.inc is ignored.
const RSPAMD: &str = r#".include "$CONFDIR/common.conf"
options {
  pidfile = "/tmp/rspamd.pid";
  .include "$CONFDIR/options.inc"
  .include(try=true; priority=10) "$LOCAL_CONFDIR/override.d/options.inc"
}
logging { type = "console"; level = "warning"; }
worker "normal" {
  bind_socket = "/run/sekimori/engine/engine.sock mode=0666";
  count = 1;
  .include "$CONFDIR/worker-normal.inc"
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signatures_are_of_the_test_file() {
        let [whole, part] = signatures();
        // The hash that every scanner's page about the test file gives.
        assert_eq!(whole, "275a021bbfb6489e54d471899f7db9d1663fc695ec2fe2a2c4538aabf651fd0f:68:Eicar-Test-Signature:73\n");
        assert_eq!(part, "Eicar-Test-Signature:0:*:45494341522d5354414e444152442d414e544956495255532d544553542d46494c45\n");
    }

    #[test]
    fn the_idle_image_is_reproducible() {
        let (one, two) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        let first = slot_idle("1").expect("built").write(one.path()).expect("written");
        let second = slot_idle("1").expect("built").write(two.path()).expect("written");
        assert_eq!(first.digest, second.digest);
    }
}
