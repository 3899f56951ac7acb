use super::*;

fn client(tls: TlsUse) -> Client {
    Client::new("mx.example.net", tls, Timeouts::default(), 0)
}

fn address(text: &str) -> Address {
    let (local, domain) = text.rsplit_once('@').unwrap();
    Address { local: local.into(), domain: domain.into() }
}

fn transaction(recipients: &[&str]) -> Transaction {
    Transaction {
        sender: Some(address("a@s.test")),
        recipients: recipients.iter().map(|text| address(text)).collect(),
        size_bytes: 42,
        eight_bit: false,
        utf8_header: false,
    }
}

/// Plays a transcript: `S:` the server's line, `C:` what must be written since then (lines joined by `|`, empty: nothing), `E:` the event that must have come,
/// `TLS` a handshake, `BEGIN a b` a transaction to these, `END` the content was written, `GONE` the connection closes, `LATE` time runs out.
fn play(tls: TlsUse, transcript: &str) -> Client {
    let mut machine = client(tls);
    for line in transcript.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (head, rest) = line.split_once(' ').unwrap_or((line, ""));
        match head {
            "S:" => machine.handle_input(format!("{}\r\n", rest.replace('|', "\r\n")).as_bytes(), 0),
            "C:" => {
                let mut written = vec![];
                while let Some(bytes) = machine.poll_transmit() {
                    written.extend_from_slice(&bytes);
                }
                assert_eq!(String::from_utf8(written).unwrap().trim_end().replace("\r\n", "|"), rest, "in: {line}");
            }
            "E:" => assert_eq!(machine.poll_event().map(|event| say(&event)).unwrap_or_default(), rest, "in: {line}"),
            "TLS" => machine.handshake_done(0),
            "BEGIN" => machine.begin(transaction(&rest.split(' ').collect::<Vec<_>>()), 0),
            "END" => machine.content_ending(0),
            "GONE" => machine.handle_trouble(Answer::Disconnected("gone".into())),
            "LATE" => machine.handle_trouble(Answer::Timeout),
            other => panic!("what is {other}?"),
        }
    }
    assert_eq!(machine.poll_event(), None, "an event that the transcript does not name");
    machine
}

fn say(event: &Event) -> String {
    match event {
        Event::StartTls => "starttls".into(),
        Event::Ready => "ready".into(),
        Event::SendContent => "content".into(),
        Event::Failed { phase, answer } => format!("failed {phase}: {answer}"),
        Event::Finished(Finished { recipients, phase, answer }) => {
            let codes: Vec<String> =
                recipients.iter().map(|reply| reply.as_ref().map_or_else(|| "-".into(), |reply| reply.code.to_string())).collect();
            format!("finished {} {phase}: {answer}", codes.join(","))
        }
    }
}

const GREETING: &str = "S: 220 hi\nC: EHLO mx.example.net\n";

#[test]
fn pipelined() {
    let machine = play(
        TlsUse::Opportunistic,
        &format!(
            "{GREETING}
            S: 250-sink|250-PIPELINING|250-size 1000|250-8BITMIME|250 HELP
            E: ready
            BEGIN u@t v@t
            C: MAIL FROM:<a@s.test> SIZE=42|RCPT TO:<u@t>|RCPT TO:<v@t>|DATA
            S: 250 2.1.0 ok|250 ok|550 5.1.1 no
            C:
            S: 354 go
            E: content
            END
            S: 250 2.0.0 queued
            E: finished 250,550 end of data: 250 2.0.0 queued
            BEGIN u@t
            C: MAIL FROM:<a@s.test> SIZE=42|RCPT TO:<u@t>|DATA
            S: 250 ok|550 no|554 no valid recipients
            E: finished 550 RCPT: 550 no
            BEGIN u@t
            C: RSET|MAIL FROM:<a@s.test> SIZE=42|RCPT TO:<u@t>|DATA
            S: 250 reset|250 ok|550 no|354 go on, then
            C: .
            S: 554 nobody
            E: finished 550 RCPT: 550 no
            BEGIN u@t
            C: MAIL FROM:<a@s.test> SIZE=42|RCPT TO:<u@t>|DATA
            S: 451 later|503 mail first|503 mail first
            E: finished 503 MAIL: 451 later"
        ),
    );
    assert!(machine.is_ready() && !machine.is_secured());
    assert_eq!(machine.extensions().size_limit_bytes, Some(1000));
}

