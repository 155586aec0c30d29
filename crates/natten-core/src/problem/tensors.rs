//! Which tensors the operations of a problem take and give: names, shapes and dtypes.

use std::borrow::Cow;

use super::{Op, OpRequest, Problem};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::program::Field;
use crate::role::{Role, RoleSet};

/// A tensor of an operation: what it is, its shape and its dtype.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// What the tensor is.
    pub role: Role,
    /// Its name in files, errors and reports.
    pub name: String,
    /// Whether the operation writes it.
    pub is_output: bool,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: DType,
}

impl TensorSpec {
    /// The tensor's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element, as with batch 0.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of a contiguous tensor.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }
}

/// The tensor that `role` is a gradient, a tangent or a second gradient of, through all of them; itself otherwise.
fn primal(role: Role) -> Role {
    match role.gradient_of().or(role.tangent_of()).or(role.second_gradient_of()) {
        Some(of) => primal(of),
        None => role,
    }
}

impl Problem {
    /// Whether this problem has a tensor like `role`: an input or a result of the fused operations, or a gradient or
    /// a tangent of one.
    pub(super) fn has(&self, role: Role) -> bool {
        match primal(role) {
            Role::Query | Role::Key | Role::Value | Role::Output => true,
            Role::Logsumexp => self.has_logsumexp(),
            Role::FinalState => self.program.decay().is_some(),
            Role::Capture(n) => usize::from(n) < self.program.captures().len(),
            role => self.has_input(role),
        }
    }

    /// Whether `role` is an input of the forward pass.
    pub fn has_input(&self, role: Role) -> bool {
        match role {
            Role::Query | Role::Key | Role::Value => true,
            Role::Rpb => self.has_rpb,
            Role::AdditionalKey | Role::AdditionalValue => self.additional > 0,
            Role::InitialState => self.initial_state,
            Role::Capture(n) => self.program.captures_of(&Field::ALL).contains(&n),
            _ => false,
        }
    }

    /// The inputs that an operation needs.
    pub fn inputs_of(&self, op: Op) -> RoleSet {
        let is_primal = |role: Role| match op {
            Op::Forward | Op::ForwardJvp | Op::Backward | Op::BackwardJvp => self.has_input(role),
            Op::Qk | Op::QkJvp | Op::QkBackward => {
                matches!(role, Role::Query | Role::Key | Role::Rpb | Role::AdditionalKey)
                    && self.has_input(role)
            }
            Op::Av | Op::AvJvp | Op::AvBackward => {
                role == Role::Attention
                    || matches!(role, Role::Value | Role::AdditionalValue) && self.has_input(role)
            }
        };
        let more: &[Role] = match op {
            // A recurrence's gradients are computed without its output.
            Op::Backward if self.program.decay().is_some() => &[Role::GradOutput],
            Op::Backward if !self.has_logsumexp() => &[Role::Output, Role::GradOutput],
            Op::Backward => &[Role::Output, Role::Logsumexp, Role::GradOutput],
            Op::BackwardJvp | Op::AvBackward => &[Role::GradOutput],
            Op::QkBackward => &[Role::GradAttention],
            _ => &[],
        };
        Role::ALL.into_iter().filter(|&role| is_primal(role)).chain(more.iter().copied()).collect()
    }

    /// The inputs that an operation takes where they are given, and takes as zero where they are not: cotangents of
    /// the results beside `output`, and the tangents of every input that has one.
    pub fn optional_inputs_of(&self, op: Op) -> RoleSet {
        let is_backward = matches!(op, Op::Backward | Op::BackwardJvp);
        let cotangents = [(Role::GradLogsumexp, Role::Logsumexp), (Role::GradFinalState, Role::FinalState)]
            .into_iter()
            .filter_map(|(cotangent, of)| (is_backward && self.has(of)).then_some(cotangent));
        let mut all: RoleSet = cotangents.collect();
        if op.is_forward_mode() {
            let inputs = self.differentiable_inputs_of(op);
            let tangents = inputs.iter().chain(all.iter()).filter_map(Role::tangent);
            all = tangents.collect::<Vec<_>>().into_iter().fold(all, RoleSet::with);
        }
        all
    }

