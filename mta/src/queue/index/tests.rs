use proptest::prelude::*;

use super::*;

fn tenant(n: u8) -> Arc<str> {
    format!("mail/t{n}").into()
}

fn part(recipients: &[u16], due_ms: u64) -> Part {
    Part { recipients: recipients.to_vec(), work: Work::Deliver { maybe_delivered: false }, form: None, due_ms, route: None, error: None }
}

fn origin(n: u128, received_ms: u64) -> Origin {
    Origin { id: QueueId::new(received_ms, n), received_ms, size_bytes: 100, meta_bytes: 50, held_before_ms: 0, on_hold: false }
}

/// An open gate that counts.
fn open(_: &Entry) -> Gate<()> {
    Gate::Open(())
}

fn started(queue: &mut Queue, now_ms: u64, limit: usize) -> Vec<Entry> {
    queue.due(now_ms, limit, open).into_iter().map(|(entry, ())| entry).collect()
}

#[test]
fn lanes_take_turns_and_a_closed_one_costs_one_question() {
    let mut queue = Queue::default();
    for n in 0..10_000 {
        queue.insert(origin(n, 1), &tenant(0), 0, part(&[0], 1), 1);
    }
    for n in 0..3 {
        queue.insert(origin(20_000 + n, 1), &tenant(1), 0, part(&[0], 1), 1);
        queue.insert(origin(30_000 + n, 1), &tenant(2), 0, part(&[0], 1), 1);
    }
    let first: Vec<Arc<str>> = started(&mut queue, 1, 7).into_iter().map(|entry| entry.tenant).collect();
    for n in 1..3 {
        assert!(first.iter().filter(|name| **name == tenant(n)).count() >= 2, "{first:?}");
    }
    let mut questions = 0;
    let got = queue.due(1, 100, |lane| {
        if lane.tenant == tenant(0) {
            questions += 1;
            Gate::Wait { until_ms: 500, foreign: true }
        } else {
            Gate::Open(())
        }
    });
    assert!(got.iter().all(|(entry, ())| entry.tenant != tenant(0)));
    assert_eq!(questions, 1);
    let figures = queue.statistics(2);
    assert_eq!(figures.waiting + figures.in_flight, 10_006, "{figures:?}");
    assert!(figures.runnable == 0 && figures.waiting > 9_990);
    // One more message opens nothing; the time, or a wake, does.
    queue.insert(origin(40_000, 2), &tenant(0), 0, part(&[0], 2), 2);
    assert!(started(&mut queue, 499, 10).is_empty());
    assert_eq!(queue.next_due_ms(499), Some(500));
    queue.wake(&tenant(0), 400);
    assert_eq!(started(&mut queue, 400, 10).len(), 10);
}

#[test]
fn what_waits_for_a_hung_route_never_counts_as_ours() {
    let mut queue = Queue::default();
    for n in 0..1000 {
        queue.insert(origin(n, 1), &tenant(0), 0, part(&[0], 1), 1);
    }
    let mut free = 3;
    let gate = |free: &mut u32, now_ms: u64| {
        if *free > 0 {
            *free -= 1;
            Gate::Open(())
        } else {
            Gate::Wait { until_ms: now_ms + 50, foreign: true }
        }
    };
    assert_eq!(queue.statistics(1).runnable, 1000, "nobody has looked yet");
    let mut running: Vec<EntryId> = queue.due(1, 64, |_| gate(&mut free, 1)).into_iter().map(|(entry, ())| entry.id).collect();
    for step in 0..200u64 {
        // The worker comes late, or wakes the lane for slots that came free, or is cut short by its batch.
        let now_ms = 1 + step * 37;
        let figures = queue.statistics(now_ms + 60);
        assert_eq!((figures.runnable, figures.waiting), (0, 1000 - running.len()), "step {step}");
        if step % 3 == 0 {
            let ended = running.split_off(running.len().saturating_sub(2));
            free += ended.len() as u32;
            for id in ended {
                queue.settle(id, vec![part(&[0], now_ms)], now_ms);
            }
            queue.wake(&tenant(0), now_ms);
            assert_eq!(queue.statistics(now_ms).runnable, 0, "step {step}");
        }
        let limit = if step % 5 == 0 { 1 } else { 64 };
        running.extend(queue.due(now_ms, limit, |_| gate(&mut free, now_ms)).into_iter().map(|(entry, ())| entry.id));
        assert_eq!(queue.statistics(now_ms).runnable, 0, "step {step}");
    }
    // The route is back: what is left waits for us.
    let now_ms = 100_000;
    assert_eq!(started(&mut queue, now_ms, 10).len(), 10);
    assert_eq!(started(&mut queue, now_ms, 10).len(), 10);
    let figures = queue.statistics(now_ms);
    assert_eq!((figures.waiting, figures.runnable), (0, 1000 - 20 - running.len()));
    // Waiting for our own slots is ours.
    queue.due(now_ms, 10, |_| Gate::<()>::Wait { until_ms: now_ms + 50, foreign: false });
    assert_eq!(queue.statistics(now_ms).waiting, 0);
}

