//! `sekimori-e2e`: see `sekimori-e2e --help`.

#![allow(clippy::disallowed_methods, reason = "these tools measure time; the gateway is where it comes in as now_ms")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use sekimori_e2e::crash::{Crash, Delivery};
use sekimori_e2e::dns::Zone;
use sekimori_e2e::images::recipes;
use sekimori_e2e::ledger::Ledger;
use sekimori_e2e::probe::{self, Probe};
use sekimori_e2e::sink::Sink;
use sekimori_e2e::source::Load;
use sekimori_e2e::{bench, cluster, crash, demo, dns, source};

/// Puts a Sekimori gateway under load and keeps the books
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// A gateway, a sink, a stub DNS, a handful of real messages, and what became of each
    Demo {
        /// The gateway's binary
        #[arg(long, default_value = "target/release/sekimori-mta")]
        gateway: PathBuf,
        /// Manifests: a listener on 2525, a route to 127.0.0.1:2526, a tenant for example.com
        #[arg(long, default_value = "manifests/quickstart")]
        manifests: PathBuf,
        /// State directory (its log stands beside it)
        #[arg(long, default_value = "target/demo/state")]
        state: PathBuf,
        /// End after the table; exit 1 if a message did not end as it should
        #[arg(long)]
        once: bool,
    },
    /// kill -9 under load, with a server that flaps: every 250 must arrive
    Crash {
        /// The gateway's binary
        #[arg(long, default_value = "target/release/sekimori-mta")]
        gateway: PathBuf,
        /// Rounds for each delivery mode
        #[arg(long, default_value_t = 50)]
        rounds: u32,
        /// Delivery modes; all if none is given
        #[arg(long, value_enum)]
        delivery: Vec<DeliveryArg>,
    },
    /// Measure the gateway beside Postfix, in one run
    Bench {
        /// The gateway's binary
        #[arg(long, default_value = "target/release/sekimori-mta")]
        gateway: PathBuf,
        /// Messages of one measurement
        #[arg(long, default_value_t = 6_000)]
        messages: u64,
        /// Bytes of one message
        #[arg(long, default_value_t = 50_000)]
        bytes: usize,
        /// Sessions at once
        #[arg(long, default_value_t = 64)]
        sessions: usize,
        /// Append the figures to this file
        #[arg(long)]
        write: Option<PathBuf>,
    },
    /// A sink alone, until Ctrl-C or SIGTERM
    Sink {
        /// Where
        #[arg(long, default_value = "127.0.0.1:2526")]
        listen: SocketAddr,
        /// Print a line for every message that arrives
        #[arg(long)]
        print: bool,
    },
    /// Whether a gateway takes clean mail and refuses the test virus and the test spam; without --gateway, say that there is none
    Probe {
        /// host:port
        #[arg(long)]
        gateway: Option<String>,
        /// RCPT TO
        #[arg(long, default_value = "user@example.com")]
        recipient: String,
        /// MAIL FROM
        #[arg(long, default_value = "probe@sender.example")]
        sender: String,
        /// Seconds to wait until the gateway takes mail
        #[arg(long, default_value_t = 120)]
        wait: u64,
    },
    /// A stub DNS alone, until Ctrl-C: NXDOMAIN for every name
    Dns {
        /// Where
        #[arg(long, default_value = "127.0.0.1:5353")]
        listen: SocketAddr,
    },
    /// A real Kubernetes of several nodes on this machine, without Docker
    #[command(subcommand)]
    Cluster(cluster::cli::Verb),
    /// Container images without a container engine
    #[command(subcommand)]
    Images(Images),
    /// A load alone
    Source {
        /// Where to
        #[arg(long, default_value = "127.0.0.1:2525")]
        target: SocketAddr,
        /// Messages
        #[arg(long, default_value_t = 1000)]
        messages: u64,
        /// Bytes of one message
        #[arg(long, default_value_t = 50_000)]
        bytes: usize,
        /// Sessions at once
        #[arg(long, default_value_t = 16)]
        sessions: usize,
        /// RCPT TO
        #[arg(long, default_value = "user@example.com")]
        to: String,
    },
}

