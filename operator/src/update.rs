//! How the pods of a fleet come to what is wanted: restart-drain for a new template, retire-drain for fewer replicas or a deleted fleet.
//!
//! [`step`] is a pure function of what is wanted, what is seen, and the time. It keeps nothing: a drain is written on its pod (kind and since when), an empty
//! spool on its volume, so an operator that dies between any two actions goes on where it was. Every action is safe to repeat, and safe without the ones
//! after it.
//!
//! Promises, tested by simulation: no pod that serves is drained or deleted when `max_unavailable` pods are away already; replicas are lowered only past pods
//! whose last report, taken while they took no mail, says that nothing waits in them; a volume is deleted only when its pod said so and is gone; the end is
//! always [`Outcome::Done`] or [`Outcome::Paused`], as far as the pods do anything at all.
//!
//! Not here: how a gateway drains, what a pod looks like, engine swaps (they restart no pod), hand-over to peers (mail waits in its pod until then).

use std::collections::BTreeSet;

use sekimori_crds::v1alpha1::gateway_fleet::Reclaim;

/// A restart-drain waits for sessions to end at most so long; then the pod goes, and its own stop gives them 300 s more. In milliseconds.
pub const RESTART_DRAIN_MS: u64 = 300_000;
/// A report older than this says nothing, in milliseconds. Gateways report every few seconds.
pub const REPORT_AGE_MS_MAX: u64 = 30_000;
/// A pod that does not serve so long after it should is waited for no more: the update pauses. In milliseconds, beside `startup.maxWait`.
pub const PROGRESS_MS: u64 = 600_000;

/// What is wanted of the pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Number of pods.
    pub replicas: u32,
    /// Pods that may be away at once, at least 1.
    pub max_unavailable: u32,
    /// No pod is restarted.
    pub paused: bool,
    /// The fleet is being deleted: every pod retires.
    pub deleting: bool,
    /// What [`crate::plan::recorded_hash`] of a pod should be.
    pub template_hash: String,
    /// A retire-drain that takes longer raises an alert, and waits on.
    pub drain_timeout_ms: u64,
    /// How long a starting gateway may wait for its engines.
    pub startup_max_wait_ms: u64,
    /// What becomes of a retired pod's volume.
    pub reclaim: Reclaim,
}

/// Why a pod drains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DrainKind {
    /// Its sessions end, then it is replaced. The spool stays on its volume.
    Restart,
    /// It goes for good: its sessions end and its spool empties first.
    Retire,
}

/// A drain, as it is written on a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// Why.
    pub kind: DrainKind,
    /// Since when, in milliseconds.
    pub since_ms: u64,
}

/// Whether a gateway takes mail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It listens, or would if it did not drain.
    Yes,
    /// It is known not to: not started, or its container is down.
    No,
    /// Nobody knows: no stream, and the pod's own status is not clear.
    Unknown,
}

/// What a gateway last said over the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// When, in milliseconds.
    pub at_ms: u64,
    /// The drain that it had begun by then. While it has, it takes no new mail.
    pub draining: Option<DrainKind>,
    /// Open sessions.
    pub sessions: u32,
    /// Messages in the spool, held ones and those on their way to the store included.
    pub spooled: u64,
    /// Messages in quarantine and dead letters on its volume.
    pub kept: u64,
}

/// One pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodView {
    /// Its number in the StatefulSet.
    pub ordinal: u32,
    /// Its uid: what is decided about this pod is not done to its successor.
    pub uid: String,
    /// When it was made, in milliseconds.
    pub created_ms: u64,
    /// The template that it was made from.
    pub template_hash: Option<String>,
    /// It is being deleted.
    pub terminating: bool,
    /// It has the intake label.
    pub intake_open: bool,
    /// The drain written on it.
    pub drain: Option<Drain>,
    /// Whether it takes mail.
    pub serving: Serving,
    /// Since when that is so, in milliseconds. The time of the pod's Ready condition tells it, so that it outlives the operator.
    pub serving_since_ms: u64,
    /// Its last report.
    pub report: Option<Report>,
}

/// One spool volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeView {
    /// The pod that it belongs to.
    pub ordinal: u32,
    /// It is bound to storage; before that there can be nothing on it.
    pub bound: bool,
    /// It is marked as empty.
    pub empty: bool,
}

