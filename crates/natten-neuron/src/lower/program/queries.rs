//! The kernel that walks queries: outputs, logsumexps and their tangents; or gradients of queries, of bias tables and of
//! captured tensors, with the numbers of the rows that the kernel of the keys needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use natten_core::program::{Expr, Lowered, Primal, Var};
use natten_core::{Op, OpRequest, Problem, Result, Role};

use super::super::launch::{Launch, Sink, Source};
use super::super::layout::{Layout, Tokens};
use super::super::windows::Windows;
use super::emitter::{COLUMNS, Emitter};
use super::eval::Value;
use super::rows::{LEAST, Tile};
use super::site::Site;
use super::{Functions, Kernel, Rows, of_additional, product_inputs};
use crate::dtype::Dtype;
use crate::ir::{Alu, Engine, Op as Instruction, Operand, TensorId, View};

/// Tiles of pairs that go to the launcher, which adds them up by element.
struct Scattered {
    tensor: TensorId,
    role: Role,
    places: Vec<u32>,
}

struct Outputs {
    tensors: BTreeMap<Role, TensorId>,
    stats: Option<TensorId>,
    scattered: Vec<Scattered>,
    numbers: BTreeMap<Role, TensorId>,
}

/// Lowers the kernel. `stats` tells whether the rows' numbers are kept.
pub(super) fn lower(
    problem: &Problem,
    request: &OpRequest,
    windows: &Windows,
    functions: &Functions,
    dtype: Dtype,
    is_exact: bool,
    stats: bool,
) -> Result<Launch> {
    let mut roles = product_inputs(problem, request);
    if request.op == Op::Backward {
        roles.push(Role::Output);
    }
    let name = match request.op {
        Op::Forward => "natten_forward",
        Op::ForwardJvp => "natten_jvp",
        _ => "natten_backward_queries",
    };
    let mut em = Emitter::new(problem, name, dtype, &roles, is_exact);
    let mut outputs = Outputs {
        tensors: em.results(
            request,
            &[Role::Output, Role::Logsumexp, Role::TangentOutput, Role::TangentLogsumexp, Role::GradQuery],
        ),
        stats: None,
        scattered: Vec::new(),
        numbers: BTreeMap::new(),
    };
    for role in [Role::Logsumexp, Role::GradLogsumexp] {
        let is_given = match role {
            Role::Logsumexp => request.op == Op::Backward && problem.has_logsumexp(),
            role => request.op == Op::Backward && request.gives(role),
        };
        if is_given {
            let shape = problem.shape(role);
            let tensor = em.input(&problem.name(role), &shape, Dtype::F32, Source::Role(role));
            outputs.numbers.insert(role, tensor);
        }
    }
    if stats {
        let mut shape = problem.shape(Role::Logsumexp);
        shape.push(2 * functions.grid.stages.len());
        outputs.stats = Some(em.output("row_numbers", &shape, Dtype::F32, Sink::Kept));
    }
    if request.op == Op::Backward {
        let mut scattered = Vec::new();
        if request.wants.contains(Role::GradRpb) {
            scattered.push(Role::GradRpb);
        }
        scattered.extend(
            functions
                .grid
                .loads
                .iter()
                .map(|load| Role::GradCapture(load.capture))
                .chain(functions.additional.loads.iter().map(|load| Role::GradCapture(load.capture)))
                .filter(|&role| request.wants.contains(role)),
        );
        scattered.sort_unstable();
        scattered.dedup();
        for role in scattered {
            let name = format!("{}_tiles", problem.name(role));
            let tensor = em.output(&name, &[0], Dtype::F32, Sink::Kept);
            outputs.scattered.push(Scattered { tensor, role, places: Vec::new() });
        }
    }
    let mut kernel = Kernel { em, problem, functions, request: *request };
    for batch in 0..problem.batch() {
        for head in 0..problem.heads() {
            for queries in windows.query_boxes() {
                let blocks = windows.blocks(&queries, COLUMNS);
                let blocks = match is_exact {
                    true => kernel.unmasked(batch, head, queries, blocks)?,
                    false => blocks,
                };
                let mut tile = Tile::new(&kernel, batch, head, queries, &blocks);
                kernel.em.begin_rows();
                match request.op {
                    Op::Forward => kernel.forward(&mut tile, &outputs)?,
                    Op::ForwardJvp => kernel.tangents(&mut tile, &outputs)?,
                    _ => kernel.backward(&mut tile, &mut outputs)?,
                }
                kernel.leave(tile);
            }
        }
    }
    for Scattered { tensor, role, mut places } in outputs.scattered {
        if places.is_empty() {
            // Nothing was scattered: one element that goes nowhere.
            places.push(u32::MAX);
            let zero = kernel.em.row(1, 1);
            kernel.em.fill(zero.clone(), 0.0);
            let dst = kernel.em.b.pattern(tensor, 1, 0, vec![(1, 1)]);
            kernel.em.b.dma(dst, zero);
        }
        kernel.em.set_sink(tensor, places.len(), Sink::Scatter(role, Arc::new(places)));
    }
    Ok(kernel.em.finish())
}