#[test]
fn settling_splits() {
    let mut queue = Queue::default();
    let id = queue.insert(origin(1, 5), &tenant(0), 3, part(&[0, 1, 2, 3], 5), 5);
    let entry = started(&mut queue, 5, 10).remove(0);
    assert_eq!((entry.id, entry.group, &entry.recipients[..]), (id, 3, &[0, 1, 2, 3][..]));
    let store = Work::Store { compartment: Compartment::DeadLetters, reason: "no".into() };
    let left = queue.settle(id, vec![Part { work: store, ..part(&[1], 6) }, part(&[2, 3], 50), part(&[], 9)], 6);
    assert_eq!(left, 2);
    let now: Vec<(Kind, Vec<u16>)> = started(&mut queue, 6, 10).iter().map(|entry| (entry.work.kind(), entry.recipients.to_vec())).collect();
    assert_eq!(now, [(Kind::Store, vec![1])]);
    assert_eq!(queue.settle(id, vec![], 7), 1);
    let later = started(&mut queue, 50, 10).remove(0);
    assert_eq!((&later.recipients[..], later.group), (&[2, 3][..], 3));
    assert_eq!(queue.settle(later.id, vec![], 51), 0);
    assert!(queue.is_empty() && queue.lanes.is_empty() && queue.sleeping.is_empty());
}

