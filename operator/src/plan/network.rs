//! Whom the pods may talk to. This is the second fence: the gateway itself checks every destination after DNS. A network without NetworkPolicy support
//! ignores it.

use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sekimori_crds::v1alpha1::engine::External;

use super::{metadata, selector};
use crate::fleet::{Fleet, Place};
use crate::names;
use crate::settings::Settings;

/// What is not the Internet, in IPv4. Tenants' routes lead there only if the fleet's `egress` says so.
const PRIVATE_V4: [&str; 7] = ["10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "224.0.0.0/3"];
/// The same in IPv6.
const PRIVATE_V6: [&str; 4] = ["::1/128", "fc00::/7", "fe80::/10", "ff00::/8"];
const DNS_PORT: u16 = 53;

pub(super) fn network_policy(fleet: &Fleet<'_>, settings: &Settings) -> NetworkPolicy {
    NetworkPolicy {
        metadata: metadata(fleet, names::gateway_object(&fleet.name)),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(fleet)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress(fleet)),
            egress: Some(egress(fleet, settings)),
        }),
    }
}

/// Mail from anywhere; the admin port (health and metrics) from pods only.
fn ingress(fleet: &Fleet<'_>) -> Vec<NetworkPolicyIngressRule> {
    let listeners = fleet.object.spec.listeners.iter().map(|listener| named(&listener.name)).collect();
    let pods = NetworkPolicyPeer { namespace_selector: Some(LabelSelector::default()), ..NetworkPolicyPeer::default() };
    vec![
        NetworkPolicyIngressRule { from: None, ports: Some(listeners) },
        NetworkPolicyIngressRule { from: Some(vec![pods]), ports: Some(vec![named(names::ADMIN_PORT_NAME)]) },
    ]
}

fn egress(fleet: &Fleet<'_>, settings: &Settings) -> Vec<NetworkPolicyEgressRule> {
    let spec = &fleet.object.spec;
    let mut internet = vec![block("0.0.0.0/0", &PRIVATE_V4), block("::/0", &PRIVATE_V6)];
    internet.extend(spec.egress.iter().flat_map(|egress| &egress.allowed_networks).map(|network| block(network, &[])));
    let mut rules = vec![
        NetworkPolicyEgressRule { to: None, ports: Some(vec![numbered("UDP", DNS_PORT), numbered("TCP", DNS_PORT)]) },
        NetworkPolicyEgressRule { to: Some(vec![operator(settings)]), ports: Some(vec![numbered("TCP", settings.stream_port)]) },
        NetworkPolicyEgressRule { to: Some(internet), ports: None },
    ];
    rules.extend(spec.resolver.iter().flat_map(|resolver| &resolver.addresses).filter_map(|address| resolver(address)));
    rules.extend(fleet.engines.iter().filter_map(|engine| match engine.place {
        Place::External(External { address: Some(address), .. }) => service(address),
        _ => None,
    }));
    let mirrors = fleet.in_pod().filter_map(|(_, in_pod, _)| in_pod.signatures.as_ref()?.mirror.as_ref().map(|mirror| &*mirror.url));
    let store = spec.quarantine.as_ref().and_then(|quarantine| quarantine.store.as_ref()?.object_store.as_ref()).map(|store| &*store.url);
    rules.extend(mirrors.chain(store).filter_map(|url| service(&authority(url)?)));
    rules
}

fn operator(settings: &Settings) -> NetworkPolicyPeer {
    let labels = Some(settings.pod_labels.iter().cloned().collect());
    NetworkPolicyPeer { pod_selector: Some(LabelSelector { match_labels: labels, ..LabelSelector::default() }), ..pods_of(&settings.namespace) }
}

/// A resolver of the fleet's own, at its port.
fn resolver(address: &str) -> Option<NetworkPolicyEgressRule> {
    let address: std::net::SocketAddr = address.parse().ok()?;
    let ports = vec![numbered("UDP", address.port()), numbered("TCP", address.port())];
    Some(NetworkPolicyEgressRule { to: Some(vec![host(address.ip())]), ports: Some(ports) })
}

