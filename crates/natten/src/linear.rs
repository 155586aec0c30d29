//! Linear attention: a recurrence over the tokens of a sequence, with a decay. In its usual forms: [`retention`], simple
//! GLA ([`log_decay`]) and Mamba-2 ([`mamba2`]). Each is a program of a `decay`, and for Mamba-2 a `value_mod`.
//!
//! With `S` a state of `[D, Dv]` a head, `l_t` the logarithm of the decay:
//!
//! ```text
//! S_t = exp(l_t) S_{t-1} + k_t v_t^T        o_t = scale q_t S_t
//! ```
//!
//! [`retention`]: LinearAttention::retention
//! [`log_decay`]: LinearAttention::log_decay
//! [`mamba2`]: LinearAttention::mamba2

use natten_core::geometry::{Alignment, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::{Error, HostElement, HostTensor, OpRequest, Problem, Result, Role};
use ndarray::{ArrayD, CowArray, IxDyn};

use crate::array::Array;
use crate::device::Device;
use crate::execute::{Operand, Operands, Results, execute};
use crate::tangents::Tangents;

/// The logarithm of RetNet's decay of head `h`.
pub(crate) const RETENTION_DECAY: &str = "log1p(-exp2(-5.0 - h))";

const LOG_DECAY: &str = "log_decay";
const DT: &str = "dt";
const A: &str = "a";

/// A linear attention call. Made by [`linear_attention`].
#[derive(Clone, Debug)]
#[must_use = "call forward(), backward() or jvp()"]
pub struct LinearAttention<'a, T> {
    query: Array<'a, T>,
    key: Array<'a, T>,
    value: Array<'a, T>,
    decay: Decay<'a, T>,
    initial_state: Option<&'a HostTensor>,
    scale: Option<f64>,
    device: Option<Device>,
}

#[derive(Clone, Debug)]
enum Decay<'a, T> {
    None,
    Retention,
    Given(Array<'a, T>),
    Mamba2 { dt: Array<'a, T>, a: Array<'a, T> },
}

/// Linear attention of `[B, T, H, D]` queries and keys and `[B, T, H, Dv]` values, without a decay until one is set.
/// Queries and keys may have fewer heads than values, a divisor of theirs: value head `h` of `H` uses head `h / (H / G)`
/// of `G`, and the gradients are summed over the heads that share one.
///
/// ```
/// use ndarray::Array4;
/// # fn main() -> natten::Result<()> {
/// let x = Array4::<f64>::from_elem((1, 3, 1, 1), 1.0);
/// let call = natten::linear_attention(&x, &x, &x).scale(1.0).device(&natten::Registry::probe().device("reference")?);
/// // Without a decay the state counts the tokens.
/// let result = call.forward()?;
/// assert_eq!(result.output.iter().copied().collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
/// assert_eq!(result.final_state.to_f64(), [3.0]);
/// // Retention: the first head keeps 31/32 of the state a token.
/// let kept = call.retention().forward()?.output;
/// assert!((kept[[0, 1, 0, 0]] - (1.0 + 31.0 / 32.0)).abs() < 1e-12);
/// # Ok(())
/// # }
/// ```
pub fn linear_attention<'a, T: HostElement>(
    query: impl Into<Array<'a, T>>,
    key: impl Into<Array<'a, T>>,
    value: impl Into<Array<'a, T>>,
) -> LinearAttention<'a, T> {
    LinearAttention {
        query: query.into(),
        key: key.into(),
        value: value.into(),
        decay: Decay::None,
        initial_state: None,
        scale: None,
        device: None,
    }
}

/// What forward gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinearForward<T> {
    /// `[B, T, H, Dv]`.
    pub output: ArrayD<T>,
    /// The state after the last token, `[B, H, D, Dv]`; f64 where the inputs are, otherwise f32.
    pub final_state: HostTensor,
}

