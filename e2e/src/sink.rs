//! A scriptable mail server in place of a customer's: accepts, refuses, stalls, drops before or after keeping, or is down.
//!
//! Whatever it does else, it refuses recipients whose name begins with `unknown` (550) and defers those that begin with `busy` (450).

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::ledger::{self, Ledger};

/// What the sink does with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Takes it.
    Accept,
    /// 550 at MAIL: trouble of the server, not of the mail.
    RefuseSender,
    /// 450 at RCPT.
    DeferRecipient,
    /// 550 at RCPT.
    RefuseRecipient,
    /// 451 at the end of data.
    Defer,
    /// 554 at the end of data.
    Refuse,
    /// Never answers the end of data.
    Stall,
    /// Hangs up at the end of data without keeping the message.
    DropBefore,
    /// Keeps the message and hangs up without saying so.
    DropAfter,
    /// Takes no connection.
    Down,
}

/// How often each behaviour comes: weights.
pub type Mix = Vec<(Behaviour, u32)>;

/// A message that arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// MAIL FROM.
    pub from: String,
    /// RCPT TO.
    pub to: Vec<String>,
    /// Content, dots unstuffed.
    pub content: Vec<u8>,
}

/// A running sink.
#[derive(Debug)]
pub struct Sink {
    /// Where it listens.
    pub address: SocketAddr,
    /// Messages that were kept.
    pub kept: AtomicU64,
    ledger: Option<Arc<Ledger>>,
    mix: watch::Sender<Mix>,
    keep_content: bool,
    print: AtomicBool,
    arrivals: Mutex<Vec<Arrival>>,
    dice: AtomicU64,
    /// Keeps the port while it is down.
    _reserved: TcpSocket,
}

/// Most arrivals that are kept with their content.
const ARRIVALS_MAX: usize = 10_000;

impl Sink {
    /// Starts a sink that accepts. With a ledger, arrivals are entered; with `keep_content`, they can be looked at.
    pub async fn start(address: SocketAddr, ledger: Option<Arc<Ledger>>, keep_content: bool) -> std::io::Result<Arc<Self>> {
        let reserved = bound(address)?;
        let socket = bound(reserved.local_addr()?)?.listen(1024)?;
        let (mix, _) = watch::channel(vec![(Behaviour::Accept, 1)]);
        let sink = Arc::new(Self {
            address: socket.local_addr()?,
            kept: AtomicU64::new(0),
            ledger,
            mix,
            keep_content,
            print: AtomicBool::new(false),
            arrivals: Mutex::default(),
            dice: AtomicU64::new(0x9e37_79b9_7f4a_7c15),
            _reserved: reserved,
        });
        tokio::spawn(accept(Arc::clone(&sink), socket));
        Ok(sink)
    }

    /// Changes what it does from now on.
    pub fn behave(&self, mix: Mix) {
        self.mix.send_replace(mix);
    }

    /// Whether a line is printed for every message that arrives.
    pub fn print(&self, print: bool) {
        self.print.store(print, Ordering::Relaxed);
    }

    /// What arrived so far (with `keep_content`).
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().expect("no panic while held").clone()
    }

    /// What arrived since the last call, which is then forgotten: for a sink that runs for long.
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        std::mem::take(&mut *self.arrivals.lock().expect("no panic while held"))
    }

    fn is_down(&self) -> bool {
        self.mix.borrow().iter().all(|(behaviour, _)| *behaviour == Behaviour::Down)
    }

    fn behaviour(&self) -> Behaviour {
        let mix = self.mix.borrow();
        if let [(only, _)] = mix.as_slice() {
            return *only;
        }
        let total: u64 = mix.iter().map(|(_, weight)| u64::from(*weight)).sum();
        let mut roll = splitmix(self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed)) % total.max(1);
        for (behaviour, weight) in mix.iter() {
            match roll.checked_sub(u64::from(*weight)) {
                Some(rest) => roll = rest,
                None => return *behaviour,
            }
        }
        Behaviour::Accept
    }

    fn keep(&self, from: &str, to: &[String], content: &[u8]) {
        self.kept.fetch_add(1, Ordering::Relaxed);
        if self.print.load(Ordering::Relaxed) {
            // Somebody who does not read on must not stop the sink.
            drop(writeln!(std::io::stdout(), "{}", line(from, to, content)));
        }
        if let Some(ledger) = &self.ledger
            && let Some((number, intact)) = ledger::read(content)
        {
            ledger.arrive(number, intact);
        }
        if self.keep_content {
            let mut arrivals = self.arrivals.lock().expect("no panic while held");
            if arrivals.len() < ARRIVALS_MAX {
                arrivals.push(Arrival { from: from.to_owned(), to: to.to_vec(), content: content.to_vec() });
            }
        }
    }
}