/// What is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    /// Replicas of the StatefulSet. `None`: there is none yet, and it will be made with as many as are wanted.
    pub set_replicas: Option<u32>,
    /// The pods, each ordinal once.
    pub pods: Vec<PodView>,
    /// The volumes, each ordinal once.
    pub volumes: Vec<VolumeView>,
}

/// One thing to do. They are done in order; what fails ends the turn, and the next one begins with a new look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take the mark off a volume: its pod takes mail, or will.
    ClearVolumeMark {
        /// Whose.
        ordinal: u32,
    },
    /// Take a drain back.
    EndDrain {
        /// Which pod.
        ordinal: u32,
        /// This one and no other.
        uid: String,
    },
    /// Set or take away the intake label.
    SetIntake {
        /// Which pod.
        ordinal: u32,
        /// This one and no other.
        uid: String,
        /// Whether mail comes in.
        open: bool,
    },
    /// Write a drain on a pod, and tell the gateway.
    StartDrain {
        /// Which pod.
        ordinal: u32,
        /// This one and no other.
        uid: String,
        /// The drain.
        drain: Drain,
    },
    /// Delete a pod; the StatefulSet makes a new one of the current template.
    DeletePod {
        /// Which pod.
        ordinal: u32,
        /// This one and no other.
        uid: String,
    },
    /// Mark a volume as empty.
    MarkVolumeEmpty {
        /// Whose.
        ordinal: u32,
    },
    /// Write the StatefulSet's replicas. Nothing else changes them: a plan is applied with the number that there is.
    SetReplicas {
        /// So many.
        replicas: u32,
    },
    /// Delete a volume.
    DeleteVolume {
        /// Whose.
        ordinal: u32,
    },
    /// Take the finalizer off the fleet: nothing is left that must outlive it.
    ReleaseFleet,
}

/// Why nothing more is done until somebody does something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pause {
    /// `update.paused`, with pods that are outdated.
    ByUser {
        /// These.
        outdated: Vec<u32>,
    },
    /// Pods of the new template do not serve; the others are left alone.
    NotServing {
        /// These.
        ordinals: Vec<u32>,
    },
    /// Pods that retire still have mail after `drain.timeout`. Nothing is removed.
    DrainTimeout {
        /// These.
        ordinals: Vec<u32>,
    },
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// All is as wanted.
    Done,
    /// It goes on by itself.
    Working,
    /// It waits for somebody.
    Paused(Pause),
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// These, in order.
    pub actions: Vec<Action>,
    /// How far it is, before they are done.
    pub outcome: Outcome,
    /// When to look again even if nothing changes, in milliseconds. `None`: nothing is waited for.
    pub again_at_ms: Option<u64>,
}

/// Decides what to do now.
pub fn step(wanted: &Wanted, seen: &Observation, now_ms: u64) -> Step {
    let target = if wanted.deleting { 0 } else { wanted.replicas };
    let set = seen.set_replicas.unwrap_or(target);
    let mut turn =
        Turn { wanted, seen, now_ms, target, set, actions: vec![], drains: seen.pods.iter().map(|pod| pod.drain).collect(), away: BTreeSet::new() };
    turn.clear_marks();
    turn.end_needless_drains();
    turn.drain_retired();
    turn.restart();
    turn.intake();
    turn.replicas();
    turn.volumes();
    let outcome = turn.outcome();
    let again_at_ms = turn.again_at_ms(&outcome);
    Step { actions: turn.actions, outcome, again_at_ms }
}

struct Turn<'a> {
    wanted: &'a Wanted,
    seen: &'a Observation,
    now_ms: u64,
    /// Pods that should stay: those below it.
    target: u32,
    /// Replicas of the StatefulSet.
    set: u32,
    actions: Vec<Action>,
    /// The drain of each pod after the actions so far, in the order of the pods.
    drains: Vec<Option<Drain>>,
    /// Pods that this turn deletes.
    away: BTreeSet<u32>,
}

