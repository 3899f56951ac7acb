//! The results in a few words, for logs and people.

use super::Authentication;

impl Authentication {
    /// `spf=pass (example.com) dkim=pass (example.com) dmarc=pass (example.com)`; what was not evaluated is left out, and nothing at all is `not evaluated`.
    pub fn summary(&self) -> String {
        let mut words = vec![];
        if let Some(spf) = self.spf {
            words.push(format!("spf={} ({})", word(&spf), self.spf_domain));
        }
        words.extend(self.dkim.iter().map(|signature| format!("dkim={} ({})", word(&signature.result), signature.domain)));
        if let Some(dmarc) = &self.dmarc {
            words.push(format!("dmarc={} ({})", word(&dmarc.result), dmarc.from_domain));
        }
        if words.is_empty() { "not evaluated".into() } else { words.join(" ") }
    }
}

/// The result words are lower-case unit variants.
fn word(result: &impl std::fmt::Debug) -> String {
    format!("{result:?}").to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::super::{Dkim, DkimResult, Dmarc, DmarcPolicy, DmarcResult, Spf};
    use super::*;

    #[test]
    fn what_was_evaluated_is_said() {
        assert_eq!(Authentication::default().summary(), "not evaluated");
        let all = Authentication {
            spf: Some(Spf::SoftFail),
            spf_domain: "a.example".into(),
            spf_helo: false,
            dkim: vec![DkimResult { result: Dkim::Pass, domain: "b.example".into(), selector: "s".into(), signature: "x".into(), reason: None }],
            dmarc: Some(DmarcResult { result: Dmarc::Fail, from_domain: "c.example".into(), policy: DmarcPolicy::Reject }),
        };
        assert_eq!(all.summary(), "spf=softfail (a.example) dkim=pass (b.example) dmarc=fail (c.example)");
    }
}
