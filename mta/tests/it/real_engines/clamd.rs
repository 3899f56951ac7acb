//! The real clamd, with a signature database of three lines of our own.

use std::io::Write as _;

use md5_of_test_files as md5;
use sekimori_mta::engine::probe;
use sekimori_mta::io::engine::Builtins;
use sekimori_mta::verdict::Unscannable;
use tempfile::TempDir;
use zip::write::SimpleFileOptions;

use super::*;

const PACKAGES: &str = "clamav-daemon clamav-testfiles";
const STREAM_MAX: usize = 2 << 20;

/// Digests of the two files that the database knows, as sigtool prints them.
mod md5_of_test_files {
    pub(super) const EICAR: &str = "44d88612fea8a8f36de82e1278abb02f:68";
    pub(super) const CLAM_EXE: &str = "aa15bcf478d165efd2065190eb473bcb:544";
}

struct Clamd {
    directory: TempDir,
    port: u16,
    daemon: Option<Daemon>,
}

impl Clamd {
    fn start() -> Self {
        Self::with(&format!("StreamMaxLength {STREAM_MAX}\nMaxRecursion 8\n"))
    }

    fn with(limits: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let (database, port) = (directory.path().join("db"), free_port());
        std::fs::create_dir(&database).expect("a new directory");
        std::fs::write(database.join("t.hdb"), format!("{}:Test.Eicar\n{}:Test.ClamExe\n", md5::EICAR, md5::CLAM_EXE)).expect("written");
        let hex = data_encoding::HEXLOWER.encode(b"EICAR-STANDARD-ANTIVIRUS-TEST-FILE");
        let phish = data_encoding::HEXLOWER.encode(b"your account is suspended for tests");
        std::fs::write(database.join("t.ndb"), format!("Test.Eicar.Ndb:0:*:{hex}\nSanesecurity.Phishing.Test:0:*:{phish}\n")).expect("written");
        let root = directory.path().display();
        let configuration = format!(
            "Foreground yes\nLocalSocket {root}/clamd.sock\nTCPSocket {port}\nTCPAddr 127.0.0.1\nDatabaseDirectory {root}/db\n{limits}MaxScanTime 20000\nAlertExceedsMax yes\nAlertEncrypted yes\nMaxThreads 4\n"
        );
        std::fs::write(directory.path().join("clamd.conf"), configuration).expect("written");
        let mut clamd = Self { directory, port, daemon: None };
        clamd.restart();
        clamd
    }

    fn restart(&mut self) {
        self.daemon = None;
        let mut command = Command::new(program(&["/usr/sbin/clamd"], PACKAGES));
        command.arg("-c").arg(self.directory.path().join("clamd.conf"));
        self.daemon = Some(Daemon::spawn(command, &self.directory.path().join("log")));
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    fn part(&self) -> EnginePart {
        EnginePart {
            protocol: EngineProtocol::Clamd,
            endpoint: EngineEndpoint::Address(format!("127.0.0.1:{}", self.port)),
            timeout: units::Duration::from_secs(20),
            ..part("clamav", EngineClass::AntiVirus)
        }
    }

    async fn engines(&self, part: EnginePart) -> Arc<Engines> {
        let engines = Engines::connect(&[part], Options::new(Builtins::default(), None)).expect("a list without mistakes");
        let minimum = ClassMinimum { anti_virus: 1, anti_spam: 0 };
        let warm = engines.warm_up(minimum, Duration::from_secs(30)).await;
        assert!(warm.covers(minimum), "clamd did not pass its probe: {:?}\n{}", engines.status(), self.log());
        engines
    }
}

fn zipped(name: &str, content: &[u8]) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(vec![]));
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Deflated);
    archive.start_file(name, options).expect("a file in an archive");
    archive.write_all(content).expect("in memory");
    archive.finish().expect("in memory").into_inner()
}

