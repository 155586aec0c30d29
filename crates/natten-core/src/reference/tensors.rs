//! The oracle's tensors: what an operation gets, widened, and what it gives.

use std::collections::BTreeMap;

use super::function::Captured;
use super::number::Number;
use crate::problem::{Problem, TensorSpec};
use crate::role::Role;
use crate::tensor::{HostSlice, HostTensor};

/// Row-major tensors by role.
#[derive(Debug)]
pub(super) struct Tensors<T>(BTreeMap<Role, Vec<T>>);

impl<T> Default for Tensors<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Number> Tensors<T> {
    pub(super) fn insert(&mut self, role: Role, values: Vec<T>) {
        self.0.insert(role, values);
    }

    /// The tensor; empty where there is none.
    pub(super) fn get(&self, role: Role) -> &[T] {
        self.0.get(&role).map_or(&[], Vec::as_slice)
    }

    /// The numbers of every tensor, each under the role that `name` gives its own.
    pub(super) fn map(self, name: impl Fn(Role) -> Option<Role>, of: impl Fn(T) -> f64) -> Tensors<f64> {
        let named = self.0.into_iter().filter_map(|(role, values)| Some((name(role)?, values)));
        Tensors(named.map(|(role, values)| (role, values.into_iter().map(&of).collect())).collect())
    }

    pub(super) fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// What an operation was given.
#[derive(Debug, Default)]
pub(super) struct Inputs {
    numbers: Tensors<f64>,
    integers: BTreeMap<Role, Vec<i32>>,
}

impl Inputs {
    pub(super) fn insert(&mut self, spec: &TensorSpec, tensor: &HostTensor) {
        match tensor.slice() {
            HostSlice::I32(integers) => _ = self.integers.insert(spec.role, integers.to_vec()),
            _ => self.numbers.insert(spec.role, tensor.to_f64()),
        }
    }

    /// A tensor with its tangents, where it has been given some and `T` carries them; empty where it was not given.
    pub(super) fn get<T: Number>(&self, role: Role) -> Vec<T> {
        let values = self.numbers.get(role);
        match role.tangent().map(|tangent| self.numbers.get(tangent)) {
            Some(tangents) if !tangents.is_empty() => {
                values.iter().zip(tangents).map(|(&value, &tangent)| T::new(value, Some(tangent))).collect()
            }
            _ => values.iter().map(|&value| T::of(value)).collect(),
        }
    }

    /// A tensor of the problem that is zero where it was not given: a cotangent.
    pub(super) fn get_or_zero<T: Number>(&self, problem: &Problem, role: Role) -> Vec<T> {
        if !self.numbers.get(role).is_empty() {
            return self.get(role);
        }
        let zeros = || vec![0.0; problem.shape(role).iter().product()];
        match role.tangent().map(|tangent| self.numbers.get(tangent)) {
            Some(tangents) if !tangents.is_empty() => {
                tangents.iter().map(|&tangent| T::new(0.0, Some(tangent))).collect()
            }
            _ => zeros().into_iter().map(T::of).collect(),
        }
    }

    /// The captured tensors of the problem's program. One that nothing uses was not given, and is empty.
    pub(super) fn captures<T: Number>(&self, problem: &Problem) -> Vec<Captured<T>> {
        (0..problem.program().captures().len() as u8)
            .map(|number| match self.integers.get(&Role::Capture(number)) {
                Some(integers) => Captured::Integers(integers.clone()),
                None => Captured::Numbers(self.get(Role::Capture(number))),
            })
            .collect()
    }
}
