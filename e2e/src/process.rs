//! A gateway as a child process: started, asked, killed, measured.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// How to start it.
#[derive(Clone, Debug)]
pub struct GatewayOptions {
    /// The binary.
    pub binary: PathBuf,
    /// `--manifests`.
    pub manifests: PathBuf,
    /// `--state`.
    pub state: PathBuf,
    /// `--resolver`.
    pub resolver: SocketAddr,
    /// `--admin`.
    pub admin: SocketAddr,
    /// More arguments.
    pub more: Vec<String>,
}

/// A running gateway. Killed when dropped.
#[derive(Debug)]
pub struct Gateway {
    child: Child,
    /// Where its admin port is.
    pub admin: SocketAddr,
    /// Where its log goes.
    pub log: PathBuf,
}

impl Gateway {
    /// Starts it; its log is appended to `gateway.log` beside the state directory.
    pub fn start(options: &GatewayOptions) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&options.state)?;
        let log = options.state.with_extension("log");
        let file = std::fs::File::options().create(true).append(true).open(&log)?;
        let child = Command::new(&options.binary)
            .arg("run")
            .args([Path::new("--manifests"), &options.manifests, Path::new("--state"), &options.state])
            .args(["--resolver", &options.resolver.to_string(), "--admin", &options.admin.to_string()])
            .args(&options.more)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("{}: build it with cargo build --release -p sekimori-mta", options.binary.display()))?;
        Ok(Self { child, admin: options.admin, log })
    }

    /// Waits until it takes mail.
    pub async fn ready(&mut self, within: Duration) -> anyhow::Result<()> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the gateway ended with {status}; its log: {}", self.log.display());
            }
            if self.get("/readyz").await.is_ok_and(|answer| answer.starts_with("ok")) {
                return Ok(());
            }
            if started.elapsed() > within {
                bail!("the gateway is not ready after {} s; its log: {}", within.as_secs(), self.log.display());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The body of a GET on the admin port, whatever the status.
    pub async fn get(&self, path: &str) -> std::io::Result<String> {
        let raw = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        request(self.admin, &raw).await.map(|(_, body)| body)
    }

    /// The body of a POST of JSON on the admin port, whatever the status.
    pub async fn post(&self, path: &str, body: &str) -> std::io::Result<String> {
        let length = body.len();
        let raw = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
        );
        request(self.admin, &raw).await.map(|(_, body)| body)
    }

    /// The value of a metric without labels, or of the line that begins with the given text.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.get("/metrics").await.ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }

    /// SIGKILL, and wait.
    pub fn kill(&mut self) -> std::io::Result<()> {
        self.child.kill()?;
        self.child.wait().map(drop)
    }

    /// Sends a signal, such as `HUP`.
    pub fn signal(&self, name: &str) -> std::io::Result<()> {
        // The child is waited for only here and in `try_wait`, so the process id is still its own.
        Command::new("kill").args([&format!("-{name}"), &self.child.id().to_string()]).status().map(drop)
    }

    /// SIGTERM, and wait for the exit code.
    pub async fn stop(&mut self, within: Duration) -> anyhow::Result<i32> {
        self.signal("TERM")?;
        self.ended(within).await
    }

    /// Waits for its end by itself; the exit code.
    pub async fn ended(&mut self, within: Duration) -> anyhow::Result<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.code().unwrap_or(-1));
            }
            if started.elapsed() > within {
                bail!("the gateway did not stop within {} s", within.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            drop(self.kill());
        }
    }
}

/// Writes an HTTP request as it is (with `Connection: close`); status and body of the answer.
pub async fn request(address: SocketAddr, raw: &str) -> std::io::Result<(u16, String)> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(raw.as_bytes()).await?;
        let mut answer = vec![];
        stream.read_to_end(&mut answer).await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or(std::io::ErrorKind::InvalidData)?;
        Ok((status, body.to_owned()))
    };
    tokio::time::timeout(Duration::from_secs(30), exchange).await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// CPU time that a process and its ended children have used so far, seconds.
pub fn cpu_seconds(pid: u32) -> std::io::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields 14 to 17, counted after the command's closing bracket: utime, stime, cutime, cstime (proc(5)), in hundredths of a second.
    let ticks: f64 = stat
        .rsplit_once(')')
        .map(|(_, rest)| rest)
        .unwrap_or_default()
        .split_whitespace()
        .skip(11)
        .take(4)
        .filter_map(|n| n.parse::<f64>().ok())
        .sum();
    Ok(ticks / 100.0)
}

/// A free port of 127.0.0.1 for a server that reuses addresses (as tokio's do): until this process ends, nobody else gets it by chance.
pub fn free_port() -> std::io::Result<SocketAddr> {
    // Bound, but not listening: a connection to it is refused, a listener with SO_REUSEADDR may have it, and the kernel gives it to no one else.
    static RESERVED: Mutex<Vec<TcpSocket>> = Mutex::new(vec![]);
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0))?;
    let address = socket.local_addr()?;
    RESERVED.lock().expect("no panic while held").push(socket);
    Ok(address)
}
