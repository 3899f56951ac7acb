//! Single decisions that must never be wrong, one variation at a time. What comes of many of them together is simulated in `tests/it/update.rs`.

use super::*;

const NOW_MS: u64 = 10_000_000;

fn wanted(replicas: u32) -> Wanted {
    Wanted {
        replicas,
        max_unavailable: 1,
        paused: false,
        deleting: false,
        template_hash: "new".into(),
        drain_timeout_ms: 1_800_000,
        startup_max_wait_ms: 300_000,
        reclaim: Reclaim::WhenEmpty,
    }
}

fn pod(ordinal: u32) -> PodView {
    PodView {
        ordinal,
        uid: format!("uid-{ordinal}"),
        created_ms: 0,
        template_hash: Some("new".into()),
        terminating: false,
        intake_open: true,
        drain: None,
        serving: Serving::Yes,
        serving_since_ms: 0,
        report: Some(Report { at_ms: NOW_MS - 1000, draining: None, sessions: 0, spooled: 0, kept: 0 }),
    }
}

/// A pod that drains, and said a second ago that it is through with it.
fn drained(ordinal: u32, kind: DrainKind) -> PodView {
    PodView {
        intake_open: false,
        drain: Some(Drain { kind, since_ms: NOW_MS - 5000 }),
        report: Some(Report { at_ms: NOW_MS - 1000, draining: Some(kind), sessions: 0, spooled: 0, kept: 0 }),
        ..pod(ordinal)
    }
}

fn volume(ordinal: u32) -> VolumeView {
    VolumeView { ordinal, bound: true, held: true, ..VolumeView::default() }
}

fn lowered(pod: Option<PodView>, volume: Option<VolumeView>) -> bool {
    let seen = Observation {
        set_replicas: Some(2),
        pods: [self::pod(0)].into_iter().chain(pod).collect(),
        volumes: volume.into_iter().collect(),
        barred: None,
    };
    step(&wanted(1), &seen, NOW_MS).actions.contains(&Action::SetReplicas { replicas: 1 })
}

#[test]
fn replicas_are_lowered_only_past_a_pod_that_said_so() {
    let good = || drained(1, DrainKind::Retire);
    let said = |change: &dyn Fn(&mut Report)| {
        let mut pod = good();
        change(pod.report.as_mut().expect("a report"));
        Some(pod)
    };
    let there = Some(volume(1));
    let marked = Some(VolumeView { mark: Some(Mark::Empty), ..volume(1) });
    let unbound = Some(VolumeView { bound: false, ..volume(1) });
    let never = || Some(PodView { serving: Serving::No, report: None, ..good() });
    for (what, pod, volume, expected) in [
        ("empty", Some(good()), there, true),
        ("a quarantine stays on its volume", said(&|report| report.kept = 9), there, true),
        ("mail in it", said(&|report| report.spooled = 1), there, false),
        ("an open session", said(&|report| report.sessions = 1), there, false),
        ("said before the drain began", said(&|report| report.at_ms = NOW_MS - 6000), there, false),
        ("it does not know that it drains", said(&|report| report.draining = None), there, false),
        ("it drains for a restart", said(&|report| report.draining = Some(DrainKind::Restart)), there, false),
        ("no report", Some(PodView { report: None, ..good() }), there, false),
        ("being deleted by somebody else", Some(PodView { terminating: true, ..good() }), there, false),
        ("no drain yet", Some(super::tests::pod(1)), there, false),
        ("no pod, and a volume that may have mail", None, there, false),
        ("no pod, and a volume that its pod called empty: its successor comes and takes mail", None, marked, false),
        ("no pod, and a volume that was never bound", None, unbound, true),
        ("no pod, and no volume", None, None, true),
        ("never started on a volume that was never bound", never(), unbound, true),
        ("never started on a volume that is there", never(), there, false),
        ("nobody knows whether it started", never().map(|pod| PodView { serving: Serving::Unknown, ..pod }), unbound, false),
    ] {
        assert_eq!(lowered(pod, volume), expected, "{what}");
    }
    // An old report says nothing, even one that came after the drain began.
    let since_ms = NOW_MS - 100_000;
    for (age_ms, expected) in [(REPORT_AGE_MS_MAX, true), (REPORT_AGE_MS_MAX + 1, false)] {
        let mut pod = good();
        pod.drain = Some(Drain { kind: DrainKind::Retire, since_ms });
        pod.report.as_mut().expect("a report").at_ms = NOW_MS - age_ms;
        assert_eq!(lowered(Some(pod), there), expected, "{age_ms} ms old");
    }
}

