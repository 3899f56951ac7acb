//! Every name that the operator writes into a cluster: labels, annotations, objects, containers, paths. Names are part of the contract with users,
//! dashboards and older operators: a changed name leaves orphans behind.

use data_encoding::HEXLOWER;
use sha2::{Digest as _, Sha256};

/// Label: the fleet that an object belongs to, see [`fleet_label`].
pub const FLEET_LABEL: &str = "sekimori.dev/fleet";
/// Label of a pod: whether the SMTP Service leads to it.
pub const INTAKE_LABEL: &str = "sekimori.dev/intake";
/// The value of [`INTAKE_LABEL`] with which mail comes in; without the label it does not.
pub const INTAKE_OPEN: &str = "open";
/// Annotation of a pod template: the hash of what needs new pods when it changes.
pub const TEMPLATE_HASH: &str = "sekimori.dev/template-hash";
/// Annotation of a pod: why it drains (`Restart` or `Retire`).
pub const DRAIN: &str = "sekimori.dev/drain";
/// Annotation of a pod: since when it drains, in milliseconds since 1970.
pub const DRAIN_SINCE: &str = "sekimori.dev/drain-since";
/// Annotation of a spool's PersistentVolumeClaim: its gateway reported it empty and took no mail since (`true`), has only a quarantine or dead letters left
/// (`kept`), or was given up with what it had (`abandoned`).
pub const VOLUME_EMPTY: &str = "sekimori.dev/empty";
/// Finalizer of a spool's PersistentVolumeClaim: there may be mail on it.
pub const SPOOL_FINALIZER: &str = "sekimori.dev/spool";
/// Annotation of a TenantDomain: `true` releases its domains when it goes, without the 72 hours.
pub const RELEASE_DOMAINS: &str = "sekimori.dev/release-domains";
/// Annotation of a GatewayFleet: lets so many removals of tenants through, once.
pub const CONFIRM_REMOVALS: &str = "sekimori.dev/confirm-removals";
/// Label of the operator's pod that holds the Lease; the stream's Service selects it.
pub const LEADER_LABEL: &str = "sekimori.dev/leader";
/// Finalizer of a GatewayFleet: its pods are retired before it goes.
pub const FLEET_FINALIZER: &str = "sekimori.dev/retire";
/// `app.kubernetes.io/name` of a gateway.
pub const APP: &str = "sekimori-mta";
/// `app.kubernetes.io/managed-by` of everything that the operator makes.
pub const MANAGER: &str = "sekimori-operator";

/// The container of the gateway.
pub const GATEWAY_CONTAINER: &str = "mta";
/// The port of the admin listener.
pub const ADMIN_PORT_NAME: &str = "admin";
/// The number of that port.
pub const ADMIN_PORT: u16 = 8025;

/// The template of the spool's volume claims.
pub const SPOOL_VOLUME: &str = "spool";
/// The volume with the engines' socket directories.
pub const ENGINES_VOLUME: &str = "engines";
/// The volume with the engines' scratch directories and fetched signatures.
pub const SCRATCH_VOLUME: &str = "scratch";
/// The volume of the gateway's own sockets and temporary files.
pub const RUN_VOLUME: &str = "run";
/// The volume with the token for the operator.
pub const TOKEN_VOLUME: &str = "operator-token";
/// The volume with the certificates that vouch for the operator.
pub const AUTHORITY_VOLUME: &str = "operator-authority";
/// The volume with the key of tenants' secrets in the last good snapshot.
pub const SNAPSHOT_KEY_VOLUME: &str = "snapshot-key";
/// The volume with the object store's credentials.
pub const STORE_VOLUME: &str = "quarantine-store";

/// The longest label value, DNS label, container or volume name.
pub const LABEL_LENGTH_MAX: usize = 63;
/// The longest name of a StatefulSet: the label `controller-revision-hash` holds it and 11 more characters.
pub const SET_LENGTH_MAX: usize = 52;
/// The longest directory of an engine: a socket's whole path may have 107 bytes, and a label value 63.
const ENGINE_LENGTH_MAX: usize = 50;
const HASH_LENGTH: usize = 8;

/// The first characters of a SHA-256, as hexadecimal digits.
pub(crate) fn short_hash(bytes: &[u8], length: usize) -> String {
    HEXLOWER.encode(&Sha256::digest(bytes)).chars().take(length).collect()
}

