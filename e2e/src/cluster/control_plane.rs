//! etcd, the API server, the controller manager, the scheduler and DNS, all in the control plane's namespace.

use std::fs;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustix::process::Signal;

use super::process::{self, Finished, run, tail, wait_until};
use super::state::State;
use super::{CONTROL_ADDRESS, Cluster, TEST_ZONE, TEST_ZONE_PORT, flags};

/// A component of the control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Component {
    Etcd,
    ApiServer,
    ControllerManager,
    Scheduler,
    Dns,
}

impl Component {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Etcd => "etcd",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Dns => "coredns",
        }
    }
}

/// Starts all of it and waits until it answers.
pub(super) fn up(state: &State) -> anyhow::Result<()> {
    start(state, Component::Etcd)?;
    start(state, Component::ApiServer)?;
    ready(state)?;
    start(state, Component::ControllerManager)?;
    start(state, Component::Scheduler)?;
    let role = "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: system:coredns}\nrules:\n\
        - {apiGroups: [\"\"], resources: [services, namespaces], verbs: [list, watch]}\n\
        - {apiGroups: [discovery.k8s.io], resources: [endpointslices], verbs: [list, watch]}\n---\n\
        apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: system:coredns}\n\
        roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: system:coredns}\n\
        subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: system:coredns}]\n";
    kubectl(state, &["apply", "-f", "-"], Some(role), Duration::from_secs(20))?.checked()?;
    start(state, Component::Dns)?;
    wait_until("cluster DNS", Duration::from_secs(30), || dns_ready(state)).with_context(|| tail(&state.log("coredns")))
}

/// `kubectl` in the control plane's namespace.
pub(super) fn kubectl(state: &State, arguments: &[&str], stdin: Option<&str>, within: Duration) -> anyhow::Result<Finished> {
    run(kubectl_command(state).args(arguments), stdin.map(str::as_bytes), within)
}

/// The command, for a caller that wants to see its output as it comes.
pub(super) fn kubectl_command(state: &State) -> Command {
    let mut command = state.control().command(state.binary("kube"));
    command.args(["kubectl", "--kubeconfig", &state.pki("admin.kubeconfig")]);
    // kubectl keeps what it learnt of an API by the server's address, and every cluster here has the same: a cache shared by two would know kinds of the other.
    command.arg(format!("--cache-dir={}", state.directory.join("kubectl-cache").display()));
    command
}

/// Waits until the API server answers. The controller manager ends at once if the roles that the API server makes are not there yet.
pub(super) fn ready(state: &State) -> anyhow::Result<()> {
    wait_until("the API server", Duration::from_secs(90), || {
        kubectl(state, &["get", "--raw", "/readyz"], None, Duration::from_secs(10))?.checked().map(drop)
    })
    .with_context(|| tail(&state.log(Component::ApiServer.name())))
}

pub(super) fn start(state: &State, component: Component) -> anyhow::Result<()> {
    let command_line = command_line(state, component)?;
    let id = state.control().start(&state.log(component.name()), &command_line)?;
    fs::write(pid_file(state, component), id.to_string()).map_err(Into::into)
}

/// The component's process, checked: a number is used again one day.
pub(super) fn pid(state: &State, component: Component) -> Option<u32> {
    let id = fs::read_to_string(pid_file(state, component)).ok()?.trim().parse().ok()?;
    state.control().is_component(id, &state.directory.display().to_string()).then_some(id)
}

/// Ends a component: SIGTERM, and SIGKILL after three seconds, because an API server without its etcd would never end.
pub(super) fn stop(state: &State, component: Component) -> anyhow::Result<()> {
    let Some(id) = pid(state, component) else { return Ok(()) };
    process::signal(id, Signal::CONT);
    process::signal(id, Signal::TERM);
    let gone = || {
        ensure!(pid(state, component).is_none(), "process {id} still runs");
        Ok(())
    };
    wait_until(component.name(), Duration::from_secs(3), gone)
        .or_else(|_| process::kill_all(component.name(), || pid(state, component).into_iter().collect()))
}

/// A signal to a component that must be running.
pub(super) fn signal(state: &State, component: Component, signal: Signal) -> anyhow::Result<()> {
    let id = pid(state, component).with_context(|| format!("{} does not run: {}", component.name(), tail(&state.log(component.name()))))?;
    process::signal(id, signal);
    Ok(())
}

/// Those of its processes that work for clients, by name.
pub(super) fn processes(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, u32)>> {
    let state = cluster.own_or_error("the control plane")?;
    let process = |component: Component| Some((component.name(), pid(state, component)?));
    Ok([Component::ApiServer, Component::Etcd, Component::ControllerManager].into_iter().filter_map(process).collect())
}

fn pid_file(state: &State, component: Component) -> std::path::PathBuf {
    state.directory.join(format!("{}.pid", component.name()))
}

