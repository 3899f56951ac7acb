//! How the pods of a fleet come to what is wanted: restart-drain for a new template, retire-drain for fewer replicas or a deleted fleet.
//!
//! [`step`] is a pure function of what is wanted, what is seen, and the time. It keeps nothing: a drain is written on its pod (kind and since when), an empty
//! spool on its volume, so an operator that dies between any two actions goes on where it was. Every action is safe to repeat, and safe without the ones
//! after it.
//!
//! Promises, tested by simulation: no pod that serves is drained or deleted when `max_unavailable` pods are away already; replicas are lowered only past pods
//! whose last report, taken while they took no mail, says that nothing waits in them; a volume is deleted only when its pod said so and is gone; a volume that
//! nobody said so of has a pod, or gets one; the end is always [`Outcome::Done`] or [`Outcome::Paused`], as far as the pods do anything at all.
//!
//! Not here: how a gateway drains, what a pod looks like, engine swaps (they restart no pod), hand-over to peers (mail waits in its pod until then).

use std::collections::{BTreeMap, BTreeSet};

use sekimori_crds::v1alpha1::gateway_fleet::Reclaim;

/// A restart-drain waits for sessions to end at most so long; then the pod goes, and its own stop gives them 300 s more. In milliseconds.
pub const RESTART_DRAIN_MS: u64 = 300_000;
/// A report older than this says nothing, in milliseconds. Gateways report every few seconds.
pub const REPORT_AGE_MS_MAX: u64 = 30_000;
/// A pod that does not serve so long after it should is waited for no more: the update pauses. In milliseconds, beside `startup.maxWait`.
pub const PROGRESS_MS: u64 = 600_000;

/// A volume of a higher number gets no pod back by itself: the StatefulSet would make all pods before it, too. No fleet has more pods.
pub const ORDINAL_MAX: u32 = 1000;

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

/// What is written on a volume whose pod has nothing more to deliver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// There is nothing on it.
    Empty,
    /// Nothing waits on it, but it has a quarantine or dead letters.
    Kept,
    /// `drain.timeout` is over, and `spool.reclaim` gives up what is left.
    Abandoned,
}

/// One spool volume.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VolumeView {
    /// The pod that it belongs to.
    pub ordinal: u32,
    /// It is bound to storage; before that there can be nothing on it.
    pub bound: bool,
    /// What its pod said at last. Without it there may be mail on it.
    pub mark: Option<Mark>,
    /// Somebody deletes its claim. It goes once no pod uses it and nobody holds it.
    pub terminating: bool,
    /// Its claim has our finalizer.
    pub held: bool,
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
    /// Why no StatefulSet can be made. `None`: one can, or there is one.
    pub barred: Option<Barred>,
}

/// Why no StatefulSet can be made where there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Barred {
    /// Something is wrong with the fleet.
    Invalid,
    /// The namespace is being deleted, so there will never be another pod. Volumes whose gateways said at their end that nothing is in them are let
    /// go.
    Namespace {
        /// Whose.
        empty: BTreeSet<u32>,
    },
}

