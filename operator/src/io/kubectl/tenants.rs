//! Reading for `tenants`.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use sekimori_crds::v1alpha1::{GatewayFleet, MailPolicy, TenantDomain};

use super::Screen;
use super::cluster::{Cluster, Where, typed};
use crate::kubectl::status::fleet_of;
use crate::kubectl::table::harmless;
use crate::kubectl::tenants::{ClaimsSeen, Found, ListView, Wanted, show as show_view};
use crate::kubectl::trouble::Trouble;
use crate::kubectl::{EXIT_OK, Said};
use crate::names;
use crate::ownership::{Record, read_shard, shard_of};

/// Selects the operator's pods: where they are, the claims are.
pub(crate) const OPERATOR_LABELS: &str = "app.kubernetes.io/name=sekimori-operator";

/// The answer of `tenants list`.
pub(crate) async fn list(cluster: &Cluster, place: Where<'_>, wanted: &Wanted, screen: &Screen) -> Result<Said, Trouble> {
    let mut view = ListView::default();
    let mut unreadable = vec![];
    cluster
        .each::<TenantDomain>(place, None, |object| {
            match typed::<TenantDomain>(object) {
                Ok(tenant) => view.add(&tenant, wanted),
                Err(note) => unreadable.push(note),
            }
            true
        })
        .await?;
    let text = if screen.json { format!("{}\n", serde_json::json!(view)) } else { view.text(screen.paint, wanted) };
    let errors = unreadable.iter().map(|note| format!("{}\n", harmless(note))).collect();
    Ok(Said { text, errors, code: if unreadable.is_empty() { EXIT_OK } else { crate::kubectl::EXIT_PARTIAL } })
}

/// The answer of `tenants show`.
pub(crate) async fn show(cluster: &Cluster, name: &str, screen: &Screen) -> Result<Said, Trouble> {
    let tenant: TenantDomain = cluster.one(&cluster.namespace, name).await?;
    let (fleet_namespace, fleet_name) = fleet_of(&tenant);
    let fleet = cluster.one::<GatewayFleet>(&fleet_namespace, &fleet_name).await.map_err(|trouble| trouble.text);
    let mail_policy = match &tenant.spec.policy_ref {
        Some(reference) => Some(cluster.one::<MailPolicy>(&cluster.namespace, &reference.name.0).await.map_err(|trouble| trouble.text)),
        None => None,
    };
    let domains: Vec<&str> = tenant.spec.domains.iter().map(|domain| domain.0.as_str()).collect();
    let found = Found {
        tenant: &tenant,
        fleet: fleet.as_ref().map_err(Clone::clone),
        mail_policy: mail_policy.as_ref().map(|policy| policy.as_ref().map_err(Clone::clone)),
        claims: claims(cluster, &fleet_namespace, &fleet_name, &domains).await,
    };
    let view = show_view(&found);
    Ok(if screen.json { Said::json(&serde_json::json!(view), EXIT_OK) } else { Said::text(view.text(screen.paint)) })
}

/// The recorded claims on these domains: they lie in the operator's namespace, which not everybody may read.
async fn claims(cluster: &Cluster, namespace: &str, fleet: &str, domains: &[&str]) -> ClaimsSeen {
    match read_claims(cluster, namespace, fleet, domains).await {
        Ok(records) => ClaimsSeen::Read(records),
        Err(trouble) => ClaimsSeen::NotRead(trouble.text),
    }
}

async fn read_claims(cluster: &Cluster, namespace: &str, fleet: &str, domains: &[&str]) -> Result<BTreeMap<String, Record>, Trouble> {
    let mut operator = None;
    cluster
        .each::<Pod>(Where::All, Some(OPERATOR_LABELS), |pod| {
            operator = pod.metadata.namespace;
            false
        })
        .await?;
    let Some(operator) = operator else {
        return Err(super::trouble(format!("no pod with {OPERATOR_LABELS} is there: install the operator (helm install sekimori helm/sekimori)")));
    };
    let shards: BTreeSet<u8> = domains.iter().map(|domain| shard_of(domain)).collect();
    let mut records = BTreeMap::new();
    for shard in shards {
        let name = names::claims_shard(namespace, fleet, shard);
        let map: ConfigMap = match cluster.one(&operator, &name).await {
            Ok(map) => map,
            Err(trouble) if trouble.missing => continue,
            Err(trouble) => return Err(trouble),
        };
        for text in map.data.unwrap_or_default().values() {
            let read = read_shard(text).map_err(|error| super::trouble(format!("ConfigMap {operator}/{name}: {error}")))?;
            records.extend(read.into_iter().filter(|record| domains.contains(&&*record.domain)).map(|record| (record.domain.to_string(), record)));
        }
    }
    Ok(records)
}
