//! The engine of the unfused pair: `qk` writes the scores of every query's window, `av` weighs values with what a
//! caller made of them; and their derivatives. Scores lie in slots, [`Neighborhood::slot_of`] in core.
//!
//! Both are linear in each argument, so every operation is made of three kinds of work:
//!
//! | work | of | operations |
//! |---|---|---|
//! | store products | `slot[i, j] = Σ_terms ⟨a_i, b_j⟩` | `qk`, `qk-jvp`; `grad_attention` of `av-backward` |
//! | sum over keys | `a_i = Σ_j Σ_terms slot[i, j] b_j` | `av`, `av-jvp`; `grad_query` of `qk-backward` |
//! | sum over queries | `b_j = Σ_i slot[i, j] a_i` | `grad_key` of `qk-backward`, `grad_value` of `av-backward` |
//!
//! [`Neighborhood::slot_of`]: natten_core::geometry::Neighborhood::slot_of

mod table;
mod work;

use bytemuck::cast_slice_mut;
use natten_core::geometry::Coverage;
use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, Result, Role, coverage_of};

use self::table::Table;
use self::work::{KeySums, Keys, QuerySums, Store, Term, Work};
use crate::element::Real;
use crate::engine::{Crew, Engine, Line, Tensors, lines};
use crate::isa::Isa;
use crate::kernel::{Bias, BiasGradient, Scratch, ScratchSizes, bias_partials_per_head, sum_bias_tables};
use crate::lanes::Direction;
use crate::simd::{self, lanes};
use crate::tiling::Pass;
use crate::tokens::Tokens;

/// An operation of the unfused pair, prepared.
#[derive(Debug)]
pub(crate) struct Unfused {
    problem: Problem,
    request: OpRequest,
    crew: Crew,
    queries: Pass,
    keys: Pass,
    sizes: ScratchSizes,
    /// Lines of the partial tables of the bias gradient.
    tables: usize,
    /// Lines of a thread's scratch.
    scratch: usize,
}

impl Unfused {
    pub(crate) fn new(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        crew: Crew,
    ) -> Result<Self> {
        let accumulator = problem.dtype().accumulator();
        let lanes = lanes(crew.isa, problem.dtype());
        let pass = |direction| {
            Pass::new(direction, problem, options, 2 * lanes, accumulator.size())
                .map(|pass| pass.with_rows_for(problem.additional_tokens()))
        };
        let (queries, keys) = (pass(Direction::Keys)?, pass(Direction::Queries)?);
        let dim = match request.op {
            Op::Qk | Op::QkJvp | Op::QkBackward => problem.head_dim(),
            _ => problem.head_dim_v(),
        };
        let sizes = ScratchSizes::new(lanes, [dim; 2], [&queries, &keys]);
        let entries: usize = match request.wants.contains(Role::GradRpb) {
            true => problem.shape(Role::GradRpb)[1..].iter().product(),
            false => 0,
        };
        let tables = problem.heads() * bias_partials_per_head(problem.heads());
        Ok(Self {
            tables: lines(tables.saturating_mul(entries).saturating_mul(size_of::<f64>())),
            scratch: lines(sizes.elements().saturating_mul(accumulator.size())),
            problem: problem.clone(),
            request: *request,
            crew,
            queries,
            keys,
            sizes,
        })
    }

    /// The boxes that the walk visits.
    pub(crate) fn coverage(&self) -> Coverage {
        coverage_of(&self.problem, &self.queries.tiles)
    }

    fn run_typed<R: Real>(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        let (tables, rest) = memory.split_at_mut(self.tables);
        let tables: &mut [f64] = cast_slice_mut(tables);
        let work = self.work::<R>(tensors, tables);
        let scratch = &mut rest[..self.scratch * self.crew.threads];
        self.crew.share_out(work.units(), scratch, |memory, units| {
            let mut scratch = self.sizes.carve::<R>(cast_slice_mut(memory));
            for unit in units {
                // SAFETY: the instruction set was detected; scratch was just carved by the work's sizes; the operands are
                // views that live until the run returns; every unit comes to one thread.
                unsafe { run_unit(self.crew.isa, &work, unit, &mut scratch) };
            }
        });
        if let Some(view) = tensors.output(Role::GradRpb) {
            sum_bias_tables::<R>(tables, bias_partials_per_head(self.problem.heads()), view);
        }
    }

