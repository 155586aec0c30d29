//! What the kernels of a program share: operands in SBUF as they come and transposed, tables, scratch, and PSUM.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use natten_core::{OpRequest, Problem, Role};

use super::super::builder::Builder;
use super::super::constants::{Cache, Constants};
use super::super::launch::{Launch, Sink, Source};
use super::super::layout::{Layout, Tokens};
use crate::dtype::Dtype;
use crate::ir::{Engine, Op, PARTITIONS, Space, Tensor, TensorId, View};

/// The most columns of a score tile.
pub(super) const COLUMNS: usize = 256;
/// Bytes a partition of the operands of one tensor, in each form.
const OPERAND_BYTES: usize = 8 * 1024;
/// Columns of the numbers of rows; each tile has half of them, in turn.
const ROW_COLUMNS: usize = 512;

/// What an operand's slot holds.
type Key = (usize, usize, Tokens);

#[derive(Debug)]
struct Slots {
    tensor: TensorId,
    cache: Cache<Key>,
}

/// A bound tensor as a kernel sees it.
#[derive(Debug)]
struct Input {
    tensor: TensorId,
    layout: Layout,
    natural: Slots,
    transposed: Slots,
}

/// A kernel of a program on its way.
#[derive(Debug)]
pub(super) struct Emitter<'a> {
    /// The problem.
    pub(super) problem: &'a Problem,
    /// The kernel.
    pub(super) b: Builder,
    /// The type of operands of matrix products.
    pub(super) dtype: Dtype,
    inputs: BTreeMap<Role, Input>,
    sources: Vec<(TensorId, Source)>,
    sinks: Vec<(TensorId, Sink)>,
    masks: Constants,
    mask_tensor: TensorId,
    mask_cache: Cache<(usize, usize, usize)>,
    predicates: TensorId,
    next_predicate: [usize; 2],
    numbers: Constants,
    gathers: HashMap<Role, Gather>,
    scratch: Vec<TensorId>,
    free: VecDeque<TensorId>,
    products: [TensorId; 4],
    next_product: usize,
    transposes: [TensorId; 2],
    next_transpose: usize,
    /// Accumulators of products.
    pub(super) accumulators: [TensorId; 2],
    moved: [TensorId; 2],
    cast: [TensorId; 4],
    next_cast: usize,
    rows: TensorId,
    next_row: usize,
    row_turn: usize,
    results: [TensorId; 2],
    next_result: usize,
    /// Whether some inputs are not finite: then nothing is transposed by the tensor engine but single rows.
    pub(super) is_exact: bool,
}

#[derive(Debug, Default)]
struct Gather {
    tensor: Option<TensorId>,
    places: Vec<u32>,
    known: HashMap<Vec<u32>, usize>,
}

impl<'a> Emitter<'a> {
    /// An empty kernel that reads these tensors.
    pub(super) fn new(
        problem: &'a Problem,
        name: &str,
        dtype: Dtype,
        roles: &[Role],
        is_exact: bool,
    ) -> Self {
        let mut b = Builder::new(name);
        let mut sources = Vec::new();
        let mut inputs = BTreeMap::new();
        for &role in roles {
            let layout = Layout::of(problem, role);
            let element = Dtype::of(problem.dtype_of(role)).unwrap_or(dtype);
            let tensor = b.tensor(problem.name(role), Space::Input, &problem.shape(role), element);
            sources.push((tensor, Source::Role(role)));
            let dim = layout.dim();
            let chunks = dim.div_ceil(PARTITIONS);
            let slots = |columns: usize| (OPERAND_BYTES / (columns * element.size())).clamp(4, 32);
            let (of_natural, of_transposed) = (slots(dim), slots(chunks * PARTITIONS));
            let natural = b.sbuf(format!("{role}_sb"), &[PARTITIONS, of_natural * dim], element);
            let parts = dim.min(PARTITIONS);
            let transposed =
                b.sbuf(format!("{role}_t"), &[parts, of_transposed * chunks * PARTITIONS], element);
            let natural = Slots { tensor: natural, cache: Cache::new(of_natural) };
            let transposed = Slots { tensor: transposed, cache: Cache::new(of_transposed) };
            inputs.insert(role, Input { tensor, layout, natural, transposed });
        }
        let masks = Constants::new(&mut b, "masks", Dtype::U8);
        let numbers = Constants::new(&mut b, "tables", Dtype::F32);
        let widest = problem.head_dim().max(problem.head_dim_v());
        Self {
            mask_tensor: b.sbuf("mask", &[PARTITIONS, 8 * COLUMNS], Dtype::U8),
            mask_cache: Cache::new(8),
            predicates: b.sbuf("predicates", &[PARTITIONS, 4 * COLUMNS], Dtype::U8),
            next_predicate: [0; 2],
            masks,
            numbers,
            gathers: HashMap::new(),
            scratch: Vec::new(),
            free: VecDeque::new(),
            products: [0, 1, 2, 3].map(|turn| b.psum(format!("s{turn}"), &[PARTITIONS, COLUMNS])),
            next_product: 0,
            transposes: [0, 1].map(|turn| b.psum(format!("t{turn}"), &[PARTITIONS, PARTITIONS])),
            next_transpose: 0,
            accumulators: [0, 1].map(|turn| b.psum(format!("acc{turn}"), &[PARTITIONS, widest])),
            moved: [0, 1].map(|turn| b.sbuf(format!("moved{turn}"), &[PARTITIONS, PARTITIONS], dtype)),
            cast: [0, 1, 2, 3].map(|turn| b.sbuf(format!("cast{turn}"), &[PARTITIONS, COLUMNS], dtype)),
            next_cast: 0,
            rows: b.sbuf("rows", &[PARTITIONS, ROW_COLUMNS], Dtype::F32),
            next_row: 0,
            row_turn: 0,
            results: [0, 1].map(|turn| b.sbuf(format!("out{turn}"), &[PARTITIONS, widest], dtype)),
            next_result: 0,
            problem,
            b,
            dtype,
            inputs,
            sources,
            sinks: Vec::new(),
            is_exact,
        }
    }

