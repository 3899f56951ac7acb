//! SMTP sessions as golden files: `tests/data/transcripts/*.smtp`. `UPDATE=1 cargo test` writes what the machine says; read the diff.
//!
//! Lines that drive: `O: name=value ...` options, `C: octets` one read (`C+ octets` adds to it; `\r \n \t \0 \xHH \\`, `{3*text}` repeats),
//! `T: ms` time passes, `X: greet|drain|tls NAME|answer ANSWER|refuse-content REPLY|refuse-connection REPLY|deadline|held`.
//! Lines that follow: `S: ` a reply line (those that stand together were written together), `E: ` an event and, behind `->`, the answer
//! of the owner: `ok`, `kept`, `kept for N`, a reply (escapes as in `C:`), or `wait` (it comes with `X: answer`).

#![expect(clippy::panic, reason = "a transcript that is none is a test that fails")]

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use bytes::BytesMut;
use sekimori_mta::smtp::reply::table;
use sekimori_mta::smtp::server::{Event, MessageAnswer, Promise, Refusal, Server, ServerOptions, TlsOffer};
use sekimori_mta::smtp::{BareLineEndings, Limits, Reply, ReplyReader};

struct Kept(usize);

impl Promise for Kept {
    fn recipients(&self) -> usize {
        self.0
    }
    fn text(&self) -> String {
        "Queued as T1".into()
    }
}

/// One driving line (with its `C+`), what stands before it, and the answers given in it.
#[derive(Default)]
struct Step {
    before: String,
    drive: Vec<String>,
    answers: VecDeque<String>,
}

fn parse(text: &str) -> (Vec<Step>, String) {
    let mut steps: Vec<Step> = vec![];
    let mut before = String::new();
    for line in text.lines() {
        if line.starts_with("C+ ") {
            steps.last_mut().expect("C+ follows C").drive.push(line.into());
        } else if line.starts_with("S: ") {
            // Said again by the machine.
        } else if let Some(event) = line.strip_prefix("E: ") {
            if let Some((_, answer)) = event.rsplit_once(" -> ") {
                steps.last_mut().expect("an event follows a step").answers.push_back(answer.into());
            }
        } else if line.is_empty() || line.starts_with('#') {
            before.push_str(line);
            before.push('\n');
        } else {
            steps.push(Step { before: std::mem::take(&mut before), drive: vec![line.into()], answers: VecDeque::new() });
        }
    }
    (steps, before)
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = vec![];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next().expect("an escape") {
                'r' => out.push(b'\r'),
                'n' => out.push(b'\n'),
                't' => out.push(b'\t'),
                '0' => out.push(0),
                'x' => {
                    let digits: String = chars.by_ref().take(2).collect();
                    out.push(u8::from_str_radix(&digits, 16).expect("two hexadecimal digits"));
                }
                other => out.extend_from_slice(other.to_string().as_bytes()),
            },
            '{' => {
                let inner: String = chars.by_ref().take_while(|&c| c != '}').collect();
                let (count, part) = inner.split_once('*').expect("{count*text}");
                out.extend_from_slice(&unescape(part).repeat(count.parse().expect("a count")));
            }
            c => out.extend_from_slice(c.to_string().as_bytes()),
        }
    }
    out
}

fn reply(text: &str) -> Reply {
    let mut reader = ReplyReader::new();
    reader.push(&[unescape(text).as_slice(), b"\r\n"].concat()).ok().flatten().unwrap_or_else(|| panic!("{text:?} is no reply"))
}

fn options(lines: &str) -> (ServerOptions, bool) {
    let mut options =
        ServerOptions { hostname: "mx.test".into(), limits: Limits::default(), tls: TlsOffer::Disabled, bare_line_endings: BareLineEndings::Refuse };
    let mut pieces_matter = false;
    for word in lines.split_whitespace() {
        let (name, value) = word.split_once('=').expect("name=value");
        let number = || value.parse::<u64>().expect("a number");
        let small = || value.parse::<u32>().expect("a number");
        let octets = || value.parse::<usize>().expect("a number");
        let limits = &mut options.limits;
        match (name, value) {
            ("tls", "Disabled") => options.tls = TlsOffer::Disabled,
            ("tls", "Optional") => options.tls = TlsOffer::Optional,
            ("tls", "Required") => options.tls = TlsOffer::Required,
            ("tls", "Established") => options.tls = TlsOffer::Established,
            ("bare", "Normalise") => options.bare_line_endings = BareLineEndings::Normalise,
            ("pieces", "matter") => pieces_matter = true,
            ("command_line_octets", _) => limits.command_line_octets = octets(),
            ("command_line_skip_octets", _) => limits.command_line_skip_octets = octets(),
            ("recipients", _) => limits.recipients = small(),
            ("recipients_refused", _) => limits.recipients_refused = small(),
            ("message_octets", _) => limits.message_octets = number(),
            ("messages_per_session", _) => limits.messages_per_session = small(),
            ("content_line_octets", _) => limits.content_line_octets = octets(),
            ("header_octets", _) => limits.header_octets = octets(),
            ("header_fields", _) => limits.header_fields = small(),
            ("errors", _) => limits.errors = small(),
            ("idle_commands", _) => limits.idle_commands = small(),
            ("transaction_ms", _) => limits.transaction_ms = number(),
            ("session_ms", _) => limits.session_ms = number(),
            ("refuse_early_talk", _) => limits.refuse_early_talk = value == "true",
            _ => panic!("unknown option {word}"),
        }
    }
    (options, pieces_matter)
}