/// EICAR in a zip file with a password (`zip -P`), which this crate's zip does not write.
const ENCRYPTED_ZIP: &str = "UEsDBAoACQAAALVBeV08z1FoUAAAAEQAAAAJABwAZWljYXIuY29tVVQJAAO2mAZrtpgGa3V4CwABBAAAAAAEAAAAAN+oOeb8vtmxMIMexc4si7HH4f3Hg35SQcd9dQto2f4dbP6Z0M/rBww++FgwwoZ/bSR82HfUMsEOmUWW0s8+QzbxfIsReba4MQn0fJHT10XBUEsHCDzPUWhQAAAARAAAAFBLAQIeAwoACQAAALVBeV08z1FoUAAAAEQAAAAJABgAAAAAAAEAAACkgQAAAABlaWNhci5jb21VVAUAA7aYBmt1eAsAAQQAAAAABAAAAABQSwUGAAAAAAEAAQBPAAAAowAAAAAA";

#[tokio::test]
async fn what_it_finds() {
    let clamd = Clamd::start();
    let over_tcp = clamd.engines(clamd.part()).await;
    let socket = EngineEndpoint::Socket(clamd.directory.path().join("clamd.sock").display().to_string());
    let over_socket = clamd.engines(EnginePart { endpoint: socket, ..clamd.part() }).await;
    let eicar = probe::eicar();
    let encrypted = data_encoding::BASE64.decode(ENCRYPTED_ZIP.as_bytes()).expect("base64");
    let bomb = (0..12).fold(b"deep".to_vec(), |inner, depth| zipped(&format!("{depth}.zip"), &inner));
    let infected = |name: &str| Finding::Infected(format!("{name}.UNOFFICIAL"));
    let cases = [
        ("clean", mail("hello").into_bytes(), Finding::Clean),
        ("EICAR in the text", mail(&eicar).into_bytes(), infected("Test.Eicar.Ndb")),
        ("EICAR attached", mail_with("e.com", eicar.as_bytes()).into_bytes(), infected("Test.Eicar.Ndb")),
        ("EICAR zipped", mail_with("e.zip", &zipped("e.com", eicar.as_bytes())).into_bytes(), infected("Test.Eicar.Ndb")),
        ("encrypted", mail_with("e.zip", &encrypted).into_bytes(), Finding::Unscannable(Unscannable::Encrypted)),
        ("nested too deep", mail_with("n.zip", &bomb).into_bytes(), Finding::Unscannable(Unscannable::LimitsExceeded)),
        ("phishing", mail("your account is suspended for tests").into_bytes(), Finding::Clean),
        ("at StreamMaxLength", vec![b'x'; STREAM_MAX], Finding::Clean),
        ("over StreamMaxLength", vec![b'x'; STREAM_MAX + 1], Finding::Unscannable(Unscannable::TooLarge)),
        ("far over StreamMaxLength", vec![b'x'; STREAM_MAX * 8], Finding::Unscannable(Unscannable::TooLarge)),
        ("clean again", mail("hello again").into_bytes(), Finding::Clean),
    ];
    for (what, raw, expected) in cases {
        for engines in [&over_tcp, &over_socket] {
            let opinions = scan(engines, &job(raw.clone())).await;
            assert_eq!(opinions[0].finding, expected, "{what}: {opinions:?}\n{}", clamd.log());
            assert_eq!(opinions[0].evidence.iter().any(|e| e.decibans == 15), what == "phishing", "{what}: {opinions:?}");
            assert!(opinions[0].version.starts_with(|c: char| c.is_ascii_digit()), "{opinions:?}");
        }
    }
    assert_eq!(status(&over_tcp).failures + status(&over_tcp).deaths, 0, "{:?}", status(&over_tcp));
}

