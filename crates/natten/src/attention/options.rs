//! What can be set on a call.

use std::sync::Arc;

use natten_core::geometry::Alignment;
use natten_core::program::{Field, Program};
use natten_core::{HostElement, HostTensor, Role};

use super::{Attention, Pattern};
use crate::array::{Array, PerAxis};
use crate::block_mask::BlockMask;
use crate::device::Device;
use crate::execute::Operand;

/// Who sees whom, and where to compute.
impl<'a, T: HostElement> Attention<'a, T> {
    /// Neighbouring queries that share one window. Default 1. Ordinary attention has none to set.
    pub fn stride(mut self, value: impl Into<PerAxis<usize>>) -> Self {
        if let Pattern::Window(window) = &mut self.pattern {
            window.stride = value.into();
        }
        self
    }

    /// The distance of the keys of a window. Default 1. Ordinary attention has none to set.
    pub fn dilation(mut self, value: impl Into<PerAxis<usize>>) -> Self {
        if let Pattern::Window(window) = &mut self.pattern {
            window.dilation = value.into();
        }
        self
    }

    /// Whether a query sees nothing behind itself, on all axes or axis by axis. Default no. For ordinary attention `true`
    /// is [`Alignment::TopLeft`]; see [`align`](Self::align).
    pub fn causal(mut self, value: impl Into<PerAxis<bool>>) -> Self {
        let value = value.into();
        match &mut self.pattern {
            Pattern::Window(window) => window.causal = value,
            Pattern::Full(alignment) => {
                *alignment = value.contains(true).then_some(alignment.unwrap_or_default());
            }
        }
        self
    }

    /// Makes ordinary attention causal, with the diagonal where `alignment` says. A window's causality has no alignment.
    pub fn align(mut self, value: Alignment) -> Self {
        if let Pattern::Full(alignment) = &mut self.pattern {
            *alignment = Some(value);
        }
        self
    }

    /// Clamps a window that is too large for the tokens, instead of an error: see
    /// [`AxisParams::fit`](natten_core::geometry::AxisParams::fit).
    pub fn fit(mut self) -> Self {
        if let Pattern::Window(window) = &mut self.pattern {
            window.fit = true;
        }
        self
    }

    /// What scores are multiplied with. Default `D^-1/2`.
    pub fn scale(self, scale: f64) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// Adds a relative positional bias `[Hq, 2*k-1, …]` to the scaled scores.
    pub fn rpb(mut self, table: impl Into<Array<'a, T>>) -> Self {
        self.inputs.insert(Role::Rpb, table.into());
        self
    }

    /// Keys `[B, N, Hkv, D]` and values `[B, N, Hkv, Dv]` that every query sees beside its window.
    pub fn additional(mut self, key: impl Into<Array<'a, T>>, value: impl Into<Array<'a, T>>) -> Self {
        self.inputs.insert(Role::AdditionalKey, key.into());
        self.inputs.insert(Role::AdditionalValue, value.into());
        self
    }

    /// Where to compute. Default: what [`Registry::auto`](crate::Registry::auto) picks.
    pub fn device(self, device: &Device) -> Self {
        Self { device: Some(device.clone()), ..self }
    }
}

/// The program. Scores are scaled, then `rpb`, `score`, `mask`, `row` and `post` apply in this order. Additional tokens
/// have neither `score` nor `mask`.
impl<'a, T: HostElement> Attention<'a, T> {
    /// A finished program, instead of texts. Its captured tensors are given by their names.
    pub fn program(mut self, program: impl Into<Arc<Program>>) -> Self {
        self.script.program(program.into());
        self
    }

    /// The text of a field. Of several masks all must hold; of any other field the last text counts.
    pub fn text(mut self, field: Field, text: impl Into<String>) -> Self {
        self.script.text(field, text.into());
        self
    }

    /// The modified score of a pair: `20*tanh(score/20)`.
    pub fn score(self, text: impl Into<String>) -> Self {
        self.text(Field::Score, text)
    }

    /// Whether a pair counts: `k <= q`. Set again, both must hold.
    pub fn mask(self, text: impl Into<String>) -> Self {
        self.text(Field::Mask, text)
    }

    /// The row function: a preset's name, [`PRESETS`](natten_core::program::PRESETS), or a text,
    /// `a = sum(abs(x)); x / max(a, 1)`. Default `softmax`.
    pub fn row(self, text: impl Into<String>) -> Self {
        self.text(Field::Row, text)
    }

    /// What a weight is multiplied with.
    pub fn post(self, text: impl Into<String>) -> Self {
        self.text(Field::Post, text)
    }

    /// The vector function of queries: `x * cos(q * freq[d])`.
    pub fn query_mod(self, text: impl Into<String>) -> Self {
        self.text(Field::QueryMod, text)
    }

    /// The vector function of keys.
    pub fn key_mod(self, text: impl Into<String>) -> Self {
        self.text(Field::KeyMod, text)
    }

    /// The vector function of values.
    pub fn value_mod(self, text: impl Into<String>) -> Self {
        self.text(Field::ValueMod, text)
    }

    /// Drops weights with probability `p` and scales the others by `1/(1-p)`. The mask is a function of the seed, the
    /// batch entry, the head, the query and the key: the same on every device and in every pass. Takes the place of
    /// [`post`](Self::post).
    pub fn dropout(mut self, p: f64, seed: u64) -> Self {
        self.script.dropout(p, seed);
        self
    }

    /// A tensor that texts load from by its name, `slope[h]`; a scalar (an array without axes) is written bare. Has a
    /// gradient where anything but the mask uses it.
    pub fn capture(mut self, name: impl Into<String>, array: impl Into<Array<'a, T>>) -> Self {
        self.script.capture(name.into(), Operand::Numbers(array.into()));
        self
    }

    /// A tensor of integers that texts load from: of document numbers, block lists, positions.
    pub fn capture_i32(mut self, name: impl Into<String>, array: impl Into<Array<'a, i32>>) -> Self {
        self.script.capture(name.into(), Operand::Integers(array.into()));
        self
    }

    /// A tensor of any element type that texts load from.
    pub fn capture_tensor(mut self, name: impl Into<String>, tensor: &'a HostTensor) -> Self {
        self.script.capture(name.into(), Operand::Host(tensor));
        self
    }

    /// Makes a captured tensor a constant: its gradient is not computed.
    pub fn constant(mut self, name: impl Into<String>) -> Self {
        self.script.constant(name.into());
        self
    }

    /// Lets only the pairs of listed blocks count, beside what [`mask`](Self::mask) says. The list is captured as `name`.
    pub fn block_mask(self, name: impl Into<String>, blocks: &'a BlockMask) -> Self {
        let name = name.into();
        let text = blocks.text(&name);
        self.capture_i32(name, blocks.array()).mask(text)
    }
}
