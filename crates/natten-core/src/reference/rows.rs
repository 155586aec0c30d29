//! Who sees whom, spelled out: every query with the list of its keys.

use super::function::Site;
use crate::geometry::Axis;
use crate::problem::Problem;

/// A key that a query sees.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its number: row-major over the grid, additional tokens behind it.
    pub(super) number: usize,
    /// Its coordinates along the user axes; beyond the grid along the first where it is an additional token.
    pub(super) at: [usize; 3],
    /// The entry of the query head's bias table.
    pub(super) bias: usize,
    /// The slot among the query's attention weights.
    pub(super) slot: usize,
    pub(super) is_additional: bool,
}

/// One query of one head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row<'k> {
    pub(super) batch: usize,
    pub(super) head: usize,
    pub(super) head_kv: usize,
    pub(super) query: usize,
    pub(super) query_at: [usize; 3],
    /// The place of the query's vector among all.
    pub(super) vector: usize,
    /// Its keys: of its window, then the additional ones.
    pub(super) keys: &'k [Key],
}

impl Row<'_> {
    /// The site of some of the row's pairs.
    pub(super) fn site<'s, T>(
        &self,
        problem: &Problem,
        keys: &'s [Key],
        scores: &'s [T],
        x: &'s [T],
        stages: &'s [T],
    ) -> Site<'s, T> {
        Site {
            batch: self.batch,
            head: self.head,
            head_kv: self.head_kv,
            row: self.batch * problem.heads() + self.head,
            query: self.query,
            query_at: self.query_at,
            keys,
            scores,
            x,
            stages,
        }
    }
}

/// Keys of a problem, the additional ones counted, and where their vectors lie: those of `key` and then those of
/// `additional_key`, as if both were one tensor of vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Keys {
    /// Of the grid.
    pub(super) tokens: usize,
    additional: usize,
    batch: usize,
    heads: usize,
}

impl Keys {
    pub(super) fn of(problem: &Problem) -> Self {
        Self {
            tokens: problem.neighborhood().key_shape().iter().product(),
            additional: problem.additional_tokens(),
            batch: problem.batch(),
            heads: problem.heads_kv(),
        }
    }

    /// The place of a key's vector among all.
    pub(super) fn vector(&self, batch: usize, number: usize, head: usize) -> usize {
        match number.checked_sub(self.tokens) {
            None => (batch * self.tokens + number) * self.heads + head,
            Some(number) => self.of_grid() + (batch * self.additional + number) * self.heads + head,
        }
    }

    /// Vectors of the grid's keys.
    pub(super) fn of_grid(&self) -> usize {
        self.batch * self.tokens * self.heads
    }

    /// Keys of a batch entry and head.
    pub(super) fn count(&self) -> usize {
        self.tokens + self.additional
    }
}

/// The coordinates of a token from its row-major number, those beyond the grid along the first axis.
pub(super) fn coordinates(mut number: usize, shape: &[usize]) -> [usize; 3] {
    let mut at = [0; 3];
    for axis in (1..shape.len()).rev() {
        at[axis] = number % shape[axis];
        number /= shape[axis];
    }
    at[0] = number;
    at
}

impl Key {
    /// A token of a sequence or a grid, seen by itself.
    pub(super) const fn token(number: usize, at: [usize; 3]) -> Self {
        Self { number, at, bias: 0, slot: 0, is_additional: false }
    }
}

/// Every query of every head, in the order of memory.
pub(super) fn for_each_row(problem: &Problem, mut visit: impl FnMut(&Row<'_>)) {
    let neighborhood = problem.neighborhood();
    let (query_shape, key_shape) = (neighborhood.query_shape(), neighborhood.key_shape());
    let grid: usize = key_shape.iter().product();
    let additional = (0..problem.additional_tokens()).map(|n| Key {
        number: grid + n,
        at: coordinates(grid + n, &key_shape),
        bias: 0,
        slot: neighborhood.window_len() + n,
        is_additional: true,
    });
    let queries = query_shape.iter().product();
    for query in 0..queries {
        let query_at = coordinates(query, &query_shape);
        let mut keys = visible(neighborhood.user_axes(), &key_shape, query_at);
        keys.extend(additional.clone());
        for batch in 0..problem.batch() {
            for head in 0..problem.heads() {
                let head_kv = head / problem.heads_per_kv();
                let vector = (batch * queries + query) * problem.heads() + head;
                visit(&Row { batch, head, head_kv, query, query_at, vector, keys: &keys });
            }
        }
    }
}

/// The keys of a query's window, in row-major order.
fn visible(axes: &[Axis], key_shape: &[usize], query: [usize; 3]) -> Vec<Key> {
    let mut keys = vec![Key::token(0, [0; 3])];
    for (a, axis) in axes.iter().enumerate() {
        let (group, position) = axis.locate(query[a]);
        let window = axis.window(group, position);
        let mut longer = Vec::with_capacity(keys.len() * window.len());
        for key in keys {
            longer.extend(window.clone().map(|other| {
                let token = axis.token(group, other);
                let mut at = key.at;
                at[a] = token;
                // At offset 0 from itself a query finds the middle of the table, `kernel_size - 1`.
                let entry = (axis.window_len() - 1 + other).saturating_sub(position);
                Key {
                    number: key.number * key_shape[a] + token,
                    at,
                    bias: key.bias * (2 * axis.window_len() - 1) + entry,
                    slot: key.slot * axis.window_len() + (other - window.start),
                    is_additional: false,
                }
            }));
        }
        keys = longer;
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::geometry::{AxisParams, Neighborhood};

    #[test]
    fn keys_are_those_of_the_geometry() {
        let axes = [AxisParams::new(6, 3).dilation(2), AxisParams::new(5, 4).stride(2).causal(true)];
        let n = Neighborhood::new(&axes).unwrap();
        let problem = Problem::builder(n.clone(), DType::F64).additional_tokens(2).build().unwrap();
        for_each_row(&problem, |row| {
            let query = [0, row.query_at[0], row.query_at[1]];
            let (grid, additional) = row.keys.split_at(row.keys.len() - 2);
            for key in grid {
                let at = [0, key.at[0], key.at[1]];
                assert_eq!(n.slot_of(query, at), Some(key.slot));
                assert_eq!(key.number, key.at[0] * 5 + key.at[1]);
                let entry = |a: usize, dilation: isize, k: isize| {
                    (k - 1 + (key.at[a].cast_signed() - row.query_at[a].cast_signed()) / dilation) as usize
                };
                assert_eq!(key.bias, entry(0, 2, 3) * 7 + entry(1, 1, 4));
            }
            let seen = (0..30).filter(|k| n.sees(query, [0, k / 5, k % 5])).count();
            assert_eq!(grid.len(), seen);
            assert_eq!(additional[1].number, 31);
            assert_eq!((additional[1].at, additional[1].slot), ([6, 1, 0], 13));
        });
    }
}