    /// Declares an output.
    pub(super) fn output(&mut self, name: &str, shape: &[usize], dtype: Dtype, sink: Sink) -> TensorId {
        let tensor = self.b.tensor(name, Space::Output, shape, dtype);
        self.sinks.push((tensor, sink));
        tensor
    }

    /// Declares the outputs of a request that a kernel writes.
    pub(super) fn results(&mut self, request: &OpRequest, roles: &[Role]) -> BTreeMap<Role, TensorId> {
        let wanted = roles.iter().copied().filter(|&role| request.wants.contains(role));
        wanted
            .map(|role| {
                let dtype = Dtype::of(self.problem.dtype_of(role)).unwrap_or(self.dtype);
                let (name, shape) = (self.problem.name(role), self.problem.shape(role));
                (role, self.output(&name, &shape, dtype, Sink::Role(role)))
            })
            .collect()
    }

    /// Declares an input that is no bound tensor.
    pub(super) fn input(&mut self, name: &str, shape: &[usize], dtype: Dtype, source: Source) -> TensorId {
        let tensor = self.b.tensor(name, Space::Input, shape, dtype);
        self.sources.push((tensor, source));
        tensor
    }

    /// Whether the kernel reads a tensor.
    pub(super) fn has(&self, role: Role) -> bool {
        self.inputs.contains_key(&role)
    }

    /// The layout of an input.
    pub(super) fn layout(&self, role: Role) -> Layout {
        self.inputs[&role].layout
    }

    /// The vectors of some tokens in SBUF, [tokens, dim].
    pub(super) fn natural(&mut self, role: Role, batch: usize, head: usize, tokens: &Tokens) -> View {
        let Some(input) = self.inputs.get_mut(&role) else { unreachable!("{role} is an input") };
        let (slot, is_new) = input.natural.cache.slot(&(batch, head, *tokens));
        let dim = input.layout.dim();
        let view = self.b.at(input.natural.tensor, tokens.len(), slot * dim, dim);
        if is_new {
            let (first, pairs) = input.layout.vectors(batch, head, tokens, 0, dim);
            let src = self.b.pattern(input.tensor, 1, first, pairs);
            self.b.dma(view.clone(), src);
        }
        view
    }

    /// The vectors of some tokens in SBUF, transposed, one view a chunk of the dim: [dim, tokens].
    pub(super) fn transposed(&mut self, role: Role, batch: usize, head: usize, tokens: &Tokens) -> Vec<View> {
        let Some(input) = self.inputs.get_mut(&role) else { unreachable!("{role} is an input") };
        let (slot, is_new) = input.transposed.cache.slot(&(batch, head, *tokens));
        let (dim, layout, source) = (input.layout.dim(), input.layout, input.tensor);
        let tensor = input.transposed.tensor;
        let chunks = dim.div_ceil(PARTITIONS);
        let views: Vec<View> = (0..chunks)
            .map(|chunk| {
                let len = PARTITIONS.min(dim - chunk * PARTITIONS);
                self.b.at(tensor, len, (slot * chunks + chunk) * PARTITIONS, tokens.len())
            })
            .collect();
        if is_new && self.is_exact {
            for (chunk, view) in views.iter().enumerate() {
                let (first, pairs) = layout.transposed(batch, head, tokens, chunk * PARTITIONS, view.parts);
                let src = self.b.pattern(source, 1, first, pairs);
                self.b.dma(view.clone(), src);
            }
        } else if is_new {
            let natural = self.natural(role, batch, head, tokens);
            for (chunk, view) in views.iter().enumerate() {
                let data = natural.columns(chunk * PARTITIONS, view.parts);
                let psum = self.transpose(data);
                self.b.copy(Engine::Vector, view.clone(), psum);
            }
        }
        views
    }

