//! Text for a terminal: tables, ages, colours, and foreign text made harmless.

/// Whether colours are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Paint {
    /// Whether they are.
    pub on: bool,
}

/// A colour with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Deserves a look.
    Warning,
    /// Is not as it should be.
    Bad,
    /// A heading.
    Strong,
    /// Less important.
    Faint,
}

impl Paint {
    /// The text in its colour.
    pub fn tone(self, tone: Tone, text: &str) -> String {
        if !self.on || text.is_empty() {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => 32,
            Tone::Warning => 33,
            Tone::Bad => 31,
            Tone::Strong => 1,
            Tone::Faint => 2,
        };
        format!("\u{1b}[{code}m{text}\u{1b}[0m")
    }
}

/// Foreign text for a terminal: no control characters, nothing that turns the direction of writing, no line breaks.
pub fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() || is_format(c) { '\u{fffd}' } else { c }).collect()
}

/// Invisible characters that change how others look (Unicode Bidi_Control, zero width characters, line and paragraph separators).
const fn is_format(c: char) -> bool {
    matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The first so many characters, with an ellipsis where some are missing.
pub fn shortened(text: &str, chars_max: usize) -> String {
    if text.chars().count() <= chars_max {
        return text.to_owned();
    }
    text.chars().take(chars_max.saturating_sub(1)).chain(['…']).collect()
}

/// `95s`, `12m`, `3h`, `4d`.
pub fn age(seconds: u64) -> String {
    match seconds {
        s if s < 120 => format!("{s}s"),
        s if s < 7200 => format!("{}m", s / 60),
        s if s < 172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

/// One cell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    tone: Option<Tone>,
}

impl Cell {
    /// With a colour.
    pub fn toned(text: impl AsRef<str>, tone: Tone) -> Self {
        Self { text: harmless(text.as_ref()), tone: Some(tone) }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: harmless(text.as_ref()), tone: None }
    }
}

/// A table with aligned columns, two spaces between them, no trailing blanks, each line ended.
pub fn table(paint: Paint, head: &[&str], rows: &[Vec<Cell>]) -> String {
    let mut widths: Vec<usize> = head.iter().map(|name| name.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    let head: Vec<Cell> = head.iter().map(|name| Cell::toned(name, Tone::Strong)).collect();
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let last = row.iter().rposition(|cell| !cell.text.is_empty());
        for (index, (cell, width)) in row.iter().zip(&widths).enumerate().take(last.map_or(0, |last| last + 1)) {
            text.push_str(&cell.tone.map_or_else(|| cell.text.clone(), |tone| paint.tone(tone, &cell.text)));
            if Some(index) != last {
                text.extend(std::iter::repeat_n(' ', width + 2 - cell.text.chars().count()));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_with_and_without_colours() {
        let rows = vec![
            vec![Cell::from("a"), Cell::toned("Degraded", Tone::Bad), Cell::from("x")],
            vec![Cell::from("longer"), Cell::from("-"), Cell::from("")],
        ];
        assert_eq!(table(Paint::default(), &["N", "PHASE", "LAST"], &rows), "N       PHASE     LAST\na       Degraded  x\nlonger  -\n");
        let coloured = table(Paint { on: true }, &["N", "PHASE", "LAST"], &rows);
        assert!(coloured.contains("\u{1b}[31mDegraded\u{1b}[0m  x\n"), "{coloured:?}");
    }

    #[test]
    fn foreign_text_cannot_write_to_the_terminal() {
        assert_eq!(harmless("a\u{1b}[31mb\r\n\u{9b}c\u{202e}d\u{200b}"), "a\u{fffd}[31mb\u{fffd}\u{fffd}\u{fffd}c\u{fffd}d\u{fffd}");
        assert_eq!(harmless("関守 é"), "関守 é");
    }

    #[test]
    fn ages_and_lengths() {
        let ages = [(0, "0s"), (119, "119s"), (120, "2m"), (7199, "119m"), (7200, "2h"), (172_799, "47h"), (172_800, "2d")];
        for (seconds, text) in ages {
            assert_eq!(age(seconds), text);
        }
        assert_eq!((shortened("abc", 3), shortened("abcd", 3)), ("abc".to_owned(), "ab…".to_owned()));
    }
}
