//! Listeners: accept, connection limits, PROXY header, implicit TLS.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use rustls::ServerConfig;
use sekimori_crds::snapshot::ListenerPart;
use sekimori_crds::vocabulary::ListenerTls;
use tokio::io::{AsyncReadExt, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;

use crate::io::gateway::Gateway;
use crate::io::session::{self, Peer};
use crate::smtp::limits;
use crate::smtp::proxy::{self, ProxyProgress};

/// How long a trusted proxy may take for its header.
const PROXY_HEADER_TIMEOUT: Duration = Duration::from_millis(limits::PROXY_HEADER_MS);
/// How long a client may take for the TLS handshake of an implicit-TLS listener or after STARTTLS.
pub(crate) const TLS_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// Connections that the kernel keeps before we accept them.
const BACKLOG: u32 = 1024;

/// A listener's settings in force: they hold for a connection from its start.
#[derive(Debug)]
pub struct Settings {
    /// The part.
    pub part: ListenerPart,
    /// TLS, if there is any.
    pub tls: Option<Arc<ServerConfig>>,
}

/// A bound listener. Dropping `settings`' sender ends its accept loop.
#[derive(Debug)]
pub struct Listener {
    /// Where it is bound.
    pub address: SocketAddr,
    /// The settings for new connections.
    pub settings: watch::Sender<Arc<Settings>>,
}

/// Binds a listener. The accept loop is started by [`Listener::serve`].
///
/// `[::]` takes IPv4 too; on a machine without IPv6 it becomes `0.0.0.0`.
pub fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match bind_exactly(address) {
        Err(error) if address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) && is_without_ipv6(&error) => {
            tracing::info!(%address, %error, "no IPv6 here: bound for IPv4 alone");
            bind_exactly(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), address.port()))
        }
        bound => bound,
    }
}

