//! The update against a simulated cluster: pods that start, crash, hang and lose their stream, a StatefulSet controller, mail that comes and goes, users who
//! change their minds, and an operator that dies between any two actions.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sekimori_crds::v1alpha1::gateway_fleet::Reclaim;
use sekimori_operator::update::{
    Action, Drain, DrainKind, Mark, Observation, Outcome, PROGRESS_MS, Pause, PodView, RESTART_DRAIN_MS, Report, Serving, Step, VolumeView, Wanted,
    replicas_of_new_set, step,
};

const START_MS: u64 = 20_000;
const STOP_MS: u64 = 10_000;
const DRAIN_TIMEOUT_MS: u64 = 1_800_000;
/// Templates above this make pods that never serve.
const BAD: u32 = 100;

/// One pod of the simulated cluster.
#[derive(Clone, Debug)]
struct Pod {
    uid: String,
    created_ms: u64,
    template: u32,
    /// It serves from then on, if its template is any good.
    ready_ms: u64,
    /// It has no stream until then.
    cut_ms: u64,
    gone_ms: Option<u64>,
    intake: bool,
    drain: Option<Drain>,
    /// What the gateway itself knows of its drain.
    told: Option<DrainKind>,
    sessions: u32,
    serving: Serving,
    serving_since_ms: u64,
    /// Its sessions do not end.
    stuck: bool,
    report: Option<Report>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Volume {
    mail: u64,
    kept: u64,
    mark: Option<Mark>,
    held: bool,
    terminating: bool,
}

/// A cluster, and what the user wants of it.
#[derive(Clone, Debug)]
struct Cluster {
    now_ms: u64,
    wanted: Wanted,
    template: u32,
    set: Option<u32>,
    pods: BTreeMap<u32, Pod>,
    volumes: BTreeMap<u32, Volume>,
    /// Pods that have no place before that.
    absent_ms: BTreeMap<u32, u64>,
    made: u64,
    accepted: u64,
    delivered: u64,
    /// The customers' servers do not answer.
    dead_route: bool,
    released: bool,
}

impl Cluster {
    fn new(replicas: u32, max_unavailable: u32, reclaim: Reclaim) -> Self {
        let wanted = Wanted {
            replicas,
            max_unavailable,
            paused: false,
            deleting: false,
            template_hash: String::new(),
            drain_timeout_ms: DRAIN_TIMEOUT_MS,
            startup_max_wait_ms: 60_000,
            reclaim,
        };
        let mut cluster = Self {
            now_ms: 1_000_000,
            wanted,
            template: 0,
            set: None,
            pods: BTreeMap::new(),
            volumes: BTreeMap::new(),
            absent_ms: BTreeMap::new(),
            made: 0,
            accepted: 0,
            delivered: 0,
            dead_route: false,
            released: false,
        };
        cluster.use_template(1);
        cluster
    }

    fn use_template(&mut self, template: u32) {
        self.template = template;
        self.wanted.template_hash = template.to_string();
    }

    fn target(&self) -> u32 {
        if self.wanted.deleting { 0 } else { self.wanted.replicas }
    }

    /// Whether a pod would take mail if it did not drain.
    fn serves(&self, ordinal: u32) -> bool {
        self.pods.get(&ordinal).is_some_and(|pod| pod.template < BAD && self.now_ms >= pod.ready_ms && pod.gone_ms.is_none())
    }

    /// Pods that should take mail and do not.
    fn away(&self) -> u32 {
        let there =
            (0..self.target()).filter(|ordinal| self.serves(*ordinal) && self.pods.get(ordinal).is_some_and(|pod| pod.drain.is_none())).count();
        self.target() - u32::try_from(there).expect("few pods")
    }

    /// What is known about who serves.
    fn watch(&mut self) {
        let ordinals: Vec<u32> = self.pods.keys().copied().collect();
        for ordinal in ordinals {
            let serves = self.serves(ordinal);
            let Some(pod) = self.pods.get_mut(&ordinal) else { continue };
            let serving = match (self.now_ms < pod.cut_ms, serves) {
                (true, _) => Serving::Unknown,
                (false, true) => Serving::Yes,
                (false, false) => Serving::No,
            };
            if serving != pod.serving {
                (pod.serving, pod.serving_since_ms) = (serving, self.now_ms);
            }
        }
    }

