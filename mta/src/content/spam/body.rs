//! Signs of structure and text.

use std::collections::HashSet;

use super::table::*;
use super::text::{self, Counts};
use super::{Look, html};
use crate::content::names;
use crate::message::Part;

/// Text parts looked at.
const TEXT_PARTS_MAX: usize = 8;
/// URLs looked at in one text.
const URLS_MAX: usize = 200;
/// Text below this many letters is next to none.
const FEW_LETTERS: usize = 30;

/// What the text parts amount to.
#[derive(Default)]
struct Texts {
    plain: Option<String>,
    html: Option<html::Html>,
    plain_urls: usize,
}

impl Look<'_> {
    pub(super) fn structure(&mut self) {
        for part in self.message.parts.iter().take(1_000) {
            for name in part.file_name.iter().chain(&part.other_file_names) {
                let signs = names::signs(name);
                if signs.double_extension {
                    self.add(DOUBLE_EXTENSION);
                }
                if signs.direction_override {
                    self.add(DIRECTION_OVERRIDE_NAME);
                }
                if signs.runnable {
                    self.add(RUNNABLE_ATTACHMENT);
                }
            }
            if part.encoding_broken {
                self.add(BROKEN_ENCODING);
            }
        }
    }

    pub(super) fn body(&mut self) {
        let message = self.message;
        let is_text = |part: &&Part| part.content_type.starts_with("text/") && part.file_name.is_none();
        let mut texts = Texts::default();
        for part in message.parts.iter().filter(is_text).take(TEXT_PARTS_MAX) {
            self.text_part(part, &mut texts);
        }
        let others = message.parts.iter().any(|part| !is_text(&part));
        self.together(&texts, others);
    }

    fn text_part(&mut self, part: &Part, texts: &mut Texts) {
        let (text, known_charset) = text::of(part);
        if !known_charset {
            self.add(UNKNOWN_CHARSET);
        }
        if part.content_type == "text/html" {
            if part.charset.is_none() {
                self.add(HTML_WITHOUT_CHARSET);
            }
            if texts.html.is_none() {
                let html = html::read(&text);
                self.html(&html);
                texts.html = Some(html);
            }
        } else if texts.plain.is_none() {
            let urls = text::urls(&text, URLS_MAX);
            texts.plain_urls = urls.len();
            self.urls(&urls);
            self.counts(&Counts::of(&text), text.len());
            texts.plain = Some(text.into_owned());
        }
    }

    fn urls(&mut self, urls: &[text::Url<'_>]) {
        if urls.iter().any(|url| text::is_bare_address(url.host)) {
            self.add(URL_BARE_ADDRESS);
        }
        if urls.iter().any(|url| url.has_user) {
            self.add(URL_WITH_USER);
        }
    }

    fn html(&mut self, html: &html::Html) {
        let counts = Counts::of(&html.visible);
        if html.hidden > 200 && html.hidden > counts.letters() {
            self.add(HTML_HIDDEN_TEXT);
        }
        for (sign, given) in [
            (HTML_SPLIT_WORDS, html.split_words >= 3),
            (HTML_FORM, html.form),
            (HTML_SCRIPT, html.script),
            (HTML_BIG_COLOURED, html.big_coloured > 0),
            (URL_BARE_ADDRESS, html.bare_address),
            (URL_WITH_USER, html.url_user),
            (LINK_SHOWS_OTHER_HOST, html.shows_other_host),
            (IMAGE_ONLY, html.images > 0 && counts.letters() < FEW_LETTERS),
        ] {
            if given {
                self.add(sign);
            }
        }
        self.urls(&text::urls(&html.visible, URLS_MAX));
        self.counts(&counts, html.visible.len());
    }

    fn counts(&mut self, counts: &Counts, length: usize) {
        if counts.upper > 100 && counts.upper > counts.lower && counts.beyond < counts.upper / 10 {
            self.add(BODY_CAPITALS);
        }
        // Japanese and Thai have no spaces, and some programs put invisible ones in to allow line breaks.
        if counts.invisible >= 10 && counts.beyond < counts.upper + counts.lower {
            self.add(BODY_INVISIBLE_CHARACTERS);
        }
        if counts.exclamations >= 5 && counts.exclamations * 250 > length {
            self.add(BODY_SHOUTS);
        }
    }

    fn together(&mut self, texts: &Texts, others: bool) {
        let plain_letters = texts.plain.as_deref().map_or(0, |text| Counts::of(text).letters());
        match &texts.html {
            Some(html) => {
                let html_letters = Counts::of(&html.visible).letters();
                match &texts.plain {
                    None => self.add(HTML_ONLY),
                    Some(_) if plain_letters < 5 && html_letters > 100 => self.add(EMPTY_ALTERNATIVE),
                    Some(plain) if differ(plain, &html.visible) => self.add(ALTERNATIVES_DIFFER),
                    Some(_) => {}
                }
                if texts.plain.is_none() && html.links > 0 && html.images == 0 && html_letters < FEW_LETTERS {
                    self.add(URL_ONLY);
                }
            }
            None => {
                let url_letters: usize = texts.plain.as_deref().map_or(0, |text| text::urls(text, URLS_MAX).iter().map(|url| url.length).sum());
                if texts.plain_urls > 0 && plain_letters.saturating_sub(url_letters) < FEW_LETTERS && !others {
                    self.add(URL_ONLY);
                }
                if plain_letters == 0 && !others {
                    self.add(EMPTY_MESSAGE);
                }
            }
        }
        self.encoded_ascii();
    }

    /// A single text part whose transfer encoding is base64 and whose bytes need none. ISO-2022-JP is ASCII by its bytes and is excepted by its escapes.
    fn encoded_ascii(&mut self) {
        let [part] = self.message.parts.as_slice() else { return };
        let base64 =
            self.message.fields("Content-Transfer-Encoding").any(|field| self.message.text(&field.value).trim().eq_ignore_ascii_case("base64"));
        let plain = part.content_type.starts_with("text/") && part.content.is_ascii() && !part.content.contains(&0x1b);
        let long_lines = part.content.split(|b| *b == b'\n').take(1_000).any(|line| line.len() > 990);
        if base64 && plain && !long_lines && !part.content.is_empty() {
            self.add(ENCODED_ASCII_TEXT);
        }
    }
}

/// Whether two texts of some length have hardly a word in common. Words are runs of letters of any script, by their first 400; a script without spaces has few and long ones,
/// so it is compared by pairs of characters.
fn differ(plain: &str, html: &str) -> bool {
    fn shingles(text: &str) -> HashSet<(char, char)> {
        let letters: Vec<char> = text.chars().filter(|c| c.is_alphanumeric()).take(4_000).collect();
        letters.windows(2).map(|pair| (pair[0], pair[1])).collect()
    }
    let (plain, html) = (shingles(plain), shingles(html));
    let smaller = plain.len().min(html.len());
    smaller > 60 && plain.intersection(&html).count() * 5 < smaller
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_are_compared_in_any_script() {
        let japanese = "平素より格別のご高配を賜り、厚く御礼申し上げます。さて、このたび弊社では下記のとおり新しいサービスを開始いたしましたのでご案内申し上げます。ぜひ一度お試しくださいますようお願い申し上げます。";
        assert!(!differ(japanese, japanese));
        let english =
            "The quick brown fox jumps over the lazy dog while nobody watches, and then returns to the forest before evening comes around again.";
        assert!(!differ(english, &format!("Newsletter {english}")));
        assert!(differ(english, japanese));
        assert!(!differ("short", "other"));
    }
}
