//! A problem's program, ready to be evaluated, and what its vector functions make of queries, keys and values.

use super::function::{Captured, Function, Leaf, Scratch, Site};
use super::number::Number;
use super::rows::{Key, Keys, coordinates};
use crate::problem::Problem;
use crate::program::{Algorithm, Expr, Reduce};

/// Every function of a program.
#[derive(Debug)]
pub(super) struct Functions {
    pub(super) score: Function,
    pub(super) mask: Option<Function>,
    pub(super) stages: Vec<(Reduce, Function)>,
    pub(super) logsumexp: Option<usize>,
    pub(super) weight: Function,
    pub(super) post: Option<Function>,
    pub(super) decay: Option<Function>,
    /// `∂ ln β / ∂ρ_k` of a weight `a(x) β(ρ)`, where the weight is one: see [`Row`](crate::program::Row).
    pub(super) log_derivatives: Option<Vec<Function>>,
    /// Of queries, keys and values.
    mods: [Option<Function>; 3],
}

/// Which vectors a vector function is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    Queries,
    Keys,
    Values,
}

impl Functions {
    pub(super) fn of(problem: &Problem) -> Self {
        let program = problem.program();
        let shapes: Vec<&[usize]> = program.captures().iter().map(|capture| &capture.shape[..]).collect();
        let function = |expr: Expr| Function::new(program.graph(), expr, &shapes);
        let row = program.row();
        let mut graph = program.graph().clone();
        let log_derivatives = match row.algorithm(&mut graph) {
            Algorithm::OnePass { factor, .. } => Some(row.log_derivatives(&mut graph, factor)),
            _ => None,
        };
        Self {
            score: function(program.score()),
            mask: program.mask().map(function),
            stages: row.stages.iter().map(|stage| (stage.reduce, function(stage.value))).collect(),
            logsumexp: row.logsumexp().map(usize::from),
            weight: function(row.weight),
            post: program.post().map(function),
            decay: program.decay().map(function),
            log_derivatives: log_derivatives
                .map(|exprs| exprs.into_iter().map(|expr| Function::new(&graph, expr, &shapes)).collect()),
            mods: program.mods().map(|expr| expr.map(function)),
        }
    }

    /// The vectors that take the place of `vectors`.
    pub(super) fn apply<T: Number>(
        &self,
        which: Vectors,
        problem: &Problem,
        captures: &[Captured<T>],
        vectors: Vec<T>,
    ) -> Vec<T> {
        let Some(function) = &self.mods[which as usize] else { return vectors };
        let dim = which.dim(problem);
        let (mut scratch, mut result) = (Scratch::default(), vec![T::of(0.0); vectors.len()]);
        which.for_each(problem, |number, site| {
            let range = number * dim..(number + 1) * dim;
            let site = Site { x: &vectors[range.clone()], ..site };
            function.evaluate(&site, dim, captures, &mut scratch);
            result[range].iter_mut().zip(function.numbers(&scratch)).for_each(|(to, x)| *to = x);
        });
        result
    }

    /// The cotangents of `vectors` from those of the vectors that took their place; what the function loads gets its
    /// own through `load`, by the number of the captured tensor and of its element.
    pub(super) fn pull<T: Number>(
        &self,
        which: Vectors,
        problem: &Problem,
        captures: &[Captured<T>],
        vectors: &[T],
        cotangents: Vec<T>,
        mut load: impl FnMut(usize, usize, T),
    ) -> Vec<T> {
        let Some(function) = &self.mods[which as usize] else { return cotangents };
        let dim = which.dim(problem);
        let (mut scratch, mut result) = (Scratch::default(), vec![T::of(0.0); vectors.len()]);
        which.for_each(problem, |number, site| {
            let range = number * dim..(number + 1) * dim;
            let site = Site { x: &vectors[range.clone()], ..site };
            function.evaluate(&site, dim, captures, &mut scratch);
            let to = &mut result[range.clone()];
            let own = cotangents[range].iter().copied().map(Some);
            function.pull(&mut scratch, own, |leaf, cotangent| match leaf {
                Leaf::X { lane } => to[lane] = to[lane] + cotangent,
                Leaf::Captured { number, element } => load(number, element, cotangent),
                Leaf::Score { .. } | Leaf::Stage(_) => {}
            });
        });
        result
    }
}

impl Vectors {
    pub(super) const fn dim(self, problem: &Problem) -> usize {
        match self {
            Self::Queries | Self::Keys => problem.head_dim(),
            Self::Values => problem.head_dim_v(),
        }
    }

    /// Every vector's number and site, its elements left out.
    fn for_each<T: Number>(self, problem: &Problem, mut visit: impl FnMut(usize, Site<'_, T>)) {
        let neighborhood = problem.neighborhood();
        let keys = Keys::of(problem);
        let is_query = self == Self::Queries;
        let (shape, heads) = match is_query {
            true => (neighborhood.query_shape(), problem.heads()),
            false => (neighborhood.key_shape(), problem.heads_kv()),
        };
        let tokens = if is_query { shape.iter().product() } else { keys.count() };
        for batch in 0..problem.batch() {
            for token in 0..tokens {
                let at = coordinates(token, &shape);
                for head in 0..heads {
                    let head_kv = if is_query { head / problem.heads_per_kv() } else { head };
                    let number = match is_query {
                        true => (batch * tokens + token) * heads + head,
                        false => keys.vector(batch, token, head),
                    };
                    visit(
                        number,
                        Site {
                            batch,
                            // A key's vector is the same for every query head: its head is the key head.
                            head,
                            head_kv,
                            row: batch * problem.heads() + head,
                            query: token,
                            query_at: at,
                            keys: &[Key::token(token, at)],
                            scores: &[],
                            x: &[],
                            stages: &[],
                        },
                    );
                }
            }
        }
    }
}
