//! A sweep, compiled: which tiles of products are needed, which code turns them into what is reduced, summed and
//! scattered, and where each of these tiles lies.
//!
//! The order in a tile of pairs is fixed: products, bias, the first code, the columns of logsumexp stages, the second
//! code (what is a function of the exponentials that a column leaves), reductions, sums of vectors, scatters.

use natten_core::Result;
use natten_core::program::{Capture, Expr, Graph, Index, Node, Primal, Reduce, Var};

use super::numbers::{Number, Numbers};
use crate::lanes::Direction;
use crate::tile::{Output, Source, TileCode};

/// What is streamed, or stationary: `A` has `head_dim` numbers (queries, keys), `B` `head_dim_v` (values, cotangents of
/// outputs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Vectors {
    A,
    ATangent,
    B,
    BTangent,
}

impl Vectors {
    pub(super) const ALL: [Self; 4] = [Self::A, Self::ATangent, Self::B, Self::BTangent];

    /// 0 for vectors of `head_dim`, 1 for those of `head_dim_v`.
    pub(super) const fn side(self) -> usize {
        match self {
            Self::A | Self::ATangent => 0,
            Self::B | Self::BTangent => 1,
        }
    }
}

/// Where vectors are summed, a vector a lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sums {
    /// Of `head_dim_v`: outputs, or gradients of values.
    B,
    /// Of `head_dim_v`: tangents of outputs.
    BTangent,
    /// Of `head_dim`: gradients of queries or of keys.
    A,
}

impl Sums {
    pub(super) const ALL: [Self; 3] = [Self::B, Self::BTangent, Self::A];

    pub(super) const fn side(self) -> usize {
        match self {
            Self::A => 0,
            Self::B | Self::BTangent => 1,
        }
    }
}

/// The tiles of products that expressions are functions of.
const INPUTS: [Var; 4] = [Var::Score, Var::Tangent(Primal::Score), Var::Grad, Var::Tangent(Primal::Grad)];

/// The products that a tile of products is the sum of: streamed vectors, and stationary ones.
const DOTS: [&[(Vectors, Vectors)]; 4] = [
    &[(Vectors::A, Vectors::A)],
    &[(Vectors::A, Vectors::ATangent), (Vectors::ATangent, Vectors::A)],
    &[(Vectors::B, Vectors::B)],
    &[(Vectors::B, Vectors::BTangent), (Vectors::BTangent, Vectors::B)],
];

/// What a sweep computes of the pairs of one source.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Elements of logsumexp stages.
    pub(super) columns: Vec<(u8, Expr)>,
    /// The stage of `columns` whose exponentials other expressions are functions of, as [`Var::X`], and by which sums
    /// are rescaled.
    pub(super) exponential: Option<u8>,
    pub(super) reduced: Vec<(Expr, Reduction)>,
    /// Sums of streamed vectors, with these factors.
    pub(super) products: Vec<(Expr, Vectors, Sums)>,
    /// What goes to the gradient of the bias.
    pub(super) bias: Option<Expr>,
    pub(super) scatters: Vec<Scatter>,
}

/// A reduction over the pairs of a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reduction {
    /// Not [`Reduce::Lse`].
    pub(super) reduce: Reduce,
    pub(super) slot: usize,
    /// Whether it is rescaled with the sums.
    pub(super) is_scaled: bool,
}

/// A contribution to the gradient of a captured tensor.
#[derive(Clone, Debug)]
pub(super) struct Scatter {
    pub(super) capture: u8,
    /// The gradient table.
    pub(super) table: usize,
    pub(super) index: Vec<Expr>,
    pub(super) gradient: Expr,
}

/// What codes are compiled for.
#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) direction: Direction,
    pub(super) heads: usize,
    pub(super) captures: &'a [Capture],
    /// Which stationary and which streamed vectors there are, by [`Vectors`].
    pub(super) stationary: [bool; 4],
    pub(super) streamed: [bool; 4],
}

impl Context<'_> {
    pub(super) fn code(
        &self,
        graph: &Graph,
        outputs: &[Output],
        sources: &dyn Fn(Var) -> Option<Source>,
    ) -> Result<TileCode> {
        TileCode::new(graph, outputs, self.direction, self.heads, sources, self.captures)
    }
}

