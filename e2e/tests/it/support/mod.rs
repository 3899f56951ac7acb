//! What every scenario needs: a gateway with its manifests, sinks and name server, an SMTP client, the command line.

mod smtp;

use std::fmt::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use sekimori_e2e::crash::Delivery;
use sekimori_e2e::dns::{self, Zone};
pub(crate) use sekimori_e2e::process::{Gateway, GatewayOptions, free_port};
pub(crate) use sekimori_e2e::sink::{Arrival, Behaviour, Sink};
use serde_json::Value;
use tempfile::TempDir;

pub(crate) use self::smtp::{Reply, Smtp};

/// A debug build on a busy machine may take this long for what is done at once otherwise.
pub(crate) const SOON: Duration = Duration::from_secs(30);
/// The sender of good mail: its domain's SPF names 127.0.0.1.
pub(crate) const SENDER: &str = "you@sender.example";

/// The gateway's binary: built by `cargo test --workspace`, or by the command that the message names.
pub(crate) fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    let path = test.parent().and_then(Path::parent).expect("target/PROFILE/deps/NAME").join("sekimori-mta");
    assert!(path.exists(), "{} is missing: cargo build -p sekimori-mta", path.display());
    path
}

/// Everything around a gateway; the gateway itself is started by [`World::start`].
pub(crate) struct World {
    pub(crate) dir: TempDir,
    pub(crate) smtp: SocketAddr,
    pub(crate) admin: SocketAddr,
    pub(crate) sink: Arc<Sink>,
    pub(crate) resolver: SocketAddr,
    /// More arguments of `run`.
    pub(crate) more: Vec<String>,
}

