//! Signs of structure and text.

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
    plain_letters: usize,
    html: Option<html::Html>,
    html_letters: usize,
    /// URLs in the plain text, and how long they are together.
    plain_urls: usize,
    plain_url_bytes: usize,
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
                let counts = Counts::of(&html.visible);
                self.html(&html, &counts);
                texts.html_letters = counts.letters();
                texts.html = Some(html);
            }
        } else if texts.plain.is_none() {
            let urls = text::urls(&text, URLS_MAX);
            let counts = Counts::of(&text);
            texts.plain_urls = urls.len();
            texts.plain_url_bytes = urls.iter().map(|url| url.length).sum();
            texts.plain_letters = counts.letters();
            self.urls(&urls);
            self.counts(&counts, text.len());
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

    fn html(&mut self, html: &html::Html, counts: &Counts) {
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
        self.counts(counts, html.visible.len());
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
        let Texts { plain_letters, html_letters, plain_urls, plain_url_bytes, .. } = *texts;
        match &texts.html {
            Some(html) => {
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
                if plain_urls > 0 && plain_letters.saturating_sub(plain_url_bytes) < FEW_LETTERS && !others {
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

/// Letters compared of each alternative.
const COMPARED_MAX: usize = 4_000;
/// Bits of a set of pairs.
const PAIR_BITS: usize = 1 << 16;

/// Whether two texts of some length have hardly anything in common. Pairs of letters are compared, which needs no words and so serves scripts without spaces.
fn differ(plain: &str, html: &str) -> bool {
    let (plain, html) = (pairs(plain), pairs(html));
    let size = |set: &[u64]| set.iter().map(|bits| bits.count_ones()).sum::<u32>();
    let common: u32 = plain.iter().zip(&html).map(|(a, b)| (a & b).count_ones()).sum();
    let smaller = size(&plain).min(size(&html));
    smaller > 60 && common * 5 < smaller
}

/// The set of pairs of neighbouring letters, by a hash.
fn pairs(text: &str) -> Vec<u64> {
    let mut set = vec![0_u64; PAIR_BITS / 64];
    let mut before = None;
    for letter in text.chars().filter(|c| c.is_alphanumeric()).take(COMPARED_MAX).map(u32::from) {
        if let Some(before) = before.replace(letter) {
            let hash = (before.wrapping_mul(0x9e37_79b1) ^ letter).wrapping_mul(0x85eb_ca6b) as usize >> 16;
            if let Some(word) = set.get_mut(hash / 64 % (PAIR_BITS / 64)) {
                *word |= 1 << (hash % 64);
            }
        }
    }
    set
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