/// A product of streamed and stationary vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dot {
    pub(super) tile: usize,
    pub(super) streamed: Vectors,
    pub(super) stationary: Vectors,
    /// To what the tile holds.
    pub(super) adds: bool,
}

/// Code, and the tiles that its results go to.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) code: TileCode,
    pub(super) outputs: Vec<usize>,
}

/// A logsumexp stage of a sweep.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) tile: usize,
    /// Where its exponentials go, if anywhere.
    pub(super) exponentials: Option<usize>,
    pub(super) peak: usize,
    pub(super) total: usize,
}

/// A sum of streamed vectors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Product {
    pub(super) tile: usize,
    pub(super) streamed: Vectors,
    pub(super) sums: Sums,
}

/// A sweep over the pairs of one source, compiled.
#[derive(Debug)]
pub(super) struct SweepCode {
    /// Tiles that begin with zeros: tangents of products none of whose vectors has one.
    pub(super) zeros: Vec<usize>,
    pub(super) dots: Vec<Dot>,
    /// The tiles that the bias and its tangent are added to.
    pub(super) biased: [Option<usize>; 2],
    pub(super) first: Option<Stage>,
    pub(super) columns: Vec<Column>,
    pub(super) second: Option<Stage>,
    pub(super) reduced: Vec<(usize, Reduction)>,
    /// Numbers and sums that are rescaled though these pairs add nothing to them.
    pub(super) rescaled: Vec<usize>,
    pub(super) rescaled_sums: Vec<Sums>,
    /// Tiles whose pairs that do not count have to be set to zero.
    pub(super) masked: Vec<usize>,
    pub(super) products: Vec<Product>,
    pub(super) bias_gradient: Option<usize>,
    pub(super) scatters: bool,
    /// The number of tiles.
    pub(super) tiles: usize,
    /// Which streamed and which stationary vectors are read, by [`Vectors`].
    pub(super) streamed: [bool; 4],
    pub(super) stationary: [bool; 4],
    /// Whether the streamed tokens' indices are read.
    pub(super) reads_index: bool,
}