fn command_line(state: &State, component: Component) -> anyhow::Result<Vec<String>> {
    let pki = |file: &str| state.pki(file);
    let kubeconfigs = |component: &str| {
        let file = pki(&format!("{component}.kubeconfig"));
        ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"].map(|flag| format!("--{flag}={file}"))
    };
    let (program, mut more) = match component {
        Component::Etcd => {
            let data = state.directory.join("etcd").display().to_string();
            // Ten minutes of revisions of 100,000 objects are more than the 2 GiB that etcd takes by itself.
            let text = "--name=e2e --listen-client-urls=http://127.0.0.1:2379 --advertise-client-urls=http://127.0.0.1:2379 --listen-peer-urls=http://127.0.0.1:2380 \
                        --initial-advertise-peer-urls=http://127.0.0.1:2380 --initial-cluster=e2e=http://127.0.0.1:2380 --unsafe-no-fsync --quota-backend-bytes=8589934592 --log-level=warn";
            (vec![state.binary("etcd")], [flags(text), vec![format!("--data-dir={data}")]].concat())
        }
        Component::ApiServer => (vec![state.binary("kube"), component.name().into()], api_server_flags(state)),
        Component::ControllerManager => {
            let text = "--use-service-account-credentials=true --leader-elect=false --bind-address=127.0.0.1 --allocate-node-cidrs=false --node-monitor-grace-period=20s";
            let files = [
                ("root-ca-file", "ca.crt"),
                ("service-account-private-key-file", "sa.key"),
                ("cluster-signing-cert-file", "ca.crt"),
                ("cluster-signing-key-file", "ca.key"),
            ];
            let files = files.iter().map(|(flag, file)| format!("--{flag}={}", pki(file))).collect();
            (vec![state.binary("kube"), component.name().into()], [flags(text), files, kubeconfigs(component.name()).to_vec()].concat())
        }
        Component::Scheduler => {
            let text = flags("--leader-elect=false --bind-address=127.0.0.1");
            (vec![state.binary("kube"), component.name().into()], [text, kubeconfigs(component.name()).to_vec()].concat())
        }
        Component::Dns => {
            let file = state.directory.join("Corefile");
            fs::write(&file, corefile(state))?;
            (vec![state.binary("coredns")], vec!["-conf".into(), file.display().to_string()])
        }
    };
    let mut line = program;
    line.append(&mut more);
    Ok(line)
}

fn api_server_flags(state: &State) -> Vec<String> {
    let text = "--etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range=10.96.0.0/24 --secure-port=6443 --authorization-mode=Node,RBAC \
                --service-account-issuer=https://kubernetes.default.svc --kubelet-preferred-address-types=InternalIP --allow-privileged=true \
                --enable-admission-plugins=NodeRestriction --requestheader-allowed-names=front-proxy-client --requestheader-username-headers=X-Remote-User \
                --requestheader-group-headers=X-Remote-Group --requestheader-extra-headers-prefix=X-Remote-Extra-";
    let files = [
        ("tls-cert-file", "apiserver.crt"),
        ("tls-private-key-file", "apiserver.key"),
        ("client-ca-file", "ca.crt"),
        ("service-account-key-file", "sa.pub"),
        ("service-account-signing-key-file", "sa.key"),
        ("kubelet-client-certificate", "kubelet-client.crt"),
        ("kubelet-client-key", "kubelet-client.key"),
        ("kubelet-certificate-authority", "ca.crt"),
        ("requestheader-client-ca-file", "front-proxy-ca.crt"),
        ("proxy-client-cert-file", "front-proxy-client.crt"),
        ("proxy-client-key-file", "front-proxy-client.key"),
    ];
    let files = files.iter().map(|(flag, file)| format!("--{flag}={}", state.pki(file)));
    flags(text).into_iter().chain(files).chain([format!("--advertise-address={CONTROL_ADDRESS}")]).collect()
}

/// TTL and cache of a second, so that tests see changes soon. Without an upstream every other name is SERVFAIL at once.
fn corefile(state: &State) -> String {
    let (through, forward) = match state.upstream_dns {
        Some(upstream) => ("    fallthrough in-addr.arpa\n".to_owned(), format!("  forward . {upstream}\n")),
        None => Default::default(),
    };
    format!(
        ". {{\n  bind {CONTROL_ADDRESS}\n  errors\n  health 127.0.0.1:10053\n  ready 127.0.0.1:10054\n  kubernetes cluster.local in-addr.arpa {{\n    \
         kubeconfig {}\n    ttl 1\n{through}  }}\n  forward {TEST_ZONE} {CONTROL_ADDRESS}:{TEST_ZONE_PORT} {{\n    max_fails 0\n  }}\n{forward}  cache 1\n}}\n",
        state.pki("coredns.kubeconfig")
    )
}

/// CoreDNS's `/ready`, asked from inside the namespace.
fn dns_ready(state: &State) -> anyhow::Result<()> {
    let script = "exec 3<>/dev/tcp/127.0.0.1/10054; printf 'GET /ready HTTP/1.0\\r\\n\\r\\n' >&3; head -1 <&3";
    let answer = run(state.control().command("bash").args(["-c", script]), None, Duration::from_secs(5))?.checked()?;
    ensure!(answer.contains(" 200"), "/ready says {}", answer.trim());
    Ok(())
}
