//! The fused calls: [`na1d`], [`na2d`], [`na3d`] and [`attention`], on ndarrays or slices. Each returns an
//! [`Attention`] to set options on; [`forward`](Attention::forward), [`backward`](Attention::backward),
//! [`jvp`](Attention::jvp) and [`double_backward`](Attention::double_backward) run it.
//!
//! On the CPU arrays are read where they lie, whatever their strides; other backends get copies.

mod options;
mod results;
mod run;

use std::collections::BTreeMap;

use natten_core::geometry::{Alignment, Neighborhood};
use natten_core::{Error, HostElement, Problem, Result, Role};

pub use self::results::{Forward, Gradients, Jvp, SecondGradients};
use crate::array::{Array, PerAxis};
use crate::device::Device;
use crate::script::Script;
use crate::window::Window;

#[derive(Clone, Debug)]
enum Pattern {
    Window(Window),
    Full(Option<Alignment>),
}

/// An attention call: inputs and options. Made by [`na1d`], [`na2d`], [`na3d`] and [`attention`].
///
/// What happens to scores, weights, queries, keys and values is a program, set as texts: see
/// [`program`](natten_core::program) for the language.
///
/// ```
/// use ndarray::{Array1, Array4};
/// # fn main() -> natten::Result<()> {
/// let x = Array4::<f64>::from_shape_fn((1, 9, 2, 4), |(_, i, h, d)| ((i * 5 + h * 3 + d) % 7) as f64 / 7.0);
/// let slope = Array1::from(vec![0.5, 0.25]);
/// let alibi = natten::attention(&x, &x, &x)
///     .score("score - slope[h] * abs(q - k)")
///     .mask("k <= q")
///     .capture("slope", &slope)
///     .device(&natten::Registry::probe().device("reference")?);
/// let result = alibi.forward()?;
/// let gradients = alibi.backward(&result, &x)?;
/// assert_eq!(gradients.captures["slope"].shape(), [2]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "call forward(), backward(), jvp() or double_backward()"]
pub struct Attention<'a, T> {
    rank: usize,
    pattern: Pattern,
    inputs: BTreeMap<Role, Array<'a, T>>,
    script: Script<'a, T>,
    scale: Option<f64>,
    device: Option<Device>,
}

/// 1-D neighborhood attention of `[B, L, H, D]` arrays. `kernel_size` keys a query.
///
/// ```
/// use ndarray::Array4;
/// # fn main() -> natten::Result<()> {
/// let x = Array4::<f32>::from_shape_fn((1, 10, 2, 4), |(_, i, h, d)| (i + h + d) as f32 / 10.0);
/// let result = natten::na1d(&x, &x, &x, 3).dilation(2).causal(true).forward()?;
/// assert_eq!(result.output.shape(), [1, 10, 2, 4]);
/// assert_eq!(result.logsumexp()?.len(), 20);
/// # Ok(())
/// # }
/// ```
pub fn na1d<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    value: impl Into<Array<'a, T>>,
    kernel_size: impl Into<PerAxis<usize>>,
) -> Attention<'a, T> {
    Attention::windowed(1, [query.into(), key.into(), value.into()], kernel_size.into())
}

/// 2-D neighborhood attention of `[B, X, Y, H, D]` arrays.
///
/// ```
/// use ndarray::Array5;
/// # fn main() -> natten::Result<()> {
/// let x = Array5::<f64>::from_elem((1, 6, 8, 1, 4), 0.5);
/// let call = natten::na2d(&x, &x, &x, [3, 5]).stride([1, 2]).scale(0.7);
/// let result = call.forward()?;
/// let gradients = call.backward(&result, &x)?;
/// assert_eq!(gradients.query.shape(), [1, 6, 8, 1, 4]);
/// # Ok(())
/// # }
/// ```
pub fn na2d<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    value: impl Into<Array<'a, T>>,
    kernel_size: impl Into<PerAxis<usize>>,
) -> Attention<'a, T> {
    Attention::windowed(2, [query.into(), key.into(), value.into()], kernel_size.into())
}

/// 3-D neighborhood attention of `[B, X, Y, Z, H, D]` arrays.
///
/// ```
/// use ndarray::Array6;
/// # fn main() -> natten::Result<()> {
/// let x = Array6::<f32>::from_elem((1, 3, 4, 5, 1, 2), 0.5);
/// assert_eq!(natten::na3d(&x, &x, &x, 3).forward()?.output.shape(), x.shape());
/// # Ok(())
/// # }
/// ```
pub fn na3d<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    value: impl Into<Array<'a, T>>,
    kernel_size: impl Into<PerAxis<usize>>,
) -> Attention<'a, T> {
    Attention::windowed(3, [query.into(), key.into(), value.into()], kernel_size.into())
}

