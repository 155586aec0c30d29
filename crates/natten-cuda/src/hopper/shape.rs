//! The boxes of the Hopper kernel: which 64 queries a warpgroup has, how warpgroups stand side by side, which box of keys
//! they take at a time. All that the kernel can do are enumerated and the cheapest is taken, by a model of the time of a
//! multiprocessor that was fitted to measurements (`docs/performance.md`).

use std::collections::HashMap;

use natten_core::geometry::{Axis, MAX_RANK};
use natten_core::{Error, PlanOptions, Problem, Result, padded_tile};

use super::chunk;
use crate::NAME;
use crate::target::Target;

/// Queries of a warpgroup.
const ROWS: usize = 64;

/// Shared memory that each block costs beside its own.
const RESERVED_BYTES: u32 = 1024;

/// Registers of a multiprocessor.
const REGISTERS: usize = 65_536;

/// Registers that a consumer needs beside scores, weights and sums.
const OTHER_REGISTERS: usize = 44;

/// Registers that functions of a pair need for places.
const FUNCTION_REGISTERS: usize = 24;

/// Registers that they need for each tensor that they read.
const CAPTURE_REGISTERS: usize = 12;

/// Registers that the relative positional bias needs: places, and strides of four axes.
const BIAS_REGISTERS: usize = 88;

/// The time model, in microseconds of one multiprocessor.
mod model {
    /// A pair of a query and a key, in two products of one column each.
    pub(super) const PAIR_COLUMN: f64 = 0.43e-6;
    /// A pair's softmax, and what else does not depend on the columns.
    pub(super) const PAIR: f64 = 22.5e-6;
    /// What a key box costs beyond its keys, in keys; a larger one than `LARGE` costs more by its keys.
    pub(super) const BOX_KEYS: f64 = 30.0;
    /// The largest key box of which two warpgroups keep up with one another.
    pub(super) const LARGE: f64 = 128.0;
    /// How much more the keys of still larger boxes cost.
    pub(super) const TOO_LARGE: f64 = 1.06;
    /// How much more a query box costs that is longer than its axis.
    pub(super) const TOO_LONG: f64 = 1.1;
    /// How much more a box with a mask takes.
    pub(super) const MASK: f64 = 0.12;
    /// What a query box costs beyond its key boxes; blocks that share a multiprocessor hide it for one another.
    pub(super) const ITEM: f64 = 2.9;
    /// Bytes of keys and values from the cache.
    pub(super) const BYTES: f64 = 50_000.0;
    /// The rate of fewer warpgroups than three, where the products are short.
    pub(super) const RATE_OF: [f64; 3] = [0.7, 0.87, 1.0];
}

/// What the kernel is specialised for beside the problem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// The box of a warpgroup's queries.
    pub(super) sub: [usize; MAX_RANK],
    /// Warpgroups along each axis.
    pub(super) groups: [usize; MAX_RANK],
    /// The box of keys.
    pub(super) keys: [usize; MAX_RANK],
    /// Key boxes in the ring.
    pub(super) ring: usize,
    /// Query boxes in theirs.
    pub(super) query_ring: usize,
    /// Blocks that share a multiprocessor.
    pub(super) blocks: u32,
    /// Planes that an operand is split into.
    pub(super) planes: usize,
}

/// How a block is staffed: warpgroups, blocks that share a multiprocessor, registers of the producer and of a consumer.
const STAFFS: [(usize, u32, usize, usize); 4] =
    [(2, 1, 24, 240), (3, 1, 32, 160), (1, 2, 24, 232), (1, 3, 24, 136)];