#[test]
fn a_drained_pod_is_replaced_only_when_it_said_so_or_after_five_minutes() {
    let old = |pod: PodView| PodView { template_hash: Some("old".into()), ..pod };
    let deleted = |pod: PodView| {
        let seen = Observation { set_replicas: Some(2), pods: vec![self::pod(0), pod], volumes: vec![], barred: None };
        step(&wanted(2), &seen, NOW_MS).actions.contains(&Action::DeletePod { ordinal: 1, uid: "uid-1".into() })
    };
    let good = || old(drained(1, DrainKind::Restart));
    let busy = |change: &dyn Fn(&mut PodView)| {
        let mut pod = good();
        pod.report.as_mut().expect("a report").sessions = 1;
        change(&mut pod);
        pod
    };
    let since = |ms: u64| move |pod: &mut PodView| pod.drain = Some(Drain { kind: DrainKind::Restart, since_ms: NOW_MS - ms });
    for (what, pod, expected) in [
        ("quiet", good(), true),
        (
            "mail in its spool: that stays on its volume",
            PodView { report: good().report.map(|report| Report { spooled: 7, ..report }), ..good() },
            true,
        ),
        ("sessions", busy(&|_| ()), false),
        ("sessions, and not long enough", busy(&since(RESTART_DRAIN_MS - 1)), false),
        ("sessions, long enough", busy(&since(RESTART_DRAIN_MS)), true),
        ("no report", PodView { report: None, ..good() }, false),
        ("not known to it", PodView { report: good().report.map(|report| Report { draining: None, ..report }), ..good() }, false),
        ("down, and silent", PodView { serving: Serving::No, report: None, ..old(super::tests::pod(1)) }, true),
        ("not serving, but on the stream", PodView { serving: Serving::No, ..old(super::tests::pod(1)) }, false),
        ("nobody knows", PodView { serving: Serving::Unknown, report: None, ..old(super::tests::pod(1)) }, false),
        ("of the current template", drained(1, DrainKind::Restart), false),
    ] {
        assert_eq!(deleted(pod), expected, "{what}");
    }
}

#[test]
fn everything_in_its_order() {
    // More replicas than there are, an outdated pod, and one that was to leave: each pod's label and drain come in the order that loses no connection.
    let mut leaving = drained(2, DrainKind::Retire);
    leaving.template_hash = Some("new".into());
    let outdated = PodView { template_hash: Some("old".into()), ..pod(1) };
    let seen = Observation {
        set_replicas: Some(3),
        pods: vec![pod(0), outdated, leaving],
        volumes: vec![VolumeView { mark: Some(Mark::Empty), ..volume(2) }],
        barred: None,
    };
    let decided = step(&Wanted { max_unavailable: 2, ..wanted(4) }, &seen, NOW_MS);
    let uid = |ordinal: u32| format!("uid-{ordinal}");
    let expected = vec![
        Action::ClearVolumeMark { ordinal: 2 },
        Action::EndDrain { ordinal: 2, uid: uid(2) },
        Action::SetIntake { ordinal: 1, uid: uid(1), open: false },
        Action::SetIntake { ordinal: 2, uid: uid(2), open: true },
        Action::StartDrain { ordinal: 1, uid: uid(1), drain: Drain { kind: DrainKind::Restart, since_ms: NOW_MS } },
        Action::SetReplicas { replicas: 4 },
    ];
    assert_eq!(decided.actions, expected);
    assert_eq!(decided.outcome, Outcome::Working);
}

#[test]
fn a_volume_is_marked_before_its_pod_goes_and_deleted_after() {
    let gone = |volumes: Vec<VolumeView>, pods: Vec<PodView>, set: u32| {
        let seen = Observation { set_replicas: Some(set), pods, volumes, barred: None };
        step(&wanted(1), &seen, NOW_MS).actions
    };
    let marking = gone(vec![volume(0), volume(1)], vec![pod(0), drained(1, DrainKind::Retire)], 2);
    assert_eq!(marking, [Action::MarkVolume { ordinal: 1, mark: Mark::Empty }, Action::SetReplicas { replicas: 1 }]);
    let marked = VolumeView { mark: Some(Mark::Empty), ..volume(1) };
    let stopping = PodView { terminating: true, ..drained(1, DrainKind::Retire) };
    assert_eq!(gone(vec![volume(0), marked], vec![pod(0), stopping], 1), []);
    assert_eq!(gone(vec![volume(0), marked], vec![pod(0)], 1), [Action::DeleteVolume { ordinal: 1 }]);
    assert_eq!(gone(vec![volume(0), volume(1)], vec![pod(0)], 1), [Action::SetReplicas { replicas: 2 }], "the pod of an unmarked one comes back");
}

