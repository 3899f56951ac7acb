//! A stub name server: a zone in memory over UDP and TCP, NXDOMAIN for everything else. For closed networks and for tests.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, RwLock};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, MX, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UdpSocket};

/// A zone: lower-case names without the last dot.
#[derive(Clone, Debug, Default)]
pub struct Zone {
    records: HashMap<String, Vec<RData>>,
}

impl Zone {
    /// Adds a TXT record, cut into strings of 255 bytes.
    pub fn txt(mut self, name: &str, text: &str) -> Self {
        let pieces: Vec<String> = text.as_bytes().chunks(255).map(|piece| String::from_utf8_lossy(piece).into_owned()).collect();
        self.add(name, RData::TXT(TXT::new(pieces)));
        self
    }

    /// Adds an address.
    pub fn address(mut self, name: &str, address: IpAddr) -> Self {
        let record = match address {
            IpAddr::V4(v4) => RData::A(A(v4)),
            IpAddr::V6(v6) => RData::AAAA(AAAA(v6)),
        };
        self.add(name, record);
        self
    }

    /// Adds an MX record. `exchange` must be a domain name.
    pub fn mx(mut self, name: &str, preference: u16, exchange: &str) -> Self {
        if let Ok(exchange) = Name::from_ascii(exchange) {
            self.add(name, RData::MX(MX::new(preference, exchange)));
        }
        self
    }

    fn add(&mut self, name: &str, record: RData) {
        self.records.entry(name.trim_end_matches('.').to_ascii_lowercase()).or_default().push(record);
    }

    /// The answer to a query; `None` for what is no query.
    fn answer(&self, query: &[u8], truncate_at: usize) -> Option<Vec<u8>> {
        let query = Message::from_vec(query).ok()?;
        let question = query.queries.first()?.clone();
        let name = question.name().to_ascii().trim_end_matches('.').to_ascii_lowercase();
        let mut answer = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_query(question.clone());
        match self.records.get(&name) {
            None => answer.metadata.response_code = ResponseCode::NXDomain,
            Some(records) => {
                for data in records.iter().filter(|data| question.query_type() == RecordType::ANY || data.record_type() == question.query_type()) {
                    answer.add_answer(Record::from_rdata(question.name().clone(), 60, data.clone()));
                }
            }
        }
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= truncate_at {
            return Some(bytes);
        }
        answer.answers.clear();
        answer.metadata.truncation = true;
        answer.to_vec().ok()
    }
}

/// The same port for both; with port 0, one that is free for both.
async fn bind(address: SocketAddr) -> std::io::Result<(UdpSocket, TcpListener)> {
    let mut tries = 0;
    loop {
        let tcp = TcpListener::bind(address).await?;
        match UdpSocket::bind(tcp.local_addr()?).await {
            Ok(udp) => return Ok((udp, tcp)),
            Err(error) if address.port() != 0 || tries == 50 => return Err(error),
            Err(_) => tries += 1,
        }
    }
}

/// A zone that may be changed while it is served.
pub type Changing = Arc<RwLock<Zone>>;

/// Serves a zone until the process ends; where.
pub async fn serve(address: SocketAddr, zone: Zone) -> std::io::Result<SocketAddr> {
    serve_changing(address, Arc::new(RwLock::new(zone))).await
}

/// The same with one that may be changed.
pub async fn serve_changing(address: SocketAddr, zone: Changing) -> std::io::Result<SocketAddr> {
    let answer = |zone: &Changing, query: &[u8], truncate_at| zone.read().expect("no panic while held").answer(query, truncate_at);
    let (udp, tcp) = bind(address).await?;
    let address = udp.local_addr()?;
    let udp_zone = Arc::clone(&zone);
    tokio::spawn(async move {
        let mut buffer = vec![0; 4096];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer).await {
            if let Some(answer) = answer(&udp_zone, buffer.get(..length).unwrap_or_default(), 1232)
                && let Err(error) = udp.send_to(&answer, peer).await
            {
                tracing::debug!(%error, "a DNS answer was not sent");
            }
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let zone = Arc::clone(&zone);
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u16().await {
                    let mut query = vec![0; usize::from(length)];
                    if stream.read_exact(&mut query).await.is_err() {
                        return;
                    }
                    let Some(answer) = answer(&zone, &query, usize::from(u16::MAX)) else { return };
                    let mut framed = (answer.len() as u16).to_be_bytes().to_vec();
                    framed.extend_from_slice(&answer);
                    if stream.write_all(&framed).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    Ok(address)
}
