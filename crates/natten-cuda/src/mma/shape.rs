//! The boxes of the `mma.sync` kernel: which 16 queries are a fragment, how warps stand side by side, which keys lie in
//! shared memory at a time, and which a warp takes of these.

use natten_core::geometry::{Axis, MAX_RANK};
use natten_core::{Error, PlanOptions, Problem, Result, padded_tile};

use crate::NAME;
use crate::target::Target;

/// Queries of a fragment.
const ROWS: usize = 16;

/// Keys that a warp takes at a time, where functions of a pair or long vectors need registers too, and those that it takes at once where
/// it sees no more.
const CHUNK: usize = 64;
const SHORT_CHUNK: usize = 32;
const LONGEST_CHUNK: usize = 128;

/// What a chunk costs beyond its keys, in keys.
const CHUNK_COST: usize = 24;

/// Queries of a block.
const LEAST_QUERIES: usize = 4 * ROWS;
const MOST_QUERIES: usize = 8 * ROWS;

/// Key boxes in the ring that many keys come through, where they fit.
const STAGES: usize = 3;

/// From so many keys of a query box on they come through a ring, in boxes of a chunk.
const MANY_KEYS: usize = 4096;

/// Registers of a multiprocessor.
const REGISTERS: usize = 65_536;

/// Registers beside scores, sums and queries: where a fragment has one chunk, and where it has more.
const OTHER_REGISTERS: [usize; 2] = [56, 88];

/// Registers that functions of a pair need.
const FUNCTION_REGISTERS: usize = 64;

/// The most blocks that share a multiprocessor.
const MOST_BLOCKS: usize = 4;

/// Shared memory that each block costs beside its own, and what the kernel declares beside its table of rows.
const RESERVED_BYTES: usize = 1024 + 2560;

/// The longest side of a key box: what the table of rows counts to.
const LONGEST_SIDE: usize = 1000;

/// What the kernel is specialised for beside the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The box of 16 queries.
    pub(super) fragment: [usize; MAX_RANK],
    /// Fragments of a warp along each axis.
    pair: [usize; MAX_RANK],
    /// Warps along each axis.
    warps: [usize; MAX_RANK],
    /// The box of keys in shared memory.
    pub(super) keys: [usize; MAX_RANK],
    /// Whether it is as long as what a query box sees.
    whole: [bool; MAX_RANK],
    /// The box of keys that a warp takes.
    pub(super) chunk: [usize; MAX_RANK],
    /// Whether a fragment sees no more.
    is_one_chunk: bool,
    /// Key boxes in shared memory.
    stages: usize,
    /// Whether registers hold the queries.
    holds_queries: bool,
    /// Blocks that share a multiprocessor.
    pub(super) blocks: u32,
}

