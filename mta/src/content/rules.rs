//! Rules of yara-x, compiled from sources that the caller read.
//!
//! Every file is a namespace of its own. A rule says by `kind = "malware"` that a hit is malware; `kind = "heuristic"` with `decibans = N`, or no kind at all,
//! makes a hit evidence: rules written for hunting must not refuse mail by being dropped into a directory.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};
use yara_x::{Compiler, MetaValue, SourceCode};

/// The rules that every gateway has.
pub const BUILTIN: &str = include_str!("../../rules/builtin.yar");
/// Evidence of a rule that does not say how much.
pub const DECIBANS_DEFAULT: i32 = 10;
/// The most that a rule may say: a certainty belongs to `kind = "malware"`.
pub const DECIBANS_MAX: i32 = 39;
/// Files in a rules directory.
pub const FILES_MAX: usize = 1_000;
/// Bytes of all rules together.
pub const SOURCE_BYTES_MAX: usize = 16 << 20;
/// Rules altogether.
pub const RULES_MAX: usize = 50_000;

/// A source of rules.
#[derive(Clone, Debug)]
pub struct Source {
    /// The file's name, for errors; also its namespace.
    pub file: String,
    /// Its text.
    pub text: String,
}

/// Compiled rules.
#[derive(Debug)]
pub struct RuleSet {
    /// For a scanner.
    pub rules: yara_x::Rules,
    /// How many there are.
    pub count: usize,
    /// `builtin-<version of this crate>+rules-<first 8 digits of the SHA-256 of all sources>`.
    pub version: String,
}

/// What a hit means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// Malware.
    Malware,
    /// Evidence, in decibans.
    Heuristic(i32),
}

/// Why rules cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// The text does not compile.
    #[error("rules file {file}, line {line}: {message}; correct the rule or move the file out of the rules directory")]
    Compile {
        /// File.
        file: String,
        /// Line, from 1.
        line: usize,
        /// What yara-x says.
        message: String,
    },
    /// A meta field is wrong.
    #[error("rules file {file}, rule {rule}: meta {field} must be {expected}")]
    Meta {
        /// File.
        file: String,
        /// Rule.
        rule: String,
        /// Field.
        field: &'static str,
        /// What is allowed.
        expected: &'static str,
    },
    /// Too many files.
    #[error("the rules directory has more than {FILES_MAX} files ending in .yar or .yara: merge some of them")]
    TooManyFiles,
    /// Too much text.
    #[error("the rules are larger than {SOURCE_BYTES_MAX} bytes together (reached in file {file}): remove some of them")]
    TooLarge {
        /// File.
        file: String,
    },
    /// Too many rules.
    #[error("there are {0} rules, at most {RULES_MAX}: remove some of them")]
    TooManyRules(usize),
    /// A file or the directory cannot be read.
    #[error("cannot read rules from {path}: {message}; check that it exists and that the gateway's user may read it")]
    Unreadable {
        /// File or directory.
        path: String,
        /// What the system says.
        message: String,
    },
}

/// Compiles the built-in rules and these.
pub fn compile(sources: &[Source]) -> Result<RuleSet, RuleError> {
    if sources.len() > FILES_MAX {
        return Err(RuleError::TooManyFiles);
    }
    let mut compiler = Compiler::new();
    // A rule that has to look at every byte by itself would make all mail wait.
    compiler.error_on_slow_pattern(true).error_on_slow_loop(true).enable_includes(false).colorize_errors(false);
    let mut hash = Sha256::new();
    let mut bytes = 0;
    add(&mut compiler, &Source { file: "builtin.yar".into(), text: BUILTIN.into() })?;
    hash.update(BUILTIN);
    for source in sources {
        bytes += source.text.len();
        if bytes > SOURCE_BYTES_MAX {
            return Err(RuleError::TooLarge { file: source.file.clone() });
        }
        add(&mut compiler, source)?;
        hash.update([0]);
        hash.update(&source.file);
        hash.update([0]);
        hash.update(&source.text);
    }
    let rules = compiler.build();
    let mut count = 0;
    for rule in rules.iter() {
        count += 1;
        check_meta(&rule)?;
    }
    if count > RULES_MAX {
        return Err(RuleError::TooManyRules(count));
    }
    let mut version = format!("builtin-{}+rules-", env!("CARGO_PKG_VERSION"));
    for byte in hash.finalize().iter().take(4) {
        // Writing to a string cannot fail.
        write!(version, "{byte:02x}").ok();
    }
    Ok(RuleSet { rules, count, version })
}

