//! `scan`: verdict and explanation of messages from files, without delivering them.

use std::io::{IsTerminal as _, Read as _};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::json;

use super::{REFUSED, fail};
use crate::cli::{Output, ScanArgs};
use crate::config::{Config, Tenant};
use crate::envelope::{Client, Envelope, Recipient};
use crate::io::control::{Manifests, Source};
use crate::io::engine::{Engines, Options};
use crate::io::gateway::Filters;
use crate::io::{clock, pipeline, run};
use crate::smtp::Address;

/// A larger file is refused.
const FILE_BYTES_MAX: u64 = 256 << 20;
/// Engines may take this long to become ready.
const WARM_WITHIN: std::time::Duration = std::time::Duration::from_secs(30);
/// A scan may take this long.
const SCAN_WITHIN_MS: u64 = 60_000;

struct Scanner {
    filters: Filters,
    config: Config,
    tenant: Arc<Tenant>,
    client: Client,
    sender: Option<Address>,
}

/// Scans every file; 0 whatever the verdicts are, 1 if something could not be read.
pub async fn run(args: ScanArgs) -> ExitCode {
    let files = match expand(&args.files) {
        Ok(files) => files,
        Err(error) => return fail(REFUSED, error),
    };
    let scanner = match Scanner::new(&args).await {
        Ok(scanner) => scanner,
        Err(error) => return fail(REFUSED, format!("{error:#}")),
    };
    let show_progress = files.len() > 1 && std::io::stderr().is_terminal();
    let mut tally = std::collections::BTreeMap::<String, usize>::new();
    let mut unreadable = 0;
    for (index, file) in files.iter().enumerate() {
        if show_progress {
            eprint!("\r{}/{} ", index + 1, files.len());
        }
        match read(file.as_deref()).await {
            Ok(raw) => {
                let action = scanner.scan(file.as_deref(), raw, args.output).await;
                *tally.entry(action).or_default() += 1;
            }
            Err(error) => {
                eprintln!("sekimori-mta: {}: {error}", file.as_deref().map_or_else(|| "standard input".into(), |path| path.display().to_string()));
                unreadable += 1;
            }
        }
    }
    if show_progress {
        eprintln!("\r");
    }
    if files.len() > 1 && args.output == Output::Text {
        let counts: Vec<String> = tally.iter().map(|(action, count)| format!("{action} {count}")).collect();
        println!("{} messages: {}", files.len() - unreadable, counts.join(", "));
    }
    if unreadable == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
}

/// Files as they are, Maildirs and directories as the files in them; `None` is standard input.
fn expand(paths: &[PathBuf]) -> Result<Vec<Option<PathBuf>>, String> {
    if paths.is_empty() {
        return Ok(vec![None]);
    }
    let mut files = vec![];
    for path in paths {
        if !path.is_dir() {
            files.push(Some(path.clone()));
            continue;
        }
        let maildir = path.join("cur").is_dir() && path.join("new").is_dir();
        let dirs = if maildir { vec![path.join("new"), path.join("cur")] } else { vec![path.clone()] };
        for dir in dirs {
            let entries = std::fs::read_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
            let mut found: Vec<PathBuf> = entries.filter_map(Result::ok).map(|entry| entry.path()).filter(|path| path.is_file()).collect();
            found.sort();
            files.extend(found.into_iter().map(Some));
        }
    }
    Ok(files)
}

async fn read(path: Option<&Path>) -> std::io::Result<Bytes> {
    let path = path.map(Path::to_owned);
    let read = tokio::task::spawn_blocking(move || {
        let mut raw = vec![];
        match path {
            Some(path) => std::fs::File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_end(&mut raw)?,
            None => std::io::stdin().take(FILE_BYTES_MAX + 1).read_to_end(&mut raw)?,
        };
        if raw.len() as u64 > FILE_BYTES_MAX {
            return Err(std::io::Error::other(format!("larger than {FILE_BYTES_MAX} bytes")));
        }
        Ok(raw)
    });
    Ok(network_form(read.await.map_err(std::io::Error::other)??))
}

/// Files often have bare LF and an mbox `From ` line; engines are to see what would come over SMTP.
fn network_form(raw: Vec<u8>) -> Bytes {
    let body = if raw.starts_with(b"From ") { raw.iter().position(|b| *b == b'\n').map_or(0, |at| at + 1) } else { 0 };
    let mut out = Vec::with_capacity(raw.len() + raw.len() / 32);
    let mut previous = 0;
    for byte in raw.into_iter().skip(body) {
        if byte == b'\n' && previous != b'\r' {
            out.push(b'\r');
        }
        out.push(byte);
        previous = byte;
    }
    out.into()
}