impl<'a> Turn<'a> {
    fn pods(&self) -> impl Iterator<Item = (usize, &'a PodView)> + use<'a> {
        self.seen.pods.iter().enumerate()
    }

    fn drain(&self, index: usize) -> Option<Drain> {
        self.drains.get(index).copied().flatten()
    }

    fn start(&mut self, index: usize, pod: &PodView, kind: DrainKind) {
        let drain = Drain { kind, since_ms: self.now_ms };
        self.actions.push(Action::StartDrain { ordinal: pod.ordinal, uid: pod.uid.clone(), drain });
        if let Some(slot) = self.drains.get_mut(index) {
            *slot = Some(drain);
        }
    }

    fn end(&mut self, index: usize, pod: &PodView) {
        self.actions.push(Action::EndDrain { ordinal: pod.ordinal, uid: pod.uid.clone() });
        if let Some(slot) = self.drains.get_mut(index) {
            *slot = None;
        }
    }

    fn delete(&mut self, pod: &PodView) {
        self.actions.push(Action::DeletePod { ordinal: pod.ordinal, uid: pod.uid.clone() });
        self.away.insert(pod.ordinal);
    }

    fn outdated(&self, pod: &PodView) -> bool {
        pod.template_hash.as_deref() != Some(&self.wanted.template_hash)
    }

    /// The report of a pod, if it is fresh enough to act on.
    fn report(&self, pod: &PodView) -> Option<Report> {
        pod.report.filter(|report| self.now_ms.saturating_sub(report.at_ms) <= REPORT_AGE_MS_MAX)
    }

    /// The report of a pod that has begun this drain and has no session left.
    fn quiet(&self, pod: &PodView, kind: DrainKind) -> Option<Report> {
        let drain = pod.drain.filter(|drain| drain.kind == kind)?;
        self.report(pod).filter(|report| report.draining == Some(kind) && report.at_ms >= drain.since_ms && report.sessions == 0)
    }

    fn volume(&self, ordinal: u32) -> Option<&'a VolumeView> {
        self.seen.volumes.iter().find(|volume| volume.ordinal == ordinal)
    }

    /// A mark holds only while its pod is gone for good, or drains towards that. A pod that came back may have taken mail since.
    fn clear_marks(&mut self) {
        for volume in self.seen.volumes.iter().filter(|volume| volume.empty) {
            let pod = self.seen.pods.iter().find(|pod| pod.ordinal == volume.ordinal);
            let comes_back = volume.ordinal < self.target;
            let took_mail = pod.is_some_and(|pod| !pod.terminating && self.emptied(pod).is_none());
            if comes_back || took_mail {
                self.actions.push(Action::ClearVolumeMark { ordinal: volume.ordinal });
            }
        }
    }

    /// The report of a pod that retires and has nothing left to deliver.
    fn emptied(&self, pod: &PodView) -> Option<Report> {
        self.quiet(pod, DrainKind::Retire).filter(|report| report.spooled == 0)
    }

    /// Pods beyond the target take no mail any more.
    fn drain_retired(&mut self) {
        let target = self.target;
        for (index, pod) in self.pods().filter(|(_, pod)| pod.ordinal >= target && !pod.terminating) {
            if self.drain(index).is_none_or(|drain| drain.kind != DrainKind::Retire) {
                self.start(index, pod, DrainKind::Retire);
            }
        }
    }

    /// A drain that nobody wants any more is taken back: more replicas again, the old template again, a pause, or so many other pods lost meanwhile
    /// that this one is needed.
    fn end_needless_drains(&mut self) {
        let target = self.target;
        for (index, pod) in self.pods().filter(|(_, pod)| pod.ordinal < target && !pod.terminating) {
            let Some(drain) = self.drain(index) else { continue };
            let over = self.unavailable() > self.wanted.max_unavailable && pod.serving != Serving::No;
            let needless = drain.kind == DrainKind::Retire || !self.outdated(pod) || self.wanted.paused || over;
            if needless {
                self.end(index, pod);
            }
        }
    }

    fn available(&self, index: usize, pod: &PodView) -> bool {
        pod.serving == Serving::Yes && !pod.terminating && self.drain(index).is_none() && !self.away.contains(&pod.ordinal)
    }

    /// Pods below the target that do not take mail for certain, those that are not there included.
    fn unavailable(&self) -> u32 {
        let available = self.pods().filter(|(index, pod)| pod.ordinal < self.target && self.available(*index, pod)).count();
        self.target.saturating_sub(u32::try_from(available).unwrap_or(u32::MAX))
    }

