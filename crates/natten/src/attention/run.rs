//! The operations of the fused calls.

use natten_core::{HostElement, HostTensor, OpRequest, Problem, Result, Role};

use super::{Attention, Forward, Gradients, Jvp, SecondGradients};
use crate::array::Array;
use crate::execute::{Operand, Operands, Results, execute};
use crate::tangents::Tangents;

impl<'a, T: HostElement> Attention<'a, T> {
    /// Runs the forward pass.
    ///
    /// # Errors
    /// As [`problem`](Self::problem), and whatever the device says.
    pub fn forward(&self) -> Result<Forward<T>> {
        self.forward_of(&self.problem()?)
    }

    fn forward_of(&self, problem: &Problem) -> Result<Forward<T>> {
        let mut results = self.run(problem, &OpRequest::forward(problem), Operands::new())?;
        Ok(Forward {
            output: results.numbers(Role::Output)?,
            logsumexp: results.optional_host(Role::Logsumexp),
        })
    }

    /// Runs the backward pass: the gradient of every input, from the cotangent of the output.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`](natten_core::Error::Invalid) where the results of forward or the
    /// cotangent do not fit.
    pub fn backward<'g>(
        &self,
        forward: &Forward<T>,
        grad_output: impl Into<Array<'g, T>>,
    ) -> Result<Gradients<T>>
    where
        T: 'g,
    {
        self.gradients(forward, grad_output.into(), None)
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
        self.gradients(forward, grad_output.into(), Some(grad_logsumexp))
    }

    fn gradients(
        &self,
        forward: &Forward<T>,
        grad_output: Array<'_, T>,
        grad_logsumexp: Option<&HostTensor>,
    ) -> Result<Gradients<T>> {
        let problem = self.problem()?;
        let request = OpRequest::backward(&problem).giving(grad_logsumexp.map(|_| Role::GradLogsumexp));
        let mut operands: Operands<'_, T> = [
            (Role::Output, Operand::Numbers(forward.output.view().into())),
            (Role::GradOutput, Operand::Numbers(grad_output.reborrow())),
        ]
        .into();
        if problem.has_logsumexp() {
            operands.insert(Role::Logsumexp, Operand::Host(forward.logsumexp()?));
        }
        operands.extend(grad_logsumexp.map(|rows| (Role::GradLogsumexp, Operand::Host(rows))));
        let mut results = self.run(&problem, &request, operands)?;
        Ok(Gradients {
            query: results.numbers(Role::GradQuery)?,
            key: results.numbers(Role::GradKey)?,
            value: results.numbers(Role::GradValue)?,
            rpb: results.optional(Role::GradRpb)?,
            additional_key: results.optional(Role::GradAdditionalKey)?,
            additional_value: results.optional(Role::GradAdditionalValue)?,
            captures: results.captures(&problem, Role::gradient_of),
        })
    }

    /// Forward mode: the results, and their tangents in a direction of the inputs. Runs the forward pass too.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::Invalid`](natten_core::Error::Invalid) where no tangent is given, one that
    /// the call has no input for, or one of another shape.
    pub fn jvp(&self, tangents: &Tangents<'_, T>) -> Result<Jvp<T>> {
        let problem = self.problem()?;
        let operands = tangents.operands(&problem)?;
        let request = OpRequest::forward_jvp(&problem, operands.keys().copied());
        let mut results = self.run(&problem, &request, operands)?;
        let Forward { output, logsumexp } = self.forward_of(&problem)?;
        Ok(Jvp {
            output,
            logsumexp,
            tangent_output: results.numbers(Role::TangentOutput)?,
            tangent_logsumexp: results.optional_host(Role::TangentLogsumexp),
        })
    }

    /// Second order. Of `Φ = ⟨grad_output, output⟩` backward gives the gradients; this gives their tangents along
    /// `direction`, Hessian-vector products.
    ///
    /// By the symmetry of the Hessian that is double backward: with `u_query`, `u_key`, … the cotangents of the
    /// gradients that backward gave, put them in as the tangents of `query`, `key`, …; the results are the gradients of
    /// `⟨u_query, grad_query⟩ + ⟨u_key, grad_key⟩ + …` with respect to the inputs and to `grad_output`. A tangent of
    /// `grad_output` may be given too, for a Hessian-vector product of everything that backward reads.
    ///
    /// ```
    /// use natten::Tangents;
    /// use ndarray::Array4;
    /// # fn main() -> natten::Result<()> {
    /// let x = Array4::<f64>::from_shape_fn((1, 6, 1, 2), |(_, i, _, d)| ((i * 3 + d) % 5) as f64 / 5.0);
    /// let call = natten::na1d(&x, &x, &x, 3).device(&natten::Registry::probe().device("reference")?);
    /// let second = call.double_backward(&x, &Tangents::new().query(&x).value(&x))?;
    /// assert_eq!(second.key.shape(), x.shape());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`jvp`](Self::jvp).
    pub fn double_backward<'g>(
        &self,
        grad_output: impl Into<Array<'g, T>>,
        direction: &Tangents<'_, T>,
    ) -> Result<SecondGradients<T>>
    where
        T: 'g,
    {
        self.second(grad_output.into(), None, direction)
    }

    /// [`double_backward`](Self::double_backward) of `Φ = ⟨grad_output, output⟩ + ⟨grad_logsumexp, logsumexp⟩`.
    ///
    /// # Errors
    /// As [`jvp`](Self::jvp).
    pub fn double_backward_with_logsumexp<'g>(
        &self,
        grad_output: impl Into<Array<'g, T>>,
        grad_logsumexp: &HostTensor,
        direction: &Tangents<'_, T>,
    ) -> Result<SecondGradients<T>>
    where
        T: 'g,
    {
        self.second(grad_output.into(), Some(grad_logsumexp), direction)
    }

    /// The Hessian-vector product along `direction`: another name of [`double_backward`](Self::double_backward).
    ///
    /// # Errors
    /// As [`jvp`](Self::jvp).
    pub fn hvp<'g>(
        &self,
        grad_output: impl Into<Array<'g, T>>,
        direction: &Tangents<'_, T>,
    ) -> Result<SecondGradients<T>>
    where
        T: 'g,
    {
        self.double_backward(grad_output, direction)
    }

    fn second(
        &self,
        grad_output: Array<'_, T>,
        grad_logsumexp: Option<&HostTensor>,
        direction: &Tangents<'_, T>,
    ) -> Result<SecondGradients<T>> {
        let problem = self.problem()?;
        let mut operands = direction.operands(&problem)?;
        operands.extend(grad_logsumexp.map(|rows| (Role::GradLogsumexp, Operand::Host(rows))));
        let request = OpRequest::backward_jvp(&problem, operands.keys().copied());
        operands.insert(Role::GradOutput, Operand::Numbers(grad_output.reborrow()));
        let mut results = self.run(&problem, &request, operands)?;
        Ok(SecondGradients {
            query: results.numbers(Role::Grad2Query)?,
            key: results.numbers(Role::Grad2Key)?,
            value: results.numbers(Role::Grad2Value)?,
            rpb: results.optional(Role::Grad2Rpb)?,
            additional_key: results.optional(Role::Grad2AdditionalKey)?,
            additional_value: results.optional(Role::Grad2AdditionalValue)?,
            captures: results.captures(&problem, Role::second_gradient_of),
            grad_output: results.numbers(Role::Grad2GradOutput)?,
            grad_logsumexp: results.optional_host(Role::Grad2GradLogsumexp),
        })
    }

    fn run<'r>(
        &'r self,
        problem: &Problem,
        request: &OpRequest,
        mut operands: Operands<'r, T>,
    ) -> Result<Results> {
        operands.extend(self.script.operands(problem)?);
        operands.extend(self.inputs.iter().map(|(&role, array)| (role, Operand::Numbers(array.reborrow()))));
        execute(self.device.as_ref(), problem, request, &operands)
    }
}
