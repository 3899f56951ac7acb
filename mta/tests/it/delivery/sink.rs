//! A scriptable SMTP server over real TCP.

#![expect(clippy::unwrap_used, reason = "a test's own helpers")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What the server does at one point of the dialogue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Act {
    /// What a good server does.
    Accept,
    /// This reply instead.
    Say(String),
    /// Nothing, for ever.
    Stall,
    /// Hang up.
    Drop,
    /// Keep the message, then hang up without an answer.
    KeepAndDrop,
    /// Keep the message, then say nothing.
    KeepAndStall,
    /// Wait, then accept.
    Slow(u64),
}

pub(crate) fn say(text: &str) -> Act {
    Act::Say(text.to_owned())
}

/// A message that the server kept.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub(crate) mail: String,
    pub(crate) recipients: Vec<String>,
    pub(crate) content: Vec<u8>,
    pub(crate) tls: bool,
}

type PerRecipient = Arc<dyn Fn(&str) -> Act + Send + Sync>;

/// How the server behaves.
#[derive(Clone)]
pub(crate) struct Script {
    pub(crate) banner: Act,
    pub(crate) ehlo: Act,
    pub(crate) extensions: Vec<&'static str>,
    pub(crate) starttls: Act,
    pub(crate) mail: Act,
    /// For every MAIL of a connection but the first.
    pub(crate) later_mail: Option<Act>,
    /// 550 to MAIL from this sender.
    pub(crate) blocked_sender: &'static str,
    pub(crate) rcpt: PerRecipient,
    pub(crate) data: Act,
    /// In the middle of the content.
    pub(crate) content: Act,
    pub(crate) end: Act,
    /// Hang up after so many messages.
    pub(crate) messages: usize,
    pub(crate) acceptor: Option<TlsAcceptor>,
}

impl Default for Script {
    fn default() -> Self {
        Self {
            banner: Act::Accept,
            ehlo: Act::Accept,
            extensions: vec!["PIPELINING", "SIZE 50000000", "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"],
            starttls: Act::Accept,
            mail: Act::Accept,
            later_mail: None,
            blocked_sender: "nobody",
            rcpt: Arc::new(|_| Act::Accept),
            data: Act::Accept,
            content: Act::Accept,
            end: Act::Accept,
            messages: usize::MAX,
            acceptor: None,
        }
    }
}

#[derive(Default)]
struct Shared {
    script: Mutex<Script>,
    kept: Mutex<Vec<Kept>>,
    greetings: Mutex<Vec<String>>,
    connections: AtomicUsize,
    open: AtomicUsize,
    lone_dots: AtomicUsize,
}

/// The running server; it ends with the test's runtime.
#[derive(Clone)]
pub(crate) struct Sink {
    pub(crate) address: SocketAddr,
    shared: Arc<Shared>,
}

impl Sink {
    /// The names of all EHLOs, in their order.
    pub(crate) fn greetings(&self) -> Vec<String> {
        self.shared.greetings.lock().unwrap().clone()
    }

