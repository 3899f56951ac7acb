//! A DNS server that knows nothing, at once: an engine that waits for a silent one measures the waiting.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Answers NXDOMAIN to everything until it is dropped.
pub(super) struct Stub {
    pub(super) port: u16,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stub {
    pub(super) fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
        socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a timeout");
        let port = socket.local_addr().expect("bound").port();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut question = [0; 4096];
            while !stopped.load(Ordering::SeqCst) {
                if let Ok((length, from)) = socket.recv_from(&mut question) {
                    // A client that is gone needs no answer.
                    if let Some(answer) = question.get(..length).and_then(nxdomain) {
                        drop(socket.send_to(&answer, from));
                    }
                }
            }
        });
        Self { port, stop, thread: Some(thread) }
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

/// The question with QR, RD, RA and NXDOMAIN set, and the additional section (EDNS) taken off.
fn nxdomain(question: &[u8]) -> Option<Vec<u8>> {
    let (head, rest) = question.split_at_checked(12)?;
    let name = rest.iter().position(|byte| *byte == 0)?;
    let mut answer = head.to_vec();
    answer.splice(2..4, [0x81, 0x83]);
    answer.splice(6..12, [0; 6]);
    answer.extend_from_slice(rest.get(..name + 5)?);
    Some(answer)
}
