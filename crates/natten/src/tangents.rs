//! Tangents of inputs, for forward mode and second order.

use natten_core::{Error, HostElement, HostTensor, Problem, Result, Role};

use crate::array::Array;
use crate::execute::{Operand, Operands};

/// A direction: the tangent of every input that is to move, each of its input's shape. What is left out does not move;
/// a direction of nothing is an error where it is used.
///
/// ```
/// use natten::Tangents;
/// use ndarray::Array4;
/// # fn main() -> natten::Result<()> {
/// let x = Array4::<f64>::from_shape_fn((1, 5, 1, 2), |(_, i, _, d)| (i + 2 * d) as f64 / 7.0);
/// let call = natten::na1d(&x, &x, &x, 3).device(&natten::Registry::probe().device("reference")?);
/// // The output is linear in the values: its tangent along the values themselves is the output.
/// let moved = call.jvp(&Tangents::new().value(&x))?;
/// assert!((moved.tangent_output - moved.output).iter().all(|d| d.abs() < 1e-12));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Tangents<'t, T> {
    inputs: Vec<(Role, Operand<'t, T>)>,
    captures: Vec<(String, Operand<'t, T>)>,
}

impl<T: HostElement> Default for Tangents<'_, T> {
    fn default() -> Self {
        Self { inputs: Vec::new(), captures: Vec::new() }
    }
}

impl<'t, T: HostElement> Tangents<'t, T> {
    /// A direction in which nothing moves yet.
    pub fn new() -> Self {
        Self::default()
    }

    fn array(mut self, role: Role, array: impl Into<Array<'t, T>>) -> Self {
        self.inputs.push((role, Operand::Numbers(array.into())));
        self
    }

    fn host(mut self, role: Role, tensor: &'t HostTensor) -> Self {
        self.inputs.push((role, Operand::Host(tensor)));
        self
    }

    /// The tangent of the queries.
    #[must_use]
    pub fn query(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::Query, tangent)
    }

    /// The tangent of the keys.
    #[must_use]
    pub fn key(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::Key, tangent)
    }

    /// The tangent of the values.
    #[must_use]
    pub fn value(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::Value, tangent)
    }

    /// The tangent of the relative positional bias.
    #[must_use]
    pub fn rpb(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::Rpb, tangent)
    }

    /// The tangent of the additional keys.
    #[must_use]
    pub fn additional_key(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::AdditionalKey, tangent)
    }

    /// The tangent of the additional values.
    #[must_use]
    pub fn additional_value(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::AdditionalValue, tangent)
    }

    /// The tangent of the attention weights that [`Av`](crate::Av) takes.
    #[must_use]
    pub fn attention(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::Attention, tangent)
    }

    /// The tangent of the initial state of a recurrence.
    #[must_use]
    pub fn initial_state(self, tangent: &'t HostTensor) -> Self {
        self.host(Role::InitialState, tangent)
    }

    /// The tangent of a captured tensor of the call's element type.
    #[must_use]
    pub fn capture(mut self, name: impl Into<String>, tangent: impl Into<Array<'t, T>>) -> Self {
        self.captures.push((name.into(), Operand::Numbers(tangent.into())));
        self
    }

    /// The tangent of a captured tensor of any element type.
    #[must_use]
    pub fn capture_tensor(mut self, name: impl Into<String>, tangent: &'t HostTensor) -> Self {
        self.captures.push((name.into(), Operand::Host(tangent)));
        self
    }

    /// The tangent of the cotangent of the output: for second order alone.
    #[must_use]
    pub fn grad_output(self, tangent: impl Into<Array<'t, T>>) -> Self {
        self.array(Role::GradOutput, tangent)
    }

    /// The tangent of the cotangent of the logsumexp, of its shape and dtype: for second order alone.
    #[must_use]
    pub fn grad_logsumexp(self, tangent: &'t HostTensor) -> Self {
        self.host(Role::GradLogsumexp, tangent)
    }

    /// The same direction, heads-first arrays made heads last.
    pub(crate) fn heads_last(&self) -> Self {
        let mut tangents = self.clone();
        for (role, operand) in &mut tangents.inputs {
            if let (Operand::Numbers(array), true) = (operand, is_of_tokens(*role)) {
                *array = array.clone().heads_last();
            }
        }
        tangents
    }

    /// The tangents as inputs of an operation.
    ///
    /// # Errors
    /// [`Error::Invalid`] where there is none, for one given twice, and for captured tensors that the program has not.
    pub(crate) fn operands(&self, problem: &Problem) -> Result<Operands<'_, T>> {
        let mut operands = Operands::new();
        let captured = self.captures.iter().map(|(name, operand)| {
            let role = problem.role(name).filter(|role| matches!(role, Role::Capture(_)));
            let role = role.ok_or_else(|| {
                Error::invalid(
                    format!("tangent_{name}"),
                    "given",
                    "the program captures no tensor of this name",
                    "leave it out, or capture the tensor",
                )
            });
            Ok((role?, operand))
        });
        let inputs = self.inputs.iter().map(|(role, operand)| Ok((*role, operand)));
        for input in inputs.chain(captured) {
            let (role, operand) = input?;
            let Some(tangent) = role.tangent() else { continue };
            if operands.insert(tangent, operand.reborrow()).is_some() {
                return Err(Error::invalid(
                    problem.name(tangent),
                    "given twice",
                    "an input has one tangent",
                    "leave one of them out",
                ));
            }
        }
        match operands.is_empty() {
            false => Ok(operands),
            true => Err(Error::invalid(
                "tangents",
                "none",
                "a direction in which nothing moves has no derivative to compute",
                "give the tangent of at least one input",
            )),
        }
    }
}

/// Whether the unfused pair takes this tensor heads-first.
fn is_of_tokens(role: Role) -> bool {
    matches!(role, Role::Query | Role::Key | Role::Value | Role::AdditionalKey | Role::AdditionalValue)
}
