//! Domain names as DNS sees them.

/// Bytes of a name without its final dot (RFC 1035 section 2.3.4).
const NAME_BYTES_MAX: usize = 253;

/// Bytes of a label.
const LABEL_BYTES_MAX: usize = 63;

/// Lower case, A-labels (RFC 5890), no final dot; `None` when no such name can exist in DNS.
pub fn normalise(name: &str) -> Option<String> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let ascii = if name.is_ascii() {
        name.to_ascii_lowercase()
    } else {
        // A name this long cannot become shorter, and the conversion need not see it.
        if name.len() > 4 * NAME_BYTES_MAX {
            return None;
        }
        idna::domain_to_ascii(name).ok()?
    };
    let well_formed =
        !ascii.is_empty() && ascii.len() <= NAME_BYTES_MAX && ascii.split('.').all(|label| (1..=LABEL_BYTES_MAX).contains(&label.len()));
    well_formed.then_some(ascii)
}

/// A normalised name that can be a mail domain: at least two labels, none of them an address in brackets, no white space or control characters.
pub fn mail_domain(name: &str) -> Option<String> {
    let name = normalise(name)?;
    let usable = name.contains('.') && !name.starts_with('[') && name.bytes().all(|byte| byte.is_ascii_graphic());
    usable.then_some(name)
}

/// `name` is `parent` or below it; both normalised.
pub fn at_or_below(name: &str, parent: &str) -> bool {
    name.strip_suffix(parent).is_some_and(|left| left.is_empty() || left.ends_with('.'))
}

/// The name without its first label; `None` for a name of one label.
pub fn parent(name: &str) -> Option<&str> {
    name.split_once('.').map(|(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let label63 = "a".repeat(63);
        let long = format!("{}.{}.{}.{}", label63, label63, label63, "a".repeat(61));
        for (name, expected) in [
            ("Example.COM", Some("example.com")),
            ("example.com.", Some("example.com")),
            ("例え.jp", Some("xn--r8jz45g.jp")),
            ("_dmarc.例え.jp", Some("_dmarc.xn--r8jz45g.jp")),
            ("a..b", None),
            (".a", None),
            ("a..", None),
            ("", None),
            (".", None),
            (&format!("{label63}.x"), Some(format!("{label63}.x").as_str())),
            (&format!("{label63}a.x"), None),
            (&long, Some(long.as_str())),
            (&format!("{long}a"), None),
            (&"é".repeat(2000), None),
        ] {
            assert_eq!(normalise(name).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn below() {
        assert!(at_or_below("a.example.com", "example.com"));
        assert!(at_or_below("example.com", "example.com"));
        assert!(!at_or_below("badexample.com", "example.com"));
        assert!(!at_or_below("com", "example.com"));
        assert_eq!(mail_domain("[192.0.2.1]"), None);
        assert_eq!(mail_domain("localhost"), None);
        assert_eq!(mail_domain("a b.example"), None);
        assert_eq!(mail_domain("A.Example").as_deref(), Some("a.example"));
        assert_eq!(parent("a.b"), Some("b"));
        assert_eq!(parent("a"), None);
    }
}