/// Whether an error says that the machine has no IPv6: the kernel lacks it (EAFNOSUPPORT), or it is switched off (EADDRNOTAVAIL).
fn is_without_ipv6(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    [Errno::AFNOSUPPORT, Errno::ADDRNOTAVAIL].iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

fn bind_exactly(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl Listener {
    /// Starts accepting.
    pub fn serve(socket: TcpListener, settings: Settings, gateway: Arc<Gateway>) -> std::io::Result<Self> {
        let address = socket.local_addr()?;
        let (sender, receiver) = watch::channel(Arc::new(settings));
        tokio::spawn(accept(socket, receiver, gateway));
        Ok(Self { address, settings: sender })
    }
}

/// Open connections of one listener.
#[derive(Debug, Default)]
struct Open {
    total: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// A counted connection: given back on drop.
pub(crate) struct Slot {
    open: Arc<Mutex<Open>>,
    address: IpAddr,
}

impl Slot {
    /// Counts a connection of `address`, unless a limit is reached: then its name. Behind an address that hides who connects there may be many clients.
    fn take(open: &Arc<Mutex<Open>>, address: IpAddr, address_known: bool, part: &ListenerPart) -> Result<Self, &'static str> {
        let mut counts = open.lock().expect("no panic while held");
        if counts.total >= part.limits.connections as usize {
            return Err("connections");
        }
        let held = counts.by_address.entry(address).or_insert(0);
        if address_known && *held >= part.limits.connections_per_address as usize {
            return Err("connectionsPerAddress");
        }
        *held += 1;
        counts.total += 1;
        Ok(Self { open: Arc::clone(open), address })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut counts = self.open.lock().expect("no panic while held");
        counts.total -= 1;
        if let Some(held) = counts.by_address.get_mut(&self.address) {
            *held -= 1;
            if *held == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

async fn accept(socket: TcpListener, mut settings: watch::Receiver<Arc<Settings>>, gateway: Arc<Gateway>) {
    let open = Arc::new(Mutex::new(Open::default()));
    // Connections behind a proxy are counted by the proxy's word, so its own connections are only bounded in all.
    let pending = Arc::new(Mutex::new(Open::default()));
    let mut stopping = gateway.stopping.subscribe();
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            gone = settings.changed() => if gone.is_err() { return } else { continue },
            _ = stopping.wait_for(|stop| *stop) => return,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, mostly: give sessions time to end instead of spinning.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let settings = Arc::clone(&settings.borrow());
        let pending_slot = {
            let mut counts = pending.lock().expect("no panic while held");
            let bounded = counts.total < settings.part.limits.connections as usize * 2;
            if bounded {
                counts.total += 1;
                *counts.by_address.entry(peer.ip()).or_insert(0) += 1;
            }
            bounded.then(|| Slot { open: Arc::clone(&pending), address: peer.ip() })
        };
        let Some(pending_slot) = pending_slot else {
            gateway.metrics.shed.with_label_values(&["connections"]).inc();
            continue;
        };
        let (gateway, open) = (Arc::clone(&gateway), Arc::clone(&open));
        tokio::spawn(async move {
            connection(stream, peer, settings, gateway, open).await;
            drop(pending_slot);
        });
    }
}

async fn connection(mut stream: TcpStream, peer: SocketAddr, settings: Arc<Settings>, gateway: Arc<Gateway>, open: Arc<Mutex<Open>>) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    let mut buffer = BytesMut::new();
    let proxied = settings.part.proxy_trusted_networks.as_ref().is_some_and(|nets| nets.iter().any(|net| net.contains(&peer.ip().to_canonical())));
    let mut client = peer.ip().to_canonical();
    if proxied {
        match tokio::time::timeout(PROXY_HEADER_TIMEOUT, proxy_header(&mut stream, &mut buffer)).await {
            Ok(Ok(Some(source))) => client = source.to_canonical(),
            Ok(Ok(None)) => {}
            Ok(Err(error)) => {
                tracing::warn!(proxy = %peer, listener = settings.part.name, %error, "no usable PROXY header from a trusted proxy: connection closed");
                return;
            }
            Err(_) => {
                tracing::warn!(proxy = %peer, listener = settings.part.name, "a trusted proxy sent no PROXY header within 3 s: connection closed");
                return;
            }
        }
    }
    let address_known = gateway.meet(client);
    let slot = match Slot::take(&open, client, address_known, &settings.part) {
        Ok(slot) => slot,
        Err(limit) => {
            gateway.metrics.shed.with_label_values(&[limit]).inc();
            refuse(stream, &settings, limit).await;
            return;
        }
    };
    let peer = Peer { address: client, address_known, listener: Arc::clone(&settings) };
    let gauge = gateway.metrics.connections.with_label_values(&[&settings.part.name]);
    gauge.inc();
    if settings.part.tls == ListenerTls::Implicit {
        if let Some(tls) = settings.tls.clone() {
            // What came right behind a PROXY header is the beginning of the handshake; it must neither get lost nor count as said inside of TLS.
            let (read, write) = stream.into_split();
            let stream = tokio::io::join(AsyncReadExt::chain(std::io::Cursor::new(buffer), read), write);
            match tokio::time::timeout(TLS_HANDSHAKE_TIMEOUT, tokio_rustls::TlsAcceptor::from(tls).accept(stream)).await {
                Ok(Ok(stream)) => session::serve_tls(stream, peer, gateway).await,
                Ok(Err(error)) => tracing::debug!(client = %client, %error, "TLS handshake failed"),
                Err(_) => tracing::debug!(client = %client, "TLS handshake timed out"),
            }
        }
    } else {
        session::serve(stream, buffer, peer, gateway).await;
    }
    gauge.dec();
    drop(slot);
}

/// Best effort: nobody waits for a client that is one too many.
async fn refuse(mut stream: TcpStream, settings: &Settings, limit: &str) {
    if settings.part.tls == ListenerTls::Implicit {
        return;
    }
    let text = match limit {
        "connections" => "421 4.3.2 Too many connections, try again later\r\n",
        _ => "421 4.7.0 Too many connections from your address, try again later\r\n",
    };
    if let Err(error) = tokio::time::timeout(Duration::from_secs(1), stream.write_all(text.as_bytes())).await {
        tracing::debug!(%error, "refusal not written");
    }
}

/// Reads a PROXY header; what follows it stays in the buffer. `None`: the proxy speaks for itself (LOCAL, UNKNOWN).
async fn proxy_header(stream: &mut TcpStream, buffer: &mut BytesMut) -> std::io::Result<Option<IpAddr>> {
    loop {
        match proxy::parse(buffer) {
            Ok(ProxyProgress::More) => {}
            Ok(ProxyProgress::Done { header, consumed }) => {
                buffer.advance(consumed);
                return Ok(header.source.map(|address| address.ip()));
            }
            Err(error) => return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, error)),
        }
        if stream.read_buf(buffer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
}
