//! `demo`: a gateway, a sink in place of the customer's server, a stub DNS, a handful of real messages, and what became of each.

use std::io::{IsTerminal as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

use crate::dns::{self, Zone};
use crate::process::{Gateway, GatewayOptions};
use crate::sink::Sink;

/// What the demo needs.
#[derive(Debug)]
pub struct Demo {
    /// The gateway's binary.
    pub gateway: PathBuf,
    /// Manifests: a listener on `smtp`, a tenant for example.com with a route to `sink`.
    pub manifests: PathBuf,
    /// State directory.
    pub state: PathBuf,
    /// Where the gateway takes mail.
    pub smtp: SocketAddr,
    /// Where the sink stands in for the customer's server.
    pub sink: SocketAddr,
    /// The gateway's admin port.
    pub admin: SocketAddr,
    /// End after the table, with an error if anything was not as it should be.
    pub once: bool,
}

pub(crate) struct Sample {
    pub(crate) what: &'static str,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) message: Vec<u8>,
    /// The class of the answer that is right.
    pub(crate) expected: u16,
}

pub(crate) struct Answer {
    pub(crate) code: u16,
    pub(crate) text: String,
}

/// Runs the demo.
pub async fn run(demo: Demo) -> anyhow::Result<()> {
    let zone = Zone::default()
        .txt("sender.example", "v=spf1 ip4:127.0.0.1 -all")
        .address("sender.example", Ipv4Addr::LOCALHOST.into())
        .mx("sender.example", 10, "sender.example.")
        .txt("_dmarc.sender.example", "v=DMARC1; p=reject")
        .txt("bank.example", "v=spf1 ip4:192.0.2.1 -all")
        .mx("bank.example", 10, "bank.example.")
        .txt("_dmarc.bank.example", "v=DMARC1; p=reject");
    let resolver = dns::serve(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0), zone).await?;
    let (smtp, sink) = (demo.smtp, demo.sink);
    let sink = Sink::start(sink, None, true).await.map_err(|e| anyhow::anyhow!("the sink cannot bind {sink}: {e}; stop whoever has the port"))?;
    let options = GatewayOptions {
        binary: demo.gateway,
        manifests: demo.manifests.clone(),
        state: demo.state.clone(),
        resolver,
        admin: demo.admin,
        more: vec!["--log".into(), "text".into()],
    };
    let mut gateway = Gateway::start(&options)?;
    gateway.ready(Duration::from_secs(60)).await?;
    println!("\nA gateway listens on {smtp}; a sink on {} stands in for the mail server of example.com.\n", sink.address);
    let wrong = send_all(smtp, &sink).await?;
    next_steps(smtp, &demo.manifests, &gateway, demo.once);
    if demo.once {
        gateway.stop(Duration::from_secs(60)).await?;
        anyhow::ensure!(wrong == 0, "{wrong} messages did not end as they should");
        return Ok(());
    }
    tokio::signal::ctrl_c().await?;
    println!("\nstopping");
    gateway.stop(Duration::from_secs(60)).await.map(drop)
}

async fn send_all(smtp: SocketAddr, sink: &Arc<Sink>) -> anyhow::Result<usize> {
    let colour = std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    println!("{:<44} {:<7} {:<10} WHY", "MESSAGE", "ANSWER", "ARRIVED");
    let mut wrong = 0;
    for sample in samples() {
        let before = sink.arrivals().len();
        let answer = send(smtp, &sample).await?;
        let arrivals = sink.arrivals();
        let (arrived, intact, why) = match arrivals.get(before..) {
            Some([one, ..]) if one.content.ends_with(&sample.message) => ("unchanged", true, header(&one.content, "X-Sekimori-Verdict")),
            Some([one, ..]) => ("CHANGED", false, header(&one.content, "X-Sekimori-Verdict")),
            _ => ("-", true, answer.text.clone()),
        };
        let right = answer.code / 100 == sample.expected && intact && (sample.expected == 2) == (arrivals.len() > before);
        wrong += usize::from(!right);
        let (on, off) = match (colour, right, answer.code / 100) {
            (true, false, _) => ("\x1b[31m", "\x1b[0m"),
            (true, true, 2) => ("\x1b[32m", "\x1b[0m"),
            (true, true, _) => ("\x1b[33m", "\x1b[0m"),
            _ => ("", ""),
        };
        println!("{:<44} {on}{:<7}{off} {:<10} {}", sample.what, answer.code, arrived, why);
    }
    Ok(wrong)
}

