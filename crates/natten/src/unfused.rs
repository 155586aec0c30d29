//! The unfused pair of NATTEN 0.17: [`na1d_qk`], [`na2d_qk`] and [`na3d_qk`] give the scores of every query's window,
//! [`na1d_av`], [`na2d_av`] and [`na3d_av`] the sums of values that given weights make. What lies between them,
//! masks, softmax, dropout, is the caller's.
//!
//! Layouts are heads-first, and scores are not scaled:
//!
//! | tensor | shape |
//! |---|---|
//! | query | `[B, Hq, *X, D]` |
//! | key, value | `[B, Hkv, *X, D]`, `[B, Hkv, *X, Dv]` |
//! | additional keys, values | `[B, Hkv, N, D]`, `[B, Hkv, N, Dv]` |
//! | rpb | `[Hq, 2*k-1, …]` |
//! | attention | `[B, Hq, *X, prod(k) + N]` |
//! | output | `[B, Hq, *X, Dv]` |
//!
//! A query's slots are its window's keys in row-major order from the window's first, then the additional ones. A causal
//! window's later slots have no key: `qk` gives -inf there and `av` does not read them. Heads-first arrays are read where
//! they lie; the gradients and outputs are heads-first views of heads-last memory.

use std::collections::BTreeMap;

use natten_core::{Error, HostElement, OpRequest, Problem, Result, Role};
use ndarray::ArrayD;

use crate::array::{Array, PerAxis};
use crate::device::Device;
use crate::execute::{Operand, Operands, Results, execute};
use crate::tangents::Tangents;
use crate::window::Window;

/// What the two of the pair share: inputs, heads-first, and the window.
#[derive(Clone, Debug)]
struct Unfused<'a, T> {
    rank: usize,
    window: Window,
    inputs: BTreeMap<Role, Array<'a, T>>,
    device: Option<Device>,
}

/// The scores of every query's window. Made by [`na1d_qk`], [`na2d_qk`] and [`na3d_qk`].
#[derive(Clone, Debug)]
#[must_use = "call forward(), backward() or jvp()"]
pub struct Qk<'a, T>(Unfused<'a, T>);

/// The sums of the values of every query's window, by given weights. Made by [`na1d_av`], [`na2d_av`] and [`na3d_av`].
#[derive(Clone, Debug)]
#[must_use = "call forward(), backward() or jvp()"]
pub struct Av<'a, T>(Unfused<'a, T>);

/// The gradients of the inputs of [`Qk`], each heads-first as its input.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QkGradients<T> {
    /// The gradient of the queries.
    pub query: ArrayD<T>,
    /// The gradient of the keys.
    pub key: ArrayD<T>,
    /// The gradient of the relative positional bias.
    pub rpb: Option<ArrayD<T>>,
    /// The gradient of the additional keys.
    pub additional_keys: Option<ArrayD<T>>,
}

/// The gradients of the inputs of [`Av`], each heads-first as its input.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct AvGradients<T> {
    /// The gradient of the weights; 0 in slots without a key.
    pub attention: ArrayD<T>,
    /// The gradient of the values.
    pub value: ArrayD<T>,
    /// The gradient of the additional values.
    pub additional_values: Option<ArrayD<T>>,
}

macro_rules! calls {
    ($qk:ident $av:ident $rank:literal $tokens:literal) => {
        #[doc = concat!("The scores of ", $rank, "-D neighborhoods: `[B, Hq, ", $tokens, ", prod(k)]` from `[B, H, ", $tokens, ", D]` arrays.")]
        pub fn $qk<'a, T: HostElement>(
            query: impl Into<Array<'a, T>>,
            key: impl Into<Array<'a, T>>,
            kernel_size: impl Into<PerAxis<usize>>,
        ) -> Qk<'a, T> {
            let inputs = [(Role::Query, query.into()), (Role::Key, key.into())];
            Qk(Unfused::new($rank, kernel_size.into(), inputs))
        }

        #[doc = concat!("The output of ", $rank, "-D neighborhoods: `[B, Hq, ", $tokens, ", Dv]` from weights `[B, Hq, ", $tokens, ", prod(k)]`\n\
                         and values `[B, Hkv, ", $tokens, ", Dv]`.")]
        pub fn $av<'a, T: HostElement>(
            attention: impl Into<Array<'a, T>>,
            value: impl Into<Array<'a, T>>,
            kernel_size: impl Into<PerAxis<usize>>,
        ) -> Av<'a, T> {
            let inputs = [(Role::Attention, attention.into()), (Role::Value, value.into())];
            Av(Unfused::new($rank, kernel_size.into(), inputs))
        }
    };
}

