//! What starts in images, where no image is needed to try it.

#![allow(clippy::panic, reason = "a test says what never happened")]

use std::os::unix::fs::PermissionsExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::helm::root;

/// A pod that is told to go while its first signatures are on their way must go, not wait for the kubelet's kill.
#[test]
fn clamav_ends_at_once_while_it_fetches_its_first_signatures() {
    let directory = tempfile::tempdir().expect("a directory");
    let begun = directory.path().join("begun");
    let fake = directory.path().join("freshclam");
    std::fs::write(&fake, format!("#!/bin/sh\necho $$ > {0}.part && mv {0}.part {0}\nexec sleep 60\n", begun.display())).expect("written");
    std::fs::set_permissions(&fake, std::fs::Permissions::from_mode(0o755)).expect("executable");
    let path = format!("{}:{}", directory.path().display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("/bin/sh")
        .arg(root().join("manifests/engines/clamav/start.sh"))
        .env("PATH", path)
        .env("SEKIMORI_ENGINE_SOCKET", directory.path().join("engine.sock"))
        .env("SEKIMORI_SIGNATURES_MIRROR", "http://mirror.example")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("a shell");
    let until = |what: &str, mut holds: Box<dyn FnMut() -> bool + '_>| {
        for _ in 0..500 {
            if holds() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        panic!("not within 10 s: {what}");
    };
    until("the fetch began", Box::new(|| begun.exists()));
    let fetching = std::fs::read_to_string(&begun).expect("its pid").trim().to_owned();
    let signal = |signal: &str, pid: &str| Command::new("/bin/kill").args([signal, pid]).stderr(Stdio::null()).status().expect("kill runs").success();
    assert!(signal("-TERM", &shell.id().to_string()));
    let mut ended = None;
    until(
        "the shell ended after TERM",
        Box::new(|| {
            ended = shell.try_wait().expect("a child");
            ended.is_some()
        }),
    );
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}");
    until("the fetch ended with it", Box::new(|| !signal("-0", &fetching)));
}