    /// The inputs of an operation that have tangents: all but integers, and the captured tensors that no derivative
    /// depends on or is asked of.
    fn differentiable_inputs_of(&self, op: Op) -> RoleSet {
        let has_derivative = |role: &Role| match *role {
            Role::Capture(n) => self.program.differentiable_captures().contains(&n),
            role => !matches!(role, Role::Output | Role::Logsumexp),
        };
        self.inputs_of(op).iter().filter(has_derivative).collect()
    }

    /// The results that an operation has, with these optional inputs.
    pub fn results_of(&self, op: Op, given: RoleSet) -> RoleSet {
        let inputs = self.differentiable_inputs_of(op);
        let forward =
            || [Role::Output, Role::Logsumexp, Role::FinalState].into_iter().filter(|&role| self.has(role));
        match op {
            Op::Forward => forward().collect(),
            Op::ForwardJvp => forward().filter_map(Role::tangent).collect(),
            Op::Backward | Op::QkBackward | Op::AvBackward => {
                inputs.iter().filter(|role| role.gradient_of().is_none()).filter_map(Role::gradient).collect()
            }
            Op::BackwardJvp => {
                let cotangents = [Role::GradLogsumexp, Role::GradFinalState].into_iter();
                let cotangents = cotangents.filter(|&role| given.contains(role) && self.has(role));
                inputs.iter().chain(cotangents).filter_map(Role::second_gradient).collect()
            }
            Op::Qk => [Role::Attention].into_iter().collect(),
            Op::QkJvp => [Role::TangentAttention].into_iter().collect(),
            Op::Av => [Role::Output].into_iter().collect(),
            Op::AvJvp => [Role::TangentOutput].into_iter().collect(),
        }
    }