#[derive(Debug, Subcommand)]
enum Images {
    /// Pack our programs and Debian's engines into archives that containerd, podman and docker load
    ///
    /// Prints each image by its digest. The same files make the same digest.
    Build {
        /// Where the archives go
        #[arg(long, default_value = "target/images")]
        out: PathBuf,
        /// Where our built programs are
        #[arg(long, default_value = "target/release")]
        binaries: PathBuf,
        /// The tag
        #[arg(long, default_value = env!("CARGO_PKG_VERSION"))]
        tag: String,
        /// Only these, such as sekimori-mta or clamav; default: all six
        names: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeliveryArg {
    InlineElseQueue,
    Queue,
    Inline,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(anyhow::Error::from).and_then(|runtime| {
        runtime.block_on(async {
            match cli.verb {
                Verb::Cluster(verb) => cluster::cli::run(verb).await,
                verb => run(verb).await.map(|()| 0),
            }
        })
    });
    match done {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(error) => {
            eprintln!("sekimori-e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(verb: Verb) -> anyhow::Result<()> {
    match verb {
        Verb::Demo { gateway, manifests, state, once } => {
            let local = |port| SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
            demo::run(demo::Demo { gateway, manifests, state, smtp: local(2525), sink: local(2526), admin: local(8025), once }).await
        }
        Verb::Crash { gateway, rounds, delivery } => {
            let all = [Delivery::InlineElseQueue, Delivery::Queue, Delivery::Inline];
            let chosen: Vec<Delivery> = delivery
                .iter()
                .map(|d| match d {
                    DeliveryArg::InlineElseQueue => Delivery::InlineElseQueue,
                    DeliveryArg::Queue => Delivery::Queue,
                    DeliveryArg::Inline => Delivery::Inline,
                })
                .collect();
            for mode in if chosen.is_empty() { all.to_vec() } else { chosen } {
                crash::run(&Crash { gateway: gateway.clone(), rounds, delivery: mode }).await?;
            }
            Ok(())
        }
        Verb::Bench { gateway, messages, bytes, sessions, write } => bench::run(bench::Bench { gateway, messages, bytes, sessions, write }).await,
        Verb::Sink { listen, print } => {
            let sink = Sink::start(listen, None, false).await?;
            sink.print(print);
            println!("a sink listens on {}", sink.address);
            stopped().await.map_err(Into::into)
        }
        Verb::Probe { gateway: None, .. } => {
            probe::nothing_to_probe();
            Ok(())
        }
        Verb::Probe { gateway: Some(gateway), recipient, sender, wait } => {
            probe::run(&Probe { gateway, sender, recipient, wait: Duration::from_secs(wait) }).await
        }
        Verb::Dns { listen } => {
            println!("a stub DNS listens on {}", dns::serve(listen, Zone::default()).await?);
            tokio::signal::ctrl_c().await.map_err(Into::into)
        }
        Verb::Cluster(verb) => cluster::cli::run(verb).await.map(drop),
        Verb::Images(Images::Build { out, binaries, tag, names }) => {
            let names = if names.is_empty() { recipes::NAMES.map(str::to_owned).to_vec() } else { names };
            for archive in recipes::build(&names, &binaries, &tag, &out)? {
                println!("{}  {}", archive.file.display(), archive.pinned());
            }
            Ok(())
        }
        Verb::Source { target, messages, bytes, sessions, to } => {
            let ledger = Arc::new(Ledger::default());
            let load = Load { target, sessions, messages, bytes, sender: "source@sender.example".into(), recipient: to, per_session: 50, first: 1 };
            let started = std::time::Instant::now();
            source::run(load, Arc::clone(&ledger), Arc::new(AtomicBool::new(false))).await;
            let seconds = started.elapsed().max(Duration::from_millis(1)).as_secs_f64();
            let balance = ledger.balance();
            println!("{} accepted, {} refused, {:.0} messages/s", balance.acknowledged, balance.refused, balance.acknowledged as f64 / seconds);
            Ok(())
        }
    }
}

/// Ctrl-C or SIGTERM: process 1 of a container does not end on a signal that it does not wait for.
async fn stopped() -> std::io::Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        done = tokio::signal::ctrl_c() => done,
        _ = terminate.recv() => Ok(()),
    }
}
