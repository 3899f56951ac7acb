//! The listeners' certificates in a pod: mounted Secrets, one directory each, which the kubelet changes under our hands.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use sekimori_crds::snapshot::{CertificatePart, ListenerPart};
use sekimori_crds::stream::{CertificateReport, NAMES_MAX};

use crate::io::metrics::Metrics;
use crate::io::tls;

/// Octets of a chain or a key, at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The certificates by name of their Secret, as they were read last.
#[derive(Debug)]
pub struct Certificates {
    dir: PathBuf,
    /// The last good ones.
    good: BTreeMap<String, CertificatePart>,
    /// What was said last of one that is missing or broken.
    said: BTreeMap<String, String>,
}

impl Certificates {
    /// Below this directory; nothing is read before [`Self::refresh`].
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), good: BTreeMap::new(), said: BTreeMap::new() }
    }

    /// Reads the certificates of these listeners again; whether any changed. Blocking.
    ///
    /// One that is missing or broken stays as it was read last, and is left out where there is no such: a listener then offers no TLS, or takes no mail
    /// where it must not do without (its clients are told to come again).
    pub fn refresh(&mut self, listeners: &[ListenerPart], metrics: &Metrics) -> bool {
        let mut changed = false;
        let named: BTreeMap<&str, &str> = listeners
            .iter()
            .flat_map(|listener| {
                listener.certificates.iter().filter(|part| is_mounted(part)).map(|part| (part.name.as_str(), listener.name.as_str()))
            })
            .collect();
        self.good.retain(|name, _| named.contains_key(name.as_str()));
        self.said.retain(|name, _| named.contains_key(name.as_str()));
        for (name, listener) in named {
            let read = self.read(name).and_then(|part| {
                tls::check(listener, &part).map_err(|error| error.to_string())?;
                Ok(part)
            });
            match read {
                Ok(part) => {
                    self.said.remove(name);
                    if self.good.get(name) != Some(&part) {
                        self.good.insert(name.to_owned(), part);
                        changed = true;
                    }
                }
                Err(why) if self.said.get(name) != Some(&why) => {
                    let what = if self.good.contains_key(name) { "the one before stays in force" } else { "it is left out" };
                    tracing::error!(certificate = name, listener, why, "a certificate cannot be used: {what}");
                    self.said.insert(name.to_owned(), why);
                }
                Err(_) => {}
            }
            let not_after = self.good.get(name).and_then(tls::not_after).unwrap_or(0);
            metrics.certificate_not_after.with_label_values(&[name]).set(i64::try_from(not_after).unwrap_or(i64::MAX));
        }
        changed
    }

    /// The listener with what was read in place of the names; those that cannot be used are left out.
    pub fn fill(&self, listener: &ListenerPart) -> ListenerPart {
        let mut filled = listener.clone();
        filled.certificates = listener
            .certificates
            .iter()
            .filter_map(|part| if is_mounted(part) { self.good.get(&part.name).cloned() } else { Some(part.clone()) })
            .collect();
        filled
    }

    /// What there is to say of each after a [`Self::refresh`] with these listeners, for the operator. `hostname`: the name that clients look for.
    pub fn reports(&self, listeners: &[ListenerPart], hostname: &str) -> Vec<CertificateReport> {
        let mut reports: BTreeMap<&str, CertificateReport> = BTreeMap::new();
        for listener in listeners {
            let mounted: Vec<&str> = listener.certificates.iter().filter(|part| is_mounted(part)).map(|part| part.name.as_str()).collect();
            // Senders that check the name look for this one; one certificate for it is enough.
            let in_force: Vec<&CertificatePart> = mounted.iter().filter_map(|name| self.good.get(*name)).collect();
            let is_foreign = mounted.len() == listener.certificates.len() && !in_force.iter().any(|part| tls::is_for(part, hostname));
            for name in mounted {
                let good = self.good.get(name);
                let trouble = match (self.said.get(name), good) {
                    (Some(why), Some(_)) => format!("cannot be used, and the one before stays in force: {why}"),
                    (Some(why), None) => format!("cannot be used, and listener {} is without it: {why}", listener.name),
                    (None, Some(_)) if is_foreign => {
                        format!("is for other names than spec.hostname {hostname}: senders that check names will not trust it")
                    }
                    (None, _) => String::new(),
                };
                let not_after_seconds = good.and_then(tls::not_after).unwrap_or(0);
                reports.entry(name).or_insert_with(|| CertificateReport { name: name.to_owned(), not_after_seconds, trouble });
            }
        }
        reports.into_values().take(NAMES_MAX).collect()
    }

    fn read(&self, name: &str) -> Result<CertificatePart, String> {
        // The name is the operator's, but a path is nobody's to say.
        if name.is_empty() || name.contains(['/', '\0']) || name.starts_with('.') {
            return Err("its name is not one of a Secret".into());
        }
        let dir = self.dir.join(name);
        // The kubelet swaps `..data` as a whole: followed once, chain and key are of one version.
        let dir = std::fs::canonicalize(dir.join("..data")).unwrap_or(dir);
        Ok(CertificatePart { name: name.to_owned(), chain_pem: text(&dir.join("tls.crt"))?, key_pem: text(&dir.join("tls.key"))? })
    }
}

/// Whether the operator sent only the name.
fn is_mounted(part: &CertificatePart) -> bool {
    part.chain_pem.is_empty() && part.key_pem.is_empty()
}

