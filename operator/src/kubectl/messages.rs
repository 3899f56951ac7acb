//! Queues and quarantines of many gateways as one: the calls of `sekimori-mta` in each pod, its answers, and what is shown of them.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::cli::Selection;
use super::status::counted;
use super::table::{Cell, Paint, Tone, age, harmless, shortened, table};
use super::{EXIT_OK, EXIT_PARTIAL, Said};

/// The gateway's program, in the PATH of its container.
const PROGRAM: &str = "sekimori-mta";
/// Most ids of one call: they travel in a URL.
pub const IDS_MAX: usize = 500;
/// Most messages that are kept for one list.
pub const MESSAGES_MAX: usize = 100_000;
/// Foreign texts are cut after so many characters in tables.
const TEXT_CHARS_MAX: usize = 80;
/// Length of a queue id.
const ID_LENGTH: usize = 26;

/// Which store is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    /// The queue.
    Queue,
    /// The quarantine.
    Quarantine,
    /// The dead letters.
    DeadLetters,
}

/// A verb of `sekimori-mta` that lists, shows or changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// `list`.
    List(Vec<String>),
    /// `search TEXT`.
    Search(Vec<String>, String),
    /// `show ID`.
    Show {
        /// Queue id.
        id: String,
        /// The message's bytes.
        raw: bool,
    },
    /// `retry`, `hold`, `release`, `drop` or `delete`.
    Change(&'static str, Vec<String>),
}

impl Call {
    /// The command that runs in the container.
    pub fn command(&self, store: Store) -> Vec<String> {
        let noun = if store == Store::Queue { "queue" } else { "quarantine" };
        let mut command: Vec<String> = [PROGRAM, noun].map(str::to_owned).into();
        let mut say = |words: &[&str]| command.extend(words.iter().map(|word| (*word).to_owned()));
        let json = ["--output", "json"];
        let (words, last): (&[String], Vec<String>) = match self {
            Self::List(words) => {
                say(&["list"]);
                say(&json);
                (words, vec![])
            }
            Self::Search(words, text) => {
                say(&["search"]);
                say(&json);
                (words, vec!["--".to_owned(), text.clone()])
            }
            Self::Show { id, raw } => {
                say(&["show"]);
                say(if *raw { &["--raw"] } else { &json });
                (&[], vec![id.clone()])
            }
            Self::Change(verb, words) => {
                say(&[verb]);
                say(&json);
                (words, vec![])
            }
        };
        if store == Store::DeadLetters {
            command.push("--dead-letters".to_owned());
        }
        command.extend(words.iter().cloned());
        command.extend(last);
        command
    }
}

/// The selection as words of a command line. Values are bound to their option, so that none can be taken for another one.
pub fn words(selection: &Selection, ids: &[String]) -> Vec<String> {
    let mut words: Vec<String> = ids.to_vec();
    if selection.all {
        words.push("--all".to_owned());
    }
    words.extend(selection.tenant.iter().map(|tenant| format!("--tenant={tenant}")));
    words.extend(selection.route.iter().map(|route| format!("--route={route}")));
    words.extend(selection.older_than.iter().map(|age| format!("--older-than={age}")));
    words
}

/// What is wrong with ids, before anybody is asked.
///
/// # Errors
/// The first id that is none, or too many.
pub fn check_ids(ids: &[String]) -> Result<(), String> {
    if ids.len() > IDS_MAX {
        return Err(format!(
            "{} ids are more than {IDS_MAX}: give them in several calls, or select with --tenant, --route or --older-than",
            ids.len()
        ));
    }
    let wrong = |id: &&String| {
        id.len() != ID_LENGTH || !id.bytes().all(|byte| byte.is_ascii_digit() || (byte.is_ascii_uppercase() && !b"ILOU".contains(&byte)))
    };
    ids.iter().find(wrong).map_or(Ok(()), |id| {
        Err(format!(
            "'{}' is no queue id: it has {ID_LENGTH} characters, digits and capital letters, as in the answer to the message and in the logs",
            harmless(id)
        ))
    })
}

/// What a change must say before it is made.
///
/// # Errors
/// What to add.
pub fn check_change(verb: &str, selection: &Selection, dry_run: bool, removal: Option<bool>) -> Result<(), String> {
    if selection.is_empty() {
        return Err("say which messages: IDs, --all, --tenant, --route or --older-than".to_owned());
    }
    if removal == Some(false) && selection.ids.is_empty() && !dry_run {
        return Err(format!("{verb} without ids takes away whatever is selected, in every gateway: see it with --dry-run, then say --yes"));
    }
    check_ids(&selection.ids)
}

/// What a command in a container did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Output {
    /// Standard output.
    pub stdout: Vec<u8>,
    /// Standard error.
    pub stderr: String,
    /// Exit code.
    pub code: i32,
}