impl Shape {
    /// The shape for a problem.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the options ask for boxes that the kernel does not have, or where none fits.
    pub(super) fn choose(problem: &Problem, options: &PlanOptions, target: &Target) -> Result<Self> {
        let wanted = |name, tile: &Option<Vec<usize>>| {
            tile.as_ref().map(|tile| padded_tile(name, tile, problem)).transpose()
        };
        let query_tile = wanted("query_tile", &options.query_tile)?;
        let key_tile = wanted("key_tile", &options.key_tile)?;
        let axes = problem.neighborhood().axes();
        let lengths = axes.each_ref().map(|axis| axis.query_group_len(0));
        let fragment = grown([1; MAX_RANK], ROWS, query_tile.unwrap_or(lengths));
        let least = grown(fragment, LEAST_QUERIES, lengths);
        if let Some(tile) = query_tile {
            check_query_tile(problem, tile, lengths)?;
        }
        let of = |tile: [usize; MAX_RANK]| std::array::from_fn(|a| longest_union(&axes[a], tile[a]));
        let seen: [usize; MAX_RANK] = of(fragment);
        let dims = problem.head_dim().max(problem.head_dim_v());
        let has_many_keys = of(query_tile.unwrap_or(least)).iter().product::<usize>() > MANY_KEYS;
        let is_line = problem.neighborhood().rank() == 1;
        let is_plain = problem.program().is_plain_softmax() && !problem.has_rpb();
        // Two fragments share what they load of the keys; on one axis registers have room for their places too.
        let is_paired = has_many_keys && is_line && dims <= 64 && is_plain;
        let pair = if is_paired { [1, 1, 2] } else { [1; MAX_RANK] };
        let tile = match query_tile {
            Some(tile) => tile,
            None if has_many_keys && dims <= 128 => grown(fragment, MOST_QUERIES, lengths),
            None => least,
        };
        let warps = std::array::from_fn(|a| tile[a] / (fragment[a] * pair[a]));
        let union: [usize; MAX_RANK] = of(tile);
        if let Some(keys) = key_tile.filter(|keys| (0..MAX_RANK).any(|a| keys[a] > union[a])) {
            let why =
                format!("a query box of the mma.sync kernel sees {} keys at most", text(problem, union));
            return Err(Error::unsupported(NAME, format!("a key box of {}", text(problem, keys)), why));
        }
        let in_box = key_tile.map_or(seen, |keys| std::array::from_fn(|a| seen[a].min(keys[a])));
        let chunk = match is_plain {
            true if dims <= 64 => chunk_of(in_box, CHUNK, LONGEST_CHUNK),
            true if dims <= 128 => chunk_of(in_box, CHUNK, CHUNK),
            _ => chunk_of(in_box, SHORT_CHUNK, SHORT_CHUNK),
        };
        let mut shape = Self {
            fragment,
            pair,
            warps,
            keys: key_tile.unwrap_or(union),
            whole: [true; MAX_RANK],
            chunk,
            is_one_chunk: false,
            stages: if key_tile.is_some_and(|keys| keys != union) { STAGES } else { 1 },
            holds_queries: false,
            blocks: 1,
        };
        if has_many_keys && key_tile.is_none() {
            shape.keys = std::array::from_fn(|a| chunk[a].min(union[a]));
            shape.stages = STAGES;
        }
        // Additional tokens are chunks of their own.
        shape.is_one_chunk =
            shape.keys == union && !is_paired && chunk == seen && problem.additional_tokens() == 0;
        shape.fit(problem, target, union, key_tile.is_some())?;
        shape.whole = std::array::from_fn(|a| shape.keys[a] >= union[a]);
        Ok(shape)
    }

    /// Chooses how many blocks share a multiprocessor, and cuts the key box until as many fit, unless it is given.
    fn fit(
        &mut self,
        problem: &Problem,
        target: &Target,
        union: [usize; MAX_RANK],
        is_given: bool,
    ) -> Result<()> {
        let (whole, is_one_chunk) = (self.keys, self.is_one_chunk);
        for blocks in (1..=MOST_BLOCKS).rev() {
            self.blocks = blocks as u32;
            self.keys = whole;
            loop {
                let is_short = self.keys.iter().all(|&side| side <= LONGEST_SIDE);
                let room = (target.shared_bytes as usize + 1024) / blocks;
                let needed = self.shared_bytes(problem) as usize + self.table_bytes(problem) + RESERVED_BYTES;
                if is_short && needed <= room {
                    // A cut key box ends chunks, which then take more registers.
                    self.is_one_chunk = is_one_chunk && self.keys == union;
                    self.holds_queries = !self.is_one_chunk && problem.head_dim() <= 128;
                    if blocks <= self.blocks_by_registers(problem) {
                        return Ok(());
                    }
                    break;
                }
                let Some(a) = (0..MAX_RANK).find(|&a| !is_given && self.keys[a] > self.chunk[a]) else {
                    break;
                };
                self.keys[a] = (self.keys[a] / 2).next_multiple_of(self.chunk[a]).min(self.keys[a] - 1);
            }
        }
        if self.stages > 1 {
            self.stages -= 1;
            self.keys = whole;
            self.is_one_chunk = is_one_chunk;
            return self.fit(problem, target, union, is_given);
        }
        if is_given {
            let why = format!("it does not fit shared memory; {} does", text(problem, self.chunk));
            return Err(Error::unsupported(NAME, format!("a key box of {}", text(problem, whole)), why));
        }
        Err(Error::unsupported(NAME, "vectors of this length", "no box of keys fits shared memory"))
    }

    /// Blocks that share the registers.
    fn blocks_by_registers(&self, problem: &Problem) -> usize {
        let fragments: usize = self.pair.iter().product();
        let scores = self.chunk_keys() / 2;
        let sums = problem.head_dim_v().next_multiple_of(16) / 2;
        let queries = if self.holds_queries { problem.head_dim().next_multiple_of(16) / 4 } else { 0 };
        let is_plain = problem.program().is_plain_softmax() && !problem.has_rpb();
        let functions = if is_plain { 0 } else { FUNCTION_REGISTERS };
        let other = OTHER_REGISTERS[usize::from(!self.is_one_chunk)] + functions;
        let needed = fragments * (scores + sums + queries) + other;
        (REGISTERS / (self.threads() as usize * needed.next_multiple_of(8))).max(1)
    }