calls!(na1d_qk na1d_av 1 "L");
calls!(na2d_qk na2d_av 2 "X, Y");
calls!(na3d_qk na3d_av 3 "X, Y, Z");

macro_rules! options {
    ($call:ident) => {
        impl<'a, T: HostElement> $call<'a, T> {
            /// Neighbouring queries that share one window. Default 1.
            pub fn stride(mut self, value: impl Into<PerAxis<usize>>) -> Self {
                self.0.window.stride = value.into();
                self
            }

            /// The distance of the keys of a window. Default 1.
            pub fn dilation(mut self, value: impl Into<PerAxis<usize>>) -> Self {
                self.0.window.dilation = value.into();
                self
            }

            /// Whether a query sees nothing behind itself, on all axes or axis by axis. Default no.
            pub fn causal(mut self, value: impl Into<PerAxis<bool>>) -> Self {
                self.0.window.causal = value.into();
                self
            }

            /// Clamps a window that is too large for the tokens, instead of an error: see
            /// [`AxisParams::fit`](natten_core::geometry::AxisParams::fit).
            pub fn fit(mut self) -> Self {
                self.0.window.fit = true;
                self
            }

            /// Where to compute. Default: what [`Registry::auto`](crate::Registry::auto) picks.
            pub fn device(mut self, device: &Device) -> Self {
                self.0.device = Some(device.clone());
                self
            }

            /// The problem that this call describes, checked. Its layouts are heads-last.
            ///
            /// # Errors
            /// [`Error::Invalid`], naming the array or the option, where shapes or options break a rule.
            pub fn problem(&self) -> Result<Problem> {
                self.0.problem()
            }
        }
    };
}

options!(Qk);
options!(Av);

impl<'a, T: HostElement> Qk<'a, T> {
    /// Adds a relative positional bias `[Hq, 2*k-1, …]` to the scores.
    pub fn rpb(mut self, table: impl Into<Array<'a, T>>) -> Self {
        self.0.inputs.insert(Role::Rpb, table.into());
        self
    }

    /// Keys `[B, Hkv, N, D]` that every query sees beside its window.
    pub fn additional_keys(mut self, keys: impl Into<Array<'a, T>>) -> Self {
        self.0.inputs.insert(Role::AdditionalKey, keys.into());
        self
    }

    /// The scores, `[B, Hq, *X, prod(k) + N]`, -inf in slots without a key.
    ///
    /// # Errors
    /// As [`problem`](Self::problem), and whatever the device says.
    pub fn forward(&self) -> Result<ArrayD<T>> {
        self.0.run(OpRequest::qk, Operands::new())?.numbers(Role::Attention)
    }

    /// The gradients of the inputs from the cotangent of the scores, of which slots without a key are not read.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] where the cotangent does not fit.
    pub fn backward<'g>(&self, grad_attention: impl Into<Array<'g, T>>) -> Result<QkGradients<T>>
    where
        T: 'g,
    {
        let grad_attention = grad_attention.into();
        let operands = [(Role::GradAttention, Operand::Numbers(grad_attention.reborrow()))].into();
        let mut results = self.0.run(OpRequest::qk_backward, operands)?;
        Ok(QkGradients {
            query: heads_first(results.numbers(Role::GradQuery)?),
            key: heads_first(results.numbers(Role::GradKey)?),
            rpb: results.optional(Role::GradRpb)?,
            additional_keys: results.optional(Role::GradAdditionalKey)?.map(heads_first),
        })
    }

    /// The tangent of the scores, from heads-first tangents of the inputs; 0 in slots without a key.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] where no tangent is given, or one that does not fit.
    pub fn jvp(&self, tangents: &Tangents<'_, T>) -> Result<ArrayD<T>> {
        self.0.jvp(tangents, OpRequest::qk_jvp, Role::TangentAttention)
    }
}

impl<'a, T: HostElement> Av<'a, T> {
    /// Values `[B, Hkv, N, Dv]` of the additional keys, whose weights are the last `N` slots.
    pub fn additional_values(mut self, values: impl Into<Array<'a, T>>) -> Self {
        self.0.inputs.insert(Role::AdditionalValue, values.into());
        self
    }

    /// The output, `[B, Hq, *X, Dv]`.
    ///
    /// # Errors
    /// As [`problem`](Self::problem), and whatever the device says.
    pub fn forward(&self) -> Result<ArrayD<T>> {
        self.0.run(OpRequest::av, Operands::new())?.numbers(Role::Output).map(heads_first)
    }

