//! `probe`: is the gateway there, and does it judge? A clean message, the EICAR test virus and the GTUBE test spam, each with the answer that is right.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};

use crate::demo::{samples, send_to};

/// What of the demo's samples is sent: what says something about every gateway, whatever its tenants' policies are.
const SENT: [&str; 3] = ["clean, UTF-8", "the EICAR test virus inside a zip", "the GTUBE test spam"];

/// Waits until the gateway takes the clean message, then sends the others. An error if an answer is not the right one.
pub async fn run(gateway: &str, recipient: &str, within: Duration) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut wrong = vec![];
    for sample in samples().into_iter().filter(|sample| SENT.contains(&sample.what)) {
        let (answer, address) = loop {
            let sent = async {
                let address = resolve(gateway).await?;
                Ok::<_, anyhow::Error>((send_to(address, sample.from, recipient, &sample.message).await?, address))
            };
            match sent.await {
                // Not ready, or engines still warm up: that passes.
                Ok((answer, _)) if answer.code / 100 == 4 && started.elapsed() < within => {}
                Err(_) if started.elapsed() < within => {}
                Ok(done) => break done,
                Err(error) => return Err(error.context(format!("{gateway}: no answer for {} s", within.as_secs()))),
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        };
        let right = answer.code / 100 == sample.expected;
        println!("{} {:<36} {} {}   [{address}]", if right { "ok   " } else { "WRONG" }, sample.what, answer.code, answer.text);
        if !right {
            wrong.push(sample.what);
        }
    }
    ensure!(wrong.is_empty(), "not answered as it should be: {}", wrong.join("; "));
    println!("mail flows through {gateway}, after {:.1} s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn resolve(gateway: &str) -> anyhow::Result<SocketAddr> {
    tokio::net::lookup_host(gateway)
        .await
        .with_context(|| format!("{gateway}: host:port, please"))?
        .next()
        .with_context(|| format!("{gateway} has no address"))
}