#[tokio::test]
async fn the_same_harmless_program_in_every_wrapping() {
    let mut files: Vec<PathBuf> = std::fs::read_dir("/usr/share/clamav-testfiles")
        .unwrap_or_else(|e| {
            panic!("this test needs /usr/share/clamav-testfiles ({e}); install it: apt-get install -y --no-install-recommends {PACKAGES}")
        })
        .map(|entry| entry.expect("an entry").path())
        .collect();
    files.sort();
    assert!(files.len() >= 40, "{files:?}");
    let clamd = Clamd::with("StreamMaxLength 30M\n");
    let engines = clamd.engines(clamd.part()).await;
    // All at once, over several connections: no answer may end at another message.
    let scans = files.iter().enumerate().map(|(n, file)| {
        let engines = engines.clone();
        async move {
            let content = std::fs::read(file).expect("readable");
            let name = file.file_name().expect("a file").to_string_lossy().into_owned();
            let (bad, good) = (job(mail_with(&name, &content)), job(mail_with(&name, format!("clean {n}").as_bytes())));
            let (bad, good) = futures_util::future::join(scan(&engines, &bad), scan(&engines, &good)).await;
            (name, bad[0].finding.clone(), good[0].finding.clone())
        }
    });
    // Made to run into a limit (its name says so): what was not looked at is never clean.
    let right = |name: &str, finding: &Finding| match finding {
        Finding::Infected(virus) => virus.starts_with("Test.ClamExe"),
        Finding::Unscannable(why) => (name, why) == ("clam_cache_emax.tgz", &Unscannable::LimitsExceeded),
        _ => false,
    };
    let mut missed = futures_util::future::join_all(scans).await;
    missed.retain(|(name, bad, good)| !right(name, bad) || *good != Finding::Clean);
    assert!(missed.is_empty(), "{missed:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_in_the_middle_and_back_again() {
    let mut clamd = Clamd::start();
    let mut part = clamd.part();
    part.breaker.open_for = units::Duration::from_millis(500);
    part.timeout = units::Duration::from_secs(5);
    let engines = clamd.engines(part).await;
    // The stream of a large message takes a while, so some are in the middle of it.
    let scans: Vec<_> = (0..8_u8)
        .map(|n| {
            let engines = engines.clone();
            tokio::spawn(async move {
                let mut findings = vec![];
                for round in 0..50_u8 {
                    let mut raw = vec![b'x'; STREAM_MAX - 100];
                    raw.extend_from_slice(&[n, round]);
                    findings.push(engines.scan_all(&job_of(raw, n, n), clock::monotonic_ms() + 5000).await.remove(0).finding);
                }
                findings
            })
        })
        .collect();
    until("some are scanned", || status(&engines).scans > 8 && status(&engines).in_flight > 2).await;
    clamd.daemon = None;
    let mut findings = vec![];
    for scan in scans {
        findings.extend(scan.await.expect("no panic"));
    }
    let failed = findings.iter().filter(|finding| matches!(finding, Finding::Failed(_))).count();
    assert!(findings.contains(&Finding::Clean) && failed > 0, "{failed} of {}", findings.len());
    assert!(findings.iter().all(|f| matches!(f, Finding::Clean | Finding::Failed(_))), "nobody is convicted of an outage: {findings:?}");
    until("the breaker opens", || status(&engines).breaker == "open").await;
    assert_eq!(find(&engines, &job(mail(&probe::eicar()))).await, Finding::Failed(Failure::BreakerOpen));
    clamd.restart();
    warm(&engines, 1, 0).await;
    assert_eq!(find(&engines, &job(mail(&probe::eicar()))).await, Finding::Infected("Test.Eicar.Ndb.UNOFFICIAL".into()));
    assert_eq!(find(&engines, &job(mail("hello"))).await, Finding::Clean);
}

#[tokio::test]
async fn without_signatures_it_is_never_called() {
    let clamd = Clamd::start();
    // A database that loads and finds nothing of what the probe brings: a load test would pass.
    std::fs::remove_file(clamd.directory.path().join("db/t.ndb")).expect("removed");
    std::fs::write(clamd.directory.path().join("db/t.hdb"), format!("{}:Test.ClamExe\n", md5::CLAM_EXE)).expect("written");
    let mut clamd = clamd;
    clamd.restart();
    let engines = Engines::connect(&[clamd.part()], Options::new(Builtins::default(), None)).expect("a list without mistakes");
    until("a probe that clamd answered", || {
        status(&engines).last_probe.is_some_and(|probe| probe.why.as_deref() == Some("it answered Clean to the known bad sample"))
    })
    .await;
    assert_eq!(find(&engines, &job(mail("hello"))).await, Finding::Failed(Failure::BreakerOpen));
    assert_eq!(engines.warm().anti_virus, 0);
}
