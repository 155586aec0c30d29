//! The words of a text: numbers, names and marks.

use std::fmt;

use crate::error::Result;

use super::{Field, MAX_TEXT, Span};

/// A word.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'t> {
    /// An integer literal. Its use says how large it may be.
    Int(u64),
    /// A number with a point or an exponent.
    Float(f64),
    Name(&'t str),
    Mark(&'static str),
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(value) => write!(f, "{value}"),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Name(name) => write!(f, "'{name}'"),
            Self::Mark(mark) => write!(f, "'{mark}'"),
            Self::End => f.write_str("the end"),
        }
    }
}

/// A word and its place.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lexeme<'t> {
    pub(super) token: Token<'t>,
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Longer ones first, so that the longest fits.
const MARKS: [&str; 22] = [
    "||", "&&", "<=", ">=", "==", "!=", "//", "<", ">", "+", "-", "*", "/", "%", "!", "(", ")", "[", "]",
    ",", ";", "=",
];

/// Marks of other languages, and what to write instead. Those that begin like one of ours are looked for first.
const FOREIGN: [(&str, &str); 9] = [
    ("**", "a power is powi(x, 2), or exp(y * log(x))"),
    ("<<", "shifts are shl(a, b) and shr(a, b)"),
    (">>", "shifts are shl(a, b) and shr(a, b)"),
    ("&", "use && between conditions, bitand(a, b) of integers"),
    ("|", "use || between conditions, bitor(a, b) of integers"),
    ("^", "a power is powi(x, 2), an exclusive or bitxor(a, b)"),
    ("~", "use ! of a condition, bitxor(a, -1) of an integer"),
    ("?", "a choice is select(condition, a, b)"),
    (":", "a choice is select(condition, a, b)"),
];

/// The words, the last of them [`Token::End`].
pub(super) fn lex(field: Field, text: &str) -> Result<Vec<Lexeme<'_>>> {
    if text.len() > MAX_TEXT {
        let shown = text.chars().take(32).collect::<String>() + "…";
        let message = format!("the text is {} bytes long, the limit is {MAX_TEXT}", text.len());
        return Err(Span { field, start: 0, end: 0 }.error(
            &shown,
            message,
            "put numbers into a captured tensor",
        ));
    }
    let mut words = Vec::new();
    let mut start = 0;
    while let Some(first) = text[start..].chars().next() {
        let rest = &text[start..];
        if first.is_whitespace() {
            start += first.len_utf8();
            continue;
        }
        let end_while = |is_in: fn(char) -> bool| rest.find(|c| !is_in(c)).unwrap_or(rest.len());
        let refuse = |message: String, hint: &'static str| {
            Err(Span { field, start, end: start + first.len_utf8() }.error(text, message, hint))
        };
        let foreign = FOREIGN
            .iter()
            .find(|(mark, _)| rest.starts_with(mark) && !rest.starts_with("&&") && !rest.starts_with("||"));
        let (token, len) = if first.is_ascii_digit() || first == '.' {
            let len = number_len(rest);
            let digits = &rest[..len];
            if rest[len..].starts_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.') || digits == "."
            {
                let word = &rest[..end_while(|c| c.is_alphanumeric() || c == '_' || c == '.')];
                return refuse(format!("'{word}' is not a number"), "write 2.5, 1e-3, or 2 * x");
            }
            let token = if digits.bytes().all(|c| c.is_ascii_digit()) {
                digits.parse().ok().map(Token::Int)
            } else {
                digits.parse().ok().filter(|value: &f64| value.is_finite()).map(Token::Float)
            };
            match token {
                Some(token) => (token, len),
                None => return refuse(format!("{digits} is too large"), "write inf for infinity"),
            }
        } else if first.is_ascii_alphabetic() || first == '_' {
            let len = end_while(|c| c.is_ascii_alphanumeric() || c == '_');
            (Token::Name(&rest[..len]), len)
        } else if let Some((mark, hint)) = foreign {
            return refuse(format!("'{mark}' is not an operator"), hint);
        } else if let Some(mark) = MARKS.iter().find(|mark| rest.starts_with(**mark)) {
            (Token::Mark(mark), mark.len())
        } else {
            return refuse(
                format!("unexpected character '{}'", first.escape_debug()),
                "names and numbers are of ASCII letters, digits and '_'",
            );
        };
        words.push(Lexeme { token, start, end: start + len });
        start += len;
    }
    words.push(Lexeme { token: Token::End, start: text.len(), end: text.len() });
    Ok(words)
}

/// The bytes of the number that a text begins with: digits, a point, digits, an exponent.
fn number_len(text: &str) -> usize {
    let bytes = text.as_bytes();
    let digits = |from: usize| bytes[from..].iter().take_while(|c| c.is_ascii_digit()).count();
    let mut len = digits(0);
    if bytes.get(len) == Some(&b'.') {
        len += 1;
        len += digits(len);
    }
    if matches!(bytes.get(len), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(bytes.get(len + 1), Some(b'+' | b'-')));
        match digits((len + 1 + sign).min(bytes.len())) {
            0 => {}
            exponent => len += 1 + sign + exponent,
        }
    }
    len
}