    /// The gradients of the inputs from the cotangent of the output.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] where the cotangent does not fit.
    pub fn backward<'g>(&self, grad_output: impl Into<Array<'g, T>>) -> Result<AvGradients<T>>
    where
        T: 'g,
    {
        let grad_output = grad_output.into();
        let operands = [(Role::GradOutput, operand(Role::GradOutput, &grad_output))].into();
        let mut results = self.0.run(OpRequest::av_backward, operands)?;
        Ok(AvGradients {
            attention: results.numbers(Role::GradAttention)?,
            value: heads_first(results.numbers(Role::GradValue)?),
            additional_values: results.optional(Role::GradAdditionalValue)?.map(heads_first),
        })
    }

    /// The tangent of the output, from heads-first tangents of the inputs.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`] where no tangent is given, or one that does not fit.
    pub fn jvp(&self, tangents: &Tangents<'_, T>) -> Result<ArrayD<T>> {
        self.0.jvp(tangents, OpRequest::av_jvp, Role::TangentOutput).map(heads_first)
    }
}

impl<'a, T: HostElement> Unfused<'a, T> {
    fn new(rank: usize, kernel_size: PerAxis<usize>, inputs: [(Role, Array<'a, T>); 2]) -> Self {
        Self { rank, window: Window::new(kernel_size), inputs: inputs.into(), device: None }
    }

    fn problem(&self) -> Result<Problem> {
        let rank = self.rank;
        // Of a pair's problem the half that is not there may have any width.
        let is_qk = self.inputs.contains_key(&Role::Query);
        let (queries, keys, of_keys) = match is_qk {
            true => (Role::Query, Role::Key, Role::AdditionalKey),
            false => (Role::Attention, Role::Value, Role::AdditionalValue),
        };
        let query = self.shape_of(queries, rank + 3)?;
        let key = self.shape_of(keys, rank + 3)?;
        let additional = match self.inputs.contains_key(&of_keys) {
            true => self.shape_of(of_keys, 4)?[2],
            false => 0,
        };
        let has_rpb = self.inputs.contains_key(&Role::Rpb);
        let problem = Problem::builder(self.window.neighborhood(&query[2..rank + 2], has_rpb)?, T::DTYPE)
            .batch(query[0])
            .heads(query[1])
            .heads_kv(key[1])
            .head_dim(if is_qk { query } else { key }[rank + 2])
            .additional_tokens(additional)
            .relative_positional_bias(has_rpb)
            .scale(Some(1.0))
            .build()?;
        for (&role, array) in &self.inputs {
            let given = operand(role, array);
            if given.shape() != problem.shape(role) {
                let mut expected = problem.shape(role);
                if !matches!(role, Role::Attention | Role::Rpb) {
                    let heads = expected.remove(expected.len() - 2);
                    expected.insert(1, heads);
                }
                return Err(Error::invalid(
                    role.name(),
                    format!("{:?}", array.shape()),
                    format!("beside {} {query:?} its shape must be {expected:?}", queries.name()),
                    "layouts are heads-first; the window's slots are prod(kernel_size), additional ones follow",
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
        Err(Error::invalid(
            role.name(),
            format!("{shape:?}"),
            format!("it must have {axes} axes, [batch, heads, tokens…, dim]"),
            "layouts are heads-first; add or permute axes",
        ))
    }

    fn run<'r>(&'r self, request: fn(&Problem) -> OpRequest, operands: Operands<'r, T>) -> Result<Results> {
        let problem = self.problem()?;
        self.execute(&problem, &request(&problem), operands)
    }

    fn jvp<R>(&self, tangents: &Tangents<'_, T>, request: R, result: Role) -> Result<ArrayD<T>>
    where
        R: FnOnce(&Problem, Vec<Role>) -> OpRequest,
    {
        let problem = self.problem()?;
        let tangents = tangents.heads_last();
        let operands = tangents.operands(&problem)?;
        let request = request(&problem, operands.keys().copied().collect());
        self.execute(&problem, &request, operands)?.numbers(result)
    }

    fn execute<'r>(
        &'r self,
        problem: &Problem,
        request: &OpRequest,
        mut operands: Operands<'r, T>,
    ) -> Result<Results> {
        operands.extend(self.inputs.iter().map(|(&role, array)| (role, operand(role, array))));
        execute(self.device.as_ref(), problem, request, &operands)
    }
}

/// An input of the pair as the problem has it, heads-last.
fn operand<'r, T: HostElement>(role: Role, array: &'r Array<'_, T>) -> Operand<'r, T> {
    Operand::Numbers(match role {
        Role::Attention | Role::Rpb => array.reborrow(),
        _ => array.reborrow().heads_last(),
    })
}

/// Heads-last memory, heads first.
fn heads_first<T>(array: ArrayD<T>) -> ArrayD<T> {
    let rank = array.ndim();
    let order: Vec<usize> = [0, rank - 2].into_iter().chain(1..rank - 2).chain([rank - 1]).collect();
    array.permuted_axes(order)
}