/// One thing to do. They are done in order; what fails ends the turn, and the next one begins with a new look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Take the mark off a volume: its pod takes mail, or will.
    ClearVolumeMark {
        /// Whose.
        ordinal: u32,
    },
    /// Put our finalizer on a volume's claim: it stays, whoever deletes it, until its pod says that nothing waits on it.
    HoldVolume {
        /// Whose.
        ordinal: u32,
    },
    /// Take it off a claim that somebody deletes: nothing waits on it.
    ReleaseVolume {
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
    /// Write on a volume what its pod said at last.
    MarkVolume {
        /// Whose.
        ordinal: u32,
        /// What.
        mark: Mark,
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
    /// Somebody deletes the claims of these pods while they run. They are not restarted: a successor could not use what is on the volume.
    VolumeGoing {
        /// These.
        ordinals: Vec<u32>,
    },
    /// The volumes of these pods may have mail, and no pod can be made that delivers it. Nothing is removed.
    Stranded {
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

/// How many replicas a StatefulSet gets that is not there: those that are wanted, and the pods of volumes that may have mail. Their marks count as they are: one
/// below the number is taken off before its pod is asked again.
pub fn replicas_of_new_set(wanted: &Wanted, seen: &Observation) -> u32 {
    let target = if wanted.deleting { 0 } else { wanted.replicas };
    let unsettled = seen.volumes.iter().filter(|volume| volume.bound && volume.mark.is_none() && volume.ordinal < ORDINAL_MAX);
    unsettled.map(|volume| volume.ordinal + 1).max().unwrap_or(0).max(target)
}

/// Decides what to do now.
pub fn step(wanted: &Wanted, seen: &Observation, now_ms: u64) -> Step {
    let target = if wanted.deleting { 0 } else { wanted.replicas };
    let set = seen.set_replicas.unwrap_or_else(|| replicas_of_new_set(wanted, seen));
    let mut turn = Turn {
        wanted,
        seen,
        now_ms,
        target,
        set,
        actions: vec![],
        drains: seen.pods.iter().map(|pod| pod.drain).collect(),
        marks: BTreeMap::new(),
        away: BTreeSet::new(),
    };
    turn.clear_marks();
    turn.hold_volumes();
    turn.end_needless_drains();
    turn.correct_drains();
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
    /// The marks that hold.
    marks: BTreeMap<u32, Mark>,
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

    fn pod(&self, ordinal: u32) -> Option<&'a PodView> {
        self.seen.pods.iter().find(|pod| pod.ordinal == ordinal)
    }

    /// What a pod that may go leaves on its volume.
    fn earned(&self, pod: &PodView) -> Option<Mark> {
        if pod.terminating {
            return None;
        }
        let abandoned = || (self.wanted.reclaim == Reclaim::Abandon && self.overdue(pod)).then_some(Mark::Abandoned);
        self.emptied(pod).map(|report| if report.kept == 0 { Mark::Empty } else { Mark::Kept }).or_else(abandoned)
    }

    /// A mark holds while its pod has what earns it, and once the StatefulSet will not bring that pod back. As long as it would, one that is not there has a
    /// successor, which takes mail as soon as it starts, with or without an operator.
    fn clear_marks(&mut self) {
        for volume in &self.seen.volumes {
            let Some(mark) = volume.mark else { continue };
            let beyond = volume.ordinal >= self.set;
            let holds = match self.pod(volume.ordinal) {
                None => beyond,
                // A successor that came before its StatefulSet was lowered has no drain.
                Some(pod) if pod.terminating => beyond && pod.drain.is_some_and(|drain| drain.kind == DrainKind::Retire),
                Some(pod) => self.earned(pod) == Some(mark),
            };
            if holds && volume.ordinal >= self.target {
                self.marks.insert(volume.ordinal, mark);
            } else {
                self.actions.push(Action::ClearVolumeMark { ordinal: volume.ordinal });
            }
        }
    }

    /// Whether there may be mail on a volume.
    fn unsettled(&self, volume: &VolumeView) -> bool {
        volume.bound && !self.marks.contains_key(&volume.ordinal)
    }

    /// A claim that is being deleted already can get no finalizer any more.
    fn hold_volumes(&mut self) {
        if self.namespace_goes() {
            return;
        }
        // One whose gateway has not started yet has nothing on it that this gateway took.
        let used = |ordinal| self.pod(ordinal).is_none_or(|pod| pod.serving != Serving::No || pod.report.is_some());
        let lacks = |volume: &&VolumeView| volume.mark.is_none() && volume.bound && !volume.held && !volume.terminating;
        let holds = self.seen.volumes.iter().filter(lacks).filter(|volume| used(volume.ordinal));
        let holds: Vec<Action> = holds.map(|volume| Action::HoldVolume { ordinal: volume.ordinal }).collect();
        self.actions.extend(holds);
    }

    /// Whether the pod's volume has mail and goes with the pod, or stays where no successor can use it.
    fn volume_going(&self, ordinal: u32) -> bool {
        self.volume(ordinal).is_some_and(|volume| volume.terminating && self.unsettled(volume))
    }

    /// A drain from the future was written by an operator with another clock, and would be waited for as long as that is ahead: it begins now.
    fn correct_drains(&mut self) {
        for (index, pod) in self.pods().filter(|(_, pod)| !pod.terminating) {
            if let Some(drain) = self.drain(index).filter(|drain| drain.since_ms > self.now_ms) {
                self.start(index, pod, drain.kind);
            }
        }
    }

    /// The report of a pod that retires and has nothing left to deliver.
    fn emptied(&self, pod: &PodView) -> Option<Report> {
        self.quiet(pod, DrainKind::Retire).filter(|report| report.spooled == 0)
    }

    /// Too few of the pods that stay take mail: no other may stop doing so. A fleet that is deleted wants none.
    fn needs_everybody(&self) -> bool {
        let unavailable = self.unavailable();
        self.target > 0 && (unavailable > self.wanted.max_unavailable || unavailable >= self.target)
    }

    /// Pods that are to go and take mail until others do.
    fn held_back(&self) -> bool {
        self.needs_everybody() && self.pods().any(|(index, pod)| pod.ordinal >= self.target && self.available(index, pod))
    }

    /// Pods beyond the target take no mail any more.
    fn drain_retired(&mut self) {
        let target = self.target;
        let needed = self.needs_everybody();
        for (index, pod) in self.pods().filter(|(_, pod)| pod.ordinal >= target && !pod.terminating) {
            let serves = needed && self.available(index, pod);
            if !serves && self.drain(index).is_none_or(|drain| drain.kind != DrainKind::Retire) {
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
            let needless = drain.kind == DrainKind::Retire || !self.outdated(pod) || self.wanted.paused || over || self.volume_going(pod.ordinal);
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
            if self.volume_going(pod.ordinal) {
                // Its successor would have an empty volume, or wait for one that nobody can use.
            } else if pod.serving == Serving::No && self.report(pod).is_none() {
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
        match self.pod(ordinal) {
            Some(pod) if pod.terminating => false,
            Some(pod) => {
                let unused = self.volume(ordinal).is_none_or(|volume| !volume.bound) && pod.serving == Serving::No && pod.report.is_none();
                unused || self.earned(pod).is_some()
            }
            // It was never there, or its volume is gone. Else the StatefulSet brings it back, and then it can say what it has.
            None => self.volume(ordinal).is_none_or(|volume| !volume.bound),
        }
    }

    fn overdue(&self, pod: &PodView) -> bool {
        pod.drain.is_some_and(|drain| drain.kind == DrainKind::Retire && self.now_ms.saturating_sub(drain.since_ms) >= self.wanted.drain_timeout_ms)
    }

    /// Volumes with mail whose pods the StatefulSet does not bring back: somebody lowered it, or deleted it. Whose pod is still there may yet be marked.
    fn stranded(&self) -> impl Iterator<Item = u32> {
        let stranded = |volume: &&VolumeView| self.unsettled(volume) && self.pod(volume.ordinal).is_none();
        self.seen.volumes.iter().filter(stranded).map(|volume| volume.ordinal).filter(|ordinal| *ordinal >= self.target && *ordinal >= self.set)
    }

    /// The number of replicas, lowered past the highest pods that may go, raised to those that must come back, and the marks of volumes.
    fn replicas(&mut self) {
        let ordinals = self.seen.pods.iter().map(|pod| pod.ordinal).chain(self.seen.volumes.iter().map(|volume| volume.ordinal));
        let staying = ordinals.filter(|ordinal| *ordinal < self.set && !self.may_go(*ordinal)).map(|ordinal| ordinal + 1).max();
        let back = self.stranded().filter(|ordinal| *ordinal < ORDINAL_MAX).map(|ordinal| ordinal + 1).max();
        let replicas = staying.max(back).unwrap_or(0).max(self.target);
        for pod in self.seen.pods.iter().filter(|pod| pod.ordinal >= replicas) {
            let Some(mark) = self.earned(pod) else { continue };
            if self.volume(pod.ordinal).is_some_and(|volume| volume.mark != Some(mark)) {
                self.actions.push(Action::MarkVolume { ordinal: pod.ordinal, mark });
            }
        }
        if self.seen.set_replicas.is_some_and(|set| set != replicas) {
            self.actions.push(Action::SetReplicas { replicas });
        }
    }

    /// Volumes whose pods are gone for good.
    fn volumes(&mut self) {
        let mut left = false;
        let mut actions = vec![];
        for volume in &self.seen.volumes {
            let ordinal = volume.ordinal;
            let gone = ordinal >= self.target && (ordinal >= self.set || self.barred()) && self.pod(ordinal).is_none();
            let mark = self.marks.get(&ordinal).copied();
            let last_word = matches!(&self.seen.barred, Some(Barred::Namespace { empty }) if empty.contains(&ordinal));
            if gone && mark.is_some_and(|mark| self.reclaims(mark)) {
                actions.push(Action::DeleteVolume { ordinal });
                left = true;
            } else if gone && volume.held && ((mark.is_some() && volume.terminating) || last_word) {
                actions.push(Action::ReleaseVolume { ordinal });
                left = true;
            } else if self.unsettled(volume) && !last_word && (volume.held || !self.namespace_goes()) {
                left = true;
            }
        }
        self.actions.append(&mut actions);
        let none_left = !left && self.seen.pods.is_empty() && self.seen.set_replicas.is_none_or(|set| set == 0);
        if self.wanted.deleting && none_left {
            self.actions.push(Action::ReleaseFleet);
        }
    }

    /// Whoever does not hold a claim loses it.
    const fn namespace_goes(&self) -> bool {
        matches!(self.seen.barred, Some(Barred::Namespace { .. }))
    }

    /// There is no StatefulSet, and none can be made.
    const fn barred(&self) -> bool {
        self.seen.set_replicas.is_none() && self.seen.barred.is_some()
    }

    fn reclaims(&self, mark: Mark) -> bool {
        match self.wanted.reclaim {
            Reclaim::WhenEmpty => mark == Mark::Empty,
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
        let going: Vec<u32> = staying().filter(|pod| self.volume_going(pod.ordinal)).map(|pod| pod.ordinal).collect();
        let lost = self.lost();
        let leaving = !self.held_back() && (retiring().next().is_some() || self.set != self.target);
        let acting = self.actions.iter().any(|action| !matches!(action, Action::SetIntake { .. })) || staying().any(|pod| pod.drain.is_some());
        if !overdue.is_empty() {
            Outcome::Paused(Pause::DrainTimeout { ordinals: overdue })
        } else if !lost.is_empty() {
            Outcome::Paused(Pause::Stranded { ordinals: lost })
        } else if acting || missing > 0 || leaving {
            Outcome::Working
        } else if !stalled.is_empty() && stalled.len() == waiting.len() {
            Outcome::Paused(Pause::NotServing { ordinals: stalled })
        } else if self.wanted.paused && !outdated.is_empty() {
            Outcome::Paused(Pause::ByUser { outdated })
        } else if !going.is_empty() {
            Outcome::Paused(Pause::VolumeGoing { ordinals: going })
        } else if outdated.is_empty() && waiting.is_empty() {
            Outcome::Done
        } else {
            Outcome::Working
        }
    }

    /// Volumes with mail that get no pod, and that nothing is done about.
    fn lost(&self) -> Vec<u32> {
        let barred = self.barred() && self.seen.pods.is_empty();
        let released = |ordinal: u32| self.actions.contains(&Action::ReleaseVolume { ordinal });
        let volumes = self.seen.volumes.iter().filter(|volume| self.unsettled(volume) && (volume.held || !self.namespace_goes()));
        let ordinals = volumes.map(|volume| volume.ordinal).filter(|ordinal| self.pod(*ordinal).is_none() && !released(*ordinal));
        ordinals.filter(|ordinal| barred || *ordinal >= ORDINAL_MAX).collect()
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
