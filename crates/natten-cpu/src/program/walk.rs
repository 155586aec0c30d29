//! One tile of pairs, whatever the direction: products, the program's codes, reductions, and sums of vectors.

use natten_core::geometry::TileBox;
use natten_core::program::Verdict;
use natten_core::{Op, Problem};

use super::code::{SweepCode, Vectors};
use super::columns::{self, Running};
use super::operands::Operands;
use super::passes::{Passes, RowCode};
use super::scratch::{INDICES, Scratch, ScratchSizes};
use super::sight::{Mask, PairBox, Room};
use super::tables::Tables;
use crate::element::Real;
use crate::kernel::Pairs;
use crate::kernel::stationary::{accumulate_masked, pack_panel, products_into};
use crate::lanes::{Direction, Sight, all_lanes};
use crate::simd::{MAX_WIDTH, Outlined, Simd};
use crate::tile::{Captured, TileCode, TileRun, TokenIndex};
use crate::tiling::Pass;
use crate::tokens::{Place, Tokens};

/// More than a sweep has of tiles, a row of numbers, and a program of captured tensors.
pub(super) const MAX_TILES: usize = 32;
pub(super) const MAX_NUMBERS: usize = 64;
pub(super) const MAX_CAPTURES: usize = natten_core::MAX_CAPTURES;

/// A run: what to compute on, and how it is cut.
#[derive(Debug)]
pub(super) struct Walk<'a, R: Real> {
    pub(super) problem: &'a Problem,
    pub(super) op: Op,
    pub(super) passes: &'a Passes,
    pub(super) mask: Option<&'a Mask>,
    /// Queries are stationary.
    pub(super) queries: &'a Pass,
    /// Keys are stationary.
    pub(super) keys: &'a Pass,
    pub(super) sizes: &'a ScratchSizes,
    pub(super) operands: &'a Operands<R>,
    pub(super) captures: [Captured<'a, R>; MAX_CAPTURES],
    pub(super) tables: &'a Tables<'a>,
}

/// What a thread has for its units.
#[derive(Debug)]
pub(super) struct Desk<'s, 'm, R> {
    pub(super) scratch: Scratch<'s, R>,
    pub(super) room: Option<Room<'m>>,
}

/// A streamed box of one batch entry and head, and whose unit it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Streamed<'c> {
    pub(super) direction: Direction,
    pub(super) code: &'c SweepCode,
    pub(super) place: Place,
    /// Whether the keys, streamed or stationary, lie in windows; additional ones are seen by every query, without bias
    /// and mask.
    pub(super) is_window: bool,
    pub(super) batch: usize,
    /// The query head.
    pub(super) head: usize,
    /// The program's mask on this box and all of the stationary one.
    pub(super) verdict: Verdict,
    /// Whether some streamed query is dead.
    pub(super) any_dead: bool,
    /// The gradient tables.
    pub(super) unit: usize,
}

/// What tokens are: queries, keys of windows, or additional keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Query,
    Key,
    Additional,
}

