//! What no transcript can say: any octets in any pieces, wrong calls, memory.

use proptest::prelude::*;

use super::*;

struct Kept(usize);

impl Promise for Kept {
    fn recipients(&self) -> usize {
        self.0
    }
    fn text(&self) -> String {
        "kept".into()
    }
}

fn options(limits: Limits, tls: TlsOffer) -> ServerOptions {
    ServerOptions { hostname: "mx.test".into(), limits, tls, bare_line_endings: BareLineEndings::Refuse }
}

/// An owner that says yes to everything, or no with 4xx and 5xx in turn.
struct Owner {
    server: Server,
    buffer: BytesMut,
    agrees: bool,
    recipients: usize,
    questions: u16,
    events: Vec<Event>,
    output: Vec<u8>,
}

impl Owner {
    fn new(options: ServerOptions, agrees: bool) -> Self {
        let mut server = Server::new(options, 0);
        server.greet();
        Self { server, buffer: BytesMut::new(), agrees, recipients: 0, questions: 0, events: vec![], output: vec![] }
    }

    fn answer(&mut self) -> Result<(), Reply> {
        self.questions += 1;
        if self.agrees || self.questions.is_multiple_of(3) { Ok(()) } else { Err(Reply::new(450 + self.questions % 2 * 100, (4, 0, 0), "no")) }
    }

    fn step(&mut self, now_ms: u64) -> bool {
        let before = (self.buffer.len(), self.events.len());
        self.server.input(now_ms, &mut self.buffer);
        while let Some(event) = self.server.poll_event() {
            match &event {
                Event::Mail(_) => {
                    self.recipients = 0;
                    let answer = self.answer();
                    self.server.answer_mail(answer);
                }
                Event::Rcpt(_) => {
                    let answer = self.answer();
                    self.recipients += usize::from(answer.is_ok());
                    self.server.answer_rcpt(answer);
                }
                Event::Data => {
                    let answer = self.answer();
                    self.server.answer_data(answer);
                }
                Event::Message(_) => {
                    let answer = match self.answer() {
                        Ok(()) => MessageAnswer::Accepted(Box::new(Kept(self.recipients))),
                        Err(reply) => MessageAnswer::Refused(Refusal::new(reply).expect("4xx or 5xx")),
                    };
                    self.server.answer_message(answer);
                }
                Event::StartTls => self.server.start_tls_done("TLS".into(), now_ms),
                Event::Hello { .. } | Event::ContentRefused(_) | Event::Reset | Event::Closed { .. } => {}
            }
            self.events.push(event);
        }
        (self.buffer.len(), self.events.len()) != before
    }

    /// One read, and everything that follows from it; replies are written at the end of it, as a batch.
    fn read(&mut self, bytes: &[u8], now_ms: u64) {
        self.buffer.extend_from_slice(bytes);
        loop {
            let moved = self.step(now_ms);
            let full = self.server.output().len() >= OUTPUT_OCTETS_PAUSE;
            if full {
                self.write();
            }
            if !moved && !full {
                break;
            }
        }
        self.write();
        assert!(self.buffer.len() <= self.server.options.limits.command_line_octets, "only a part of a command waits for its rest");
    }

    fn write(&mut self) {
        let output = self.server.output().split();
        self.output.extend_from_slice(&output);
    }

    /// Code of every reply, after checking that all of the output is well-formed.
    fn codes(&self) -> Vec<u16> {
        let mut reader = crate::smtp::ReplyReader::new();
        let mut codes = vec![];
        let mut next = reader.push(&self.output).expect("well-formed replies");
        while let Some(reply) = next {
            codes.push(reply.code);
            next = reader.push(b"").expect("well-formed replies");
        }
        assert!(reader.is_idle(), "no half reply is ever written");
        codes
    }
}