/// `prefix`, `name` and `suffix` as one DNS label of at most `max` characters. A name that had to be changed to fit ends in a hash of the whole, so that
/// two different names stay different; `prefix` and `suffix` are our own and stay.
pub fn bounded(prefix: &str, name: &str, suffix: &str, max: usize) -> String {
    let dashed: String = name.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
    let dashed = dashed.trim_matches('-');
    let room = max.saturating_sub(prefix.len() + suffix.len());
    if dashed == name && name.len() <= room {
        return format!("{prefix}{name}{suffix}");
    }
    let kept: String = dashed.chars().take(room.saturating_sub(HASH_LENGTH + 1)).collect();
    let hash = short_hash(name.as_bytes(), HASH_LENGTH);
    let kept = kept.trim_end_matches('-');
    if kept.is_empty() { format!("{prefix}{hash}{suffix}") } else { format!("{prefix}{kept}-{hash}{suffix}") }
}

/// The value of [`FLEET_LABEL`].
pub fn fleet_label(fleet: &str) -> String {
    bounded("", fleet, "", LABEL_LENGTH_MAX)
}

/// The StatefulSet, and with it the pods: `inbound-gateway-0`.
pub fn stateful_set(fleet: &str) -> String {
    bounded("", fleet, "-gateway", SET_LENGTH_MAX)
}

/// The headless Service, the ServiceAccount, the PodDisruptionBudget and the NetworkPolicy share the StatefulSet's name.
pub fn gateway_object(fleet: &str) -> String {
    stateful_set(fleet)
}

/// The Service that mail comes through.
pub fn smtp_service(fleet: &str) -> String {
    bounded("", fleet, "-smtp", LABEL_LENGTH_MAX)
}

/// The ConfigMap with the certificates that vouch for the operator.
pub fn authority(fleet: &str) -> String {
    bounded("", fleet, "-operator-authority", LABEL_LENGTH_MAX)
}

/// The Secret with the key of tenants' secrets in the last good snapshot.
pub fn snapshot_key(fleet: &str) -> String {
    bounded("", fleet, "-snapshot-key", LABEL_LENGTH_MAX)
}

/// A pod of the fleet.
pub fn pod(fleet: &str, ordinal: u32) -> String {
    format!("{}-{ordinal}", stateful_set(fleet))
}

/// The spool's claim of a pod.
pub fn spool_claim(fleet: &str, ordinal: u32) -> String {
    format!("{SPOOL_VOLUME}-{}", pod(fleet, ordinal))
}

/// The ConfigMap in the operator's namespace with one shard of the claims on a fleet.
pub fn claims_shard(namespace: &str, fleet: &str, shard: u8) -> String {
    let both = format!("{namespace}/{fleet}");
    bounded("claims-", &both, &format!("-{shard:02x}"), LABEL_LENGTH_MAX)
}

/// One of the two containers of an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Slot {
    /// The one that a new pod scans with.
    A,
    /// The one that a new pod leaves idle.
    B,
}

impl Slot {
    /// Both.
    pub const ALL: [Self; 2] = [Self::A, Self::B];

    /// As it stands in names.
    pub const fn letter(self) -> &'static str {
        match self {
            Self::A => "a",
            Self::B => "b",
        }
    }
}

/// The directory of an engine below the sockets.
pub fn engine_directory(engine: &str) -> String {
    bounded("", engine, "", ENGINE_LENGTH_MAX)
}

/// The container of a slot: `engine-clamav-a`.
pub fn slot_container(engine: &str, slot: Slot) -> String {
    format!("engine-{}-{}", engine_directory(engine), slot.letter())
}

/// The path, below the volumes, of what belongs to one slot.
pub fn slot_path(engine: &str, slot: Slot) -> String {
    format!("{}/{}", engine_directory(engine), slot.letter())
}

/// Where the gateway finds a slot's socket.
pub fn slot_socket(engine: &str, slot: Slot) -> String {
    format!("{}/{}/{}", paths::ENGINES, slot_path(engine, slot), paths::SOCKET_FILE)
}

/// The annotation of a pod that holds one parameter of the version in a slot. The container reads it when it starts, so a new image comes with new values.
pub fn parameter_annotation(engine: &str, slot: Slot, parameter: &str) -> String {
    format!("{}.parameters.sekimori.dev/{parameter}", slot_container(engine, slot))
}

