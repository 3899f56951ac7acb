//! Tag lists (RFC 6376 section 3.2): `name=value; name=value`.

/// Tags of one list; what is beyond makes the list invalid.
const TAGS_MAX: usize = 64;

/// All tags with white space around taken off; `None` when the list breaks the grammar or holds a name twice.
pub(super) fn strict(text: &str) -> Option<Vec<(&str, &str)>> {
    let mut tags: Vec<(&str, &str)> = vec![];
    let text = text.trim_end();
    for part in text.strip_suffix(';').unwrap_or(text).split(';') {
        let (name, value) = part.split_once('=')?;
        let (name, value) = (name.trim(), value.trim());
        let named = name.starts_with(|c: char| c.is_ascii_alphabetic()) && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !named || tags.len() >= TAGS_MAX || tags.iter().any(|(other, _)| *other == name) {
            return None;
        }
        tags.push((name, value));
    }
    Some(tags)
}

/// Tags by lower-case name; what is no tag is left out.
pub(super) fn lenient(text: &str) -> impl Iterator<Item = (String, String)> + '_ {
    text.split(';')
        .filter_map(|part| part.split_once('='))
        .take(TAGS_MAX)
        .map(|(name, value)| (name.trim().to_ascii_lowercase(), value.trim().to_owned()))
}

/// A value without any white space in it, as folding may have put some.
pub(super) fn unfolded(value: &str) -> String {
    value.chars().filter(|c| !matches!(c, ' ' | '\t' | '\r' | '\n')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists() {
        assert_eq!(strict("a=1; b = x y ;\r\n"), Some(vec![("a", "1"), ("b", "x y")]));
        assert_eq!(strict("a=1=2"), Some(vec![("a", "1=2")]));
        assert_eq!(strict("a="), Some(vec![("a", "")]));
        for bad in ["", "a", "a=1;;b=2", "a=1; a=2", "1a=2", "a b=1", "=1"] {
            assert_eq!(strict(bad), None, "{bad:?}");
        }
        assert!(strict(&"x=1;".repeat(2)).is_none());
        let many: String = (0..100).map(|n| format!("t{n}=1;")).collect();
        assert!(strict(&many).is_none());
    }
}