    /// What the operation is made of.
    fn work<R: Real>(&self, tensors: &mut Tensors<'_, '_, '_>, tables: &mut [f64]) -> Work<'_, R> {
        let op = self.request.op;
        let mut output = |role| tensors.output(role).map(Tokens::<R>::output);
        let (grad_query, grad_key) = (output(Role::GradQuery), output(Role::GradKey));
        let (grad_value, summed) = (
            output(Role::GradValue),
            output(if op == Op::AvJvp { Role::TangentOutput } else { Role::Output }),
        );
        let grad_additional = match op {
            Op::QkBackward => output(Role::GradAdditionalKey),
            _ => output(Role::GradAdditionalValue),
        };
        let mut table = |role| tensors.output(role).map(Table::<R>::output);
        let stored = match op {
            Op::Qk => table(Role::Attention),
            Op::QkJvp => table(Role::TangentAttention),
            _ => table(Role::GradAttention),
        };
        let tokens = |role| tensors.input(role).map(Tokens::<R>::input);
        let slots = |role| tensors.input(role).map(Table::<R>::input);
        let bias = |role| tensors.input(role).map(|view| Bias::new(&self.problem, view));
        let keys = Keys { window: tokens(Role::Key), additional: tokens(Role::AdditionalKey) };
        let tangent_keys =
            Keys { window: tokens(Role::TangentKey), additional: tokens(Role::TangentAdditionalKey) };
        let values = Keys { window: tokens(Role::Value), additional: tokens(Role::AdditionalValue) };
        let tangent_values =
            Keys { window: tokens(Role::TangentValue), additional: tokens(Role::TangentAdditionalValue) };
        let scale = R::of(self.problem.scale());
        let one = R::of(1.0);
        let term = |own: Option<Tokens<R>>, keys: Keys<R>| own.map(|own| Term { own, keys });
        let sum = |own: Option<Table<R>>, keys: Keys<R>| own.map(|own| Term { own, keys });
        let store = stored.map(|to| match op {
            Op::Qk => Store {
                to,
                fill: R::NEG_INFINITY,
                factor: scale,
                terms: [term(tokens(Role::Query), keys), None],
                bias: bias(Role::Rpb),
            },
            Op::QkJvp => Store {
                to,
                fill: R::ZERO,
                factor: scale,
                terms: [term(tokens(Role::TangentQuery), keys), term(tokens(Role::Query), tangent_keys)],
                bias: bias(Role::TangentRpb),
            },
            _ => Store {
                to,
                fill: R::ZERO,
                factor: one,
                terms: [term(tokens(Role::GradOutput), values), None],
                bias: None,
            },
        });
        let attention = slots(Role::Attention);
        let query_sums = match op {
            Op::QkBackward => Some(QuerySums {
                to: grad_query,
                factor: scale,
                terms: [sum(slots(Role::GradAttention), keys), None],
                bias: self
                    .request
                    .wants
                    .contains(Role::GradRpb)
                    .then(|| BiasGradient::new(&self.problem, tables)),
            })
            .filter(|sums| sums.to.is_some() || sums.bias.is_some()),
            Op::Av => {
                Some(QuerySums { to: summed, factor: one, terms: [sum(attention, values), None], bias: None })
            }
            Op::AvJvp => Some(QuerySums {
                to: summed,
                factor: one,
                terms: [sum(slots(Role::TangentAttention), values), sum(attention, tangent_values)],
                bias: None,
            }),
            _ => None,
        };
        let key_sums = match op {
            Op::QkBackward => {
                slots(Role::GradAttention).zip(tokens(Role::Query)).map(|(table, own)| KeySums {
                    table,
                    own,
                    factor: scale,
                    to: Keys { window: grad_key, additional: grad_additional },
                })
            }
            Op::AvBackward => attention.zip(tokens(Role::GradOutput)).map(|(table, own)| KeySums {
                table,
                own,
                factor: one,
                to: Keys { window: grad_value, additional: grad_additional },
            }),
            _ => None,
        };
        Work {
            problem: &self.problem,
            queries: &self.queries,
            keys: &self.keys,
            sizes: &self.sizes,
            store,
            query_sums,
            key_sums,
        }
    }
}

impl Engine for Unfused {
    fn lines(&self) -> usize {
        self.tables.saturating_add(self.scratch.saturating_mul(self.crew.threads))
    }

    fn config(&self) -> Vec<(String, String)> {
        let shape = |shape: [usize; 3]| shape.map(|n| n.to_string()).join("x");
        vec![
            ("lanes".to_owned(), shape(self.queries.lane_shape)),
            ("query tile".to_owned(), shape(self.queries.tiles.query_tile())),
            ("key tile".to_owned(), shape(self.queries.tiles.key_tile())),
        ]
    }

    fn run(&self, tensors: &mut Tensors<'_, '_, '_>, memory: &mut [Line]) {
        match self.problem.dtype() {
            DType::F64 => self.run_typed::<f64>(tensors, memory),
            _ => self.run_typed::<f32>(tensors, memory),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn run_avx2<R: Real>(work: &Work<'_, R>, unit: usize, scratch: &mut Scratch<'_, R>) {
    // SAFETY: the caller's.
    unsafe { work.run::<<R as Real>::On<simd::Avx2>>(unit, scratch) };
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn run_avx512<R: Real>(work: &Work<'_, R>, unit: usize, scratch: &mut Scratch<'_, R>) {
    // SAFETY: the caller's.
    unsafe { work.run::<<R as Real>::On<simd::Avx512>>(unit, scratch) };
}

/// Runs a unit with the kernels of an instruction set.
///
/// # Safety
/// The processor has `isa`; the rest as [`Work::run`].
unsafe fn run_unit<R: Real>(isa: Isa, work: &Work<'_, R>, unit: usize, scratch: &mut Scratch<'_, R>) {
    // SAFETY: the caller's.
    unsafe {
        match isa {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => run_avx512(work, unit, scratch),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => run_avx2(work, unit, scratch),
            _ => work.run::<<R as Real>::On<simd::Portable>>(unit, scratch),
        }
    }
}