impl<R: Real> Walk<'_, R> {
    pub(super) fn scale(&self) -> R {
        R::of(self.problem.scale())
    }

    /// The program's mask on a box of pairs.
    pub(super) fn verdict(&self, room: &mut Option<Room<'_>>, pairs: PairBox<'_>) -> Verdict {
        match (self.mask, room) {
            (Some(mask), Some(room)) => mask.verdict(room, self.problem, &self.captures, pairs),
            _ => Verdict::Full,
        }
    }

    /// Packs stationary vectors of a lane group.
    ///
    /// # Safety
    /// The group is inside the tensor.
    #[inline(always)]
    #[expect(clippy::too_many_arguments, reason = "each is one thing that differs between callers")]
    pub(super) unsafe fn pack_stationary(
        &self,
        vectors: Vectors,
        tensor: &Tokens<R>,
        at: (usize, usize),
        g: usize,
        group: &Place,
        factor: R,
        scratch: &mut Scratch<'_, R>,
    ) {
        let dim = self.sizes.dims[vectors.side()];
        let len = dim * self.sizes.width;
        let panel = &mut scratch.stationary[vectors as usize][g * len..][..len];
        // SAFETY: the caller's.
        unsafe { pack_panel(tensor, at, group, factor, &mut scratch.vector[..dim], panel) };
    }

    /// Packs streamed vectors of a box.
    ///
    /// # Safety
    /// The box is inside the tensor, and has no more rows than scratch.
    #[inline(always)]
    pub(super) unsafe fn pack_streamed(
        &self,
        vectors: Vectors,
        tensor: &Tokens<R>,
        at: (usize, usize),
        place: &Place,
        factor: R,
        scratch: &mut Scratch<'_, R>,
    ) {
        let (dim, stride) = (self.sizes.dims[vectors.side()], self.sizes.stride[vectors.side()]);
        let to = &mut *scratch.streamed[vectors as usize];
        // SAFETY: the caller's.
        let mut is_finite = unsafe { tensor.pack(at, place, dim, stride, to) };
        if factor != R::of(1.0) {
            let mut sum = R::ZERO;
            for number in &mut to[..place.tile.volume() * stride] {
                *number = *number * factor;
                sum = sum + *number * R::ZERO;
            }
            is_finite &= sum == R::ZERO;
        }
        scratch.finite[vectors as usize] = is_finite;
    }

    /// Writes the indices of a box's tokens: row-major numbers, then coordinates, `stride` apart.
    pub(super) fn write_index(&self, kind: Kind, place: &Place, stride: usize, to: &mut [i32]) {
        let neighborhood = self.problem.neighborhood();
        let (rank, axes) = (neighborhood.rank(), neighborhood.axes());
        let grid: [usize; 3] = match kind {
            Kind::Query => axes.each_ref().map(|axis| axis.query_len()),
            _ => axes.each_ref().map(|axis| axis.key_len()),
        };
        let mut write = |row: usize, flat: usize, token: [usize; 3]| {
            to[row] = flat as i32;
            for a in 0..rank {
                to[(1 + a) * stride + row] = token[3 - rank + a] as i32;
            }
        };
        if kind == Kind::Additional {
            for row in 0..place.tile.volume() {
                // Behind the grid, and beyond it along the first axis.
                let flat = grid.iter().product::<usize>() + place.tile.start[2] + row;
                let mut token = [flat / (grid[1] * grid[2]), flat / grid[2] % grid[1], flat % grid[2]];
                if rank < 3 {
                    let first = 3 - rank;
                    token[first] = flat / grid[first + 1..].iter().product::<usize>();
                }
                write(row, flat, token);
            }
            return;
        }
        let [ez, ey, ex] = place.tile.extent;
        for z in 0..ez {
            for y in 0..ey {
                let token = place.token([z, y, 0]);
                let next = place.token([z, y, 1]);
                for x in 0..ex {
                    let token = [token[0], token[1], token[2] + x * (next[2] - token[2])];
                    let flat = (token[0] * grid[1] + token[1]) * grid[2] + token[2];
                    write((z * ey + y) * ex + x, flat, token);
                }
            }
        }
    }

    /// Functions of the numbers of a lane group of queries, of this batch entry and head.
    ///
    /// # Safety
    /// The processor has `S`; scratch was carved by the walk's sizes and holds the group's numbers.
    #[inline(always)]
    pub(super) unsafe fn row<S: Simd<T = R>>(
        &self,
        (batch, head): (usize, usize),
        row: &RowCode,
        g: usize,
        lanes: usize,
        desk: &mut Desk<'_, '_, R>,
    ) {
        let (scratch, width, rank) = (&mut desk.scratch, S::WIDTH, self.problem.neighborhood().rank());
        let count = self.sizes.lane_numbers;
        let numbers = scratch.lane_numbers.as_mut_ptr().wrapping_add(g * count * width);
        let index = &scratch.lane_index[g * INDICES * width..][..INDICES * width];
        let around = Around {
            rows: 1,
            lanes,
            batch: batch as i32,
            head: head as i32,
            head_kv: (head / self.problem.heads_per_kv()) as i32,
            lane_index: token_index(index, width, width, rank),
            // A row's functions are of no key: any index will do.
            row_index: token_index(&scratch.row_index[..INDICES], 1, 1, rank),
            lane_numbers: (numbers, count),
            row_numbers: (std::ptr::null(), 0, 0),
            // A number is a tile of one row.
            tiles: (numbers, width),
            direction: Direction::Keys,
            captures: &self.captures,
            tables: &[],
        };
        // SAFETY: the caller's; results are other numbers than arguments.
        unsafe { around.evaluate::<S>(&row.code, &row.outputs, &mut [], scratch.code) };
    }

    /// One streamed box for one lane group.
    ///
    /// # Safety
    /// The processor has `S`; scratch was carved by the walk's sizes and holds what the code streams, the group's
    /// vectors and numbers; the boxes are inside the problem; the operands live; no other thread has the unit's tables.
    #[inline(always)]
    pub(super) unsafe fn tile<S: Simd<T = R>>(
        &self,
        streamed: &Streamed<'_>,
        g: usize,
        group: &TileBox,
        desk: &mut Desk<'_, '_, R>,
    ) {
        // SAFETY: the caller's.
        unsafe { S::outlined(OneTile { walk: self, streamed, g, group, desk }) };
    }
}

