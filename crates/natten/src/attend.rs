//! The calls: [`na1d`], [`na2d`], [`na3d`] and [`attention`], on ndarrays or slices. Each returns an [`Attention`] to
//! set options on; [`forward`](Attention::forward) and [`backward`](Attention::backward) run it.
//!
//! On the CPU arrays are read where they lie, whatever their strides; other backends get copies.

use std::collections::BTreeMap;

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::{Error, HostElement, HostTensor, OpRequest, Problem, Result, Role};
use ndarray::ArrayD;

use crate::array::{Array, PerAxis};
use crate::device::Device;
use crate::execute::{Operand, execute};
use crate::registry::Registry;

#[derive(Clone, Debug)]
enum Pattern {
    Window {
        kernel_size: PerAxis<usize>,
        stride: PerAxis<usize>,
        dilation: PerAxis<usize>,
        causal: PerAxis<bool>,
        fit: bool,
    },
    Full(Option<Alignment>),
}

/// An attention call: inputs and options. Made by [`na1d`], [`na2d`], [`na3d`] and [`attention`].
#[derive(Clone, Debug)]
#[must_use = "call forward() or backward()"]
pub struct Attention<'a, T> {
    rank: usize,
    pattern: Pattern,
    inputs: BTreeMap<Role, Array<'a, T>>,
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
/// assert_eq!(result.logsumexp.len(), 20);
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
/// let first = result.logsumexp.to_f64()[0];
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

/// What forward gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Forward<T> {
    /// `[B, *X, Hq, Dv]`.
    pub output: ArrayD<T>,
    /// `[B, *X, Hq]`: the natural logarithm of the sum of the exponentials of each row's scores; f64 where the inputs
    /// are, otherwise f32.
    pub logsumexp: HostTensor,
}

/// What backward gives: the gradient of every input that the call has.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Gradients<T> {
    /// The gradient of the queries.
    pub query: ArrayD<T>,
    /// The gradient of the keys.
    pub key: ArrayD<T>,
    /// The gradient of the values.
    pub value: ArrayD<T>,
    /// The gradient of the relative positional bias.
    pub rpb: Option<ArrayD<T>>,
    /// The gradient of the additional keys.
    pub additional_key: Option<ArrayD<T>>,
    /// The gradient of the additional values.
    pub additional_value: Option<ArrayD<T>>,
}

