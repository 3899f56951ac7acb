//! Claims, and the last good forms of tenants that are wrong now, in ConfigMaps of the operator's namespace. A claim is
//! written before it takes effect; a last good form, which is in force already, right after its tenant was found to be wrong.
//!
//! Every write names the version that it is based on. A request may be under way for longer than a Lease is safe, so one of a former leader may arrive
//! when another one leads: it must not undo what that one recorded. Whoever finds something there that it did not write leads no more ([`Displaced`]).

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use tokio::time::Instant;

use crate::io::cluster::{ClusterError, request};
use crate::io::hub::FleetKey;
use crate::names::{self, MANAGER};
use crate::ownership::{Ledger, Record, read_shard, shard_of};

/// Label of our records: what they hold.
const RECORD_LABEL: &str = "sekimori.dev/record";
/// Annotation: the fleet, as `NAMESPACE/NAME`.
const FLEET: &str = "sekimori.dev/fleet";
/// The key of the text in a ConfigMap.
const KEY: &str = "records";
/// Shards that are written at once. At 1,000 changes a minute about 25 shards change in a second: with 8 at once, an API server that takes a third of a second
/// for a write falls behind for good, and each slice then waits for all 256.
const WRITES_AT_ONCE: usize = 32;
/// Shards of last good forms.
const GOOD_SHARDS: u8 = 255;
/// Octets of one of them, at most. The API server takes 1 MiB.
const GOOD_BYTES_MAX: usize = 900 << 10;
/// A record that could not be written rests so long, doubling up to the second.
const RESTS: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// From such a rest on it lasts, and whoever waits for it is told.
const LASTING: Duration = Duration::from_secs(4);

/// What was recorded of all fleets.
pub(super) struct Recorded {
    /// Claims by fleet.
    pub(super) claims: BTreeMap<FleetKey, Vec<Record>>,
    /// Fleets with lines that cannot be read: no new claim there, until they are corrected.
    pub(super) broken: BTreeMap<FleetKey, Broken>,
    /// Last good forms (JSON of parts) by fleet and tenant (`NAMESPACE/NAME`).
    pub(super) good: BTreeMap<FleetKey, BTreeMap<String, String>>,
}

/// Lines of a fleet's claims that are no claims.
#[derive(Clone, Debug, Default)]
pub(super) struct Broken {
    /// Where, and what is wrong with the first one.
    pub(super) message: String,
    /// The lines by ConfigMap: they are written back as they are, so that nothing is lost before somebody has corrected them.
    lines: BTreeMap<String, String>,
}

/// The claims of one shard's text. A line that is none costs only itself.
fn read_lines(map: &str, text: &str, records: &mut Vec<Record>, broken: &mut Broken) {
    match read_shard(text) {
        Ok(all) => return records.extend(all),
        Err(error) => broken.message = format!("ConfigMap {map}: {error}; then restart the operator"),
    }
    let unread = broken.lines.entry(map.to_owned()).or_default();
    for line in text.lines() {
        match read_shard(line) {
            Ok(one) => records.extend(one),
            Err(_) => {
                unread.push_str(line);
                unread.push('\n');
            }
        }
    }
}

fn fleet_of(map: &ConfigMap) -> Option<FleetKey> {
    let (namespace, name) = map.annotations().get(FLEET)?.split_once('/')?;
    Some(FleetKey::new(namespace, name))
}

fn text(map: &ConfigMap) -> &str {
    map.data.as_ref().and_then(|data| data.get(KEY)).map_or("", String::as_str)
}

/// Something in the records is not of this process.
#[derive(Debug, thiserror::Error)]
#[error(
    "ConfigMap {name} was changed by another process (a newer leader, or somebody by hand): this one leads no more, so that nothing is lost; the next leader reads what is there"
)]
pub(super) struct Displaced {
    name: String,
}

enum Failure {
    Displaced(Displaced),
    Cluster(ClusterError),
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self::Cluster(error)
    }
}

/// What is known of one ConfigMap.
#[derive(Clone, Debug, Default)]
struct Kept {
    /// Its version. `None`: it is to be read first, as nobody knows whether the last write arrived.
    version: Option<String>,
    /// What may be in it: what was read or written last, and what was tried since.
    texts: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    pause: Duration,
}

