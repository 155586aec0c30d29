//! Runs one operation on borrowed arrays: on the CPU where they lie, elsewhere by way of copies.

use std::collections::BTreeMap;

use natten_core::{
    DType, Error, HostElement, HostTensor, OpRequest, Plan, PlanOptions, Problem, Result, Role,
};
use ndarray::ArrayD;

use crate::array::Array;
use crate::device::Device;
use crate::registry::Registry;

/// An input of an operation.
#[derive(Clone, Debug)]
pub(crate) enum Operand<'a, T> {
    /// Of the call's element type.
    Numbers(Array<'a, T>),
    /// Integers, for a program to load.
    Integers(Array<'a, i32>),
    /// Of whatever type it is.
    Host(&'a HostTensor),
}

impl<T: HostElement> Operand<'_, T> {
    /// The same operand, borrowed for less long.
    pub(crate) fn reborrow(&self) -> Operand<'_, T> {
        match self {
            Self::Numbers(array) => Operand::Numbers(array.reborrow()),
            Self::Integers(array) => Operand::Integers(array.reborrow()),
            Self::Host(tensor) => Operand::Host(tensor),
        }
    }

    pub(crate) fn shape(&self) -> &[usize] {
        match self {
            Self::Numbers(array) => array.shape(),
            Self::Integers(array) => array.shape(),
            Self::Host(tensor) => tensor.shape(),
        }
    }

    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::Numbers(_) => T::DTYPE,
            Self::Integers(_) => DType::I32,
            Self::Host(tensor) => tensor.dtype(),
        }
    }

    fn to_host(&self) -> HostTensor {
        match self {
            Self::Numbers(array) => array.view().into(),
            Self::Integers(array) => array.view().into(),
            Self::Host(tensor) => (*tensor).clone(),
        }
    }
}

/// The inputs of an operation.
pub(crate) type Operands<'a, T> = BTreeMap<Role, Operand<'a, T>>;

/// The results of an operation, to be taken out one by one.
#[derive(Debug)]
pub(crate) struct Results(BTreeMap<Role, HostTensor>);

impl Results {
    /// A result of whatever type it has.
    ///
    /// # Errors
    /// [`Error::Device`] where the backend did not give it.
    pub(crate) fn host(&mut self, role: Role) -> Result<HostTensor> {
        self.0.remove(&role).ok_or_else(|| missing(role))
    }

    /// A result of the call's element type.
    ///
    /// # Errors
    /// As [`host`](Self::host); also where it is of another type.
    pub(crate) fn numbers<T: HostElement>(&mut self, role: Role) -> Result<ArrayD<T>> {
        self.host(role)?.into_ndarray().ok_or_else(|| missing(role))
    }

    /// A result that not every problem has.
    ///
    /// # Errors
    /// [`Error::Device`] where it is of another type than the call's.
    pub(crate) fn optional<T: HostElement>(&mut self, role: Role) -> Result<Option<ArrayD<T>>> {
        self.0.contains_key(&role).then(|| self.numbers(role)).transpose()
    }

    /// A result that not every problem has, of whatever type it has.
    pub(crate) fn optional_host(&mut self, role: Role) -> Option<HostTensor> {
        self.0.remove(&role)
    }

    /// What is computed of the captured tensors, by the tensors' names; `of` tells a result's tensor.
    pub(crate) fn captures(
        &mut self,
        problem: &Problem,
        of: fn(Role) -> Option<Role>,
    ) -> BTreeMap<String, HostTensor> {
        let is_captured = |role: &Role| of(*role).filter(|role| matches!(role, Role::Capture(_)));
        let found = self.0.extract_if(.., |role, _| is_captured(role).is_some());
        found.filter_map(|(role, tensor)| Some((problem.name(of(role)?).into_owned(), tensor))).collect()
    }
}

/// A backend that breaks its contract, which is no reason to panic.
fn missing(role: Role) -> Error {
    Error::Device {
        backend: "the backend".into(),
        message: format!("it gave no {role} of the dtype asked for"),
    }
}

/// Runs `request` on `device`, or where none is picked on what [`Registry::auto`] does.
///
/// # Errors
/// [`Error::Invalid`] where an operand is missing or does not fit the problem, and whatever the device says.
pub(crate) fn execute<T: HostElement>(
    device: Option<&Device>,
    problem: &Problem,
    request: &OpRequest,
    operands: &Operands<'_, T>,
) -> Result<Results> {
    let Some(device) = device else {
        return execute(Some(&Registry::probe().auto()?), problem, request, operands);
    };
    let plan = device.plan(problem, request, &PlanOptions::default())?;
    #[cfg(feature = "cpu")]
    if let Some(cpu) = plan.as_any().downcast_ref() {
        return on_cpu(cpu, operands).map(Results);
    }
    // What the operation does not read is not copied.
    let is_read = |role: Role| plan.tensors().iter().any(|spec| spec.role == role && !spec.is_output);
    let inputs = operands.iter().filter(|(role, _)| is_read(**role));
    let inputs = inputs.map(|(&role, operand)| (role, operand.to_host())).collect();
    device.run(&*plan, request.op, &inputs).map(|outputs| Results(outputs.tensors))
}

/// The way without copies.
#[cfg(feature = "cpu")]
fn on_cpu<T: HostElement>(
    plan: &natten_cpu::CpuPlan,
    operands: &Operands<'_, T>,
) -> Result<BTreeMap<Role, HostTensor>> {
    use natten_cpu::{View, ViewMut};

    let specs = plan.tensors();
    let inputs = specs.iter().filter(|spec| !spec.is_output);
    let inputs = inputs.map(|spec| match operands.get(&spec.role) {
        Some(Operand::Numbers(array)) => View::try_from(array.view()),
        Some(Operand::Integers(array)) => View::try_from(array.view()),
        Some(Operand::Host(tensor)) => View::of_host(tensor),
        None => Err(Error::invalid(
            spec.name.clone(),
            "missing",
            format!("the operation needs it, of shape {:?}", spec.shape),
            "give this tensor",
        )),
    });
    let inputs = inputs.collect::<Result<Vec<_>>>()?;
    let outputs = specs.iter().filter(|spec| spec.is_output);
    let mut tensors = outputs.clone().map(HostTensor::zeros_like).collect::<Result<Vec<_>>>()?;
    let mut views = tensors.iter_mut().map(ViewMut::of_host).collect::<Result<Vec<_>>>()?;
    plan.run_views(&inputs, &mut views, &mut plan.new_workspace()?)?;
    Ok(outputs.map(|spec| spec.role).zip(tensors).collect())
}