#[test]
fn one_command_at_a_time() {
    play(
        TlsUse::Disabled,
        &format!(
            "{GREETING}
            S: 250-sink|250 STARTTLS
            E: ready
            BEGIN u@t v@t
            C: MAIL FROM:<a@s.test>
            S: 250 ok
            C: RCPT TO:<u@t>
            S: 450 busy
            C: RCPT TO:<v@t>
            S: 250 ok
            C: DATA
            S: 354 go
            E: content
            END
            S: 250 ok
            E: finished 450,250 end of data: 250 ok
            BEGIN u@t v@t
            C: MAIL FROM:<a@s.test>
            S: 250 ok
            C: RCPT TO:<u@t>
            S: 450 busy
            C: RCPT TO:<v@t>
            S: 450 busy
            E: finished 450,450 RCPT: 450 busy
            BEGIN u@t
            C: RSET
            S: 250 ok
            C: MAIL FROM:<a@s.test>
            S: 550 no
            E: finished - MAIL: 550 no"
        ),
    );
}

#[test]
fn tls_begins_anew() {
    play(
        TlsUse::Required,
        &format!(
            "{GREETING}
            S: 250-sink|250-SIZE 5|250 STARTTLS
            C: STARTTLS
            S: 220 go
            E: starttls
            TLS
            C: EHLO mx.example.net
            S: 250 sink
            E: ready
            BEGIN u@t
            C: MAIL FROM:<a@s.test>
            GONE
            E: finished - MAIL: connection lost: gone"
        ),
    );
    for (transcript, event) in [
        (
            "S: 250-sink|250 STARTTLS\nC: STARTTLS\nS: 220 go|250 injected",
            "failed TLS: protocol broken by the server: plain text after the answer to STARTTLS",
        ),
        ("S: 250 sink", "failed TLS: the route requires TLS, which the next hop does not offer"),
        ("S: 250-sink|250 STARTTLS\nC: STARTTLS\nS: 454 no", "failed TLS: 454 no"),
        ("S: 502 what\nC: HELO mx.example.net\nS: 250 sink", "failed TLS: the route requires TLS, which the next hop does not offer"),
    ] {
        play(TlsUse::Required, &format!("{GREETING}{transcript}\nE: {event}"));
    }
}