/// Ordinary attention of `[B, S, H, D]` arrays; queries and keys may differ in length.
///
/// ```
/// use natten::geometry::Alignment;
/// use ndarray::Array4;
/// # fn main() -> natten::Result<()> {
/// let (query, key) = (Array4::<f32>::zeros((1, 3, 2, 4)), Array4::<f32>::zeros((1, 7, 1, 4)));
/// let result = natten::attention(&query, &key, &key).align(Alignment::BottomRight).forward()?;
/// let first = result.logsumexp()?.to_f64()[0];
/// assert!((first - 5f64.ln()).abs() < 1e-6, "the first of three queries sees five keys");
/// # Ok(())
/// # }
/// ```
pub fn attention<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    value: impl Into<Array<'a, T>>,
) -> Attention<'a, T> {
    Attention::new(1, Pattern::Full(None), [query.into(), key.into(), value.into()])
}

/// The parallel form of retention (RetNet): ordinary attention whose scores are multiplied with the decay matrix
/// `gamma[h]^(q - k)`, `gamma = 1 - 2^(-5-h)`, over the keys up to the query, and divided by the sum of their
/// magnitudes where that is above 1. The decay does not depend on the data, and has no gradient;
/// [`score`](Attention::score) replaces it.
///
/// ```
/// use ndarray::Array4;
/// # fn main() -> natten::Result<()> {
/// let x = Array4::<f64>::from_elem((1, 4, 1, 2), 1.0);
/// let call = natten::retention_parallel(&x, &x, &x).device(&natten::Registry::probe().device("reference")?);
/// // The weights of a row sum to 1 here: the magnitudes' sum is above 1, and all scores are positive.
/// assert!(call.forward()?.output.iter().all(|o| (o - 1.0).abs() < 1e-12));
/// # Ok(())
/// # }
/// ```
pub fn retention_parallel<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    value: impl Into<Array<'a, T>>,
) -> Attention<'a, T> {
    attention(query, key, value)
        .align(Alignment::TopLeft)
        .score(format!("score * exp((q - k) * {})", crate::linear::RETENTION_DECAY))
        .row("retention")
}

impl<'a, T: HostElement> Attention<'a, T> {
    fn new(rank: usize, pattern: Pattern, [query, key, value]: [Array<'a, T>; 3]) -> Self {
        let inputs = [(Role::Query, query), (Role::Key, key), (Role::Value, value)].into();
        Self { rank, pattern, inputs, script: Script::default(), scale: None, device: None }
    }

    fn windowed(rank: usize, inputs: [Array<'a, T>; 3], kernel_size: PerAxis<usize>) -> Self {
        Self::new(rank, Pattern::Window(Window::new(kernel_size)), inputs)
    }

    /// The problem that this call describes, checked.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the array or the option, where shapes or options break a rule; [`Error::Program`] where
    /// a text does.
    pub fn problem(&self) -> Result<Problem> {
        let rank = self.rank;
        let query = self.shape_of(Role::Query, rank + 3)?;
        let key = self.shape_of(Role::Key, rank + 3)?;
        let value = self.shape_of(Role::Value, rank + 3)?;
        let has_rpb = self.inputs.contains_key(&Role::Rpb);
        let neighborhood = match &self.pattern {
            Pattern::Full(causal) => Neighborhood::full(query[1], key[1], *causal)?,
            Pattern::Window(window) => window.neighborhood(&query[1..=rank], has_rpb)?,
        };
        let additional = match self.inputs.contains_key(&Role::AdditionalKey) {
            true => self.shape_of(Role::AdditionalKey, 4)?[1],
            false => 0,
        };
        let problem = Problem::builder(neighborhood, T::DTYPE)
            .batch(query[0])
            .heads(query[rank + 1])
            .heads_kv(key[rank + 1])
            .head_dim(query[rank + 2])
            .head_dim_v(value[rank + 2])
            .additional_tokens(additional)
            .relative_positional_bias(has_rpb)
            .scale(self.scale)
            .program(self.script.build(rank)?)
            .build()?;
        for (&role, array) in &self.inputs {
            let expected = problem.shape(role);
            if array.shape() != expected {
                return Err(Error::invalid(
                    role.name(),
                    format!("{:?}", array.shape()),
                    format!("beside query {query:?} its shape must be {expected:?}"),
                    "layouts are heads-last; query, key and value share batch and tokens",
                ));
            }
        }
        Ok(problem)
    }

    /// The shape of an input, which must have `axes` axes.
    fn shape_of(&self, role: Role, axes: usize) -> Result<&[usize]> {
        let shape = self.inputs[&role].shape();
        if shape.len() == axes {
            return Ok(shape);
        }
        let layout = match self.rank {
            _ if axes == 4 => "[batch, tokens, heads, dim]",
            2 => "[batch, x, y, heads, dim]",
            _ => "[batch, x, y, z, heads, dim]",
        };
        Err(Error::invalid(
            role.name(),
            format!("{shape:?}"),
            format!("it must have {axes} axes, {layout}"),
            "layouts are heads-last; add or permute axes",
        ))
    }
}