    fn seen(&self) -> Observation {
        let pods = self.pods.iter().map(|(ordinal, pod)| PodView {
            ordinal: *ordinal,
            uid: pod.uid.clone(),
            created_ms: pod.created_ms,
            template_hash: Some(pod.template.to_string()),
            terminating: pod.gone_ms.is_some(),
            intake_open: pod.intake,
            drain: pod.drain,
            serving: pod.serving,
            serving_since_ms: pod.serving_since_ms,
            report: pod.report,
        });
        let volumes = self.volumes.iter().map(|(ordinal, volume)| VolumeView {
            ordinal: *ordinal,
            bound: true,
            mark: volume.mark,
            terminating: volume.terminating,
            held: volume.held,
        });
        Observation { set_replicas: self.set, pods: pods.collect(), volumes: volumes.collect(), barred: None }
    }

    /// Time passes.
    fn tick(&mut self, ms: u64) {
        self.now_ms += ms;
        let now_ms = self.now_ms;
        self.pods.retain(|_, pod| pod.gone_ms.is_none_or(|gone| gone > now_ms));
        let ordinals: Vec<u32> = self.pods.keys().copied().collect();
        for ordinal in ordinals {
            let serves = self.serves(ordinal);
            let dead_route = self.dead_route;
            let (Some(pod), Some(volume)) = (self.pods.get_mut(&ordinal), self.volumes.get_mut(&ordinal)) else { continue };
            if !serves {
                pod.sessions = 0;
                continue;
            }
            let connected = now_ms >= pod.cut_ms;
            if connected {
                pod.told = pod.drain.map(|drain| drain.kind);
            }
            if pod.intake && pod.told.is_none() {
                let came = 1 + now_ms / 1000 % 3;
                pod.sessions = 2;
                volume.mail += came;
                self.accepted += came;
            } else if !pod.stuck {
                pod.sessions = pod.sessions.saturating_sub(1);
            }
            if !dead_route {
                let went = volume.mail.div_ceil(2);
                volume.mail -= went;
                self.delivered += went;
            }
            if connected {
                pod.report = Some(Report { at_ms: now_ms, draining: pod.told, sessions: pod.sessions, spooled: volume.mail, kept: volume.kept });
            }
        }
        self.controller();
    }

    /// The StatefulSet controller.
    fn controller(&mut self) {
        let set = self.set.unwrap_or(0);
        for ordinal in 0..set {
            let absent = self.absent_ms.get(&ordinal).is_some_and(|until_ms| self.now_ms < *until_ms);
            // What nobody holds goes as soon as its pod is gone; on what is held and goes, no pod starts.
            let goes = !self.pods.contains_key(&ordinal) && self.volumes.get(&ordinal).is_some_and(|volume| volume.terminating);
            if goes && !self.volumes[&ordinal].held {
                self.volumes.remove(&ordinal);
            }
            if !absent && !self.pods.contains_key(&ordinal) {
                self.made += 1;
                self.volumes.entry(ordinal).or_default();
                let pod = Pod {
                    uid: self.made.to_string(),
                    created_ms: self.now_ms,
                    template: self.template,
                    ready_ms: if self.volumes[&ordinal].terminating { u64::MAX } else { self.now_ms + START_MS },
                    cut_ms: 0,
                    gone_ms: None,
                    intake: true,
                    drain: None,
                    told: None,
                    sessions: 0,
                    serving: Serving::No,
                    serving_since_ms: self.now_ms,
                    stuck: false,
                    report: None,
                };
                self.pods.insert(ordinal, pod);
            }
        }
        for (_, pod) in self.pods.range_mut(set..) {
            pod.gone_ms.get_or_insert(self.now_ms + STOP_MS);
        }
    }

    /// One turn of the operator, which dies after `survives` actions.
    fn turn(&mut self, survives: usize) -> Step {
        self.watch();
        let decided = step(&self.wanted, &self.seen(), self.now_ms);
        for action in decided.actions.iter().take(survives) {
            self.act(action);
        }
        let replicas = replicas_of_new_set(&self.wanted, &self.seen());
        if survives > decided.actions.len() && self.set.is_none() && !self.released && (!self.wanted.deleting || replicas > 0) {
            self.set = Some(replicas);
        }
        self.controller();
        decided
    }