    /// The box of a block's queries.
    pub(super) fn query_tile(&self) -> [usize; MAX_RANK] {
        std::array::from_fn(|a| self.fragment[a] * self.pair[a] * self.warps[a])
    }

    fn chunk_keys(&self) -> usize {
        self.chunk.iter().product::<usize>().next_multiple_of(16)
    }

    /// Threads of a block.
    pub(super) fn threads(&self) -> u32 {
        32 * self.warps.iter().product::<usize>() as u32
    }

    /// Rows of a key box: those of half a bank line keep their parity from line to line.
    fn box_rows(&self, problem: &Problem) -> usize {
        let is_half = pieces(problem.head_dim()) % 8 == 4;
        let padding = if is_half { (self.keys[2] ^ self.chunk[2]) & 1 } else { 0 };
        self.keys[0] * self.keys[1] * (self.keys[2] + padding)
    }

    /// Additional tokens that a warp takes at a time.
    fn additional_chunk(&self, problem: &Problem) -> usize {
        self.chunk_keys().min(problem.additional_tokens().next_multiple_of(16)).max(16)
    }

    /// Additional tokens of a box: as many chunks as are in a box of keys, one at least.
    fn additional_keys(&self, problem: &Problem) -> usize {
        let chunk = self.additional_chunk(problem);
        let most = problem.additional_tokens().div_ceil(chunk).max(1);
        (self.box_rows(problem) / chunk).clamp(1, most) * chunk
    }

    /// Rows of a box of either kind.
    fn slot_rows(&self, problem: &Problem) -> usize {
        let additional = if problem.additional_tokens() > 0 { self.additional_keys(problem) } else { 0 };
        self.box_rows(problem).max(additional)
    }

    /// Dynamic shared memory: the key boxes, and as many boxes of queries.
    pub(super) fn shared_bytes(&self, problem: &Problem) -> u32 {
        let queries: usize = self.query_tile().iter().product();
        let row = pieces(problem.head_dim()) + pieces(problem.head_dim_v());
        let bytes = self.slot_rows(problem) * row + queries * pieces(problem.head_dim());
        (16 * self.stages * bytes) as u32
    }

    /// The table of rows.
    fn table_bytes(&self, problem: &Problem) -> usize {
        16 * (self.box_rows(problem) + self.query_tile().iter().product::<usize>())
    }

    /// Query boxes of one batch entry and head, as the kernel counts them: every residue group has as many as the longest.
    pub(super) fn query_boxes(&self, problem: &Problem) -> u64 {
        let axes = problem.neighborhood().axes();
        let along = |(axis, tile): (&Axis, usize)| axis.dilation() * axis.query_group_len(0).div_ceil(tile);
        axes.iter().zip(self.query_tile()).map(along).map(|n| n as u64).product()
    }

    /// The kernel's constants.
    pub(super) fn constants(&self, problem: &Problem) -> Vec<(String, usize)> {
        let mut constants = vec![
            ("ADDITIONAL".to_owned(), problem.additional_tokens()),
            ("ADDITIONAL_KEYS".to_owned(), self.additional_keys(problem)),
            ("ADDITIONAL_CHUNK".to_owned(), self.additional_chunk(problem)),
            ("CHUNK_KEYS".to_owned(), self.chunk_keys()),
            ("ONE_CHUNK".to_owned(), usize::from(self.is_one_chunk)),
            ("STAGES".to_owned(), self.stages),
            ("HOLD_QUERIES".to_owned(), usize::from(self.holds_queries)),
            ("BLOCKS".to_owned(), self.blocks as usize),
        ];
        for a in 0..MAX_RANK {
            constants.extend([
                (format!("FRAGMENT{a}"), self.fragment[a]),
                (format!("PAIR{a}"), self.pair[a]),
                (format!("WARPS{a}"), self.warps[a]),
                (format!("WHOLE{a}"), usize::from(self.whole[a])),
                (format!("CHUNK{a}"), self.chunk[a]),
            ]);
        }
        constants
    }