#[test]
fn administration() {
    let mut queue = Queue::default();
    for n in 0..6u8 {
        let mut part = part(&[0], if n == 5 { 0 } else { 10_000 });
        part.route = (n % 2 == 0).then(|| "even".into());
        queue.insert(origin(u128::from(n), u64::from(n) * 100), &tenant(n / 3), 0, part, 0);
    }
    assert_eq!(started(&mut queue, 0, 10).len(), 1, "number 5 is in flight");
    let ids: Vec<QueueId> = (0..6).map(|n| QueueId::new(n * 100, u128::from(n))).collect();
    let all = Filter { all: true, ..Filter::default() };
    for (filter, count, in_flight) in [
        (Filter::default(), 0, 0),
        (all.clone(), 5, 1),
        (Filter { ids: vec![ids[1], ids[5]], ..Filter::default() }, 1, 1),
        (Filter { tenant: Some("mail/t0".into()), ..Filter::default() }, 3, 0),
        (Filter { tenant: Some("mail/t1".into()), route: Some("even".into()), ..Filter::default() }, 1, 0),
        (Filter { older_than_ms: Some(900), ..Filter::default() }, 2, 0),
        (Filter { route: Some("odd".into()), all: true, ..Filter::default() }, 0, 0),
    ] {
        let affected = queue.operate(Operation::Retry, &filter, 1_000, true);
        assert_eq!((affected.count, affected.in_flight), (count, in_flight), "{filter:?}");
    }
    assert_eq!(queue.statistics(1_000).scheduled, 5, "a dry run changes nothing");
    let one = |n: usize| Filter { ids: vec![ids[n]], ..Filter::default() };
    assert_eq!(queue.operate(Operation::Hold, &one(0), 1_000, false).ids, [ids[0]]);
    assert_eq!(queue.operate(Operation::Retry, &one(0), 1_000, false).count, 0, "what is held is not retried");
    assert_eq!(queue.operate(Operation::Retry, &one(1), 1_000, false).count, 1);
    assert_eq!(queue.operate(Operation::Drop, &one(2), 1_000, false).count, 1);
    assert_eq!(queue.operate(Operation::Drop, &one(2), 1_000, true).count, 0, "it is there already");
    assert_eq!(queue.operate(Operation::Hold, &one(5), 1_000, false).count, 1, "an attempt in flight is held afterwards");
    let purposes: BTreeSet<&str> =
        started(&mut queue, 1_000, 10).iter().map(|entry| if entry.work.kind() == Kind::Store { "store" } else { "deliver" }).collect();
    assert_eq!(purposes, BTreeSet::from(["deliver", "store"]));
    queue.settle(EntryId { id: ids[5], sub: 0 }, vec![part(&[0], 1_000)], 1_000);
    let states: Vec<State> = queue.list(&all, 1_000, None, 10).into_iter().map(|line| line.state).collect();
    assert_eq!(states, [State::Held, State::InFlight, State::InFlight, State::Scheduled, State::Scheduled, State::Held]);
    assert_eq!(queue.operate(Operation::Release, &all, 1_000, false).count, 2);
    assert_eq!(started(&mut queue, 1_000, 10).len(), 2);
    let page = queue.list(&all, 1_000, Some(EntryId { id: ids[1], sub: 0 }), 2);
    assert_eq!(page.iter().map(|line| line.id).collect::<Vec<_>>(), [ids[2], ids[3]]);
}

#[test]
fn expiry_gives_everybody_a_chance_and_forgets_time_on_hold() {
    const LIFE_MS: u64 = 1_000;
    let mut queue = Queue::default();
    // Recovered after a long downtime; known to be on hold; with time on hold from before.
    queue.insert(origin(1, 0), &tenant(0), 0, part(&[0], 50_000), 5_000);
    queue.insert(Origin { on_hold: true, ..origin(2, 4_900) }, &tenant(1), 0, part(&[0], 50_000), 5_000);
    queue.insert(Origin { held_before_ms: 4_800, ..origin(3, 0) }, &tenant(2), 0, part(&[0], 50_000), 5_000);
    queue.insert(origin(4, 4_900), &tenant(3), 0, Part { error: Some("450 busy".into()), ..part(&[0], 50_000) }, 5_000);
    let held = |name: &str| name == "mail/t1";
    queue.sync_holds(5_000, held);
    assert_eq!(queue.expire(5_000, LIFE_MS, 100, 10), 0, "nobody has had a chance yet");
    assert_eq!(queue.expire(5_100, LIFE_MS, 100, 10), 1, "number 1");
    assert_eq!(queue.expire(5_800, LIFE_MS, 100, 10), 1, "number 3: 5,800 less 4,800 on hold");
    assert_eq!(queue.expire(5_899, LIFE_MS, 100, 10), 0);
    assert_eq!(queue.expire(5_900, LIFE_MS, 100, 10), 1, "number 4");
    queue.sync_holds(9_000, held);
    assert_eq!(queue.expire(9_000, LIFE_MS, 100, 10), 0, "number 2 is on hold");
    queue.sync_holds(9_000, |_| false);
    assert_eq!(queue.expire(9_899, LIFE_MS, 100, 10), 0);
    assert_eq!(queue.expire(9_900, LIFE_MS, 100, 10), 1);
    let reasons: Vec<Arc<str>> = started(&mut queue, 9_900, 10)
        .into_iter()
        .filter_map(|entry| match entry.work {
            Work::Store { reason, .. } => Some(reason),
            _ => None,
        })
        .collect();
    assert_eq!(reasons.len(), 4);
    assert!(reasons.iter().any(|reason| **reason == *"expired; the last attempt: 450 busy"));
}