    pub(crate) async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared { script: Mutex::new(script), ..Shared::default() });
        let sink = Self { address, shared };
        let this = sink.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                this.shared.connections.fetch_add(1, Ordering::SeqCst);
                let this = this.clone();
                tokio::spawn(async move {
                    this.shared.open.fetch_add(1, Ordering::SeqCst);
                    let _ended = this.serve(stream).await;
                    this.shared.open.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        sink
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut Script)) {
        change(&mut self.shared.script.lock().unwrap());
    }

    pub(crate) fn kept(&self) -> Vec<Kept> {
        self.shared.kept.lock().unwrap().clone()
    }

    pub(crate) fn kept_count(&self) -> usize {
        self.shared.kept.lock().unwrap().len()
    }

    /// Connections that were made.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }

    /// Connections that are open.
    pub(crate) fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// Contents for nobody.
    pub(crate) fn lone_dots(&self) -> usize {
        self.shared.lone_dots.load(Ordering::SeqCst)
    }

    fn script(&self) -> Script {
        self.shared.script.lock().unwrap().clone()
    }

    async fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        if !act(&mut stream, &self.script().banner, "220 sink.test ESMTP").await? {
            return Ok(());
        }
        let mut plain = BufReader::new(stream);
        if !self.session(&mut plain, false).await? {
            return Ok(());
        }
        let Some(acceptor) = self.script().acceptor else {
            // Promised and not kept: whatever the client says gets plain text.
            return plain.write_all(b"220 what handshake?\r\n").await;
        };
        let secured = acceptor.accept(plain.into_inner()).await?;
        self.session(&mut BufReader::new(secured), true).await?;
        Ok(())
    }

    /// Whether a TLS handshake comes next.
    async fn session<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>, tls: bool) -> std::io::Result<bool> {
        let (mut mail, mut mail_taken, mut recipients, mut messages) = (String::new(), false, vec![], 0);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(false);
            }
            let script = self.script();
            let line = line.trim_end();
            let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
            let go_on = match verb.as_str() {
                "EHLO" => {
                    self.shared.greetings.lock().unwrap().extend(line.split_once(' ').map(|(_, name)| name.to_owned()));
                    let mut offer = String::from("250-sink.test greets you");
                    let hidden = |extension: &&&str| !(tls && **extension == "STARTTLS");
                    for extension in script.extensions.iter().filter(hidden) {
                        offer.push_str(&format!("\r\n250-{extension}"));
                    }
                    let offer = offer + "\r\n250 HELP";
                    act(stream, &script.ehlo, &offer).await?
                }
                "HELO" | "RSET" => act(stream, &Act::Accept, "250 2.0.0 Ok").await?,
                "STARTTLS" => {
                    let go_on = act(stream, &script.starttls, "220 2.0.0 Go ahead").await?;
                    if go_on && !matches!(&script.starttls, Act::Say(text) if !text.starts_with("220")) {
                        return Ok(true);
                    }
                    go_on
                }
                "MAIL" => {
                    mail = line.to_owned();
                    recipients.clear();
                    let what = script.later_mail.as_ref().filter(|_| messages > 0).unwrap_or(&script.mail);
                    let blocked = say("550 5.7.1 you are blocked");
                    let what = if mail.contains(script.blocked_sender) { &blocked } else { what };
                    mail_taken = matches!(what, Act::Accept | Act::Slow(_));
                    act(stream, what, "250 2.1.0 Ok").await?
                }
                "RCPT" => {
                    let address = line.split(['<', '>']).nth(1).unwrap_or_default().to_owned();
                    let what = if mail_taken { (script.rcpt)(&address) } else { say("503 5.5.1 MAIL first") };
                    if matches!(what, Act::Accept | Act::Slow(_)) {
                        recipients.push(address);
                    }
                    act(stream, &what, "250 2.1.5 Ok").await?
                }
                "DATA" => {
                    let begun = act(stream, &script.data, "354 go").await?;
                    if !begun || matches!(&script.data, Act::Say(text) if !text.starts_with("354")) {
                        begun
                    } else {
                        messages += 1;
                        let go_on =
                            self.content(stream, &script, Kept { mail: mail.clone(), recipients: recipients.clone(), content: vec![], tls }).await?;
                        go_on && messages < script.messages
                    }
                }
                "QUIT" => {
                    act(stream, &Act::Accept, "221 2.0.0 Bye").await?;
                    false
                }
                _ => act(stream, &Act::Accept, "500 5.5.1 what?").await?,
            };
            if !go_on {
                return Ok(false);
            }
        }
    }

    async fn content<S: AsyncRead + AsyncWrite + Unpin>(&self, stream: &mut BufReader<S>, script: &Script, mut kept: Kept) -> std::io::Result<bool> {
        if script.content != Act::Accept {
            let mut some = [0; 10];
            stream.read_exact(&mut some).await?;
            return act(stream, &script.content, "").await;
        }
        loop {
            let from = kept.content.len();
            if stream.read_until(b'\n', &mut kept.content).await? == 0 {
                return Ok(false);
            }
            let line = &kept.content[from..];
            assert!(line.ends_with(b"\r\n"), "a bare LF arrived");
            if line == b".\r\n" {
                kept.content.truncate(from);
                break;
            }
            if line[0] == b'.' {
                kept.content.remove(from);
            }
        }
        let nobody = kept.recipients.is_empty();
        if nobody {
            self.shared.lone_dots.fetch_add(1, Ordering::SeqCst);
            return act(stream, &say("554 5.5.1 no valid recipients"), "").await;
        }
        if matches!(script.end, Act::Accept | Act::Slow(_) | Act::KeepAndDrop | Act::KeepAndStall) {
            self.shared.kept.lock().unwrap().push(kept);
        }
        act(stream, &script.end, "250 2.0.0 Ok: queued as 4711").await
    }
}

/// Whether the dialogue goes on.
async fn act<S: AsyncWrite + Unpin>(stream: &mut S, act: &Act, good: &str) -> std::io::Result<bool> {
    let text = match act {
        Act::Accept => good,
        Act::Say(text) => text,
        Act::Slow(ms) => {
            tokio::time::sleep(Duration::from_millis(*ms)).await;
            good
        }
        Act::Drop | Act::KeepAndDrop => return Ok(false),
        Act::Stall | Act::KeepAndStall => {
            std::future::pending::<()>().await;
            return Ok(false);
        }
    };
    stream.write_all(format!("{text}\r\n").as_bytes()).await?;
    stream.flush().await?;
    Ok(!text.starts_with("421"))
}
