//! What a file name says: extensions that run, doubled extensions, direction overrides, paths.

/// Extensions that Windows, macOS or a desktop run or mount when opened. Lower case.
pub const RUNNABLE: &[&str] = &[
    "ade",
    "adp",
    "app",
    "appx",
    "application",
    "appref-ms",
    "bat",
    "bas",
    "chm",
    "cmd",
    "com",
    "cpl",
    "crt",
    "dll",
    "exe",
    "gadget",
    "hlp",
    "hta",
    "inf",
    "ins",
    "iso",
    "img",
    "isp",
    "jar",
    "jnlp",
    "js",
    "jse",
    "lnk",
    "mde",
    "msc",
    "msi",
    "msix",
    "msp",
    "mst",
    "one",
    "pif",
    "ps1",
    "ps1xml",
    "ps2",
    "psc1",
    "reg",
    "scf",
    "scr",
    "sct",
    "search-ms",
    "settingcontent-ms",
    "shb",
    "shs",
    "sys",
    "url",
    "vb",
    "vbe",
    "vbs",
    "vhd",
    "vhdx",
    "vxd",
    "wsc",
    "wsf",
    "wsh",
    "xbap",
    "xll",
];

/// Extensions that people open without a thought; before a runnable one they are bait.
const BAIT: &[&str] = &[
    "avi", "bmp", "csv", "doc", "docx", "eml", "gif", "htm", "html", "jpeg", "jpg", "mov", "mp3", "mp4", "odt", "pdf", "png", "ppt", "pptx", "rtf",
    "tif", "tiff", "txt", "wav", "xls", "xlsx", "zip",
];

/// What is odd about a name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameSigns {
    /// Its last extension runs.
    pub runnable: bool,
    /// A harmless extension right before a runnable one (`invoice.pdf.exe`), or many spaces before it.
    pub double_extension: bool,
    /// A character that reverses or hides text order.
    pub direction_override: bool,
    /// Absolute, or climbs with `..`, or has a NUL.
    pub escapes: bool,
}

/// The last extension, lower case, without what Windows drops (trailing dots and spaces) and without what follows a NUL.
pub fn extension(name: &str) -> Option<String> {
    let name = name.split('\0').next().unwrap_or(name);
    let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
    // `a.txt:b.exe` names a stream of a.txt; the part after the colon is what a careless unpacker writes.
    let base = base.trim_end_matches(['.', ' ', '\u{a0}', '\u{3000}', '"']);
    let (stem, extension) = base.rsplit_once('.')?;
    let short = !extension.is_empty() && extension.chars().count() <= 20;
    (short && !stem.is_empty() || short && base.starts_with('.')).then(|| extension.to_lowercase())
}

/// Whether an extension (lower case) runs.
pub fn is_runnable(extension: &str) -> bool {
    RUNNABLE.contains(&extension)
}

/// Reads the signs off a name.
pub fn signs(name: &str) -> NameSigns {
    let direction_override = name.contains(['\u{202a}', '\u{202b}', '\u{202d}', '\u{202e}', '\u{2066}', '\u{2067}', '\u{2068}']);
    let last = extension(name);
    let runnable = last.as_deref().is_some_and(is_runnable);
    let mut double_extension = false;
    if runnable {
        let base = name.rsplit(['/', '\\']).next().unwrap_or(name);
        let stem = base.rsplit_once('.').map_or(base, |(stem, _)| stem);
        let before = extension(stem);
        double_extension = before.as_deref().is_some_and(|e| BAIT.contains(&e.trim())) || stem.contains("          ");
    }
    let escapes = name.starts_with(['/', '\\'])
        || name.get(1..3).is_some_and(|drive| drive == ":\\" || drive == ":/")
        || name.split(['/', '\\']).any(|step| step == "..")
        || name.contains('\0');
    NameSigns { runnable, double_extension, direction_override, escapes }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_windows_reads_them() {
        let table = [
            ("report.pdf", NameSigns::default()),
            ("見積書.xlsx", NameSigns::default()),
            ("setup.EXE", NameSigns { runnable: true, ..NameSigns::default() }),
            ("setup.exe. . ", NameSigns { runnable: true, ..NameSigns::default() }),
            ("請求書.pdf.js", NameSigns { runnable: true, double_extension: true, ..NameSigns::default() }),
            ("invoice.pdf                    .scr", NameSigns { runnable: true, double_extension: true, ..NameSigns::default() }),
            ("ann\u{202e}fdp.exe", NameSigns { runnable: true, direction_override: true, ..NameSigns::default() }),
            ("../../etc/cron.d/x", NameSigns { escapes: true, ..NameSigns::default() }),
            ("C:\\x.txt", NameSigns { escapes: true, ..NameSigns::default() }),
            ("a.exe\0.txt", NameSigns { runnable: true, escapes: true, ..NameSigns::default() }),
            ("jquery.min.js", NameSigns { runnable: true, ..NameSigns::default() }),
            ("", NameSigns::default()),
            (".", NameSigns::default()),
        ];
        for (name, expected) in table {
            assert_eq!(signs(name), expected, "{name:?}");
        }
    }
}
