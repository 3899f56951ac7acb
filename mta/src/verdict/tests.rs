use std::net::IpAddr;

use proptest::prelude::*;
use sekimori_crds::snapshot::{Combine, ListEntry, Thresholds};
use sekimori_crds::vocabulary::ListEntryType;

use super::*;
use crate::authentication::{Dmarc, DmarcPolicy, DmarcResult, Spf};

/// The built-in defaults.
pub(crate) fn default_policy() -> Policy {
    sekimori_crds::compile::defaults::policy()
}

/// Facts that own what they refer to.
#[derive(Clone, Debug)]
pub(crate) struct Scene {
    pub(crate) opinions: Vec<Opinion>,
    authentication: Authentication,
    client: Client,
    sender: Option<Address>,
    from: Vec<Mailbox>,
    file_names: Vec<String>,
    file_names_cut: bool,
    terminating: bool,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            opinions: vec![],
            authentication: Authentication::default(),
            client: Client { address: IpAddr::from([192, 0, 2, 1]), helo: "h".into(), esmtp: true, tls: None, address_known: true },
            sender: None,
            from: vec![],
            file_names: vec![],
            file_names_cut: false,
            terminating: false,
        }
    }
}

impl Scene {
    pub(crate) fn judge(&self, policy: &Policy) -> Verdict {
        let facts = Facts {
            opinions: &self.opinions,
            authentication: &self.authentication,
            client: &self.client,
            sender: self.sender.as_ref(),
            from: &self.from,
            file_names: &self.file_names,
            file_names_cut: self.file_names_cut,
            terminating: self.terminating,
        };
        judge(&facts, policy)
    }
}

fn word<T: serde::de::DeserializeOwned>(text: &str) -> T {
    serde_json::from_value(serde_json::Value::String(text.into())).unwrap_or_else(|error| panic!("'{text}': {error}"))
}

/// `a(b,c)`.
fn call(text: &str) -> (&str, Vec<&str>) {
    text.split_once('(').map_or((text, vec![]), |(name, rest)| (name, rest.trim_end_matches(')').split(',').collect()))
}

fn bound(text: &str) -> Option<i32> {
    (text != "-").then(|| text.parse().expect("a number"))
}

fn set_policy(policy: &mut Policy, key: &str, value: &str) {
    let entry = || {
        let (kind, value) = value.split_once(':').expect("Type:value");
        ListEntry { kind: word::<ListEntryType>(kind), value: value.into() }
    };
    match key {
        "infected" => policy.anti_virus.infected = word(value),
        "tooLarge" => policy.anti_virus.too_large = word(value),
        "limits" => policy.anti_virus.limits_exceeded = word(value),
        "malformed" => policy.anti_virus.malformed = word(value),
        "avMin" => policy.anti_virus.minimum_engines = value.parse().expect("a number"),
        "avFew" => policy.anti_virus.too_few_engines = word(value),
        "asMin" => policy.anti_spam.minimum_engines = value.parse().expect("a number"),
        "asFew" => policy.anti_spam.too_few_engines = word(value),
        "encrypted" => policy.attachments.encrypted_archives = word(value),
        "block" => policy.attachments.block_types = value.split(',').map(str::to_owned).collect(),
        "spf" => policy.authentication.spf = word(value),
        "dmarc" => policy.authentication.dmarc = word(value),
        "onTemp" => policy.authentication.on_temp_error = word(value),
        "allow" => policy.lists.allow.push(entry()),
        "deny" => policy.lists.deny.push(entry()),
        "combine" => {
            policy.anti_spam.combine = match call(value) {
                ("LogOdds", v) => Combine::LogOdds {
                    prior_decibans: v[0].parse().expect("a number"),
                    at: Thresholds { tag_at: bound(v[1]), quarantine_at: bound(v[2]), reject_at: bound(v[3]) },
                },
                ("WeightedSum", v) => {
                    Combine::WeightedSum { at: Thresholds { tag_at: bound(v[0]), quarantine_at: bound(v[1]), reject_at: bound(v[2]) } }
                }
                ("Maximum", v) => Combine::Maximum { at: Thresholds { tag_at: bound(v[0]), quarantine_at: bound(v[1]), reject_at: bound(v[2]) } },
                ("Majority", v) => Combine::Majority { action: word(v[0]) },
                other => panic!("{other:?}"),
            }
        }
        other => panic!("no policy setting '{other}'"),
    }
}