struct Run {
    server: Server,
    buffer: BytesMut,
    now_ms: u64,
    accepted: usize,
    waiting: Option<Event>,
    trace: String,
}

impl Run {
    fn answer(&mut self, event: &Event, answer: &str) {
        let simple = || if answer == "ok" { Ok(()) } else { Err(reply(answer)) };
        match event {
            Event::Mail(_) => {
                self.accepted = 0;
                self.server.answer_mail(simple());
            }
            Event::Rcpt(_) => {
                self.accepted += usize::from(answer == "ok");
                self.server.answer_rcpt(simple());
            }
            Event::Data => self.server.answer_data(simple()),
            Event::Message(_) => {
                let promised = match answer.strip_prefix("kept") {
                    Some("") => Some(self.accepted),
                    Some(rest) => Some(rest.trim_start_matches(" for ").parse().expect("kept for N")),
                    None => None,
                };
                self.server.answer_message(match promised {
                    Some(recipients) => MessageAnswer::Accepted(Box::new(Kept(recipients))),
                    None => MessageAnswer::Refused(Refusal::new(reply(answer)).expect("a refusal")),
                });
            }
            _ => unreachable!("only questions are answered"),
        }
    }

    fn events(&mut self, answers: &mut VecDeque<String>) -> bool {
        let mut any = false;
        while let Some(event) = self.server.poll_event() {
            any = true;
            let (shown, default) = show(&event);
            write!(self.trace, "E: {shown}").expect("memory");
            if let Some(default) = default {
                let answer = answers.pop_front().unwrap_or_else(|| default.into());
                write!(self.trace, " -> {answer}").expect("memory");
                if answer == "wait" {
                    self.waiting = Some(event);
                } else {
                    self.answer(&event, &answer);
                }
            }
            self.trace.push('\n');
        }
        any
    }

    /// Everything that follows without a further read, then one write.
    fn settle(&mut self, answers: &mut VecDeque<String>) {
        loop {
            let before = self.buffer.len();
            self.server.input(self.now_ms, &mut self.buffer);
            if !self.events(answers) && self.buffer.len() == before {
                break;
            }
        }
    }

    fn write(&mut self) {
        let output = self.server.output().split();
        for line in String::from_utf8(output.to_vec()).expect("ASCII").split_terminator("\r\n") {
            writeln!(self.trace, "S: {line}").expect("memory");
        }
    }

    fn drive(&mut self, step: &mut Step, octet_by_octet: bool) {
        let (kind, rest) = step.drive[0].split_at(2);
        let rest = rest.trim_start();
        match kind {
            "C:" => {
                let parts: Vec<&str> = step.drive.iter().map(|line| line.get(3..).expect("C: octets")).collect();
                let octets = unescape(&parts.concat());
                for piece in octets.chunks(if octet_by_octet { 1 } else { octets.len().max(1) }) {
                    self.buffer.extend_from_slice(piece);
                    self.settle(&mut step.answers);
                }
            }
            "T:" => {
                self.now_ms += rest.parse::<u64>().expect("milliseconds");
                self.server.timeout(self.now_ms);
            }
            "X:" => self.act(rest),
            _ => panic!("{kind} drives nothing"),
        }
        self.settle(&mut step.answers);
        self.write();
    }

    fn act(&mut self, action: &str) {
        let (word, rest) = action.split_once(' ').unwrap_or((action, ""));
        match word {
            "greet" => self.server.greet(),
            "drain" => self.server.shutdown(),
            "tls" => self.server.start_tls_done(rest.into(), self.now_ms),
            "answer" => {
                let event = self.waiting.take().expect("a question waits");
                self.answer(&event, rest);
            }
            "refuse-content" => self.server.refuse_content(reply(rest)),
            "refuse-connection" => self.server.refuse_connection(reply(rest)),
            "deadline" => match self.server.deadline_ms() {
                u64::MAX => self.trace.push_str("E: no deadline\n"),
                at => writeln!(self.trace, "E: deadline in {} ms", at.saturating_sub(self.now_ms)).expect("memory"),
            },
            "held" => {
                let (content, buffer) = (self.server.content_len(), self.buffer.len());
                writeln!(
                    self.trace,
                    "E: holds {content} octets of content, {buffer} unread, {}",
                    if self.server.wants_input() { "reads" } else { "does not read" }
                )
                .expect("memory");
            }
            _ => panic!("unknown action {action}"),
        }
    }
}

