//! The real rspamd, with a configuration of our own, no network and no redis.

use sekimori_mta::engine::probe;
use sekimori_mta::io::engine::Builtins;
use sekimori_mta::verdict::SpamScore;
use tempfile::TempDir;

use super::dns::Stub;
use super::*;

const PACKAGES: &str = "rspamd";
/// Its first start compiles its expressions: some 12 s, more on a busy machine. Later ones find them in the cache.
const START_MAX: Duration = Duration::from_secs(120);

struct Rspamd {
    directory: TempDir,
    port: u16,
    _dns: Stub,
    daemon: Daemon,
}

impl Drop for Rspamd {
    fn drop(&mut self) {
        self.daemon.terminate();
    }
}

const CONFIGURATION: &str = r#"
.include "$CONFDIR/common.conf"
options {
  pidfile = "$RUNDIR/rspamd.pid";
  .include "$CONFDIR/options.inc"
  .include(try=true; priority=10) "$LOCAL_CONFDIR/override.d/options.inc"
}
logging { type = "console"; level = "notice"; }
worker "normal" {
  bind_socket = "127.0.0.1:@PORT@";
  bind_socket = "@ROOT@/worker.sock mode=0666";
  count = 1;
  .include "$CONFDIR/worker-normal.inc"
}
"#;

impl Rspamd {
    fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (root, port, dns) = (directory.path().display().to_string(), free_port(), Stub::start());
        // Compiled expressions outlive the test: they depend on the package alone.
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("rspamd-db");
        for path in [cache.clone(), directory.path().join("local.d"), directory.path().join("override.d")] {
            std::fs::create_dir_all(path).expect("a directory");
        }
        std::fs::write(directory.path().join("rspamd.conf"), CONFIGURATION.replace("@PORT@", &port.to_string()).replace("@ROOT@", &root))
            .expect("written");
        let options = format!(
            "dns {{ nameserver = [\"127.0.0.1:{}\"]; timeout = 0.2s; retransmits = 1; }} control_socket = \"{root}/control.sock mode=0600\";\n",
            dns.port
        );
        std::fs::write(directory.path().join("override.d/options.inc"), options).expect("written");
        for module in ["rbl", "fuzzy_check", "asn", "mx_check"] {
            std::fs::write(directory.path().join(format!("local.d/{module}.conf")), "enabled = false;\n").expect("written");
        }
        let mut command = Command::new(program(&["/usr/bin/rspamd"], PACKAGES));
        command.args(["-f", "-i", "-c"]).arg(directory.path().join("rspamd.conf"));
        for (name, value) in [("RUNDIR", &root), ("DBDIR", &cache.display().to_string()), ("LOGDIR", &root), ("LOCAL_CONFDIR", &root)] {
            command.arg(format!("--var={name}={value}"));
        }
        let daemon = Daemon::spawn(command, &directory.path().join("log"));
        Self { directory, port, _dns: dns, daemon }
    }

    fn part(&self) -> EnginePart {
        EnginePart {
            protocol: EngineProtocol::Rspamd,
            endpoint: EngineEndpoint::Address(format!("127.0.0.1:{}", self.port)),
            timeout: units::Duration::from_secs(20),
            ..part("rspamd", EngineClass::AntiSpam)
        }
    }

    async fn engines(&self, part: EnginePart) -> Arc<Engines> {
        let engines = Engines::connect(&[part], Options::new(Builtins::default(), None)).expect("a list without mistakes");
        let minimum = ClassMinimum { anti_virus: 0, anti_spam: 1 };
        let warm = engines.warm_up(minimum, START_MAX).await;
        let log = || std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        assert!(warm.covers(minimum), "rspamd did not pass its probe: {:?}\n{}", engines.status(), log());
        engines
    }
}

fn score(opinion: &Opinion) -> SpamScore {
    match &opinion.finding {
        Finding::Spam(score) => *score,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_it_says() {
    let rspamd = Rspamd::start();
    let over_tcp = rspamd.engines(rspamd.part()).await;
    let socket = EngineEndpoint::Socket(rspamd.directory.path().join("worker.sock").display().to_string());
    let over_socket = rspamd.engines(EnginePart { endpoint: socket, ..rspamd.part() }).await;
    for engines in [&over_tcp, &over_socket] {
        let clean = scan(engines, &job(mail("See you on Tuesday at ten."))).await.remove(0);
        assert!(!score(&clean).certain && score(&clean).milli < score(&clean).reject_milli, "{clean:?}");
        assert_eq!(score(&clean).reject_milli, 15_000, "{clean:?}");
        assert!(clean.version.starts_with(|c: char| c.is_ascii_digit()) && !clean.evidence.is_empty(), "{clean:?}");

        let gtube = scan(engines, &job(mail(&probe::gtube()))).await.remove(0);
        assert!(score(&gtube).certain, "{gtube:?}");

        // What it makes of the envelope: the same text from a known client of nowhere scores higher than from none.
        let mut hidden = job(mail("See you on Tuesday at ten."));
        let mut envelope = (*hidden.envelope).clone();
        envelope.client.address_known = false;
        hidden.envelope = Arc::new(envelope);
        let hidden = scan(engines, &hidden).await.remove(0);
        assert!(score(&hidden).milli < score(&clean).milli, "{hidden:?} {clean:?}");

        let mut bounce = job(mail("See you on Tuesday at ten."));
        let mut envelope = (*bounce.envelope).clone();
        envelope.sender = None;
        bounce.envelope = Arc::new(envelope);
        let bounce = scan(engines, &bounce).await.remove(0);
        assert!(!score(&bounce).certain, "{bounce:?}");

        let nothing = scan(engines, &job("")).await.remove(0);
        assert!(is_protocol(&nothing.finding), "an empty body is answered as if it were mail: {nothing:?}");
    }
    let scans = (0..20).map(|n| {
        let engines = over_tcp.clone();
        async move {
            let gtube = n % 3 == 0;
            let text = if gtube { probe::gtube() } else { format!("number {n}") };
            let opinion = scan(&engines, &job_of(mail(&text), n, n)).await.remove(0);
            assert_eq!(score(&opinion).certain, gtube, "{n}: {opinion:?}");
        }
    });
    futures_util::future::join_all(scans).await;
    assert_eq!(status(&over_tcp).deaths, 0, "{:?}", status(&over_tcp));
}