/// What backward gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinearGradients<T> {
    /// The gradient of the queries.
    pub query: ArrayD<T>,
    /// The gradient of the keys.
    pub key: ArrayD<T>,
    /// The gradient of the values.
    pub value: ArrayD<T>,
    /// The gradient of the log decay, of simple GLA.
    pub log_decay: Option<ArrayD<T>>,
    /// The gradient of the time steps, of Mamba-2.
    pub dt: Option<ArrayD<T>>,
    /// The gradient of the heads' rates, of Mamba-2.
    pub a: Option<ArrayD<T>>,
    /// The gradient of the initial state.
    pub initial_state: Option<HostTensor>,
}

/// What forward mode gives: the results, and their tangents.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LinearJvp<T> {
    /// `[B, T, H, Dv]`.
    pub output: ArrayD<T>,
    /// As [`LinearForward::final_state`].
    pub final_state: HostTensor,
    /// The tangent of the output.
    pub tangent_output: ArrayD<T>,
    /// The tangent of the final state.
    pub tangent_final_state: HostTensor,
}

impl<'a, T: HostElement> LinearAttention<'a, T> {
    /// The logarithm of the decay at every token and head, `[B, T, H]`, at most 0: simple GLA. For tangents it is the
    /// captured tensor `log_decay`.
    pub fn log_decay(self, log_decay: impl Into<Array<'a, T>>) -> Self {
        Self { decay: Decay::Given(log_decay.into()), ..self }
    }

    /// The decay of RetNet: `1 - 2^(-5-h)` of head `h`.
    pub fn retention(self) -> Self {
        Self { decay: Decay::Retention, ..self }
    }

    /// The decay of Mamba-2 (SSD): at every token and head `exp(dt a)`, and values multiplied with `dt`. `dt` is
    /// `[B, T, H]`, at least 0, `a` is `[H]`, at most 0; queries are Mamba's `C` and keys its `B`, of a head a group.
    /// The default scale becomes 1. For tangents these are the captured tensors `dt` and `a`.
    pub fn mamba2(self, dt: impl Into<Array<'a, T>>, a: impl Into<Array<'a, T>>) -> Self {
        Self { decay: Decay::Mamba2 { dt: dt.into(), a: a.into() }, ..self }
    }

    /// The state before the first token, `[B, H, D, Dv]`, f64 where the inputs are and otherwise f32. Default: zero.
    pub fn initial_state(self, state: &'a HostTensor) -> Self {
        Self { initial_state: Some(state), ..self }
    }

    /// What outputs are multiplied with. Default `D^-1/2`; with Mamba-2's decay 1.
    pub fn scale(self, scale: f64) -> Self {
        Self { scale: Some(scale), ..self }
    }

    /// Where to compute. Default: what [`Registry::auto`](crate::Registry::auto) picks.
    pub fn device(self, device: &Device) -> Self {
        Self { device: Some(device.clone()), ..self }
    }

    /// The problem that this call describes, checked. Queries and keys have the heads of the values in it.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the array, where shapes break a rule.
    pub fn problem(&self) -> Result<Problem> {
        let inputs = [("query", &self.query), ("key", &self.key), ("value", &self.value)];
        for (name, array) in inputs {
            if array.shape().len() != 4 {
                return Err(Error::invalid(
                    name,
                    format!("{:?}", array.shape()),
                    "it must have 4 axes, [batch, tokens, heads, dim]",
                    "layouts are heads-last; add or permute axes",
                ));
            }
        }
        let (query, value) = (self.query.shape(), self.value.shape());
        let (batch, tokens, heads) = (value[0], value[1], value[2]);
        for (name, array) in [("query", &self.query), ("key", &self.key)] {
            let [b, t, groups, dim] = *array.shape() else { continue };
            if [b, t, dim] != [batch, tokens, query[3]] || groups == 0 || !heads.is_multiple_of(groups) {
                return Err(Error::invalid(
                    name,
                    format!("{:?}", array.shape()),
                    format!(
                        "beside value {value:?} its shape must be [{batch}, {tokens}, heads, {}], \
                         its heads a divisor of {heads}",
                        query[3]
                    ),
                    "layouts are heads-last; query, key and value share batch and tokens",
                ));
            }
        }
        let default_scale = matches!(self.decay, Decay::Mamba2 { .. }).then_some(1.0);
        Problem::builder(Neighborhood::full(tokens, tokens, Some(Alignment::TopLeft))?, T::DTYPE)
            .batch(batch)
            .heads(heads)
            .head_dim(query[3])
            .head_dim_v(value[3])
            .scale(self.scale.or(default_scale))
            .program(self.program([batch, tokens, heads])?)
            .initial_state(self.initial_state.is_some())
            .build()
    }

