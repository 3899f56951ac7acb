//! Reading for `status`.

use sekimori_crds::v1alpha1::{Engine, GatewayFleet, TenantDomain};

use super::Screen;
use super::cluster::{Cluster, Where, typed};
use crate::kubectl::status::{StatusView, Tally, fleet_of, text, view};
use crate::kubectl::trouble::Trouble;
use crate::kubectl::{EXIT_OK, Said};

/// So many objects that cannot be read are named.
const UNREADABLE_MAX: usize = 10;

/// The answer of `status`.
pub(crate) async fn said(cluster: &Cluster, place: Where<'_>, screen: &Screen) -> Result<Said, Trouble> {
    let view = read(cluster, place).await?;
    Ok(if screen.json { Said::json(&serde_json::json!(view), EXIT_OK) } else { Said::text(text(&view, screen.paint)) })
}

/// Reads what `status` shows.
pub(crate) async fn read(cluster: &Cluster, place: Where<'_>) -> Result<StatusView, Trouble> {
    let mut notes = vec![];
    let fleets: Vec<GatewayFleet> = cluster.all(place, None, &mut notes).await?;
    let engines: Vec<Engine> = match cluster.all(place, None, &mut notes).await {
        Ok(engines) => engines,
        Err(trouble) => {
            notes.push(format!("engines are not shown: {trouble}"));
            vec![]
        }
    };
    let tally = tenants(cluster, place, &mut notes).await;
    if let Some(more @ 1..) = notes.len().checked_sub(UNREADABLE_MAX) {
        notes.truncate(UNREADABLE_MAX);
        notes.push(format!("and {more} more"));
    }
    Ok(view(&fleets, &engines, tally, notes))
}

/// Tenants of a fleet may be in any namespace: all are read if that is allowed, else those of this one.
async fn tenants(cluster: &Cluster, place: Where<'_>, notes: &mut Vec<String>) -> Tally {
    match tally(cluster, Where::All, place, notes).await {
        Ok(tally) => tally,
        Err(trouble) if trouble.forbidden && place != Where::All => match tally(cluster, place, place, notes).await {
            Ok(tally) => {
                notes.push("only tenants of this namespace are counted, as you may not list those of others".to_owned());
                tally
            }
            Err(trouble) => without(&trouble, notes),
        },
        Err(trouble) => without(&trouble, notes),
    }
}

fn without(trouble: &Trouble, notes: &mut Vec<String>) -> Tally {
    notes.push(format!("tenants are not counted: {trouble}"));
    Tally::default()
}

async fn tally(cluster: &Cluster, place: Where<'_>, fleets: Where<'_>, notes: &mut Vec<String>) -> Result<Tally, Trouble> {
    let mut tally = Tally::default();
    let mut unreadable = vec![];
    cluster
        .each::<TenantDomain>(place, None, |object| {
            match typed::<TenantDomain>(object) {
                Ok(tenant) if fleets.namespace().is_none_or(|namespace| fleet_of(&tenant).0 == namespace) => tally.add(&tenant),
                Ok(_) => {}
                Err(note) => unreadable.push(note),
            }
            true
        })
        .await?;
    notes.append(&mut unreadable);
    Ok(tally)
}