fn next_steps(smtp: SocketAddr, manifests: &std::path::Path, gateway: &Gateway, once: bool) {
    let (dir, admin) = (manifests.display(), gateway.admin);
    println!(
        "\nNext:\n  swaks --server {smtp} --from you@sender.example --to user@example.com --attach-type text/plain --attach-body 'hello'\n  \
         target/release/sekimori-mta scan --manifests {dir} mail.eml\n  target/release/sekimori-mta queue list\n  \
         target/release/sekimori-mta quarantine list\n  curl -s http://{admin}/metrics | grep ^sekimori_\n  \
         edit {dir}/*.yaml: a change is in force within two seconds\nThe gateway's log: {}",
        gateway.log.display()
    );
    if !once {
        println!("Serving until Ctrl-C.");
    }
    drop(std::io::stdout().flush());
}

/// A header field's value, unfolded.
fn header(content: &[u8], name: &str) -> String {
    let text = String::from_utf8_lossy(content).into_owned();
    let unfolded = text.replace("\r\n\t", " ").replace("\r\n ", " ");
    unfolded.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": ").map(str::to_owned)).unwrap_or_default()
}

async fn send(smtp: SocketAddr, sample: &Sample) -> anyhow::Result<Answer> {
    send_to(smtp, sample.from, sample.to, &sample.message).await
}

/// One message in a session of its own; the answer to its end, or the first refusal before.
async fn send_to(smtp: SocketAddr, from: &str, to: &str, message: &[u8]) -> anyhow::Result<Answer> {
    let mut stream = BufReader::new(TcpStream::connect(smtp).await?);
    reply(&mut stream).await?;
    let commands = ["EHLO client.sender.example\r\n".to_owned(), format!("MAIL FROM:<{from}>\r\n"), format!("RCPT TO:<{to}>\r\n"), "DATA\r\n".into()];
    for command in commands {
        stream.get_mut().write_all(command.as_bytes()).await?;
        let answer = reply(&mut stream).await?;
        if answer.code >= 400 {
            stream.get_mut().write_all(b"QUIT\r\n").await?;
            return Ok(answer);
        }
    }
    let mut stuffed = vec![];
    for line in message.split_inclusive(|b| *b == b'\n') {
        if line.starts_with(b".") {
            stuffed.push(b'.');
        }
        stuffed.extend_from_slice(line);
    }
    stuffed.extend_from_slice(b".\r\n");
    stream.get_mut().write_all(&stuffed).await?;
    let answer = reply(&mut stream).await?;
    stream.get_mut().write_all(b"QUIT\r\n").await?;
    Ok(answer)
}

async fn reply(stream: &mut BufReader<TcpStream>) -> anyhow::Result<Answer> {
    loop {
        let mut line = String::new();
        let read = tokio::time::timeout(Duration::from_secs(90), stream.read_line(&mut line)).await??;
        anyhow::ensure!(read > 0, "the gateway hung up");
        if line.as_bytes().get(3) != Some(&b'-') {
            let (code, text) = line.trim_end().split_at_checked(3).unwrap_or_default();
            return Ok(Answer { code: code.parse()?, text: text.trim().to_owned() });
        }
    }
}