    /// The choices, for the report.
    pub(super) fn describe(&self, problem: &Problem) -> Vec<(String, String)> {
        let tile = |tile| text(problem, tile);
        vec![
            ("query box".to_owned(), tile(self.query_tile())),
            ("key box".to_owned(), tile(self.keys)),
            ("fragment".to_owned(), tile(self.fragment)),
            ("chunk".to_owned(), tile(self.chunk)),
            ("stages".to_owned(), self.stages.to_string()),
            ("blocks a multiprocessor".to_owned(), self.blocks.to_string()),
        ]
    }
}

/// A box along the user's axes.
fn text(problem: &Problem, tile: [usize; MAX_RANK]) -> String {
    let sides = &tile[MAX_RANK - problem.neighborhood().rank()..];
    sides.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}

/// Refuses a given query box that is not warps of 16 queries, which are boxes themselves.
fn check_query_tile(problem: &Problem, tile: [usize; MAX_RANK], lengths: [usize; MAX_RANK]) -> Result<()> {
    let queries: Option<usize> = tile.iter().try_fold(1usize, |n, &side| n.checked_mul(side));
    let is_known = queries.is_some_and(|n| n == LEAST_QUERIES || n == MOST_QUERIES);
    if is_known && tile.iter().all(|side| side.is_power_of_two()) {
        return Ok(());
    }
    let own = |queries: usize| text(problem, grown([1; MAX_RANK], queries, lengths));
    let (least, most) = (own(LEAST_QUERIES), own(MOST_QUERIES));
    let why = format!(
        "the mma.sync kernel has boxes of {LEAST_QUERIES} and {MOST_QUERIES} queries whose sides are powers of two; \
         its own are {least} and {most}"
    );
    Err(Error::unsupported(NAME, format!("a query box of {}", text(problem, tile)), why))
}

/// Pieces of 16 bytes of a row in shared memory, as the kernel lays them.
const fn pieces(dim: usize) -> usize {
    let steps = dim.div_ceil(16);
    if steps % 2 == 1 { 2 * steps + 1 } else { 2 * steps }
}

/// A box of `volume` queries that a box is doubled to, along the shortest side first, no longer than the axes are.
fn grown(mut sides: [usize; MAX_RANK], volume: usize, lengths: [usize; MAX_RANK]) -> [usize; MAX_RANK] {
    while sides.iter().product::<usize>() < volume {
        let shortest = (0..MAX_RANK).filter(|&a| sides[a] < lengths[a]).min_by_key(|&a| sides[a]);
        sides[shortest.unwrap_or(MAX_RANK - 1)] *= 2;
    }
    sides
}

/// The most keys that neighbouring queries of a tile see along an axis.
fn longest_union(axis: &Axis, tile: usize) -> usize {
    // Groups differ in length by one at most, and the first are the longer ones.
    let groups = [0, axis.dilation() - 1];
    let of_group = |group: usize| {
        let len = axis.query_group_len(group);
        (0..len).step_by(tile).map(move |start| {
            let union = axis.window_union(group, &(start..(start + tile).min(len)));
            union.end.saturating_sub(union.start)
        })
    };
    groups.into_iter().flat_map(of_group).max().unwrap_or(1).max(1)
}

