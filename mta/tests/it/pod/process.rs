//! The gateway's own binary, with what a pod mounts for it.

#![expect(clippy::unwrap_used, reason = "a test's own helpers")]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sekimori_crds::snapshot::{ClassMinimum, EngineEndpoint, EnginePart, FleetPart, ListenerPart};
use sekimori_crds::vocabulary::{EngineClass, EngineProtocol, VerdictHeader};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::operator::Operator;
use crate::gateway::world::{engine, listener_part};

/// A pod's directories and ports; the process comes and goes.
pub(super) struct Pod {
    pub(super) dir: TempDir,
    pub(super) smtp: SocketAddr,
    pub(super) admin: SocketAddr,
    child: Option<Child>,
    starts: u32,
}

fn free_port() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl Pod {
    pub(super) fn new(operator: &Operator) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.crt"), &operator.authority).unwrap();
        std::fs::write(dir.path().join("token"), "first-token\n").unwrap();
        std::fs::write(dir.path().join("key"), [42; 32]).unwrap();
        Self { dir, smtp: free_port(), admin: free_port(), child: None, starts: 0 }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(super) fn fleet(&self) -> FleetPart {
        self.fleet_with(listener_part())
    }

    pub(super) fn fleet_with(&self, listener: ListenerPart) -> FleetPart {
        let builtin = |name, class| EnginePart {
            protocol: EngineProtocol::Builtin,
            endpoint: EngineEndpoint::Builtin,
            timeout: "20s".parse().unwrap(),
            ..engine(name, class)
        };
        FleetPart {
            namespace: "mail".into(),
            name: "inbound".into(),
            hostname: "mx.example.net".into(),
            listeners: vec![ListenerPart { port: self.smtp.port(), ..listener }],
            engines: vec![builtin("builtin-virus", EngineClass::AntiVirus), builtin("builtin-spam", EngineClass::AntiSpam)],
            resolver_addresses: vec!["127.0.0.1:9".into()],
            egress_allowed_networks: vec!["127.0.0.0/8".parse().unwrap()],
            quarantine_retention: "720h".parse().unwrap(),
            startup_max_wait: "1m".parse().unwrap(),
            startup_minimum_engines: ClassMinimum { anti_virus: 1, anti_spam: 1 },
            verdict_header: VerdictHeader::Full,
            requires: [].into(),
        }
    }

    pub(super) fn start(&mut self, operator: &Operator) {
        self.starts += 1;
        let dir = self.dir.path();
        let log = std::fs::File::create(dir.join(format!("log-{}", self.starts))).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_sekimori-mta"))
            .arg("run")
            .arg(format!("--operator={}", operator.address))
            .arg(format!("--operator-ca={}", dir.join("ca.crt").display()))
            .arg(format!("--operator-token={}", dir.join("token").display()))
            .arg("--operator-token-every=100ms")
            .arg(format!("--snapshot-key={}", dir.join("key").display()))
            .arg(format!("--certificates={}", dir.join("tls").display()))
            .arg(format!("--state={}", dir.join("state").display()))
            .arg("--bind=127.0.0.1")
            .arg(format!("--admin={}", self.admin))
            .arg(format!("--admin-socket={}", dir.join("admin.sock").display()))
            .args(["--spool-segment=40Mi", "--spool-max=400Mi", "--stop-timeout=10s", "--log=json"])
            .env("SEKIMORI_POD", "inbound-0")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// No time to write anything down.
    pub(super) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(super) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id().to_string();
        assert!(Command::new("kill").args([name, &pid]).status().unwrap().success());
    }

    /// SIGTERM, and the end in good order.
    pub(super) async fn terminate(&mut self) {
        self.signal("-TERM");
        let mut child = self.child.take().unwrap();
        let status = tokio::task::spawn_blocking(move || child.wait().unwrap()).await.unwrap();
        assert!(status.success(), "{status}\n{}", self.log());
    }

    pub(super) fn log(&self) -> String {
        std::fs::read_to_string(self.path(&format!("log-{}", self.starts))).unwrap_or_default()
    }

    /// GET on the admin port; status and body. 0: nobody there.
    pub(super) async fn get(&self, path: &str) -> (u16, String) {
        let Ok(mut stream) = TcpStream::connect(self.admin).await else { return (0, String::new()) };
        let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        if stream.write_all(request.as_bytes()).await.is_err() {
            return (0, String::new());
        }
        let mut answer = String::new();
        drop(stream.read_to_string(&mut answer).await);
        let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        (status, answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
    }

    pub(super) async fn wait_status(&self, path: &str, expected: u16) {
        for _ in 0..1500 {
            if self.get(path).await.0 == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("waited 30 s for {expected} of {path}: {:?}\n{}", self.get(path).await, self.log());
    }

    /// Whether anybody takes connections on the SMTP port.
    pub(super) async fn listens(&self) -> bool {
        TcpStream::connect(self.smtp).await.is_ok()
    }

    /// A verb of the binary over the admin socket.
    pub(super) fn verb(&self, arguments: &[&str]) -> String {
        let output = Command::new(env!("CARGO_BIN_EXE_sekimori-mta"))
            .args(arguments)
            .arg(format!("--admin={}", self.path("admin.sock").display()))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log());
        }
        self.kill();
    }
}

/// Every file below a directory, joined.
pub(super) fn all_bytes(dir: &Path) -> Vec<u8> {
    let mut all = vec![];
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.extend(all_bytes(&path));
        } else {
            all.extend(std::fs::read(path).unwrap());
        }
    }
    all
}