    /// Replaces outdated pods.
    fn restart(&mut self) {
        if self.wanted.paused {
            return;
        }
        let mut outdated: Vec<(usize, &PodView)> = self.pods().filter(|(_, pod)| !pod.terminating && self.outdated(pod)).collect();
        outdated.sort_by_key(|(_, pod)| std::cmp::Reverse(pod.ordinal));
        for (index, pod) in outdated {
            if pod.serving == Serving::No && self.report(pod).is_none() {
                // It takes no mail as it is: a new template may be what it needs. This is also how a pod that retires comes to deliver what it has.
                self.delete(pod);
            } else if pod.ordinal >= self.target {
                // It goes anyway.
            } else if let Some(drain) = self.drain(index) {
                let waited = self.now_ms.saturating_sub(drain.since_ms) >= RESTART_DRAIN_MS;
                if waited || self.quiet(pod, DrainKind::Restart).is_some() {
                    self.delete(pod);
                }
            } else {
                let counted = u32::from(!self.available(index, pod));
                if self.unavailable() - counted < self.wanted.max_unavailable {
                    self.start(index, pod, DrainKind::Restart);
                }
            }
        }
    }

    /// The intake label of every pod: none on one that drains or goes, and none on one that is known not to serve, unless no other would have it.
    /// Where nothing is known it stays as it is: the gateway itself refuses what it cannot take, and one that starts is not opened before it serves.
    fn intake(&mut self) {
        let going = |turn: &Self, index: usize, pod: &PodView| pod.terminating || turn.drain(index).is_some() || turn.away.contains(&pod.ordinal);
        let may_serve = |pod: &PodView| pod.serving == Serving::Yes || (pod.serving == Serving::Unknown && pod.intake_open);
        let others = self.pods().any(|(index, pod)| !going(self, index, pod) && may_serve(pod));
        let mut wanted = vec![];
        for (index, pod) in self.pods() {
            let open = !going(self, index, pod) && (may_serve(pod) || (!others && pod.intake_open));
            if open != pod.intake_open {
                wanted.push(Action::SetIntake { ordinal: pod.ordinal, uid: pod.uid.clone(), open });
            }
        }
        // The label goes before the gateway is told and before a pod is deleted: no connection is sent to one that refuses it.
        let at = self
            .actions
            .iter()
            .position(|action| matches!(action, Action::StartDrain { .. } | Action::DeletePod { .. }))
            .unwrap_or(self.actions.len());
        self.actions.splice(at..at, wanted);
    }

    /// Whether the StatefulSet may lose this pod.
    fn may_go(&self, ordinal: u32) -> bool {
        match self.seen.pods.iter().find(|pod| pod.ordinal == ordinal) {
            Some(pod) if pod.terminating => false,
            Some(pod) => {
                let unused = self.volume(ordinal).is_none_or(|volume| !volume.bound) && pod.serving == Serving::No && pod.report.is_none();
                let abandoned = self.wanted.reclaim == Reclaim::Abandon && self.overdue(pod);
                unused || abandoned || self.emptied(pod).is_some()
            }
            // It was never there, or its volume is gone or marked. Else the StatefulSet brings it back, and then it can say what it has.
            None => self.volume(ordinal).is_none_or(|volume| volume.empty || !volume.bound),
        }
    }

    fn overdue(&self, pod: &PodView) -> bool {
        pod.drain.is_some_and(|drain| drain.kind == DrainKind::Retire && self.now_ms.saturating_sub(drain.since_ms) >= self.wanted.drain_timeout_ms)
    }

    /// The number of replicas, lowered past the highest pods that may go, and the marks of their volumes.
    fn replicas(&mut self) {
        let ordinals = self.seen.pods.iter().map(|pod| pod.ordinal).chain(self.seen.volumes.iter().map(|volume| volume.ordinal));
        let staying = ordinals.filter(|ordinal| *ordinal < self.set && !self.may_go(*ordinal)).map(|ordinal| ordinal + 1).max();
        let replicas = staying.unwrap_or(0).max(self.target);
        for pod in self.seen.pods.iter().filter(|pod| pod.ordinal >= replicas) {
            let empty = self.emptied(pod).is_some_and(|report| report.kept == 0);
            if empty && self.volume(pod.ordinal).is_some_and(|volume| !volume.empty) {
                self.actions.push(Action::MarkVolumeEmpty { ordinal: pod.ordinal });
            }
        }
        if self.seen.set_replicas.is_some_and(|set| set != replicas) {
            self.actions.push(Action::SetReplicas { replicas });
        }
    }

