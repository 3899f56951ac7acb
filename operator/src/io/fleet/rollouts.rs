//! EngineRollouts: nothing acts on them yet, and that is said on each, in namespaces without a fleet too.

use kube::Api;
use sekimori_crds::v1alpha1::EngineRollout;

use super::{Controller, until_next_look};
use crate::io::clock;
use crate::io::cluster::{ClusterError, apply_status};
use crate::status::{RolloutKnown, engine_rollout_status};

/// Says what is to be said whenever something changed. It ends with the task that awaits it.
pub(super) async fn work(controller: &Controller) -> std::convert::Infallible {
    loop {
        until_next_look(look(controller).await, &controller.due.rollouts, "the status of an EngineRollout").await;
    }
}

async fn look(controller: &Controller) -> Result<(), ClusterError> {
    let world = &controller.world;
    for guard in world.rollouts.all() {
        // What cannot be read is of a newer API; nothing is done with it either way.
        let Ok(rollout) = &guard.0 else { continue };
        let (namespace, name) = (rollout.metadata.namespace.as_deref().unwrap_or_default(), rollout.metadata.name.as_deref().unwrap_or_default());
        let known = RolloutKnown {
            engine: &|name| world.engines.one(namespace, name).is_some(),
            version: &|name| world.versions.one(namespace, name).is_some(),
        };
        let status = engine_rollout_status(rollout, known, clock::unix_ms());
        if rollout.status.as_ref() != Some(&status) {
            let api: Api<EngineRollout> = Api::namespaced(controller.context.client.clone(), namespace);
            match apply_status(&api, name, &status).await {
                // It was deleted meanwhile.
                Err(error) if error.category() == "not_found" => {}
                other => other?,
            }
            controller.context.metrics.status_writes.with_label_values(&["EngineRollout"]).inc();
        }
    }
    Ok(())
}