/// What a naive queue would say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Naive {
    Scheduled(u64),
    InFlight,
    Held,
}

#[derive(Debug, Clone)]
enum Step {
    Insert { tenant: u8, due_in_ms: u64 },
    Due { limit: usize, closed: u8 },
    Finish { which: usize, again_in_ms: Option<u64> },
    Operate { operation: Operation, tenant: u8 },
    Wake { tenant: u8 },
    Pass { ms: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0..4u8, 0..300u64).prop_map(|(tenant, due_in_ms)| Step::Insert { tenant, due_in_ms }),
        (1..8usize, 0..16u8).prop_map(|(limit, closed)| Step::Due { limit, closed }),
        (0..50usize, prop_oneof![Just(None), (0..300u64).prop_map(Some)]).prop_map(|(which, again_in_ms)| Step::Finish { which, again_in_ms }),
        (prop_oneof![Just(Operation::Retry), Just(Operation::Hold), Just(Operation::Release)], 0..4u8)
            .prop_map(|(operation, tenant)| Step::Operate { operation, tenant }),
        (0..4u8).prop_map(|tenant| Step::Wake { tenant }),
        (1..400u64).prop_map(|ms| Step::Pass { ms }),
    ]
}

/// How long a closed gate says it stays so, milliseconds.
const CLOSED_MS: u64 = 100;