    /// Volumes whose pods are gone for good.
    fn volumes(&mut self) {
        let gone = |ordinal: u32| ordinal >= self.target && ordinal >= self.set && self.seen.pods.iter().all(|pod| pod.ordinal != ordinal);
        let ordinals: Vec<u32> =
            self.seen.volumes.iter().filter(|volume| gone(volume.ordinal) && self.reclaimed(volume)).map(|volume| volume.ordinal).collect();
        let none_left = ordinals.is_empty() && self.seen.pods.is_empty() && self.seen.set_replicas.is_none_or(|set| set == 0);
        self.actions.extend(ordinals.into_iter().map(|ordinal| Action::DeleteVolume { ordinal }));
        if self.wanted.deleting && none_left {
            self.actions.push(Action::ReleaseFleet);
        }
    }

    const fn reclaimed(&self, volume: &VolumeView) -> bool {
        match self.wanted.reclaim {
            Reclaim::WhenEmpty => volume.empty,
            Reclaim::Retain => false,
            Reclaim::Abandon => true,
        }
    }

    /// When a pod that should serve is waited for no more.
    const fn deadline_ms(&self, pod: &PodView) -> u64 {
        let since_ms = if pod.serving_since_ms > pod.created_ms { pod.serving_since_ms } else { pod.created_ms };
        since_ms.saturating_add(self.wanted.startup_max_wait_ms).saturating_add(PROGRESS_MS)
    }

    fn outcome(&self) -> Outcome {
        let retiring = || self.seen.pods.iter().filter(|pod| pod.ordinal >= self.target);
        let overdue: Vec<u32> =
            retiring().filter(|pod| !pod.terminating && self.overdue(pod) && !self.may_go(pod.ordinal)).map(|pod| pod.ordinal).collect();
        let staying = || self.seen.pods.iter().filter(|pod| pod.ordinal < self.target);
        let missing = self.target as usize - staying().count().min(self.target as usize);
        let outdated: Vec<u32> = staying().filter(|pod| self.outdated(pod)).map(|pod| pod.ordinal).collect();
        let waiting: Vec<&PodView> = staying().filter(|pod| pod.serving != Serving::Yes || pod.terminating).collect();
        let stalled: Vec<u32> = waiting
            .iter()
            .filter(|pod| !pod.terminating && !self.outdated(pod) && self.now_ms >= self.deadline_ms(pod))
            .map(|pod| pod.ordinal)
            .collect();
        let acting = self.actions.iter().any(|action| !matches!(action, Action::SetIntake { .. })) || staying().any(|pod| pod.drain.is_some());
        if !overdue.is_empty() {
            Outcome::Paused(Pause::DrainTimeout { ordinals: overdue })
        } else if acting || missing > 0 || retiring().next().is_some() || self.set != self.target {
            Outcome::Working
        } else if !stalled.is_empty() && stalled.len() == waiting.len() {
            Outcome::Paused(Pause::NotServing { ordinals: stalled })
        } else if self.wanted.paused && !outdated.is_empty() {
            Outcome::Paused(Pause::ByUser { outdated })
        } else if outdated.is_empty() && waiting.is_empty() {
            Outcome::Done
        } else {
            Outcome::Working
        }
    }

    fn again_at_ms(&self, outcome: &Outcome) -> Option<u64> {
        if *outcome == Outcome::Done {
            return None;
        }
        let mut times = vec![self.now_ms.saturating_add(REPORT_AGE_MS_MAX)];
        for (index, pod) in self.pods() {
            times.extend(match self.drain(index) {
                Some(Drain { kind: DrainKind::Restart, since_ms }) => Some(since_ms.saturating_add(RESTART_DRAIN_MS)),
                Some(Drain { kind: DrainKind::Retire, since_ms }) => Some(since_ms.saturating_add(self.wanted.drain_timeout_ms)),
                None => Some(self.deadline_ms(pod)),
            });
        }
        times.into_iter().filter(|at| *at > self.now_ms).min()
    }
}

#[cfg(test)]
mod tests;
