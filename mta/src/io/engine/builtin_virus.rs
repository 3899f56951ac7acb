//! The anti-virus engine inside the gateway: yara-x rules over every decoded part and archive member, and the signs of `content`.
//!
//! It knows little malware by itself (EICAR, and what a rules directory adds). What it is for: nothing inside an archive goes unseen, encrypted and unreadable content is said to
//! be so, and a gateway without any other engine is not blind.
//!
//! Making a scanner is expensive and borrows the rules, so a few threads of their own keep one each and take messages from a bounded channel. The message stays in its `Arc`.

mod pool;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use yara_x::{ScanError, Scanner};

use self::pool::{Deadline, Pool};
use super::{Answer, BoxFuture, Engine, Job};
use crate::content::rules::{self, FILES_MAX, Meaning, RuleError, SOURCE_BYTES_MAX, Source};
use crate::content::{self, Item, Limits, Visitor};
use crate::message::Message;
use crate::verdict::{Evidence, Failure, Finding, Unscannable};

/// How the engine is set up.
#[derive(Clone, Debug)]
pub struct BuiltinVirusOptions {
    /// A directory of `*.yar` and `*.yara` files besides the built-in rules; default: none.
    pub rules_dir: Option<PathBuf>,
    /// Scanning threads. Default 2.
    pub threads: usize,
    /// Bounds of looking inside archives.
    pub limits: Limits,
    /// Time for one message, milliseconds; beyond it the scan ends as `LimitsExceeded`. Default 10,000.
    pub scan_ms_max: u64,
}

impl Default for BuiltinVirusOptions {
    fn default() -> Self {
        Self { rules_dir: None, threads: 2, limits: Limits::default(), scan_ms_max: 10_000 }
    }
}

/// The engine.
#[derive(Debug)]
pub struct BuiltinVirus {
    version: Arc<str>,
    pool: Pool,
}

impl BuiltinVirus {
    /// Reads and compiles the rules and starts the threads. To be called outside of async tasks: it reads files and takes tens of milliseconds.
    pub fn start(options: &BuiltinVirusOptions) -> Result<Self, RuleError> {
        let sources = options.rules_dir.as_deref().map_or_else(|| Ok(vec![]), read_rules)?;
        let rules = Arc::new(rules::compile(&sources)?);
        let version: Arc<str> = rules.version.as_str().into();
        let limits = options.limits;
        let body: Arc<pool::Body> = Arc::new(move |work| {
            let mut scanner = Scanner::new(&rules.rules);
            // No rule needs to know more than a few places of a hit, and a pattern that hits everywhere must not eat memory.
            scanner.max_matches_per_pattern(1_000);
            work(&mut |message, deadline| scan(&mut scanner, message, &limits, deadline));
        });
        Ok(Self { version, pool: Pool::start(options.threads.max(1), options.scan_ms_max.max(1), pool::GRACE_MS, body) })
    }
}

impl Engine for BuiltinVirus {
    fn scan<'a>(&'a self, job: &'a Job) -> BoxFuture<'a, Result<Answer, Failure>> {
        Box::pin(async move {
            let mut answer = self.pool.scan(Arc::clone(&job.message)).await?;
            answer.version = Some(Arc::clone(&self.version));
            Ok(answer)
        })
    }

    fn version(&self) -> BoxFuture<'_, Result<Arc<str>, Failure>> {
        Box::pin(async { Ok(Arc::clone(&self.version)) })
    }
}

/// The `*.yar` and `*.yara` files of a directory, by name.
fn read_rules(directory: &Path) -> Result<Vec<Source>, RuleError> {
    let unreadable = |path: &Path, error: &std::io::Error| RuleError::Unreadable { path: path.display().to_string(), message: error.to_string() };
    let mut paths = vec![];
    for entry in std::fs::read_dir(directory).map_err(|error| unreadable(directory, &error))? {
        let path = entry.map_err(|error| unreadable(directory, &error))?.path();
        if path.extension().is_some_and(|extension| extension == "yar" || extension == "yara") {
            paths.push(path);
        }
        if paths.len() > FILES_MAX {
            return Err(RuleError::TooManyFiles);
        }
    }
    paths.sort();
    let mut sources = vec![];
    let mut room = SOURCE_BYTES_MAX as u64;
    for path in paths {
        let file = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
        let length = std::fs::metadata(&path).map_err(|error| unreadable(&path, &error))?.len();
        room = room.checked_sub(length).ok_or_else(|| RuleError::TooLarge { file: file.clone() })?;
        let text = std::fs::read_to_string(&path).map_err(|error| unreadable(&path, &error))?;
        sources.push(Source { file, text });
    }
    Ok(sources)
}

/// Looks at each stream with the rules.
struct Look<'s, 'r, 'd> {
    scanner: &'s mut Scanner<'r>,
    deadline: &'d Deadline,
    infected: Option<String>,
    evidence: Vec<Evidence>,
    out_of_time: bool,
}

impl Look<'_, '_, '_> {
    fn rules(&mut self, content: &[u8], heuristics: bool) -> ControlFlow<()> {
        self.scanner.set_timeout(Duration::from_millis(self.deadline.left_ms().max(1)));
        match self.scanner.scan(content) {
            Ok(results) => {
                for rule in results.matching_rules() {
                    match rules::meaning(&rule) {
                        Meaning::Malware => {
                            self.infected = Some(rule.identifier().to_owned());
                            return ControlFlow::Break(());
                        }
                        Meaning::Heuristic(decibans) if heuristics => {
                            let evidence = Evidence { name: rule.identifier().to_owned(), decibans };
                            if self.evidence.len() < 64 && !self.evidence.contains(&evidence) {
                                self.evidence.push(evidence);
                            }
                        }
                        Meaning::Heuristic(_) => {}
                    }
                }
                ControlFlow::Continue(())
            }
            Err(ScanError::Timeout) => {
                self.out_of_time = true;
                ControlFlow::Break(())
            }
            Err(_) => {
                // In memory and without modules there is nothing else that can fail; what was not scanned is not clean.
                self.out_of_time = true;
                ControlFlow::Continue(())
            }
        }
    }
}

impl Visitor for Look<'_, '_, '_> {
    fn item(&mut self, item: &Item<'_>) -> ControlFlow<()> {
        self.rules(item.content, true)
    }

    fn proceed(&mut self) -> bool {
        !self.deadline.is_over()
    }
}

/// One message. The raw bytes first, so that no broken MIME hides what stands there in the clear; heuristics are for decoded streams, where their offsets mean something.
fn scan(scanner: &mut Scanner<'_>, message: &Message, limits: &Limits, deadline: &Deadline) -> Answer {
    let mut look = Look { scanner, deadline, infected: None, evidence: vec![], out_of_time: false };
    let mut unscannable = None;
    if look.rules(&message.raw, false).is_continue() {
        let inventory = content::walk(message, limits, &mut look);
        unscannable = inventory.unscannable();
        look.evidence.extend(inventory.evidence);
    }
    let unscannable = if look.out_of_time { Some(Unscannable::LimitsExceeded) } else { unscannable };
    let finding = match (look.infected, unscannable) {
        (Some(name), _) => Finding::Infected(name),
        (None, Some(why)) => Finding::Unscannable(why),
        (None, None) => Finding::Clean,
    };
    Answer { finding, evidence: look.evidence, version: None }
}

#[cfg(test)]
mod tests;
