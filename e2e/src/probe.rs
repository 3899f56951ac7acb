//! What `helm test` runs: a clean message, the test virus and the test spam through a gateway, and whether its answers are what they must be.

use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Longest wait for one reply: a gateway may deliver before it answers the end of data.
const REPLY_MAX: Duration = Duration::from_secs(90);
/// Longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// Time between attempts.
const PAUSE: Duration = Duration::from_secs(2);
/// Longest reply line that is read, in bytes.
const LINE_BYTES_MAX: u64 = 4096;
/// Most lines of one reply.
const LINES_MAX: usize = 64;

/// What to probe.
#[derive(Clone, Debug)]
pub struct Probe {
    /// `host:port` of the gateway.
    pub gateway: String,
    /// MAIL FROM.
    pub sender: String,
    /// RCPT TO: a recipient that the gateway serves.
    pub recipient: String,
    /// How long to wait until the gateway takes mail for this recipient.
    pub wait: Duration,
}

/// One reply.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    code: u16,
    lines: Vec<String>,
    /// The command that it answers.
    after: &'static str,
}

impl Answer {
    fn text(&self) -> &str {
        self.lines.last().map_or("", String::as_str)
    }
}

/// What a sample must be answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expected {
    Accepted,
    RefusedAsContent,
}

impl Expected {
    /// A content must be judged as content: a refused recipient says nothing about a scanner.
    const fn met(self, answer: &Answer, end: bool) -> bool {
        match self {
            Self::Accepted => answer.code == 250 && end,
            Self::RefusedAsContent => answer.code >= 500 && answer.code < 600 && end,
        }
    }
}

const END: &str = "the end of data";

/// Probes; an error says which answer was wrong, and what to do.
///
/// # Errors
/// The gateway does not answer, takes no mail within the wait, or lets a bad message pass.
pub async fn run(probe: &Probe) -> anyhow::Result<()> {
    let deadline = Instant::now() + probe.wait;
    println!("probing {} as {} to {}", probe.gateway, probe.sender, probe.recipient);
    // A new fleet opens its port when its engines are warm, and a new tenant is served a moment later: the first message waits for both.
    loop {
        let outcome = send(probe, &mail(probe, "a clean message", "It is Tuesday.\r\n")).await;
        let trouble = match outcome {
            Ok(answer) if Expected::Accepted.met(&answer, answer.after == END) => {
                println!("ok   clean message: {} {}", answer.code, answer.text());
                break;
            }
            Ok(answer) => format!("a clean message was answered {} {} after {}", answer.code, answer.text(), answer.after),
            Err(error) => format!("{error:#}"),
        };
        if Instant::now() + PAUSE > deadline {
            anyhow::bail!(
                "{trouble}\nThe gateway took no clean mail for {} within {} s. Look at the fleet and the tenant:\n  \
                 kubectl get sekimori -A\n  kubectl describe tenantdomain -A",
                probe.recipient,
                probe.wait.as_secs()
            );
        }
        println!("wait {trouble}");
        tokio::time::sleep(PAUSE).await;
    }
    let mut wrong = vec![];
    for (what, body) in bad_samples() {
        let answer = send(probe, &mail(probe, what, &body)).await?;
        let met = Expected::RefusedAsContent.met(&answer, answer.after == END);
        println!("{} {what}: {} {} (after {})", if met { "ok  " } else { "BAD " }, answer.code, answer.text(), answer.after);
        if !met {
            wrong.push(what);
        }
    }
    anyhow::ensure!(
        wrong.is_empty(),
        "not refused: {}. Either no engine of that class scans (kubectl get engines -A), or the tenant's policy lets it pass (kubectl sekimori tenants show)",
        wrong.join(", ")
    );
    println!("the gateway takes clean mail and refuses the test virus and the test spam");
    Ok(())
}

/// What is said where there is nothing to probe.
pub fn nothing_to_probe() {
    println!(
        "no fleet to test: the chart made none. Nothing was sent, and this counts as passed.\n\
         Make one: helm upgrade ... --set quickstart.enabled=true\n\
         or name yours: helm upgrade ... --set tests.gateway=inbound-smtp.mail.svc:25 --set tests.recipient=user@your.example"
    );
}