/// See [`Walk::tile`].
struct OneTile<'w, 'd, 's, 'm, 'a, R: Real> {
    walk: &'w Walk<'a, R>,
    streamed: &'w Streamed<'w>,
    g: usize,
    group: &'w TileBox,
    desk: &'d mut Desk<'s, 'm, R>,
}

impl<R: Real> Outlined for OneTile<'_, '_, '_, '_, '_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        let Self { walk, streamed, g, group, desk } = self;
        let Desk { scratch, room } = desk;
        let Streamed { direction, code, ref place, is_window, .. } = *streamed;
        let (axes, width) = (walk.problem.neighborhood().axes(), S::WIDTH);
        let live = match direction {
            Direction::Keys => scratch.live[g],
            Direction::Queries => all_lanes(group.volume()),
        };
        if live == 0 {
            return;
        }
        let is_partial = match streamed.verdict {
            Verdict::Partial => {
                let (queries, keys) = match direction {
                    Direction::Keys => (group, &place.tile),
                    Direction::Queries => (&place.tile, group),
                };
                let pairs = PairBox { batch: streamed.batch, head: streamed.head, queries, keys };
                match walk.verdict(room, pairs) {
                    Verdict::Empty => return,
                    verdict => verdict == Verdict::Partial,
                }
            }
            _ => false,
        };
        let sight = match is_window {
            true => Sight::new(direction, axes, group, &place.tile, scratch.axis_masks),
            false => Sight::everything(group.volume(), place.tile.extent),
        };
        let rows = sight.rows();
        if rows == 0 {
            return;
        }
        let vectors = group.volume().div_ceil(S::LANES);
        let all = all_lanes(group.volume());
        let is_masked = is_partial || !sight.is_full || live != all || streamed.any_dead || code.scatters;

        // What the codes read of the rows of the sight: all rows of the box, or copies of those that are seen.
        let reads_index = code.reads_index || is_partial;
        let box_rows = place.tile.volume();
        let (mut row_numbers, mut row_index) = (&scratch.row_numbers[..], &scratch.row_index[..]);
        if rows != box_rows {
            let stride = walk.sizes.rows;
            if direction == Direction::Queries {
                let (from, to) = scratch.row_numbers.split_at_mut(stride * walk.sizes.row_numbers);
                compact(&sight, stride, from, to);
                row_numbers = to;
            }
            if reads_index {
                let (from, to) = scratch.row_index.split_at_mut(stride * INDICES);
                compact(&sight, stride, from, to);
                row_index = to;
            }
        }
        let masks: &mut [u32] = if is_masked { &mut scratch.masks[..rows] } else { &mut [] };
        if is_masked {
            let mut offset = sight.first();
            for mask in masks.iter_mut() {
                *mask = sight.mask(offset) & live;
                offset = sight.after(offset);
            }
            if streamed.any_dead {
                for &slot in &walk.passes.keys.lse_stages {
                    let stage = &row_numbers[slot * walk.sizes.rows..][..rows];
                    for (mask, stage) in masks.iter_mut().zip(stage) {
                        *mask = if *stage == R::NEG_INFINITY { 0 } else { *mask };
                    }
                }
            }
        }

        let rank = walk.problem.neighborhood().rank();
        let lanes = &scratch.lane_index[g * INDICES * width..][..INDICES * width];
        let mut tables = [std::ptr::null_mut(); MAX_CAPTURES];
        if code.scatters {
            walk.tables.of_unit(streamed.unit, streamed.head, &mut tables);
        }
        let lane_numbers =
            scratch.lane_numbers.as_mut_ptr().wrapping_add(g * walk.sizes.lane_numbers * width);
        let around = Around {
            rows,
            lanes: group.volume(),
            batch: streamed.batch as i32,
            head: streamed.head as i32,
            head_kv: (streamed.head / walk.problem.heads_per_kv()) as i32,
            lane_index: token_index(lanes, width, width, rank),
            row_index: token_index(row_index, walk.sizes.rows, rows, rank),
            lane_numbers: (lane_numbers, walk.sizes.lane_numbers),
            row_numbers: (row_numbers.as_ptr(), walk.sizes.row_numbers, walk.sizes.rows),
            tiles: (scratch.tiles.as_mut_ptr(), walk.sizes.rows * width),
            direction,
            captures: &walk.captures,
            tables: &tables,
        };
        // SAFETY: the caller's: scratch has room for the tiles of every sweep, a row for every row of the sight, and
        // what the codes name; the group's numbers, masks and tiles lie apart.
        unsafe {
            if let (true, Some(mask)) = (is_partial, walk.mask) {
                around.evaluate::<S>(mask.code(direction), &[], masks, scratch.code);
                if masks.iter().all(|&mask| mask == 0) {
                    return;
                }
            }
            if direction == Direction::Keys {
                scratch.seen[g] |=
                    if is_masked { masks.iter().fold(0, |seen, &mask| seen | mask) } else { all };
            }
            for &n in &code.zeros {
                around.tile::<S>(n).fill(R::ZERO);
            }
            for dot in &code.dots {
                let side = dot.streamed.side();
                let (dim, stride) = (walk.sizes.dims[side], walk.sizes.stride[side]);
                let panel = &scratch.stationary[dot.stationary as usize][g * dim * width..][..dim * width];
                let from = (&*scratch.streamed[dot.streamed as usize], stride);
                match dot.adds {
                    true => products_into::<S, true>(
                        &sight,
                        dim,
                        vectors,
                        from,
                        panel,
                        around.tile::<S>(dot.tile),
                    ),
                    false => products_into::<S, false>(
                        &sight,
                        dim,
                        vectors,
                        from,
                        panel,
                        around.tile::<S>(dot.tile),
                    ),
                }
            }
            let pairs = Pairs { direction, group, streamed: place.tile.start, sight: &sight, width };
            for (bias, biased) in walk.operands.bias.iter().zip(code.biased) {
                if let (true, Some(bias), Some(n)) = (is_window, bias, biased) {
                    bias.add(streamed.head, &pairs, around.tile::<S>(n));
                }
            }
            if let Some(stage) = &code.first {
                around.evaluate::<S>(&stage.code, &stage.outputs, masks, scratch.code);
            }
            let counting = is_masked.then_some(&*masks);
            let (mut rescale, mut other) = ([R::of(1.0); MAX_WIDTH], [R::of(1.0); MAX_WIDTH]);
            for column in &code.columns {
                let running = Running {
                    peak: around.number::<S>(column.peak),
                    total: around.number::<S>(column.total),
                    rescale: if column.exponentials.is_some() { &mut rescale } else { &mut other },
                };
                let to = column.exponentials.map(|n| around.tile::<S>(n).as_mut_ptr());
                let from = around.tile::<S>(column.tile).as_ptr();
                columns::logsumexp::<S>(rows, vectors, counting, from, to, running);
            }
            if let Some(stage) = &code.second {
                around.evaluate::<S>(&stage.code, &stage.outputs, masks, scratch.code);
            }
            let counting = is_masked.then_some(&*masks);
            for &(n, reduction) in &code.reduced {
                let rescale = reduction.is_scaled.then_some(&rescale[..]);
                let (tile, number) = (around.tile::<S>(n).as_ptr(), around.number::<S>(reduction.slot));
                columns::reduce::<S>(reduction.reduce, rows, vectors, counting, tile, rescale, number);
            }
            if let Some(masks) = counting {
                for &n in &code.masked {
                    columns::clear::<S>(vectors, masks, around.tile::<S>(n).as_mut_ptr());
                }
            }
            for &slot in &code.rescaled {
                for (number, &factor) in around.number::<S>(slot).iter_mut().zip(&rescale) {
                    *number = *number * factor;
                }
            }
            for &sums in code.rescaled_sums.iter().filter(|&&sums| walk.sizes.sums[sums as usize]) {
                let stride = walk.sizes.stride[sums.side()];
                let sums = &mut scratch.sums[sums as usize][g * width * stride..][..width * stride];
                scale_lanes::<S>(&rescale[..group.volume()], stride, sums);
            }
            for product in &code.products {
                let stride = walk.sizes.stride[product.sums.side()];
                let from = &*scratch.streamed[product.streamed as usize];
                let rows = (from, stride, scratch.finite[product.streamed as usize]);
                let sums = &mut scratch.sums[product.sums as usize][g * width * stride..][..width * stride];
                accumulate_masked::<S>(&sight, counting, group, rows, around.tile::<S>(product.tile), sums);
            }
            if let (Some(n), Some(tables), true) = (code.bias_gradient, &walk.operands.grad_bias, is_window) {
                tables.add(streamed.unit, &pairs, live, around.tile::<S>(n));
            }
        }
    }
}

