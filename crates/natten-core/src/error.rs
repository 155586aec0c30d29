//! The one error type of the library. Input never panics: whatever a caller hands over that breaks a rule comes
//! back as an [`Error`] that names the argument, its value, the rule and a way out.

use std::borrow::Cow;
use std::fmt;

/// The result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong, in words that a user can act on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An argument (a shape, a window, a dtype, a name) breaks a rule.
    #[error("{argument} is {value}: {rule} ({hint})")]
    Invalid {
        /// The argument's name, with its axis where it has one: `kernel_size[1]`.
        argument: Cow<'static, str>,
        /// The value that was given.
        value: String,
        /// The rule that it breaks.
        rule: String,
        /// A way out.
        hint: Cow<'static, str>,
    },
    /// A program's text breaks a rule.
    #[error(fmt = fmt_program)]
    Program {
        /// Which text of the program: `score`, `mask`, `row`, …
        field: Cow<'static, str>,
        /// The text.
        text: String,
        /// Where in it, in characters, from 1. A line break is a character too.
        column: usize,
        /// What is wrong there.
        message: String,
        /// A way out.
        hint: Cow<'static, str>,
    },
    /// The backend is there but does not do this.
    #[error("{backend} does not support {what}: {why}")]
    Unsupported {
        /// The backend's name.
        backend: Cow<'static, str>,
        /// What was asked.
        what: String,
        /// Why it is refused, and what would be accepted.
        why: String,
    },
    /// The backend cannot be used on this machine.
    #[error("{backend} is not available: {why} ({hint})")]
    Unavailable {
        /// The backend's name.
        backend: Cow<'static, str>,
        /// What is missing.
        why: String,
        /// How to get it, or what to use instead.
        hint: String,
    },
    /// Generated source did not compile. A bug of ours, or a driver's.
    #[error("{backend} could not compile a kernel:\n{log}")]
    Compile {
        /// The backend's name.
        backend: Cow<'static, str>,
        /// The compiler's log.
        log: String,
        /// The source that was refused.
        source_text: String,
    },
    /// A device failed while it worked.
    #[error("{backend} failed: {message}")]
    Device {
        /// The backend's name.
        backend: Cow<'static, str>,
        /// What the device or its driver said.
        message: String,
    },
    /// Not enough memory.
    #[error("out of memory: {needed} bytes are needed, {}", available.map_or("and the allocator has no room for them".to_owned(), |a| format!("{a} are available")))]
    OutOfMemory {
        /// Bytes that the operation needs.
        needed: usize,
        /// Bytes that are there, where that is known.
        available: Option<usize>,
    },
    /// Reading or writing failed.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried, with the path.
        action: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The caller cancelled the work.
    #[error("cancelled")]
    Cancelled,
}

impl Error {
    /// An [`Error::Invalid`].
    pub fn invalid(
        argument: impl Into<Cow<'static, str>>,
        value: impl fmt::Display,
        rule: impl Into<String>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self::Invalid {
            argument: argument.into(),
            value: value.to_string(),
            rule: rule.into(),
            hint: hint.into(),
        }
    }

    /// An [`Error::Program`] at a byte of the text.
    pub fn program(
        field: impl Into<Cow<'static, str>>,
        text: &str,
        at: usize,
        message: impl Into<String>,
        hint: impl Into<Cow<'static, str>>,
    ) -> Self {
        let column = text.char_indices().take_while(|&(byte, _)| byte < at).count() + 1;
        Self::Program {
            field: field.into(),
            text: text.to_owned(),
            column,
            message: message.into(),
            hint: hint.into(),
        }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(
        backend: impl Into<Cow<'static, str>>,
        what: impl Into<String>,
        why: impl Into<String>,
    ) -> Self {
        Self::Unsupported { backend: backend.into(), what: what.into(), why: why.into() }
    }

    /// An [`Error::Unavailable`].
    pub fn unavailable(
        backend: impl Into<Cow<'static, str>>,
        why: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Unavailable { backend: backend.into(), why: why.into(), hint: hint.into() }
    }
}

/// The most characters of a text that an error shows before the place, and after it.
const SHOWN: usize = 48;

/// The message, then the line of the text that it is about, with a caret below the place.
fn fmt_program(
    field: &str,
    text: &str,
    column: &usize,
    message: &str,
    hint: &str,
    f: &mut fmt::Formatter<'_>,
) -> fmt::Result {
    let before: Vec<char> = text.chars().take(column.saturating_sub(1)).collect();
    let line_start = before.iter().rposition(|&c| c == '\n').map_or(0, |at| at + 1);
    let in_line = before.len() - line_start;
    write!(f, "{field}: {message} at ")?;
    if text.contains('\n') {
        write!(f, "line {}, ", before.iter().filter(|&&c| c == '\n').count() + 1)?;
    }
    write!(f, "column {} ({hint})", in_line + 1)?;
    let lead = in_line.min(SHOWN);
    let cut = if lead < in_line { "…" } else { "" };
    let shown = text.chars().skip(before.len() - lead).take_while(|&c| c != '\n');
    let shown: String = shown.map(|c| if c == '\r' { ' ' } else { c }).take(lead + SHOWN).collect();
    // Tabs stay tabs below, so that the caret stands where the eye looks for it.
    let pad: String =
        before[before.len() - lead..].iter().map(|&c| if c == '\t' { c } else { ' ' }).collect();
    let pad_cut = " ".repeat(cut.chars().count());
    write!(f, "\n  {cut}{shown}\n  {pad_cut}{pad}^")
}