    fn pod(&mut self, ordinal: u32, uid: &str) -> &mut Pod {
        let pod = self.pods.get_mut(&ordinal).expect("an action is about a pod that there is");
        assert_eq!(pod.uid, uid, "an action is about this pod and no other");
        pod
    }

    fn act(&mut self, action: &Action) {
        match action {
            Action::ClearVolumeMark { ordinal } => self.volumes.get_mut(ordinal).expect("a volume").mark = None,
            Action::HoldVolume { ordinal } => self.volumes.get_mut(ordinal).expect("a volume").held = true,
            Action::ReleaseVolume { ordinal } => {
                let volume = self.volumes.remove(ordinal).expect("a volume");
                assert!(volume.terminating && volume.mail == 0 && !self.pods.contains_key(ordinal), "volume {ordinal} has mail");
            }
            Action::EndDrain { ordinal, uid } => self.pod(*ordinal, uid).drain = None,
            Action::SetIntake { ordinal, uid, open } => {
                assert!(!open || self.pod(*ordinal, uid).drain.is_none(), "no intake while it drains");
                self.pod(*ordinal, uid).intake = *open;
            }
            Action::StartDrain { ordinal, uid, drain } => {
                assert!(!self.pod(*ordinal, uid).intake, "the intake closes before the gateway is told");
                self.pod(*ordinal, uid).drain = Some(*drain);
                match drain.kind {
                    DrainKind::Restart => {
                        assert!(!self.wanted.paused, "a paused fleet restarts nothing");
                        assert!(self.away() <= self.wanted.max_unavailable, "pod {ordinal}: {} away of {}", self.away(), self.wanted.max_unavailable);
                    }
                    DrainKind::Retire => assert!(*ordinal >= self.target(), "only pods beyond the target retire"),
                }
            }
            Action::DeletePod { ordinal, uid } => {
                assert!(!self.wanted.paused, "a paused fleet restarts nothing");
                let (serves, gone_ms) = (self.serves(*ordinal), self.now_ms + STOP_MS);
                let going = self.volumes.get(ordinal).is_some_and(|volume| volume.terminating);
                assert!(!going, "pod {ordinal}: its volume would go with it");
                let pod = self.pod(*ordinal, uid);
                assert!(!serves || pod.drain.is_some_and(|drain| drain.kind == DrainKind::Restart), "pod {ordinal} serves and does not drain");
                pod.gone_ms = Some(gone_ms);
                assert!(!serves || *ordinal >= self.target() || self.away() <= self.wanted.max_unavailable, "pod {ordinal}");
            }
            Action::MarkVolume { ordinal, mark } => self.volumes.get_mut(ordinal).expect("a volume").mark = Some(*mark),
            Action::SetReplicas { replicas } => {
                if self.wanted.reclaim != Reclaim::Abandon {
                    let left: Vec<u32> =
                        self.volumes.range(*replicas..).filter(|(ordinal, _)| Some(**ordinal) < self.set).map(|(ordinal, _)| *ordinal).collect();
                    assert!(left.iter().all(|ordinal| self.volumes[ordinal].mail == 0), "replicas {replicas} leave mail behind");
                }
                self.set = Some(*replicas);
            }
            Action::DeleteVolume { ordinal } => {
                assert!(!self.pods.contains_key(ordinal) && Some(*ordinal) >= self.set, "volume {ordinal} is in use");
                let volume = self.volumes.remove(ordinal).expect("a volume");
                if self.wanted.reclaim == Reclaim::Abandon {
                    self.delivered += volume.mail;
                } else {
                    assert_eq!((volume.mail, volume.kept), (0, 0), "volume {ordinal} has mail");
                }
            }
            Action::ReleaseFleet => {
                assert!(self.wanted.deleting && self.pods.is_empty());
                assert!(self.volumes.values().all(|volume| volume.mail == 0));
                self.released = true;
            }
        }
    }