impl Shape {
    /// The cheapest shape for a problem whose operands are split into `planes`.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the options ask for boxes that the kernel does not have.
    pub(super) fn choose(
        problem: &Problem,
        options: &PlanOptions,
        target: &Target,
        planes: usize,
    ) -> Result<Self> {
        let wanted = |name, tile: &Option<Vec<usize>>| match tile {
            Some(tile) => padded_tile(name, tile, problem).map(Some),
            None => Ok(None),
        };
        let query_tile = wanted("query_tile", &options.query_tile)?;
        let key_tile = wanted("key_tile", &options.key_tile)?;
        let mut counts = Counts { axes: problem.neighborhood().axes(), known: HashMap::new() };
        let mut best: Option<(f64, Self)> = None;
        for keys in key_boxes(problem, planes)
            .into_iter()
            .filter(|&keys| key_tile.is_none_or(|wanted| wanted == keys))
        {
            for staff in STAFFS {
                let (warpgroups, blocks, ..) = staff;
                if !fits_registers(problem, keys.iter().product(), planes, staff) {
                    continue;
                }
                for sub in sub_boxes(problem) {
                    for axis in 0..if warpgroups == 1 { 1 } else { MAX_RANK } {
                        let mut groups = [1; MAX_RANK];
                        groups[axis] = warpgroups;
                        let shape = Self { sub, groups, keys, ring: 0, query_ring: 0, blocks, planes };
                        let is_wanted = query_tile.is_none_or(|wanted| wanted == shape.query_tile());
                        if let Some(shape) = shape.with_ring(problem, target).filter(|_| is_wanted) {
                            let cost = shape.cost(problem, target, &mut counts);
                            if best.is_none_or(|(least, _)| cost < least) {
                                best = Some((cost, shape));
                            }
                        }
                    }
                }
            }
        }
        best.map(|(_, shape)| shape).ok_or_else(|| {
            if planes > 1 && query_tile.is_none() && key_tile.is_none() {
                let what = format!("vectors of {} numbers", problem.head_dim().max(problem.head_dim_v()));
                let why = format!("{planes} planes of them do not fit shared memory");
                return Error::unsupported(NAME, what, why);
            }
            Error::unsupported(
                NAME,
                "these boxes",
                "the tensor-core kernel has 64 queries a warpgroup, and no such boxes",
            )
        })
    }

    /// The shape with as many key boxes in the ring as fit.
    fn with_ring(mut self, problem: &Problem, target: &Target) -> Option<Self> {
        let limit = (target.shared_bytes + RESERVED_BYTES) / self.blocks - RESERVED_BYTES;
        // A second query box lets the next one arrive while this one is worked on; then as many key boxes as fit.
        for (query_ring, ring) in [(2, 4), (2, 3), (2, 2), (1, 2)] {
            (self.query_ring, self.ring) = (query_ring, ring);
            if self.shared_bytes(problem) <= limit {
                return Some(self);
            }
        }
        None
    }

    pub(super) fn warpgroups(&self) -> usize {
        self.groups.iter().product()
    }

    /// The box of a block's queries.
    pub(super) fn query_tile(&self) -> [usize; MAX_RANK] {
        std::array::from_fn(|a| self.sub[a] * self.groups[a])
    }

    pub(super) fn box_keys(&self) -> usize {
        self.keys.iter().product()
    }

    /// Threads of a block.
    pub(super) fn threads(&self) -> u32 {
        128 * (self.warpgroups() as u32 + 1)
    }

    /// Registers of a producer's and of a consumer's thread.
    pub(super) fn registers(&self) -> (usize, usize) {
        let staff = STAFFS.iter().find(|staff| (staff.0, staff.1) == (self.warpgroups(), self.blocks));
        staff.map_or((24, 240), |staff| (staff.2, staff.3))
    }

    /// Shared memory: queries, the ring, barriers, and what aligning them may take.
    pub(super) fn shared_bytes(&self, problem: &Problem) -> u32 {
        let row = |dim: usize| dim.next_multiple_of(chunk(problem)) * 2 * self.planes;
        let queries = self.warpgroups() * ROWS * row(problem.head_dim());
        let key_box = self.box_keys() * (row(problem.head_dim()) + row(problem.head_dim_v()));
        let barriers = 16 * self.query_ring + 32 * self.ring;
        (1024 + self.query_ring * queries + self.ring * key_box + barriers) as u32
    }