/// The directory has the date of its last change in its name, so it is left out of what is said.
fn text(path: &Path) -> Result<String, String> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| format!("{name} cannot be read: {error}"))?;
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).map_err(|error| format!("{name} cannot be read: {error}"))?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use sekimori_crds::vocabulary::ListenerTls;

    use super::*;

    fn write(dir: &Path, name: &str, host: &str) -> String {
        let made = rcgen::generate_simple_self_signed(vec![host.to_owned()]).expect("a certificate");
        std::fs::create_dir_all(dir.join(name)).expect("made");
        std::fs::write(dir.join(name).join("tls.crt"), made.cert.pem()).expect("written");
        std::fs::write(dir.join(name).join("tls.key"), made.signing_key.serialize_pem()).expect("written");
        made.cert.pem()
    }

    fn listener(names: &[&str]) -> ListenerPart {
        let named = |name: &&str| CertificatePart { name: (*name).to_owned(), chain_pem: String::new(), key_pem: String::new() };
        let mut part = tls::tests::listener(names.iter().map(named).collect());
        part.tls = ListenerTls::Opportunistic;
        part
    }

    fn chains(certificates: &Certificates, listener: &ListenerPart) -> Vec<String> {
        certificates.fill(listener).certificates.into_iter().map(|part| part.chain_pem).collect()
    }

    #[test]
    fn what_is_mounted_is_filled_in_and_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let metrics = Metrics::new();
        let mut certificates = Certificates::new(dir.path());
        let listeners = [listener(&["first", "second", "../first"])];
        let first = write(dir.path(), "first", "a.example");
        assert!(certificates.refresh(&listeners, &metrics));
        assert_eq!(chains(&certificates, &listeners[0]), std::slice::from_ref(&first), "what is not there is left out");
        assert!(metrics.certificate_not_after.with_label_values(&["first"]).get() > 1_700_000_000);
        assert_eq!(metrics.certificate_not_after.with_label_values(&["second"]).get(), 0);
        let second = write(dir.path(), "second", "b.example");
        assert!(certificates.refresh(&listeners, &metrics));
        assert_eq!(chains(&certificates, &listeners[0]), [first.clone(), second.clone()]);
        assert!(!certificates.refresh(&listeners, &metrics), "nothing changed");
        // Half of a change, as a reader may meet it: the key is not the certificate's.
        let other = rcgen::generate_simple_self_signed(vec!["c.example".to_owned()]).expect("a certificate");
        std::fs::write(dir.path().join("first/tls.crt"), other.cert.pem()).expect("written");
        assert!(!certificates.refresh(&listeners, &metrics));
        assert_eq!(chains(&certificates, &listeners[0]), [first, second.clone()], "the one before stays");
        std::fs::write(dir.path().join("first/tls.key"), other.signing_key.serialize_pem()).expect("written");
        assert!(certificates.refresh(&listeners, &metrics));
        assert_eq!(chains(&certificates, &listeners[0]), [other.cert.pem(), second]);
        std::fs::remove_dir_all(dir.path().join("second")).expect("removed");
        assert!(!certificates.refresh(&listeners, &metrics), "a Secret that was deleted takes no listener's TLS away");
    }

    #[test]
    fn what_is_wrong_with_each_is_reported() {
        let dir = tempfile::tempdir().expect("a directory");
        let metrics = Metrics::new();
        let mut certificates = Certificates::new(dir.path());
        let listeners = [listener(&["mx", "gone"])];
        write(dir.path(), "mx", "mx.example");
        certificates.refresh(&listeners, &metrics);
        let troubles = |certificates: &Certificates, hostname: &str| -> Vec<String> {
            certificates.reports(&listeners, hostname).into_iter().map(|report| format!("{}: {}", report.name, report.trouble)).collect()
        };
        let [gone, mx] = troubles(&certificates, "mx.example").try_into().expect("two");
        assert_eq!(mx, "mx: ", "nothing is wrong with it");
        assert!(gone.starts_with("gone: cannot be used, and listener smtp is without it: ") && gone.contains("tls.crt"), "{gone}");
        assert!(certificates.reports(&listeners, "mx.example")[1].not_after_seconds > 1_700_000_000);
        assert!(troubles(&certificates, "other.example")[1].contains("other names than spec.hostname other.example"));
        std::fs::write(dir.path().join("mx/tls.crt"), "garbage").expect("written");
        certificates.refresh(&listeners, &metrics);
        let broken = troubles(&certificates, "mx.example").remove(1);
        assert!(broken.contains("the one before stays in force") && broken.contains("tls.crt holds no certificate"), "{broken}");
        write(dir.path(), "gone", "mx.example");
        write(dir.path(), "mx", "second.example");
        certificates.refresh(&listeners, &metrics);
        assert_eq!(troubles(&certificates, "mx.example"), ["gone: ", "mx: "], "one of a listener's certificates is for its name");
    }

    #[test]
    fn the_kubelets_swap_is_followed() {
        let dir = tempfile::tempdir().expect("a directory");
        let secret = dir.path().join("mx");
        let version = |number: &str| write(&secret, number, "mx.example");
        let one = version("..1");
        std::os::unix::fs::symlink("..1", secret.join("..data")).expect("linked");
        let mut certificates = Certificates::new(dir.path());
        let listeners = [listener(&["mx"])];
        assert!(certificates.refresh(&listeners, &Metrics::new()));
        assert_eq!(chains(&certificates, &listeners[0]), [one]);
        let two = version("..2");
        std::os::unix::fs::symlink("..2", secret.join("..next")).expect("linked");
        std::fs::rename(secret.join("..next"), secret.join("..data")).expect("swapped");
        assert!(certificates.refresh(&listeners, &Metrics::new()));
        assert_eq!(chains(&certificates, &listeners[0]), [two]);
    }
}