/// What came of writing a fleet's claims.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// Shards that could not be written for a while now.
    pub(super) lasting: BTreeSet<u8>,
    /// One that could not be written was.
    pub(super) recovered: bool,
}

/// The ConfigMaps in which everything is recorded.
pub(super) struct Records {
    api: Api<ConfigMap>,
    /// Those that are there, or may be, by name.
    kept: BTreeMap<String, Kept>,
    /// Those that could not be written.
    rests: BTreeMap<String, Rest>,
}

fn digest(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

impl Records {
    pub(super) fn new(api: Api<ConfigMap>) -> Self {
        Self { api, kept: BTreeMap::new(), rests: BTreeMap::new() }
    }

    /// Reads everything that was recorded.
    pub(super) async fn read(&mut self) -> Result<Recorded, ClusterError> {
        let mut recorded = Recorded { claims: BTreeMap::new(), broken: BTreeMap::new(), good: BTreeMap::new() };
        self.kept.clear();
        let mut params = ListParams::default().labels(RECORD_LABEL).limit(50);
        loop {
            let page = request(|| "recorded claims".to_owned(), self.api.list(&params)).await?;
            let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
            for map in &page.items {
                let kept = Kept { version: map.resource_version(), texts: [digest(text(map))].into() };
                self.kept.insert(map.name_any(), kept);
                recorded.take(map);
            }
            match next {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(recorded),
            }
        }
    }

    /// Writes one ConfigMap over the version that is known. Where another one is there now, it is looked at: what is ours is written over.
    async fn write(&self, fleet: &FleetKey, name: &str, kind: &str, records: String) -> (Kept, Result<(), Failure>) {
        let mut kept = self.kept.get(name).cloned();
        let ours = digest(&records);
        let mut map = ConfigMap {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                labels: Some(
                    [("app.kubernetes.io/managed-by", MANAGER), (RECORD_LABEL, kind)].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
                ),
                annotations: Some([(FLEET.to_owned(), format!("{}/{}", fleet.namespace, fleet.name))].into()),
                ..ObjectMeta::default()
            },
            data: Some([(KEY.to_owned(), records)].into()),
            ..ConfigMap::default()
        };
        let mut tries = 0;
        loop {
            tries += 1;
            let version = match self.version(name, kept.as_ref()).await {
                Ok(version) => version,
                Err(failure) => return (kept.unwrap_or_default(), Err(failure)),
            };
            map.metadata.resource_version = version;
            match self.send(name, &map).await {
                Ok(version) => return (Kept { version, texts: [ours].into() }, Ok(())),
                Err(error) => {
                    let kept = kept.get_or_insert_default();
                    kept.version = None;
                    kept.texts.insert(ours);
                    if !error.is_conflict() || tries > 1 {
                        return (kept.clone(), Err(error.into()));
                    }
                }
            }
        }
    }

    /// The version to write over; none: there is no such ConfigMap.
    async fn version(&self, name: &str, kept: Option<&Kept>) -> Result<Option<String>, Failure> {
        let Some(kept) = kept else { return Ok(None) };
        if kept.version.is_some() {
            return Ok(kept.version.clone());
        }
        let Some(there) = request(|| format!("ConfigMap {name}"), self.api.get_opt(name)).await? else { return Ok(None) };
        // One without our label is not read at a start either, so nothing is lost with it.
        if there.labels().contains_key(RECORD_LABEL) && !kept.texts.contains(&digest(text(&there))) {
            return Err(Failure::Displaced(Displaced { name: name.to_owned() }));
        }
        Ok(there.resource_version())
    }

    async fn send(&self, name: &str, map: &ConfigMap) -> Result<Option<String>, ClusterError> {
        let what = || format!("ConfigMap {name}");
        let written = if map.metadata.resource_version.is_some() {
            request(what, self.api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map))).await
        } else {
            let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
            request(what, self.api.create(&params, map)).await
        };
        written.map(|map| map.resource_version())
    }

    fn rests(&self, name: &str, now: Instant) -> bool {
        self.rests.get(name).is_some_and(|rest| rest.until > now)
    }

    /// Keeps in mind what came of a write. True: it is done.
    fn note(&mut self, name: &str, kept: Kept, result: Result<(), Failure>) -> Result<Result<bool, ClusterError>, Displaced> {
        self.kept.insert(name.to_owned(), kept);
        match result {
            Ok(()) => Ok(Ok(self.rests.remove(name).is_some())),
            Err(Failure::Displaced(displaced)) => Err(displaced),
            Err(Failure::Cluster(error)) => {
                let pause = self.rests.get(name).map_or(RESTS.0, |rest| (rest.pause * 2).min(RESTS.1));
                self.rests.insert(name.to_owned(), Rest { until: Instant::now() + pause, pause });
                Ok(Err(error))
            }
        }
    }

    /// Writes the claims that changed. What could not be written stays fresh in the ledger, and must not take effect yet; it is tried again after a while.
    pub(super) async fn write_claims(&mut self, fleet: &FleetKey, ledger: &mut Ledger, broken: Option<&Broken>) -> Result<Written, Displaced> {
        let now = Instant::now();
        let mut due = vec![];
        for shard in ledger.take_dirty() {
            let name = names::claims_shard(&fleet.namespace, &fleet.name, shard);
            if self.rests(&name, now) {
                ledger.keep_dirty(shard);
            } else {
                due.push((shard, name, ledger.shard(shard)));
            }
        }
        let records = &*self;
        let writes = due.into_iter().map(|(shard, name, mut text)| async move {
            text.extend(broken.and_then(|broken| broken.lines.get(&name)).map(String::as_str));
            let (kept, result) = records.write(fleet, &name, "claims", text).await;
            (shard, name, kept, result)
        });
        let done: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).collect().await;
        let mut written = Written::default();
        for (shard, name, kept, result) in done {
            match self.note(&name, kept, result)? {
                Ok(recovered) => {
                    ledger.written(shard);
                    written.recovered |= recovered;
                }
                Err(error) => {
                    tracing::warn!(fleet = %fleet.name, namespace = %fleet.namespace, %error, "claims could not be recorded: new ones take effect later");
                    ledger.keep_dirty(shard);
                    if self.rests.get(&name).is_some_and(|rest| rest.pause >= LASTING) {
                        written.lasting.insert(shard);
                    }
                }
            }
        }
        Ok(written)
    }

    /// Writes last good forms that changed; what could not be written is tried again after a while. Nobody waits for it.
    pub(super) async fn write_good(&mut self, fleet: &FleetKey, good: &mut GoodForms) -> Result<(), Displaced> {
        let now = Instant::now();
        let mut due = vec![];
        for shard in std::mem::take(&mut good.dirty) {
            let name = names::bounded("good-", &format!("{}/{}", fleet.namespace, fleet.name), &format!("-{shard:02x}"), names::LABEL_LENGTH_MAX);
            if self.rests(&name, now) {
                good.dirty.insert(shard);
            } else {
                due.push((shard, name, good.shard(shard)));
            }
        }
        let records = &*self;
        let writes = due.into_iter().map(|(shard, name, text)| async move {
            let (kept, result) = records.write(fleet, &name, "good", text).await;
            (shard, name, kept, result)
        });
        let done: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).collect().await;
        for (shard, name, kept, result) in done {
            if let Err(error) = self.note(&name, kept, result)? {
                tracing::warn!(fleet = %fleet.name, %error, "last good forms could not be recorded: a new leader would not know them");
                good.dirty.insert(shard);
            }
        }
        Ok(())
    }
}

