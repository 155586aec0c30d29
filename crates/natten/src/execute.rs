//! Runs one operation on borrowed arrays: on the CPU where they lie, elsewhere by way of copies.

use std::collections::BTreeMap;

use natten_core::{HostElement, HostTensor, OpRequest, Problem, Result, Role};
use ndarray::ArrayViewD;

use crate::device::Device;

/// An input.
#[derive(Debug)]
pub(crate) enum Operand<'v, T> {
    /// Of the problem's dtype.
    Numbers(ArrayViewD<'v, T>),
    /// One number a query and head.
    Rows(&'v HostTensor),
}

impl<T: HostElement> Operand<'_, T> {
    fn to_host(&self) -> HostTensor {
        match self {
            Self::Numbers(array) => array.view().into(),
            Self::Rows(rows) => (*rows).clone(),
        }
    }
}

/// Runs `request` on `device`; the wanted results, by role.
///
/// # Errors
/// [`Error::Invalid`] where an operand is missing or does not fit the problem, and whatever the device says.
pub(crate) fn execute<T: HostElement>(
    device: &Device,
    problem: &Problem,
    request: &OpRequest,
    operands: &BTreeMap<Role, Operand<'_, T>>,
) -> Result<BTreeMap<Role, HostTensor>> {
    #[cfg(feature = "cpu")]
    if let Some(results) = on_cpu(device, problem, request, operands)? {
        return Ok(results);
    }
    let inputs = operands.iter().map(|(&role, operand)| (role, operand.to_host())).collect();
    device.execute(problem, request, &inputs).map(|outputs| outputs.tensors)
}

/// The way without copies; `None` where the device is not the CPU.
#[cfg(feature = "cpu")]
fn on_cpu<T: HostElement>(
    device: &Device,
    problem: &Problem,
    request: &OpRequest,
    operands: &BTreeMap<Role, Operand<'_, T>>,
) -> Result<Option<BTreeMap<Role, HostTensor>>> {
    use natten_cpu::{CpuPlan, View, ViewMut};

    let plan = device.plan(problem, request, &natten_core::PlanOptions::default())?;
    let Some(cpu) = plan.as_any().downcast_ref::<CpuPlan>() else {
        return Ok(None);
    };
    let specs = plan.tensors();
    let inputs = specs
        .iter()
        .filter(|spec| !spec.is_output)
        .map(|spec| match operands.get(&spec.role) {
            Some(Operand::Numbers(array)) => View::try_from(array.view()),
            Some(Operand::Rows(rows)) => View::of_host(rows),
            None => Err(missing(spec)),
        })
        .collect::<Result<Vec<_>>>()?;
    let outputs = specs.iter().filter(|spec| spec.is_output);
    let mut tensors = outputs.clone().map(HostTensor::zeros_like).collect::<Result<Vec<_>>>()?;
    let mut views = tensors.iter_mut().map(ViewMut::of_host).collect::<Result<Vec<_>>>()?;
    cpu.run_views(&inputs, &mut views, &mut plan.new_workspace()?)?;
    Ok(Some(outputs.map(|spec| spec.role).zip(tensors).collect()))
}

#[cfg(feature = "cpu")]
fn missing(spec: &natten_core::TensorSpec) -> natten_core::Error {
    natten_core::Error::invalid(spec.name.clone(), "missing", "the operation needs it", "give this tensor")
}
