//! Which rows never meet in an element of a captured tensor, so that at the same time they may add to one table of its
//! gradient.

use super::{Expr, Graph, Index, LoadGradient, Node};
use crate::problem::Problem;

/// The loads of one captured tensor that add to its gradient, by what their indices tell.
///
/// Two rows may run at once on one table if no load of the one reads an element that a load of the other reads. That is
/// sure if there is an axis of the tensor at which **every** load has the same number that differs between the two rows:
/// for then all elements of a row have that coordinate. It is not enough that each load has the number at some axis:
/// `t[q, h] + t[h, q]` reads `t[1, 2]` for query 1 of head 2 and for query 2 of head 1. An axis shorter than what it is
/// indexed by tells nothing either, since indices are clamped into it.
///
/// ```
/// use natten_core::geometry::{AxisParams, Neighborhood};
/// use natten_core::program::{Capture, Given, Loads, Lowered, Program};
/// use natten_core::{DType, Problem};
/// # fn main() -> natten_core::Result<()> {
/// let t = Capture::new("t", &[8, 8], DType::F32);
/// let program = Program::builder(1).capture(t).score("score + t[q, h]*t[q, k]").build()?;
/// let window = Neighborhood::new(&[AxisParams::new(8, 3)])?;
/// let problem = Problem::builder(window, DType::F32).batch(2).heads(4).program(program).build()?;
/// let lowered = Lowered::new(problem.program(), false, &Given::default());
/// let loads = Loads::new(&[8, 8], lowered.loads.iter().map(|load| (&lowered.graph, load)));
/// assert_eq!(loads.rows_apart(&problem), [false, false, true]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Loads<'a> {
    shape: &'a [usize],
    /// Of every load, axis by axis, the index that it has there, unless it is some function of indices.
    indices: Vec<Vec<Option<Index>>>,
}

