//! Any client, any owner, any pace: whole replies, bounded memory, one Closed, no call that does not fit.
#![no_main]

use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;
use sekimori_mta_fuzz::pieces;
use sekimori_mta_fuzz::smtp::server::{Event, MessageAnswer, Promise, Refusal, Server, ServerOptions, TlsOffer};
use sekimori_mta_fuzz::smtp::{BareLineEndings, Limits, Reply, ReplyReader};

struct Kept(usize);

impl Promise for Kept {
    fn recipients(&self) -> usize {
        self.0
    }
    fn text(&self) -> String {
        "kept".into()
    }
}

const MESSAGE_OCTETS: u64 = 300;

struct Owner {
    mind: u8,
    questions: u8,
    recipients: usize,
    closed: usize,
}

impl Owner {
    fn answer(&mut self) -> Result<(), Reply> {
        self.questions = self.questions.wrapping_add(1);
        if self.mind & 1 == 0 || self.questions % 3 == 0 {
            Ok(())
        } else {
            Err(Reply::new(450 + u16::from(self.mind & 2) * 50, (4, 0, 0), "no\r\n250 yes"))
        }
    }

    fn take(&mut self, server: &mut Server, event: &Event, now_ms: u64) {
        assert_eq!(self.closed, 0, "nothing follows Closed");
        match event {
            Event::Mail(_) => {
                self.recipients = 0;
                server.answer_mail(self.answer());
            }
            Event::Rcpt(_) => {
                let answer = self.answer();
                self.recipients += usize::from(answer.is_ok());
                server.answer_rcpt(answer);
            }
            Event::Data => server.answer_data(self.answer()),
            Event::Message(content) => {
                assert!(content.len() as u64 <= MESSAGE_OCTETS);
                server.answer_message(match self.answer() {
                    Ok(()) => MessageAnswer::Accepted(Box::new(Kept(self.recipients))),
                    Err(reply) => MessageAnswer::Refused(Refusal::new(reply).expect("4xx or 5xx")),
                });
            }
            Event::StartTls => server.start_tls_done("TLS".into(), now_ms),
            Event::Closed { .. } => self.closed += 1,
            Event::Hello { .. } | Event::ContentRefused(_) | Event::Reset => {}
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let Some((&mind, data)) = data.split_first() else { return };
    let tls = [TlsOffer::Disabled, TlsOffer::Optional, TlsOffer::Required, TlsOffer::Established][usize::from(mind >> 2 & 3)];
    let bare_line_endings = if mind & 16 == 0 { BareLineEndings::Refuse } else { BareLineEndings::Normalise };
    let limits =
        Limits { command_line_octets: 120, command_line_skip_octets: 600, message_octets: MESSAGE_OCTETS, recipients: 3, ..Limits::default() };
    let mut server = Server::new(ServerOptions { hostname: "mx.test".into(), limits, tls, bare_line_endings }, 0);
    server.greet();
    let mut owner = Owner { mind, questions: 0, recipients: 0, closed: 0 };
    let mut replies = ReplyReader::new();
    let mut buffer = BytesMut::new();
    let mut now_ms = 0;
    for piece in pieces(data) {
        now_ms += u64::from(mind) * 10;
        buffer.extend_from_slice(piece);
        loop {
            let before = buffer.len();
            server.input(now_ms, &mut buffer);
            let mut any = false;
            while let Some(event) = server.poll_event() {
                any = true;
                owner.take(&mut server, &event, now_ms);
            }
            if !any && buffer.len() == before {
                break;
            }
        }
        assert!(buffer.len() <= 120);
        assert!(server.content_len() as u64 <= MESSAGE_OCTETS);
        let output = server.output().split();
        let mut next = replies.push(&output).expect("well-formed replies");
        while next.is_some() {
            next = replies.push(b"").expect("well-formed replies");
        }
        assert!(replies.is_idle(), "whole replies");
        if server.is_closed() {
            break;
        }
        server.timeout(now_ms);
    }
    assert_eq!(server.misuses(), 0);
});