fn add(compiler: &mut Compiler<'_>, source: &Source) -> Result<(), RuleError> {
    compiler.new_namespace(&source.file);
    let added = compiler.add_source(SourceCode::from(source.text.as_str()).with_origin(source.file.clone()));
    added.map(|_| ()).map_err(|error| {
        let label = error.labels().next();
        let at = label.as_ref().map_or(0, |label| label.span().start());
        let line = 1 + source.text.bytes().take(at).filter(|byte| *byte == b'\n').count();
        let detail = label.map(|label| label.text().to_owned()).unwrap_or_default();
        let message = if detail.is_empty() { error.title().to_owned() } else { format!("{}: {detail}", error.title()) };
        RuleError::Compile { file: source.file.clone(), line, message }
    })
}

fn check_meta(rule: &yara_x::Rule<'_, '_>) -> Result<(), RuleError> {
    let wrong = |field, expected| RuleError::Meta { file: rule.namespace().to_owned(), rule: rule.identifier().to_owned(), field, expected };
    for (field, value) in rule.metadata() {
        match (field, value) {
            ("kind", MetaValue::String("malware" | "heuristic")) => {}
            ("kind", _) => return Err(wrong("kind", "\"malware\" or \"heuristic\"")),
            ("decibans", MetaValue::Integer(value)) if (1..=i64::from(DECIBANS_MAX)).contains(&value) => {}
            ("decibans", _) => return Err(wrong("decibans", "a number from 1 to 39")),
            _ => {}
        }
    }
    Ok(())
}

/// What a hit of this rule means.
pub fn meaning(rule: &yara_x::Rule<'_, '_>) -> Meaning {
    let mut decibans = DECIBANS_DEFAULT;
    for (field, value) in rule.metadata() {
        match (field, value) {
            ("kind", MetaValue::String("malware")) => return Meaning::Malware,
            ("decibans", MetaValue::Integer(value)) => decibans = i32::try_from(value).unwrap_or(DECIBANS_MAX).clamp(1, DECIBANS_MAX),
            _ => {}
        }
    }
    Meaning::Heuristic(decibans)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile_one(text: &str) -> Result<RuleSet, RuleError> {
        compile(&[Source { file: "extra.yar".into(), text: text.into() }])
    }

    #[test]
    fn builtin_rules_compile_and_name_their_version() {
        let rules = compile(&[]).unwrap();
        assert!(rules.count >= 10, "{}", rules.count);
        assert!(rules.version.starts_with("builtin-0.") && rules.version.contains("+rules-"), "{}", rules.version);
        assert_ne!(rules.version, compile_one("rule a { condition: false }").unwrap().version);
    }

    #[test]
    fn bad_rules_say_where_and_what() {
        let table = [
            ("rule a {\n condition:\n  nonsense here\n}", "extra.yar, line 3"),
            ("rule a {\n strings:\n  $a = \"long enough\"\n condition: $b }", "extra.yar, line 4"),
            ("rule a { meta: kind = \"virus\" condition: true }", "rule a: meta kind must be \"malware\" or \"heuristic\""),
            ("rule a { meta: decibans = 400 condition: true }", "rule a: meta decibans must be a number from 1 to 39"),
            ("rule a { meta: decibans = \"7\" condition: true }", "rule a: meta decibans"),
            ("rule a { strings: $a = \"x\" condition: $a }", "extra.yar, line 1: slow pattern"),
            ("include \"/etc/passwd\"", "extra.yar, line 1"),
            ("rule a { condition: true } rule a { condition: true }", "extra.yar, line 1"),
            ("\u{0}\u{1}", "extra.yar, line 1"),
        ];
        for (text, expected) in table {
            let error = compile_one(text).expect_err(text).to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn too_much_is_refused() {
        let many: Vec<Source> = (0..=FILES_MAX).map(|i| Source { file: format!("{i}.yar"), text: String::new() }).collect();
        assert_eq!(compile(&many).unwrap_err(), RuleError::TooManyFiles);
        assert_eq!(compile_one(&" ".repeat(SOURCE_BYTES_MAX + 1)).unwrap_err(), RuleError::TooLarge { file: "extra.yar".into() });
    }

    #[test]
    fn a_rule_without_kind_is_only_evidence() {
        let set = compile_one("rule hunt { condition: filesize < 100 }").unwrap();
        let mut scanner = yara_x::Scanner::new(&set.rules);
        let results = scanner.scan(b"x").unwrap();
        let meanings: Vec<_> = results.matching_rules().map(|rule| meaning(&rule)).collect();
        assert_eq!(meanings, [Meaning::Heuristic(DECIBANS_DEFAULT)]);
    }
}