    /// Query boxes of one batch entry and head, as the kernel counts them: every residue group has as many as the longest.
    pub(super) fn query_boxes(&self, problem: &Problem) -> u64 {
        let axes = problem.neighborhood().axes();
        let along = |(axis, tile): (&Axis, usize)| axis.dilation() * axis.query_group_len(0).div_ceil(tile);
        axes.iter().zip(self.query_tile()).map(along).map(|n| n as u64).product()
    }

    /// The choices, for the report.
    pub(super) fn describe(&self, rank: usize) -> Vec<(String, String)> {
        let tile = |tile: [usize; MAX_RANK]| {
            tile[MAX_RANK - rank..].iter().map(usize::to_string).collect::<Vec<_>>().join("x")
        };
        vec![
            ("query box".to_owned(), tile(self.query_tile())),
            ("key box".to_owned(), tile(self.keys)),
            ("warpgroups".to_owned(), self.warpgroups().to_string()),
            ("ring".to_owned(), self.ring.to_string()),
            ("blocks a multiprocessor".to_owned(), self.blocks.to_string()),
        ]
    }

    /// Predicted microseconds.
    fn cost(&self, problem: &Problem, target: &Target, counts: &mut Counts<'_>) -> f64 {
        let tile = self.query_tile();
        let (mut visits, mut full) = (1.0, 1.0);
        for (a, (&queries, &keys)) in tile.iter().zip(&self.keys).enumerate() {
            let (boxes, full_boxes) = counts.of(a, queries, keys);
            visits *= boxes;
            full *= full_boxes;
        }
        let columns = (problem.head_dim() + problem.head_dim_v()) as f64 / 2.0;
        let keys = self.box_keys() as f64;
        let rows = (ROWS * self.warpgroups()) as f64;
        let additional = problem.additional_tokens().div_ceil(self.box_keys()) as f64;
        let boxes = self.query_boxes(problem) as f64;
        let resident = self.warpgroups() * self.blocks as usize;
        let rate = if columns > 96.0 { 1.0 } else { model::RATE_OF[resident.clamp(1, 3) - 1] };
        let in_keys = if keys > model::LARGE {
            keys * (1.0 + model::BOX_KEYS / model::LARGE) * model::TOO_LARGE
        } else {
            keys + model::BOX_KEYS
        };
        let products = (self.planes * (self.planes + 1) / 2) as f64;
        let pairs = rows * in_keys * (model::PAIR + model::PAIR_COLUMN * columns * products) / rate;
        let bytes = 4.0 * columns * keys * self.planes as f64 / model::BYTES;
        let masked = 1.0 - full / visits.max(1.0);
        let visit = pairs.max(bytes) * (1.0 + model::MASK * masked);
        let item = (visits / boxes + additional) * visit + model::ITEM / f64::from(self.blocks);
        let slots = f64::from(target.units * self.blocks);
        let items = boxes * (problem.batch() * problem.heads()) as f64;
        // A few rounds are whole rounds; in many, unequal items even out.
        let rounds = if items > 16.0 * slots { items / slots } else { (items / slots).ceil() };
        let axes = problem.neighborhood().axes();
        let is_long = (0..MAX_RANK).any(|a| self.groups[a] > 1 && self.sub[a] >= axes[a].query_group_len(0));
        rounds * f64::from(self.blocks) * item * if is_long { model::TOO_LONG } else { 1.0 }
    }
}