    /// Runs on undisturbed until the operator says that it is done or waits for somebody, for as long as it takes and no longer.
    fn settle(&mut self) -> Outcome {
        for _ in 0..6000 {
            self.tick(5_000);
            let decided = self.turn(usize::MAX);
            if self.released {
                return Outcome::Done;
            }
            if decided.outcome != Outcome::Working {
                return decided.outcome;
            }
            assert!(decided.again_at_ms.is_some_and(|at| at > self.now_ms), "who waits says until when");
        }
        panic!("neither done nor paused after eight hours: {:#?}\n{:#?}", step(&self.wanted, &self.seen(), self.now_ms), self.seen());
    }

    /// The same, until it is done: what waited for somebody goes on by itself once its cause is gone.
    fn settle_done(&mut self) {
        for _ in 0..6000 {
            if self.settle() == Outcome::Done {
                return;
            }
        }
        panic!("not done: {:#?}\n{:#?}", step(&self.wanted, &self.seen(), self.now_ms), self.seen());
    }

    fn all_mail_is_there(&self) {
        assert_eq!(self.accepted, self.delivered + self.volumes.values().map(|volume| volume.mail).sum::<u64>());
    }
}

#[test]
fn a_new_fleet_comes_up() {
    let mut cluster = Cluster::new(3, 1, Reclaim::WhenEmpty);
    assert_eq!(cluster.settle(), Outcome::Done);
    assert_eq!((cluster.pods.len(), cluster.away()), (3, 0));
}

#[test]
fn a_new_template_reaches_every_pod_one_by_one() {
    let mut cluster = Cluster::new(4, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.use_template(2);
    let mut order = vec![];
    for _ in 0..400 {
        cluster.tick(5_000);
        let decided = cluster.turn(usize::MAX);
        order.extend(decided.actions.iter().filter_map(|action| if let Action::DeletePod { ordinal, .. } = action { Some(*ordinal) } else { None }));
        assert!(cluster.away() <= 1, "{} away", cluster.away());
    }
    assert_eq!(order, [3, 2, 1, 0]);
    assert_eq!(cluster.settle(), Outcome::Done);
    assert!(cluster.pods.values().all(|pod| pod.template == 2));
    cluster.all_mail_is_there();
}

#[test]
fn sessions_that_do_not_end_are_waited_for_only_so_long() {
    let mut cluster = Cluster::new(1, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.pods.values_mut().for_each(|pod| pod.stuck = true);
    cluster.use_template(2);
    let begin_ms = cluster.now_ms;
    assert_eq!(cluster.settle(), Outcome::Done);
    let took_ms = cluster.now_ms - begin_ms;
    assert!((RESTART_DRAIN_MS..RESTART_DRAIN_MS + 120_000).contains(&took_ms), "{took_ms}");
}

#[test]
fn a_bad_template_stops_at_the_budget_and_a_good_one_goes_on() {
    let mut cluster = Cluster::new(5, 2, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.use_template(BAD);
    let outcome = cluster.settle();
    let Outcome::Paused(Pause::NotServing { ordinals }) = outcome else { panic!("{outcome:?}") };
    assert_eq!(ordinals, [3, 4]);
    assert_eq!(cluster.away(), 2, "the others serve on");
    assert!(cluster.now_ms > 1_000_000 + PROGRESS_MS);
    cluster.use_template(3);
    assert_eq!(cluster.settle(), Outcome::Done);
    assert!(cluster.pods.values().all(|pod| pod.template == 3));
}

#[test]
fn a_pause_holds_and_its_end_goes_on() {
    let mut cluster = Cluster::new(3, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.use_template(2);
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    assert!(cluster.pods.values().any(|pod| pod.drain.is_some()), "one has begun");
    cluster.wanted.paused = true;
    assert_eq!(cluster.settle(), Outcome::Paused(Pause::ByUser { outdated: vec![0, 1, 2] }));
    assert_eq!(cluster.away(), 0, "the one that had begun serves again");
    assert!(cluster.pods.values().all(|pod| pod.intake));
    cluster.wanted.paused = false;
    assert_eq!(cluster.settle(), Outcome::Done);
}

#[test]
fn the_old_template_again_ends_the_drain() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.use_template(2);
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    cluster.use_template(1);
    let uids: Vec<String> = cluster.pods.values().map(|pod| pod.uid.clone()).collect();
    assert_eq!(cluster.settle(), Outcome::Done);
    assert_eq!(cluster.pods.values().map(|pod| pod.uid.clone()).collect::<Vec<_>>(), uids, "nobody was replaced");
}

#[test]
fn fewer_replicas_wait_for_their_mail() {
    let mut cluster = Cluster::new(4, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.dead_route = true;
    cluster.tick(5_000);
    cluster.wanted.replicas = 2;
    let outcome = cluster.settle();
    assert_eq!(outcome, Outcome::Paused(Pause::DrainTimeout { ordinals: vec![2, 3] }));
    assert_eq!((cluster.set, cluster.pods.len()), (Some(4), 4), "nothing with mail is removed");
    assert!(!cluster.pods[&2].intake && !cluster.pods[&3].intake && cluster.pods[&0].intake);
    cluster.dead_route = false;
    cluster.settle_done();
    assert_eq!((cluster.set, cluster.pods.len(), cluster.volumes.len()), (Some(2), 2, 2));
    cluster.all_mail_is_there();
}

#[test]
fn more_replicas_again_end_a_retirement() {
    let mut cluster = Cluster::new(3, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.dead_route = true;
    cluster.tick(5_000);
    cluster.wanted.replicas = 1;
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    assert!(cluster.pods[&2].drain.is_some());
    cluster.wanted.replicas = 3;
    assert_eq!(cluster.settle(), Outcome::Done);
    assert!(cluster.pods.values().all(|pod| pod.intake && pod.drain.is_none()));
}

#[test]
fn a_volume_with_a_quarantine_stays() {
    for (reclaim, kept, left) in [(Reclaim::WhenEmpty, 0, 1), (Reclaim::WhenEmpty, 7, 2), (Reclaim::Retain, 0, 2), (Reclaim::Abandon, 7, 1)] {
        let mut cluster = Cluster::new(2, 1, reclaim);
        cluster.settle();
        cluster.volumes.get_mut(&1).expect("a volume").kept = kept;
        cluster.wanted.replicas = 1;
        assert_eq!(cluster.settle(), Outcome::Done);
        for _ in 0..10 {
            cluster.tick(5_000);
            cluster.turn(usize::MAX);
        }
        assert_eq!((cluster.pods.len(), cluster.volumes.len()), (1, left), "{reclaim:?} with {kept}");
    }
}

#[test]
fn a_deleted_fleet_retires_before_it_goes() {
    let mut cluster = Cluster::new(3, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.dead_route = true;
    cluster.tick(5_000);
    cluster.wanted.deleting = true;
    assert_eq!(cluster.settle(), Outcome::Paused(Pause::DrainTimeout { ordinals: vec![0, 1, 2] }));
    assert!(!cluster.released);
    cluster.dead_route = false;
    cluster.settle_done();
    assert!(cluster.released && cluster.volumes.is_empty());
    cluster.all_mail_is_there();
}

#[test]
fn a_pod_that_came_back_while_it_retired_is_asked_again() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.wanted.replicas = 1;
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    // The node takes it; its successor has the template's intake label and no drain, and takes mail at once.
    let now_ms = cluster.now_ms;
    cluster.pods.get_mut(&1).expect("a pod").gone_ms = Some(now_ms);
    cluster.dead_route = true;
    for _ in 0..6 {
        cluster.tick(10_000);
    }
    assert!(cluster.volumes[&1].mail > 0);
    assert_eq!(cluster.settle(), Outcome::Paused(Pause::DrainTimeout { ordinals: vec![1] }));
    assert_eq!(cluster.set, Some(2));
}

#[test]
fn the_last_intake_label_is_left_where_nobody_serves() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    let later = cluster.now_ms + 3_600_000;
    cluster.pods.get_mut(&0).expect("a pod").ready_ms = later;
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    assert!(!cluster.pods[&0].intake && cluster.pods[&1].intake, "one that is down is taken out");
    cluster.pods.get_mut(&1).expect("a pod").ready_ms = later;
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    assert!(cluster.pods[&1].intake, "with no operator, the one that comes back first takes mail");
}

#[test]
fn what_nobody_knows_is_left_open() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.use_template(2);
    for pod in cluster.pods.values_mut() {
        pod.cut_ms = u64::MAX;
    }
    cluster.tick(60_000);
    let decided = cluster.turn(usize::MAX);
    assert!(decided.actions.is_empty(), "without a word from anybody, nothing is restarted: {:?}", decided.actions);
    assert!(cluster.pods.values().all(|pod| pod.intake));
}

#[test]
fn a_draining_pod_without_a_stream_is_not_deleted_when_others_are_away() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.pods.get_mut(&1).expect("a pod").stuck = true;
    cluster.use_template(2);
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    assert!(cluster.pods[&1].drain.is_some());
    cluster.pods.get_mut(&1).expect("a pod").cut_ms = u64::MAX;
    cluster.wanted.replicas = 3;
    cluster.tick(RESTART_DRAIN_MS);
    cluster.turn(usize::MAX);
    assert_eq!((cluster.pods[&1].gone_ms, cluster.pods[&1].drain), (None, None), "it is needed while the new one starts");
}

#[test]
fn a_mark_does_not_outlive_the_pod_that_earned_it() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.wanted.replicas = 1;
    // The operator dies as soon as the volume is marked.
    while cluster.volumes[&1].mark.is_none() {
        cluster.tick(5_000);
        let decided = step(&cluster.wanted, &cluster.seen(), cluster.now_ms);
        let marked = decided.actions.iter().position(|action| matches!(action, Action::MarkVolume { .. }));
        cluster.turn(marked.map_or(usize::MAX, |at| at + 1));
    }
    assert_eq!(cluster.set, Some(2));
    // Nobody leads while the pod is evicted, its successor takes mail, and is evicted, too.
    cluster.dead_route = true;
    for _ in 0..2 {
        let now_ms = cluster.now_ms;
        cluster.pods.get_mut(&1).expect("a pod").gone_ms = Some(now_ms);
        cluster.tick(10_000);
        (0..6).for_each(|_| cluster.tick(10_000));
    }
    let now_ms = cluster.now_ms;
    cluster.pods.remove(&1);
    cluster.absent_ms.insert(1, now_ms + 60_000);
    assert!(cluster.volumes[&1].mail > 0 && cluster.volumes[&1].mark.is_some());
    for _ in 0..8 {
        cluster.turn(usize::MAX);
        cluster.tick(5_000);
        assert!(cluster.volumes.contains_key(&1) && cluster.set == Some(2), "its mail is lost");
    }
    assert_eq!(cluster.settle(), Outcome::Paused(Pause::DrainTimeout { ordinals: vec![1] }));
    cluster.dead_route = false;
    cluster.settle_done();
    assert_eq!(cluster.volumes.len(), 1);
    cluster.all_mail_is_there();
}

#[test]
fn a_stateful_set_that_somebody_deletes_comes_back_for_its_mail() {
    for deleting in [true, false] {
        let mut cluster = Cluster::new(3, 1, Reclaim::WhenEmpty);
        cluster.settle();
        cluster.dead_route = true;
        cluster.tick(5_000);
        if deleting {
            cluster.wanted.deleting = true;
        } else {
            cluster.wanted.replicas = 1;
        }
        cluster.turn(usize::MAX);
        cluster.happen(&Event::DeleteSet);
        assert_eq!(cluster.settle(), Outcome::Paused(Pause::DrainTimeout { ordinals: if deleting { vec![0, 1, 2] } else { vec![1, 2] } }));
        assert!(!cluster.released && cluster.pods.len() == 3);
        cluster.dead_route = false;
        cluster.settle_done();
        assert_eq!((cluster.released, cluster.volumes.len()), (deleting, usize::from(!deleting)));
        cluster.all_mail_is_there();
    }
}

#[test]
fn a_pod_whose_claim_is_deleted_is_not_restarted_and_can_retire() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    assert!(cluster.volumes.values().all(|volume| volume.held));
    cluster.dead_route = true;
    cluster.tick(5_000);
    cluster.volumes.get_mut(&1).expect("a volume").terminating = true;
    cluster.use_template(2);
    assert_eq!(cluster.settle(), Outcome::Paused(Pause::VolumeGoing { ordinals: vec![1] }));
    assert_eq!((cluster.pods[&0].template, cluster.pods[&1].template), (2, 1), "the other one is updated");
    assert!(cluster.pods[&1].intake && cluster.pods[&1].drain.is_none());
    cluster.wanted.replicas = 1;
    cluster.dead_route = false;
    cluster.settle_done();
    cluster.wanted.replicas = 2;
    cluster.settle_done();
    assert!(cluster.pods[&1].template == 2 && !cluster.volumes[&1].terminating, "a new volume");
    cluster.all_mail_is_there();
}

#[test]
fn the_last_that_serves_is_not_retired() {
    let mut cluster = Cluster::new(3, 1, Reclaim::WhenEmpty);
    cluster.settle();
    let later = cluster.now_ms + 100_000;
    for ordinal in [0, 1] {
        cluster.pods.get_mut(&ordinal).expect("a pod").ready_ms = later;
    }
    cluster.wanted.replicas = 2;
    for _ in 0..4 {
        cluster.tick(5_000);
        cluster.turn(usize::MAX);
        assert!(cluster.pods[&2].intake && cluster.pods[&2].drain.is_none(), "nobody takes mail");
    }
    cluster.settle_done();
    assert_eq!(cluster.pods.len(), 2);
}

#[test]
fn a_drain_of_an_operator_with_another_clock_begins_again() {
    let mut cluster = Cluster::new(2, 1, Reclaim::WhenEmpty);
    cluster.settle();
    cluster.wanted.replicas = 1;
    cluster.tick(5_000);
    cluster.turn(usize::MAX);
    let begun_ms = cluster.now_ms;
    let pod = cluster.pods.get_mut(&1).expect("a pod");
    pod.drain = pod.drain.map(|drain| Drain { since_ms: drain.since_ms + 7_200_000, ..drain });
    cluster.settle_done();
    assert!(cluster.pods.len() == 1 && cluster.now_ms - begun_ms < 120_000, "{} ms", cluster.now_ms - begun_ms);
}

/// One thing that happens.
#[derive(Clone, Debug)]
enum Event {
    Tick(u64),
    Replicas(u32),
    Template(u32),
    Paused(bool),
    Budget(u32),
    Crash(u32, u64),
    Kill(u32),
    Absent(u32, u64),
    DeleteSet,
    Cut(u32, u64),
    Stuck(u32),
    Keep(u32),
    DeadRoute(bool),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (1..60_u64).prop_map(|seconds| Event::Tick(seconds * 1000)),
        1 => (200..2000_u64).prop_map(|seconds| Event::Tick(seconds * 1000)),
        2 => (0..6_u32).prop_map(Event::Replicas),
        2 => (1..5_u32).prop_map(Event::Template),
        1 => (BAD..BAD + 3).prop_map(Event::Template),
        1 => proptest::bool::ANY.prop_map(Event::Paused),
        1 => (1..4_u32).prop_map(Event::Budget),
        2 => (0..6_u32, 10..200_u64).prop_map(|(ordinal, seconds)| Event::Crash(ordinal, seconds * 1000)),
        2 => (0..6_u32).prop_map(Event::Kill),
        2 => (0..6_u32, 10..200_u64).prop_map(|(ordinal, seconds)| Event::Absent(ordinal, seconds * 1000)),
        1 => Just(Event::DeleteSet),
        2 => (0..6_u32, 10..200_u64).prop_map(|(ordinal, seconds)| Event::Cut(ordinal, seconds * 1000)),
        1 => (0..6_u32).prop_map(Event::Stuck),
        1 => (0..6_u32).prop_map(Event::Keep),
        1 => proptest::bool::ANY.prop_map(Event::DeadRoute),
    ]
}

