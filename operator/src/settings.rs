//! What the installation says: the chart's values, as far as decisions depend on them.

use std::net::IpAddr;

use ipnet::IpNet;

/// The installation's own settings. A change of `bind`, `stream_address` or `audience` changes the pods; an upgrade that leaves them alone does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Image of the gateway for a fleet that names none and has none pinned in its status yet.
    pub gateway_image: String,
    /// Image of an idle slot. It is a slot's image, so a new one changes no pod.
    pub idle_image: String,
    /// Where gateways find the operator: `host:port`.
    pub stream_address: String,
    /// Audience of the gateways' tokens.
    pub audience: String,
    /// The certificates that vouch for the operator, PEM.
    pub authority_pem: String,
    /// The operator's namespace.
    pub namespace: String,
    /// The labels of the operator's pods.
    pub pod_labels: Vec<(String, String)>,
    /// The TCP port of the operator's pods that `stream_address` leads to.
    pub stream_port: u16,
    /// The address that listeners and the admin port bind in a pod; `::` takes IPv4 too.
    pub bind: IpAddr,
    /// Whether the cluster can resize a running pod's requests; else an idle slot reserves what one at work does.
    pub resize: bool,
    /// Networks of the cluster's pods, Services and nodes, as far as the installation knows them; only warnings depend on them.
    pub cluster_networks: Vec<IpNet>,
}
