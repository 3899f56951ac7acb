//! What is wrong with a document: what, where, and what to do.

use std::fmt;

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Severity {
    /// The object is rejected; its last good form stays.
    Error,
    /// The object is taken.
    Warning,
}

/// The kind of a problem, for programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// The text is no YAML, or goes beyond the bounds of a document.
    Unreadable,
    /// A kind or an API version that is not known.
    UnknownKind,
    /// A field that the schema does not have.
    UnknownField,
    /// A value that the schema or a rule refuses.
    InvalidValue,
    /// Something required is not there.
    Missing,
    /// The schema has it, this build does not act on it.
    NotSupportedYet,
    /// Two objects, or two entries of a list, claim the same.
    Conflict,
    /// Another object is referred to that is not there or was rejected.
    UnresolvedRef,
    /// The fleet or a grant does not allow it.
    NotAllowed,
    /// It has no effect outside a cluster.
    ClusterOnly,
    /// Nothing here uses it.
    Unused,
    /// It is taken, but will not work as it stands.
    Suspicious,
}

/// What is wrong within one object, before it is known which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The path of the field, such as `spec.routes[0].port`; empty: the object as a whole.
    pub field: String,
    /// The kind of problem.
    pub reason: Reason,
    /// What is wrong and what to do, without the place.
    pub message: String,
}

impl Finding {
    /// A finding.
    pub fn new(field: impl Into<String>, reason: Reason, message: impl Into<String>) -> Self {
        Self { field: field.into(), reason, message: message.into() }
    }
}

/// What is wrong with a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether the object is rejected.
    pub severity: Severity,
    /// File and number of the document in it, from 1: `tenants.yaml#2`. Empty where the caller knows no file.
    pub source: String,
    /// Kind, namespace and name: `TenantDomain mail/example-com`. Empty where none could be read.
    pub object: String,
    /// The path of the field, such as `spec.routes[0].port`; empty: the object as a whole.
    pub field: String,
    /// The kind of problem.
    pub reason: Reason,
    /// What is wrong and what to do, without the place.
    pub message: String,
}

impl Problem {
    /// An error of one object.
    pub fn error(source: &str, object: &str, finding: Finding) -> Self {
        let Finding { field, reason, message } = finding;
        Self { severity: Severity::Error, source: source.to_owned(), object: object.to_owned(), field, reason, message }
    }

    /// A warning about one object.
    pub fn warning(source: &str, object: &str, finding: Finding) -> Self {
        Self { severity: Severity::Warning, ..Self::error(source, object, finding) }
    }

    /// Whether the object is rejected.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.severity)?;
        for place in [&self.source, &self.object].into_iter().filter(|place| !place.is_empty()) {
            write!(f, "{place}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{} [{}]", self.message, self.reason)
    }
}

/// The nearest of `known` to what somebody wrote, if it is near enough to be meant.
pub(crate) fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let lower = written.to_lowercase();
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(&lower, &candidate.to_lowercase()), candidate))
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, candidate)| *distance <= 1 + candidate.len().min(written.len()) / 4)
        .map(|(_, candidate)| candidate)
}

/// ` (did you mean ...?)`, or nothing.
pub(crate) fn did_you_mean<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> String {
    nearest(written, known).map(|near| format!(" (did you mean `{near}`?)")).unwrap_or_default()
}
