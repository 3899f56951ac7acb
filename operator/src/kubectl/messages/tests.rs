use super::*;

const QUEUE_LIST: &str = include_str!("../../../tests/data/kubectl/mta-queue-list.json");
const QUEUE_SHOW: &str = include_str!("../../../tests/data/kubectl/mta-queue-show.json");
const QUEUE_HOLD: &str = include_str!("../../../tests/data/kubectl/mta-queue-hold.json");
const QUARANTINE_LIST: &str = include_str!("../../../tests/data/kubectl/mta-quarantine-list.json");
const QUARANTINE_RELEASE: &str = include_str!("../../../tests/data/kubectl/mta-quarantine-release.json");

fn reply(pod: &str, stdout: &str) -> Reply {
    Reply { pod: pod.to_owned(), outcome: Ok(Output { stdout: stdout.as_bytes().to_vec(), stderr: String::new(), code: 0 }) }
}

fn refused(pod: &str, stderr: &str) -> Reply {
    Reply { pod: pod.to_owned(), outcome: Ok(Output { stdout: vec![], stderr: stderr.to_owned(), code: 1 }) }
}

fn silent(pod: &str) -> Reply {
    Reply { pod: pod.to_owned(), outcome: Err("no answer in 20 s".to_owned()) }
}

/// The samples are what a gateway of this release printed; every field that is read is in them.
#[test]
fn what_a_gateway_prints_is_read() {
    let queue: Merged<Queued> = merge(&[reply("p", QUEUE_LIST)], &[]);
    assert_eq!((queue.unreachable.as_slice(), queue.complete), ([].as_slice(), true));
    assert!(!queue.messages.is_empty());
    for Placed { message, .. } in &queue.messages {
        check_ids(std::slice::from_ref(&message.id)).expect("an id");
        assert!(message.received_ms > 0 && message.size_bytes > 0 && !message.tenant.is_empty() && !message.recipients.is_empty(), "{message:?}");
    }
    assert!(queue.messages.iter().any(|placed| placed.message.error.is_some() && placed.message.route.is_some()), "{queue:?}");
    // Nothing that the gateway says about a message gets lost on the way through.
    let said: Value = serde_json::from_str(QUEUE_LIST).expect("JSON");
    let through = serde_json::to_value(&queue.messages[0].message).expect("JSON");
    assert_eq!(said["messages"][0], through);

    let kept: Merged<Kept> = merge(&[reply("p", QUARANTINE_LIST)], &[]);
    assert_eq!((kept.unreachable.as_slice(), kept.messages.is_empty()), ([].as_slice(), false));
    let said: Value = serde_json::from_str(QUARANTINE_LIST).expect("JSON");
    assert_eq!(said["messages"][0], serde_json::to_value(&kept.messages[0].message).expect("JSON"));

    let held = changed(&[reply("p", QUEUE_HOLD)], false, vec![], &[], false);
    assert_eq!((held.code, held.errors.as_str()), (EXIT_OK, ""));
    assert!(held.text.ends_with("changed\n") && !held.text.starts_with('0'), "{held:?}");
    let failed = changed(&[reply("p", QUARANTINE_RELEASE)], false, vec![], &[], false);
    assert_eq!(failed.code, EXIT_PARTIAL, "a message that is infected still stays: {failed:?}");
    let shown = shown(&reply("p", QUEUE_SHOW), false);
    assert!(shown.code == EXIT_OK && shown.text.starts_with("gateway p\n{") && shown.text.contains("envelope"), "{shown:?}");
}

fn queued(id: char, received_ms: u64) -> String {
    format!(
        "{{\"id\":\"01K000000000000000000000{id}0\",\"sub\":0,\"tenant\":\"mail/example-com\",\"purpose\":\"deliver\",\"state\":\"scheduled\",\"recipients\":[0],\
         \"sizeBytes\":9,\"receivedMs\":{received_ms},\"dueMs\":260000,\"route\":\"primary\",\"error\":\"451 busy\\u001b[31m\"}}"
    )
}

fn list(messages: &[String], now_ms: u64) -> String {
    format!("{{\"messages\":[{}],\"now\":{now_ms},\"complete\":true}}", messages.join(","))
}

fn id(letter: char) -> String {
    format!("01K000000000000000000000{letter}0")
}

