//! Row functions by name, each as the text that it is.

use crate::error::{Error, Result};

/// A row function that has a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Preset {
    /// Its name.
    pub name: &'static str,
    /// What may follow the name behind a colon, in words; empty where nothing may.
    pub option: &'static str,
    /// Its text, the option at its default.
    pub text: &'static str,
    /// What it is.
    pub about: &'static str,
}

/// Every preset.
pub const PRESETS: &[Preset] = &[
    Preset { name: "softmax", option: "", text: "l = lse(x); exp(x - l)", about: "weights sum to 1" },
    Preset {
        name: "softmax-sink",
        option: "the captured sink, one number a head; default sink",
        text: "l = lse(x); exp(x - logaddexp(l, sink[h]))",
        about: "softmax with one more element in the denominator, of score sink[h] and value 0",
    },
    Preset {
        name: "softmax1",
        option: "",
        text: "l = lse(x); exp(x - softplus(l))",
        about: "softmax with 1 added to the denominator: exp(x) / (1 + Σ exp(x))",
    },
    Preset { name: "sigmoid", option: "", text: "sigmoid(x)", about: "every element by itself" },
    Preset {
        name: "relu",
        option: "the power; default 1",
        text: "relu(x)",
        about: "every element by itself, to a power",
    },
    Preset { name: "identity", option: "", text: "x", about: "the scores themselves" },
    Preset {
        name: "retention",
        option: "detach: the row's scale is a constant to derivatives",
        text: "a = sum(abs(x)); x / max(a, 1)",
        about: "RetNet's parallel form: scores over the sum of their magnitudes, where that is above 1",
    },
    Preset {
        name: "l1",
        option: "",
        text: "a = sum(relu(x)); relu(x) / select(a > 0, a, 1.0)",
        about: "positive scores over their sum",
    },
];

/// The text of `name` or `name:option`; None where `spec` is not a preset's.
///
/// # Errors
/// [`Error::Invalid`] where the preset does not have this option.
pub(super) fn text_of(spec: &str) -> Result<Option<String>> {
    let (name, option) = spec.split_once(':').map_or((spec, None), |(name, option)| (name, Some(option)));
    let Some(preset) = PRESETS.iter().find(|preset| preset.name == name.trim()) else { return Ok(None) };
    let refuse = |rule: String| {
        Err(Error::invalid(
            "row",
            format!("'{spec}'"),
            rule,
            "leave the option out, or write the row as text",
        ))
    };
    match (preset.name, option.map(str::trim)) {
        (_, None) => Ok(Some(preset.text.to_owned())),
        ("softmax-sink", Some(sink)) if super::text::check_name(sink).is_ok() => {
            Ok(Some(preset.text.replace("sink[", &format!("{sink}["))))
        }
        ("relu", Some(power)) => match power.parse::<u8>() {
            Ok(power) if power >= 1 => Ok(Some(match power {
                1 => preset.text.to_owned(),
                _ => format!("powi(relu(x), {power})"),
            })),
            _ => refuse("the power must be an integer from 1 to 255".to_owned()),
        },
        ("retention", Some("detach")) => Ok(Some("a = sum(abs(x)); x / stop_grad(max(a, 1))".to_owned())),
        (name, Some(_)) if preset.option.is_empty() => refuse(format!("{name} has no options")),
        (name, Some(_)) => refuse(format!("{name} takes {}", preset.option)),
    }
}
