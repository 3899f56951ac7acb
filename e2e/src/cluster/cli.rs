//! `sekimori-e2e cluster ...`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::ensure;
use clap::{Args, Subcommand};

use super::quickstart::Quickstart;
use super::scale::{self, Scale};
use super::{Cluster, Options, Signals, interruptible, state};

/// What to do with a cluster.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Make a cluster of real nodes and keep it until Ctrl-C
    ///
    /// The first time, Kubernetes, etcd, CoreDNS and Helm are built from their Go modules: 7 minutes on 2 cores. After that a cluster is up within 10 seconds. Needs
    /// root, and Debian's containerd, runc, containernetworking-plugins, iptables, conntrack, iproute2 and gcc (scripts/bootstrap.sh cluster).
    Up(Up),
    /// A cluster with the operator, a fleet, a tenant and a mail server behind it, until Ctrl-C: what `make cluster` runs
    ///
    /// Packs images of our built programs, makes a cluster, installs both charts with quickstart.enabled=true, and waits until a clean message gets through and the
    /// test virus and the test spam do not.
    Quickstart(Quickstart),
    /// Measure the whole at 100,000 tenants on a cluster of its own: what `make bench-cluster` runs
    ///
    /// Makes a cluster, installs both charts, makes a fleet and the tenants, and measures: from an API write to a 250 from every gateway at 1,000 changes a minute, the
    /// operator's memory, a new gateway's snapshot, the CPU of an idle operator. Says beside each figure whether its goal was reached; a missed one is no error.
    /// Takes the cluster down at the end, and on Ctrl-C. With 100,000 tenants it takes most of an hour: statuses are written at a bounded rate.
    Scale(Box<Scale>),
    /// Take a cluster down, also one whose process died; nothing of it is left
    Down(Name),
    /// kubectl on a cluster; everything after `kubectl` is kubectl's
    Kubectl {
        #[command(flatten)]
        name: Name,
        /// Arguments of kubectl
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// helm on a cluster; everything after `helm` is helm's
    Helm {
        #[command(flatten)]
        name: Name,
        /// Arguments of helm
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Any command beside the control plane, where pods and Services can be reached; KUBECONFIG is set
    Run {
        #[command(flatten)]
        name: Name,
        /// The command; it finds this cluster's kubectl and helm, and `kubectl sekimori`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Load image archives on every node
    Load {
        #[command(flatten)]
        name: Name,
        /// Archives of `sekimori-e2e images build`
        archives: Vec<PathBuf>,
    },
    /// Lose a node: everything on it dies at once, its cable is pulled
    NodeKill {
        #[command(flatten)]
        name: Name,
        /// Its number, from 1
        node: usize,
    },
    /// Bring a lost node back
    NodeStart {
        #[command(flatten)]
        name: Name,
        /// Its number, from 1
        node: usize,
    },
    /// Which clusters there are
    Status,
}

/// Which cluster.
#[derive(Args, Clone, Debug)]
pub struct Name {
    /// The cluster's name; clusters of different names do not meet
    #[arg(long, default_value = "dev")]
    pub name: String,
}

/// What kind of cluster.
#[derive(Args, Debug)]
pub struct Up {
    #[command(flatten)]
    name: Name,
    /// Nodes
    #[arg(long, default_value_t = 2)]
    nodes: usize,
    /// Where it writes; `down` removes it
    #[arg(long)]
    directory: Option<PathBuf>,
    /// Where pods' questions about names outside the cluster go; without it they fail at once
    #[arg(long)]
    upstream_dns: Option<SocketAddr>,
    /// Image archive for every node; may be given several times
    #[arg(long)]
    image: Vec<PathBuf>,
    /// Return when it is up, and leave it running
    #[arg(long)]
    detach: bool,
}

/// Does it. Returns the exit code.
pub async fn run(verb: Verb) -> anyhow::Result<i32> {
    match verb {
        Verb::Up(up) => return self::up(up).await.map(|()| 0),
        Verb::Quickstart(quickstart) => return self::quickstart(quickstart).await.map(|()| 0),
        Verb::Scale(scale) => return scale::main(*scale).await,
        Verb::Down(name) => Cluster::down(&name.name)?,
        Verb::Kubectl { name, arguments } => return inherit(Cluster::attach(&name.name)?.kubectl_command()?.args(arguments)),
        Verb::Helm { name, arguments } => {
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            print!("{}", Cluster::attach(&name.name)?.helm(&arguments)?);
        }
        Verb::Run { name, command } => {
            let cluster = Cluster::attach(&name.name)?;
            let (program, arguments) = command.split_first().unzip();
            let mut command = cluster.run_in_control_namespace(program.map_or("", String::as_str));
            return inherit(
                command
                    .args(arguments.unwrap_or_default())
                    .env("PATH", tools(&cluster)?)
                    .env("KUBECONFIG", cluster.kubeconfig())
                    .env("KUBECACHEDIR", cluster.scratch().join("kubectl-cache")),
            );
        }
        Verb::Load { name, archives } => {
            let cluster = Cluster::attach(&name.name)?;
            for archive in archives {
                println!("{}", cluster.load_image(&archive)?.pinned());
            }
        }
        Verb::NodeKill { name, node } => Cluster::attach(&name.name)?.node_kill(node)?,
        Verb::NodeStart { name, node } => Cluster::attach(&name.name)?.node_start(node)?,
        Verb::Status => status()?,
    }
    Ok(0)
}

async fn up(up: Up) -> anyhow::Result<()> {
    let started = Instant::now();
    let name = up.name.name.clone();
    let options = Options {
        nodes: up.nodes,
        name: up.name.name,
        directory: up.directory,
        upstream_dns: up.upstream_dns,
        images: up.image,
        detached: up.detach,
    };
    until_interrupt(&name, up.detach, move || {
        let cluster = Cluster::up(options)?;
        let (name, us) = (cluster.name(), us());
        println!(
            "cluster {name} is up after {:.1} s: {} nodes\n  {us} cluster kubectl --name {name} get nodes\n  {us} cluster run --name {name} bash     # KUBECONFIG is set \
             there, pods and Services answer\n  {us} cluster down --name {name}",
            started.elapsed().as_secs_f64(),
            cluster.nodes()
        );
        Ok(cluster)
    })
    .await
}

async fn quickstart(quickstart: Quickstart) -> anyhow::Result<()> {
    let (name, detach) = (quickstart.name.name.clone(), quickstart.detach);
    until_interrupt(&name, detach, move || {
        let cluster = quickstart.up()?;
        quickstart.next();
        Ok(cluster)
    })
    .await
}

/// Makes a cluster and keeps it until Ctrl-C, unless it is detached.
async fn until_interrupt(name: &str, detach: bool, make: impl FnOnce() -> anyhow::Result<Cluster> + Send + 'static) -> anyhow::Result<()> {
    // Heard, not suffered, from the first moment on: the cluster must be away before this process is.
    let mut signals = Signals::new()?;
    let cluster = interruptible(make).await?;
    if detach {
        return Ok(());
    }
    println!("Until Ctrl-C.");
    signals.next().await;
    println!("taking {name} down");
    drop(cluster);
    ensure!(state::State::read(name).is_none(), "something of cluster {name} is left: `sekimori-e2e cluster down --name {name}` tries again");
    Ok(())
}

fn status() -> anyhow::Result<()> {
    let names = state::names();
    if names.is_empty() {
        println!("no cluster; `sekimori-e2e cluster up` makes one");
    }
    for name in names {
        match Cluster::attach(&name).and_then(|cluster| cluster.kubectl(&["get", "nodes"], None)) {
            Ok(nodes) => println!("{name}: up\n{nodes}"),
            Err(error) => println!("{name}: {error:#}"),
        }
    }
    Ok(())
}

/// Runs a command with this process's own input and output.
fn inherit(command: &mut std::process::Command) -> anyhow::Result<i32> {
    Ok(command.status()?.code().unwrap_or(1))
}

/// This program as it was called, for commands to copy.
pub(super) fn us() -> String {
    std::env::args().next().unwrap_or_else(|| "sekimori-e2e".into())
}

/// A PATH with the kubectl and helm of this cluster's version, and our own programs, before everything else.
fn tools(cluster: &Cluster) -> anyhow::Result<std::ffi::OsString> {
    let (binaries, links) = (super::binaries::ensure()?, cluster.scratch().join("bin"));
    std::fs::create_dir_all(&links)?;
    let kubectl = links.join("kubectl");
    if !kubectl.exists() {
        // One binary for everything of Kubernetes; its name says what it is.
        std::os::unix::fs::symlink(binaries.join("kube"), &kubectl)?;
    }
    let ours = std::env::current_exe()?.parent().map(std::path::Path::to_path_buf);
    let before = std::env::var_os("PATH").unwrap_or_default();
    let directories = [links, binaries].into_iter().chain(ours).chain(std::env::split_paths(&before));
    Ok(std::env::join_paths(directories)?)
}