/// A message as one line. What a sender wrote is escaped: it must not write lines of its own.
fn line(from: &str, to: &[String], content: &[u8]) -> String {
    let head = content.split(|byte| *byte == b'\n').take_while(|line| !matches!(line, [] | [b'\r'])).take(200);
    let subject = head
        .filter_map(|line| std::str::from_utf8(line).ok())
        .find_map(|line| line.split_once(':').filter(|(name, _)| name.eq_ignore_ascii_case("subject")).map(|(_, value)| value.trim()))
        .unwrap_or_default();
    let short = |text: &str| text.chars().take(200).collect::<String>().escape_debug().to_string();
    let to = to.iter().take(10).map(|to| short(to)).collect::<Vec<_>>().join(", ");
    format!("from <{}> to <{to}> {} bytes, subject: {}", short(from), content.len(), short(subject))
}

/// A step of splitmix64: dice that fall the same way for the same seed.
pub(crate) fn splitmix(seed: u64) -> u64 {
    let mut z = seed;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn bound(address: SocketAddr) -> std::io::Result<TcpSocket> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    Ok(socket)
}

async fn accept(sink: Arc<Sink>, socket: TcpListener) {
    let mut socket = Some(socket);
    let mut changes = sink.mix.subscribe();
    loop {
        if sink.is_down() {
            socket = None;
            if changes.changed().await.is_err() {
                return;
            }
            continue;
        }
        let Some(open) = &socket else {
            match bound(sink.address).and_then(|socket| socket.listen(1024)) {
                Ok(open) => socket = Some(open),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            continue;
        };
        tokio::select! {
            accepted = open.accept() => if let Ok((stream, _)) = accepted {
                let sink = Arc::clone(&sink);
                tokio::spawn(async move { drop(session(sink, stream).await) });
            },
            gone = changes.changed() => if gone.is_err() { return },
        }
    }
}

/// What a session is in the middle of.
#[derive(Default)]
struct Transaction {
    from: String,
    to: Vec<String>,
    behaviour: Option<Behaviour>,
}

async fn session(sink: Arc<Sink>, mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    stream.write_all(b"220 sink ESMTP\r\n").await?;
    let mut buffer = BytesMut::with_capacity(128 * 1024);
    let mut output: Vec<u8> = vec![];
    let mut transaction = Transaction::default();
    loop {
        while let Some(end) = memchr::memmem::find(&buffer, b"\r\n") {
            let line = String::from_utf8_lossy(buffer.get(..end).unwrap_or_default()).into_owned();
            buffer.advance(end + 2);
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            let reply: &[u8] = match verb.as_str() {
                "EHLO" => b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 104857600\r\n",
                "HELO" | "NOOP" => b"250 ok\r\n",
                "MAIL" => {
                    transaction = Transaction { from: path(&line), to: vec![], behaviour: Some(sink.behaviour()) };
                    if transaction.behaviour == Some(Behaviour::RefuseSender) { b"550 5.1.8 who are you?\r\n" } else { b"250 2.1.0 ok\r\n" }
                }
                "RCPT" => match transaction.behaviour {
                    Some(Behaviour::RefuseSender) => b"503 5.5.1 no sender\r\n",
                    _ if path(&line).starts_with("unknown") => b"550 5.1.1 no such mailbox\r\n",
                    _ if path(&line).starts_with("busy") => b"450 4.2.1 mailbox busy\r\n",
                    Some(Behaviour::DeferRecipient) => b"450 4.2.1 mailbox busy\r\n",
                    Some(Behaviour::RefuseRecipient) => b"550 5.1.1 no such mailbox\r\n",
                    _ => {
                        transaction.to.push(path(&line));
                        b"250 2.1.5 ok\r\n"
                    }
                },
                "DATA" if transaction.to.is_empty() => b"503 5.5.1 no recipient\r\n",
                "DATA" => {
                    output.extend_from_slice(b"354 go ahead\r\n");
                    stream.write_all(&output).await?;
                    output.clear();
                    let content = data(&mut stream, &mut buffer).await?;
                    let behaviour = transaction.behaviour.take().unwrap_or(Behaviour::Accept);
                    match behaviour {
                        Behaviour::Accept | Behaviour::DeferRecipient | Behaviour::RefuseRecipient => {
                            sink.keep(&transaction.from, &transaction.to, &content);
                            b"250 2.0.0 kept\r\n"
                        }
                        Behaviour::Defer => b"451 4.3.0 not now\r\n",
                        Behaviour::Refuse => b"554 5.6.0 not wanted here\r\n",
                        Behaviour::Stall => {
                            tokio::time::sleep(Duration::from_secs(600)).await;
                            return Ok(());
                        }
                        Behaviour::DropAfter => {
                            sink.keep(&transaction.from, &transaction.to, &content);
                            return Ok(());
                        }
                        Behaviour::DropBefore | Behaviour::Down | Behaviour::RefuseSender => return Ok(()),
                    }
                }
                "RSET" => {
                    transaction = Transaction::default();
                    b"250 2.0.0 ok\r\n"
                }
                "QUIT" => {
                    output.extend_from_slice(b"221 2.0.0 bye\r\n");
                    stream.write_all(&output).await?;
                    return Ok(());
                }
                _ => b"500 5.5.2 what?\r\n",
            };
            output.extend_from_slice(reply);
        }
        if !output.is_empty() {
            stream.write_all(&output).await?;
            output.clear();
        }
        if stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    }
}

/// What stands between the angle brackets.
fn path(line: &str) -> String {
    line.split_once('<').and_then(|(_, rest)| rest.split_once('>')).map(|(path, _)| path.to_owned()).unwrap_or_default()
}

/// Reads content up to CRLF.CRLF; dots are unstuffed.
async fn data(stream: &mut TcpStream, buffer: &mut BytesMut) -> std::io::Result<Vec<u8>> {
    let mut looked = 0;
    loop {
        if buffer.starts_with(b".\r\n") {
            buffer.advance(3);
            return Ok(vec![]);
        }
        let from = looked_back(looked);
        if let Some(at) = memchr::memmem::find(buffer.get(from..).unwrap_or_default(), b"\r\n.\r\n") {
            let raw = buffer.split_to(from + at + 2);
            buffer.advance(3);
            return Ok(unstuffed(&raw));
        }
        looked = buffer.len();
        buffer.reserve(64 * 1024);
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The end of data may begin in what was looked at before.
const fn looked_back(looked: usize) -> usize {
    looked.saturating_sub(4)
}

fn unstuffed(raw: &[u8]) -> Vec<u8> {
    let raw = raw.strip_prefix(b".").unwrap_or(raw);
    let mut content = Vec::with_capacity(raw.len());
    let mut copied = 0;
    for at in memchr::memmem::find_iter(raw, b"\r\n.") {
        content.extend_from_slice(raw.get(copied..at + 2).unwrap_or_default());
        copied = at + 3;
    }
    content.extend_from_slice(raw.get(copied..).unwrap_or_default());
    content
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dots_are_unstuffed() {
        for (raw, expected) in [("a\r\n..b\r\n", "a\r\n.b\r\n"), ("..\r\n", ".\r\n"), ("x\r\n", "x\r\n"), ("a\r\n..\r\n..\r\n", "a\r\n.\r\n.\r\n")] {
            assert_eq!(unstuffed(raw.as_bytes()), expected.as_bytes(), "{raw:?}");
        }
    }

    #[test]
    fn a_message_is_one_line_whatever_it_says() {
        let printed = line("a@b.example", &["c@d.example".into()], b"Received: x\r\nSUBJECT: hello\x1b[2J\r\n\r\nSubject: not this\r\n");
        assert_eq!(printed, "from <a@b.example> to <c@d.example> 54 bytes, subject: hello\\u{1b}[2J");
        assert!(!line("a\nb", &["c\rd".into()], b"no header").contains(['\n', '\r']));
    }
}
