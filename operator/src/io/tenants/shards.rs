//! Claims, and the last good forms of tenants that are wrong now, in ConfigMaps of the operator's namespace. A claim is
//! written before it takes effect; a last good form, which is in force already, right after its tenant was found to be wrong.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt as _};

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

/// Reads everything that was recorded.
pub(super) async fn read(api: &Api<ConfigMap>) -> Result<Recorded, ClusterError> {
    let mut recorded = Recorded { claims: BTreeMap::new(), broken: BTreeMap::new(), good: BTreeMap::new() };
    let mut params = ListParams::default().labels(RECORD_LABEL).limit(50);
    loop {
        let page = request(|| "recorded claims".to_owned(), api.list(&params)).await?;
        let next = page.metadata.continue_.clone().filter(|token| !token.is_empty());
        for map in &page.items {
            let Some(fleet) = fleet_of(map) else {
                tracing::error!(config_map = map.name_any(), "it is labelled as a record, but names no fleet: it is not used");
                continue;
            };
            if map.labels().get(RECORD_LABEL).is_some_and(|kind| kind == "good") {
                match serde_json::from_str::<BTreeMap<String, String>>(text(map)) {
                    Ok(forms) => recorded.good.entry(fleet).or_default().extend(forms),
                    Err(error) => {
                        let config_map = map.name_any();
                        tracing::error!(config_map, %error, "last good forms cannot be read: their tenants are not served until they are corrected");
                    }
                }
                continue;
            }
            let mut broken = recorded.broken.remove(&fleet).unwrap_or_default();
            read_lines(&map.name_any(), text(map), recorded.claims.entry(fleet.clone()).or_default(), &mut broken);
            if !broken.lines.is_empty() {
                recorded.broken.insert(fleet, broken);
            }
        }
        match next {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(recorded),
        }
    }
}

async fn write(api: &Api<ConfigMap>, fleet: &FleetKey, name: String, kind: &str, text: String) -> Result<(), ClusterError> {
    let map = ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some(
                [("app.kubernetes.io/managed-by", MANAGER), (RECORD_LABEL, kind)].map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
            ),
            annotations: Some([(FLEET.to_owned(), format!("{}/{}", fleet.namespace, fleet.name))].into()),
            ..ObjectMeta::default()
        },
        data: Some([(KEY.to_owned(), text)].into()),
        ..ConfigMap::default()
    };
    let params = PatchParams::apply(MANAGER).force();
    request(|| format!("ConfigMap {name}"), api.patch(&name, &params, &Patch::Apply(map))).await.map(drop)
}

/// Writes the claims that changed. Says which shards could not be written: what is in them must not take effect yet.
pub(super) async fn write_claims(api: &Api<ConfigMap>, fleet: &FleetKey, ledger: &mut Ledger, broken: Option<&Broken>) -> BTreeSet<u8> {
    let dirty: Vec<(u8, String)> = ledger.take_dirty().into_iter().map(|shard| (shard, ledger.shard(shard))).collect();
    let writes = dirty.into_iter().map(|(shard, mut text)| async move {
        let name = names::claims_shard(&fleet.namespace, &fleet.name, shard);
        text.extend(broken.and_then(|broken| broken.lines.get(&name)).map(String::as_str));
        (shard, write(api, fleet, name, "claims", text).await)
    });
    let written: Vec<_> = futures_util::stream::iter(writes).buffer_unordered(WRITES_AT_ONCE).collect().await;
    let mut failed = BTreeSet::new();
    for (shard, result) in written {
        if let Err(error) = result {
            tracing::warn!(fleet = %fleet.name, namespace = %fleet.namespace, %error, "claims could not be recorded: they take effect later");
            ledger.keep_dirty(shard);
            failed.insert(shard);
        }
    }
    failed
}

/// Last good forms of one fleet's tenants that are wrong now.
#[derive(Default)]
pub(super) struct GoodForms {
    forms: BTreeMap<String, String>,
    dirty: BTreeSet<u8>,
}

impl GoodForms {
    /// Those that were recorded, without those of tenants that are not there any more.
    pub(super) fn new(recorded: BTreeMap<String, String>, there: impl Fn(&str) -> bool) -> Self {
        let (forms, gone): (BTreeMap<String, String>, _) = recorded.into_iter().partition(|(tenant, _)| there(tenant));
        Self { forms, dirty: gone.keys().map(|tenant| shard_of(tenant) % GOOD_SHARDS).collect() }
    }

    pub(super) fn of(&self, tenant: &str) -> Option<&str> {
        self.forms.get(tenant).map(String::as_str)
    }

    pub(super) fn keep(&mut self, tenant: &str, form: String) {
        if self.forms.get(tenant) != Some(&form) {
            self.forms.insert(tenant.to_owned(), form);
            self.dirty.insert(shard_of(tenant) % GOOD_SHARDS);
        }
    }

    pub(super) fn forget(&mut self, tenant: &str) {
        if self.forms.remove(tenant).is_some() {
            self.dirty.insert(shard_of(tenant) % GOOD_SHARDS);
        }
    }

    /// Writes what changed; what could not be written is tried again with the next change.
    pub(super) async fn write(&mut self, api: &Api<ConfigMap>, fleet: &FleetKey) {
        for shard in std::mem::take(&mut self.dirty) {
            let forms: BTreeMap<&String, &String> = self.forms.iter().filter(|(tenant, _)| shard_of(tenant) % GOOD_SHARDS == shard).collect();
            let text = serde_json::to_string(&forms).expect("only string keys");
            let name = names::bounded("good-", &format!("{}/{}", fleet.namespace, fleet.name), &format!("-{shard:02x}"), names::LABEL_LENGTH_MAX);
            if let Err(error) = write(api, fleet, name, "good", text).await {
                tracing::warn!(fleet = %fleet.name, %error, "last good forms could not be recorded: a new leader would not know them");
                self.dirty.insert(shard);
            }
        }
    }
}