/// The volume with a listener's certificate.
pub fn certificate_volume(secret: &str) -> String {
    bounded("tls-", secret, "", LABEL_LENGTH_MAX)
}

/// The volume with an engine's signatures.
pub fn signatures_volume(engine: &str) -> String {
    bounded("signatures-", engine, "", LABEL_LENGTH_MAX)
}

/// Paths in the containers.
pub mod paths {
    /// The spool, the quarantine and the last good snapshot.
    pub const STATE: &str = "/var/lib/sekimori";
    /// The gateway's own sockets.
    pub const RUN: &str = "/run/sekimori";
    /// The admin socket that an exec reaches.
    pub const ADMIN_SOCKET: &str = "/run/sekimori/admin.sock";
    /// The engines' socket directories, as the gateway sees them.
    pub const ENGINES: &str = "/run/sekimori/engines";
    /// A slot's own socket directory, as its engine sees it.
    pub const SLOT: &str = "/run/sekimori/engine";
    /// The socket in a slot's directory.
    pub const SOCKET_FILE: &str = "engine.sock";
    /// A slot's signatures.
    pub const SIGNATURES: &str = "/var/lib/sekimori/signatures";
    /// The directory of the token for the operator.
    pub const TOKEN_DIRECTORY: &str = "/run/secrets/sekimori/operator";
    /// The token itself.
    pub const TOKEN: &str = "/run/secrets/sekimori/operator/token";
    /// The directory of the certificates that vouch for the operator.
    pub const AUTHORITY_DIRECTORY: &str = "/etc/sekimori/operator";
    /// These certificates.
    pub const AUTHORITY: &str = "/etc/sekimori/operator/ca.crt";
    /// The certificates of the listeners, one directory for each Secret.
    pub const CERTIFICATES: &str = "/etc/sekimori/tls";
    /// The key of tenants' secrets in the last good snapshot.
    pub const SNAPSHOT_KEY: &str = "/etc/sekimori/snapshot-key";
    /// The credentials of the object store.
    pub const STORE: &str = "/etc/sekimori/quarantine-store";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_as_they_are_while_they_fit() {
        assert_eq!(stateful_set("inbound"), "inbound-gateway");
        assert_eq!(pod("inbound", 3), "inbound-gateway-3");
        assert_eq!(spool_claim("inbound", 3), "spool-inbound-gateway-3");
        assert_eq!(smtp_service("inbound"), "inbound-smtp");
        assert_eq!(slot_container("clamav", Slot::B), "engine-clamav-b");
        assert_eq!(slot_socket("clamav", Slot::A), "/run/sekimori/engines/clamav/a/engine.sock");
        assert_eq!(parameter_annotation("clamav", Slot::A, "LIMIT"), "engine-clamav-a.parameters.sekimori.dev/LIMIT");
    }

    #[test]
    fn a_changed_name_ends_in_a_hash_and_stays_different() {
        let (long, shorter) = ("a".repeat(253), "a".repeat(252));
        for (one, other) in [("a.b", "a-b"), (long.as_str(), shorter.as_str()), ("mail.example", "mail-example")] {
            assert_ne!(bounded("", one, "", 63), bounded("", other, "", 63), "{one}");
            assert_ne!(slot_container(one, Slot::A), slot_container(other, Slot::A), "{one}");
        }
        assert_eq!(bounded("", &long, "-gateway", 52).len(), 52);
        assert!(bounded("", "a.b", "", 63).starts_with("a-b-"));
    }

    #[test]
    fn every_name_keeps_its_bounds() {
        let names = ["x".to_owned(), "a".repeat(253), "a.".repeat(126) + "a", format!("{}.b", "a-".repeat(60))];
        for name in &names {
            let labels = [
                fleet_label(name),
                smtp_service(name),
                authority(name),
                snapshot_key(name),
                pod(name, 999),
                claims_shard(name, name, 255),
                slot_container(name, Slot::A),
                certificate_volume(name),
                signatures_volume(name),
            ];
            for label in labels {
                assert!(label.len() <= LABEL_LENGTH_MAX, "{label}");
                assert!(label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-'), "{label}");
                assert!(!label.starts_with('-') && !label.ends_with('-'), "{label}");
            }
            assert!(stateful_set(name).len() <= SET_LENGTH_MAX);
            assert!(slot_socket(name, Slot::A).len() <= 107, "a unix socket's path");
        }
    }
}
