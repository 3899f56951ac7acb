//! Keys, certificates and kubeconfigs of a cluster that lives for an hour. Nothing here is a model for a real one.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

use base64::Engine as _;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType};

use super::{CONTROL_ADDRESS, node_address};

type Authority = CertifiedIssuer<'static, KeyPair>;

/// Writes all of them into `directory`.
pub(super) fn write(directory: &Path, nodes: usize) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    let cluster = authority(directory, "ca")?;
    let front_proxy = authority(directory, "front-proxy-ca")?;
    let server = Leaf { usage: ExtendedKeyUsagePurpose::ServerAuth, ..Leaf::client("kube-apiserver", None) };
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local", "localhost"];
    let addresses = [Ipv4Addr::LOCALHOST, CONTROL_ADDRESS, Ipv4Addr::new(10, 96, 0, 1)];
    leaf(directory, "apiserver", &cluster, &Leaf { names: &names, addresses: &addresses, ..server })?;
    leaf(directory, "kubelet-client", &cluster, &Leaf::client("kube-apiserver-kubelet-client", Some("system:masters")))?;
    leaf(directory, "front-proxy-client", &front_proxy, &Leaf::client("front-proxy-client", None))?;
    for component in ["kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns"] {
        client(directory, component, &cluster, &Leaf::client(&format!("system:{component}"), None))?;
    }
    client(directory, "admin", &cluster, &Leaf::client("admin", Some("system:masters")))?;
    for number in 1..=nodes {
        let name = format!("node{number}");
        client(directory, &name, &cluster, &Leaf::client(&format!("system:node:{name}"), Some("system:nodes")))?;
        let leaf_of =
            Leaf { usage: ExtendedKeyUsagePurpose::ServerAuth, names: &[&name], addresses: &[node_address(number)], ..Leaf::client(&name, None) };
        leaf(directory, &format!("{name}-server"), &cluster, &leaf_of)?;
    }
    let tokens = KeyPair::generate()?;
    fs::write(directory.join("sa.key"), tokens.serialize_pem())?;
    fs::write(directory.join("sa.pub"), tokens.public_key_pem())?;
    Ok(())
}

/// A certificate that the cluster's authority vouches for, and its key, in PEM.
pub(super) struct Serving {
    pub(super) certificate: String,
    pub(super) key: String,
}

/// Makes one for a server at these addresses, in a cluster that is up.
pub(super) fn serving(directory: &Path, file: &str, addresses: &[Ipv4Addr]) -> anyhow::Result<Serving> {
    let key = KeyPair::from_pem(&fs::read_to_string(directory.join("ca.key"))?)?;
    let authority = Issuer::new(authority_parameters("ca")?, key);
    let of = Leaf { usage: ExtendedKeyUsagePurpose::ServerAuth, addresses, ..Leaf::client(file, None) };
    let (certificate, key) = leaf(directory, file, &authority, &of)?;
    Ok(Serving { certificate, key })
}

fn authority_parameters(name: &str) -> anyhow::Result<CertificateParams> {
    let mut parameters = CertificateParams::new(vec![])?;
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    parameters.distinguished_name.push(DnType::CommonName, name);
    Ok(parameters)
}

fn authority(directory: &Path, name: &str) -> anyhow::Result<Authority> {
    let authority = CertifiedIssuer::self_signed(authority_parameters(name)?, KeyPair::generate()?)?;
    fs::write(directory.join(format!("{name}.crt")), authority.pem())?;
    fs::write(directory.join(format!("{name}.key")), authority.key().serialize_pem())?;
    Ok(authority)
}

struct Leaf<'a> {
    common_name: String,
    organisation: Option<&'a str>,
    usage: ExtendedKeyUsagePurpose,
    names: &'a [&'a str],
    addresses: &'a [Ipv4Addr],
}

impl<'a> Leaf<'a> {
    fn client(common_name: &str, organisation: Option<&'a str>) -> Self {
        Self { common_name: common_name.to_owned(), organisation, usage: ExtendedKeyUsagePurpose::ClientAuth, names: &[], addresses: &[] }
    }
}

/// Certificate and key in PEM, written beside the others too.
fn leaf(directory: &Path, file: &str, authority: &Issuer<'_, KeyPair>, leaf: &Leaf<'_>) -> anyhow::Result<(String, String)> {
    let mut parameters = CertificateParams::new(leaf.names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>())?;
    parameters.subject_alt_names.extend(leaf.addresses.iter().map(|address| SanType::IpAddress(IpAddr::V4(*address))));
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    parameters.extended_key_usages = vec![leaf.usage.clone()];
    parameters.use_authority_key_identifier_extension = true;
    parameters.distinguished_name.push(DnType::CommonName, leaf.common_name.clone());
    if let Some(organisation) = leaf.organisation {
        parameters.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    let key = KeyPair::generate()?;
    let certificate = parameters.signed_by(&key, authority)?.pem();
    fs::write(directory.join(format!("{file}.crt")), &certificate)?;
    fs::write(directory.join(format!("{file}.key")), key.serialize_pem())?;
    Ok((certificate, key.serialize_pem()))
}

/// A client certificate in a kubeconfig that needs no other file.
fn client(directory: &Path, file: &str, authority: &Authority, client: &Leaf<'_>) -> anyhow::Result<()> {
    let (certificate, key) = leaf(directory, file, authority, client)?;
    let data = |pem: &str| base64::engine::general_purpose::STANDARD.encode(pem);
    let text = format!(
        "apiVersion: v1\nkind: Config\nclusters:\n- name: e2e\n  cluster:\n    server: https://{CONTROL_ADDRESS}:6443\n    certificate-authority-data: {}\nusers:\n- name: {file}\n  \
         user:\n    client-certificate-data: {}\n    client-key-data: {}\ncontexts:\n- name: e2e\n  context: {{cluster: e2e, user: {file}}}\ncurrent-context: e2e\n",
        data(&authority.pem()),
        data(&certificate),
        data(&key)
    );
    fs::write(directory.join(format!("{file}.kubeconfig")), text).map_err(Into::into)
}
