//! The tensors of a run, as the walks take them.

use super::code::Vectors;
use crate::element::Real;
use crate::kernel::{Bias, BiasGradient};
use crate::tokens::Tokens;

/// A tensor, and its tangent.
pub(crate) type Dual<T> = [Option<T>; 2];

/// The tensors of a run. Vectors may lie in tensors or, behind vector functions, in the workspace.
#[derive(Debug)]
pub(crate) struct Operands<R: Real> {
    pub(crate) query: Dual<Tokens<R>>,
    pub(crate) key: Dual<Tokens<R>>,
    pub(crate) value: Dual<Tokens<R>>,
    pub(crate) additional_key: Dual<Tokens<R>>,
    pub(crate) additional_value: Dual<Tokens<R>>,
    pub(crate) grad_output: Dual<Tokens<R>>,
    pub(crate) grad_logsumexp: Dual<Tokens<R>>,
    pub(crate) bias: Dual<Bias<R>>,
    /// Written by the forward pass, read by the backward one; and the tangents, which are always results.
    pub(crate) output: Dual<Tokens<R>>,
    pub(crate) logsumexp: Dual<Tokens<R>>,
    /// Gradients, or with `BackwardJvp` their tangents.
    pub(crate) grad_query: Option<Tokens<R>>,
    pub(crate) grad_key: Option<Tokens<R>>,
    pub(crate) grad_value: Option<Tokens<R>>,
    pub(crate) grad_additional_key: Option<Tokens<R>>,
    pub(crate) grad_additional_value: Option<Tokens<R>>,
    pub(crate) grad_bias: Option<BiasGradient>,
    /// Numbers of every query that the walk with stationary keys reads, in the workspace.
    pub(crate) stored: Option<Tokens<R>>,
}

impl<R: Real> Operands<R> {
    /// What belongs to queries.
    pub(super) fn of_queries(&self, vectors: Vectors) -> Option<&Tokens<R>> {
        match vectors {
            Vectors::A => self.query[0].as_ref(),
            Vectors::ATangent => self.query[1].as_ref(),
            Vectors::B => self.grad_output[0].as_ref(),
            Vectors::BTangent => self.grad_output[1].as_ref(),
        }
    }

    /// What belongs to keys: to those of the window or to the additional ones.
    pub(super) fn of_keys(&self, is_window: bool, vectors: Vectors) -> Option<&Tokens<R>> {
        let (key, value) = match is_window {
            true => (&self.key, &self.value),
            false => (&self.additional_key, &self.additional_value),
        };
        match vectors {
            Vectors::A => key[0].as_ref(),
            Vectors::ATangent => key[1].as_ref(),
            Vectors::B => value[0].as_ref(),
            Vectors::BTangent => value[1].as_ref(),
        }
    }
}
