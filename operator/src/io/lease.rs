//! The Lease at the API server, and the epoch on it.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::election::{DURATION_MS, Decision, GIVE_UP_MS, LOOK_MS, REQUEST_MS, RETRY_MS, Seen, Watch, rest_ms};
use crate::io::hub::EpochStore;

/// Annotation of the Lease: the epoch of the configuration's history.
pub const EPOCH: &str = "sekimori.dev/epoch";

/// The Lease, held.
pub struct Held {
    api: Api<Lease>,
    name: String,
    me: String,
    /// As it was written last; whoever writes next holds the lock.
    last: Mutex<Lease>,
    /// When the write was sent that took it.
    taken: Instant,
}

/// How long a holder that sent its last renewal then may go on.
fn left(sent: Instant) -> Duration {
    Duration::from_millis(GIVE_UP_MS).saturating_sub(sent.elapsed())
}

fn seen(lease: &Lease) -> Seen {
    Seen {
        holder: lease.spec.as_ref().and_then(|spec| spec.holder_identity.clone()).unwrap_or_default(),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
        epoch: epoch(lease),
    }
}

fn epoch(lease: &Lease) -> u64 {
    lease.metadata.annotations.as_ref().and_then(|annotations| annotations.get(EPOCH)).and_then(|text| text.parse().ok()).unwrap_or_default()
}

fn filled(mut lease: Lease, me: &str, epoch: u64) -> Lease {
    lease.metadata.annotations.get_or_insert_default().insert(EPOCH.to_owned(), epoch.to_string());
    let now = MicroTime(Timestamp::now());
    let spec = lease.spec.get_or_insert_default();
    if spec.holder_identity.as_deref() != Some(me) {
        spec.acquire_time = Some(now.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or_default() + 1);
    }
    spec.holder_identity = Some(me.to_owned());
    spec.lease_duration_seconds = i32::try_from(DURATION_MS / 1000).ok();
    spec.renew_time = Some(now);
    lease
}

/// Waits until the Lease is ours. The replace carries the version that was read, so of two that try at once one fails.
pub async fn acquire(client: &Client, namespace: &str, name: &str, me: &str) -> Held {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let mut watch = Watch::default();
    let began = Instant::now();
    loop {
        match attempt(&api, name, me, &mut watch, began).await {
            Ok(Some((lease, taken))) => {
                tracing::info!(event = "leading", epoch = epoch(&lease), "the Lease is ours");
                return Held { api, name: name.to_owned(), me: me.to_owned(), last: Mutex::new(lease), taken };
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(error, "the Lease {namespace}/{name} could not be read or taken: it is tried again"),
        }
        tokio::time::sleep(Duration::from_millis(LOOK_MS)).await;
    }
}

async fn timed<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, String> {
    match tokio::time::timeout(Duration::from_millis(REQUEST_MS), request).await {
        Ok(answered) => answered.map_err(|error| error.to_string()),
        Err(_) => Err("no answer in time".to_owned()),
    }
}

async fn attempt(api: &Api<Lease>, name: &str, me: &str, watch: &mut Watch, began: Instant) -> Result<Option<(Lease, Instant)>, String> {
    let lease = timed(api.get_opt(name)).await?;
    let now_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    // What counts is when the write was sent. The question before it may have taken as long again, and would cost a new holder half of its time.
    let sent = Instant::now();
    match watch.decide(me, lease.as_ref().map(seen), now_ms) {
        Decision::Wait => Ok(None),
        Decision::Create => {
            let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
            let lease = filled(Lease { metadata, spec: Some(LeaseSpec::default()) }, me, 1);
            timed(api.create(&PostParams::default(), &lease)).await.map(|lease| Some((lease, sent)))
        }
        Decision::Take { epoch, .. } => {
            let lease = filled(lease.unwrap_or_default(), me, epoch);
            timed(api.replace(name, &PostParams::default(), &lease)).await.map(|lease| Some((lease, sent)))
        }
    }
}

impl Held {
    /// The epoch to serve under.
    pub async fn epoch(&self) -> u64 {
        epoch(&*self.last.lock().await)
    }

    /// Renews it for as long as that works; returns when it is lost. What counts is when a renewal was *sent*: others may have seen it that early.
    pub async fn keep(self: Arc<Self>) {
        let mut sent = self.taken;
        let rest = |sent: Instant| Duration::from_millis(rest_ms(u64::try_from(sent.elapsed().as_millis()).unwrap_or(u64::MAX)));
        let mut pause = rest(sent);
        loop {
            tokio::time::sleep(pause.min(left(sent))).await;
            let began = Instant::now();
            match tokio::time::timeout(left(sent), self.renew()).await {
                Ok(Ok(())) => (sent, pause) = (began, rest(began)),
                Ok(Err(error)) => {
                    tracing::warn!(error, "the Lease could not be renewed");
                    pause = Duration::from_millis(RETRY_MS);
                    if matches!(tokio::time::timeout(left(sent), self.is_ours()).await, Ok(false)) {
                        return;
                    }
                }
                Err(_) => {}
            }
            if left(sent).is_zero() {
                return;
            }
        }
    }

    async fn renew(&self) -> Result<(), String> {
        let mut last = self.last.lock().await;
        let epoch = epoch(&last);
        self.write(&mut last, epoch).await
    }

    /// Whether nobody else holds it, as far as is known: no answer is no loss.
    async fn is_ours(&self) -> bool {
        match timed(self.api.get_opt(&self.name)).await {
            Ok(Some(lease)) => {
                let ours = seen(&lease).holder == self.me;
                if ours {
                    // Somebody wrote something else into it: the next renewal goes on from there.
                    *self.last.lock().await = lease;
                }
                ours
            }
            Ok(None) => false,
            Err(_) => true,
        }
    }

    async fn write(&self, last: &mut Lease, epoch: u64) -> Result<(), String> {
        let lease = filled(last.clone(), &self.me, epoch);
        *last = timed(self.api.replace(&self.name, &PostParams::default(), &lease)).await?;
        Ok(())
    }

    /// Gives it back, so that the next one need not wait.
    pub async fn release(&self) {
        let patch =
            serde_json::json!({"spec": {"holderIdentity": ""}, "metadata": {"resourceVersion": self.last.lock().await.metadata.resource_version}});
        if let Err(error) = timed(self.api.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch))).await {
            tracing::warn!(error, "the Lease could not be given back: the next leader waits until it expires");
        }
    }
}

impl EpochStore for Held {
    fn raise(&self, above: u64) -> BoxFuture<'_, Result<u64, String>> {
        async move {
            let mut last = self.last.lock().await;
            let epoch = epoch(&last).max(above) + 1;
            self.write(&mut last, epoch).await?;
            tracing::warn!(
                event = "epoch",
                epoch,
                "a gateway has seen a later configuration than this cluster knows of: everybody gets everything again"
            );
            Ok(epoch)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests;
