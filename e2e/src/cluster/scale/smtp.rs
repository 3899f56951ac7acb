//! Asks a gateway by SMTP which domains it serves: RCPT TO, many in one transaction, and no message.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// A gateway ends a session after 100 refused recipients: it takes the asker for somebody who tries out names.
pub(super) const REFUSED_MAX: usize = 95;
/// And after 100 commands that carry no mail, RSET among them.
const RESETS_MAX: usize = 90;
/// Recipients of one transaction; a gateway takes 1000.
const RECIPIENTS_MAX: usize = 500;
/// A whole transaction is answered within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);
/// Longest reply line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 4096;

/// Asks one gateway.
pub(super) struct Asker {
    address: SocketAddr,
    session: Option<Session>,
}

struct Session {
    stream: BufReader<TcpStream>,
    refused: usize,
    resets: usize,
}

impl Asker {
    /// Connects when it is first asked something.
    pub(super) const fn new(address: SocketAddr) -> Self {
        Self { address, session: None }
    }

    /// Whether each of these is served; all of them are judged by the configuration of one moment. No more than [`REFUSED_MAX`].
    pub(super) async fn served(&mut self, domains: &[String]) -> anyhow::Result<Vec<bool>> {
        ensure!(domains.len() <= REFUSED_MAX, "{} domains in one question, at most {REFUSED_MAX}", domains.len());
        let tired = |session: &Session| session.resets >= RESETS_MAX || session.refused + domains.len() > REFUSED_MAX;
        self.session = self.session.take().filter(|session| !tired(session));
        self.transaction(domains).await
    }

    /// The domains that are not served, of very many that should be.
    pub(super) async fn missing(&mut self, domains: impl Iterator<Item = String>) -> anyhow::Result<Vec<String>> {
        let mut domains = domains.peekable();
        let mut missing = vec![];
        while domains.peek().is_some() {
            let some: Vec<String> = domains.by_ref().take(RECIPIENTS_MAX).collect();
            let answers = match self.transaction(&some).await {
                Ok(answers) => answers,
                // Cut off because too many were refused: then in small portions.
                Err(_) => {
                    let mut answers = vec![];
                    for few in some.chunks(REFUSED_MAX) {
                        answers.append(&mut self.served(few).await?);
                    }
                    answers
                }
            };
            missing.extend(some.into_iter().zip(answers).filter(|(_, served)| !served).map(|(domain, _)| domain));
            if self.session.as_ref().is_some_and(|session| session.resets >= RESETS_MAX || session.refused > 0) {
                self.session = None;
            }
        }
        Ok(missing)
    }

    async fn transaction(&mut self, domains: &[String]) -> anyhow::Result<Vec<bool>> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => tokio::time::timeout(ANSWER_WITHIN, Session::open(self.address)).await.context("no greeting")??,
        };
        let answers = tokio::time::timeout(ANSWER_WITHIN, session.ask(domains)).await.context("no answer")??;
        self.session = Some(session);
        Ok(answers)
    }
}

impl Session {
    async fn open(address: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address).await.with_context(|| address.to_string())?;
        stream.set_nodelay(true)?;
        let mut session = Self { stream: BufReader::new(stream), refused: 0, resets: 0 };
        session.expect("the connection", 220).await?;
        session.stream.get_mut().write_all(b"EHLO scale.sekimori.invalid\r\n").await?;
        session.expect("EHLO", 250).await?;
        Ok(session)
    }

    async fn ask(&mut self, domains: &[String]) -> anyhow::Result<Vec<bool>> {
        let mut commands = String::from("MAIL FROM:<scale@sender.example>\r\n");
        for domain in domains {
            commands.extend(["RCPT TO:<user@", domain, ">\r\n"]);
        }
        commands.push_str("RSET\r\n");
        self.stream.get_mut().write_all(commands.as_bytes()).await?;
        self.expect("MAIL", 250).await?;
        let mut answers = vec![];
        for domain in domains {
            let (code, text) = self.reply().await?;
            ensure!(code == 250 || code == 550, "RCPT TO of {domain} was answered {code} {text}");
            answers.push(code == 250);
        }
        self.refused += answers.iter().filter(|served| !**served).count();
        self.resets += 1;
        self.expect("RSET", 250).await?;
        Ok(answers)
    }

    async fn expect(&mut self, after: &str, code: u16) -> anyhow::Result<()> {
        let (answered, text) = self.reply().await?;
        ensure!(answered == code, "{after} was answered {answered} {text}");
        Ok(())
    }

    /// The code and the last line of a reply.
    async fn reply(&mut self) -> anyhow::Result<(u16, String)> {
        loop {
            let mut line = String::new();
            let read = (&mut self.stream).take(LINE_BYTES_MAX).read_line(&mut line).await?;
            ensure!(read > 0, "the gateway hung up");
            let (code, text) = line.trim_end().split_at_checked(3).unwrap_or_default();
            let Ok(code) = code.parse() else { bail!("not an SMTP reply: {}", line.trim_end().escape_debug()) };
            if !text.starts_with('-') {
                return Ok((code, text.trim_start().to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A gateway that serves what begins with `good`, and ends a session at the hundredth refusal.
    async fn gateway() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move { drop(serve(stream).await) });
            }
        });
        address
    }

    async fn serve(stream: TcpStream) -> std::io::Result<()> {
        let mut stream = BufReader::new(stream);
        stream.get_mut().write_all(b"220 gateway\r\n").await?;
        let (mut line, mut refused) = (String::new(), 0);
        while stream.read_line(&mut line).await? > 0 {
            let answer = if line.starts_with("EHLO") {
                "250-gateway\r\n250 PIPELINING\r\n"
            } else if line.starts_with("RCPT") && !line.contains("@good") {
                refused += 1;
                "550 5.7.1 no\r\n"
            } else {
                "250 2.0.0 ok\r\n"
            };
            if refused == 100 {
                return stream.get_mut().write_all(b"421 4.7.0 too many\r\n").await;
            }
            stream.get_mut().write_all(answer.as_bytes()).await?;
            line.clear();
        }
        Ok(())
    }

    #[tokio::test]
    async fn each_domain_has_its_answer() {
        let mut asker = Asker::new(gateway().await);
        let domains = ["good-1.example", "bad.example", "good-2.example"].map(str::to_owned);
        for _ in 0..120 {
            assert_eq!(asker.served(&domains).await.expect("over sessions' limits"), [true, false, true]);
        }
    }

    #[tokio::test]
    async fn those_missing_are_found_among_many() {
        let mut asker = Asker::new(gateway().await);
        let many =
            |bad: usize| (0..2_000).map(move |number| format!("{}-{number}.example", if number % (2_000 / bad) == 7 { "bad" } else { "good" }));
        assert_eq!(asker.missing(many(4)).await.expect("few"), ["bad-7.example", "bad-507.example", "bad-1007.example", "bad-1507.example"]);
        assert_eq!(asker.missing(many(1_000)).await.expect("none").len(), 0, "of two, none is the seventh");
        assert_eq!(asker.missing(many(200)).await.expect("more than a session bears").len(), 200);
    }
}
