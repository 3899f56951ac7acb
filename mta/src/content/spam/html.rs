//! What a reader of an HTML part sees, and what is hidden from the reader. One pass, no tree.

use super::text::{Url, url};

/// Links kept.
const LINKS_MAX: usize = 200;

/// An HTML part, read.
#[derive(Debug, Default)]
pub(super) struct Html {
    /// What is shown.
    pub(super) visible: String,
    /// Characters that are not shown: `display:none`, no size, and so on.
    pub(super) hidden: usize,
    pub(super) images: usize,
    pub(super) links: usize,
    pub(super) form: bool,
    pub(super) script: bool,
    /// Comments with a letter on both sides.
    pub(super) split_words: usize,
    /// `<font size=5>` or more, with a colour.
    pub(super) big_coloured: usize,
    pub(super) bare_address: bool,
    pub(super) url_user: bool,
    /// A link whose text is a URL of another site.
    pub(super) shows_other_host: bool,
}

/// Where the pass is.
#[derive(Default)]
struct State {
    /// Name of the hidden element and how many of that name are open in it.
    hidden: Option<(String, usize)>,
    /// Host of the open link, and where its text begins in `visible`.
    link: Option<(String, usize)>,
}

/// Reads HTML.
pub(super) fn read(text: &str) -> Html {
    let mut html = Html::default();
    let mut state = State::default();
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'<', rest.as_bytes()) {
        let (before, tag) = rest.split_at(at);
        show(&mut html, &state, before);
        if let Some(comment) = tag.strip_prefix("<!--") {
            let after = memchr::memmem::find(comment.as_bytes(), b"-->").and_then(|end| comment.get(end + 3..)).unwrap_or_default();
            let letter_before = before.ends_with(|c: char| c.is_ascii_lowercase());
            html.split_words += usize::from(letter_before && after.starts_with(|c: char| c.is_ascii_lowercase()));
            rest = after;
            continue;
        }
        let inner = tag.get(1..).unwrap_or_default();
        if !inner.starts_with(|c: char| c.is_ascii_alphabetic() || matches!(c, '/' | '!' | '?')) {
            // "a < b" is text.
            show(&mut html, &state, "<");
            rest = inner;
            continue;
        }
        let end = memchr::memchr(b'>', inner.as_bytes()).unwrap_or(inner.len());
        let (tag, after) = inner.split_at(end);
        rest = after.get(1..).unwrap_or_default();
        if let Some(name) = element(&mut html, &mut state, tag) {
            // Content of script and style is no text.
            rest = skip_to_end(rest, name);
        }
    }
    show(&mut html, &state, rest);
    html
}

fn show(html: &mut Html, state: &State, text: &str) {
    if state.hidden.is_some() {
        html.hidden += text.chars().filter(|c| c.is_alphanumeric()).count();
    } else {
        push(&mut html.visible, text);
    }
}

/// Text with the few entities undone that matter for counting.
fn push(visible: &mut String, text: &str) {
    let mut rest = text;
    while let Some(at) = memchr::memchr(b'&', rest.as_bytes()) {
        let (before, entity) = rest.split_at(at);
        visible.push_str(before);
        let end = entity.as_bytes().iter().take(10).position(|b| *b == b';');
        let Some(end) = end else {
            visible.push('&');
            rest = entity.get(1..).unwrap_or_default();
            continue;
        };
        let name = entity.get(1..end).unwrap_or_default();
        visible.push(match name {
            "nbsp" | "#160" => ' ',
            "amp" => '&',
            "lt" => '<',
            "gt" => '>',
            _ => numeric(name).unwrap_or('?'),
        });
        rest = entity.get(end + 1..).unwrap_or_default();
    }
    visible.push_str(rest);
}

fn numeric(name: &str) -> Option<char> {
    let digits = name.strip_prefix('#')?;
    let value = match digits.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    char::from_u32(value)
}

/// One tag. Gives the name of an element whose content is to be skipped.
fn element(html: &mut Html, state: &mut State, tag: &str) -> Option<&'static str> {
    let closing = tag.starts_with('/');
    let tag = tag.strip_prefix('/').unwrap_or(tag);
    let name_end = tag.bytes().position(|b| !b.is_ascii_alphanumeric()).unwrap_or(tag.len());
    let (name, attributes) = tag.split_at(name_end);
    let name = name.to_ascii_lowercase();
    track_hidden(state, &name, attributes, closing);
    match (name.as_str(), closing) {
        ("a", false) => open_link(html, state, attributes),
        ("a", true) => close_link(html, state),
        ("img", false) => html.images += 1,
        ("form", false) => html.form = true,
        ("script", false) => {
            html.script = true;
            return Some("</script");
        }
        ("style", false) => return Some("</style"),
        ("title", false) => return Some("</title"),
        ("font", false) => {
            let size = attribute(attributes, "size").unwrap_or_default();
            let big = matches!(size.trim_matches(['"', '\'', ' ']), "5" | "6" | "7" | "+2" | "+3" | "+4" | "+5");
            html.big_coloured += usize::from(big && attribute(attributes, "color").is_some());
        }
        ("br" | "p" | "div" | "td" | "tr" | "li" | "table" | "h1" | "h2" | "h3", _) => html.visible.push('\n'),
        _ => {}
    }
    None
}