    fn program(&self, rows: [usize; 3]) -> Result<Program> {
        let program = Program::builder(1);
        let capture = |name: &str, shape: &[usize]| Capture::new(name, shape, T::DTYPE);
        match &self.decay {
            Decay::None => program.decay("0.0"),
            Decay::Retention => program.decay(RETENTION_DECAY),
            Decay::Given(_) => program.capture(capture(LOG_DECAY, &rows)).decay("log_decay[b, k, h]"),
            Decay::Mamba2 { .. } => program
                .capture(capture(DT, &rows))
                .capture(capture(A, &rows[2..]))
                .decay("dt[b, k, h] * a[h]")
                .value_mod("x * dt[b, k, hkv]"),
        }
        .build()
    }

    /// Runs the forward pass.
    ///
    /// # Errors
    /// As [`problem`](Self::problem), and whatever the device says.
    pub fn forward(&self) -> Result<LinearForward<T>> {
        self.forward_of(&self.problem()?)
    }

    fn forward_of(&self, problem: &Problem) -> Result<LinearForward<T>> {
        let mut results = self.run(problem, &OpRequest::forward(problem), Operands::new())?;
        Ok(LinearForward {
            output: results.numbers(Role::Output)?,
            final_state: results.host(Role::FinalState)?,
        })
    }