impl<'a, T: HostElement> Attention<'a, T> {
    fn new(rank: usize, pattern: Pattern, [query, key, value]: [Array<'a, T>; 3]) -> Self {
        let inputs = [(Role::Query, query), (Role::Key, key), (Role::Value, value)].into();
        Self { rank, pattern, inputs, scale: None, device: None }
    }

    fn windowed(rank: usize, inputs: [Array<'a, T>; 3], kernel_size: PerAxis<usize>) -> Self {
        let pattern = Pattern::Window {
            kernel_size,
            stride: 1.into(),
            dilation: 1.into(),
            causal: false.into(),
            fit: false,
        };
        Self::new(rank, pattern, inputs)
    }

    /// Neighbouring queries that share one window. Default 1. Ordinary attention has none to set.
    pub fn stride(mut self, value: impl Into<PerAxis<usize>>) -> Self {
        if let Pattern::Window { stride, .. } = &mut self.pattern {
            *stride = value.into();
        }
        self
    }

    /// The distance of the keys of a window. Default 1. Ordinary attention has none to set.
    pub fn dilation(mut self, value: impl Into<PerAxis<usize>>) -> Self {
        if let Pattern::Window { dilation, .. } = &mut self.pattern {
            *dilation = value.into();
        }
        self
    }

    /// Whether a query sees nothing behind itself, on all axes or axis by axis. Default no. For ordinary attention `true`
    /// is [`Alignment::TopLeft`]; see [`align`](Self::align).
    pub fn causal(mut self, value: impl Into<PerAxis<bool>>) -> Self {
        let value = value.into();
        match &mut self.pattern {
            Pattern::Window { causal, .. } => *causal = value,
            Pattern::Full(alignment) => {
                *alignment = value.contains(true).then_some(alignment.unwrap_or_default());
            }
        }
        self
    }

    /// Makes ordinary attention causal, with the diagonal where `alignment` says. A window's causality has no alignment.
    pub fn align(mut self, value: Alignment) -> Self {
        if let Pattern::Full(alignment) = &mut self.pattern {
            *alignment = Some(value);
        }
        self
    }

    /// Clamps a window that is too large for the tokens, instead of an error: see [`AxisParams::fit`].
    pub fn fit(mut self) -> Self {
        if let Pattern::Window { fit, .. } = &mut self.pattern {
            *fit = true;
        }
        self
    }

    /// What scores are multiplied with. Default `D^-1/2`.
    pub fn scale(self, scale: f64) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// Adds a relative positional bias `[Hq, 2*k-1, …]` to the scaled scores.
    pub fn rpb(mut self, table: impl Into<Array<'a, T>>) -> Self {
        self.inputs.insert(Role::Rpb, table.into());
        self
    }

    /// Keys `[B, N, Hkv, D]` and values `[B, N, Hkv, Dv]` that every query sees beside its window.
    pub fn additional(mut self, key: impl Into<Array<'a, T>>, value: impl Into<Array<'a, T>>) -> Self {
        self.inputs.insert(Role::AdditionalKey, key.into());
        self.inputs.insert(Role::AdditionalValue, value.into());
        self
    }

    /// Where to compute. Default: what [`Registry::auto`] picks.
    pub fn device(self, device: &Device) -> Self {
        Self { device: Some(device.clone()), ..self }
    }

    /// The problem that this call describes, checked.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the array or the option, where shapes or options break a rule.
    pub fn problem(&self) -> Result<Problem> {
        let rank = self.rank;
        let query = self.shape_of(Role::Query, rank + 3)?;
        let key = self.shape_of(Role::Key, rank + 3)?;
        let value = self.shape_of(Role::Value, rank + 3)?;
        let neighborhood = match &self.pattern {
            Pattern::Full(causal) => Neighborhood::full(query[1], key[1], *causal)?,
            Pattern::Window { kernel_size, stride, dilation, causal, fit } => {
                let kernel_size = kernel_size.spread("kernel_size", rank)?;
                let stride = stride.spread("stride", rank)?;
                let dilation = dilation.spread("dilation", rank)?;
                let causal = causal.spread("causal", rank)?;
                let params: Vec<AxisParams> = (0..rank)
                    .map(|a| {
                        AxisParams::new(query[1 + a], kernel_size[a])
                            .stride(stride[a])
                            .dilation(dilation[a])
                            .causal(causal[a])
                    })
                    .collect();
                if *fit {
                    Neighborhood::fit(&params, self.inputs.contains_key(&Role::Rpb))?
                } else {
                    Neighborhood::new(&params)?
                }
            }
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
            .relative_positional_bias(self.inputs.contains_key(&Role::Rpb))
            .scale(self.scale)
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

    /// Runs the forward pass.
    ///
    /// # Errors
    /// As [`problem`](Self::problem), and whatever the device says.
    pub fn forward(&self) -> Result<Forward<T>> {
        let problem = self.problem()?;
        let mut results = self.run(&problem, &OpRequest::forward(&problem), BTreeMap::new())?;
        Ok(Forward {
            output: numbers(&mut results, Role::Output)?,
            logsumexp: take(&mut results, Role::Logsumexp)?,
        })
    }

    /// Runs the backward pass: the gradient of every input, from the cotangent of the output.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] where the results of forward or the cotangent do not fit.
    pub fn backward<'g>(
        &self,
        forward: &Forward<T>,
        grad_output: impl Into<Array<'g, T>>,
    ) -> Result<Gradients<T>>
    where
        T: 'g,
    {
        self.gradients(forward, &grad_output.into(), None)
    }

    /// Runs the backward pass with a cotangent of the logsumexp too, of its shape and dtype.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_with_logsumexp<'g>(
        &self,
        forward: &Forward<T>,
        grad_output: impl Into<Array<'g, T>>,
        grad_logsumexp: &HostTensor,
    ) -> Result<Gradients<T>>
    where
        T: 'g,
    {
        self.gradients(forward, &grad_output.into(), Some(grad_logsumexp))
    }

    fn gradients(
        &self,
        forward: &Forward<T>,
        grad_output: &Array<'_, T>,
        grad_logsumexp: Option<&HostTensor>,
    ) -> Result<Gradients<T>> {
        let problem = self.problem()?;
        let request = OpRequest::backward(&problem).with_grad_logsumexp(grad_logsumexp.is_some());
        let mut operands: BTreeMap<Role, Operand<'_, T>> = [
            (Role::Output, Operand::Numbers(forward.output.view())),
            (Role::Logsumexp, Operand::Rows(&forward.logsumexp)),
            (Role::GradOutput, Operand::Numbers(grad_output.view())),
        ]
        .into();
        if let Some(rows) = grad_logsumexp {
            operands.insert(Role::GradLogsumexp, Operand::Rows(rows));
        }
        let mut results = self.run(&problem, &request, operands)?;
        let mut optional =
            |input, gradient| problem.has_input(input).then(|| numbers(&mut results, gradient)).transpose();
        let rpb = optional(Role::Rpb, Role::GradRpb)?;
        let additional_key = optional(Role::AdditionalKey, Role::GradAdditionalKey)?;
        let additional_value = optional(Role::AdditionalValue, Role::GradAdditionalValue)?;
        Ok(Gradients {
            query: numbers(&mut results, Role::GradQuery)?,
            key: numbers(&mut results, Role::GradKey)?,
            value: numbers(&mut results, Role::GradValue)?,
            rpb,
            additional_key,
            additional_value,
        })
    }

    fn run<'r>(
        &'r self,
        problem: &Problem,
        request: &OpRequest,
        mut operands: BTreeMap<Role, Operand<'r, T>>,
    ) -> Result<BTreeMap<Role, HostTensor>> {
        for (&role, array) in &self.inputs {
            operands.insert(role, Operand::Numbers(array.view()));
        }
        match &self.device {
            Some(device) => execute(device, problem, request, &operands),
            None => execute(&Registry::probe().auto()?, problem, request, &operands),
        }
    }
}

fn take(results: &mut BTreeMap<Role, HostTensor>, role: Role) -> Result<HostTensor> {
    results.remove(&role).ok_or_else(|| missing(role))
}

fn numbers<T: HostElement>(results: &mut BTreeMap<Role, HostTensor>, role: Role) -> Result<ArrayD<T>> {
    take(results, role)?.into_ndarray().ok_or_else(|| missing(role))
}

/// A backend that breaks its contract, which is no reason to panic.
fn missing(role: Role) -> Error {
    Error::Device {
        backend: "the backend".into(),
        message: format!("it gave no {role} of the dtype asked for"),
    }
}