/// Multiplies the sums of every lane with a number of its own.
///
/// # Safety
/// The processor has `S`; `sums` has a row a lane, `stride` apart, of whole vectors.
#[inline(always)]
unsafe fn scale_lanes<S: Simd>(factors: &[S::T], stride: usize, sums: &mut [S::T]) {
    for (lane, &factor) in factors.iter().enumerate() {
        // One comparison a lane saves the product once the maximum has settled. NaN is not 1.
        if factor != S::T::of(1.0) {
            // SAFETY: the caller's.
            unsafe {
                let factor = S::splat(factor);
                for d in (0..stride).step_by(S::LANES) {
                    let sum = sums.as_mut_ptr().add(lane * stride + d);
                    S::store(sum, S::mul(S::load(sum), factor));
                }
            }
        }
    }
}

/// Copies the rows of a sight, of every run of `stride` numbers.
fn compact<T: Copy>(sight: &Sight<'_>, stride: usize, from: &[T], to: &mut [T]) {
    for (from, to) in from.chunks_exact(stride).zip(to.chunks_exact_mut(stride)) {
        let mut at = 0;
        for (first, count) in sight.runs() {
            to[at..at + count].copy_from_slice(&from[first..first + count]);
            at += count;
        }
    }
}

/// The first `len` of each of the indices, which are `stride` apart.
fn token_index(indices: &[i32], stride: usize, len: usize, rank: usize) -> TokenIndex<'_> {
    let index = |n: usize| &indices[n * stride..][..len];
    TokenIndex { flat: index(0), axis: std::array::from_fn(|a| if a < rank { index(1 + a) } else { &[] }) }
}

