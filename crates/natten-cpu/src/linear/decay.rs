//! The decay of a recurrence: its logarithm at every token, the sums of logarithms within chunks, and from the gradients
//! of logarithms those of the captured tensors that the program loads.
//!
//! Sums are in f64 whatever the type, and begin anew in every chunk: what is left of the difference of two sums after
//! strong decay would be rounding otherwise.

use natten_core::program::{Index, LoadGradient, LoweredVector, Primal, Var};
use natten_core::{Problem, Role, RoleSet};

use crate::element::Real;
use crate::engine::Crew;
use crate::slab::Slab;
use crate::vector::{CapturedSet, Domain, Registers, Scatter, Tables, Tape, User};

/// A decay of less is as good as none left: `e^l` is zero in every type. A logarithm of -inf counts as this, so that sums
/// stay numbers.
const LEAST: f64 = -800.0;

/// The derivatives of a decay with respect to what it loads.
#[derive(Debug)]
struct Gradient {
    tape: Tape,
    scatter: Scatter,
}

/// The program's decay, compiled for one chunk of tokens.
#[derive(Debug)]
pub(super) struct Decay {
    tape: Tape,
    gradient: Option<Gradient>,
    pub(super) tables: Tables,
    heads: usize,
    heads_per_kv: usize,
    tokens: usize,
    chunk: usize,
}

/// The logarithms' sums, or their gradients: a number a batch entry, head and token, with tangents in forward mode.
#[derive(Clone, Copy, Debug)]
pub(super) struct Numbers<'m, T> {
    pub(super) value: Slab<'m, T>,
    pub(super) tangent: Slab<'m, T>,
}

impl Decay {
    /// Compiles the decay for chunks of `chunk` tokens, with the gradients of `wanted` and tangents of what is `given`.
    pub(super) fn new(
        problem: &Problem,
        wanted: &[u8],
        given: RoleSet,
        is_forward_mode: bool,
        chunk: usize,
    ) -> Self {
        let program = problem.program();
        // Only programs with a decay come here.
        let expr = program.decay().unwrap_or(program.score());
        let with_tangents: Vec<u8> = (0..program.captures().len() as u8)
            .filter(|&number| given.contains(Role::TangentCapture(number)))
            .collect();
        let lowered = LoweredVector::new(program, expr, false, is_forward_mode, &with_tangents);
        let loads: Vec<LoadGradient> =
            lowered.loads.iter().filter(|load| wanted.contains(&load.capture)).cloned().collect();
        let [tokens, heads] = [problem.neighborhood().axes()[2].query_len(), problem.heads()];
        let tables = Tables::new(
            problem,
            wanted,
            &[User {
                graph: &lowered.graph,
                loads: &loads,
                batch: problem.batch(),
                heads,
                head: if problem.heads_per_kv() == 1 {
                    &[Index::Head, Index::HeadKv]
                } else {
                    &[Index::Head]
                },
                tokens,
                token: vec![Index::Query, Index::Key, Index::QueryAxis(0), Index::KeyAxis(0)],
                lanes: 1,
            }],
        );
        let compile = |roots: &[_]| Tape::new(&lowered.graph, roots, Domain::Tokens, 1, chunk);
        let gradient = (!tables.is_empty()).then(|| {
            let pick = |load: &LoadGradient| {
                if is_forward_mode { load.gradient.tangent } else { load.gradient.value }
            };
            let tape = compile(&Scatter::roots(&loads, pick));
            let scatter = Scatter::new(&tape, &lowered.graph, &loads, 0, &tables);
            Gradient { tape, scatter }
        });
        let mut roots = vec![lowered.value.value];
        roots.extend(is_forward_mode.then_some(lowered.value.tangent));
        Self {
            tape: compile(&roots),
            gradient,
            tables,
            heads,
            heads_per_kv: problem.heads_per_kv(),
            tokens,
            chunk,
        }
    }

    /// Elements of `R`'s size that a thread needs.
    pub(super) fn elements(&self, bytes: usize) -> usize {
        let gradient = self.gradient.as_ref().map_or(0, |gradient| gradient.tape.elements(bytes));
        self.tape.elements(bytes).max(gradient)
    }