    /// A transpose, in PSUM.
    fn transpose(&mut self, data: View) -> View {
        let psum = self.transposes[self.next_transpose % 2];
        self.next_transpose += 1;
        let dst = self.b.at(psum, data.len(), 0, data.parts);
        self.b.transpose(dst.clone(), data);
        dst
    }

    /// A transpose of a tile of operands, in SBUF.
    pub(super) fn transposed_tile(&mut self, data: View) -> View {
        let moved = self.moved[self.next_transpose % 2];
        let psum = self.transpose(data);
        let dst = self.b.at(moved, psum.parts, 0, psum.len());
        self.b.copy(Engine::Scalar, dst.clone(), psum);
        dst
    }

    /// Some of PSUM for a product.
    pub(super) fn product(&mut self, rows: usize, columns: usize) -> View {
        let psum = self.products[self.next_product % 4];
        self.next_product += 1;
        self.b.at(psum, rows, 0, columns)
    }

    /// A tile as the operand of a matrix product: of the problem's type.
    pub(super) fn operand(&mut self, tile: View) -> View {
        if self.dtype == Dtype::F32 {
            return tile;
        }
        let cast = self.cast[self.next_cast % 4];
        self.next_cast += 1;
        let dst = self.b.at(cast, tile.parts, 0, tile.len());
        self.b.copy(Engine::Vector, dst.clone(), tile);
        dst
    }

    /// A scratch tile of f32.
    pub(super) fn tile(&mut self, rows: usize, columns: usize) -> View {
        // A few more than are needed, so that a buffer rests before it is written again.
        if self.free.len() < 3 {
            let number = self.scratch.len();
            let tensor = self.b.sbuf(format!("x{number}"), &[PARTITIONS, COLUMNS], Dtype::F32);
            self.scratch.push(tensor);
            self.free.push_back(tensor);
        }
        let tensor = self.free.pop_front().unwrap_or(self.scratch[0]);
        self.b.at(tensor, rows, 0, columns)
    }

    /// Gives a scratch tile back.
    pub(super) fn release(&mut self, tile: &View) {
        if self.scratch.contains(&tile.tensor) && !self.free.contains(&tile.tensor) {
            self.free.push_back(tile.tensor);
        }
    }

    /// Begins the numbers of another tile's rows.
    pub(super) fn begin_rows(&mut self) {
        self.row_turn = 1 - self.row_turn;
        self.next_row = 0;
    }

    /// Numbers of the rows of a tile, [rows, columns], until the tile after the next begins.
    pub(super) fn row(&mut self, rows: usize, columns: usize) -> View {
        let half = ROW_COLUMNS / 2;
        if self.next_row + columns > half {
            self.next_row = 0;
        }
        let at = self.row_turn * half + self.next_row;
        self.next_row += columns;
        self.b.at(self.rows, rows, at, columns)
    }

    /// Some of SBUF for a result on its way to HBM.
    pub(super) fn result(&mut self, rows: usize, columns: usize) -> View {
        let tensor = self.results[self.next_result % 2];
        self.next_result += 1;
        self.b.at(tensor, rows, 0, columns)
    }

    /// A predicate in SBUF.
    pub(super) fn mask(&mut self, holds: &[bool], rows: usize, columns: usize) -> View {
        let table: Vec<f32> = holds.iter().map(|&holds| f32::from(u8::from(holds))).collect();
        let at = self.masks.add(&table);
        let (slot, is_new) = self.mask_cache.slot(&(at, rows, columns));
        let view = self.b.at(self.mask_tensor, rows, slot * COLUMNS, columns);
        if is_new {
            let src = self.masks.view(&self.b, at, rows, columns);
            self.b.dma(view.clone(), src);
        }
        view
    }