/// Found by the test below: a lane that became empty and was made anew had two turns in each round from then on.
#[test]
fn a_lane_made_anew_has_one_turn() {
    let mut queue = Queue::default();
    let put = |queue: &mut Queue, n: u128, t: u8| {
        queue.insert(origin(n, 1_000), &tenant(t), 0, part(&[0], 1_000), 1_000);
    };
    put(&mut queue, 1, 1);
    put(&mut queue, 2, 2);
    let first = queue.due(1_000, 1, open);
    queue.settle(first[0].0.id, vec![part(&[0], 1_000)], 1_000);
    put(&mut queue, 3, 1);
    put(&mut queue, 4, 2);
    let turns: Vec<Arc<str>> = queue.due(1_000, 3, open).into_iter().map(|(entry, ())| entry.tenant).collect();
    assert_eq!(turns.iter().filter(|of| **of == tenant(2)).count(), 2, "{turns:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]
    #[test]
    fn like_a_naive_queue(steps in proptest::collection::vec(step(), 1..120)) {
        let mut queue = Queue::default();
        let mut naive: BTreeMap<EntryId, (u8, Naive)> = BTreeMap::new();
        // Until when a tenant's gate was last said to be closed.
        let mut asleep_ms = [0u64; 4];
        let mut now_ms = 1_000;
        for (n, step) in steps.into_iter().enumerate() {
            match step {
                Step::Insert { tenant: t, due_in_ms } => {
                    let id = queue.insert(origin(n as u128, now_ms), &tenant(t), 0, part(&[0], now_ms + due_in_ms), now_ms);
                    naive.insert(id, (t, Naive::Scheduled(now_ms + due_in_ms)));
                }
                Step::Due { limit, closed } => {
                    let mut asked = BTreeSet::new();
                    let got = queue.due(now_ms, limit, |lane| {
                        let t = lane.tenant.bytes().next_back().unwrap() - b'0';
                        if closed & (1 << t) != 0 {
                            assert!(asked.insert(t), "a gate that said no is not asked again");
                            Gate::Wait { until_ms: now_ms + CLOSED_MS, foreign: true }
                        } else {
                            Gate::Open(())
                        }
                    });
                    let mut taken = [0usize; 4];
                    for (entry, ()) in &got {
                        let (t, state) = naive.get_mut(&entry.id).expect("known");
                        prop_assert!(matches!(state, Naive::Scheduled(due_ms) if *due_ms <= now_ms));
                        prop_assert_eq!(closed & (1 << *t), 0);
                        taken[usize::from(*t)] += 1;
                        *state = Naive::InFlight;
                    }
                    for t in &asked {
                        asleep_ms[usize::from(*t)] = now_ms + CLOSED_MS;
                    }
                    prop_assert!(got.len() <= limit);
                    for t in 0..4u8 {
                        let left = naive.values().filter(|(of, state)| *of == t && matches!(state, Naive::Scheduled(due_ms) if *due_ms <= now_ms)).count();
                        let awake = closed & (1 << t) == 0 && asleep_ms[usize::from(t)] <= now_ms;
                        if left > 0 && awake {
                            prop_assert_eq!(got.len(), limit, "tenant {} was left behind with room to spare", t);
                            let most = taken.iter().max().unwrap();
                            prop_assert!(taken[usize::from(t)] + 2 > *most, "turns are taken: {:?}", taken);
                        }
                    }
                }
                Step::Finish { which, again_in_ms } => {
                    let in_flight: Vec<EntryId> = naive.iter().filter(|(_, (_, state))| *state == Naive::InFlight).map(|(id, _)| *id).collect();
                    if let Some(id) = in_flight.get(which % in_flight.len().max(1)) {
                        match again_in_ms {
                            None => {
                                queue.settle(*id, vec![], now_ms);
                                naive.remove(id);
                            }
                            Some(ms) => {
                                queue.settle(*id, vec![part(&[0], now_ms + ms)], now_ms);
                                naive.get_mut(id).unwrap().1 = Naive::Scheduled(now_ms + ms);
                            }
                        }
                    }
                }
                Step::Operate { operation, tenant: t } => {
                    // An in-flight entry's later hold is tested by itself.
                    if operation == Operation::Hold && naive.values().any(|(of, state)| *of == t && *state == Naive::InFlight) {
                        continue;
                    }
                    queue.operate(operation, &Filter { tenant: Some(tenant(t).to_string()), ..Filter::default() }, now_ms, false);
                    let mut woken = false;
                    for (_, state) in naive.values_mut().filter(|(of, _)| *of == t) {
                        *state = match (&operation, &*state) {
                            (Operation::Retry, Naive::Scheduled(_)) | (Operation::Release, Naive::Held) => {
                                woken = true;
                                Naive::Scheduled(now_ms)
                            }
                            (Operation::Hold, Naive::Scheduled(_)) => Naive::Held,
                            (_, other) => other.clone(),
                        };
                    }
                    if woken {
                        asleep_ms[usize::from(t)] = 0;
                    }
                }
                Step::Wake { tenant: t } => {
                    queue.wake(&tenant(t), now_ms);
                    asleep_ms[usize::from(t)] = 0;
                }
                Step::Pass { ms } => now_ms += ms,
            }
            let figures = queue.statistics(now_ms);
            let count = |wanted: &dyn Fn(&Naive) -> bool| naive.values().filter(|(_, state)| wanted(state)).count();
            prop_assert_eq!(queue.len(), naive.len());
            prop_assert_eq!(figures.in_flight, count(&|state| *state == Naive::InFlight));
            prop_assert_eq!(figures.held, count(&|state| *state == Naive::Held));
            prop_assert_eq!(figures.scheduled, count(&|state| matches!(state, Naive::Scheduled(due_ms) if *due_ms > now_ms)));
            prop_assert_eq!(figures.runnable + figures.waiting, count(&|state| matches!(state, Naive::Scheduled(due_ms) if *due_ms <= now_ms)));
        }
        // In the end everything comes out.
        now_ms += 10_000;
        queue.operate(Operation::Release, &Filter { all: true, ..Filter::default() }, now_ms, false);
        started(&mut queue, now_ms, usize::MAX);
        prop_assert_eq!(queue.statistics(now_ms).in_flight, naive.len());
    }
}
