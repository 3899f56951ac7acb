//! Bounds: count and time of questions, the cache, and its waiting room.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use proptest::prelude::*;
use sekimori_mta::authentication::{Dkim, Dmarc, DmarcPolicy, Spf};
use sekimori_mta::io::auth::{Authenticator, Evaluator, Identity, Input, Wanted, check_host};
use sekimori_mta::io::dns::{Absence, Budget, BudgetLimits, CacheLimits, Cached, Fake, Kind, Lookup, Question, Record, Reply, Resolver};

use super::mail::{envelope, evaluate, judge, message};

/// Answers each question after a while, and counts.
struct Slow {
    delay_ms: u64,
    ttl_s: u32,
    asked: AtomicU32,
}

impl Slow {
    fn new(delay_ms: u64, ttl_s: u32) -> Self {
        Self { delay_ms, ttl_s, asked: AtomicU32::new(0) }
    }
}

impl Resolver for Slow {
    fn resolve<'a>(&'a self, _: &'a Question) -> BoxFuture<'a, Reply> {
        Box::pin(async move {
            self.asked.fetch_add(1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(self.delay_ms)).await;
            Reply { lookup: Lookup::Records(Arc::new([Record::Txt("text".into())])), ttl_s: self.ttl_s }
        })
    }
}

#[tokio::test]
async fn a_budget_of_questions() {
    let fake = Fake::new().txt("a.example", "x");
    let budget = Budget::new(&fake, BudgetLimits { queries: 3, time_ms: 1000 });
    for _ in 0..3 {
        assert_eq!(budget.txt("a.example").await.records().len(), 1);
    }
    assert_eq!(budget.txt("a.example").await, Lookup::TempError);
    assert_eq!(budget.txt("nowhere..example").await, Lookup::Absent(Absence::Name), "a name that cannot be costs nothing");
    assert_eq!((budget.left(), fake.asked().len()), (0, 3));
    assert_eq!(budget.beside(1).txt("a.example").await.records().len(), 1, "its neighbour has its own count");
}

#[tokio::test(start_paused = true)]
async fn a_budget_of_time() {
    let slow = Arc::new(Slow::new(700, 60));
    let start = tokio::time::Instant::now();
    let budget = Budget::new(slow.as_ref(), BudgetLimits { queries: 100, time_ms: 1000 });
    let beside = budget.beside(10);
    assert_eq!(budget.txt("a.example").await.records().len(), 1);
    assert_eq!(budget.txt("b.example").await, Lookup::TempError);
    assert_eq!(beside.txt("c.example").await, Lookup::TempError, "the time is one for all");
    assert_eq!(start.elapsed().as_millis(), 1000);
}