#[test]
fn only_a_promise_for_every_recipient_is_250() {
    for (promised, code) in [(0, 451), (1, 451), (2, 250), (3, 451)] {
        let mut owner = Owner::new(options(Limits::default(), TlsOffer::Disabled), true);
        owner.read(b"EHLO c\r\n", 0);
        owner.read(b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nRCPT TO:<c@b.test>\r\nRCPT TO:<a@b.test>\r\nDATA\r\n", 0);
        owner.recipients = promised;
        owner.read(b"x\r\n.\r\n", 0);
        assert_eq!(owner.codes().last(), Some(&code), "promised for {promised} of 2");
        assert_eq!(owner.server.misuses(), u32::from(code != 250));
        assert!(!owner.server.in_transaction());
    }
}

#[test]
fn a_refusal_is_a_refusal() {
    for code in [200, 220, 250, 251, 354, 399, 600, 0] {
        let reply = Reply::new(code, (2, 0, 0), "yes");
        assert_eq!(Refusal::new(reply.clone()), Err(reply.clone()));
        let mut owner = Owner::new(options(Limits::default(), TlsOffer::Disabled), true);
        owner.read(b"EHLO c\r\n", 0);
        owner.buffer.extend_from_slice(b"MAIL FROM:<>\r\n");
        owner.server.input(0, &mut owner.buffer);
        owner.server.answer_mail(Err(reply.clone()));
        owner.write();
        assert_eq!(owner.codes().last(), Some(&451), "Err({reply}) to MAIL must not become a yes");
    }
    for code in [421, 450, 550, 599] {
        assert!(Refusal::new(Reply::new(code, (4, 0, 0), "no")).is_ok());
    }
}

#[test]
fn calls_that_do_not_fit_do_nothing() {
    let mut server = Server::new(options(Limits::default(), TlsOffer::Optional), 0);
    let no = || Reply::new(550, (5, 0, 0), "no");
    let mut misuses = 0;
    for greeted in [false, true] {
        if greeted {
            server.greet();
            server.greet();
            server.refuse_connection(no());
            misuses += 2;
        }
        server.answer_mail(Ok(()));
        server.answer_rcpt(Ok(()));
        server.answer_data(Ok(()));
        server.answer_message(MessageAnswer::Accepted(Box::new(Kept(0))));
        server.refuse_content(no());
        server.start_tls_done("TLS".into(), 0);
        misuses += 6;
        assert_eq!(server.misuses(), misuses);
        assert_eq!(server.content_len(), 0);
        assert!(!server.is_closed() && server.poll_event().is_none() && server.tls().is_none());
    }
    assert_eq!(server.output().split(), b"220 mx.test ESMTP\r\n"[..]);
}

#[test]
fn refused_content_gives_its_memory_back_at_once() {
    let mut owner = Owner::new(options(Limits::default(), TlsOffer::Disabled), true);
    owner.read(b"EHLO c\r\n", 0);
    owner.read(b"MAIL FROM:<> SIZE=5000\r\nRCPT TO:<a@b.test>\r\nDATA\r\n", 0);
    owner.read(&b"0123456789\r\n".repeat(100), 0);
    assert_eq!(owner.server.content_len(), 1200);
    owner.server.refuse_content(Reply::new(452, (4, 3, 1), "No memory"));
    assert_eq!(owner.server.content_len(), 0);
    owner.read(b"more\r\n", 0);
    assert_eq!(owner.server.content_len(), 0);
    owner.read(b".\r\nNOOP\r\n", 0);
    assert_eq!(owner.codes(), [220, 250, 250, 250, 354, 452, 250]);
    assert_eq!(owner.events.last(), Some(&Event::ContentRefused(Reply::new(452, (4, 3, 1), "No memory"))));
}

/// The owner has said 354 but not written it yet: what comes now was sent without waiting.
#[test]
fn content_before_354_is_written_is_refused() {
    for written in [false, true] {
        let mut owner = Owner::new(options(Limits::default(), TlsOffer::Disabled), true);
        owner.read(b"EHLO c\r\n", 0);
        owner.buffer.extend_from_slice(b"MAIL FROM:<>\r\nRCPT TO:<a@b.test>\r\nDATA\r\n");
        while owner.step(0) {}
        if written {
            owner.write();
        }
        owner.read(b"x\r\n.\r\n", 0);
        assert_eq!(owner.codes().last(), Some(if written { &250 } else { &503 }));
        assert_eq!(owner.server.is_closed(), !written);
    }
}

#[test]
fn a_client_that_reads_no_replies_is_not_read() {
    let limits = Limits { recipients: 10_000, ..Limits::default() };
    let mut server = Server::new(options(limits, TlsOffer::Disabled), 0);
    server.greet();
    let mut buffer = BytesMut::from(&b"EHLO c\r\n"[..]);
    server.input(0, &mut buffer);
    buffer.extend_from_slice(b"MAIL FROM:<>\r\n");
    server.input(0, &mut buffer);
    server.answer_mail(Ok(()));
    buffer.extend_from_slice(&b"RCPT TO:<a@b.test>\r\n".repeat(5000));
    server.input(0, &mut buffer);
    server.answer_rcpt(Ok(()));
    for _ in 0..10_000 {
        server.input(0, &mut buffer);
    }
    assert!(!server.wants_input());
    assert!((OUTPUT_OCTETS_PAUSE..OUTPUT_OCTETS_PAUSE + 1024).contains(&server.output().len()));
    assert!(buffer.len() > 50_000, "the rest waits");
    server.output().clear();
    assert!(server.wants_input());
}

/// The deadline after an answer that took longer than the limit starts anew; the limit itself holds.
#[test]
fn a_slow_answer_is_not_the_clients_fault() {
    let limits = Limits::default();
    let mut owner = Owner::new(options(limits, TlsOffer::Disabled), true);
    owner.read(b"EHLO c\r\n", 0);
    owner.buffer.extend_from_slice(b"MAIL FROM:<>\r\n");
    owner.server.input(10, &mut owner.buffer);
    assert_eq!(owner.server.deadline_ms(), u64::MAX, "an answer is awaited from the owner, not from the peer");
    owner.server.timeout(10 + 10 * limits.command_ms);
    assert!(!owner.server.is_closed());
    owner.server.answer_mail(Ok(()));
    let answered = 10 + 10 * limits.command_ms;
    owner.server.timeout(answered);
    assert!(!owner.server.is_closed());
    assert_eq!(owner.server.deadline_ms(), answered + limits.command_ms);
    owner.server.timeout(answered + limits.command_ms - 1);
    assert!(!owner.server.is_closed());
    owner.server.timeout(answered + limits.command_ms);
    assert!(owner.server.is_closed());
}

#[test]
fn time_that_goes_back_is_harmless() {
    let mut owner = Owner::new(options(Limits::default(), TlsOffer::Disabled), true);
    owner.read(b"EHLO c\r\n", 1_000_000);
    owner.read(b"NOOP\r\n", 5);
    owner.server.timeout(0);
    assert!(!owner.server.is_closed());
    assert_eq!(owner.server.deadline_ms(), 1_060_000);
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let lines: &[&[u8]] = &[
        b"EHLO c\r\n",
        b"HELO c\r\n",
        b"MAIL FROM:<a@b.test>\r\n",
        b"MAIL FROM:<a@b.test> SIZE=10 BODY=8BITMIME\r\n",
        b"RCPT TO:<a@b.test>\r\n",
        b"RCPT TO:<c@d.test>\r\n",
        b"RCPT TO:<a%x@d.test>\r\n",
        b"DATA\r\n",
        b"a: b\r\n\r\nx\r\n",
        b".\r\n",
        b"\r\n.\r\n",
        b"RSET\r\n",
        b"NOOP\r\n",
        b"STARTTLS\r\n",
        b"BDAT 1 LAST\r\n",
        b"QUIT\r\n",
        b"\n",
        b"\r",
        b"\0",
    ];
    prop_oneof![
        20 => prop::sample::select(lines).prop_map(<[u8]>::to_vec),
        1 => proptest::collection::vec(any::<u8>(), 0..40),
        1 => (50usize..300).prop_map(|length| vec![b'x'; length]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    /// Any octets in any pieces, with owners of any mind: no panic, whole replies, bounded memory, no call that does not fit.
    #[test]
    fn any_octets_are_answered(
        pieces in proptest::collection::vec(piece(), 0..60),
        step in 1usize..200,
        agrees: bool,
        tls in prop::sample::select(&[TlsOffer::Disabled, TlsOffer::Optional, TlsOffer::Required, TlsOffer::Established][..]),
        pause_ms in 0u64..20_000,
    ) {
        let limits = Limits { command_line_octets: 100, command_line_skip_octets: 500, message_octets: 200, recipients: 3, ..Limits::default() };
        let mut owner = Owner::new(options(limits, tls), agrees);
        let mut now_ms = 0;
        for read in pieces.concat().chunks(step) {
            now_ms += pause_ms;
            owner.read(read, now_ms);
            owner.server.timeout(now_ms);
            prop_assert!(owner.server.content_len() <= 200);
        }
        owner.step(now_ms);
        owner.write();
        let codes = owner.codes();
        prop_assert_eq!(codes.first(), Some(&220));
        prop_assert_eq!(owner.server.misuses(), 0);
        let closed = owner.events.iter().filter(|event| matches!(event, Event::Closed { .. })).count();
        prop_assert_eq!(closed, usize::from(owner.server.is_closed()), "one Closed, and only at the end");
        let ends = matches!(owner.events.last(), Some(Event::Closed { .. }));
        prop_assert_eq!(ends, closed == 1);
    }

    /// A lawful session, each group of commands cut anywhere, gives the same events and the same replies as in whole groups.
    #[test]
    fn pieces_do_not_change_what_happens(
        groups in proptest::collection::vec((proptest::collection::vec(0usize..6, 1..4), proptest::collection::vec("[a-c.]{0,5}(\r\n|\r|\n)?", 0..8)), 1..6),
        cuts in proptest::collection::vec(1usize..12, 1..50),
        agrees: bool,
    ) {
        let mut reads = vec![b"EHLO c\r\n".to_vec()];
        for (recipients, content) in groups {
            let mut group = b"MAIL FROM:<a@b.test>\r\n".to_vec();
            for recipient in recipients {
                group.extend_from_slice(format!("RCPT TO:<r{recipient}@b.test>\r\n").as_bytes());
            }
            reads.push([group.as_slice(), b"DATA\r\n"].concat());
            if agrees {
                reads.push(content.concat().into_bytes());
                reads.push(b"\r\n.\r\nNOOP\r\nRSET\r\n".to_vec());
            }
        }
        let mut whole = Owner::new(options(Limits::default(), TlsOffer::Disabled), agrees);
        let mut pieces = Owner::new(options(Limits::default(), TlsOffer::Disabled), agrees);
        let mut cuts = cuts.into_iter().cycle();
        for read in reads {
            whole.read(&read, 0);
            let mut rest = read.as_slice();
            while !rest.is_empty() {
                let (piece, after) = rest.split_at(cuts.next().unwrap_or(1).min(rest.len()));
                pieces.read(piece, 0);
                rest = after;
            }
        }
        prop_assert_eq!(&whole.events, &pieces.events);
        prop_assert_eq!(String::from_utf8_lossy(&whole.output), String::from_utf8_lossy(&pieces.output));
    }
}