/// The answer of one pod, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The pod.
    pub pod: String,
    /// What came.
    pub outcome: Result<Output, String>,
}

/// A message in the queue, as `sekimori-mta queue list --output json` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Queued {
    /// Queue id.
    pub id: String,
    /// Part of the message.
    #[serde(default)]
    pub sub: u32,
    /// Namespace and name of the tenant.
    pub tenant: String,
    /// `deliver`, `rescan`, `quarantine` or `deadLetter`.
    pub purpose: String,
    /// `runnable`, `waiting`, `scheduled`, `inFlight` or `held`.
    pub state: String,
    /// Recipients that are not finished, as indexes into the envelope.
    pub recipients: Vec<u32>,
    /// Bytes of the message.
    pub size_bytes: u64,
    /// When it came, milliseconds since 1970.
    pub received_ms: u64,
    /// When it is due, milliseconds since 1970.
    pub due_ms: Option<u64>,
    /// Route of the last attempt.
    pub route: Option<String>,
    /// Why it is still here.
    pub error: Option<String>,
}

/// A kept message, as `sekimori-mta quarantine list --output json` says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kept {
    /// Its name in the store.
    pub key: String,
    /// Queue id.
    pub id: String,
    /// Quarantined or dead letter.
    pub kind: Value,
    /// Namespace and name of the tenant.
    pub tenant: String,
    /// Why it is kept.
    pub reason: String,
    /// MAIL FROM; empty: the null sender.
    pub sender: String,
    /// Recipients' addresses.
    pub recipients: Vec<String>,
    /// First address of From.
    pub from: String,
    /// Subject.
    pub subject: String,
    /// When it was stored, milliseconds since 1970.
    pub stored_ms: u64,
    /// Bytes of the message.
    pub bytes: u64,
}

/// What both have.
pub trait Message: DeserializeOwned + Serialize {
    /// Queue id.
    fn id(&self) -> &str;
    /// When it came here, milliseconds since 1970.
    fn at_ms(&self) -> u64;
    /// The heads of its table.
    const HEAD: &'static [&'static str];
    /// What is said of none.
    const EMPTY: &'static str;
    /// Its line of the table; `now_ms` is its own gateway's clock.
    fn cells(&self, pod: &str, now_ms: u64) -> Vec<Cell>;
}

impl Message for Queued {
    const HEAD: &'static [&'static str] = &["ID", "STATE", "PURPOSE", "TENANT", "RCPTS", "BYTES", "AGE", "NEXT", "ROUTE", "POD", "WHY"];
    const EMPTY: &'static str = "the queues are empty";

    fn id(&self) -> &str {
        &self.id
    }

    fn at_ms(&self) -> u64 {
        self.received_ms
    }

    fn cells(&self, pod: &str, now_ms: u64) -> Vec<Cell> {
        let until = |due_ms: u64| age(due_ms.saturating_sub(now_ms) / 1000);
        let state = match self.state.as_str() {
            "held" | "waiting" => Cell::toned(&self.state, Tone::Warning),
            state => state.into(),
        };
        vec![
            Cell::from(&self.id),
            state,
            Cell::from(&self.purpose),
            Cell::from(&self.tenant),
            self.recipients.len().to_string().into(),
            self.size_bytes.to_string().into(),
            age(now_ms.saturating_sub(self.received_ms) / 1000).into(),
            self.due_ms.map_or_else(|| "-".to_owned(), until).into(),
            self.route.as_deref().unwrap_or("-").into(),
            pod.into(),
            shortened(self.error.as_deref().unwrap_or("-"), TEXT_CHARS_MAX).into(),
        ]
    }
}

impl Message for Kept {
    const HEAD: &'static [&'static str] = &["ID", "TENANT", "SENDER", "RCPTS", "BYTES", "AGE", "POD", "SUBJECT", "REASON"];
    const EMPTY: &'static str = "nothing is kept here";

    fn id(&self) -> &str {
        &self.id
    }

    fn at_ms(&self) -> u64 {
        self.stored_ms
    }

    fn cells(&self, pod: &str, now_ms: u64) -> Vec<Cell> {
        let sender = if self.sender.is_empty() { "<>" } else { &self.sender };
        vec![
            Cell::from(&self.id),
            Cell::from(&self.tenant),
            shortened(sender, TEXT_CHARS_MAX).into(),
            self.recipients.len().to_string().into(),
            self.bytes.to_string().into(),
            age(now_ms.saturating_sub(self.stored_ms) / 1000).into(),
            pod.into(),
            shortened(&self.subject, TEXT_CHARS_MAX).into(),
            shortened(&self.reason, TEXT_CHARS_MAX).into(),
        ]
    }
}

