//! A real Kubernetes of several nodes on this machine, made in seconds and taken down without a trace: API server, etcd, scheduler, controller manager,
//! kubelets, kube-proxy and CoreDNS built from their Go modules; containerd, runc and the CNI plugins from Debian. Each node is a network namespace. Needs
//! root; nothing is reachable from outside, and nothing leaves.
//!
//! Or an existing cluster, by a kubeconfig: then nodes, faults and images are not ours, and the calls about them say so.

mod binaries;
pub mod cli;
mod control_plane;
mod network;
mod node;
mod pki;
pub mod process;
pub mod proxy;
mod quickstart;
mod scale;
mod state;
mod volumes;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::Signal;

use self::control_plane::Component;
use self::process::{Finished, must, run, wait_until};
use self::proxy::Proxy;
pub use self::state::NODES_MAX;
use self::state::{Lock, State};
pub use self::volumes::STORAGE_CLASS;
use crate::images::{archive::Archive, recipes};

/// Where the control plane's namespace is on the nodes' network; DNS is here too, and what a test runs beside the cluster.
pub const CONTROL_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 250, 0, 1);
/// Names below it are asked of a name server that a test runs at [`CONTROL_ADDRESS`] and [`TEST_ZONE_PORT`] (`crate::dns`); while there is none, they are SERVFAIL.
pub const TEST_ZONE: &str = "zone.example";
/// See [`TEST_ZONE`].
pub const TEST_ZONE_PORT: u16 = 5399;
/// Where the API server listens there.
const API_SERVER_PORT: u16 = 6443;
/// An existing cluster's kubeconfig, instead of a cluster of our own.
pub const EXISTING: &str = "SEKIMORI_E2E_KUBECONFIG";
/// A kubectl or helm that says nothing for longer is hung.
const COMMAND_WITHIN: Duration = Duration::from_secs(60);

/// A node's address on the nodes' network.
#[must_use]
pub fn node_address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 250, 0, u8::try_from(10 + number).unwrap_or(u8::MAX))
}

/// What kind of cluster to make.
#[derive(Clone, Debug)]
pub struct Options {
    /// Nodes, 1 to 9.
    pub nodes: usize,
    /// Its name: a-z and 0-9. Clusters of different names do not meet.
    pub name: String,
    /// Where it writes; removed by `down`. Default: `/var/lib/sekimori-cluster/NAME`.
    pub directory: Option<PathBuf>,
    /// Where pods' questions about names outside the cluster go. Default: SERVFAIL at once.
    pub upstream_dns: Option<SocketAddr>,
    /// Image archives for every node, there before the first pod.
    pub images: Vec<PathBuf>,
    /// It stays when this process ends.
    pub detached: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { nodes: 2, name: "e2e".into(), directory: None, upstream_dns: None, images: vec![], detached: false }
    }
}

/// A cluster that answers. Dropped, it is taken down, unless it is detached or not ours.
#[derive(Debug)]
pub struct Cluster {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// Made here; the lock is held while it belongs to this process.
    Own { state: State, lock: Option<Lock> },
    /// Somebody's.
    Existing { kubeconfig: PathBuf },
}