#[tokio::test(start_paused = true)]
async fn a_question_is_asked_once_however_many_wait() {
    let slow = Arc::new(Slow::new(50, 60));
    let cache = Cached::new(slow.clone(), CacheLimits::default());
    let answers = join_all((0..100).map(|_| cache.txt("A.example"))).await;
    assert!(answers.iter().all(|answer| answer.records().len() == 1));
    assert_eq!(cache.txt("a.Example.").await.records().len(), 1, "the same name in other letters");
    assert_eq!((slow.asked.load(Ordering::SeqCst), cache.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn whoever_gives_up_does_not_take_the_answer_along() {
    let slow = Arc::new(Slow::new(60, 60));
    let cache = Cached::new(slow.clone(), CacheLimits::default());
    assert!(tokio::time::timeout(Duration::from_millis(10), cache.txt("a.example")).await.is_err());
    assert_eq!(cache.txt("a.example").await.records().len(), 1);
    assert_eq!(slow.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(start_paused = true)]
async fn the_waiting_room_is_bounded() {
    let slow = Arc::new(Slow::new(100, 60));
    let cache = Cached::new(slow.clone(), CacheLimits { in_flight: 4, ..CacheLimits::default() });
    let names: Vec<String> = (0..20).map(|n| format!("n{n}.example")).collect();
    let answers = join_all(names.iter().map(|name| cache.txt(name))).await;
    let answered = answers.iter().filter(|answer| !answer.failed()).count();
    assert!(answered <= 4 && answered > 0, "{answered}");
    assert!(slow.asked.load(Ordering::SeqCst) <= 4);
}

#[tokio::test]
async fn the_cache_is_bounded_and_keeps_what_is_used() {
    let fake = Arc::new(Fake::new().txt("kept.example", "x"));
    let cache = Cached::new(fake.clone(), CacheLimits { entries: 100, ..CacheLimits::default() });
    for number in 0..1000 {
        cache.txt(&format!("n{number}.example")).await;
        cache.txt("kept.example").await;
        assert!(cache.len() <= 100);
    }
    assert_eq!(fake.asked().iter().filter(|question| question.name() == "kept.example").count(), 1);
    let small = Cached::new(fake.clone(), CacheLimits { bytes: 4000, ..CacheLimits::default() });
    for number in 0..1000 {
        small.txt(&format!("n{number}.example")).await;
        assert!(small.len() <= 30, "{}", small.len());
    }
}

#[tokio::test]
async fn answers_are_kept_as_long_as_they_say_within_bounds() {
    for (ttl_s, limits, again) in [
        (0, CacheLimits { ttl_min_s: 0, ..CacheLimits::default() }, 2),
        (0, CacheLimits { ttl_min_s: 60, ..CacheLimits::default() }, 1),
        (1000, CacheLimits { ttl_min_s: 0, ttl_max_s: 0, ..CacheLimits::default() }, 2),
        (1000, CacheLimits::default(), 1),
    ] {
        let slow = Arc::new(Slow::new(0, ttl_s));
        let cache = Cached::new(slow.clone(), limits);
        cache.txt("a.example").await;
        cache.txt("a.example").await;
        assert_eq!(slow.asked.load(Ordering::SeqCst), again, "{ttl_s} {limits:?}");
    }
    // Absences and failures too.
    let fake = Arc::new(Fake::new().failing("bad.example"));
    let cache = Cached::new(fake.clone(), CacheLimits::default());
    for _ in 0..3 {
        assert_eq!(cache.a("none.example").await, Lookup::Absent(Absence::Name));
        assert_eq!(cache.a("bad.example").await, Lookup::TempError);
    }
    assert_eq!(fake.asked().len(), 2);
    cache.clear();
    assert!(cache.is_empty());
    let short = Cached::new(fake.clone(), CacheLimits { failure_ttl_s: 0, negative_ttl_max_s: 0, ttl_min_s: 0, ..CacheLimits::default() });
    for _ in 0..2 {
        short.a("none.example").await;
        short.a("bad.example").await;
    }
    assert_eq!(fake.asked().len(), 6);
}

/// A sender whose records cost as much as they can.
fn costly() -> Fake {
    let mut fake = Fake::new()
        .txt("costly.example", "v=spf1 mx:m0.example mx:m1.example mx:m2.example mx:m3.example mx:m4.example mx:m5.example mx:m6.example -all");
    for mx in 0..7 {
        for host in 0..10 {
            let name = format!("h{host}.m{mx}.example");
            fake = fake.mx(&format!("m{mx}.example"), 10, &name).a(&name, [198, 51, 100, 1].into());
        }
    }
    fake
}

#[tokio::test]
async fn what_spf_wastes_is_not_taken_from_dmarc() {
    let fake = Arc::new(costly().txt("_dmarc.victim.example", "v=DMARC1; p=reject"));
    let mail = message("From: <ceo@victim.example>\r\n\r\nPay.\r\n");
    let found = evaluate(fake.clone(), &envelope("192.0.2.1", Some("x@costly.example")), &mail).await;
    assert_eq!(found.spf, Some(Spf::TempError), "its budget is used up");
    let dmarc = found.dmarc.expect("judged");
    assert_eq!((dmarc.result, dmarc.policy), (Dmarc::Fail, DmarcPolicy::Reject));
    assert!(fake.asked().len() <= 60, "{}", fake.asked().len());
}

#[tokio::test(start_paused = true)]
async fn a_slow_dns_costs_one_budget_of_time() {
    let slow = Arc::new(Slow::new(4000, 60));
    let signature = "DKIM-Signature: v=1; a=rsa-sha256; d=a.example; s=s; h=From; bh=YQ==; b=YQ==\r\n".repeat(20);
    let mail = message(format!("{signature}From: <a@a.example>\r\n\r\nx\r\n"));
    let start = tokio::time::Instant::now();
    let found = evaluate(slow, &envelope("192.0.2.1", Some("x@b.example")), &mail).await;
    assert!(start.elapsed() <= Duration::from_millis(5001), "{:?}", start.elapsed());
    assert_eq!(found.dkim.len(), 10);
    assert_eq!(found.dmarc.expect("judged").result, Dmarc::TempError);
}

#[tokio::test]
async fn only_what_is_wanted_is_asked() {
    let mail = message("DKIM-Signature: v=1; a=rsa-sha256; d=a.example; s=s; h=From; bh=YQ==; b=YQ==\r\nFrom: <a@a.example>\r\n\r\nx\r\n");
    let envelope = envelope("192.0.2.1", Some("x@b.example"));
    for (want, names) in [
        (Wanted::default(), vec![]),
        (Wanted { spf: true, ..Wanted::default() }, vec!["b.example"]),
        (Wanted { dkim: true, ..Wanted::default() }, vec!["s._domainkey.a.example"]),
        (Wanted { dmarc: true, ..Wanted::default() }, vec!["_dmarc.a.example", "_dmarc.example", "b.example", "s._domainkey.a.example"]),
    ] {
        let fake = Arc::new(Fake::new());
        let evaluator = Evaluator::new(fake.clone(), BudgetLimits::default());
        let found = evaluator.evaluate(Input { envelope: &envelope, message: &mail, want }).await;
        let mut asked: Vec<String> = fake.asked().iter().map(|question| question.name().to_owned()).collect();
        asked.sort();
        assert_eq!(asked, names, "{want:?}");
        assert_eq!(
            (found.spf.is_some(), found.dkim.len(), found.dmarc.is_some()),
            (want.spf || want.dmarc, usize::from(want.dkim || want.dmarc), want.dmarc)
        );
    }
    assert_eq!(Wanted { spf: true, ..Wanted::default() }.or(Wanted { dkim: true, dmarc: true, spf: false }), Wanted::ALL);
}

#[tokio::test]
async fn a_huge_text_is_malformed_or_refused() {
    let long = format!("v=spf1 {} -all", "a ".repeat(3000));
    let found =
        judge(Fake::new().txt("b.example", &long), &envelope("192.0.2.1", Some("x@b.example")), &message("From: <a@b.example>\r\n\r\n")).await;
    assert_eq!(found.spf, Some(Spf::PermError));
    let key = format!("v=DKIM1; p={}", "A".repeat(12_000));
    let mail = message("DKIM-Signature: v=1; a=rsa-sha256; d=a.example; s=s; h=From; bh=YQ==; b=YQ==\r\nFrom: <a@a.example>\r\n\r\nx\r\n");
    let found = judge(Fake::new().txt("s._domainkey.a.example", key), &envelope("192.0.2.1", None), &mail).await;
    assert_eq!(found.dkim.first().map(|one| one.result), Some(Dkim::PermError));
}

#[tokio::test]
async fn mapped_clients_and_families() {
    let fake = Fake::new()
        .txt("four.example", "v=spf1 ip4:192.0.2.0/24 -all")
        .txt("six.example", "v=spf1 ip6:::/0 a//0 mx//0 -all")
        .aaaa("six.example", "2001:db8::1".parse().expect("an address"))
        .mx("six.example", 1, "six.example");
    for (client, domain, expected) in [
        ("::ffff:192.0.2.7", "four.example", Spf::Pass),
        ("::ffff:192.0.3.7", "four.example", Spf::Fail),
        ("::192.0.2.7", "four.example", Spf::Fail),
        ("192.0.2.7", "six.example", Spf::Fail),
        ("::ffff:192.0.2.7", "six.example", Spf::Fail),
        ("2001:db8::9", "six.example", Spf::Pass),
    ] {
        let identity = Identity { client: client.parse().expect("an address"), helo: "h.example", local: "", domain };
        assert_eq!(check_host(&fake, identity).await, expected, "{client} {domain}");
    }
}

#[test]
fn questions() {
    let question = Question::new("MAIL.Example.", Kind::Mx).expect("a name");
    assert_eq!((question.name(), question.kind()), ("mail.example", Kind::Mx));
    assert_eq!(Question::reverse([192, 0, 2, 1].into()).name(), "1.2.0.192.in-addr.arpa");
    let six = Question::reverse("2001:db8::1".parse().expect("an address"));
    assert_eq!(six.name(), "1.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa");
}

/// Words of which records and fields are made, so that random texts reach beyond the first test.
const WORDS: &str = "v=spf1 |v=DMARC1;|v=DKIM1;|a|mx|ptr|include:|exists:|ip4:|ip6:|redirect=|exp=|%\\{[a-z]0?r?\\}|example|\\.|:|/|=|;| |p=|reject|psd=y|k=rsa;|[0-9]{1,3}|\\PC{0,4}";

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_records_or_headers_panic_or_run_away(
        texts in proptest::collection::vec(proptest::collection::vec(WORDS, 0..12), 4),
        fields in proptest::collection::vec("(DKIM-Signature|From|Subject|X)", 0..6),
        values in proptest::collection::vec("[ -~]{0,40}|(v=1; a=rsa-sha256; d=a.example; s=s; h=from; bh=YQ==; b=YQ==;? ?[a-z]{0,2}=?[ -~]{0,10})", 6),
        from in "\\PC{0,20}",
    ) {
        let texts: Vec<String> = texts.into_iter().map(|words| words.concat()).collect();
        let fake = Arc::new(
            ["a.example", "example", "_dmarc.a.example", "s._domainkey.a.example"].iter().zip(&texts).fold(Fake::new(), |fake, (name, text)| fake.txt(name, text)),
        );
        let head: String = fields.iter().zip(&values).map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mail = message(format!("{head}From: <a@{from}>\r\nFrom: <b@a.example>\r\n\r\nbody\r\n"));
        let sender = envelope("192.0.2.1", Some("x@a.example"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        let found = runtime.block_on(evaluate(fake.clone(), &sender, &mail));
        prop_assert!(fake.asked().len() <= 60);
        prop_assert!(found.dkim.iter().all(|one| one.result != Dkim::Pass));
        prop_assert!(found.header_field("mx.example", &sender).ends_with("\r\n"));
    }
}