#[test]
fn many_gateways_are_one_list_the_oldest_first() {
    let replies = [
        reply("gw-0", &list(&[queued('A', 150_000)], 200_000)),
        reply("gw-1", &list(&[queued('B', 100_000), queued('C', 190_000)], 220_000)),
        silent("gw-2"),
        refused("gw-3", "sekimori-mta: no gateway at /run/sekimori/admin.sock: refused; is it running, and is --admin right?\n"),
    ];
    let merged: Merged<Queued> = merge(&replies, &[id('B'), id('Z')]);
    assert_eq!(
        merged.messages.iter().map(|placed| (placed.pod.as_str(), placed.message.id.clone())).collect::<Vec<_>>(),
        [("gw-1", id('B')), ("gw-0", id('A')), ("gw-1", id('C'))]
    );
    assert_eq!(merged.missing, [id('Z')]);
    assert_eq!(merged.places(), BTreeMap::from([("gw-0".to_owned(), vec![id('A')]), ("gw-1".to_owned(), vec![id('B'), id('C')])]));

    let said = merged.said(false, Paint::default());
    assert_eq!(said.code, EXIT_PARTIAL);
    let lines: Vec<&str> = said.text.lines().collect();
    assert!(lines[0].starts_with("ID ") && lines.len() == 4, "{said:?}");
    // The age of each is by its own gateway's clock; what its server said cannot write to the terminal.
    assert!(lines[1].contains("  2m  ") && lines[1].ends_with("gw-1  451 busy\u{fffd}[31m"), "{}", lines[1]);
    for words in ["gw-2 was not reached", "no answer in 20 s", "gw-3 was not reached", "no gateway at", "no gateway that was reached has it"] {
        assert!(said.errors.contains(words), "{words} is missing in {}", said.errors);
    }
    let json: Value = serde_json::from_str(&merged.said(true, Paint::default()).text).expect("one JSON document");
    assert_eq!((&json["messages"][0]["pod"], &json["messages"][0]["tenant"]), (&"gw-1".into(), &"mail/example-com".into()));
    assert_eq!((&json["unreachable"][0]["pod"], &json["gateways"][1]["messages"], &json["missing"][0]), (&"gw-2".into(), &2.into(), &id('Z').into()));
}

#[test]
fn all_reached_and_nothing_there_is_ok() {
    let merged: Merged<Queued> = merge(&[reply("gw-0", &list(&[], 1))], &[]);
    assert_eq!(merged.said(false, Paint::default()), Said::text("the queues are empty\n".to_owned()));
    let garbled: Merged<Queued> = merge(&[reply("gw-0", "<html>")], &[]);
    assert!(garbled.unreachable[0].error.contains("another release"), "{garbled:?}");
}

#[test]
fn changes_add_up() {
    let replies = [
        reply("gw-0", "{\"count\":2,\"inFlight\":1,\"ids\":[\"A\",\"B\"]}"),
        reply("gw-1", "{\"count\":1,\"ids\":[\"C\"],\"failed\":[{\"id\":\"D\",\"error\":\"infected\"}]}"),
    ];
    let said = changed(&replies, true, vec![], &[], false);
    assert_eq!(said.code, EXIT_PARTIAL);
    assert_eq!(said.text, "3 messages would be changed\n  gw-0: 2\n  gw-1: 1\n1 are being attempted right now and were left alone\nD: infected\n");
    let json: Value = serde_json::from_str(&changed(&replies, true, vec![], &[id('Z')], true).text).expect("JSON");
    assert_eq!((&json["count"], &json["inFlight"], &json["dryRun"], &json["missing"][0]), (&3.into(), &1.into(), &true.into(), &id('Z').into()));
    assert_eq!(json["gateways"][1]["failed"][0]["error"], "infected");
}

#[test]
fn commands_cannot_be_led_astray() {
    let selection = Selection {
        tenant: Some("--all".to_owned()),
        route: Some("a b".to_owned()),
        older_than: Some("1h30m".parse().expect("a span")),
        ..Selection::default()
    };
    let command = Call::Change("drop", words(&selection, &[id('A')])).command(Store::Queue);
    assert_eq!(command, ["sekimori-mta", "queue", "drop", "--output", "json", &id('A'), "--tenant=--all", "--route=a b", "--older-than=1h30m"]);
    let search = Call::Search(vec![], "--raw".to_owned()).command(Store::DeadLetters);
    assert_eq!(search, ["sekimori-mta", "quarantine", "search", "--output", "json", "--dead-letters", "--", "--raw"]);
    let raw = Call::Show { id: id('A'), raw: true }.command(Store::Quarantine);
    assert_eq!(raw, ["sekimori-mta", "quarantine", "show", "--raw", &id('A')]);
}

#[test]
fn what_is_asked_is_checked_before_anybody_is_asked() {
    check_ids(&[id('A')]).expect("an id");
    for wrong in ["", "--all", "01k0000000000000000000000a", "01K000000000000000000000U0", "01K00000000000000000000000A"] {
        check_ids(&[wrong.to_owned()]).expect_err(wrong);
    }
    assert!(check_ids(&vec![id('A'); IDS_MAX + 1]).expect_err("too many").contains("500"));
    let all = Selection { all: true, ..Selection::default() };
    assert!(check_change("drop", &Selection::default(), false, None).expect_err("nothing selected").contains("--all"));
    assert!(check_change("drop", &all, false, Some(false)).expect_err("not meant").contains("--yes"));
    check_change("drop", &all, true, Some(false)).expect("a dry run harms nobody");
    check_change("drop", &all, false, Some(true)).expect("it was said");
    check_change("retry", &all, false, None).expect("nothing is taken away");
    check_change("drop", &Selection { ids: vec![id('A')], ..Selection::default() }, false, Some(false)).expect("ids are meant");
}

#[test]
fn figures_hold_no_message() {
    let value = figures(&[reply("gw-0", &list(&[queued('A', 150_000), queued('B', 100_000)], 200_000)), silent("gw-1")]);
    assert_eq!((&value["messages"], &value["states"]["scheduled"], &value["tenants"]["mail/example-com"]), (&2.into(), &2.into(), &2.into()));
    assert_eq!((&value["oldestReceivedMs"], &value["unreachable"][0]["pod"]), (&100_000.into(), &"gw-1".into()));
    assert!(!value.to_string().contains("451"), "{value}");
}