/// Whether a consumer keeps its scores, weights and sums in registers; and the widest instruction's operands, before the
/// roles have exchanged registers, in those that every thread starts with.
fn fits_registers(problem: &Problem, keys: usize, planes: usize, staff: (usize, u32, usize, usize)) -> bool {
    let (warpgroups, blocks, _, consumer) = staff;
    let sums = problem.head_dim_v() / 2;
    let at_entry = REGISTERS / (128 * (warpgroups + 1) * blocks as usize) / 8 * 8;
    let captures = problem.program().captures().len();
    let functions = if problem.program().is_plain_softmax() { 0 } else { FUNCTION_REGISTERS }
        + captures * CAPTURE_REGISTERS
        + if problem.has_rpb() { BIAS_REGISTERS } else { 0 };
    let other = match (warpgroups, sums) {
        (3, _) => OTHER_REGISTERS - 12,
        // Twice the columns, twice the places that they are written to.
        (_, 97..) => OTHER_REGISTERS + 12,
        _ => OTHER_REGISTERS,
    };
    let other = functions + other;
    let products = if promotes(problem, planes) { sums } else { 0 };
    keys / 2 + keys / 4 * planes + sums + products + other <= consumer
        && (keys / 2).max(sums) + 28 <= at_entry
}

/// Whether a key box's values are added to the sums in f32, for which both have to fit registers: wgmma cuts off what its
/// own sums cannot hold, thousands of times a row, and by that is off as much as two planes are.
pub(super) fn promotes(problem: &Problem, planes: usize) -> bool {
    planes > 1 && problem.head_dim_v() <= 128
}

/// In how many parts a box's last axis is loaded: the copy engine spans at most 256 tokens.
pub(super) const fn parts(tokens: usize, dilation: usize) -> usize {
    let mut parts = 1;
    while tokens / parts * dilation > 256 {
        parts *= 2;
    }
    parts
}

/// Boxes of 64 queries: powers of two, not longer than their axis is, rounded up.
fn sub_boxes(problem: &Problem) -> Vec<[usize; MAX_RANK]> {
    let axes = problem.neighborhood().axes();
    let most = axes.map(|axis| axis.query_group_len(0).next_power_of_two().min(ROWS));
    let mut boxes = Vec::new();
    for x in (0..=6).map(|n| 1 << n).filter(|&x| x <= most[0]) {
        for y in (0..=6).map(|n| 1 << n).filter(|&y| y <= most[1] && x * y <= ROWS) {
            let z = ROWS / (x * y);
            // What is left over falls to the last axis, however short it is.
            let is_last_resort = x == most[0] && y == most[1];
            if (z <= most[2] || is_last_resort)
                && parts(z, axes[2].dilation()) <= if z == ROWS { 8 } else { 1 }
            {
                boxes.push([x, y, z]);
            }
        }
    }
    boxes
}

/// Boxes of keys: whole steps of 16, their last axis such that mask bits follow it.
fn key_boxes(problem: &Problem, planes: usize) -> Vec<[usize; MAX_RANK]> {
    // More planes of long vectors leave room for fewer keys.
    let least = if planes == 1 { 48 } else { 16 };
    const MOST: usize = 176;
    let axes = problem.neighborhood().axes();
    let most = axes.map(|axis| axis.key_group_len(0));
    let mut boxes = Vec::new();
    for z in (4..=MOST).step_by(4) {
        let is_row = most[0] == 1 && most[1] == 1;
        let is_fine = if is_row { z % 16 == 0 } else { z % 8 == 0 && z < most[2] + 8 || z == 4 };
        if !is_fine || (!is_row && parts(z, axes[2].dilation()) > 1) {
            continue;
        }
        for y in 1..=(MOST / z).min(most[1]) {
            for x in 1..=(MOST / (z * y)).min(most[0]) {
                let keys = x * y * z;
                let is_whole = keys % (8 * parts(z, axes[2].dilation())) == 0;
                if (least..=MOST).contains(&keys) && keys % 16 == 0 && is_whole && (z >= 8 || y % 2 == 0) {
                    boxes.push([x, y, z]);
                }
            }
        }
    }
    if boxes.is_empty() {
        // Axes so short that no box is as small: the copy engine fills what lies outside.
        boxes.extend(
            [[1, 8, 8], [1, 16, 4], [1, 1, 64]]
                .into_iter()
                .filter(|keys| parts(keys[2], axes[2].dilation()) == 1),
        );
    }
    boxes
}

