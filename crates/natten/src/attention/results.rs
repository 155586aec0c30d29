//! What the fused calls give.

use std::collections::BTreeMap;

use natten_core::{Error, HostElement, HostTensor, Result};
use ndarray::{ArrayD, ArrayViewD};

/// What forward gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Forward<T> {
    /// `[B, *X, Hq, Dv]`.
    pub output: ArrayD<T>,
    /// `[B, *X, Hq]`: the natural logarithm of the sum of the exponentials of each row's scores; f64 where the inputs
    /// are, otherwise f32. None where the row function has no such stage, as `sigmoid` has not.
    pub logsumexp: Option<HostTensor>,
}

impl<T> Forward<T> {
    /// The logsumexp.
    ///
    /// # Errors
    /// [`Error::Invalid`] where the row function has none.
    pub fn logsumexp(&self) -> Result<&HostTensor> {
        self.logsumexp.as_ref().ok_or_else(|| {
            Error::invalid(
                "logsumexp",
                "missing",
                "the row function of this call has no logsumexp",
                "it is an output of softmax and of rows with a stage lse(…)",
            )
        })
    }
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
    /// The gradients of the captured tensors by name, each of its tensor's shape and element type.
    pub captures: BTreeMap<String, HostTensor>,
}

impl<T: HostElement> Gradients<T> {
    /// The gradient of a captured tensor of the call's element type.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none of this name, or it is of another type.
    pub fn capture(&self, name: &str) -> Result<ArrayViewD<'_, T>> {
        captured(&self.captures, name)
    }
}

/// What forward mode gives: the results, and their tangents.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Jvp<T> {
    /// `[B, *X, Hq, Dv]`.
    pub output: ArrayD<T>,
    /// As [`Forward::logsumexp`].
    pub logsumexp: Option<HostTensor>,
    /// The tangent of the output, of its shape.
    pub tangent_output: ArrayD<T>,
    /// The tangent of the logsumexp, of its shape and dtype.
    pub tangent_logsumexp: Option<HostTensor>,
}

/// What [`double_backward`](crate::Attention::double_backward) gives: with `Φ = ⟨grad_output, output⟩` the tangent of
/// the gradient `∂Φ/∂input` of every input, a Hessian-vector product; and that of `∂Φ/∂grad_output`, which is the
/// tangent of the output.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct SecondGradients<T> {
    /// The tangent of the gradient of the queries.
    pub query: ArrayD<T>,
    /// The tangent of the gradient of the keys.
    pub key: ArrayD<T>,
    /// The tangent of the gradient of the values.
    pub value: ArrayD<T>,
    /// The tangent of the gradient of the relative positional bias.
    pub rpb: Option<ArrayD<T>>,
    /// The tangent of the gradient of the additional keys.
    pub additional_key: Option<ArrayD<T>>,
    /// The tangent of the gradient of the additional values.
    pub additional_value: Option<ArrayD<T>>,
    /// The tangents of the gradients of the captured tensors, by name.
    pub captures: BTreeMap<String, HostTensor>,
    /// The second gradient of the cotangent of the output: the tangent of the output.
    pub grad_output: ArrayD<T>,
    /// The second gradient of the cotangent of the logsumexp, where that is given: the tangent of the logsumexp.
    pub grad_logsumexp: Option<HostTensor>,
}

impl<T: HostElement> SecondGradients<T> {
    /// The tangent of the gradient of a captured tensor of the call's element type.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none of this name, or it is of another type.
    pub fn capture(&self, name: &str) -> Result<ArrayViewD<'_, T>> {
        captured(&self.captures, name)
    }
}

fn captured<'c, T: HostElement>(captures: &'c BTreeMap<String, HostTensor>, name: &str) -> Result<ArrayViewD<'c, T>> {
    let known = || captures.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let tensor = captures.get(name).ok_or_else(|| {
        Error::invalid(
            "capture",
            format!("'{name}'"),
            "it has no gradient: integers, constants and what only the mask uses have none",
            format!("those that have are: {}", known()),
        )
    })?;
    let array = tensor.as_slice::<T>().and_then(|data| ArrayViewD::from_shape(tensor.shape(), data).ok());
    array.ok_or_else(|| {
        Error::invalid(
            name.to_owned(),
            tensor.dtype(),
            format!("it is asked for as {}", T::DTYPE),
            "take it from captures, whatever its type",
        )
    })
}