    /// A predicate that was computed: of one selection, or of which pairs of a block count, which lives longer.
    pub(super) fn predicate(&mut self, tile: &View, of_block: bool) -> View {
        let turn = &mut self.next_predicate[usize::from(of_block)];
        *turn += 1;
        let slot = 2 * usize::from(of_block) + *turn % 2;
        let view = self.b.at(self.predicates, tile.parts, slot * COLUMNS, tile.len());
        self.b.copy(Engine::Vector, view.clone(), tile.clone());
        view
    }

    /// A table of known numbers, loaded into a view.
    pub(super) fn load_known(&mut self, table: &[f32], dst: View) {
        let at = self.numbers.add(table);
        let src = self.numbers.view(&self.b, at, dst.parts, dst.len());
        self.b.dma(dst, src);
    }

    /// Elements of a bound tensor, gathered by the launcher and loaded into a view.
    pub(super) fn load_gathered(&mut self, role: Role, places: Vec<u32>, dst: View) {
        let gather = self.gathers.entry(role).or_default();
        let tensor = *gather.tensor.get_or_insert_with(|| {
            let name = format!("{}_tiles", self.problem.name(role));
            self.b.tensor(name, Space::Input, &[0], Dtype::F32)
        });
        let at = match gather.known.get(&places) {
            Some(&at) => at,
            None => {
                let at = gather.places.len();
                gather.places.extend_from_slice(&places);
                gather.known.insert(places, at);
                at
            }
        };
        let src = self.b.pattern(tensor, 1, at, vec![(dst.len(), dst.parts), (1, dst.len())]);
        self.b.dma(dst, src);
    }

    /// Copies between HBM and SBUF some numbers of tokens of a head.
    pub(super) fn store(
        &mut self,
        tensor: TensorId,
        layout: &Layout,
        at: (usize, usize, &Tokens),
        src: View,
    ) {
        let (batch, head, tokens) = at;
        let (first, pairs) = layout.vectors(batch, head, tokens, 0, src.len());
        let dst = self.b.pattern(tensor, 1, first, pairs);
        self.b.dma(dst, src);
    }

    /// Loads some numbers of tokens of a head.
    pub(super) fn load(&mut self, tensor: TensorId, layout: &Layout, at: (usize, usize, &Tokens), dst: View) {
        let (batch, head, tokens) = at;
        let (first, pairs) = layout.vectors(batch, head, tokens, 0, dst.len());
        let src = self.b.pattern(tensor, 1, first, pairs);
        self.b.dma(dst, src);
    }

    /// A constant.
    pub(super) fn fill(&mut self, dst: View, value: f32) {
        self.b.push(Engine::Vector, Op::Memset { dst, value });
    }

    /// The kernel, its inputs and outputs in the order of its tensors.
    pub(super) fn finish(mut self) -> Launch {
        let constants = [(self.masks, Dtype::U8), (self.numbers, Dtype::F32)];
        let names = ["masks", "tables"];
        let mut by_name: BTreeMap<String, Source> = BTreeMap::new();
        for ((constants, _), name) in constants.into_iter().zip(names) {
            let numbers = constants.finish(&mut self.b);
            by_name.insert(name.to_owned(), Source::Constant(numbers));
        }
        for (role, gather) in self.gathers {
            if let Some(tensor) = gather.tensor {
                self.b.resize(tensor, &[gather.places.len()]);
                self.sources.push((tensor, Source::Gather(role, Arc::new(gather.places))));
            }
        }
        let mut by_tensor: BTreeMap<TensorId, Source> = self.sources.into_iter().collect();
        let kernel = self.b.finish();
        let is_in = |space: Space| move |(_, tensor): &(usize, &Tensor)| tensor.space == space;
        let sources = kernel
            .tensors
            .iter()
            .enumerate()
            .filter(is_in(Space::Input))
            .filter_map(|(at, tensor)| {
                by_tensor.remove(&TensorId(at)).or_else(|| by_name.remove(&tensor.name))
            })
            .collect();
        let mut sinks: BTreeMap<TensorId, Sink> = self.sinks.into_iter().collect();
        let sinks = kernel
            .tensors
            .iter()
            .enumerate()
            .filter(is_in(Space::Output))
            .filter_map(|(at, _)| sinks.remove(&TensorId(at)))
            .collect();
        Launch { kernel, sources, sinks }
    }

    /// Gives the scatter of an output its places, once they are known.
    pub(super) fn set_sink(&mut self, tensor: TensorId, len: usize, sink: Sink) {
        self.b.resize(tensor, &[len]);
        if let Some(entry) = self.sinks.iter_mut().find(|(of, _)| *of == tensor) {
            entry.1 = sink;
        }
    }
}