/// Visits of key boxes along one axis, by the tiles' extents.
struct Counts<'a> {
    axes: &'a [Axis; MAX_RANK],
    known: HashMap<(usize, usize, usize), (f64, f64)>,
}

impl Counts<'_> {
    /// How many pairs of a query box and a key box there are along an axis, and how many of these need no mask.
    fn of(&mut self, a: usize, query_tile: usize, key_tile: usize) -> (f64, f64) {
        let axis = &self.axes[a];
        *self.known.entry((a, query_tile, key_tile)).or_insert_with(|| {
            let (mut visits, mut full) = (0usize, 0usize);
            for group in 0..axis.dilation() {
                let len = axis.query_group_len(group);
                for start in (0..len).step_by(query_tile) {
                    let queries = start..(start + query_tile).min(len);
                    let union = axis.window_union(group, &queries);
                    let common = axis.window_intersection(group, &queries);
                    visits += union.len().div_ceil(key_tile);
                    let whole = |key: usize| common.start <= key && key + key_tile <= common.end;
                    full += union.step_by(key_tile).filter(|&key| whole(key)).count();
                }
            }
            (visits as f64, full as f64)
        })
    }
}

#[cfg(test)]
mod tests {
    use natten_core::DType;
    use natten_core::geometry::{AxisParams, Neighborhood};

    use super::*;

    fn chosen(axes: &[AxisParams], dim: usize, heads: usize) -> Shape {
        let window = Neighborhood::new(axes).unwrap();
        let problem = Problem::builder(window, DType::Bf16).heads(heads).head_dim(dim).build().unwrap();
        Shape::choose(&problem, &PlanOptions::default(), &Target::of_arch(9, 0), 1).unwrap()
    }

    #[test]
    fn large_windows_take_two_warpgroups_of_full_columns() {
        let plane = AxisParams::new(256, 80);
        let shape = chosen(&[plane, plane], 128, 24);
        assert_eq!((shape.warpgroups(), shape.blocks), (2, 1), "{shape:?}");
        assert!(shape.box_keys() >= 96, "{shape:?}");
    }

    #[test]
    fn small_windows_share_a_multiprocessor() {
        let plane = AxisParams::new(64, 13);
        let shape = chosen(&[plane, plane], 64, 128);
        assert!(shape.blocks > 1, "{shape:?}");
    }

    #[test]
    fn every_shape_is_one_that_the_kernel_has() {
        for len in [1, 2, 3, 7, 20, 65] {
            for rank in 1..=3 {
                let axes = vec![AxisParams::new(len, len.div_ceil(2)); rank];
                for dim in [8, 64, 128, 256] {
                    let shape = chosen(&axes, dim, 2);
                    assert_eq!(shape.sub.iter().product::<usize>(), ROWS);
                    assert!(shape.box_keys().is_multiple_of(16) && shape.ring >= 2);
                    assert!(
                        shape.keys[2].is_multiple_of(8)
                            || shape.keys[2] == 4 && shape.keys[1].is_multiple_of(2),
                        "{shape:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn boxes_that_are_asked_for_are_taken_or_declined() {
        let window = Neighborhood::new(&[AxisParams::new(500, 60)]).unwrap();
        let problem = Problem::builder(window, DType::F16).head_dim(64).build().unwrap();
        let with = |query: usize, key: usize| {
            let options = PlanOptions::default().query_tile(&[query]).key_tile(&[key]);
            Shape::choose(&problem, &options, &Target::of_arch(9, 0), 1)
        };
        let shape = with(128, 96).unwrap();
        assert_eq!((shape.query_tile(), shape.keys), ([1, 1, 128], [1, 1, 96]));
        assert!(with(100, 96).is_err());
    }
}