/// What the codes of a tile see.
#[derive(Debug)]
struct Around<'t, R> {
    rows: usize,
    lanes: usize,
    batch: i32,
    head: i32,
    head_kv: i32,
    direction: Direction,
    lane_index: TokenIndex<'t>,
    row_index: TokenIndex<'t>,
    /// `WIDTH` of each number, and how many there are.
    lane_numbers: (*mut R, usize),
    /// The same of rows, and how far they are apart.
    row_numbers: (*const R, usize, usize),
    /// The tiles, and how far they are apart.
    tiles: (*mut R, usize),
    captures: &'t [Captured<'t, R>],
    tables: &'t [*mut f64],
}

impl<'t, R: Real> Around<'t, R> {
    /// A tile.
    ///
    /// # Safety
    /// The tile is there, and nobody else has it.
    #[inline(always)]
    unsafe fn tile<S: Simd<T = R>>(&self, n: usize) -> &'t mut [R] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.tiles.0.add(n * self.tiles.1), self.rows * S::WIDTH) }
    }

    /// A number of the lanes.
    ///
    /// # Safety
    /// The number is there, and nobody else has it.
    #[inline(always)]
    unsafe fn number<S: Simd<T = R>>(&self, slot: usize) -> &'t mut [R] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.lane_numbers.0.add(slot * S::WIDTH), S::WIDTH) }
    }

    /// Runs a code, its results to `outputs`.
    ///
    /// # Safety
    /// The processor has `S`; everything that the code names is there, and nobody else has it.
    #[inline(always)]
    unsafe fn evaluate<S: Simd<T = R>>(
        &self,
        code: &TileCode,
        outputs: &[usize],
        masks: &mut [u32],
        scratch: &mut [R],
    ) {
        let mut numbers = [&[][..]; MAX_NUMBERS];
        let count = match self.direction {
            Direction::Keys => self.lane_numbers.1,
            Direction::Queries => self.row_numbers.1,
        };
        for (slot, numbers) in numbers.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's.
            *numbers = unsafe {
                match self.direction {
                    Direction::Keys => &*self.number::<S>(slot),
                    Direction::Queries => std::slice::from_raw_parts(
                        self.row_numbers.0.add(slot * self.row_numbers.2),
                        self.rows,
                    ),
                }
            };
        }
        let (lane_numbers, row_numbers): (&[&[R]], &[&[R]]) = match self.direction {
            Direction::Keys => (&numbers[..count], &[]),
            Direction::Queries => (&[], &numbers[..count]),
        };
        let mut tiles = [std::ptr::null::<R>(); MAX_TILES];
        for (n, tile) in tiles.iter_mut().enumerate() {
            *tile = self.tiles.0.wrapping_add(n * self.tiles.1).cast_const();
        }
        let mut to = [std::ptr::null_mut::<R>(); MAX_TILES];
        for (to, &n) in to.iter_mut().zip(outputs) {
            *to = self.tiles.0.wrapping_add(n * self.tiles.1);
        }
        let mut run = TileRun {
            rows: self.rows,
            lanes: self.lanes,
            batch: self.batch,
            head: self.head,
            head_kv: self.head_kv,
            lane_index: &self.lane_index,
            row_index: &self.row_index,
            lane_numbers,
            row_numbers,
            tiles: &tiles,
            captures: self.captures,
            outputs: &to[..outputs.len()],
            masks,
            tables: self.tables,
        };
        // SAFETY: the caller's.
        unsafe { code.run::<S>(&mut run, scratch) };
    }
}
