//! `queue` and `quarantine`: lists and changes in a running gateway.

use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::{AdminClient, CallError};
use super::{REFUSED, USAGE, fail};
use crate::cli::{Change, Output, QuarantineArgs, QuarantineVerb, QueueArgs, QueueVerb, Selection};
use crate::date::rfc3339;

/// `queue`.
pub async fn queue(args: QueueArgs) -> ExitCode {
    let client = AdminClient::new(args.admin.admin);
    let output = args.admin.output;
    let result = match args.verb {
        QueueVerb::List(selection) => {
            client.get(&format!("/v1/queue?{}", query(&selection, &[]))).await.map(|answer| print(output, &answer, queue_table))
        }
        QueueVerb::Show { id } => client.get(&format!("/v1/queue/{}", encode(&id))).await.map(|answer| print(output, &answer, pretty)),
        QueueVerb::Retry(change) => return operate(&client, "/v1/queue/retry", change, false, output).await,
        QueueVerb::Hold(change) => return operate(&client, "/v1/queue/hold", change, false, output).await,
        QueueVerb::Release(change) => return operate(&client, "/v1/queue/release", change, false, output).await,
        QueueVerb::Drop(change) => return operate(&client, "/v1/queue/drop", change, false, output).await,
    };
    done(result)
}

/// `quarantine`.
pub async fn quarantine(args: QuarantineArgs) -> ExitCode {
    let client = AdminClient::new(args.admin.admin);
    let output = args.admin.output;
    let store = ("deadLetters", args.dead_letters.to_string());
    let result = match args.verb {
        QuarantineVerb::List(selection) => {
            client.get(&format!("/v1/quarantine?{}", query(&selection, &[store]))).await.map(|answer| print(output, &answer, quarantine_table))
        }
        QuarantineVerb::Search { text, selection } => {
            let path = format!("/v1/quarantine?{}", query(&selection, &[store, ("text", text)]));
            client.get(&path).await.map(|answer| print(output, &answer, quarantine_table))
        }
        QuarantineVerb::Show { id, raw: true } => {
            let path = format!("/v1/quarantine/{}/raw?deadLetters={}", encode(&id), args.dead_letters);
            client.get_bytes(&path).await.map(|bytes| {
                use std::io::Write as _;
                if let Err(error) = std::io::stdout().write_all(&bytes) {
                    eprintln!("sekimori-mta: {error}");
                }
            })
        }
        QuarantineVerb::Show { id, raw: false } => {
            let path = format!("/v1/quarantine/{}?deadLetters={}", encode(&id), args.dead_letters);
            client.get(&path).await.map(|answer| print(output, &answer, pretty))
        }
        QuarantineVerb::Release(change) => return operate(&client, "/v1/quarantine/release", change, args.dead_letters, output).await,
        QuarantineVerb::Delete(change) => return operate(&client, "/v1/quarantine/delete", change, args.dead_letters, output).await,
    };
    done(result)
}

fn done(result: Result<(), CallError>) -> ExitCode {
    result.map_or_else(|error| fail(REFUSED, error), |()| ExitCode::SUCCESS)
}

async fn operate(client: &AdminClient, path: &str, change: Change, dead_letters: bool, output: Output) -> ExitCode {
    let selection = change.selection;
    if selection.is_empty() {
        return fail(USAGE, "say which messages: IDs, --all, --tenant, --route or --older-than");
    }
    let mut body = json!({
        "ids": selection.ids, "all": selection.all, "tenant": selection.tenant, "route": selection.route,
        "olderThanMs": selection.older_than.map(|age| age.std().as_millis() as u64), "dryRun": change.dry_run,
    });
    if path.starts_with("/v1/quarantine") {
        body["deadLetters"] = json!(dead_letters);
    }
    match client.post(path, &body).await {
        Ok(answer) => {
            let failed = answer.get("failed").and_then(Value::as_array).map_or(0, Vec::len);
            print(output, &answer, |answer| changed(answer, change.dry_run));
            if failed == 0 { ExitCode::SUCCESS } else { ExitCode::from(REFUSED) }
        }
        Err(error) => fail(REFUSED, error),
    }
}

fn print(output: Output, answer: &Value, text: impl Fn(&Value) -> String) {
    match output {
        Output::Json => println!("{answer}"),
        Output::Text => println!("{}", text(answer)),
    }
}

fn pretty(answer: &Value) -> String {
    serde_json::to_string_pretty(answer).unwrap_or_default()
}

fn changed(answer: &Value, dry_run: bool) -> String {
    let count = answer.get("count").and_then(Value::as_u64).unwrap_or(0);
    let mut lines =
        vec![format!("{count} {}{}", if count == 1 { "message" } else { "messages" }, if dry_run { " would be changed" } else { " changed" })];
    let in_flight = answer.get("inFlight").and_then(Value::as_u64).unwrap_or(0);
    if in_flight > 0 {
        lines.push(format!("{in_flight} are being attempted right now and were left alone"));
    }
    for failed in answer.get("failed").and_then(Value::as_array).into_iter().flatten() {
        lines.push(format!("{}: {}", cell(failed, "id"), cell(failed, "error")));
    }
    lines.join("\n")
}

