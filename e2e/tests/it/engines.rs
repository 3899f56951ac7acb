//! The real clamd and rspamd behind the whole gateway, with the manifests that people start from.

use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::mail::swaks_sends_bad_and_good;
use crate::support::*;

/// A child in a process group of its own: neither it nor its workers outlive the test.
struct Daemon(Child);

impl Daemon {
    fn spawn(program: &str, packages: &str, arguments: &[&str], log: &Path) -> Self {
        assert!(Path::new(program).exists(), "this test needs {program}: apt-get install -y --no-install-recommends {packages}");
        let log = std::fs::File::create(log).expect("a log file");
        let errors = log.try_clone().expect("another handle");
        let child = Command::new(program).args(arguments).process_group(0).stdin(Stdio::null()).stdout(log).stderr(errors).spawn();
        Self(child.unwrap_or_else(|error| panic!("{program}: {error}")))
    }

    /// To the whole group.
    fn signal(&self, name: &str) {
        // Nobody there any more is fine, too.
        drop(Command::new("kill").args([&format!("-{name}"), "--", &format!("-{}", self.0.id())]).stderr(Stdio::null()).status());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal("KILL");
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// clamd with a signature of our own for EICAR.
fn clamd(dir: &Path) -> Daemon {
    let (root, database) = (dir.display(), dir.join("db"));
    std::fs::create_dir_all(&database).expect("a directory");
    let hex: String = b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE".iter().map(|octet| format!("{octet:02x}")).collect();
    std::fs::write(database.join("t.ndb"), format!("Test.Eicar:0:*:{hex}\n")).expect("written");
    let configuration = dir.join("clamd.conf");
    let text = format!(
        "Foreground yes\nLocalSocket {root}/clamd.sock\nDatabaseDirectory {root}/db\nStreamMaxLength 30M\nAlertExceedsMax yes\nAlertEncrypted yes\n"
    );
    std::fs::write(&configuration, text).expect("written");
    Daemon::spawn("/usr/sbin/clamd", "clamav-daemon", &["-c", &configuration.display().to_string()], &dir.join("clamd.log"))
}

const RSPAMD: &str = r#"
.include "$CONFDIR/common.conf"
options {
  pidfile = "$RUNDIR/rspamd.pid";
  .include "$CONFDIR/options.inc"
  .include(try=true; priority=10) "$LOCAL_CONFDIR/override.d/options.inc"
}
logging { type = "console"; level = "notice"; }
worker "normal" {
  bind_socket = "127.0.0.1:@PORT@";
  count = 1;
  .include "$CONFDIR/worker-normal.inc"
}
"#;

/// rspamd with a configuration of our own: no network but a name server that knows nothing.
fn rspamd(dir: &Path, port: u16, resolver: u16) -> Daemon {
    let root = dir.display().to_string();
    // Its compiled expressions take it ten seconds once, and are kept.
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rspamd-db");
    for path in [cache.clone(), dir.join("local.d"), dir.join("override.d")] {
        std::fs::create_dir_all(path).expect("a directory");
    }
    std::fs::write(dir.join("rspamd.conf"), RSPAMD.replace("@PORT@", &port.to_string())).expect("written");
    let options = format!(
        "dns {{ nameserver = [\"127.0.0.1:{resolver}\"]; timeout = 0.2s; retransmits = 1; }} control_socket = \"{root}/control.sock mode=0600\";\n"
    );
    std::fs::write(dir.join("override.d/options.inc"), options).expect("written");
    for module in ["rbl", "fuzzy_check", "asn", "mx_check"] {
        std::fs::write(dir.join(format!("local.d/{module}.conf")), "enabled = false;\n").expect("written");
    }
    let variables = [("RUNDIR", root.clone()), ("DBDIR", cache.display().to_string()), ("LOGDIR", root.clone()), ("LOCAL_CONFDIR", root)]
        .map(|(name, value)| format!("--var={name}={value}"));
    let configuration = dir.join("rspamd.conf").display().to_string();
    let mut arguments = vec!["-f", "-i", "-c", &configuration];
    arguments.extend(variables.iter().map(String::as_str));
    Daemon::spawn("/usr/bin/rspamd", "rspamd", &arguments, &dir.join("rspamd.log"))
}

/// The manifests of `manifests/engines-alone` on the world's ports.
fn write_manifests(world: &World, change: impl Fn(String) -> String) {
    let dir = sekimori_e2e::checkout().join("manifests/engines-alone");
    for entry in std::fs::read_dir(dir).expect("the manifests") {
        let entry = entry.expect("an entry");
        let text = std::fs::read_to_string(entry.path()).expect("readable");
        let text = text
            .replace("port: 2525", &format!("port: {}", world.smtp.port()))
            .replace("port: 2526", &format!("port: {}", world.sink.address.port()));
        world.write(&entry.file_name().to_string_lossy(), &change(text));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn swaks_through_the_real_clamd_and_rspamd() {
    let mut world = World::new().await;
    write_manifests(&world, |text| text);
    let port = free_port().expect("a free port").port();
    let _clamd = clamd(world.dir.path());
    let _rspamd = rspamd(world.dir.path(), port, world.options().resolver.port());
    let socket = world.dir.path().join("clamd.sock").display().to_string();
    world.more = ["--engine".into(), format!("clamav=unix:{socket}"), "--engine".into(), format!("rspamd=127.0.0.1:{port}")].to_vec();
    let mut gateway = Gateway::start(&world.options()).expect("it starts");
    // The first start of rspamd on a machine compiles its expressions.
    gateway.ready(Duration::from_secs(120)).await.unwrap_or_else(|error| panic!("{error}\n{}", world.log()));
    assert!(!world.log().contains("engines are still not ready"), "{}", world.log());
    swaks_sends_bad_and_good(&world, &[]).await;
    let lines = world.events("message");
    let said = |line: usize, engine: usize, field: &str| lines[line]["engines"][engine][field].as_str().unwrap_or_default().to_owned();
    assert!(said(0, 0, "engine") == "clamav" && said(0, 0, "version").starts_with(|c: char| c.is_ascii_digit()), "{}", lines[0]);
    assert!(said(0, 0, "result").contains("Test.Eicar"), "{}", lines[0]);
    assert!(said(1, 1, "engine") == "rspamd" && said(1, 1, "result").contains("certain"), "{}", lines[1]);
    assert!(said(2, 0, "result").contains("clean"), "{}", lines[2]);
    let verdict = header(&world.sink.arrivals()[0].content, "X-Sekimori-Verdict");
    assert!(verdict.contains("engine=clamav version=") && verdict.contains("engine=rspamd version=") && !verdict.contains("unscanned"), "{verdict}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clamd_killed_in_mid_scan() {
    let mut world = World::new().await;
    // clamd alone, and a breaker that looks again soon.
    write_manifests(&world, |text| {
        text.replace("engines: [{name: clamav}, {name: rspamd}]", "engines: [{name: clamav}, {name: builtin-spam}]")
            .replace("  protocol: {type: Clamd}\n", "  protocol: {type: Clamd}\n  timeout: 20s\n  breaker: {openFor: 1s}\n")
    });
    world.write(
        "spam.yaml",
        "apiVersion: sekimori.dev/v1alpha1\nkind: Engine\nmetadata: {name: builtin-spam}\nspec: {class: AntiSpam, protocol: {type: Builtin}}\n",
    );
    let daemon = clamd(world.dir.path());
    world.more = ["--engine".into(), format!("clamav=unix:{}", world.dir.path().join("clamd.sock").display())].to_vec();
    let gateway = world.start().await;
    world.send(&["user@example.com"], &mail("hello", "scanned")).await.expect("250");
    assert!(!header(&world.arrived(1).await[0].content, "X-Sekimori-Verdict").contains("unscanned"));
    assert_eq!(gateway.metric("sekimori_unscanned_total{class=\"AntiVirus\"}").await, Some(0.0));

    // It stands still with three messages in its hands, and is killed.
    daemon.signal("STOP");
    let (strict, mild, both) = (mail("for the strict", "waits"), mail("for the mild", "flows"), mail("for both", "waits and flows"));
    let to = [vec!["user@example.com"], vec!["user@example.org"], vec!["user@example.org", "user@example.com"]];
    let (first, second, third) = tokio::join!(world.send(&to[0], &strict), world.send(&to[1], &mild), async {
        let third = world.send(&to[2], &both);
        let kill = async {
            until("all three are being scanned", async || gateway.metric("sekimori_message_memory_bytes").await > Some(600.0)).await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            daemon.signal("KILL");
        };
        tokio::join!(third, kill).0
    });
    first.expect("451 4.3.0 message cannot be scanned at the moment");
    second.expect("250");
    third.expect("250");
    let arrivals = world.arrived(3).await;
    for arrival in &arrivals[1..] {
        assert_eq!(arrival.to, ["user@example.org"]);
        let verdict = header(&arrival.content, "X-Sekimori-Verdict");
        assert!(verdict.contains("unscanned") && verdict.contains("too-few-engines"), "{verdict}");
    }
    let waiting = world.queue().await;
    assert!(waiting.len() == 1 && waiting[0]["purpose"] == "rescan" && waiting[0]["tenant"] == "default/example-com", "{waiting:?}");
    // Header, log and metric say so, for each tenant by its policy.
    assert_eq!(gateway.metric("sekimori_unscanned_total{class=\"AntiVirus\"}").await, Some(2.0), "{}", world.log());
    let outcome = |subject: usize| {
        let lines = world.events("message");
        let line = lines.iter().find(|line| line["recipients"] == serde_json::json!(to[subject])).cloned().unwrap_or_else(|| panic!("{lines:?}"));
        line["tenants"].as_array().cloned().unwrap_or_default()
    };
    assert!(
        outcome(1)[0]["unscanned"] == true && outcome(1)[0]["explanation"].to_string().contains("unscanned: AntiVirus, as too few engines"),
        "{:?}",
        outcome(1)
    );
    let verdicts: Vec<serde_json::Value> = outcome(2).iter().map(|tenant| tenant["verdict"].clone()).collect();
    assert_eq!(verdicts, ["Deliver", "Defer"], "the strict tenant's copy did not pass");

    // Known bad mail while nobody scans: the strict tenant has it not, the mild one has it marked.
    world.send(&["user@example.com"], &mail("file", &eicar())).await.expect("451 4.3.0");
    world.send(&["user@example.org"], &mail("file", &eicar())).await.expect("250");
    let arrival = world.arrived(4).await.remove(3);
    assert!(header(&arrival.content, "X-Sekimori-Verdict").contains("unscanned"));

    // It is back: what waited is scanned and delivered, new mail is scanned again.
    drop(daemon);
    let _daemon = clamd(world.dir.path());
    until("clamd is asked again", async || world.send(&["user@example.com"], &mail("file", &eicar())).await.code == 550).await;
    drop(world.command(&["queue", "retry", "--all"]).await);
    let arrival = world.arrived(5).await.remove(4);
    assert_eq!(arrival.to, ["user@example.com"]);
    assert_intact(&arrival, &both);
    let verdict = header(&arrival.content, "X-Sekimori-Verdict");
    assert!(verdict.contains("anti-virus=clean") && !verdict.contains("unscanned"), "{verdict}");
    let rescan = world.events("rescanned").pop().unwrap_or_else(|| panic!("{}", world.log()));
    assert!(rescan["tenant"] == "default/example-com" && rescan["verdict"] == "Deliver" && rescan["unscanned"] == "", "{rescan}");
    until("an empty queue", async || world.queue().await.is_empty()).await;
}