fn samples() -> Vec<Sample> {
    // Written in two pieces, so that a scanner does not mistake this file for the test virus and the test spam.
    let eicar = [r"X5O!P%@AP[4\PZX54(P^)7CC)7}$EICAR-", "STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"].concat();
    let gtube = ["XJS*C4JDBQADN1.NSBN3*2IDNEN*", "GTUBE-STANDARD-ANTI-UBE-TEST-EMAIL*C.34X"].concat();
    let (good, user) = ("you@sender.example", "user@example.com");
    vec![
        Sample {
            what: "clean, UTF-8",
            from: good,
            to: user,
            message: mail(good, "=?UTF-8?B?44GK5ZWP44GE5ZCI44KP44Gb?=", "text/plain; charset=utf-8", "会議は三時からです。\r\n".as_bytes()),
            expected: 2,
        },
        Sample {
            what: "clean, ISO-2022-JP",
            from: good,
            to: user,
            message: mail(good, "=?ISO-2022-JP?B?GyRCMnE1RBsoQg==?=", "text/plain; charset=iso-2022-jp", b"\x1b$B2q5D\x1b(B\r\n"),
            expected: 2,
        },
        Sample {
            what: "the EICAR test virus inside a zip",
            from: good,
            to: user,
            message: attachment("report.zip", &zip("report.txt", eicar.as_bytes(), false)),
            expected: 5,
        },
        Sample {
            what: "the GTUBE test spam",
            from: good,
            to: user,
            message: mail(good, "offer", "text/plain", format!("{gtube}\r\n").as_bytes()),
            expected: 5,
        },
        Sample {
            what: "an encrypted zip (delivered, marked)",
            from: good,
            to: user,
            message: attachment("secret.zip", &zip("secret.txt", b"only with the password", true)),
            expected: 2,
        },
        Sample {
            what: "broken MIME: a boundary that never comes",
            from: good,
            to: user,
            message: mail(good, "broken", "multipart/mixed; boundary=\"never\"", b"no part\r\n--nev\r\n\xff\xfe\r\n..\r\n"),
            expected: 2,
        },
        Sample {
            what: "forged: bank.example publishes DMARC reject",
            from: "ceo@bank.example",
            to: user,
            message: mail("ceo@bank.example", "urgent", "text/plain", b"please pay\r\n"),
            expected: 5,
        },
        Sample {
            what: "to a domain that nobody serves",
            from: good,
            to: "user@elsewhere.example",
            message: mail(good, "hello", "text/plain", b"hello\r\n"),
            expected: 5,
        },
    ]
}

fn mail(from: &str, subject: &str, content_type: &str, body: &[u8]) -> Vec<u8> {
    let mut message = format!(
        "From: Sender <{from}>\r\nTo: User <user@example.com>\r\nSubject: {subject}\r\nDate: Wed, 25 Nov 2026 08:00:00 +0000\r\n\
         Message-ID: <{:x}@sender.example>\r\nMIME-Version: 1.0\r\nContent-Type: {content_type}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n",
        crate::ledger::digest(body)
    )
    .into_bytes();
    message.extend_from_slice(body);
    message
}

fn attachment(name: &str, content: &[u8]) -> Vec<u8> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(content);
    let lines: Vec<&str> = encoded.as_bytes().chunks(76).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    let body = format!(
        "--part\r\nContent-Type: text/plain\r\n\r\nPlease see the attached file.\r\n--part\r\nContent-Type: application/zip; name=\"{name}\"\r\n\
         Content-Disposition: attachment; filename=\"{name}\"\r\nContent-Transfer-Encoding: base64\r\n\r\n{}\r\n--part--\r\n",
        lines.join("\r\n")
    );
    mail("you@sender.example", "a file", "multipart/mixed; boundary=\"part\"", body.as_bytes())
}

/// A zip with one stored member, flagged as encrypted if asked (what is inside then looks like noise to anybody anyway).
fn zip(name: &str, content: &[u8], encrypted: bool) -> Vec<u8> {
    let flags = u16::from(encrypted);
    let size = content.len() as u32;
    let mut fields: Vec<u8> = vec![];
    fields.extend_from_slice(&20_u16.to_le_bytes());
    fields.extend_from_slice(&flags.to_le_bytes());
    fields.extend_from_slice(&[0; 6]);
    fields.extend_from_slice(&crc32(content).to_le_bytes());
    fields.extend_from_slice(&size.to_le_bytes());
    fields.extend_from_slice(&size.to_le_bytes());
    fields.extend_from_slice(&(name.len() as u16).to_le_bytes());
    fields.extend_from_slice(&[0; 2]);
    let mut out = b"PK\x03\x04".to_vec();
    out.extend_from_slice(&fields);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(content);
    let directory = out.len() as u32;
    out.extend_from_slice(b"PK\x01\x02\x14\x00");
    out.extend_from_slice(&fields);
    out.extend_from_slice(&[0; 14]);
    out.extend_from_slice(name.as_bytes());
    let directory_size = out.len() as u32 - directory;
    out.extend_from_slice(b"PK\x05\x06\x00\x00\x00\x00\x01\x00\x01\x00");
    out.extend_from_slice(&directory_size.to_le_bytes());
    out.extend_from_slice(&directory.to_le_bytes());
    out.extend_from_slice(&[0; 2]);
    out
}

/// CRC-32 of zip, bit by bit: the samples are small.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_zip_is_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        let made = zip("a.txt", b"hello", false);
        assert!(made.starts_with(b"PK\x03\x04"));
        // Signatures, version, fields (26), offset of the directory: an unzip on this machine is asked in the demo's own run.
        assert_eq!(made.len(), 30 + 5 + 5 + 46 + 5 + 22);
    }
}
