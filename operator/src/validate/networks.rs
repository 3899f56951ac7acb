//! Networks that say more than their author may have meant. Only warnings: a wide network can be right.

use ipnet::IpNet;
use sekimori_crds::compile::Reason;
use sekimori_crds::v1alpha1::GatewayFleet;

use super::Findings;
use crate::settings::Settings;

pub(super) fn check(fleet: &GatewayFleet, settings: &Settings, findings: &mut Findings) {
    egress(fleet, settings, findings);
    for (index, listener) in fleet.spec.listeners.iter().enumerate() {
        let networks = listener.proxy_protocol.iter().flat_map(|proxy| &proxy.trusted_networks);
        for (number, network) in networks.enumerate().filter_map(|(number, network)| Some((number, network.parse::<IpNet>().ok()?))) {
            if network.prefix_len() == 0 {
                let message = format!("{network} lets everybody write any client address: list only your load balancers");
                findings.warn(format!("spec.listeners[{index}].proxyProtocol.trustedNetworks[{number}]"), Reason::Suspicious, message);
            }
        }
    }
}

/// Where tenants' routes may lead beside the Internet.
fn egress(fleet: &GatewayFleet, settings: &Settings, findings: &mut Findings) {
    let networks: Vec<(usize, IpNet)> = fleet
        .spec
        .egress
        .iter()
        .flat_map(|egress| &egress.allowed_networks)
        .enumerate()
        .filter_map(|(index, network)| Some((index, network.parse::<IpNet>().ok()?.trunc())))
        .collect();
    for (index, network) in &networks {
        let field = format!("spec.egress.allowedNetworks[{index}]");
        let overlaps = |other: &IpNet| network.contains(other) || other.contains(network);
        let loopback: [IpNet; 2] = [net("127.0.0.0/8"), net("::1/128")];
        if network.prefix_len() == 0 {
            let message = format!("{network} is every address, those inside the cluster too: list the networks of your customers' servers");
            findings.warn(field, Reason::Suspicious, message);
        } else if loopback.iter().any(overlaps) {
            let message = format!("{network} contains the pod's own loopback, where engines and the admin port are: take it out");
            findings.warn(field, Reason::Suspicious, message);
        } else if let Some(cluster) = settings.cluster_networks.iter().find(|cluster| overlaps(cluster)) {
            let message = format!(
                "{network} overlaps {cluster} of the cluster, so a tenant's route may lead to its pods and Services: list something narrower, unless that is meant"
            );
            findings.warn(field, Reason::Suspicious, message);
        } else if let Some((_, wider)) =
            networks.iter().find(|(other, wider)| other != index && wider.contains(network) && (wider != network || other < index))
        {
            findings.warn(field, Reason::Unused, format!("{network} is within {wider} already: take one of the two out"));
        }
    }
}

fn net(text: &str) -> IpNet {
    text.parse().expect("written here as a network")
}
