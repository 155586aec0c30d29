//! How many iterations of loops an invocation of a shader makes at most, for drivers that end it after so many: bounds,
//! not counts, and only as close as a software driver needs.

use natten_core::geometry::Axis;
use natten_core::{Error, Result};

use super::Builder;
use crate::NAME;
use crate::template::UNROLLED;

impl Builder<'_> {
    /// Loops over vectors of one pair, of all functions that a walk may evaluate.
    fn of_pair(&self) -> u64 {
        let (dim, dim_v) = (self.problem.head_dim() as u64, self.problem.head_dim_v() as u64);
        let unrolled = UNROLLED as u64;
        let numbers = if self.request.op.is_forward_mode() { 3 } else { 1 };
        2 + numbers * (2 * (dim / unrolled) + 2 * (dim_v / unrolled))
    }

    /// Of a row: a sweep over its keys for every kind of number.
    pub(super) fn of_row(&self) -> u64 {
        let keys = self.problem.neighborhood().window_len() as u64 + self.problem.additional_tokens() as u64;
        let sweeps = if self.request.op.is_forward_mode() { 5 } else { 3 };
        sweeps * keys * self.of_pair()
    }

    /// Of a key: a sweep over the queries that see it.
    pub(super) fn of_key(&self) -> u64 {
        let axes = self.problem.neighborhood().axes();
        let most = |axis: &Axis| {
            let seen = (0..axis.key_group_len(0)).map(|key| axis.queries_of(0, key).len() as u64);
            if self.problem.additional_tokens() > 0 {
                axis.query_len() as u64
            } else {
                seen.max().unwrap_or(0)
            }
        };
        let queries: u64 = axes.iter().map(most).product();
        queries * self.problem.heads_per_kv() as u64 * self.of_pair()
    }

    /// Of a state's row or column: every token twice, back and forth.
    pub(super) fn of_recurrence(&self) -> u64 {
        let tokens: usize = self.problem.neighborhood().key_shape().iter().product();
        let longest = self.problem.head_dim().max(self.problem.head_dim_v());
        4 * tokens as u64 * (1 + (longest / UNROLLED) as u64)
    }

    /// That the driver lets an invocation make so many iterations.
    pub(super) fn check_loops(&self, label: &str, iterations: u64) -> Result<()> {
        match self.target.loop_iterations {
            Some(most) if iterations > most => Err(Error::unsupported(
                NAME,
                format!("{} of this size", self.request.op),
                format!(
                    "the software driver llvmpipe ends the loops of an invocation after {most} iterations, and \
                     '{label}' may make {iterations}; use --backend cpu, or a smaller window or input"
                ),
            )),
            _ => Ok(()),
        }
    }
}