    fn begin<R: Real>(
        &self,
        tape: &Tape,
        crew: &Crew,
        registers: &mut Registers<'_, R>,
        captured: &CapturedSet,
        row: usize,
    ) {
        tape.begin(crew.isa, registers, captured, |index| match index {
            Index::Batch => row / self.heads,
            Index::HeadKv => row % self.heads / self.heads_per_kv,
            _ => row % self.heads,
        });
    }

    /// The tokens of a chunk.
    fn tokens_of(&self, chunk: usize) -> std::ops::Range<usize> {
        chunk * self.chunk..((chunk + 1) * self.chunk).min(self.tokens)
    }

    /// Sums the logarithms of one batch entry and head, number `row`, in each chunk: inclusive sums.
    ///
    /// # Safety
    /// The captured tensors and the sums live, and no other thread has this row.
    pub(super) unsafe fn sum<R: Real>(
        &self,
        crew: &Crew,
        captured: &CapturedSet,
        row: usize,
        memory: &mut [R],
        sums: &Numbers<'_, f64>,
    ) {
        let mut registers = self.tape.registers(memory);
        self.begin(&self.tape, crew, &mut registers, captured, row);
        for chunk in 0..self.tokens.div_ceil(self.chunk) {
            let tokens = self.tokens_of(chunk);
            self.tape.move_to(&mut registers, tokens.len(), |_, token| tokens.start + token);
            self.tape.run(crew.isa, &mut registers, captured, 1, tokens.len());
            let logs = self.tape.root(&registers, 0, 0);
            let at = |numbers: &[R], token: usize| numbers[token.min(numbers.len() - 1)].to_f64();
            let here = row * self.tokens + tokens.start..row * self.tokens + tokens.end;
            // SAFETY: the caller's.
            let values = unsafe { sums.value.part(here.clone()) };
            let mut sum = 0.0;
            for (token, to) in values.iter_mut().enumerate() {
                let log = at(logs, token);
                sum += if log < LEAST { LEAST } else { log };
                *to = sum;
            }
            if sums.tangent.is_empty() {
                continue;
            }
            let tangents = self.tape.root(&registers, 1, 0);
            // SAFETY: the caller's.
            let to = unsafe { sums.tangent.part(here) };
            let mut sum = 0.0;
            for (token, to) in to.iter_mut().enumerate() {
                // What is multiplied with zero does not change, however the logarithm does.
                sum += if at(logs, token) < LEAST { 0.0 } else { at(tangents, token) };
                *to = sum;
            }
        }
    }

    /// Adds what the gradients of the logarithms make of those of captured tensors: part `part` of the tables.
    ///
    /// # Safety
    /// The captured tensors, the gradients and the tables live, nobody writes the gradients, and no other thread has this part.
    pub(super) unsafe fn scatter<R: Real>(
        &self,
        crew: &Crew,
        captured: &CapturedSet,
        (tables, part): (Slab<'_, f64>, usize),
        memory: &mut [R],
        gradients: &Numbers<'_, R>,
        rows: usize,
    ) {
        let Some(Gradient { tape, scatter }) = &self.gradient else { return };
        let chunks = self.tokens.div_ceil(self.chunk);
        let mut registers = tape.registers(memory);
        let mut begun = None;
        for unit in self.tables.part(part, rows * chunks) {
            let (row, tokens) = (unit / chunks, self.tokens_of(unit % chunks));
            if begun != Some(row) {
                begun = Some(row);
                self.begin(tape, crew, &mut registers, captured, row);
            }
            tape.move_to(&mut registers, tokens.len(), |_, token| tokens.start + token);
            let here = row * self.tokens + tokens.start..row * self.tokens + tokens.end;
            for (var, numbers) in
                [(Var::GradX, &gradients.value), (Var::Tangent(Primal::GradX), &gradients.tangent)]
            {
                if let Some(to) = tape.variable(&mut registers, var, 1) {
                    // SAFETY: the caller's.
                    to[..tokens.len()].copy_from_slice(unsafe { numbers.read(here.clone()) });
                }
            }
            tape.run(crew.isa, &mut registers, captured, 1, tokens.len());
            // SAFETY: the caller's.
            unsafe { scatter.add(tape, &registers, &self.tables, (tables, part), 1, tokens.len()) };
        }
    }
}
