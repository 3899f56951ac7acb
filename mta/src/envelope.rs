//! The envelope of a message on its way.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::queue_id::QueueId;
use crate::smtp::Address;

/// Who is connected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Client {
    /// Its address (from the PROXY header where the listener takes one).
    pub address: IpAddr,
    /// What it said in EHLO or HELO.
    pub helo: String,
    /// Whether it spoke ESMTP.
    pub esmtp: bool,
    /// TLS version and cipher, such as `TLSv1.3 TLS13_AES_256_GCM_SHA384`.
    pub tls: Option<String>,
    /// Whether its address may be judged (false when connections come from nodes only, DESIGN.md 7).
    pub address_known: bool,
}

/// One recipient.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipient {
    /// Its address.
    pub address: Address,
    /// The tenant that its domain belongs to: `namespace/name`.
    pub tenant: Arc<str>,
}

/// The envelope.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// The message's name here.
    pub id: QueueId,
    /// When DATA ended, milliseconds since 1970.
    pub received_ms: u64,
    /// Who sent it.
    pub client: Client,
    /// MAIL FROM; `None` is the null reverse-path.
    pub sender: Option<Address>,
    /// RCPT TO, in order, without duplicates.
    pub recipients: Vec<Recipient>,
    /// BODY=8BITMIME was declared.
    pub eight_bit: bool,
    /// SMTPUTF8 was declared.
    pub smtputf8: bool,
}