#[test]
fn failures_say_where() {
    let begun = "S: 250-sink|250 PIPELINING\nE: ready\nBEGIN u@t v@t\nC: MAIL FROM:<a@s.test>|RCPT TO:<u@t>|RCPT TO:<v@t>|DATA\n";
    for (transcript, event) in [
        ("S: 554 no", "failed EHLO: 554 no"),
        ("S: 502 what\nC: HELO mx.example.net\nS: 554 no", "failed EHLO: 554 no"),
        ("LATE", "failed EHLO: no answer in time"),
    ] {
        let want = if transcript.starts_with("S: 554") { "C: HELO mx.example.net\nS: 554 no\n" } else { "" };
        play(TlsUse::Disabled, &format!("{GREETING}{transcript}\n{want}E: {event}"));
    }
    for (transcript, event) in [
        ("LATE", "finished -,- MAIL: no answer in time"),
        ("S: 250 ok\nGONE", "finished -,- RCPT: connection lost: gone"),
        ("S: 250 ok|250 ok\nLATE", "finished 250,- RCPT: no answer in time"),
        ("S: 250 ok|250 ok|250 ok\nLATE", "finished 250,250 DATA: no answer in time"),
        ("S: 250 ok|421 bye", "finished -,- RCPT: 421 bye"),
        ("S: 250 ok|250 ok|250 ok|250 ok", "finished 250,250 DATA: protocol broken by the server: 250 to DATA"),
        ("S: 354 what", "finished -,- MAIL: protocol broken by the server: 354 to MAIL"),
        ("S: what", "finished -,- MAIL: protocol broken by the server: the line is no SMTP reply: \"what\""),
        ("S: 250-x|251 y", "finished -,- MAIL: protocol broken by the server: the lines of one reply have the codes 250 and 251"),
        ("S: 250 ok|250 ok|250 ok|354 go\nE: content\nGONE", "finished 250,250 DATA: connection lost: gone"),
        ("S: 250 ok|250 ok|250 ok|354 go\nE: content\nS: 552 5.3.4 enough", "finished 250,250 DATA: 552 5.3.4 enough"),
        ("S: 250 ok|250 ok|250 ok|354 go\nE: content\nEND\nGONE", "finished 250,250 end of data: connection lost: gone"),
        (
            "S: 250 ok|250 ok|250 ok|354 go\nE: content\nEND\nS: 354 go",
            "finished 250,250 end of data: protocol broken by the server: 354 after the end of data",
        ),
        ("S: 250 ok|250 ok|250 ok|354 go\nE: content\nEND\nS: 421 bye", "finished 250,250 end of data: 421 bye"),
    ] {
        let machine = play(TlsUse::Disabled, &format!("{GREETING}{begun}{transcript}\nE: {event}"));
        assert!(!machine.is_ready(), "{event}");
    }
    let machine = play(
        TlsUse::Disabled,
        &format!(
            "{GREETING}{begun}S: {}\nE: finished -,- MAIL: {}",
            "2".repeat(9_000),
            "protocol broken by the server: the reply has a line of more than 2048 octets"
        ),
    );
    assert!(!machine.is_ready());
    let machine = play(TlsUse::Disabled, &format!("{GREETING}S: 250 sink\nE: ready\nS: 250 unasked"));
    assert!(!machine.is_ready(), "words that nobody asked for end the session");
    play(TlsUse::Disabled, "S: 554 no\nE: failed banner: 554 no");
    play(TlsUse::Disabled, "GONE\nE: failed banner: connection lost: gone");
}

#[test]
fn many_recipients_go_in_groups() {
    let mut machine = play(TlsUse::Disabled, &format!("{GREETING}S: 250-sink|250 PIPELINING\nE: ready"));
    let users: Vec<String> = (0..120).map(|n| format!("u{n}@t")).collect();
    machine.begin(transaction(&users.iter().map(String::as_str).collect::<Vec<_>>()), 0);
    let mut commands = vec![];
    for _ in 0..10 {
        let Some(bytes) = machine.poll_transmit() else { break };
        let lines = String::from_utf8(bytes.to_vec()).unwrap().lines().count();
        commands.push(lines);
        for line in 0..lines {
            let data = commands.iter().sum::<usize>() == 122 && line + 1 == lines;
            machine.handle_input(if data { b"354 go\r\n" } else { b"250 ok\r\n" }, 0);
        }
    }
    assert_eq!(commands, [51, 50, 21]);
    assert_eq!(machine.poll_event(), Some(Event::SendContent));
}

