//! Events: what `kubectl describe` shows below an object. Conditions say the same and stay; an event that cannot be written is no reason to stop.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::time::Instant;

use crate::io::cluster::request;

/// `note` of `events.k8s.io/v1`: the API server takes no more bytes.
const NOTE_BYTES_MAX: usize = 1_024;
/// The same note about the same object within so long counts up one event, and makes no new one.
const SAME_WITHIN: Duration = Duration::from_secs(300);
/// Notes that are remembered for that.
const REMEMBERED_MAX: usize = 1_024;

/// What happened, in the words of an event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct News {
    /// Nobody has to do anything.
    pub good: bool,
    /// What happened, in UpperCamelCase.
    pub reason: String,
    /// What was being done or judged, in UpperCamelCase.
    pub action: String,
    /// For people. What is too long is cut.
    pub note: String,
}

/// Writes events.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    /// kube's recorder tells events apart by everything but the note, and keeps the first one's: so each note has a recorder of its own.
    recorders: Arc<Mutex<BTreeMap<Told, (Recorder, Instant)>>>,
}

/// The object's uid and what was said of it.
type Told = (Option<String>, String, String);

impl Events {
    /// `instance`: the pod that writes.
    #[must_use]
    pub fn new(client: Client, controller: &str, instance: Option<String>) -> Self {
        Self { client, reporter: Reporter { controller: controller.to_owned(), instance }, recorders: Arc::default() }
    }

    /// Writes one about an object.
    pub async fn say(&self, news: &News, about: &ObjectReference) {
        let note = cut(&news.note);
        let event = Event {
            type_: if news.good { EventType::Normal } else { EventType::Warning },
            reason: news.reason.clone(),
            note: Some(note.to_owned()),
            action: news.action.clone(),
            secondary: None,
        };
        let recorder = self.recorder(about, &news.reason, note);
        if let Err(error) = request(|| "an event".to_owned(), recorder.publish(&event, about)).await {
            tracing::debug!(%error, "an event could not be written");
        }
    }

    fn recorder(&self, about: &ObjectReference, reason: &str, note: &str) -> Recorder {
        let now = Instant::now();
        let mut recorders = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        recorders.retain(|_, (_, said)| now.duration_since(*said) < SAME_WITHIN);
        let told = (about.uid.clone(), reason.to_owned(), note.to_owned());
        if recorders.len() >= REMEMBERED_MAX && !recorders.contains_key(&told) {
            // Not remembered: said again, it is an event of its own.
            return Recorder::new(self.client.clone(), self.reporter.clone());
        }
        let entry = recorders.entry(told).or_insert_with(|| (Recorder::new(self.client.clone(), self.reporter.clone()), now));
        entry.1 = now;
        entry.0.clone()
    }
}

/// As much of it as an event takes.
fn cut(note: &str) -> &str {
    note.get(..note.floor_char_boundary(NOTE_BYTES_MAX)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_cut_between_characters() {
        assert_eq!(cut("short"), "short");
        let long = cut(&"é".repeat(600)).to_owned();
        assert_eq!(long, "é".repeat(512));
        assert_eq!(cut(&format!("a{}", "é".repeat(600))).len(), 1_023);
    }
}