impl Cluster {
    /// Makes a cluster; first clears what a run of the same name that died has left. An error if one of that name is up.
    pub fn up(options: Options) -> anyhow::Result<Self> {
        state::check_name(&options.name)?;
        ensure!((1..=NODES_MAX).contains(&options.nodes), "{} nodes: 1 to {NODES_MAX}, please", options.nodes);
        let binaries = binaries::ensure()?;
        let lock = Lock::take(&options.name)?;
        if let Some(earlier) = State::read(&options.name) {
            let alive = earlier.detached && earlier.complete && control_plane::pid(&earlier, Component::ApiServer).is_some();
            ensure!(!alive, "cluster {0} is up already: `sekimori-e2e cluster down --name {0}` takes it down", options.name);
            take_down(&earlier).context("clearing what an earlier run left")?;
        }
        let directory = options.directory.clone().unwrap_or_else(|| state::default_directory(&options.name));
        ensure!(directory.is_absolute(), "--directory {}: an absolute path, please", directory.display());
        let name = options.name.clone();
        let state = State {
            name,
            nodes: options.nodes,
            directory,
            binaries,
            upstream_dns: options.upstream_dns,
            detached: options.detached,
            complete: false,
        };
        if state.directory.join("log").exists() {
            // A reboot took the state file along with the namespaces and mounts; what is left is files.
            take_down(&state).context("clearing what an earlier run left")?;
        }
        ensure_empty(&state.directory)?;
        state.write()?;
        let mut cluster = Self { kind: Kind::Own { state: state.clone(), lock: Some(lock) } };
        let built = build(&state, &options.images);
        if let Err(error) = built {
            if let Kind::Own { state, .. } = &mut cluster.kind {
                // Dropped below, so taken down.
                state.detached = false;
            }
            return Err(error);
        }
        if let Kind::Own { state, lock } = &mut cluster.kind {
            state.complete = true;
            state.write()?;
            if state.detached {
                *lock = None;
            }
        }
        Ok(cluster)
    }

    /// A cluster that another process made and that is up.
    pub fn attach(name: &str) -> anyhow::Result<Self> {
        let state = State::read(name).with_context(|| format!("there is no cluster {name}: `sekimori-e2e cluster up --name {name}` makes one"))?;
        let alive = state.complete && state.control().exists();
        ensure!(alive, "cluster {name} is not up; `sekimori-e2e cluster down --name {name}` clears what is left of it");
        // Whoever made it takes it down.
        Ok(Self { kind: Kind::Own { state: State { detached: true, ..state }, lock: None } })
    }

    /// Somebody's cluster, by its kubeconfig.
    pub fn existing(kubeconfig: PathBuf) -> anyhow::Result<Self> {
        ensure!(kubeconfig.is_file(), "{}: no such kubeconfig", kubeconfig.display());
        let cluster = Self { kind: Kind::Existing { kubeconfig } };
        cluster.kubectl(&["version"], None).context("does the cluster answer?")?;
        Ok(cluster)
    }

    /// The existing cluster that `SEKIMORI_E2E_KUBECONFIG` names, else one of our own.
    pub fn from_environment(options: Options) -> anyhow::Result<Self> {
        match std::env::var_os(EXISTING) {
            Some(kubeconfig) => Self::existing(kubeconfig.into()),
            None => Self::up(options),
        }
    }

    /// Takes the cluster of this name down, whoever made it and however far it came.
    pub fn down(name: &str) -> anyhow::Result<()> {
        state::check_name(name)?;
        let _lock = Lock::take(name)?;
        let state = State::read(name).with_context(|| format!("there is no cluster {name}"))?;
        take_down(&state)
    }

    /// The first of PREFIX1 to PREFIX9 that nobody uses: two test runs on one machine do not meet, and what a killed run left is cleared by the next.
    pub fn free_name(prefix: &str) -> anyhow::Result<String> {
        for number in 1..=9 {
            let name = format!("{prefix}{number}");
            state::check_name(&name)?;
            let used = State::read(&name).is_some_and(|state| state.detached && control_plane::pid(&state, Component::ApiServer).is_some());
            if !used && Lock::take(&name).is_ok() {
                return Ok(name);
            }
        }
        bail!("{prefix}1 to {prefix}9 are all in use, or this is not root: `sekimori-e2e cluster status` shows them")
    }

    /// Whether nodes, faults and images are in our hands.
    #[must_use]
    pub fn is_own(&self) -> bool {
        matches!(self.kind, Kind::Own { .. })
    }

