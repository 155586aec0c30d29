//! Takes the tensors that a run needs from its input file: required or optional, cast and checked.

use std::collections::{BTreeMap, BTreeSet};

use natten::program::{Capture, Program};
use natten::{DType, Error, HostTensor, Op, Problem, Result, Role, TensorSpec, check_tensor, contiguous_strides};

use super::args::RunArgs;
use crate::console;
use crate::tensors::TensorFile;

/// The tensors of a run, by what they are.
pub(super) type Inputs = BTreeMap<Role, HostTensor>;

/// The inputs of an operation that say what the problem is: those that it needs, and those that may be given.
const fn shaping(op: Op) -> (&'static [Role], &'static [Role]) {
    match op {
        Op::Qk | Op::QkJvp | Op::QkBackward => (&[Role::Query, Role::Key], &[Role::Rpb, Role::AdditionalKey]),
        Op::Av | Op::AvJvp | Op::AvBackward => (&[Role::Attention, Role::Value], &[Role::AdditionalValue]),
        _ => (
            &[Role::Query, Role::Key, Role::Value],
            &[Role::Rpb, Role::AdditionalKey, Role::AdditionalValue, Role::InitialState],
        ),
    }
}

/// Takes tensors from a file, each once.
pub(super) struct Loader<'a> {
    args: &'a RunArgs,
    file: &'a TensorFile,
    inputs: Inputs,
    /// The captured tensors by their names, until the program has numbered them.
    captured: Vec<(&'a str, HostTensor)>,
    /// The names in the file of what was taken.
    used: BTreeSet<String>,
}

impl<'a> Loader<'a> {
    pub(super) const fn new(args: &'a RunArgs, file: &'a TensorFile) -> Self {
        Self { args, file, inputs: Inputs::new(), captured: Vec::new(), used: BTreeSet::new() }
    }

    /// What was taken.
    pub(super) const fn inputs(&self) -> &Inputs {
        &self.inputs
    }

    /// What was taken.
    pub(super) fn into_inputs(self) -> Inputs {
        self.inputs
    }

    /// Takes the tensors that say what the problem is.
    ///
    /// # Errors
    /// [`Error::Invalid`] where one is missing that an operation needs.
    pub(super) fn load_shaping(&mut self, ops: &[Op]) -> Result<()> {
        for &op in ops {
            for &role in shaping(op).0 {
                self.take(role, role.name(), Some(&format!("{op} needs it")))?;
            }
        }
        for &op in ops {
            for &role in shaping(op).1 {
                let is_captured = self.args.capture.iter().any(|capture| capture.tensor == role.name());
                let has_meaning = role != Role::InitialState || self.args.program.has_decay();
                if has_meaning && !is_captured {
                    self.take(role, role.name(), None)?;
                }
            }
        }
        let is_fused = |op: &Op| !op.is_unfused();
        let pair = [Role::AdditionalKey, Role::AdditionalValue];
        for (given, other) in [(pair[0], pair[1]), (pair[1], pair[0])] {
            let is_half = self.inputs.contains_key(&given) && !self.inputs.contains_key(&other);
            if is_half && ops.iter().any(is_fused) {
                return Err(missing(
                    other.name(),
                    &format!("{given} is given, and neither works without the other"),
                ));
            }
        }
        Ok(())
    }

    /// The dtype to compute in: as asked, or that of query, or of value where there is none.
    pub(super) fn dtype(&self) -> DType {
        let first = self.inputs.values().next();
        self.args.dtype.or(first.map(HostTensor::dtype)).unwrap_or(DType::F32)
    }