#[derive(Deserialize)]
struct ListAnswer<M> {
    messages: Vec<M>,
    now: u64,
    #[serde(default = "complete")]
    complete: bool,
}

const fn complete() -> bool {
    true
}

/// A message and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placed<M> {
    /// The pod.
    pub pod: String,
    /// The message.
    #[serde(flatten)]
    pub message: M,
}

/// A gateway that answered a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Answered {
    /// The pod.
    pub pod: String,
    /// Its clock, milliseconds since 1970.
    pub now: u64,
    /// How many messages it named.
    pub messages: usize,
}

/// A gateway that was not reached.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Unreachable {
    /// The pod.
    pub pod: String,
    /// Why.
    pub error: String,
}

/// The lists of all gateways as one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Merged<M> {
    /// The messages, the oldest first.
    pub messages: Vec<Placed<M>>,
    /// Whether nothing was cut off.
    pub complete: bool,
    /// Who answered.
    pub gateways: Vec<Answered>,
    /// Who did not.
    pub unreachable: Vec<Unreachable>,
    /// Ids that were asked for and that no gateway has.
    pub missing: Vec<String>,
}

/// Reads the answer of one gateway.
fn read<T: DeserializeOwned>(reply: &Reply) -> Result<T, String> {
    let output = reply.outcome.as_ref().map_err(Clone::clone)?;
    match serde_json::from_slice(&output.stdout) {
        Ok(answer) => Ok(answer),
        Err(_) if output.code != 0 => Err(complaint(output)),
        Err(error) => Err(format!("its answer cannot be read ({error}): the gateway is of another release than this plugin")),
    }
}

/// What a failed command said.
pub fn complaint(output: &Output) -> String {
    let said = output.stderr.lines().map(str::trim).rfind(|line| !line.is_empty()).unwrap_or_default();
    let said = said.strip_prefix("sekimori-mta: ").unwrap_or(said);
    if said.is_empty() { format!("{PROGRAM} ended with {}", output.code) } else { harmless(said) }
}

/// One list out of many. `wanted`: the ids that were asked for.
pub fn merge<M: Message>(replies: &[Reply], wanted: &[String]) -> Merged<M> {
    let mut merged = Merged { messages: vec![], complete: true, gateways: vec![], unreachable: vec![], missing: vec![] };
    for reply in replies {
        match read::<ListAnswer<M>>(reply) {
            Ok(answer) => {
                merged.complete &= answer.complete;
                merged.gateways.push(Answered { pod: reply.pod.clone(), now: answer.now, messages: answer.messages.len() });
                merged.messages.extend(answer.messages.into_iter().map(|message| Placed { pod: reply.pod.clone(), message }));
            }
            Err(error) => merged.unreachable.push(Unreachable { pod: reply.pod.clone(), error }),
        }
    }
    merged.messages.sort_by(|a, b| (a.message.at_ms(), a.message.id()).cmp(&(b.message.at_ms(), b.message.id())));
    merged.complete &= merged.messages.len() <= MESSAGES_MAX;
    merged.messages.truncate(MESSAGES_MAX);
    merged.missing = wanted.iter().filter(|id| !merged.messages.iter().any(|placed| placed.message.id() == id.as_str())).cloned().collect();
    merged
}

impl<M: Message> Merged<M> {
    /// Which pod has which of the ids.
    pub fn places(&self) -> BTreeMap<String, Vec<String>> {
        let mut places: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for placed in &self.messages {
            let ids = places.entry(placed.pod.clone()).or_default();
            if !ids.iter().any(|id| id == placed.message.id()) {
                ids.push(placed.message.id().to_owned());
            }
        }
        places
    }

    /// The answer of a list.
    pub fn said(&self, json: bool, paint: Paint) -> Said {
        let code = if self.unreachable.is_empty() && self.missing.is_empty() { EXIT_OK } else { EXIT_PARTIAL };
        if json {
            return Said::json(&serde_json::json!(self), code);
        }
        let now = |pod: &str| self.gateways.iter().find(|answered| answered.pod == pod).map_or(0, |answered| answered.now);
        let rows: Vec<Vec<Cell>> = self.messages.iter().map(|placed| placed.message.cells(&placed.pod, now(&placed.pod))).collect();
        let mut text = if rows.is_empty() { format!("{}\n", M::EMPTY) } else { table(paint, M::HEAD, &rows) };
        if !self.complete {
            text.push_str("there are more: narrow the selection with --tenant, --route or --older-than\n");
        }
        Said { text, errors: shortfall(&self.unreachable, &self.missing), code }
    }
}

