//! A DNS server on 127.0.0.1, over UDP and TCP on one port, that does what it is told.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, UdpSocket};

/// What the server does with a question.
#[derive(Clone)]
pub(super) enum Act {
    /// Type and data of each answer; the owner is the name that was asked for.
    Answer(Vec<(u16, Vec<u8>)>),
    /// A response code without answers.
    Code(u8),
    /// Nothing.
    Silence,
    /// These bytes after the id.
    Garbage(Vec<u8>),
}

/// Answers longer than this are cut short over UDP.
const UDP_BYTES_MAX: usize = 1232;

pub(super) struct Stub {
    pub(super) address: SocketAddr,
    /// Questions over UDP and over TCP.
    pub(super) asked: Arc<(AtomicU32, AtomicU32)>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl Stub {
    pub(super) async fn start(act: impl Fn(&str, u16) -> Act + Send + Sync + 'static) -> Self {
        let act = Arc::new(act);
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().expect("an address")).await {
                break (udp, tcp);
            }
        };
        let address = udp.local_addr().expect("an address");
        let asked = Arc::new((AtomicU32::new(0), AtomicU32::new(0)));
        let (by_udp, by_tcp, act_udp) = (asked.clone(), asked.clone(), act.clone());
        let udp = tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
                by_udp.0.fetch_add(1, Ordering::SeqCst);
                if let Some(reply) = respond(&buffer[..length], act_udp.as_ref(), true) {
                    udp.send_to(&reply, peer).await.expect("sent");
                }
            }
        });
        let tcp = tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; usize::from(length)];
                    stream.read_exact(&mut query).await.expect("a whole query");
                    by_tcp.1.fetch_add(1, Ordering::SeqCst);
                    if let Some(reply) = respond(&query, act.as_ref(), false) {
                        stream.write_u16(reply.len() as u16).await.expect("sent");
                        stream.write_all(&reply).await.expect("sent");
                    }
                }
            }
        });
        Self { address, asked, tasks: [udp, tcp] }
    }

    pub(super) fn counts(&self) -> (u32, u32) {
        (self.asked.0.load(Ordering::SeqCst), self.asked.1.load(Ordering::SeqCst))
    }
}

/// A name in the form of the wire.
pub(super) fn wire(name: &str) -> Vec<u8> {
    let mut bytes = vec![];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        bytes.push(label.len() as u8);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// TXT data: strings of at most 255 bytes.
pub(super) fn txt(text: &str) -> (u16, Vec<u8>) {
    let mut bytes = vec![];
    for part in text.as_bytes().chunks(255) {
        bytes.push(part.len() as u8);
        bytes.extend_from_slice(part);
    }
    (16, bytes)
}

fn respond(query: &[u8], act: &(dyn Fn(&str, u16) -> Act + Send + Sync), udp: bool) -> Option<Vec<u8>> {
    let mut at = 12;
    let mut labels = vec![];
    while let Some(length) = query.get(at).filter(|length| **length > 0) {
        labels.push(String::from_utf8_lossy(&query[at + 1..at + 1 + usize::from(*length)]).into_owned());
        at += 1 + usize::from(*length);
    }
    let kind = u16::from_be_bytes([query[at + 1], query[at + 2]]);
    let question = &query[12..at + 5];
    let head = |code: u8, cut: bool, answers: u16| {
        let mut reply = query[..2].to_vec();
        reply.extend([0x81 | if cut { 2 } else { 0 }, 0x80 | code, 0, 1]);
        reply.extend(answers.to_be_bytes());
        reply.extend([0; 4]);
        reply.extend(question);
        reply
    };
    match act(&labels.join(".").to_ascii_lowercase(), kind) {
        Act::Silence => None,
        Act::Garbage(bytes) => Some([&query[..2], &bytes].concat()),
        Act::Code(code) => Some(head(code, false, 0)),
        Act::Answer(records) => {
            let mut reply = head(0, false, records.len() as u16);
            for (kind, data) in &records {
                reply.extend([0xc0, 12]);
                reply.extend(kind.to_be_bytes());
                reply.extend([0, 1, 0, 0, 0, 60]);
                reply.extend((data.len() as u16).to_be_bytes());
                reply.extend(data);
            }
            Some(if udp && reply.len() > UDP_BYTES_MAX { head(0, true, 0) } else { reply })
        }
    }
}