/// How an event is written, and the answer it gets unless the transcript says another.
fn show(event: &Event) -> (String, Option<&'static str>) {
    match event {
        Event::Hello { name, esmtp } => (format!("{} {name}", if *esmtp { "Ehlo" } else { "Helo" }), None),
        Event::Mail(mail) => {
            let from = mail.from.as_ref().map(ToString::to_string).unwrap_or_default();
            let size = mail.size.map(|size| format!(" size={size}")).unwrap_or_default();
            let flags =
                [(mail.eight_bit, " 8bit"), (mail.smtputf8, " smtputf8")].iter().filter(|(set, _)| *set).map(|(_, name)| *name).collect::<String>();
            (format!("Mail <{from}>{size}{flags}"), Some("ok"))
        }
        Event::Rcpt(address) => (format!("Rcpt <{address}>"), Some("ok")),
        Event::Data => ("Data".into(), Some("ok")),
        Event::Message(content) => {
            let head = content.get(..120).unwrap_or(content).escape_ascii();
            (format!("Message of {} octets: {head}{}", content.len(), if content.len() > 120 { "..." } else { "" }), Some("kept"))
        }
        Event::ContentRefused(reply) => (format!("ContentRefused {reply}"), None),
        Event::Reset => ("Reset".into(), None),
        Event::StartTls => ("StartTls".into(), None),
        Event::Closed { reason } => (format!("Closed {reason:?}"), None),
    }
}

fn play(text: &str, octet_by_octet: bool) -> Option<String> {
    let (mut steps, after) = parse(text);
    let lines: String = steps.iter().filter_map(|step| step.drive[0].strip_prefix("O: ")).map(|line| format!("{line} ")).collect();
    let (options, pieces_matter) = options(&lines);
    if octet_by_octet && pieces_matter {
        return None;
    }
    let server = Server::new(options, 1_000_000);
    let mut run = Run { server, buffer: BytesMut::new(), now_ms: 1_000_000, accepted: 0, waiting: None, trace: String::new() };
    for step in &mut steps {
        run.trace.push_str(&step.before);
        for line in &step.drive {
            run.trace.push_str(line);
            run.trace.push('\n');
        }
        if !step.drive[0].starts_with("O: ") {
            run.drive(step, octet_by_octet);
            assert!(step.answers.is_empty(), "answers that nobody asked for: {:?} in {:?}", step.answers, step.drive);
        }
    }
    run.trace.push_str(&after);
    if run.server.misuses() > 0 {
        writeln!(run.trace, "E: {} misuses", run.server.misuses()).expect("memory");
    }
    Some(run.trace)
}

fn transcripts() -> Vec<(PathBuf, String)> {
    let directory = Path::new("tests/data/transcripts");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory).expect("transcripts").map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "smtp"));
    paths.sort();
    assert!(paths.len() >= 40, "only {} transcripts found", paths.len());
    paths.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("readable"))).collect()
}

#[test]
fn sessions_go_as_written() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = vec![];
    for (path, text) in transcripts() {
        let played = play(&text, false).expect("whole reads are always played");
        if update && played != text {
            std::fs::write(&path, &played).expect("writable");
        } else if played != text {
            let line = played.lines().zip(text.lines()).take_while(|(a, b)| a == b).count();
            let (now, then) = (played.lines().nth(line).unwrap_or("the end"), text.lines().nth(line).unwrap_or("the end"));
            wrong.push(format!("{}:{}: {now}\n  instead of: {then}", path.display(), line + 1));
        }
    }
    assert!(wrong.is_empty(), "{}\n(UPDATE=1 writes what is said now)", wrong.join("\n"));
}

#[test]
fn sessions_go_the_same_octet_by_octet() {
    let mut played = 0;
    for (path, text) in transcripts() {
        if let Some(pieces) = play(&text, true) {
            played += 1;
            assert_eq!(pieces, play(&text, false).expect("whole"), "{}", path.display());
        }
    }
    assert!(played >= 40, "only {played} transcripts could be played in pieces");
}

#[test]
fn every_reply_of_the_table_is_in_a_transcript() {
    let all: String = transcripts().into_iter().filter_map(|(_, text)| play(&text, false)).collect();
    for fixed in table::ALL {
        assert!(all.contains(&format!("{}\n", fixed.text)), "no transcript says {fixed:?}");
    }
}