fn mailbox(text: &str) -> Mailbox {
    let (local, domain) = text.split_once('@').expect("an address");
    Mailbox { name: None, local: local.into(), domain: domain.into() }
}

fn set_fact(scene: &mut Scene, key: &str, value: &str) {
    match key {
        "spf" => {
            scene.authentication.spf = Some(word::<Spf>(value));
            scene.authentication.spf_domain = "sender.example".into();
        }
        "dmarc" => {
            let v: Vec<&str> = value.split(':').collect();
            scene.authentication.dmarc =
                Some(DmarcResult { result: word::<Dmarc>(v[0]), policy: word::<DmarcPolicy>(v[1]), from_domain: v[2].into() });
        }
        "from" => scene.from.push(mailbox(value)),
        "sender" => scene.sender = Some(Address { local: mailbox(value).local, domain: mailbox(value).domain }),
        "client" => scene.client.address = value.parse().expect("an address"),
        "masked" => scene.client.address_known = false,
        "terminating" => scene.terminating = true,
        "cut" => scene.file_names_cut = true,
        "file" => scene.file_names.push(value.into()),
        engine => scene.opinions.push(opinion(engine, value)),
    }
}

fn opinion(engine: &str, value: &str) -> Opinion {
    let name: String = engine.chars().take_while(|c| c.is_alphanumeric()).collect();
    let part = |mark: char| engine.split(mark).nth(1).map(|rest| rest.split(['@', '*', '~']).next().expect("one").to_owned());
    let class = match name.get(..2) {
        Some("as") => EngineClass::AntiSpam,
        Some("sb") => EngineClass::Sandbox,
        _ => EngineClass::AntiVirus,
    };
    let mode = match part('~').as_deref() {
        None => EngineMode::Enforce,
        Some("shadow") => EngineMode::Shadow,
        Some("disabled") => EngineMode::Disabled,
        Some(other) => panic!("no mode '{other}'"),
    };
    let (says, evidence) = value.split_once('+').unwrap_or((value, ""));
    Opinion {
        family: part('@').unwrap_or_else(|| name.clone()).into(),
        class,
        version: "1".into(),
        mode,
        weight_percent: part('*').map_or(100, |weight| weight.parse().expect("a weight")),
        millis: 7,
        finding: finding(says),
        evidence: evidence.parse().ok().map(|decibans| Evidence { name: "Heuristics.X".into(), decibans }).into_iter().collect(),
        engine: name.into(),
    }
}

fn finding(text: &str) -> Finding {
    match call(text) {
        ("clean", _) => Finding::Clean,
        ("infected", name) => Finding::Infected(name.join(",")),
        ("encrypted", _) => Finding::Unscannable(Unscannable::Encrypted),
        ("tooLarge", _) => Finding::Unscannable(Unscannable::TooLarge),
        ("limits", _) => Finding::Unscannable(Unscannable::LimitsExceeded),
        ("malformed", _) => Finding::Unscannable(Unscannable::Malformed),
        ("convicted", _) => Finding::Unscannable(Unscannable::Convicted),
        ("timeout", _) => Finding::Failed(Failure::Timeout),
        ("breaker", _) => Finding::Failed(Failure::BreakerOpen),
        ("busy", _) => Finding::Failed(Failure::Busy),
        ("unreachable", _) => Finding::Failed(Failure::Unreachable("connection refused".into())),
        ("garbage", _) => Finding::Failed(Failure::Protocol("no such answer".into())),
        (score, _) => {
            let milli = |text: &str| (text.parse::<f64>().expect("a score") * 1000.0).round() as i64;
            let (score, certain) = score.strip_suffix("!certain").map_or((score, false), |score| (score, true));
            let v: Vec<&str> = score.split('/').collect();
            Finding::Spam(SpamScore { milli: milli(v[0]), required_milli: milli(v[1]), reject_milli: milli(v[2]), certain })
        }
    }
}