fn track_hidden(state: &mut State, name: &str, attributes: &str, closing: bool) {
    if let Some((hidden, open)) = &mut state.hidden {
        if hidden == name {
            *open = if closing { open.saturating_sub(1) } else { *open + 1 };
            if *open == 0 {
                state.hidden = None;
            }
        }
    } else if !closing && !attributes.is_empty() && !matches!(name, "img" | "br" | "hr" | "input" | "meta" | "link" | "body") && hides(attributes) {
        state.hidden = Some((name.to_owned(), 1));
    }
}

fn hides(attributes: &str) -> bool {
    let Some(style) = attribute(attributes, "style") else { return false };
    let style: String = style.chars().filter(|c| !c.is_whitespace()).take(500).map(|c| c.to_ascii_lowercase()).collect();
    let none = |property: &str| style.split(['"', '\'', ';']).any(|rule| rule == property);
    none("display:none") || none("visibility:hidden") || none("font-size:0") || none("font-size:0px") || none("font-size:1px") || none("opacity:0")
}

/// The value of an attribute, with its quotes if it has some.
fn attribute<'a>(attributes: &'a str, name: &str) -> Option<&'a str> {
    let bytes = attributes.as_bytes();
    let mut from = 0;
    while let Some(step) = bytes.get(from..).and_then(|rest| memchr::memchr(b'=', rest)) {
        let at = from + step;
        let before = attributes.get(..at)?.trim_end();
        let start = before.len().checked_sub(name.len());
        let is_name = start.is_some_and(|start| {
            before.get(start..).is_some_and(|word| word.eq_ignore_ascii_case(name))
                && before.get(..start).is_some_and(|rest| rest.ends_with(|c: char| c.is_whitespace() || matches!(c, '"' | '\'')))
        });
        let value = attributes.get(at + 1..)?.trim_start();
        if is_name {
            let end = match value.chars().next() {
                Some(quote @ ('"' | '\'')) => value.get(1..)?.find(quote).map_or(value.len(), |end| end + 2),
                _ => value.find(|c: char| c.is_whitespace()).unwrap_or(value.len()),
            };
            return value.get(..end);
        }
        from = at + 1;
    }
    None
}

fn open_link(html: &mut Html, state: &mut State, attributes: &str) {
    let Some(target) = attribute(attributes, "href") else { return };
    let Some(Url { host, has_user, .. }) = url(target.trim_start_matches(['"', '\'']).trim_start()) else { return };
    html.links += 1;
    html.bare_address |= super::text::is_bare_address(host);
    html.url_user |= has_user;
    if html.links <= LINKS_MAX {
        state.link = Some((host.to_ascii_lowercase(), html.visible.len()));
    }
}

fn close_link(html: &mut Html, state: &mut State) {
    let Some((host, start)) = state.link.take() else { return };
    let shown = html.visible.get(start..).unwrap_or_default().trim();
    if let Some(shown) = url(shown) {
        html.shows_other_host |= super::text::site(&shown.host.to_ascii_lowercase()) != super::text::site(&host);
    }
}

/// Behind the end tag, found in any case; at the end without one.
fn skip_to_end<'a>(text: &'a str, end_tag: &str) -> &'a str {
    let mut rest = text;
    while let Some(at) = memchr::memmem::find(rest.as_bytes(), b"</") {
        let here = rest.get(at..).unwrap_or_default();
        if here.get(..end_tag.len()).is_some_and(|tag| tag.eq_ignore_ascii_case(end_tag)) {
            return here;
        }
        rest = here.get(2..).unwrap_or_default();
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_is_told_from_what_is_hidden() {
        let html = read(
            "<html><title>no</title><STYLE>p {}</STYLE><p>Hello &amp; w<!-- x -->orld, 1 < 2</p><div style=\"color:red; display: none\">sec<div>re</div>t</div>\
             <script>if (a<b) {}</script><font color=red size=\"+3\">big</font><img src=x> after",
        );
        assert_eq!(html.visible.split_whitespace().collect::<Vec<_>>(), ["Hello", "&", "world,", "1", "<", "2", "big", "after"]);
        assert_eq!((html.hidden, html.images, html.split_words, html.big_coloured, html.script), (6, 1, 1, 1, true));
    }

    #[test]
    fn links_are_compared_with_their_text() {
        let table = [
            ("<a href=\"http://a.example.com/x\">http://www.example.com/</a>", false),
            ("<a href='http://evil.example/'>https://bank.test/login</a>", true),
            ("<A class=x HREF=http://evil.example/>HTTPS://bank.test</A>", true),
            ("<a href=\"http://evil.example/\">click</a>", false),
            ("<a href=\"mailto:a@b.example\">http://c.example</a>", false),
        ];
        for (text, other) in table {
            assert_eq!(read(text).shows_other_host, other, "{text}");
        }
        let html = read("<a href=\"http://10.1.2.3/\">x</a><a href=\"http://www.bank.test@evil.example/\">y</a>");
        assert!(html.bare_address && html.url_user);
    }

    #[test]
    fn broken_html_ends() {
        for text in ["<", "<a", "<!--", "<script", "<a href=", "<a href=\"", "&", "&#xffffffff;", "</", "<a href='http://"] {
            read(text);
        }
    }
}
