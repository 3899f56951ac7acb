//! The log's two forms: one JSON object per line, or a line for people.
//!
//! A field named `record_json` holds a JSON object whose members are put beside the other fields, so that a message's record has real arrays and numbers.

use std::fmt;
use std::io::IsTerminal as _;

use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::cli::LogFormat;
use crate::date::rfc3339;
use crate::io::clock;

/// Starts logging to standard error (text) or standard output (JSON). RUST_LOG sets the level, `info` by default.
pub fn start(format: LogFormat) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter);
    let started = match format {
        LogFormat::Json => builder.event_format(Json).with_writer(std::io::stdout).try_init(),
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            builder.event_format(Text { colour }).with_writer(std::io::stderr).try_init()
        }
    };
    if let Err(error) = started {
        eprintln!("logging was started before: {error}");
    }
}

/// The fields of an event, and a message's record as the JSON object that it is already.
#[derive(Default)]
struct Fields(Map<String, Value>, Option<String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), Value::String(format!("{value:?}")));
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "record_json" {
            self.1 = Some(value.to_owned());
        } else {
            self.0.insert(field.name().to_owned(), value.into());
        }
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }
}

/// One JSON object out of two. The second is not read again: it was written a moment ago, and every message has one.
fn spliced(line: &str, record: Option<&str>) -> String {
    match (line.strip_suffix('}'), record.and_then(|record| record.strip_prefix('{'))) {
        (Some(line), Some(rest)) if rest != "}" => format!("{line},{rest}"),
        _ => line.to_owned(),
    }
}

struct Json;

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Json {
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut line = Map::new();
        line.insert("time".into(), rfc3339(clock::unix_ms()).into());
        line.insert("level".into(), event.metadata().level().as_str().to_ascii_lowercase().into());
        line.append(&mut fields.0);
        writeln!(writer, "{}", spliced(&Value::Object(line).to_string(), fields.1.as_deref()))
    }
}

struct Text {
    colour: bool,
}

impl Text {
    /// What a person wants to know of a message, in one line.
    fn message(fields: &Map<String, Value>) -> String {
        let text = |name: &str| fields.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        let recipients: Vec<&str> = fields.get("recipients").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
        let to = match recipients.as_slice() {
            [] => String::new(),
            [one] => (*one).to_owned(),
            [first, rest @ ..] => format!("{first} and {} more", rest.len()),
        };
        let disposition: Vec<String> =
            fields.get("disposition").and_then(Value::as_object).into_iter().flatten().map(|(what, count)| format!("{what} {count}")).collect();
        let why = fields
            .get("tenants")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .filter_map(|tenant| tenant.get("explanation").and_then(Value::as_str))
            // The first line is the summary; the whole story is in the JSON form.
            .find_map(|explanation| explanation.lines().next())
            .unwrap_or_default();
        let millis = fields.get("timings_us").and_then(|t| t.get("total")).and_then(Value::as_u64).unwrap_or(0) / 1000;
        let size = fields.get("size").and_then(Value::as_u64).unwrap_or(0);
        format!("{} {} -> {to}, {size} bytes: {} ({}) {why} [{millis} ms]", text("queue_id"), text("sender"), disposition.join(", "), text("reply"))
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>, N: for<'a> FormatFields<'a> + 'static> FormatEvent<S, N> for Text {
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields(mut fields, record) = fields;
        if let Some(Value::Object(record)) = record.and_then(|record| serde_json::from_str(&record).ok()) {
            fields.extend(record);
        }
        let level = *event.metadata().level();
        let (on, off) = match (self.colour, level) {
            (true, Level::ERROR) => ("\x1b[31m", "\x1b[0m"),
            (true, Level::WARN) => ("\x1b[33m", "\x1b[0m"),
            (true, Level::DEBUG | Level::TRACE) => ("\x1b[2m", "\x1b[0m"),
            _ => ("", ""),
        };
        write!(writer, "{} {on}{level:>5}{off} ", rfc3339(clock::unix_ms()))?;
        if fields.get("event").and_then(Value::as_str) == Some("message") {
            return writeln!(writer, "{}", printable(&Self::message(&fields)));
        }
        if let Some(Value::String(message)) = fields.remove("message") {
            write!(writer, "{}", printable(&message))?;
        }
        for (name, value) in &fields {
            match value {
                Value::String(text) => write!(writer, " {name}={}", printable(text))?,
                other => write!(writer, " {name}={other}")?,
            }
        }
        writeln!(writer)
    }
}

/// What peers write must not move the cursor or forge lines.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_stands_beside_the_other_fields() {
        let line = spliced(r#"{"time":"t","event":"message"}"#, Some(r#"{"size":7,"recipients":["a@b"]}"#));
        let read: Value = serde_json::from_str(&line).expect("one object");
        assert_eq!(read, serde_json::json!({"time": "t", "event": "message", "size": 7, "recipients": ["a@b"]}));
        for record in [None, Some("{}")] {
            assert_eq!(spliced(r#"{"time":"t"}"#, record), r#"{"time":"t"}"#);
        }
    }
}