    /// Its name, or the kubeconfig of a cluster that is not ours.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.kind {
            Kind::Own { state, .. } => state.name.clone(),
            Kind::Existing { kubeconfig } => kubeconfig.display().to_string(),
        }
    }

    /// How many nodes it has; 0 if it is not ours.
    #[must_use]
    pub fn nodes(&self) -> usize {
        self.own().map_or(0, |state| state.nodes)
    }

    /// An administrator's kubeconfig. Its server is reachable from the control plane's namespace only (`run_in_control_namespace`).
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        match &self.kind {
            Kind::Own { state, .. } => state.pki("admin.kubeconfig").into(),
            Kind::Existing { kubeconfig } => kubeconfig.clone(),
        }
    }

    /// `kubectl ARGUMENTS`; standard output, or what it wrote on standard error. It may take a minute.
    pub fn kubectl(&self, arguments: &[&str], stdin: Option<&str>) -> anyhow::Result<String> {
        self.kubectl_within(arguments, stdin, COMMAND_WITHIN)?.checked()
    }

    /// The same with a time limit, and with the outcome as it is.
    pub fn kubectl_within(&self, arguments: &[&str], stdin: Option<&str>, within: Duration) -> anyhow::Result<Finished> {
        run(self.kubectl_command()?.args(arguments), stdin.map(str::as_bytes), within)
    }

    /// The command `kubectl`, for a caller that wants its output as it comes.
    pub fn kubectl_command(&self) -> anyhow::Result<Command> {
        match &self.kind {
            Kind::Own { state, .. } => Ok(control_plane::kubectl_command(state)),
            Kind::Existing { kubeconfig } => {
                let mut command = Command::new(binaries::ensure()?.join("kube"));
                command.arg("kubectl").arg("--kubeconfig").arg(kubeconfig);
                Ok(command)
            }
        }
    }

    /// `helm ARGUMENTS`; standard output, or what it wrote on standard error. It may take five minutes (`--wait`).
    pub fn helm(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut command = self.run_in_control_namespace(binaries::ensure()?.join("helm"));
        command.env("KUBECONFIG", self.kubeconfig());
        // What a client learnt of an API is kept by the server's address, and every cluster here has the same.
        command.env("KUBECACHEDIR", self.scratch().join("kubectl-cache"));
        for (variable, directory) in [("HELM_CACHE_HOME", "cache"), ("HELM_CONFIG_HOME", "config"), ("HELM_DATA_HOME", "data")] {
            // What this machine's user configured for helm is not part of a test.
            command.env(variable, self.scratch().join("helm").join(directory));
        }
        run(command.args(arguments), None, Duration::from_secs(300))?.checked()
    }

    /// A command in the control plane's namespace, where pods, Services and nodes can be reached, and where pods reach it at `CONTROL_ADDRESS`.
    /// With an existing cluster: a command right here.
    #[must_use]
    pub fn run_in_control_namespace(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        match &self.kind {
            Kind::Own { state, .. } => state.control().command(program),
            Kind::Existing { .. } => Command::new(program),
        }
    }

    /// Loads an image archive on every node. A later pod finds it under its tag and under `repository@sha256:...`.
    pub fn load_image(&self, archive: &Path) -> anyhow::Result<Archive> {
        let described = Archive::describe(archive)?;
        let Some(state) = self.own() else {
            bail!("{}: an existing cluster pulls its images; push {} to a registry that it knows", archive.display(), described.reference());
        };
        on_each_node(state, |number| node::load(state, number, archive))?;
        Ok(described)
    }

    /// A node is lost: its processes and pods die at once, its cable is pulled. Clients of Services move to another node.
    pub fn node_kill(&self, number: usize) -> anyhow::Result<()> {
        let state = self.own_node(number)?;
        if let Some(other) = (1..=state.nodes).find(|other| *other != number) {
            network::services_through(state, other)?;
        }
        node::kill(state, number)
    }

    /// A killed node comes back, as after a reboot; returns when it is Ready.
    pub fn node_start(&self, number: usize) -> anyhow::Result<()> {
        let state = self.own_node(number)?;
        node::start(state, number, &[])?;
        node_ready(state, number)
    }

    /// The API server goes away: connections to it are refused.
    pub fn api_server_stop(&self) -> anyhow::Result<()> {
        control_plane::stop(self.own_or_error("the API server")?, Component::ApiServer)
    }

    /// The API server hangs: connections to it are taken, and no answer comes.
    pub fn api_server_pause(&self) -> anyhow::Result<()> {
        control_plane::signal(self.own_or_error("the API server")?, Component::ApiServer, Signal::STOP)
    }

    /// The API server answers again, however it was stopped; returns when it does.
    pub fn api_server_start(&self) -> anyhow::Result<()> {
        let state = self.own_or_error("the API server")?;
        match control_plane::pid(state, Component::ApiServer) {
            Some(_) => control_plane::signal(state, Component::ApiServer, Signal::CONT)?,
            None => control_plane::start(state, Component::ApiServer)?,
        }
        control_plane::ready(state)?;
        // These two end when they lose the API server for long.
        for component in [Component::ControllerManager, Component::Scheduler] {
            if control_plane::pid(state, component).is_none() {
                control_plane::start(state, component)?;
            }
        }
        Ok(())
    }

    /// A proxy before the API server, for clients that are sent to it: it answers badly when it is told to. To be made in the control plane's namespace.
    pub fn fault_proxy(&self) -> anyhow::Result<Proxy> {
        let state = self.own_or_error("the API server")?;
        let pki = state.directory.join("pki");
        let serving = pki::serving(&pki, "fault-proxy", &[CONTROL_ADDRESS])?;
        let at = |port| SocketAddr::new(CONTROL_ADDRESS.into(), port);
        Proxy::start(at(0), at(API_SERVER_PORT), &serving, &pki.join("ca.crt"))
    }

    /// Makes local volumes whose claim is gone available again, empty: there is a fixed number of them. Returns how many. One that a node still has
    /// mounted is left for the next time.
    pub fn recycle_volumes(&self) -> anyhow::Result<usize> {
        let state = self.own_or_error("a local volume")?;
        let released =
            self.kubectl(&["get", "pv", "-o", "jsonpath={range .items[?(@.status.phase==\"Released\")]}{.metadata.name}{\"\\n\"}{end}"], None)?;
        let mut count = 0;
        for name in released.lines() {
            let Some((node, volume)) = volumes::numbers(name) else { continue };
            let directory = volumes::directory(state, node, volume)?;
            if !node::mounts_below(&directory).is_empty() {
                continue;
            }
            self.kubectl(&["delete", "pv", name, "--wait=true"], None)?;
            fs::remove_dir_all(&directory)?;
            self.kubectl(&["apply", "-f", "-"], Some(&volumes::manifest(state, node, volume)?))?;
            count += 1;
        }
        Ok(count)
    }

    /// A directory for what belongs to this cluster and goes with it.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.own().map_or_else(std::env::temp_dir, |state| state.directory.clone())
    }

    /// Where the components' logs are.
    #[must_use]
    pub fn logs(&self) -> Option<PathBuf> {
        self.own().map(|state| state.directory.join("log"))
    }

    fn own(&self) -> Option<&State> {
        match &self.kind {
            Kind::Own { state, .. } => Some(state),
            Kind::Existing { .. } => None,
        }
    }

    fn own_or_error(&self, what: &str) -> anyhow::Result<&State> {
        self.own().with_context(|| format!("{what} of an existing cluster is not ours; unset {EXISTING} for a cluster that is"))
    }

    fn own_node(&self, number: usize) -> anyhow::Result<&State> {
        let state = self.own_or_error("a node")?;
        ensure!((1..=state.nodes).contains(&number), "node {number}: the cluster has nodes 1 to {}", state.nodes);
        Ok(state)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Kind::Own { state, .. } = &self.kind
            && !state.detached
            && let Err(error) = take_down(state)
        {
            eprintln!("cluster {}: {error:#}", state.name);
        }
    }
}