impl SweepCode {
    pub(super) fn new(
        context: &Context<'_>,
        graph: &Graph,
        wanted: &Wanted,
        source: &dyn Fn(Var) -> Option<Source>,
        numbers: &Numbers,
    ) -> Result<Self> {
        let results = Results::of(graph, wanted);
        let mut room = Room::default();
        let mut inputs = [None; 4];
        for (input, var) in inputs.iter_mut().zip(INPUTS) {
            *input = results.every(wanted).any(|expr| depends_on(graph, expr, var)).then(|| room.tile());
        }
        let is_exponential = |expr: Expr| depends_on(graph, expr, Var::X);
        let (second, first): (Vec<Expr>, Vec<Expr>) =
            results.computed(graph).into_iter().partition(|&expr| is_exponential(expr));
        let input_of = |expr: Expr| match graph.node(expr) {
            Node::Var(var) => INPUTS.iter().position(|input| input == var).and_then(|at| inputs[at]),
            _ => None,
        };

        // What holds the results of the first code: inputs that nobody reads afterwards, then other tiles.
        let mut places: Vec<(Expr, usize)> = Vec::new();
        for &expr in &results.all {
            places.extend(input_of(expr).map(|tile| (expr, tile)));
        }
        let of_second: Vec<Option<usize>> = INPUTS
            .iter()
            .zip(inputs)
            .map(|(&var, tile)| tile.filter(|_| second.iter().any(|&expr| depends_on(graph, expr, var))))
            .collect();
        let is_held = |tile: usize, places: &[(Expr, usize)]| places.iter().any(|&(_, held)| held == tile);
        let mut free: Vec<usize> = inputs
            .into_iter()
            .flatten()
            .filter(|&tile| !is_held(tile, &places) && !of_second.contains(&Some(tile)))
            .collect();
        for &expr in &first {
            places.push((expr, free.pop().unwrap_or_else(|| room.tile())));
        }

        // The exponentials take the place of their elements where nobody else reads these.
        let at = |expr: Expr, places: &[(Expr, usize)]| {
            places.iter().find(|&&(held, _)| held == expr).map(|&(_, tile)| tile)
        };
        let mut columns = Vec::new();
        for &(stage, element) in &wanted.columns {
            let Some(tile) = at(element, &places) else { continue };
            let is_read = results.after_columns(wanted).any(|expr| expr == element)
                || wanted.columns.iter().any(|&(other, expr)| other != stage && expr == element)
                || of_second.contains(&Some(tile));
            let exponentials = (wanted.exponential == Some(stage)).then(|| match is_read {
                true => free.pop().unwrap_or_else(|| room.tile()),
                false => tile,
            });
            if let Some(tile) = exponentials {
                let x = graph.iter().find(|(_, node)| **node == Node::Var(Var::X)).map(|(expr, _)| expr);
                places.extend(x.map(|x| (x, tile)));
            }
            let slot = |number| numbers.find(number).unwrap_or_default();
            columns.push(Column {
                tile,
                exponentials,
                peak: slot(Number::Peak(stage)),
                total: slot(Number::Total(stage)),
            });
        }
        let exponentials = columns.iter().find_map(|column| column.exponentials);

        // The results of the second code may take the place of what it alone reads.
        let x_is_result = results.all.iter().any(|&expr| *graph.node(expr) == Node::Var(Var::X));
        free.extend(of_second.iter().flatten().copied().filter(|&tile| {
            !results.after_columns(wanted).any(|expr| input_of(expr) == Some(tile))
                && exponentials != Some(tile)
        }));
        free.extend(exponentials.filter(|_| !x_is_result));
        for &expr in &second {
            places.push((expr, free.pop().unwrap_or_else(|| room.tile())));
        }

        let sources = |var: Var| match INPUTS.iter().position(|&input| input == var) {
            Some(input) => inputs[input].map(Source::Tile),
            None if var == Var::X => exponentials.map(Source::Tile),
            None => source(var),
        };
        let tile = |expr: Expr| at(expr, &places);
        let stage = |exprs: &[Expr], scatters: &[Scatter]| -> Result<Option<Stage>> {
            if exprs.is_empty() && scatters.is_empty() {
                return Ok(None);
            }
            let outputs: Vec<Output> = exprs
                .iter()
                .map(|&expr| Output::Tile(expr))
                .chain(scatters.iter().map(|scatter| Output::Scatter {
                    capture: scatter.capture,
                    table: scatter.table,
                    index: scatter.index.clone(),
                    gradient: scatter.gradient,
                }))
                .collect();
            let code = context.code(graph, &outputs, &sources)?;
            Ok(Some(Stage { code, outputs: exprs.iter().filter_map(|&expr| tile(expr)).collect() }))
        };
        let dots: Vec<Dot> = inputs
            .iter()
            .zip(DOTS)
            .filter_map(|(tile, dots)| tile.map(|tile| (tile, dots)))
            .flat_map(|(tile, dots)| {
                let there = dots
                    .iter()
                    .filter(|dot| context.streamed[dot.0 as usize] && context.stationary[dot.1 as usize]);
                there.enumerate().map(move |(n, &(streamed, stationary))| Dot {
                    tile,
                    streamed,
                    stationary,
                    adds: n > 0,
                })
            })
            .collect();
        let products: Vec<Product> = wanted
            .products
            .iter()
            .filter(|(_, streamed, _)| context.streamed[*streamed as usize])
            .filter_map(|&(expr, streamed, sums)| tile(expr).map(|tile| Product { tile, streamed, sums }))
            .collect();
        let bias_gradient = wanted.bias.and_then(tile);
        let mut masked: Vec<usize> =
            products.iter().map(|product| product.tile).chain(bias_gradient).collect();
        masked.sort_unstable();
        masked.dedup();
        // A column leaves nothing at pairs that do not count.
        masked.retain(|&tile| exponentials != Some(tile) || is_held_by_second(&second, &places, tile));
        let reads_index = results.every(wanted).any(|expr| {
            graph.depends(expr, |node| match (context.direction, node) {
                (_, Node::Random(..)) => true,
                (Direction::Keys, Node::Index(index)) => matches!(index, Index::Key | Index::KeyAxis(_)),
                (Direction::Queries, Node::Index(index)) => {
                    matches!(index, Index::Query | Index::QueryAxis(_))
                }
                _ => false,
            })
        });
        let streamed = Vectors::ALL.map(|vectors| {
            dots.iter().any(|dot| dot.streamed == vectors)
                || products.iter().any(|product| product.streamed == vectors)
        });
        let stationary = Vectors::ALL.map(|vectors| dots.iter().any(|dot| dot.stationary == vectors));
        Ok(Self {
            zeros: inputs
                .into_iter()
                .flatten()
                .filter(|tile| dots.iter().all(|dot| dot.tile != *tile))
                .collect(),
            dots,
            biased: [inputs[0], inputs[1]],
            first: stage(&first, &wanted.scatters)?,
            second: stage(&second, &[])?,
            reduced: wanted
                .reduced
                .iter()
                .filter_map(|&(expr, reduction)| tile(expr).map(|tile| (tile, reduction)))
                .collect(),
            rescaled: wanted
                .reduced
                .iter()
                .filter(|(expr, reduction)| reduction.is_scaled && tile(*expr).is_none())
                .map(|(_, reduction)| reduction.slot)
                .collect(),
            rescaled_sums: match exponentials {
                Some(_) => {
                    let is_summed = |sums: &Sums| wanted.products.iter().any(|(.., to)| to == sums);
                    Sums::ALL.into_iter().filter(is_summed).collect()
                }
                None => Vec::new(),
            },
            masked,
            products,
            bias_gradient,
            scatters: !wanted.scatters.is_empty(),
            tiles: room.tiles,
            streamed,
            stationary,
            reads_index,
            columns,
        })
    }