    /// Takes the captured tensors.
    ///
    /// # Errors
    /// [`Error::Invalid`] where one is missing or of a dtype that cannot be captured.
    pub(super) fn load_captures(&mut self) -> Result<Vec<Capture>> {
        let mut captures = Vec::new();
        for capture in &self.args.capture {
            let Some(mut tensor) = self.file.captured(&capture.tensor)? else {
                let name = capture.tensor.escape_debug().to_string();
                return Err(missing(name, &format!("--capture {} names it", capture.name.escape_debug())));
            };
            self.used.insert(capture.tensor.clone());
            if let Some(dtype) = self.args.dtype.filter(|_| tensor.dtype().is_float()) {
                tensor = tensor.cast(dtype)?;
            }
            captures.push(Capture::new(capture.name.as_str(), tensor.shape(), tensor.dtype()));
            self.captured.push((&capture.name, tensor));
        }
        Ok(captures)
    }

    /// Gives the captured tensors that the program uses their numbers in it.
    pub(super) fn number_captures(&mut self, program: &Program) {
        for (name, tensor) in std::mem::take(&mut self.captured) {
            let number = program.captures().iter().position(|capture| capture.name == name);
            if let Some(number) = number {
                // The program has checked that there are few.
                self.inputs.insert(Role::Capture(number as u8), tensor);
            }
        }
    }

    /// Whether there is a tensor of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.file.names().iter().any(|there| there == name)
    }

    /// Puts zeros in the place of a tensor that the file does not have.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(super) fn insert_zeros(&mut self, role: Role, problem: &Problem) -> Result<()> {
        self.inputs.insert(role, HostTensor::zeros(problem.dtype_of(role), &problem.shape(role))?);
        Ok(())
    }

    /// Takes an input of an operation, in the dtype that the problem has for it.
    ///
    /// # Errors
    /// [`Error::Invalid`] where it is missing, or its shape or dtype is not the problem's.
    pub(super) fn load(&mut self, spec: &TensorSpec, why: &str) -> Result<()> {
        self.take(spec.role, spec.name(), Some(why))?;
        let Some(tensor) = self.inputs.get_mut(&spec.role) else { return Ok(()) };
        if tensor.dtype() != spec.dtype {
            if self.args.dtype.is_none() {
                let given = tensor.dtype();
                return Err(Error::invalid(
                    spec.name.clone(),
                    given,
                    format!("its dtype must be {}, since {}", spec.dtype, self.anchor(spec)),
                    "cast all inputs with --dtype",
                ));
            }
            *tensor = tensor.cast(spec.dtype)?;
        }
        check_tensor(spec, tensor.shape(), tensor.dtype(), &contiguous_strides(tensor.shape()))
    }

    /// The tensor whose dtype an input's follows, and that dtype.
    fn anchor(&self, spec: &TensorSpec) -> String {
        match (spec.role.tangent_of(), self.inputs.first_key_value()) {
            (Some(Role::Capture(_)), _) => format!("that of what it is the tangent of is {}", spec.dtype),
            (_, Some((first, tensor))) => format!("{first} is {}", tensor.dtype()),
            (_, None) => format!("the run is in {}", spec.dtype),
        }
    }

    /// Tells which tensors of the file do nothing.
    pub(super) fn note_unused(&self) {
        let names = self.file.names();
        let unused: Vec<String> = names
            .iter()
            .filter(|name| !self.used.contains(*name))
            .map(|name| name.escape_debug().to_string())
            .collect();
        if !unused.is_empty() {
            console::note(&format!("nothing uses these tensors of the input: {}", unused.join(", ")));
        }
    }

    /// Takes a tensor from the file, if it was not taken; `needed` is why it must be there.
    fn take(&mut self, role: Role, name: &str, needed: Option<&str>) -> Result<()> {
        if self.inputs.contains_key(&role) {
            return Ok(());
        }
        match (self.file.tensor(name)?, needed) {
            (Some(tensor), _) => {
                self.used.insert(name.to_owned());
                self.inputs.insert(role, tensor);
                Ok(())
            }
            (None, Some(why)) => Err(missing(name.to_owned(), why)),
            (None, None) => Ok(()),
        }
    }
}

/// The error of a tensor that the file does not have.
fn missing(name: impl Into<std::borrow::Cow<'static, str>>, why: &str) -> Error {
    Error::invalid(name, "missing", why, "add this tensor to the input file")
}