    /// The gradient of every input from the cotangent of the output.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] where the cotangent does not fit.
    pub fn backward<'g>(&self, grad_output: impl Into<Array<'g, T>>) -> Result<LinearGradients<T>>
    where
        T: 'g,
    {
        self.gradients(grad_output.into(), None)
    }

    /// The gradient of every input from the cotangents of the output and of the final state.
    ///
    /// # Errors
    /// As [`backward`](Self::backward).
    pub fn backward_with_final_state<'g>(
        &self,
        grad_output: impl Into<Array<'g, T>>,
        grad_final_state: &HostTensor,
    ) -> Result<LinearGradients<T>>
    where
        T: 'g,
    {
        self.gradients(grad_output.into(), Some(grad_final_state))
    }

    fn gradients(
        &self,
        grad_output: Array<'_, T>,
        grad_final_state: Option<&HostTensor>,
    ) -> Result<LinearGradients<T>> {
        let problem = self.problem()?;
        let request = OpRequest::backward(&problem).giving(grad_final_state.map(|_| Role::GradFinalState));
        let mut operands: Operands<'_, T> = [(Role::GradOutput, Operand::Numbers(grad_output.reborrow()))].into();
        operands.extend(grad_final_state.map(|state| (Role::GradFinalState, Operand::Host(state))));
        let mut results = self.run(&problem, &request, operands)?;
        let of_queries = gathered(&results.numbers(Role::GradQuery)?, self.query.shape()[2]);
        let of_keys = gathered(&results.numbers(Role::GradKey)?, self.key.shape()[2]);
        let mut of = |name: &str| match problem.role(name).and_then(Role::gradient) {
            Some(role) => results.optional(role),
            None => Ok(None),
        };
        let (log_decay, dt, a) = (of(LOG_DECAY)?, of(DT)?, of(A)?);
        Ok(LinearGradients {
            query: of_queries,
            key: of_keys,
            value: results.numbers(Role::GradValue)?,
            log_decay,
            dt,
            a,
            initial_state: results.optional_host(Role::GradInitialState),
        })
    }

    /// Forward mode: the results, and their tangents in a direction of the inputs. Runs the forward pass too.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] where no tangent is given, one that the call has no input for, or
    /// one of another shape.
    pub fn jvp(&self, tangents: &Tangents<'_, T>) -> Result<LinearJvp<T>> {
        let problem = self.problem()?;
        let given = tangents.operands(&problem)?;
        let mut operands: Operands<'_, T> = given.iter().map(|(&role, operand)| (role, operand.reborrow())).collect();
        let mut spread = Vec::new();
        for (role, array) in [(Role::TangentQuery, &self.query), (Role::TangentKey, &self.key)] {
            if let Some(Operand::Numbers(tangent)) = given.get(&role)
                && tangent.shape() == array.shape()
            {
                spread.push((role, scattered(tangent, problem.heads())));
            }
        }
        operands.extend(spread.iter().map(|(role, array)| (*role, Operand::Numbers(array.view().into()))));
        let request = OpRequest::forward_jvp(&problem, operands.keys().copied());
        let mut results = self.run(&problem, &request, operands)?;
        let LinearForward { output, final_state } = self.forward_of(&problem)?;
        Ok(LinearJvp {
            output,
            final_state,
            tangent_output: results.numbers(Role::TangentOutput)?,
            tangent_final_state: results.host(Role::TangentFinalState)?,
        })
    }

    fn run(&self, problem: &Problem, request: &OpRequest, given: Operands<'_, T>) -> Result<Results> {
        let query = scattered(&self.query, problem.heads());
        let key = scattered(&self.key, problem.heads());
        
        let mut operands: Operands<'_, T> = given.iter().map(|(&role, operand)| (role, operand.reborrow())).collect();
        operands.insert(Role::Query, Operand::Numbers(query.view().into()));
        operands.insert(Role::Key, Operand::Numbers(key.view().into()));
        operands.insert(Role::Value, Operand::Numbers(self.value.reborrow()));
        operands.extend(self.initial_state.map(|state| (Role::InitialState, Operand::Host(state))));
        match &self.decay {
            Decay::None | Decay::Retention => {}
            Decay::Given(log_decay) => {
                operands.insert(Role::Capture(0), Operand::Numbers(log_decay.reborrow()));
            }
            Decay::Mamba2 { dt, a } => {
                operands.insert(Role::Capture(0), Operand::Numbers(dt.reborrow()));
                operands.insert(Role::Capture(1), Operand::Numbers(a.reborrow()));
            }
        }
        execute(self.device.as_ref(), problem, request, &operands)
    }
}

/// `[B, T, G, D]` as `[B, T, heads, D]`, every head for its share of the heads: without a copy where `G` is 1 or `heads`.
fn scattered<'s, T: HostElement>(array: &'s Array<'_, T>, heads: usize) -> CowArray<'s, T, IxDyn> {
    let view = array.view();
    let [batch, tokens, groups, dim] = *array.shape() else { return view.into() };
    if groups == heads {
        return view.into();
    }
    let shape = IxDyn(&[batch, tokens, heads, dim]);
    match array.broadcast(&shape) {
        Some(view) => view.into(),
        None => {
            let share = heads / groups;
            ArrayD::from_shape_fn(shape, |at| view[[at[0], at[1], at[2] / share, at[3]].as_slice()]).into()
        }
    }
}

/// The sums over the heads that share one of `groups`, in f64.
fn gathered<T: HostElement>(array: &ArrayD<T>, groups: usize) -> ArrayD<T> {
    let [batch, tokens, heads, dim] = *array.shape() else { return array.clone() };
    if groups == heads {
        return array.clone();
    }
    let share = heads / groups;
    ArrayD::from_shape_fn(IxDyn(&[batch, tokens, groups, dim]), |at| {
        let of = |i: usize| array[[at[0], at[1], at[2] * share + i, at[3]].as_slice()].to_f64();
        T::from_f64((0..share).map(of).sum())
    })
}
