//! The options that make a program: what `natten run` computes of scores, and what `natten emit expr` shows.

use clap::Args;
use natten::program::{Capture, Field, Program};
use natten::{Error, Result};

use crate::console;

/// The texts of a program. What is left out is as softmax has it.
#[derive(Debug, Args)]
#[command(next_help_heading = "Program")]
pub(crate) struct ProgramArgs {
    /// The modified score of a pair, of score, b h hkv q k, q0 q1 q2 k0 k1 k2 and captured tensors:
    /// '20*tanh(score/20)'.
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    score: Option<String>,

    /// Whether a pair counts: 'k <= q && doc[q] == doc[k]'.
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    mask: Option<String>,

    /// How a row of scores becomes weights: softmax, softmax-sink[:CAPTURE], softmax1, sigmoid, relu[:POWER], identity,
    /// retention[:detach], l1, or a text: 'a = sum(abs(x)); x / max(a, 1)'.
    #[arg(long, value_name = "ROW", allow_hyphen_values = true)]
    row: Option<String>,

    /// What a weight is multiplied with after the row function.
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true, conflicts_with = "dropout")]
    post: Option<String>,

    /// Element d of the vector that takes the place of a query, of x, d, dim, half(x), pair(x), sum(x).
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    query_mod: Option<String>,

    /// The same of a key.
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    key_mod: Option<String>,

    /// The same of a value.
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    value_mod: Option<String>,

    /// The log of the decay at token k: makes this linear attention.
    #[arg(long, value_name = "EXPR", allow_hyphen_values = true)]
    decay: Option<String>,

    /// The probability with which a weight is dropped; the others are scaled by 1/(1-P).
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    dropout: Option<f64>,

    /// What the dropout mask is drawn from. Default: 0.
    #[arg(long, value_name = "N", allow_hyphen_values = true, requires = "dropout")]
    seed: Option<u64>,
}

impl ProgramArgs {
    /// Whether this is linear attention.
    pub(crate) const fn has_decay(&self) -> bool {
        self.decay.is_some()
    }

    /// The program, with those of the captured tensors that it uses. Tells which it does not.
    ///
    /// # Errors
    /// [`Error::Program`] for a text that breaks a rule, [`Error::Invalid`] for captured tensors that do and for a
    /// probability that is none.
    pub(crate) fn build(&self, rank: usize, captures: Vec<Capture>) -> Result<Program> {
        let program = self.build_with(rank, captures)?;
        let used = program.captures_of(&Field::ALL);
        let (mut kept, mut unused) = (Vec::new(), Vec::new());
        for (number, capture) in (0u8..).zip(program.captures()) {
            if used.contains(&number) {
                kept.push(capture.clone());
            } else {
                unused.push(capture.name.as_str());
            }
        }
        if unused.is_empty() {
            return Ok(program);
        }
        console::note(&format!("no expression uses these captured tensors: {}", unused.join(", ")));
        self.build_with(rank, kept)
    }

    fn build_with(&self, rank: usize, captures: Vec<Capture>) -> Result<Program> {
        let mut builder =
            captures.into_iter().fold(Program::builder(rank), |builder, capture| builder.capture(capture));
        for (field, text) in [
            (Field::Score, &self.score),
            (Field::Mask, &self.mask),
            (Field::Row, &self.row),
            (Field::Post, &self.post),
            (Field::QueryMod, &self.query_mod),
            (Field::KeyMod, &self.key_mod),
            (Field::ValueMod, &self.value_mod),
            (Field::Decay, &self.decay),
        ] {
            if let Some(text) = text {
                builder = builder.text(field, text);
            }
        }
        if let Some(p) = self.dropout {
            if !(0.0..1.0).contains(&p) {
                return Err(Error::invalid(
                    "dropout",
                    p,
                    "it is a probability: at least 0, and below 1",
                    "leave --dropout out to drop nothing",
                ));
            }
            builder = builder.dropout(p, self.seed.unwrap_or(0));
        }
        builder.build()
    }
}