fn queue_table(answer: &Value) -> String {
    let now_ms = answer.get("now").and_then(Value::as_u64).unwrap_or(0);
    let rows = messages(answer).map(|message| {
        let next = message.get("dueMs").and_then(Value::as_u64).map_or_else(|| "-".into(), |due_ms| age(due_ms.saturating_sub(now_ms)));
        let recipients = message.get("recipients").and_then(Value::as_array).map_or(0, Vec::len);
        vec![
            cell(message, "id"),
            cell(message, "state"),
            cell(message, "purpose"),
            cell(message, "tenant"),
            recipients.to_string(),
            cell(message, "sizeBytes"),
            age(now_ms.saturating_sub(message.get("receivedMs").and_then(Value::as_u64).unwrap_or(now_ms))),
            next,
            cell(message, "error"),
        ]
    });
    table(&["ID", "STATE", "PURPOSE", "TENANT", "RCPTS", "BYTES", "AGE", "NEXT", "WHY"], rows.collect(), "the queue is empty")
}

fn quarantine_table(answer: &Value) -> String {
    let rows = messages(answer).map(|message| {
        let stored_ms = message.get("storedMs").and_then(Value::as_u64).unwrap_or(0);
        let stored = rfc3339(stored_ms);
        vec![
            cell(message, "id"),
            cell(message, "tenant"),
            cell(message, "sender"),
            message.get("recipients").and_then(Value::as_array).map_or(0, Vec::len).to_string(),
            cell(message, "bytes"),
            stored,
            cell(message, "subject"),
            cell(message, "reason"),
        ]
    });
    table(&["ID", "TENANT", "SENDER", "RCPTS", "BYTES", "STORED", "SUBJECT", "REASON"], rows.collect(), "nothing is kept here")
}

fn messages(answer: &Value) -> impl Iterator<Item = &Value> {
    answer.get("messages").and_then(Value::as_array).into_iter().flatten()
}

/// A value as a cell: control characters of foreign text must not reach the terminal.
fn cell(value: &Value, name: &str) -> String {
    let text = match value.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".into(),
        Some(other) => other.to_string(),
    };
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// `95s`, `12m`, `3h`, `4d`.
fn age(ms: u64) -> String {
    match ms / 1000 {
        s if s < 120 => format!("{s}s"),
        s if s < 7200 => format!("{}m", s / 60),
        s if s < 172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

fn table(head: &[&str], rows: Vec<Vec<String>>, empty: &str) -> String {
    if rows.is_empty() {
        return empty.to_owned();
    }
    let mut widths: Vec<usize> = head.iter().map(|name| name.len()).collect();
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: Vec<&str>| {
        let mut text = String::new();
        for (cell, width) in cells.iter().zip(&widths) {
            text.push_str(cell);
            text.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count().min(*width)));
        }
        text.trim_end().to_owned()
    };
    let mut lines = vec![line(head.to_vec())];
    lines.extend(rows.iter().map(|row| line(row.iter().map(String::as_str).collect())));
    lines.join("\n")
}

fn query(selection: &Selection, more: &[(&str, String)]) -> String {
    let mut pairs: Vec<(&str, String)> = more.to_vec();
    if !selection.ids.is_empty() {
        pairs.push(("ids", selection.ids.join(",")));
    }
    if selection.all {
        pairs.push(("all", "true".into()));
    }
    pairs.extend(selection.tenant.clone().map(|tenant| ("tenant", tenant)));
    pairs.extend(selection.route.clone().map(|route| ("route", route)));
    pairs.extend(selection.older_than.map(|age| ("olderThanMs", age.std().as_millis().to_string())));
    pairs.iter().map(|(name, value)| format!("{name}={}", encode(value))).collect::<Vec<_>>().join("&")
}

/// Percent-encoding of everything but unreserved characters (RFC 3986 section 2.3).
fn encode(text: &str) -> String {
    text.bytes().map(|b| if b.is_ascii_alphanumeric() || b"-._~".contains(&b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_line_up_and_say_when_they_are_empty() {
        let answer = json!({ "now": 200_000, "messages": [
            { "id": "A", "state": "scheduled", "purpose": "deliver", "tenant": "default/x", "recipients": [0, 1], "sizeBytes": 9, "receivedMs": 100_000,
              "dueMs": 260_000, "error": "451 busy\u{1b}[31m" },
        ]});
        let text = queue_table(&answer);
        assert_eq!(
            text,
            "ID  STATE      PURPOSE  TENANT     RCPTS  BYTES  AGE   NEXT  WHY\n\
             A   scheduled  deliver  default/x  2      9      100s  60s   451 busy\u{fffd}[31m"
        );
        assert_eq!(queue_table(&json!({ "messages": [] })), "the queue is empty");
    }

    #[test]
    fn selections_become_queries() {
        let selection = Selection { ids: vec!["A".into(), "B".into()], all: false, tenant: Some("a/b".into()), route: None, older_than: None };
        assert_eq!(query(&selection, &[("deadLetters", "true".into())]), "deadLetters=true&ids=A%2CB&tenant=a%2Fb");
    }
}