impl Recorded {
    fn take(&mut self, map: &ConfigMap) {
        let Some(fleet) = fleet_of(map) else {
            tracing::error!(config_map = map.name_any(), "it is labelled as a record, but names no fleet: it is not used");
            return;
        };
        if map.labels().get(RECORD_LABEL).is_some_and(|kind| kind == "good") {
            match serde_json::from_str::<BTreeMap<String, String>>(text(map)) {
                Ok(forms) => self.good.entry(fleet).or_default().extend(forms),
                Err(error) => {
                    let config_map = map.name_any();
                    tracing::error!(config_map, %error, "last good forms cannot be read: their tenants are not served until they are corrected");
                }
            }
            return;
        }
        let mut broken = self.broken.remove(&fleet).unwrap_or_default();
        read_lines(&map.name_any(), text(map), self.claims.entry(fleet.clone()).or_default(), &mut broken);
        if !broken.lines.is_empty() {
            self.broken.insert(fleet, broken);
        }
    }
}

/// Last good forms of one fleet's tenants that are wrong now.
#[derive(Default)]
pub(super) struct GoodForms {
    forms: BTreeMap<String, String>,
    dirty: BTreeSet<u8>,
    /// Octets of each shard, about.
    bytes: BTreeMap<u8, usize>,
    /// Tenants whose form has no room.
    refused: BTreeSet<String>,
}