impl World {
    /// A sink and a name server; no manifests yet.
    pub(crate) async fn new() -> Self {
        let zone = Zone::default()
            .txt("sender.example", "v=spf1 ip4:127.0.0.1 -all")
            .address("sender.example", Ipv4Addr::LOCALHOST.into())
            .mx("sender.example", 10, "sender.example.")
            .address("sink.example", Ipv4Addr::LOCALHOST.into())
            .txt("bank.example", "v=spf1 ip4:192.0.2.1 -all")
            .txt("_dmarc.bank.example", "v=DMARC1; p=reject");
        let any = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0);
        let world = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            smtp: free_port().expect("a free port"),
            admin: free_port().expect("a free port"),
            sink: new_sink().await,
            resolver: dns::serve(any, zone).await.expect("a free port"),
            more: vec![],
        };
        std::fs::create_dir(world.manifests()).expect("a new directory");
        world
    }

    /// A running gateway with the built-in engines and one tenant, `example.com`, that has these fields besides.
    pub(crate) async fn with_tenant(fields: &str) -> (Self, Gateway) {
        let world = Self::new().await;
        world.write("fleet.yaml", &fleet(world.smtp.port(), "", ""));
        world.write("example-com.yaml", &tenant("example-com", "example.com", world.sink.address.port(), fields));
        let gateway = world.start().await;
        (world, gateway)
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.dir.path().join("manifests")
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Writes a manifest, as an editor that does it well would: never half.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let new = self.dir.path().join("new");
        std::fs::write(&new, text).expect("written");
        std::fs::rename(&new, self.manifests().join(name)).expect("renamed");
    }

    pub(crate) fn options(&self) -> GatewayOptions {
        GatewayOptions {
            binary: binary(),
            manifests: self.manifests(),
            state: self.state(),
            resolver: self.resolver,
            admin: self.admin,
            more: self.more.clone(),
        }
    }

    /// Starts a gateway and waits until it takes mail.
    pub(crate) async fn start(&self) -> Gateway {
        let mut gateway = Gateway::start(&self.options()).expect("the gateway starts");
        if let Err(error) = gateway.ready(Duration::from_secs(60)).await {
            panic!("{error}\n{}", self.log());
        }
        gateway
    }

    /// The gateway's log so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.state().with_extension("log")).unwrap_or_default()
    }

    /// The log's lines that are JSON with this event.
    pub(crate) fn events(&self, event: &str) -> Vec<Value> {
        let lines = self.log();
        lines.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).filter(|line| line["event"] == event).collect()
    }

    /// A new session, after EHLO.
    pub(crate) async fn session(&self) -> Smtp {
        Smtp::open(self.smtp).await
    }

    /// Sends one message in a session of its own; the first refusal, or the answer to the end of data.
    pub(crate) async fn send(&self, to: &[&str], content: &[u8]) -> Reply {
        let mut session = self.session().await;
        let reply = session.send(SENDER, to, content).await;
        session.quit().await;
        reply
    }

    /// Waits until so many messages are at the sink, and not more.
    pub(crate) async fn arrived(&self, count: usize) -> Vec<Arrival> {
        arrived(&self.sink, count).await
    }

    /// `sekimori-mta VERB... --admin` of this gateway.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Done {
        let admin = self.admin.to_string();
        let mut all = arguments.to_vec();
        all.extend(["--admin", &admin]);
        command(&all, b"").await
    }

    /// The same with `--output json`; it must succeed.
    pub(crate) async fn command_json(&self, arguments: &[&str]) -> Value {
        let mut all = arguments.to_vec();
        all.extend(["--output", "json"]);
        let done = self.command(&all).await;
        assert_eq!(done.code, 0, "{arguments:?}: {done:?}");
        serde_json::from_str(&done.out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {}", done.out))
    }

    /// The queue's messages.
    pub(crate) async fn queue(&self) -> Vec<Value> {
        messages(self.command_json(&["queue", "list"]).await)
    }

    /// Waits until the queue has so many messages in this state.
    pub(crate) async fn queue_settles(&self, count: usize, state: &str) -> Vec<Value> {
        let mut seen = vec![];
        let started = Instant::now();
        while started.elapsed() < SOON {
            seen = self.queue().await;
            if seen.len() == count && seen.iter().all(|message| message["state"] == state) {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the queue is not {count} x {state}: {seen:?}\n{}", self.log());
    }
}

/// The list in an answer.
pub(crate) fn messages(answer: Value) -> Vec<Value> {
    answer["messages"].as_array().cloned().unwrap_or_else(|| panic!("no list: {answer}"))
}

/// A sink that accepts and keeps content.
pub(crate) async fn new_sink() -> Arc<Sink> {
    Sink::start(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), None, true).await.expect("a free port")
}

/// Waits until so many messages are at a sink, and not more.
pub(crate) async fn arrived(sink: &Sink, count: usize) -> Vec<Arrival> {
    until(&format!("{count} messages at the sink"), async || sink.arrivals().len() >= count).await;
    let arrivals = sink.arrivals();
    assert_eq!(arrivals.len(), count, "{:?}", arrivals.iter().map(|arrival| &arrival.to).collect::<Vec<_>>());
    arrivals
}

/// Waits for something; fails after [`SOON`].
pub(crate) async fn until(what: &str, is: impl AsyncFn() -> bool) {
    let started = Instant::now();
    while !is().await {
        assert!(started.elapsed() < SOON, "not within {} s: {what}", SOON.as_secs());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Done {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the binary with these arguments and this standard input.
pub(crate) async fn command(arguments: &[&str], input: &[u8]) -> Done {
    run(binary(), arguments, input).await
}

/// Runs a program to its end.
pub(crate) async fn run(program: PathBuf, arguments: &[&str], input: &[u8]) -> Done {
    use tokio::io::AsyncWriteExt as _;
    let mut command = tokio::process::Command::new(&program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    let mut stdin = child.stdin.take().expect("piped");
    let input = input.to_vec();
    // It may end without having read all of it.
    tokio::spawn(async move { drop(stdin.write_all(&input).await) });
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    let output = ended.unwrap_or_else(|_| panic!("{arguments:?} did not end within 60 s")).expect("its output");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Done { code: output.status.code().unwrap_or(-1), out: text(&output.stdout), err: text(&output.stderr) }
}

/// A fleet with the built-in engines: more fields of its only listener and of itself.
pub(crate) fn fleet(port: u16, listener: &str, fields: &str) -> String {
    let engines = "\n  engines: [{name: builtin-virus}, {name: builtin-spam}]";
    let mut text = fleet_with(port, listener, &format!("{engines}{fields}"));
    for (name, class) in [("builtin-virus", "AntiVirus"), ("builtin-spam", "AntiSpam")] {
        write!(text, "---\napiVersion: sekimori.dev/v1alpha1\nkind: Engine\nmetadata: {{name: {name}}}\nspec: {{class: {class}, protocol: {{type: Builtin}}}}\n")
            .expect("in memory");
    }
    text
}

/// A fleet without engines.
pub(crate) fn fleet_with(port: u16, listener: &str, fields: &str) -> String {
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: GatewayFleet\nmetadata: {{name: test}}\nspec:\n  hostname: mx.localhost\n  verdictHeader: Full\n  \
         listeners: [{{name: smtp, port: {port}{listener}}}]\n  tenants: {{ownership: Trust}}\n  egress: {{allowedNetworks: [127.0.0.0/8]}}{fields}\n"
    )
}

/// A tenant with one route; `fields` are more lines of its spec, each indented by two.
pub(crate) fn tenant(name: &str, domain: &str, port: u16, fields: &str) -> String {
    format!(
        "apiVersion: sekimori.dev/v1alpha1\nkind: TenantDomain\nmetadata: {{name: {name}}}\nspec:\n  fleetRef: {{name: test}}\n  domains: [{domain}]\n  \
         routes: [{{name: sink, host: 127.0.0.1, port: {port}, tls: {{mode: Disabled}}}}]\n{fields}\n"
    )
}

/// A plain message.
pub(crate) fn mail(subject: &str, body: &str) -> Vec<u8> {
    format!(
        "From: Sender <{SENDER}>\r\nTo: User <user@example.com>\r\nSubject: {subject}\r\nDate: Wed, 25 Nov 2026 08:00:00 +0000\r\n\
         Message-ID: <test@sender.example>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{body}\r\n"
    )
    .into_bytes()
}

/// The EICAR test file, in two pieces so that no scanner takes this source for it.
pub(crate) fn eicar() -> String {
    [r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-", "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"].concat()
}

/// The GTUBE test text.
pub(crate) fn gtube() -> String {
    ["XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"].concat()
}

/// A header field's value in a message, unfolded; empty if there is none.
pub(crate) fn header(content: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(content).into_owned();
    let head = text.split("\r\n\r\n").next().unwrap_or_default().replace("\r\n\t", " ").replace("\r\n ", " ");
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)).unwrap_or_default()
}

/// That a message arrived as it was sent, below what the gateway adds.
pub(crate) fn assert_intact(arrival: &Arrival, sent: &[u8]) {
    assert!(arrival.content.ends_with(sent), "changed on its way:\n{}", String::from_utf8_lossy(&arrival.content));
    let added = arrival.content.strip_suffix(sent).map(String::from_utf8_lossy).unwrap_or_default();
    let known = ["Received", "Authentication-Results", "X-Sekimori-Verdict", "X-Spam-Status"];
    for line in added.split("\r\n").filter(|line| !line.is_empty() && !line.starts_with([' ', '\t'])) {
        let name = line.split(':').next().unwrap_or_default();
        assert!(known.contains(&name), "added, and nobody knows why: {line}");
    }
}