#[test]
fn strange_input_breaks_nothing() {
    let pods = vec![
        PodView { created_ms: u64::MAX, serving_since_ms: u64::MAX, ..pod(u32::MAX) },
        PodView { drain: Some(Drain { kind: DrainKind::Retire, since_ms: u64::MAX }), ..pod(0) },
        PodView { drain: Some(Drain { kind: DrainKind::Restart, since_ms: u64::MAX }), template_hash: None, ..pod(1) },
    ];
    for (replicas, set) in [(0, Some(0)), (0, None), (3, Some(u32::MAX)), (u32::MAX, Some(0))] {
        for now_ms in [0, NOW_MS, u64::MAX] {
            let seen = Observation { set_replicas: set, pods: pods.clone(), volumes: vec![volume(u32::MAX)], barred: None };
            step(&Wanted { max_unavailable: u32::MAX, ..wanted(replicas) }, &seen, now_ms);
        }
    }
}

#[test]
fn who_takes_mail_is_who_serves_and_else_it_stays_as_it_was() {
    use Serving::{No, Unknown, Yes};
    for (before, expected) in [
        ([(Yes, false), (Yes, true)], [true, true]),
        ([(Yes, true), (No, true)], [true, false]),
        // One that starts is not opened before it serves, one that was open and is not heard of stays open.
        ([(Yes, true), (Unknown, false)], [true, false]),
        ([(Yes, true), (Unknown, true)], [true, true]),
        // The last one that is open stays so, whatever is said of it; one that starts takes nobody's place yet.
        ([(No, true), (No, false)], [true, false]),
        ([(No, true), (Unknown, false)], [true, false]),
        ([(No, true), (Unknown, true)], [false, true]),
        ([(No, true), (Yes, false)], [false, true]),
    ] {
        let pods: Vec<PodView> = (0_u32..).zip(before).map(|(n, (serving, intake_open))| PodView { serving, intake_open, ..pod(n) }).collect();
        let seen = Observation { set_replicas: Some(2), pods, volumes: vec![], barred: None };
        let mut after = before.map(|(_, open)| open);
        for action in step(&wanted(2), &seen, NOW_MS).actions {
            if let Action::SetIntake { ordinal, open, .. } = action {
                after[ordinal as usize] = open;
            }
        }
        assert_eq!(after, expected, "{before:?}");
    }
}

#[test]
fn a_fleet_is_not_released_while_mail_waits_for_a_pod_that_cannot_be_made() {
    let deleted = |barred, held| {
        let volumes = vec![VolumeView { held, terminating: true, ..volume(1) }];
        let seen = Observation { set_replicas: None, pods: vec![], volumes, barred };
        step(&Wanted { deleting: true, ..wanted(2) }, &seen, NOW_MS)
    };
    let stranded = Outcome::Paused(Pause::Stranded { ordinals: vec![1] });
    let namespace = |empty: &[u32]| Some(Barred::Namespace { empty: empty.iter().copied().collect() });
    let release = Action::ReleaseVolume { ordinal: 1 };
    for (what, barred, held, actions, outcome) in [
        ("its pods come back", None, true, vec![], Outcome::Working),
        ("something is wrong with it", Some(Barred::Invalid), true, vec![], stranded.clone()),
        ("the namespace goes, and nobody knows", namespace(&[0]), true, vec![], stranded),
        ("the namespace goes, and it was empty", namespace(&[1]), true, vec![release], Outcome::Working),
    ] {
        let decided = deleted(barred, held);
        assert_eq!((decided.actions, decided.outcome), (actions, outcome), "{what}");
    }
    // What nobody holds goes with the namespace, whatever we say.
    assert_eq!(deleted(namespace(&[]), false).actions, [Action::ReleaseFleet]);
    let gone = Observation { barred: namespace(&[]), ..Observation::default() };
    assert_eq!(step(&Wanted { deleting: true, ..wanted(2) }, &gone, NOW_MS).actions, [Action::ReleaseFleet]);
}

#[test]
fn a_volume_that_no_pod_can_reach_is_told_of_and_makes_no_million_pods() {
    let seen = Observation { set_replicas: Some(1), pods: vec![pod(0)], volumes: vec![volume(ORDINAL_MAX)], barred: None };
    let decided = step(&wanted(1), &seen, NOW_MS);
    assert_eq!((decided.actions, decided.outcome), (vec![], Outcome::Paused(Pause::Stranded { ordinals: vec![ORDINAL_MAX] })));
    let lowered = Observation { volumes: vec![volume(2)], ..seen };
    assert_eq!(step(&wanted(1), &lowered, NOW_MS).actions, [Action::SetReplicas { replicas: 3 }]);
}