fn good_shard(tenant: &str) -> u8 {
    shard_of(tenant) % GOOD_SHARDS
}

/// Octets of a form among others: a text within JSON.
fn good_bytes(tenant: &str, form: &str) -> usize {
    let escaped = form.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count();
    tenant.len() + form.len() + escaped + 6
}

impl GoodForms {
    /// Those that were recorded, without those of tenants that are not there any more.
    pub(super) fn new(recorded: BTreeMap<String, String>, there: impl Fn(&str) -> bool) -> Self {
        let (forms, gone): (BTreeMap<String, String>, _) = recorded.into_iter().partition(|(tenant, _)| there(tenant));
        let mut bytes = BTreeMap::new();
        forms.iter().for_each(|(tenant, form)| *bytes.entry(good_shard(tenant)).or_default() += good_bytes(tenant, form));
        Self { forms, dirty: gone.keys().map(|tenant| good_shard(tenant)).collect(), bytes, refused: BTreeSet::new() }
    }

    pub(super) fn of(&self, tenant: &str) -> Option<&str> {
        self.forms.get(tenant).map(String::as_str)
    }

    /// Keeps a form, if there is room. False: there is none, and that was not known. The form stays in force, but a new leader will not know it.
    pub(super) fn keep(&mut self, tenant: &str, form: String) -> bool {
        if self.forms.get(tenant) == Some(&form) {
            return true;
        }
        // One of before is no better than none: gateways have the newer one.
        self.take(tenant);
        let bytes = self.bytes.entry(good_shard(tenant)).or_default();
        let wanted = good_bytes(tenant, &form);
        if *bytes + wanted > GOOD_BYTES_MAX {
            return !self.refused.insert(tenant.to_owned());
        }
        *bytes += wanted;
        self.refused.remove(tenant);
        self.dirty.insert(good_shard(tenant));
        self.forms.insert(tenant.to_owned(), form);
        true
    }

    pub(super) fn forget(&mut self, tenant: &str) {
        self.refused.remove(tenant);
        self.take(tenant);
    }

    fn take(&mut self, tenant: &str) {
        let Some(form) = self.forms.remove(tenant) else { return };
        let shard = good_shard(tenant);
        self.dirty.insert(shard);
        if let Some(bytes) = self.bytes.get_mut(&shard) {
            *bytes = bytes.saturating_sub(good_bytes(tenant, &form));
        }
    }

    fn shard(&self, shard: u8) -> String {
        let forms: BTreeMap<&String, &String> = self.forms.iter().filter(|(tenant, _)| good_shard(tenant) == shard).collect();
        serde_json::to_string(&forms).expect("only string keys")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_form_without_room_is_refused_once_and_leaves_the_others() {
        let mut good = GoodForms::default();
        let form = |letter: &str| format!(r#"{{"domains":["{}"]}}"#, letter.repeat(500 << 10));
        let meeting: Vec<String> = (0..).map(|number: u32| format!("shop/{number}")).filter(|name| good_shard(name) == 7).take(2).collect();
        assert!(good.keep(&meeting[0], form("a")));
        assert!(!good.keep(&meeting[1], form("b")), "it is told");
        assert!(good.keep(&meeting[1], form("b")), "once");
        assert!(good.of(&meeting[0]).is_some() && good.of(&meeting[1]).is_none());
        assert!(good.shard(7).len() <= good.bytes[&7] + "{}".len() && good.bytes[&7] <= GOOD_BYTES_MAX);
        good.forget(&meeting[0]);
        assert!(good.keep(&meeting[1], form("b")), "there is room now");
        assert!(!good.keep(&meeting[1], form("b").repeat(2)) && good.of(&meeting[1]).is_none(), "an older form is no better than none");
        assert_eq!(good.bytes[&7], 0);
    }
}