fn expect(line: &str, verdict: &Verdict, expected: &str) {
    let story = verdict.explanation();
    let (words, says) = expected.split_once("says=\"").map_or((expected, None), |(words, says)| (words, Some(says.trim_end_matches('"'))));
    let mut words = words.split_whitespace();
    assert_eq!(verdict.action, word::<Action>(words.next().expect("an action")), "{line}\n{story}");
    let (mut unscanned, mut encrypted) = (String::from("none"), false);
    for item in words {
        let (key, value) = item.split_once('=').unwrap_or((item, ""));
        let value = value.replace('~', " ");
        match key {
            "av" => assert_eq!(verdict.anti_virus.to_string(), value, "{line}\n{story}"),
            "as" => assert_eq!(verdict.anti_spam.to_string(), value, "{line}\n{story}"),
            "db" => assert_eq!(verdict.decibans.map_or_else(|| "none".into(), |db| db.to_string()), value, "{line}\n{story}"),
            "unscanned" => unscanned = value,
            "encrypted" => encrypted = true,
            "code" => {
                let (a, b, c) = verdict.reply.as_ref().expect("a reply").enhanced.expect("a status");
                assert_eq!(format!("{}/{a}.{b}.{c}", verdict.reply.as_ref().expect("a reply").code), value, "{line}\n{story}");
            }
            other => panic!("{line}: nothing to expect is called '{other}'"),
        }
    }
    let found: Vec<&str> = verdict.unscanned.iter().map(|class| class.as_str()).collect();
    assert_eq!(if found.is_empty() { "none".to_owned() } else { found.join(",") }, unscanned, "{line}\n{story}");
    assert_eq!(verdict.encrypted, encrypted, "{line}\n{story}");
    assert_eq!(verdict.reply.is_some(), matches!(verdict.action, Action::Reject | Action::Defer), "{line}\n{story}");
    if let Some(says) = says {
        let text = &verdict.reply.as_ref().expect("a reply").text;
        assert!(text.contains(says), "{line}\n{text}");
    }
    if let Some(reply) = &verdict.reply {
        assert!(reply.text.is_ascii() && !reply.text.contains('\n'), "{line}\n{reply}");
        assert!(!reply.text.chars().any(|c| c.is_ascii_digit()) || reply.text.contains('('), "{line}: a reply does not tell scores: {reply}");
    }
}

#[test]
fn the_table() {
    let table = include_str!("../../tests/data/verdict/cases.txt");
    let mut cases = 0;
    for line in table.lines().filter(|line| !line.is_empty() && !line.starts_with('#') && !line.starts_with('[')) {
        let (given, expected) = line.split_once("=>").unwrap_or_else(|| panic!("no expectation: {line}"));
        let parts: Vec<&str> = given.split('|').collect();
        let [_, settings, facts] = parts[..] else { panic!("name | policy | facts: {line}") };
        let mut policy = default_policy();
        for item in settings.split_whitespace() {
            let (key, value) = item.split_once('=').expect("key=value");
            set_policy(&mut policy, key, value);
        }
        let mut scene = Scene::default();
        for item in facts.split_whitespace() {
            let (key, value) = item.split_once('=').unwrap_or((item, ""));
            set_fact(&mut scene, key, value);
        }
        expect(line, &scene.judge(&policy), expected);
        cases += 1;
    }
    assert!(cases >= 80, "only {cases} cases");
}

#[test]
fn a_verdict_explains_itself() {
    let mut scene = Scene::default();
    for (key, value) in [("av1", "clean+4"), ("av2~shadow", "infected(Eicar)"), ("av3", "timeout"), ("as", "-1.25/6/15")] {
        set_fact(&mut scene, key, value);
    }
    let verdict = scene.judge(&default_policy());
    expect_test::expect![[r#"
        Deliver
          anti-virus: clean
          anti-spam: ham, -3 decibans
          av1 1 (anti-virus): clean in 7 ms, evidence: Heuristics.X +4
          av2 1 (anti-virus): infected(Eicar) in 7 ms [shadow, not counted]
          av3 1 (anti-virus): failed(timeout) in 7 ms
          as 1 (anti-spam): score(-1.25/6) in 7 ms"#]]
    .assert_eq(&verdict.explanation());
    let json = serde_json::to_string(&verdict).expect("it is JSON");
    assert_eq!(serde_json::from_str::<Verdict>(&json).expect("it reads back"), verdict);
}

fn any_finding() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "clean",
        "infected(X)",
        "encrypted",
        "tooLarge",
        "limits",
        "malformed",
        "convicted",
        "timeout",
        "breaker",
        "clean+5",
        "clean+30",
    ])
}