impl<'a> Loads<'a> {
    /// Loads of a tensor of this shape, each with the graph of its index.
    pub fn new<'l>(
        shape: &'a [usize],
        loads: impl IntoIterator<Item = (&'l Graph, &'l LoadGradient)>,
    ) -> Self {
        let plain = |graph: &Graph, at: Expr| match graph.node(at) {
            Node::Index(index) => Some(*index),
            _ => None,
        };
        let of_load =
            |(graph, load): (&Graph, &LoadGradient)| load.index.iter().map(|&at| plain(graph, at)).collect();
        Self { shape, indices: loads.into_iter().map(of_load).collect() }
    }

    /// Whether what differs in a number from 0 to `count`, by the names of which it goes in indices, never meets in an
    /// element.
    pub fn tell_apart(&self, count: usize, names: &[Index]) -> bool {
        let has = |axis: usize| {
            self.indices.iter().all(|load| load[axis].is_some_and(|index| names.contains(&index)))
        };
        count <= 1 || (0..self.shape.len()).any(|axis| self.shape[axis] >= count && has(axis))
    }

    /// Whether all of them have just this index at an axis.
    pub fn have_at(&self, axis: usize, index: Index) -> bool {
        self.indices.iter().all(|load| load.get(axis) == Some(&Some(index)))
    }

    /// Of a problem's rows: whether those never meet that differ in the batch entry, in the head, in the query. Rows that
    /// differ in one of those for which this is true never do, whatever else they differ in.
    ///
    /// A query may be told by its number or by all of its coordinates.
    pub fn rows_apart(&self, problem: &Problem) -> [bool; 3] {
        let head =
            if problem.heads_per_kv() == 1 { &[Index::Head, Index::HeadKv][..] } else { &[Index::Head] };
        let queries = problem.neighborhood().query_shape();
        let query =
            if queries.len() == 1 { &[Index::Query, Index::QueryAxis(0)][..] } else { &[Index::Query] };
        let by_coordinates =
            || (0..).zip(&queries).all(|(axis, &count)| self.tell_apart(count, &[Index::QueryAxis(axis)]));
        [
            self.tell_apart(problem.batch(), &[Index::Batch]),
            self.tell_apart(problem.heads(), head),
            self.tell_apart(queries.iter().product(), query) || by_coordinates(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::dtype::DType;
    use crate::geometry::Neighborhood;
    use crate::program::{Capture, Given, Lowered, Program};

    /// A pair: its batch entry, head, key head, query, key.
    #[derive(Clone, Copy, Debug)]
    struct Pair {
        batch: usize,
        head: usize,
        head_kv: usize,
        query: usize,
        key: usize,
    }

    /// Queries of `lengths`, all of which see all keys, and a score that adds loads of `t` at these indices.
    fn problem(
        lengths: &[usize],
        [batch, heads, heads_kv]: [usize; 3],
        shape: &[usize],
        loads: &[Vec<&str>],
    ) -> Problem {
        let axes: Vec<_> = lengths.iter().map(|&n| crate::geometry::AxisParams::new(n, n)).collect();
        let text =
            loads.iter().fold("score".to_owned(), |text, load| format!("{text}*t[{}]", load.join(", ")));
        let program =
            Program::builder(lengths.len()).capture(Capture::new("t", shape, DType::F32)).score(text);
        Problem::builder(Neighborhood::new(&axes).unwrap(), DType::F32)
            .batch(batch)
            .heads(heads)
            .heads_kv(heads_kv)
            .program(program.build().unwrap())
            .build()
            .unwrap()
    }

    fn apart(problem: &Problem) -> [bool; 3] {
        let lowered = Lowered::new(problem.program(), false, &Given::default());
        let shape = &problem.program().captures()[0].shape;
        Loads::new(shape, lowered.loads.iter().map(|load| (&lowered.graph, load))).rows_apart(problem)
    }

    /// What an index of the texts below is of a pair; the last axis counts fastest.
    fn index_of(text: &str, pair: Pair, lengths: &[usize]) -> usize {
        let coordinate = |number: usize, axis: usize| {
            number / lengths[axis + 1..].iter().product::<usize>() % lengths[axis]
        };
        match text {
            "b" => pair.batch,
            "h" => pair.head,
            "hkv" => pair.head_kv,
            "q" => pair.query,
            "k" => pair.key,
            "q0" => coordinate(pair.query, 0),
            "q1" => coordinate(pair.query, 1),
            "k0" => coordinate(pair.key, 0),
            "q + 1" => pair.query + 1,
            "h % 2" => pair.head % 2,
            number => number.parse().unwrap(),
        }
    }

    /// The elements of `t` that a row reads.
    fn elements(
        problem: &Problem,
        row: [usize; 3],
        shape: &[usize],
        loads: &[Vec<&str>],
    ) -> BTreeSet<Vec<usize>> {
        let lengths = problem.neighborhood().query_shape();
        let keys: usize = lengths.iter().product();
        let pair = |key: usize| Pair {
            batch: row[0],
            head: row[1],
            head_kv: row[1] / problem.heads_per_kv(),
            query: row[2],
            key,
        };
        let element = |key: usize, load: &Vec<&str>| {
            let clamped =
                |(text, &extent): (&&str, &usize)| index_of(text, pair(key), &lengths).min(extent - 1);
            load.iter().zip(shape).map(clamped).collect()
        };
        (0..keys).flat_map(|key| loads.iter().map(move |load| element(key, load))).collect()
    }

    #[test]
    fn what_tells_rows_apart_stands_at_one_axis_of_all_loads() {
        let of = |shape: &[usize], loads: &[&[&str]]| {
            let loads: Vec<Vec<&str>> = loads.iter().map(|load| load.to_vec()).collect();
            apart(&problem(&[3, 4], [2, 4, 2], shape, &loads))
        };
        assert_eq!(of(&[2, 4, 12], &[&["b", "h", "q"]]), [true, true, true]);
        assert_eq!(of(&[2, 4, 12], &[&["b", "h", "q"], &["b", "h", "k"]]), [true, true, false]);
        assert_eq!(of(&[12, 12], &[&["h", "q"], &["q", "h"]]), [false, false, false]);
        assert_eq!(of(&[12, 12], &[&["h", "q"], &["q", "q"]]), [false, false, true]);
        // A head in common tells nothing of the heads that share a key head.
        assert_eq!(of(&[4, 12], &[&["hkv", "q"]]), [false, false, true]);
        // Clamped: the last queries all read the last element.
        assert_eq!(of(&[4, 11], &[&["h", "q"]]), [false, true, false]);
    }

    #[test]
    fn coordinates_tell_queries_apart_all_together() {
        let of = |shape: &[usize], loads: &[&[&str]]| {
            let loads: Vec<Vec<&str>> = loads.iter().map(|load| load.to_vec()).collect();
            apart(&problem(&[3, 3], [1, 2, 2], shape, &loads))[2]
        };
        assert!(of(&[3, 3], &[&["q0", "q1"]]));
        assert!(of(&[3, 3, 3], &[&["q0", "q1", "k0"], &["q0", "q1", "0"]]));
        assert!(!of(&[3, 3], &[&["q0", "k0"]]));
        assert!(!of(&[3, 2], &[&["q0", "q1"]]));
        assert!(!of(&[3, 3], &[&["q0", "q1"], &["q1", "q0"]]));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn rows_that_are_said_to_be_apart_never_meet(
            lengths in prop_oneof![
                (1usize..7).prop_map(|n| vec![n]),
                (1usize..4, 1usize..4).prop_map(|(y, x)| vec![y, x]),
            ],
            batch in 1usize..3,
            heads_kv in 1usize..3,
            group in 1usize..3,
            shape in prop::collection::vec(1usize..8, 1..4),
            picks in prop::collection::vec(prop::array::uniform3(0usize..64), 1..3),
        ) {
            let mut names = vec!["b", "h", "hkv", "q", "q", "k", "q0", "k0", "q + 1", "h % 2", "0"];
            if lengths.len() > 1 {
                names.push("q1");
            }
            let loads: Vec<Vec<&str>> = picks
                .iter()
                .map(|picks| picks[..shape.len()].iter().map(|pick| names[pick % names.len()]).collect())
                .collect();
            let problem = problem(&lengths, [batch, heads_kv * group, heads_kv], &shape, &loads);
            let apart = apart(&problem);
            let queries: usize = lengths.iter().product();
            let rows: Vec<[usize; 3]> = (0..batch)
                .flat_map(|b| (0..heads_kv * group).flat_map(move |h| (0..queries).map(move |q| [b, h, q])))
                .collect();
            let all: Vec<_> = rows.iter().map(|&row| elements(&problem, row, &shape, &loads)).collect();
            for (i, one) in rows.iter().enumerate() {
                for (j, other) in rows.iter().enumerate().skip(i + 1) {
                    if (0..3).any(|which| apart[which] && one[which] != other[which]) {
                        prop_assert!(all[i].is_disjoint(&all[j]), "{one:?} and {other:?} meet: {loads:?} of {shape:?}");
                    }
                }
            }
        }
    }
}
