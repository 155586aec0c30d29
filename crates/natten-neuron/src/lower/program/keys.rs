//! The kernel that walks keys: gradients of keys and values. Of each key box it visits the query boxes that see it, with
//! the queries on the partitions, so that weights and score gradients are stationary operands as they are:
//!
//! ```text
//! dv[k] = Σ_q w[q, k] do[q]        dk[k] = scale Σ_q ds[q, k] q[q]
//! ```
//!
//! Both sums stay in PSUM over all queries, and over all query heads of a key head.

use std::collections::BTreeMap;

use natten_core::geometry::TileBox;
use natten_core::program::{Expr, Lowered, Var};
use natten_core::{OpRequest, Problem, Result, Role};

use super::super::launch::{Launch, Source};
use super::super::layout::{Layout, Tokens};
use super::super::windows::{Block, Windows};
use super::emitter::{COLUMNS, Emitter};
use super::eval::Value;
use super::rows::Tile;
use super::{Functions, Kernel, Rows, product_inputs};
use crate::dtype::Dtype;
use crate::ir::{Alu, Operand, TensorId};

struct Outputs {
    tensors: BTreeMap<Role, TensorId>,
    stats: Option<TensorId>,
}

pub(super) fn lower(
    problem: &Problem,
    request: &OpRequest,
    windows: &Windows,
    functions: &Functions,
    dtype: Dtype,
    is_exact: bool,
) -> Result<Launch> {
    let roles = product_inputs(problem, request);
    let mut em = Emitter::new(problem, "natten_backward_keys", dtype, &roles, is_exact);
    let stages = functions.grid.stages.len();
    let stats = (stages > 0).then(|| {
        let mut shape = problem.shape(Role::Logsumexp);
        shape.push(2 * stages);
        // Behind the gradient of the queries, where that is wanted.
        let output = usize::from(request.wants.contains(Role::GradQuery));
        em.input("row_numbers", &shape, Dtype::F32, Source::Result(0, output))
    });
    let of_keys = [Role::GradKey, Role::GradValue, Role::GradAdditionalKey, Role::GradAdditionalValue];
    let outputs = Outputs { tensors: em.results(request, &of_keys), stats };
    let mut kernel = Kernel { em, problem, functions, request: *request };
    for batch in 0..problem.batch() {
        for head_kv in 0..problem.heads_kv() {
            for (keys, queries) in windows.key_boxes() {
                let queries = queries
                    .into_iter()
                    .map(|(queries, class)| (queries, class != natten_core::geometry::TileClass::Full));
                kernel.keys(batch, head_kv, Tokens::Box(keys), queries.collect(), &outputs)?;
            }
            for block in windows.additional_blocks(COLUMNS / 2) {
                for chunk in block.chunks {
                    let queries = windows.query_boxes().map(|queries| (queries, false)).collect();
                    kernel.keys(batch, head_kv, chunk, queries, &outputs)?;
                }
            }
        }
    }
    Ok(kernel.em.finish())
}

