//! The operator of Sekimori: from custom resources to a running fleet.
//!
//! What exists so far is the pure half, the decisions:
//!
//! * [`validate`]: what one object cannot state about itself: references, ports, volumes, versions; the outcome is a [`fleet::Fleet`] or what is wrong;
//! * [`plan`]: from a [`fleet::Fleet`] to the objects of a cluster, with the user's pod template patch in them;
//! * [`update`]: which pods drain, are replaced or go, step by step;
//! * [`ownership`]: who may have which domain, and for how long a claim outlives its tenant;
//! * [`status`]: conditions, phases and the values of the printer columns.
//!
//! What does not exist yet: everything that touches a cluster. There is no client, no reconciler, no Lease, no configuration stream, no TokenReview, no
//! ClientIPMasked, no status of Engines, MailPolicies and DomainGrants, no engine rollout, no autoscaling, no hand-over to peers, no rescue of orphaned
//! spools, no `kubectl sekimori`; the binary says so and exits with 2. Two fields that wait for them are taken and reported as `NotSupportedYet`, and the
//! fleet runs: `autoscaling` (it runs on `minReplicas`) and `drain.handOver: Peers` (mail waits in its pod, as with `Wait`).
//!
//! Rules: nothing outside `io/` (which does not exist yet) reads a clock, a file or a socket; state and the time come in, data goes out. `plan` never
//! decides when a pod goes, `update` never makes a pod, and only `validate` makes a [`fleet::Fleet`]: what it let through is not checked again.
//!
//! The planned pod template passes arguments that `sekimori-mta run` does not have yet: `--operator`, `--operator-ca`, `--operator-token`, `--snapshot-key`, `--admin-socket`.

pub mod distribution;
pub mod fleet;
pub mod io;
pub mod kubectl;
pub mod names;
pub mod ownership;
pub mod plan;
pub mod settings;
pub mod status;
pub mod update;
pub mod validate;