impl Cluster {
    fn happen(&mut self, event: &Event) {
        let now_ms = self.now_ms;
        match *event {
            Event::Tick(ms) => {
                // In small steps, so that pods report in between.
                for _ in 0..ms / 10_000 {
                    self.tick(10_000);
                }
                self.tick(ms % 10_000);
            }
            Event::Replicas(replicas) => self.wanted.replicas = replicas,
            Event::Template(template) => self.use_template(template),
            Event::Paused(paused) => self.wanted.paused = paused,
            Event::Budget(budget) => self.wanted.max_unavailable = budget,
            Event::Crash(ordinal, ms) => {
                if let Some(pod) = self.pods.get_mut(&ordinal) {
                    // Its own memory goes with it.
                    (pod.ready_ms, pod.told, pod.sessions) = (now_ms + ms, None, 0);
                }
            }
            Event::Kill(ordinal) => {
                if let Some(pod) = self.pods.get_mut(&ordinal) {
                    pod.gone_ms.get_or_insert(now_ms + STOP_MS);
                }
            }
            Event::Absent(ordinal, ms) => {
                if self.pods.remove(&ordinal).is_some() {
                    self.absent_ms.insert(ordinal, now_ms + ms);
                }
            }
            Event::DeleteSet => {
                self.set = None;
                for pod in self.pods.values_mut() {
                    pod.gone_ms.get_or_insert(now_ms + STOP_MS);
                }
            }
            Event::Cut(ordinal, ms) => {
                if let Some(pod) = self.pods.get_mut(&ordinal) {
                    pod.cut_ms = now_ms + ms;
                }
            }
            Event::Stuck(ordinal) => {
                if let Some(pod) = self.pods.get_mut(&ordinal) {
                    pod.stuck = true;
                }
            }
            Event::Keep(ordinal) => {
                // Quarantined mail comes in like any other: only where mail is taken.
                if self.serves(ordinal)
                    && self.pods.get(&ordinal).is_some_and(|pod| pod.told.is_none() && pod.intake)
                    && let Some(volume) = self.volumes.get_mut(&ordinal)
                {
                    volume.kept += 1;
                }
            }
            Event::DeadRoute(dead) => self.dead_route = dead,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens, and wherever the operator dies, the promises hold (they are asserted where actions are done), and it ends.
    #[test]
    fn it_keeps_its_promises_and_ends(
        replicas in 1..6_u32,
        budget in 1..4_u32,
        retain in proptest::bool::ANY,
        events in proptest::collection::vec((event(), proptest::option::weighted(0.3, 0..4_usize)), 0..60),
        bad_end in proptest::bool::ANY,
        delete in proptest::bool::weighted(0.3),
    ) {
        let mut cluster = Cluster::new(replicas, budget, if retain { Reclaim::Retain } else { Reclaim::WhenEmpty });
        cluster.settle();
        for (event, survives) in &events {
            cluster.happen(event);
            cluster.turn(survives.unwrap_or(usize::MAX));
            cluster.all_mail_is_there();
        }
        if cluster.target() > 0 && !cluster.dead_route {
            // The last template may be a bad one, and the fleet may be paused: then it says so.
            match cluster.settle() {
                Outcome::Done => prop_assert_eq!(cluster.away(), 0),
                Outcome::Paused(Pause::ByUser { .. }) => prop_assert!(cluster.wanted.paused),
                Outcome::Paused(Pause::NotServing { ordinals }) => {
                    prop_assert!(ordinals.iter().all(|ordinal| !cluster.serves(*ordinal)));
                }
                other => prop_assert!(matches!(other, Outcome::Paused(Pause::DrainTimeout { .. })), "{:?}", other),
            }
        }
        // All is put in order: then it is done.
        cluster.dead_route = false;
        cluster.wanted.paused = false;
        cluster.use_template(if bad_end && cluster.template < BAD { cluster.template } else { 50 });
        cluster.wanted.deleting = delete;
        cluster.pods.values_mut().for_each(|pod| pod.stuck = false);
        cluster.settle_done();
        prop_assert_eq!(cluster.away(), 0);
        prop_assert_eq!(cluster.pods.len(), cluster.target() as usize);
        prop_assert!(cluster.pods.values().all(|pod| pod.template == cluster.template && pod.intake && pod.drain.is_none()));
        let marked: BTreeSet<u32> = cluster.volumes.iter().filter(|(_, volume)| volume.mark.is_some()).map(|(ordinal, _)| *ordinal).collect();
        prop_assert!(marked.iter().all(|ordinal| *ordinal >= cluster.target()), "a pod that takes mail has no empty volume: {:?}", marked);
        cluster.all_mail_is_there();
    }
}