    /// Whether there is anything to do.
    pub(super) fn is_empty(&self) -> bool {
        self.columns.is_empty()
            && self.reduced.is_empty()
            && self.products.is_empty()
            && self.bias_gradient.is_none()
            && !self.scatters
    }

    /// Elements of scratch that the codes need.
    pub(super) fn scratch(&self, width: usize) -> usize {
        [&self.first, &self.second]
            .into_iter()
            .flatten()
            .map(|stage| stage.code.scratch(width))
            .max()
            .unwrap_or(0)
    }
}

fn is_held_by_second(second: &[Expr], places: &[(Expr, usize)], tile: usize) -> bool {
    places.iter().any(|(expr, held)| *held == tile && second.contains(expr))
}

fn depends_on(graph: &Graph, expr: Expr, var: Var) -> bool {
    graph.depends(expr, |node| *node == Node::Var(var))
}

/// Tiles, handed out.
#[derive(Debug, Default)]
struct Room {
    tiles: usize,
}

impl Room {
    fn tile(&mut self) -> usize {
        self.tiles += 1;
        self.tiles - 1
    }
}

/// The expressions whose values have to lie in tiles, each once.
#[derive(Debug)]
struct Results {
    all: Vec<Expr>,
}

impl Results {
    fn of(graph: &Graph, wanted: &Wanted) -> Self {
        let mut all: Vec<Expr> = wanted.columns.iter().map(|&(_, element)| element).collect();
        // Zeros change no sum.
        let reduced =
            wanted.reduced.iter().filter(|(expr, to)| to.reduce != Reduce::Sum || !graph.is_zero(*expr));
        all.extend(reduced.map(|(expr, _)| *expr));
        let summed = wanted.products.iter().map(|&(expr, ..)| expr).chain(wanted.bias);
        all.extend(summed.filter(|&expr| !graph.is_zero(expr)));
        let mut seen = Vec::new();
        all.retain(|expr| {
            let is_new = !seen.contains(expr);
            seen.push(*expr);
            is_new
        });
        Self { all }
    }

    /// Those that code has to compute.
    fn computed(&self, graph: &Graph) -> Vec<Expr> {
        let is_there =
            |expr: Expr| matches!(graph.node(expr), Node::Var(var) if INPUTS.contains(var) || *var == Var::X);
        self.all.iter().copied().filter(|&expr| !is_there(expr)).collect()
    }

    /// All expressions that anything is computed of.
    fn every(&self, wanted: &Wanted) -> impl Iterator<Item = Expr> {
        let scattered = wanted
            .scatters
            .iter()
            .flat_map(|scatter| scatter.index.iter().copied().chain([scatter.gradient]));
        self.all.iter().copied().chain(scattered).collect::<Vec<_>>().into_iter()
    }

    /// Those that are read after the columns.
    fn after_columns(&self, wanted: &Wanted) -> impl Iterator<Item = Expr> {
        let reduced = wanted.reduced.iter().map(|&(expr, _)| expr);
        let products = wanted.products.iter().map(|&(expr, ..)| expr);
        reduced.chain(products).chain(wanted.bias)
    }
}