impl Kernel<'_> {
    fn forward(&mut self, tile: &mut Tile<'_>, outputs: &Outputs) -> Result<()> {
        let mut rows = Rows::new();
        let raw = self.stages(tile, &mut rows)?;
        let at = (tile.batch, tile.head);
        let queries = Tokens::Box(tile.queries);
        if let Some(&tensor) = outputs.tensors.get(&Role::Logsumexp)
            && let Some(k) = self.functions.grid.logsumexp
            && let Some(view) = &raw[usize::from(k)]
        {
            let layout = Layout::rows(self.problem, 1);
            self.em.store(tensor, &layout, (at.0, at.1, &queries), view.clone());
        }
        let Some(&tensor) = outputs.tensors.get(&Role::Output) else { return Ok(()) };
        let mut is_first = true;
        self.sweep(
            tile,
            &rows,
            |lowered| vec![lowered.weight.value],
            |kernel, scope, rows| {
                let weight = kernel.em.masked(scope, rows, scope.lowered.weight.value, 0.0)?;
                kernel.multiply(scope.site, &weight, Role::Value, &mut is_first);
                kernel.em.release(&weight);
                Ok(())
            },
        )?;
        self.write((tensor, Role::Output), tile, &rows, is_first, 1.0);
        Ok(())
    }

    fn tangents(&mut self, tile: &mut Tile<'_>, outputs: &Outputs) -> Result<()> {
        let mut rows = Rows::new();
        self.stages(tile, &mut rows)?;
        self.stage_tangents(tile, &mut rows)?;
        let queries = Tokens::Box(tile.queries);
        if let Some(&tensor) = outputs.tensors.get(&Role::TangentLogsumexp)
            && let Some(k) = self.functions.grid.logsumexp
        {
            let value = rows.get(&Var::Tangent(Primal::Stage(k)));
            let view = self.row_view(value, tile.rows());
            let layout = Layout::rows(self.problem, 1);
            self.em.store(tensor, &layout, (tile.batch, tile.head, &queries), view);
        }
        let Some(&tensor) = outputs.tensors.get(&Role::TangentOutput) else { return Ok(()) };
        let mut is_first = true;
        let roots = |lowered: &Lowered| vec![lowered.weight.value, lowered.weight.tangent];
        self.sweep(tile, &rows, roots, |kernel, scope, rows| {
            let role = if scope.site.block.additional {
                of_additional(Role::TangentValue)
            } else {
                Role::TangentValue
            };
            match kernel.em.has(role) {
                true => {
                    let weight = kernel.em.masked(scope, rows, scope.lowered.weight.value, 0.0)?;
                    kernel.multiply(scope.site, &weight, Role::TangentValue, &mut is_first);
                    kernel.em.release(&weight);
                }
                false => kernel.em.used(scope, scope.lowered.weight.value),
            }
            let tangent = kernel.em.masked(scope, rows, scope.lowered.weight.tangent, 0.0)?;
            kernel.multiply(scope.site, &tangent, Role::Value, &mut is_first);
            kernel.em.release(&tangent);
            Ok(())
        })?;
        self.write((tensor, Role::TangentOutput), tile, &rows, is_first, 1.0);
        Ok(())
    }

    fn backward(&mut self, tile: &mut Tile<'_>, outputs: &mut Outputs) -> Result<()> {
        let mut rows = Rows::new();
        let height = tile.rows();
        let queries = Tokens::Box(tile.queries);
        let numbers = Layout::rows(self.problem, 1);
        for (role, var) in [
            (Role::Logsumexp, self.functions.grid.logsumexp.map(Var::Stage)),
            (Role::GradLogsumexp, Some(Var::GradLogsumexp)),
        ] {
            if let (Some(&tensor), Some(var)) = (outputs.numbers.get(&role), var) {
                let view = self.em.row(height, 1);
                self.em.load(tensor, &numbers, (tile.batch, tile.head, &queries), view.clone());
                if role == Role::Logsumexp {
                    self.em.b.tensor_scalar(view.clone(), Alu::Max, view.clone(), Operand::Const(LEAST));
                }
                rows.insert(var, Value::Row(view));
            }
        }
        let delta = self.delta(tile);
        rows.insert(Var::Delta, Value::Row(delta));
        self.stages(tile, &mut rows)?;
        self.grad_stages(tile, &mut rows)?;
        if let Some(tensor) = outputs.stats {
            let count = self.functions.grid.stages.len();
            let packed = self.em.row(height, 2 * count);
            for k in 0..count {
                for (column, var) in [(k, Var::Stage(k as u8)), (count + k, Var::GradStage(k as u8))] {
                    let view = self.row_view(rows.get(&var), height);
                    self.em.b.copy(Engine::Vector, packed.columns(column, 1), view);
                }
            }
            let layout = Layout::rows(self.problem, 2 * count);
            self.em.store(tensor, &layout, (tile.batch, tile.head, &queries), packed);
        }
        let of_query = outputs.tensors.get(&Role::GradQuery).copied();
        let of_bias = outputs.scattered.iter().any(|scattered| scattered.role == Role::GradRpb);
        if of_query.is_none() && outputs.scattered.is_empty() {
            return Ok(());
        }
        let mut is_first = true;
        let roots = |lowered: &Lowered| -> Vec<Expr> {
            let loads = lowered.loads.iter().map(|load| load.gradient.value);
            std::iter::once(lowered.grad_score.value).chain(loads).collect()
        };
        self.sweep(tile, &rows, roots, |kernel, scope, rows| {
            let gradient = kernel.em.masked(scope, rows, scope.lowered.grad_score.value, 0.0)?;
            if of_query.is_some() {
                kernel.multiply(scope.site, &gradient, Role::Key, &mut is_first);
            }
            if of_bias && !scope.site.block.additional {
                let places = scope.site.bias_entries();
                kernel.scatter(outputs, Role::GradRpb, scope.site, places, gradient.clone());
            }
            kernel.em.release(&gradient);
            for load in scope.lowered.loads.clone() {
                let role = Role::GradCapture(load.capture);
                if outputs.scattered.iter().any(|scattered| scattered.role == role) {
                    let tile = kernel.em.masked(scope, rows, load.gradient.value, 0.0)?;
                    let shape = &kernel.problem.program().captures()[usize::from(load.capture)].shape;
                    let width = scope.site.columns();
                    let places = scope.site.elements(&scope.lowered.graph, shape, &load.index, width)?;
                    kernel.scatter(outputs, role, scope.site, places, tile.clone());
                    kernel.em.release(&tile);
                }
            }
            Ok(())
        })?;
        if let Some(tensor) = of_query {
            self.write((tensor, Role::GradQuery), tile, &rows, is_first, self.problem.scale() as f32);
        }
        Ok(())
    }

    /// `⟨grad_output, output⟩` of each row.
    fn delta(&mut self, tile: &Tile<'_>) -> View {
        let queries = Tokens::Box(tile.queries);
        let output = self.em.natural(Role::Output, tile.batch, tile.head, &queries);
        let grad = self.em.natural(Role::GradOutput, tile.batch, tile.head, &queries);
        let mut total = None;
        let dim = output.len();
        for start in (0..dim).step_by(COLUMNS) {
            let len = COLUMNS.min(dim - start);
            let product = self.em.tile(tile.rows(), len);
            let (a, b) = (output.columns(start, len), grad.columns(start, len));
            self.em.b.tensor_tensor(product.clone(), Alu::Multiply, a, b);
            self.reduce(&mut total, Alu::Add, &product);
            self.em.release(&product);
        }
        total.unwrap_or_else(|| self.em.row(tile.rows(), 1))
    }

    /// Adds the product of a tile of pairs and the vectors of its keys to the accumulator.
    fn multiply(&mut self, site: &Site<'_>, tile: &View, role: Role, is_first: &mut bool) {
        let role = if site.block.additional { of_additional(role) } else { role };
        let head_kv = self.head_kv(site.head);
        let dim = self.em.layout(role).dim();
        for operand in self.operands(tile, matches!(role, Role::Key | Role::AdditionalKey)) {
            for (column, chunk) in site.block.columns() {
                let stationary = self.em.transposed_tile(operand.columns(column, chunk.len()));
                let moving = self.em.natural(role, site.batch, head_kv, chunk);
                let dst = self.em.b.at(self.em.accumulators[0], site.rows(), 0, dim);
                self.em.b.matmul(dst, stationary, moving, !*is_first);
                *is_first = false;
            }
        }
    }

    /// Writes the accumulator, zeros where nothing was added to it.
    fn write(&mut self, to: (TensorId, Role), tile: &Tile<'_>, rows: &Rows, is_empty: bool, scale: f32) {
        let (tensor, role) = to;
        let alive = self.alive(rows);
        let layout = Layout::of(self.problem, role);
        let result = self.em.result(tile.rows(), layout.dim());
        match is_empty {
            true => self.em.fill(result.clone(), 0.0),
            false if alive.is_some() => {
                let data = self.em.b.at(self.em.accumulators[0], tile.rows(), 0, layout.dim());
                self.write_alive(&result, data, alive, scale);
            }
            false => {
                let data = self.em.b.at(self.em.accumulators[0], tile.rows(), 0, layout.dim());
                self.em.b.tensor_scalar(result.clone(), Alu::Multiply, data, Operand::Const(scale));
            }
        }
        let queries = Tokens::Box(tile.queries);
        self.em.store(tensor, &layout, (tile.batch, tile.head, &queries), result);
    }

    /// The logsumexp of the rows, where one of -inf may meet operands that are not finite.
    fn alive(&self, rows: &Rows) -> Option<View> {
        let k = self.functions.grid.logsumexp.filter(|_| self.em.is_exact)?;
        match rows.get(&Var::Stage(k)) {
            Some(Value::Row(view)) => Some(view.clone()),
            _ => None,
        }
    }

    /// Writes the rows that see something; 0 for the others, whatever their products are.
    fn write_alive(&mut self, result: &View, data: View, alive: Option<View>, scale: f32) {
        let Some(logsumexp) = alive else { return };
        self.em.fill(result.clone(), 0.0);
        for start in (0..data.len()).step_by(COLUMNS) {
            let len = COLUMNS.min(data.len() - start);
            let (scaled, holds) = (self.em.tile(data.parts, len), self.em.tile(data.parts, len));
            let part = data.columns(start, len);
            self.em.b.tensor_scalar(scaled.clone(), Alu::Multiply, part, Operand::Const(scale));
            self.em.fill(holds.clone(), LEAST);
            let row = Operand::Row(logsumexp.clone());
            self.em.b.tensor_scalar(holds.clone(), Alu::IsNe, holds.clone(), row);
            let predicate = self.em.predicate(&holds, false);
            let dst = result.columns(start, len);
            self.em
                .b
                .push(Engine::Vector, Instruction::CopyPredicated { dst, src: scaled.clone(), predicate });
            self.em.release(&scaled);
            self.em.release(&holds);
        }
    }

    /// Writes a tile of pairs for the launcher to add up by element; what does not count is 0 there.
    fn scatter(&mut self, outputs: &mut Outputs, role: Role, site: &Site<'_>, places: Vec<u32>, tile: View) {
        let Some(scattered) = outputs.scattered.iter_mut().find(|scattered| scattered.role == role) else {
            return;
        };
        let start = scattered.places.len();
        scattered.places.extend(places);
        let pairs = vec![(site.columns(), site.rows()), (1, site.columns())];
        let dst = self.em.b.pattern(scattered.tensor, 1, start, pairs);
        self.em.b.push(Engine::GpSimd, Instruction::DmaCopy { dst, src: tile });
    }
}