    /// The name of a tensor in files, errors and reports: a captured tensor's is the program's, behind what is
    /// computed of it: `slope`, `grad_slope`, `tangent_slope`, `grad2_slope`.
    pub fn name(&self, role: Role) -> Cow<'static, str> {
        let (prefix, number) = match role {
            Role::Capture(n) => ("", n),
            Role::GradCapture(n) => ("grad_", n),
            Role::TangentCapture(n) => ("tangent_", n),
            Role::Grad2Capture(n) => ("grad2_", n),
            _ => return role.name().into(),
        };
        match self.program.captures().get(usize::from(number)) {
            Some(capture) => format!("{prefix}{}", capture.name).into(),
            None => role.to_string().into(),
        }
    }

    /// The role of a name, where this problem has a tensor of that name: the inverse of [`name`](Self::name).
    pub fn role(&self, name: &str) -> Option<Role> {
        Role::ALL.into_iter().find(|&role| self.name(role) == name)
    }

    /// The shape that a tensor of this problem has; empty where it has no such captured tensor.
    pub fn shape(&self, role: Role) -> Vec<usize> {
        let tokens = |grid: Vec<usize>, rest: &[usize]| [&[self.batch], &grid[..], rest].concat();
        let queries = || self.neighborhood.query_shape();
        let keys = || self.neighborhood.key_shape();
        match primal(role) {
            Role::Query => tokens(queries(), &[self.heads, self.head_dim]),
            Role::Key => tokens(keys(), &[self.heads_kv, self.head_dim]),
            Role::Value => tokens(keys(), &[self.heads_kv, self.head_dim_v]),
            Role::Output => tokens(queries(), &[self.heads, self.head_dim_v]),
            Role::Logsumexp => tokens(queries(), &[self.heads]),
            Role::AdditionalKey => vec![self.batch, self.additional, self.heads_kv, self.head_dim],
            Role::AdditionalValue => vec![self.batch, self.additional, self.heads_kv, self.head_dim_v],
            Role::Rpb => {
                let offsets = self.neighborhood.kernel_size().into_iter().map(|k| k.saturating_mul(2) - 1);
                std::iter::once(self.heads).chain(offsets).collect()
            }
            Role::InitialState | Role::FinalState => {
                vec![self.batch, self.heads, self.head_dim, self.head_dim_v]
            }
            Role::Attention => {
                let slots = self.neighborhood.window_len().saturating_add(self.additional);
                [&[self.batch, self.heads], &queries()[..], &[slots]].concat()
            }
            Role::Capture(n) => {
                self.program.captures().get(usize::from(n)).map_or_else(Vec::new, |c| c.shape.clone())
            }
            // `primal` gives none of the others.
            _ => Vec::new(),
        }
    }

    /// The dtype that a tensor of this problem has.
    pub fn dtype_of(&self, role: Role) -> DType {
        match primal(role) {
            Role::Logsumexp | Role::InitialState | Role::FinalState => self.dtype.accumulator(),
            Role::Capture(n) => self.program.captures().get(usize::from(n)).map_or(self.dtype, |c| c.dtype),
            _ => self.dtype,
        }
    }

    /// That a tensor's bytes fit the address space.
    pub(super) fn check_bytes(&self, role: Role) -> Result<()> {
        let shape = self.shape(role);
        // Zero extents do not hide an overflow of the others: strides are computed from them.
        let bytes = shape
            .iter()
            .filter(|&&extent| extent != 0)
            .try_fold(self.dtype_of(role).size(), |bytes, &extent| bytes.checked_mul(extent))
            .filter(|&bytes| bytes <= isize::MAX as usize);
        match bytes {
            Some(_) => Ok(()),
            None => Err(Error::invalid(
                self.name(role),
                format!("{shape:?}"),
                "its size in bytes overflows the address space",
                "check the shape, or split the work over the batch or the heads",
            )),
        }
    }

    /// Every tensor of an operation: inputs, then the wanted outputs, each in the order of [`Role::ALL`].
    ///
    /// # Errors
    /// [`Error::Invalid`] where nothing is wanted, or something that the operation or the problem does not have;
    /// where an optional input is given that it does not take, or a tangent is wanted and none given; for `qk` and
    /// `av` of a program other than softmax.
    pub fn tensors(&self, request: &OpRequest) -> Result<Vec<TensorSpec>> {
        let op = request.op;
        if request.wants.is_empty() {
            return Err(Error::invalid(
                "wants",
                "empty",
                format!("{op} must be asked for at least one result"),
                "use the request that OpRequest makes for the operation",
            ));
        }
        let results = self.results_of(op, request.given);
        if let Some(role) = request.wants.iter().find(|&role| !results.contains(role)) {
            return Err(Error::invalid(
                "wants",
                self.name(role),
                format!("{op} of this problem has no such result"),
                format!("it has {}", self.names(results)),
            ));
        }
        let optional = self.optional_inputs_of(op);
        if let Some(role) = request.given.iter().find(|&role| !optional.contains(role)) {
            return Err(Error::invalid(
                "given",
                self.name(role),
                format!("{op} of this problem has no such optional input"),
                format!("it has {}", self.names(optional)),
            ));
        }
        if op.is_forward_mode() && !request.given.iter().any(|role| role.tangent_of().is_some()) {
            return Err(Error::invalid(
                "tangents",
                "none",
                format!("{op} needs the tangent of at least one input"),
                format!("give one of {}", self.names(optional)),
            ));
        }
        if op.is_unfused() {
            if !self.program.is_plain_softmax() {
                return Err(Error::invalid(
                    "program",
                    "not plain softmax",
                    format!("{op} leaves everything between the scores and the weights to its caller"),
                    "leave the program out, or use the fused operations",
                ));
            }
            self.check_bytes(Role::Attention)?;
        }
        let inputs = self.inputs_of(op);
        let spec = |role, is_output| TensorSpec {
            role,
            name: self.name(role).into_owned(),
            is_output,
            shape: self.shape(role),
            dtype: self.dtype_of(role),
        };
        let is_input = |role: &Role| inputs.contains(*role) || request.given.contains(*role);
        let inputs = Role::ALL.into_iter().filter(is_input).map(|role| spec(role, false));
        let outputs = request.wants.iter().map(|role| spec(role, true));
        Ok(inputs.chain(outputs).collect())
    }

    fn names(&self, roles: RoleSet) -> String {
        match roles.is_empty() {
            true => "none".to_owned(),
            false => roles.iter().map(|role| self.name(role)).collect::<Vec<_>>().join(", "),
        }
    }
}
