//! The operator of Sekimori: from custom resources to a running fleet.
//!
//! The decisions are pure, and [`io`] acts on them:
//!
//! * [`validate`]: what one object cannot state about itself: references, ports, volumes, versions; the outcome is a [`fleet::Fleet`] or what is wrong;
//! * [`plan`]: from a [`fleet::Fleet`] to the objects of a cluster, with the user's pod template patch in them;
//! * [`update`]: which pods drain, are replaced or go, step by step, from an [`observe`]d cluster;
//! * [`ownership`] and [`tenants`]: who may have which domain, for how long a claim outlives its tenant, and what becomes of one tenant;
//! * [`distribution`]: a fleet's configuration as history, and the way from any position in it to the newest one;
//! * [`measured`] and [`status`]: reports summed up; conditions, phases and the values of the printer columns;
//! * [`kubectl`]: what `kubectl sekimori` shows.
//!
//! What does not exist yet: engine rollouts (a changed version is reported, pods keep the recorded one), autoscaling, hand-over to peers, rescue of orphaned
//! spools. Two fields that wait for them are taken and reported as `NotSupportedYet`, and the fleet runs: `autoscaling` (it runs on `minReplicas`) and
//! `drain.handOver: Peers` (mail waits in its pod, as with `Wait`).
//!
//! Rules: nothing outside [`io`] reads a clock, a file or a socket; state and the time come in, data goes out. `plan` never decides when a pod goes, `update`
//! never makes a pod, and only `validate` makes a [`fleet::Fleet`]: what it let through is not checked again.

pub mod cli;
pub mod distribution;
pub mod election;
pub mod fleet;
pub mod identity;
pub mod io;
pub mod kubectl;
pub mod limiter;
pub mod measured;
pub mod names;
pub mod observe;
pub mod ownership;
pub mod plan;
pub mod settings;
pub mod status;
pub mod tenants;
pub mod turns;
pub mod update;
pub mod validate;