fn any_scene() -> impl Strategy<Value = Scene> {
    let virus = proptest::collection::vec((any_finding(), 0..3_usize, any::<bool>()), 0..4);
    let spam = proptest::collection::vec((-100_000..100_000_i64, 0..3_usize, 0..150_u32, 0..10_u8, any::<bool>()), 0..4);
    (virus, spam, any::<bool>(), any::<bool>(), 0..3_u8).prop_map(|(virus, spam, terminating, listed, auth)| {
        let mut scene = Scene { terminating, ..Scene::default() };
        for (i, (finding, family, shadow)) in virus.into_iter().enumerate() {
            set_fact(&mut scene, &format!("av{i}@f{family}{}", if shadow { "~shadow" } else { "" }), finding);
        }
        for (i, (milli, family, weight, kind, shadow)) in spam.into_iter().enumerate() {
            let mut opinion = opinion(&format!("as{i}@f{family}*{weight}{}", if shadow { "~shadow" } else { "" }), "0/5/15");
            opinion.finding = match kind {
                0 => Finding::Failed(Failure::Timeout),
                kind => Finding::Spam(SpamScore { milli, required_milli: 5000, reject_milli: 15_000, certain: kind == 1 }),
            };
            scene.opinions.push(opinion);
        }
        if listed {
            set_fact(&mut scene, "client", "198.51.100.7");
        }
        if auth > 0 {
            set_fact(&mut scene, "dmarc", if auth == 1 { "fail:reject:x.example" } else { "pass:none:x.example" });
            set_fact(&mut scene, "from", "a@x.example");
        }
        scene
    })
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let mild = || proptest::sample::select(Action::ALL.to_vec());
    let few = || proptest::sample::select(TooFewEngines::ALL.to_vec());
    let combine = proptest::sample::select(vec![
        "LogOdds(0,10,20,30)",
        "LogOdds(-7,-,5,12)",
        "WeightedSum(100,150,-)",
        "Maximum(90,100,250)",
        "Majority(Quarantine)",
        "Majority(Tag)",
    ]);
    (mild(), mild(), mild(), mild(), 0..3_u32, 0..3_u32, few(), few(), combine, any::<bool>()).prop_map(
        |(too_large, limits, malformed, encrypted, av_min, as_min, av_few, as_few, combine, allow)| {
            let mut policy = default_policy();
            (policy.anti_virus.too_large, policy.anti_virus.limits_exceeded, policy.anti_virus.malformed) = (too_large, limits, malformed);
            policy.attachments.encrypted_archives = encrypted;
            (policy.anti_virus.minimum_engines, policy.anti_spam.minimum_engines) = (av_min, as_min);
            (policy.anti_virus.too_few_engines, policy.anti_spam.too_few_engines) = (av_few, as_few);
            set_policy(&mut policy, "combine", combine);
            if allow {
                set_policy(&mut policy, "allow", "Network:198.51.100.0/24");
                set_policy(&mut policy, "allow", "Domain:x.example");
            }
            policy
        },
    )
}