/// Runs what makes a cluster so that a Ctrl-C or a SIGTERM meanwhile ends it in order: with an error, and with what was made taken down.
pub async fn interruptible<T: Send + 'static>(make: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    let mut signals = Signals::new()?;
    let mut making = tokio::task::spawn_blocking(make);
    loop {
        tokio::select! {
            made = &mut making => return made?,
            () = signals.next() => process::interrupt(),
        }
    }
}

/// SIGINT and SIGTERM, heard from the moment on that this is made.
#[derive(Debug)]
pub struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Listens.
    pub fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())? })
    }

    /// The next of either.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

fn build(state: &State, images: &[PathBuf]) -> anyhow::Result<()> {
    fs::create_dir_all(state.directory.join("log"))?;
    pki::write(&state.directory.join("pki"), state.nodes)?;
    let pause = recipes::pause(node::PAUSE)?.write(&state.directory)?;
    let mut images = images.to_vec();
    images.push(pause.file);
    share_mounts()?;
    network::up(state)?;
    control_plane::up(state)?;
    on_each_node(state, |number| node::start(state, number, &images))?;
    control_plane::kubectl(state, &["apply", "-f", "-"], Some(&volumes::manifests(state)?), COMMAND_WITHIN)?.checked()?;
    on_each_node(state, |number| node_ready(state, number))
}