/// Written in two pieces, so that a scanner does not mistake this file for the test virus and the test spam.
fn bad_samples() -> [(&'static str, String); 2] {
    let eicar = [r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-", "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"].concat();
    let gtube = ["XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"].concat();
    [("the EICAR test virus", format!("{eicar}\r\n")), ("the GTUBE test spam", format!("{gtube}\r\n"))]
}

fn mail(probe: &Probe, subject: &str, body: &str) -> Vec<u8> {
    let id = crate::ledger::digest(format!("{subject}{:?}", std::time::SystemTime::now()).as_bytes());
    let attached = subject.contains("virus");
    let head = format!(
        "From: Probe <{}>\r\nTo: <{}>\r\nSubject: sekimori probe: {subject}\r\nDate: Wed, 25 Nov 2026 08:00:00 +0000\r\nMessage-ID: <{id:x}@probe.invalid>\r\n\
         MIME-Version: 1.0\r\n",
        probe.sender, probe.recipient
    );
    let rest = if attached {
        format!(
            "Content-Type: multipart/mixed; boundary=\"part\"\r\n\r\n--part\r\nContent-Type: text/plain\r\n\r\nA test file.\r\n--part\r\n\
             Content-Type: application/octet-stream; name=\"eicar.com\"\r\nContent-Disposition: attachment; filename=\"eicar.com\"\r\n\r\n{body}--part--\r\n"
        )
    } else {
        format!("Content-Type: text/plain; charset=us-ascii\r\n\r\n{body}")
    };
    format!("{head}{rest}").into_bytes()
}

/// Sends one message; the answer that decided.
async fn send(probe: &Probe, message: &[u8]) -> anyhow::Result<Answer> {
    let connecting = tokio::time::timeout(CONNECT_MAX, TcpStream::connect(&*probe.gateway)).await;
    let stream = connecting
        .map_err(|_| anyhow::anyhow!("no connection to {} within {} s", probe.gateway, CONNECT_MAX.as_secs()))?
        .map_err(|error| anyhow::anyhow!("no connection to {}: {error}", probe.gateway))?;
    let mut stream = BufReader::new(stream);
    let banner = reply(&mut stream, "the connection").await?;
    if banner.code != 220 {
        return Ok(banner);
    }
    let commands = [
        ("EHLO", "EHLO probe.sekimori.invalid\r\n".to_owned()),
        ("MAIL", format!("MAIL FROM:<{}>\r\n", probe.sender)),
        ("RCPT", format!("RCPT TO:<{}>\r\n", probe.recipient)),
        ("DATA", "DATA\r\n".to_owned()),
    ];
    for (verb, command) in commands {
        stream.get_mut().write_all(command.as_bytes()).await?;
        let answer = reply(&mut stream, verb).await?;
        if answer.code >= 400 {
            stream.get_mut().write_all(b"QUIT\r\n").await?;
            return Ok(answer);
        }
        if verb == "EHLO" && answer.lines.len() < 2 {
            anyhow::bail!("{} answers EHLO with no extension ({}): that is no Sekimori gateway", probe.gateway, answer.text());
        }
    }
    // No line of ours begins with a dot.
    stream.get_mut().write_all(message).await?;
    stream.get_mut().write_all(b".\r\n").await?;
    let answer = reply(&mut stream, END).await?;
    stream.get_mut().write_all(b"QUIT\r\n").await?;
    Ok(answer)
}

async fn reply(stream: &mut BufReader<TcpStream>, after: &'static str) -> anyhow::Result<Answer> {
    let mut lines = vec![];
    while lines.len() < LINES_MAX {
        let mut line = String::new();
        let read = tokio::time::timeout(REPLY_MAX, stream.take(LINE_BYTES_MAX).read_line(&mut line)).await;
        let read = read.map_err(|_| anyhow::anyhow!("no answer to {after} within {} s", REPLY_MAX.as_secs()))??;
        anyhow::ensure!(read > 0, "the gateway hung up instead of answering {after}");
        let (code, text) = line.trim_end().split_at_checked(3).unwrap_or_default();
        let code: u16 = code.parse().map_err(|_| anyhow::anyhow!("not an SMTP reply to {after}: {}", line.trim_end().escape_debug()))?;
        let more = text.starts_with('-');
        lines.push(text.trim_start_matches(['-', ' ']).to_owned());
        if !more {
            return Ok(Answer { code, lines, after });
        }
    }
    anyhow::bail!("a reply to {after} of more than {LINES_MAX} lines")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// A gateway that answers RCPT and the end of data as told; `%` in the content's answer stands for what a scanner would say.
    async fn gateway(recipient: &'static str, scans: bool) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound").to_string();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move { drop(serve(stream, recipient, scans).await) });
            }
        });
        address
    }

    async fn serve(mut stream: TcpStream, recipient: &str, scans: bool) -> std::io::Result<()> {
        stream.write_all(b"220 gateway ESMTP\r\n").await?;
        let (mut buffer, mut seen, mut content) = ([0; 8192], String::new(), false);
        loop {
            let read = stream.read(&mut buffer).await?;
            if read == 0 {
                return Ok(());
            }
            seen.push_str(&String::from_utf8_lossy(buffer.get(..read).unwrap_or_default()));
            let answer = if content {
                if !seen.ends_with("\r\n.\r\n") {
                    continue;
                }
                content = false;
                let bad = seen.contains("EICAR") || seen.contains("GTUBE-");
                if bad && scans { "554 5.7.1 refused by policy\r\n" } else { "250 2.0.0 ok\r\n" }.to_owned()
            } else if !seen.ends_with("\r\n") {
                continue;
            } else if seen.starts_with("EHLO") {
                "250-gateway\r\n250 PIPELINING\r\n".to_owned()
            } else if seen.starts_with("RCPT") {
                recipient.to_owned()
            } else if seen.starts_with("DATA") {
                content = true;
                "354 go on\r\n".to_owned()
            } else {
                "250 2.0.0 ok\r\n".to_owned()
            };
            seen.clear();
            stream.write_all(answer.as_bytes()).await?;
        }
    }

    fn probe(gateway: String) -> Probe {
        Probe { gateway, sender: "probe@sender.example".into(), recipient: "user@example.com".into(), wait: Duration::ZERO }
    }

    #[tokio::test]
    async fn a_gateway_that_scans_passes() {
        run(&probe(gateway("250 2.1.5 ok\r\n", true).await)).await.expect("as it must be");
    }

    #[tokio::test]
    async fn what_is_wrong_is_said() {
        for (recipient, scans, words) in [
            ("250 2.1.5 ok\r\n", false, "not refused: the EICAR test virus, the GTUBE test spam"),
            ("550 5.7.1 not served here\r\n", true, "took no clean mail for user@example.com"),
            ("450 4.2.1 later\r\n", true, "answered 450 4.2.1 later after RCPT"),
        ] {
            let error = run(&probe(gateway(recipient, scans).await)).await.expect_err(recipient);
            assert!(format!("{error:#}").contains(words), "{recipient}: {error:#}");
        }
        let error = run(&probe("127.0.0.1:1".into())).await.expect_err("nobody there");
        assert!(format!("{error:#}").contains("no connection to 127.0.0.1:1"), "{error:#}");
    }

    #[test]
    fn a_refused_recipient_is_no_proof_of_a_scanner() {
        let answer = |code, after| Answer { code, lines: vec![], after };
        assert!(Expected::RefusedAsContent.met(&answer(554, END), true));
        for (code, end) in [(550, false), (250, true), (451, true)] {
            assert!(!Expected::RefusedAsContent.met(&answer(code, END), end), "{code}");
        }
    }

    #[test]
    fn no_line_needs_a_dot_more() {
        for (what, body) in bad_samples() {
            let message = String::from_utf8(mail(&probe(String::new()), what, &body)).expect("text");
            assert!(message.ends_with("\r\n") && message.lines().all(|line| !line.starts_with('.')), "{message}");
        }
    }
}