/// All that others act on, without the record of who said what.
fn outcome(mut verdict: Verdict) -> Verdict {
    verdict.opinions.clear();
    verdict
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_order_of_arrival_does_not_matter(scene in any_scene(), policy in any_policy(), seed in any::<u64>()) {
        let mut shuffled = scene.clone();
        shuffled.opinions.sort_by_key(|opinion| {
            opinion.engine.bytes().fold(seed, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3).rotate_left(17))
        });
        prop_assert_eq!(scene.judge(&policy), shuffled.judge(&policy));
    }

    #[test]
    fn infected_never_softens(scene in any_scene(), policy in any_policy(), pick in any::<prop::sample::Index>()) {
        let virus: Vec<usize> = (0..scene.opinions.len()).filter(|i| scene.opinions[*i].class == EngineClass::AntiVirus).collect();
        prop_assume!(!virus.is_empty());
        let before = scene.judge(&policy);
        let mut worse = scene;
        worse.opinions[virus[pick.index(virus.len())]].finding = Finding::Infected("Y".into());
        let after = worse.judge(&policy);
        prop_assert!(after.action >= before.action, "{}\nbecame\n{}", before.explanation(), after.explanation());
    }

    #[test]
    fn a_higher_score_never_softens(scene in any_scene(), policy in any_policy(), pick in any::<prop::sample::Index>(), more in 0..200_000_i64, certain in any::<bool>()) {
        let spam: Vec<usize> = (0..scene.opinions.len()).filter(|i| matches!(scene.opinions[*i].finding, Finding::Spam(_))).collect();
        prop_assume!(!spam.is_empty());
        let before = scene.judge(&policy);
        let mut worse = scene;
        if let Finding::Spam(score) = &mut worse.opinions[spam[pick.index(spam.len())]].finding {
            score.milli += more;
            score.certain |= certain;
        }
        let after = worse.judge(&policy);
        prop_assert!(after.action >= before.action, "{}\nbecame\n{}", before.explanation(), after.explanation());
        prop_assert!(after.decibans >= before.decibans);
    }

    #[test]
    fn more_evidence_never_softens(scene in any_scene(), policy in any_policy(), pick in any::<prop::sample::Index>(), more in 0..50_i32) {
        prop_assume!(!scene.opinions.is_empty());
        let before = scene.judge(&policy);
        let mut worse = scene;
        let i = pick.index(worse.opinions.len());
        worse.opinions[i].evidence.push(Evidence { name: "Heuristics.Y".into(), decibans: more });
        let after = worse.judge(&policy);
        // With no anti-spam opinion at all a first piece of evidence brings the (here perhaps negative) prior in, which asks for nothing.
        prop_assert!(after.action >= before.action, "{}\nbecame\n{}", before.explanation(), after.explanation());
    }

    #[test]
    fn allow_lists_never_skip_anti_virus(scene in any_scene(), policy in any_policy()) {
        let mut without = policy.clone();
        without.lists.allow.clear();
        let (with, without) = (scene.judge(&policy), scene.judge(&without));
        prop_assert_eq!(&with.anti_virus, &without.anti_virus);
        let asked = |verdict: &Verdict| {
            let virus = |cause: &Cause| matches!(cause, Cause::Infected { .. } | Cause::Encrypted { .. } | Cause::Unscannable { .. }
                | Cause::TooFewEngines { class: EngineClass::AntiVirus, .. } | Cause::Dmarc { .. });
            verdict.reasons.iter().filter(|reason| virus(&reason.cause)).cloned().collect::<Vec<_>>()
        };
        prop_assert_eq!(asked(&with), asked(&without));
        prop_assert_eq!(with.encrypted, without.encrypted);
        prop_assert_eq!(with.unscanned, without.unscanned);
    }

    #[test]
    fn shadow_changes_nothing(scene in any_scene(), policy in any_policy()) {
        let mut without = scene.clone();
        without.opinions.retain(|opinion| opinion.mode != EngineMode::Shadow);
        prop_assert_eq!(outcome(scene.judge(&policy)), outcome(without.judge(&policy)));
    }

    #[test]
    fn nothing_is_delivered_unscanned_in_silence(scene in any_scene(), policy in any_policy()) {
        let verdict = scene.judge(&policy);
        // A count of its own: families with a scan that was complete, or complete but for what is encrypted.
        let scanned: BTreeSet<&str> = scene.opinions.iter()
            .filter(|opinion| opinion.class == EngineClass::AntiVirus && opinion.mode == EngineMode::Enforce)
            .filter(|opinion| matches!(opinion.finding, Finding::Clean | Finding::Unscannable(Unscannable::Encrypted)))
            .map(|opinion| &*opinion.family)
            .collect();
        let too_few = scanned.is_empty() || scanned.len() < policy.anti_virus.minimum_engines as usize;
        if verdict.action <= Action::Tag && too_few {
            prop_assert!(verdict.unscanned.contains(&EngineClass::AntiVirus) || matches!(verdict.anti_virus, AntiVirus::Infected(_)));
        }
        let too_few = |reason: &&Reason| matches!(reason.cause, Cause::TooFewEngines { .. });
        let all_defer = verdict.reasons.iter().filter(too_few).all(|reason| reason.action == Action::Defer);
        prop_assert!(!scene.terminating || all_defer);
    }

    #[test]
    fn the_action_is_the_harshest_reason(scene in any_scene(), policy in any_policy()) {
        let verdict = scene.judge(&policy);
        prop_assert_eq!(verdict.action, verdict.reasons.iter().map(|reason| reason.action).max().unwrap_or(Action::Deliver));
        prop_assert_eq!(verdict.reply.as_ref().map(|reply| reply.code), match verdict.action { Action::Reject => Some(550), Action::Defer => Some(451), _ => None });
    }
}