/// Nodes at once.
fn on_each_node(state: &State, work: impl Fn(usize) -> anyhow::Result<()> + Sync) -> anyhow::Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (1..=state.nodes).map(|number| scope.spawn(move || work(number))).collect();
        threads.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| bail!("a node's thread panicked")))
    })
}

fn node_ready(state: &State, number: usize) -> anyhow::Result<()> {
    let name = format!("node/node{number}");
    wait_until(&name, Duration::from_secs(90), || {
        control_plane::kubectl(state, &["wait", "--for=condition=Ready", &name, "--timeout=1s"], None, Duration::from_secs(10))?.checked().map(drop)
    })
    .with_context(|| process::tail(&state.log(&format!("node{number}-kubelet"))))
}

/// Kubelets mount volumes that containers must see, so the root mount must be shared, as on every machine with systemd.
fn share_mounts() -> anyhow::Result<()> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    let shared = text.lines().any(|line| line.split(' ').nth(4) == Some("/") && line.contains(" shared:"));
    if !shared {
        must(Command::new("mount").args(["--make-rshared", "/"]))?;
    }
    Ok(())
}

/// A directory that is to be removed later must hold nothing of somebody else's.
fn ensure_empty(directory: &Path) -> anyhow::Result<()> {
    let mut entries = fs::read_dir(directory).into_iter().flatten();
    ensure!(entries.next().is_none(), "{}: not empty, and `down` would remove it; name another --directory", directory.display());
    fs::create_dir_all(directory).with_context(|| directory.display().to_string())
}

/// Nothing here is worth a farewell: SIGKILL, then all that the nodes left on the machine.
fn take_down(state: &State) -> anyhow::Result<()> {
    let started = Instant::now();
    process::interrupted_no_more();
    for number in 1..=state.nodes {
        node::clear(state, number)?;
    }
    let control = state.control();
    process::kill_all(&control.0, || control.processes())?;
    if control.exists() {
        must(&mut process::words(&format!("ip netns del {}", control.0)))?;
    }
    for entry in fs::read_dir("/var/log/containers").into_iter().flatten().flatten() {
        if fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(&state.directory)) {
            fs::remove_file(entry.path()).ok();
        }
    }
    let mounted = node::mounts_below(&state.directory);
    // A volume may be bound there, and removing the directory would remove what is in it.
    ensure!(mounted.is_empty(), "still mounted, so {} is not removed: {mounted:?}", state.directory.display());
    match fs::remove_dir_all(&state.directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context(state.directory.display().to_string()),
        _ => {}
    }
    state.forget();
    tracing::debug!(cluster = state.name, seconds = started.elapsed().as_secs(), "down");
    Ok(())
}

/// Flags from text.
fn flags(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}