#[test]
fn what_the_next_hop_cannot_take_is_not_sent() {
    let offered = |extensions: &str| play(TlsUse::Disabled, &format!("{GREETING}S: 250-sink{extensions}|250 HELP\nE: ready"));
    let eight_bit = Transaction { eight_bit: true, ..transaction(&["u@t"]) };
    let utf8_header = Transaction { utf8_header: true, ..eight_bit.clone() };
    let all = "|250-PIPELINING|250-8BITMIME|250-SMTPUTF8|250-SIZE";
    for (extensions, message, wanted) in [
        ("", eight_bit.clone(), Err(Unable::EightBit)),
        ("|250-8BITMIME", eight_bit, Ok("MAIL FROM:<a@s.test> BODY=8BITMIME")),
        ("|250-8BITMIME", utf8_header.clone(), Err(Unable::Utf8)),
        (all, utf8_header, Ok("MAIL FROM:<a@s.test> SIZE=42 BODY=8BITMIME SMTPUTF8")),
        ("|250-8BITMIME", transaction(&["\u{fc}@t"]), Err(Unable::Utf8)),
        ("|250-SIZE 41", transaction(&["u@t"]), Err(Unable::TooLarge { limit_bytes: 41 })),
        ("|250-SIZE 42", transaction(&["u@t"]), Ok("MAIL FROM:<a@s.test> SIZE=42")),
        ("|250-SIZE 0", transaction(&["u@t"]), Ok("MAIL FROM:<a@s.test> SIZE=42")),
        (all, transaction(&["u\r\nDATA\r\n@t"]), Err(Unable::BadAddress)),
        ("", Transaction { sender: None, ..transaction(&["u@t"]) }, Ok("MAIL FROM:<>")),
    ] {
        let mut machine = offered(extensions);
        machine.begin(message, 0);
        match wanted {
            Ok(mail) => assert_eq!(String::from_utf8(machine.poll_transmit().unwrap().to_vec()).unwrap().lines().next(), Some(mail)),
            Err(unable) => {
                assert_eq!(machine.poll_transmit(), None);
                let finished = Finished { recipients: vec![None], phase: Phase::Mail, answer: Answer::Unable(unable) };
                assert_eq!(machine.poll_event(), Some(Event::Finished(finished)));
                assert!(machine.is_ready(), "nothing was sent: the session goes on");
            }
        }
    }
}

#[test]
fn deadlines_follow_the_phase() {
    let timeouts =
        Timeouts { connect_ms: 1, banner_ms: 2, command_ms: 3, handshake_ms: 4, mail_ms: 5, rcpt_ms: 6, data_ms: 7, block_ms: 8, end_of_data_ms: 9 };
    let mut machine = Client::new("h", TlsUse::Opportunistic, timeouts, 100);
    let mut seen = vec![machine.deadline_ms()];
    let mut say = |machine: &mut Client, line: &str| {
        machine.handle_input(format!("{line}\r\n").as_bytes(), 100);
        seen.push(machine.deadline_ms());
    };
    say(&mut machine, "220 hi");
    say(&mut machine, "250-x\r\n250-PIPELINING\r\n250 STARTTLS");
    say(&mut machine, "220 go");
    machine.handshake_done(100);
    say(&mut machine, "250-x\r\n250 PIPELINING");
    machine.begin(transaction(&["u@t"]), 100);
    say(&mut machine, "250 ok");
    say(&mut machine, "250 ok");
    say(&mut machine, "354 go");
    machine.content_ending(100);
    seen.push(machine.deadline_ms());
    assert_eq!(seen, [102, 103, 103, 104, 103, 106, 107, 108, 109]);
}

proptest::proptest! {
    #[test]
    fn no_bytes_break_the_machine(pieces in proptest::collection::vec(proptest::collection::vec(proptest::prelude::any::<u8>(), 0..40), 0..20), tls in 0..3) {
        let mut machine = client([TlsUse::Disabled, TlsUse::Opportunistic, TlsUse::Required][tls as usize]);
        for piece in [&b"220 x\r\n"[..], b"250-x\r\n250 PIPELINING\r\n"].into_iter().chain(pieces.iter().map(Vec::as_slice)) {
            machine.handle_input(piece, 0);
            while machine.poll_transmit().is_some() {}
            while let Some(event) = machine.poll_event() {
                if event == Event::Ready {
                    machine.begin(transaction(&["u@t", "v@t"]), 0);
                }
            }
        }
    }
}