/// The chunk that covers what a fragment sees at the least cost: all of it up to `once` keys, else at most `most`.
fn chunk_of(seen: [usize; MAX_RANK], most: usize, once: usize) -> [usize; MAX_RANK] {
    if seen.iter().product::<usize>() <= once {
        return seen;
    }
    let mut best = (usize::MAX, [1; MAX_RANK]);
    for z in (1..=seen[2].min(most)).rev() {
        for y in (1..=seen[1].min(most / z)).rev() {
            for x in (1..=seen[0].min(most / (z * y))).rev() {
                let chunk = [x, y, z];
                let count: usize = (0..MAX_RANK).map(|a| seen[a].div_ceil(chunk[a])).product();
                let cost = count * ((x * y * z).next_multiple_of(16) + CHUNK_COST);
                if cost < best.0 {
                    best = (cost, chunk);
                }
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use natten_core::DType;
    use natten_core::geometry::{AxisParams, Neighborhood};

    use super::*;

    fn shape(axes: &[AxisParams], dim: usize, arch: (u32, u32)) -> Shape {
        let neighborhood = Neighborhood::new(axes).unwrap();
        let problem = Problem::builder(neighborhood, DType::Bf16).head_dim(dim).build().unwrap();
        Shape::choose(&problem, &PlanOptions::default(), &Target::of_arch(arch.0, arch.1)).unwrap()
    }

    #[test]
    fn small_windows_are_one_chunk() {
        let axis = AxisParams::new(56, 7);
        let shape = shape(&[axis, axis], 32, (9, 0));
        assert_eq!((shape.query_tile(), shape.keys, shape.chunk), ([1, 8, 8], [1, 14, 14], [1, 10, 10]));
        assert!(shape.is_one_chunk);
        assert_eq!(shape.blocks, 4);
    }

    #[test]
    fn what_does_not_fit_shared_memory_is_cut() {
        let axes = [AxisParams::new(16, 7), AxisParams::new(24, 7), AxisParams::new(24, 7)];
        let shape = shape(&axes, 64, (9, 0));
        assert_eq!((shape.query_tile(), shape.keys, shape.chunk), ([4, 4, 4], [2, 10, 10], [1, 8, 8]));
        assert_eq!((shape.blocks, shape.whole), (3, [false, true, true]));
    }

    #[test]
    fn boxes_that_are_asked_for_are_taken_or_refused_by_name() {
        let axis = AxisParams::new(200, 60);
        let neighborhood = Neighborhood::new(&[axis, axis]).unwrap();
        let problem = Problem::builder(neighborhood, DType::F16).head_dim(64).build().unwrap();
        let with = |query: Option<[usize; 2]>, key: Option<[usize; 2]>| {
            let mut options = PlanOptions::default();
            options.query_tile = query.map(Vec::from);
            options.key_tile = key.map(Vec::from);
            Shape::choose(&problem, &options, &Target::of_arch(8, 0))
        };
        let shape = with(Some([2, 32]), Some([4, 20])).unwrap();
        assert_eq!((shape.query_tile(), shape.keys), ([1, 2, 32], [1, 4, 20]));
        assert_eq!(with(Some([16, 8]), None).unwrap().query_tile(), [1, 16, 8]);
        assert_eq!(with(None, Some([3, 7])).unwrap().keys, [1, 3, 7]);
        let refusal = |query, key| with(query, key).unwrap_err().to_string();
        assert!(
            refusal(Some([10, 10]), None).contains("64 and 128 queries"),
            "{}",
            refusal(Some([10, 10]), None)
        );
        assert!(refusal(Some([4, 4]), None).contains("8x8 and 16x8"), "{}", refusal(Some([4, 4]), None));
        assert!(refusal(None, Some([90, 8])).contains("75x"), "{}", refusal(None, Some([90, 8])));
        assert!(refusal(None, Some([60, 60])).contains("shared memory"));
        assert!(matches!(with(Some([64, 64]), None), Err(Error::Unsupported { .. })));
    }

    #[test]
    fn additional_tokens_come_in_whole_chunks_that_the_ring_has_room_for() {
        let neighborhood = Neighborhood::new(&[AxisParams::new(40, 3), AxisParams::new(40, 3)]).unwrap();
        for (tokens, chunk, keys) in [(1, 16, 16), (16, 16, 16), (17, 32, 32), (500, 48, 96)] {
            let builder = Problem::builder(neighborhood.clone(), DType::F16).head_dim(32);
            let problem = builder.additional_tokens(tokens).build().unwrap();
            let shape = Shape::choose(&problem, &PlanOptions::default(), &Target::of_arch(8, 6)).unwrap();
            assert!(!shape.is_one_chunk);
            let is = (shape.additional_chunk(&problem), shape.additional_keys(&problem));
            assert_eq!(is, (chunk, keys), "{tokens}: {shape:?}");
            assert!(shape.slot_rows(&problem) >= keys);
        }
    }

    #[test]
    fn every_dim_has_a_shape_on_every_architecture() {
        let large = AxisParams::new(256, 80);
        for arch in [(8, 0), (8, 6), (9, 0), (12, 0)] {
            for dim in [8, 40, 64, 96, 128, 256] {
                for axes in [&[large][..], &[large, large], &[large, large, AxisParams::new(20, 9)]] {
                    let shape = shape(axes, dim, arch);
                    assert!(shape.chunk.iter().product::<usize>() <= LONGEST_CHUNK);
                }
            }
        }
    }
}
