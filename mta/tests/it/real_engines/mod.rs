//! The real clamd and rspamd from Debian's packages, as child processes on free ports in temporary directories.
//!
//! Nothing here is skipped: a machine without the packages fails these tests with the name of what to install.

mod clamd;
mod dns;
mod rspamd;

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::*;

/// A child in a process group of its own: neither it nor its workers outlive the test.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        // The group first: workers of a main process that was killed live on. It may have ended by itself; either way it is gone after the wait.
        drop(Command::new("sh").arg("-c").arg(format!("kill -KILL -{}", self.0.id())).stderr(Stdio::null()).status());
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Daemon {
    /// Asks it to end, so that it ends its workers; a drop right after it makes sure.
    fn terminate(&mut self) {
        drop(Command::new("sh").arg("-c").arg(format!("kill -TERM {}", self.0.id())).stderr(Stdio::null()).status());
        for _ in 0..150 {
            if !matches!(self.0.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn spawn(mut command: Command, log: &Path) -> Self {
        let log = std::fs::File::create(log).expect("a log file in the test's own directory");
        let errors = log.try_clone().expect("another handle");
        let child = command.process_group(0).stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        Self(child.unwrap_or_else(|e| panic!("{command:?} does not start: {e}")))
    }
}

/// The program's path.
fn program(paths: &[&str], packages: &str) -> PathBuf {
    let found = paths.iter().map(PathBuf::from).find(|path| path.exists());
    found.unwrap_or_else(|| {
        panic!("this test needs the real engine, and there is none of {paths:?}; install it: apt-get install -y --no-install-recommends {packages}")
    })
}

/// A TCP port that nobody listens on now.
fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port").port()
}

/// A mail with one attachment.
fn mail_with(name: &str, content: &[u8]) -> String {
    let encoded = data_encoding::BASE64.encode(content);
    let lines: Vec<&str> = encoded.as_bytes().chunks(76).map(|line| std::str::from_utf8(line).expect("ASCII")).collect();
    format!(
        "From: <s@example.net>\r\nTo: <a@example.com>\r\nSubject: file\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nSee the file.\r\n--b\r\nContent-Type: application/octet-stream; name=\"{name}\"\r\nContent-Disposition: attachment; filename=\"{name}\"\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n--b--\r\n",
        lines.join("\r\n")
    )
}