/// What was not done, for people.
pub fn shortfall(unreachable: &[Unreachable], missing: &[String]) -> String {
    let mut text = String::new();
    for Unreachable { pod, error } in unreachable {
        writeln!(text, "{} was not reached, and what it holds is left out: {}", harmless(pod), harmless(error)).expect("a string takes it");
    }
    for id in missing {
        let certain = if unreachable.is_empty() { "no gateway has it" } else { "no gateway that was reached has it" };
        writeln!(text, "{id}: {certain} (it was delivered, dropped or expired, or belongs to another fleet or store)").expect("a string takes it");
    }
    text
}

/// The answer of one gateway to a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ChangeAnswer {
    /// Messages that were changed, or would be.
    pub count: u64,
    /// Messages that were being attempted and were left alone.
    #[serde(default)]
    pub in_flight: u64,
    /// The messages.
    #[serde(default)]
    pub ids: Vec<String>,
    /// Messages that could not be changed.
    #[serde(default)]
    pub failed: Vec<FailedChange>,
}

/// A message that could not be changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailedChange {
    /// Queue id.
    pub id: String,
    /// Why.
    pub error: String,
}

#[derive(Serialize)]
struct ChangedGateway {
    pod: String,
    #[serde(flatten)]
    answer: ChangeAnswer,
}

/// The answers to a change as one. `unreachable` and `missing` are of the search that came before it.
pub fn changed(replies: &[Reply], dry_run: bool, mut unreachable: Vec<Unreachable>, missing: &[String], json: bool) -> Said {
    let mut gateways = vec![];
    for reply in replies {
        match read::<ChangeAnswer>(reply) {
            Ok(answer) => gateways.push(ChangedGateway { pod: reply.pod.clone(), answer }),
            Err(error) => unreachable.push(Unreachable { pod: reply.pod.clone(), error }),
        }
    }
    let (count, in_flight): (u64, u64) =
        gateways.iter().fold((0, 0), |(count, in_flight), gateway| (count + gateway.answer.count, in_flight + gateway.answer.in_flight));
    let failed = gateways.iter().any(|gateway| !gateway.answer.failed.is_empty());
    let code = if unreachable.is_empty() && missing.is_empty() && !failed { EXIT_OK } else { EXIT_PARTIAL };
    if json {
        let value = serde_json::json!({
            "count": count, "inFlight": in_flight, "dryRun": dry_run, "gateways": gateways, "unreachable": unreachable, "missing": missing,
        });
        return Said::json(&value, code);
    }
    let mut text = format!("{} {}\n", counted(count, "message"), if dry_run { "would be changed" } else { "changed" });
    let mut say = |line: String| writeln!(text, "{line}").expect("a string takes it");
    for ChangedGateway { pod, answer } in gateways.iter().filter(|gateway| gateway.answer.count > 0 && gateways.len() > 1) {
        say(format!("  {}: {}", harmless(pod), answer.count));
    }
    if in_flight > 0 {
        say(format!("{in_flight} are being attempted right now and were left alone"));
    }
    for failed in gateways.iter().flat_map(|gateway| &gateway.answer.failed) {
        say(format!("{}: {}", harmless(&failed.id), harmless(&failed.error)));
    }
    Said { text, errors: shortfall(&unreachable, missing), code }
}

/// The answer to `show`.
pub fn shown(reply: &Reply, json: bool) -> Said {
    match read::<Value>(reply) {
        Err(error) => Said { text: String::new(), errors: format!("{}: {error}\n", harmless(&reply.pod)), code: EXIT_PARTIAL },
        Ok(message) if json => Said::json(&serde_json::json!({ "pod": reply.pod, "message": message }), EXIT_OK),
        Ok(message) => {
            let pretty = serde_json::to_string_pretty(&message).unwrap_or_default();
            let lines: Vec<String> = pretty.lines().map(harmless).collect();
            Said::text(format!("gateway {}\n{}\n", harmless(&reply.pod), lines.join("\n")))
        }
    }
}

/// Counts of a queue for the support bundle: by state and tenant; no message, no address.
pub fn figures(replies: &[Reply]) -> Value {
    let merged = merge::<Queued>(replies, &[]);
    let mut states: BTreeMap<&str, u64> = BTreeMap::new();
    let mut tenants: BTreeMap<&str, u64> = BTreeMap::new();
    let mut routes: BTreeMap<&str, u64> = BTreeMap::new();
    for Placed { message, .. } in &merged.messages {
        *states.entry(&message.state).or_default() += 1;
        *tenants.entry(&message.tenant).or_default() += 1;
        *routes.entry(message.route.as_deref().unwrap_or("-")).or_default() += 1;
    }
    let oldest = merged.messages.first().map(|placed| placed.message.received_ms);
    serde_json::json!({
        "messages": merged.messages.len(), "complete": merged.complete, "oldestReceivedMs": oldest, "states": states, "tenants": tenants, "routes": routes,
        "gateways": merged.gateways, "unreachable": merged.unreachable,
    })
}

#[cfg(test)]
mod tests;