impl Scanner {
    async fn new(args: &ScanArgs) -> anyhow::Result<Self> {
        let source = Source::new(&args.source.manifests, &args.source.local);
        let rules = args.source.local.rules.clone();
        let (manifests, builtins) =
            tokio::task::spawn_blocking(move || Ok::<_, anyhow::Error>((Manifests::read(&source.dir, &source.options)?, run::builtins(rules)?)))
                .await??;
        for problem in manifests.problems() {
            eprintln!("{problem}");
        }
        let config = Config::compile(&manifests.compiled.snapshot, &[])?;
        let tenant = match &args.tenant {
            Some(domain) => {
                config.tenant_of(domain).ok_or_else(|| anyhow::anyhow!("no tenant serves {domain}; --tenant takes a domain of a TenantDomain"))?
            }
            None => config.tenants().first().ok_or_else(|| anyhow::anyhow!("no tenant in the manifests: a TenantDomain is needed for a policy"))?,
        };
        let tenant = Arc::clone(tenant);
        let sender = match args.from.as_deref() {
            None | Some("" | "<>") => None,
            Some(text) => {
                let text = text.trim_start_matches('<').trim_end_matches('>');
                let (local, domain) = text.rsplit_once('@').ok_or_else(|| anyhow::anyhow!("--from: '{text}' is not an address"))?;
                Some(Address { local: local.to_owned(), domain: domain.to_ascii_lowercase() })
            }
        };
        let resolver = run::resolver(&config.resolvers)?;
        let engines = Engines::connect(&config.fleet.engines, Options::new(builtins, None))?;
        engines.warm_up(config.fleet.startup_minimum_engines, WARM_WITHIN).await;
        let client = Client {
            address: args.client_ip.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
            helo: args.helo.clone(),
            esmtp: true,
            tls: None,
            address_known: args.client_ip.is_some(),
        };
        let filters = Filters { engines, authenticator: ArcSwap::from_pointee(crate::io::assemble::authenticator(&resolver)) };
        Ok(Self { filters, config, tenant, client, sender })
    }

    /// Prints the verdict of one message; its action.
    async fn scan(&self, path: Option<&Path>, raw: Bytes, output: Output) -> String {
        let domain = self.tenant.part.domains.first().map_or("localhost", |domain| domain.trim_start_matches("*."));
        let recipient =
            Recipient { address: Address { local: "postmaster".into(), domain: domain.to_owned() }, tenant: Arc::clone(&self.tenant.key) };
        let envelope = Arc::new(Envelope {
            id: clock::queue_id(),
            received_ms: clock::unix_ms(),
            client: self.client.clone(),
            sender: self.sender.clone(),
            recipients: vec![recipient],
            eight_bit: true,
            smtputf8: true,
        });
        let message = Arc::new(pipeline::parse(raw).await);
        let judged = pipeline::judge(&self.filters, false, &self.config, &envelope, &[0], message, clock::monotonic_ms() + SCAN_WITHIN_MS).await;
        let Some(judgement) = judged.judgements.first() else { return "unknown".into() };
        let name = path.map_or_else(|| "-".into(), |path| path.display().to_string());
        let action = judgement.disposition.action.to_string();
        match output {
            Output::Json => {
                let record = json!({
                    "file": name, "tenant": self.tenant.key, "size": judged.message.raw.len(), "action": action, "reply": judgement.disposition.reply,
                    "verdict": judgement.verdict, "authentication": judged.authentication,
                    "timingsMicroseconds": { "scan": judged.timings.scan_us, "verdict": judged.timings.verdict_us },
                });
                println!("{record}");
            }
            Output::Text => {
                println!("{name}: {}", judgement.verdict.explanation());
                println!("  authentication: {}", judged.authentication.summary());
            }
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_become_what_smtp_would_have_brought() {
        for (file, expected) in
            [("a\nb\n", "a\r\nb\r\n"), ("a\r\nb\r\n", "a\r\nb\r\n"), ("From x@y Wed Nov 25\nSubject: s\n\nb", "Subject: s\r\n\r\nb"), ("", "")]
        {
            assert_eq!(network_form(file.into()), expected.as_bytes(), "{file:?}");
        }
    }
}