impl Kernel<'_> {
    /// The gradients of some keys and their values.
    fn keys(
        &mut self,
        batch: usize,
        head_kv: usize,
        keys: Tokens,
        queries: Vec<(TileBox, bool)>,
        outputs: &Outputs,
    ) -> Result<()> {
        let additional = matches!(keys, Tokens::Range(..));
        let (of_key, of_value) = match additional {
            true => (Role::GradAdditionalKey, Role::GradAdditionalValue),
            false => (Role::GradKey, Role::GradValue),
        };
        let wants = [of_value, of_key].map(|role| outputs.tensors.get(&role).copied());
        if wants == [None, None] {
            return Ok(());
        }
        let group = self.problem.heads_per_kv();
        let mut is_first = true;
        for head in head_kv * group..(head_kv + 1) * group {
            let queries = match self.em.is_exact && !additional {
                true => self.unmasked_queries(batch, head, &keys, &queries)?,
                false => queries.clone(),
            };
            for (queries, is_edge) in queries {
                let blocks = vec![Block { additional, chunks: vec![keys], is_edge }];
                let mut tile = Tile::new(self, batch, head, queries, &blocks);
                self.em.begin_rows();
                let rows = self.row_numbers(&tile, outputs);
                let roots = |lowered: &Lowered| -> Vec<Expr> {
                    let both = [lowered.weight.value, lowered.grad_score.value];
                    both.into_iter().zip(wants).filter_map(|(expr, want)| want.map(|_| expr)).collect()
                };
                self.sweep(&mut tile, &rows, roots, |kernel, scope, rows| {
                    let both = [scope.lowered.weight.value, scope.lowered.grad_score.value];
                    for (turn, (expr, role)) in
                        both.into_iter().zip([Role::GradOutput, Role::Query]).enumerate()
                    {
                        if wants[turn].is_none() {
                            continue;
                        }
                        let pairs = kernel.em.masked(scope, rows, expr, 0.0)?;
                        for (part, stationary) in kernel.operands(&pairs, turn == 1).into_iter().enumerate() {
                            let moving = kernel.em.natural(role, batch, head, &Tokens::Box(queries));
                            let dst =
                                kernel.em.b.at(kernel.em.accumulators[turn], keys.len(), 0, moving.len());
                            kernel.em.b.matmul(dst, stationary, moving, !is_first || part > 0);
                        }
                        kernel.em.release(&pairs);
                    }
                    Ok(())
                })?;
                is_first = false;
                self.leave(tile);
            }
        }
        for (turn, (role, tensor)) in [of_value, of_key].into_iter().zip(wants).enumerate() {
            let Some(tensor) = tensor else { continue };
            let layout = Layout::of(self.problem, role);
            let result = self.em.result(keys.len(), layout.dim());
            if is_first {
                self.em.fill(result.clone(), 0.0);
            } else {
                let data = self.em.b.at(self.em.accumulators[turn], keys.len(), 0, layout.dim());
                let scale = if turn == 1 { self.problem.scale() as f32 } else { 1.0 };
                self.em.b.tensor_scalar(result.clone(), Alu::Multiply, data, Operand::Const(scale));
            }
            self.em.store(tensor, &layout, (batch, head_kv, &keys), result);
        }
        Ok(())
    }

    /// The queries of some boxes that the program's mask lets see one key, query by query.
    fn unmasked_queries(
        &self,
        batch: usize,
        head: usize,
        keys: &Tokens,
        queries: &[(TileBox, bool)],
    ) -> Result<Vec<(TileBox, bool)>> {
        if self.functions.grid.mask.is_none() {
            return Ok(queries.to_vec());
        }
        let mut kept = Vec::new();
        for (tile, is_edge) in queries {
            for query in 0..tile.volume() {
                let one = TileBox { start: tile.position(query), extent: [1; 3], ..*tile };
                let block = Block { additional: false, chunks: vec![*keys], is_edge: *is_edge };
                if !self.unmasked(batch, head, one, vec![block])?.is_empty() {
                    kept.push((one, *is_edge));
                }
            }
        }
        Ok(kept)
    }

    /// The stages of the rows and their cotangents, as the first kernel left them.
    fn row_numbers(&mut self, tile: &Tile<'_>, outputs: &Outputs) -> Rows {
        let mut rows = Rows::new();
        let Some(tensor) = outputs.stats else { return rows };
        let count = self.functions.grid.stages.len();
        let packed = self.em.row(tile.rows(), 2 * count);
        let layout = Layout::rows(self.problem, 2 * count);
        let queries = Tokens::Box(tile.queries);
        self.em.load(tensor, &layout, (tile.batch, tile.head, &queries), packed.clone());
        for k in 0..count {
            rows.insert(Var::Stage(k as u8), Value::Row(packed.columns(k, 1)));
            rows.insert(Var::GradStage(k as u8), Value::Row(packed.columns(count + k, 1)));
        }
        rows
    }
}