/// Something of the fleet's own at `host:port`. Policies see a pod's port, not its Service's, so a Service's name opens the pods of its namespace; of any
/// other name only the port is known.
fn service(address: &str) -> Option<NetworkPolicyEgressRule> {
    let (name, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    if let Ok(ip) = name.trim_start_matches('[').trim_end_matches(']').parse() {
        return Some(NetworkPolicyEgressRule { to: Some(vec![host(ip)]), ports: Some(vec![numbered("TCP", port)]) });
    }
    let mut labels = name.split('.').skip(1);
    if let (Some(namespace), Some("svc")) = (labels.next(), labels.next()) {
        return Some(NetworkPolicyEgressRule { to: Some(vec![pods_of(namespace)]), ports: None });
    }
    Some(NetworkPolicyEgressRule { to: None, ports: Some(vec![numbered("TCP", port)]) })
}

fn pods_of(namespace: &str) -> NetworkPolicyPeer {
    let labels = [("kubernetes.io/metadata.name".to_owned(), namespace.to_owned())].into();
    NetworkPolicyPeer {
        namespace_selector: Some(LabelSelector { match_labels: Some(labels), ..LabelSelector::default() }),
        ..NetworkPolicyPeer::default()
    }
}

/// `host:port` of a URL, if its scheme has a port of its own or it names one.
fn authority(url: &str) -> Option<String> {
    let (scheme, rest) = url.split_once("://")?;
    let authority = rest.split(['/', '?', '#']).next()?.rsplit('@').next()?;
    let has_port = authority.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    match scheme {
        _ if has_port => Some(authority.to_owned()),
        "http" => Some(format!("{authority}:80")),
        "https" => Some(format!("{authority}:443")),
        // A bucket is no host: where it is says the store's own settings, and public stores are on the Internet.
        _ => None,
    }
}

fn host(ip: std::net::IpAddr) -> NetworkPolicyPeer {
    let length = if ip.is_ipv4() { 32 } else { 128 };
    block(&format!("{ip}/{length}"), &[])
}

fn block(network: &str, except: &[&str]) -> NetworkPolicyPeer {
    let except = (!except.is_empty()).then(|| except.iter().map(|network| (*network).to_owned()).collect());
    NetworkPolicyPeer { ip_block: Some(IPBlock { cidr: network.to_owned(), except }), ..NetworkPolicyPeer::default() }
}

fn named(name: &str) -> NetworkPolicyPort {
    NetworkPolicyPort { port: Some(IntOrString::String(name.to_owned())), protocol: Some("TCP".to_owned()), end_port: None }
}

fn numbered(protocol: &str, port: u16) -> NetworkPolicyPort {
    NetworkPolicyPort { port: Some(IntOrString::Int(i32::from(port))), protocol: Some(protocol.to_owned()), end_port: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_behind_a_url() {
        for (url, place) in [
            ("https://mirror.example/clamav", Some("mirror.example:443")),
            ("http://mirror.mail.svc:8080/x", Some("mirror.mail.svc:8080")),
            ("http://[fd00::1]:8080", Some("[fd00::1]:8080")),
            ("http://[fd00::1]/x", Some("[fd00::1]:80")),
            ("s3://bucket/prefix", None),
            ("nonsense", None),
        ] {
            assert_eq!(authority(url).as_deref(), place, "{url}");
        }
    }

    #[test]
    fn an_address_is_exact_a_service_its_namespace_and_a_name_only_a_port() {
        let to = |address: &str| service(address).expect(address).to;
        assert_eq!(to("10.1.2.3:3310"), Some(vec![block("10.1.2.3/32", &[])]));
        assert_eq!(to("[fd00::9]:3310"), Some(vec![block("fd00::9/128", &[])]));
        assert_eq!(to("rspamd.mail.svc:11333"), Some(vec![pods_of("mail")]));
        assert_eq!(to("rspamd.mail.svc.cluster.local:11333"), Some(vec![pods_of("mail")]));
        assert_eq!(to("rspamd.example.net:11333"), None);
        assert!(service("no-port").is_none());
    }
}
