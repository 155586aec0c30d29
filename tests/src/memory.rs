//! How tensors lie in memory: places numbers in a backend's memory in some order, and takes them back.

use std::sync::Arc;

use natten_core::{Backend, Error, HostTensor, Queue, Result, Role, Tensor};

/// How inputs and outputs lie in memory. Backends take strided views, so results may not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Layout {
    /// Contiguous `[B, *X, H, D]`.
    #[default]
    HeadsLast,
    /// A permuted view of contiguous `[B, H, *X, D]`, as other libraries keep tensors.
    HeadsFirst,
    /// A permuted view of contiguous `[D, H, …, B]`: the elements of a vector are far apart.
    Reversed,
    /// Contiguous vectors with gaps of NaN before and after each vector, row and plane, none of it aligned. Only in host
    /// memory: no device tensor can be made with gaps.
    Gapped,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Self; 4] = [Self::HeadsLast, Self::HeadsFirst, Self::Reversed, Self::Gapped];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HeadsLast => "heads-last",
            Self::HeadsFirst => "heads-first",
            Self::Reversed => "reversed",
            Self::Gapped => "gapped",
        }
    }

    /// The tensor's axes in the order that memory has them in, outermost first.
    fn order(self, role: Role, rank: usize) -> Vec<usize> {
        match self {
            Self::HeadsLast | Self::Gapped => (0..rank).collect(),
            Self::Reversed => (0..rank).rev().collect(),
            Self::HeadsFirst => {
                let heads = match primal(role) {
                    // Without a heads axis behind the tokens, or with the heads first already.
                    Role::Rpb
                    | Role::Capture(_)
                    | Role::Attention
                    | Role::InitialState
                    | Role::FinalState => {
                        return (0..rank).collect();
                    }
                    Role::Logsumexp => rank - 1,
                    _ => rank - 2,
                };
                [0, heads].into_iter().chain((1..rank).filter(|&axis| axis != heads)).collect()
            }
        }
    }

    /// Puts a tensor into the backend's memory in this layout.
    ///
    /// # Errors
    /// As [`Backend::upload`]; [`Error::Unsupported`] for gaps where tensors are not in host memory.
    pub(crate) fn place(
        self,
        backend: &dyn Backend,
        queue: &dyn Queue,
        role: Role,
        host: &HostTensor,
    ) -> Result<Tensor> {
        if self == Self::HeadsLast {
            return backend.upload(queue, host.clone());
        }
        let order = self.order(role, host.shape().len());
        let stored = Tensor::from(host.clone()).permute(&order)?.to_host()?;
        let uploaded = backend.upload(queue, stored)?;
        if self == Self::Gapped {
            return match uploaded.storage().host() {
                Some(_) => with_gaps(host),
                None => Err(Error::unsupported(
                    backend.device().backend,
                    "a tensor with gaps",
                    "its tensors are not in host memory, and only there can the suite make gaps",
                )),
            };
        }
        let mut inverse = vec![0; order.len()];
        for (stored, &axis) in order.iter().enumerate() {
            inverse[axis] = stored;
        }
        uploaded.permute(&inverse)
    }
}

/// The tensor that `role` is a gradient, a tangent or a second gradient of; itself otherwise.
fn primal(role: Role) -> Role {
    match role.gradient_of().or(role.tangent_of()).or(role.second_gradient_of()) {
        Some(of) => primal(of),
        None => role,
    }
}

/// The elements before the first, and after the last of each axis, that a gapped tensor leaves NaN.
const GAP: usize = 3;

fn with_gaps(host: &HostTensor) -> Result<Tensor> {
    let shape = host.shape();
    let mut strides = vec![1isize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis] * (shape[axis] + GAP) as isize;
    }
    let padded: usize = shape.iter().map(|extent| extent + GAP).product();
    let mut storage = HostTensor::from_fn(host.dtype(), &[GAP + padded], |_| f64::NAN)?;
    let view = Tensor::view(Arc::new(storage.clone()), shape, &strides, GAP)?;
    let mut elements = storage.slice_mut();
    for index in 0..host.len() {
        elements.set(view.element(index), host.slice().get(index));
    }
    Tensor::view(Arc::new(storage), shape, &strides, GAP)
}

/// Whether every element of the storage that the view does not show is still NaN.
pub(crate) fn gaps_are_intact(tensor: &Tensor) -> bool {
    let Some(elements) = tensor.storage().host() else {
        return true;
    };
    let mut shown = vec![false; elements.len()];
    for index in 0..tensor.len() {
        shown[tensor.element(index)] = true;
    }
    (0..elements.len()).all(|element| shown[element] || elements.get(element).is_nan())
}

#[cfg(test)]
mod tests {
    use natten_core::DType;
    use natten_core::reference::ReferenceBackend;

    use super::*;

    #[test]
    fn layouts_hold_the_same_numbers() {
        let backend = ReferenceBackend::new();
        let queue = backend.queue().unwrap();
        let host = HostTensor::from_fn(DType::F32, &[2, 3, 4, 5], |i| i as f64).unwrap();
        for (layout, strides) in [
            (Layout::HeadsLast, [60, 20, 5, 1]),
            (Layout::HeadsFirst, [60, 5, 15, 1]),
            (Layout::Reversed, [1, 2, 6, 24]),
            (Layout::Gapped, [6 * 7 * 8, 7 * 8, 8, 1]),
        ] {
            let placed = layout.place(&backend, &*queue, Role::Query, &host).unwrap();
            assert_eq!(placed.strides(), strides);
            assert_eq!(placed.to_host().unwrap(), host);
        }
        let rows = HostTensor::zeros(DType::F32, &[2, 3, 4]).unwrap();
        let placed = Layout::HeadsFirst.place(&backend, &*queue, Role::Logsumexp, &rows).unwrap();
        assert_eq!(placed.strides(), [12, 1, 3]);
    }

    #[test]
    fn writing_into_a_gap_is_seen() {
        let host = HostTensor::zeros(DType::F32, &[2, 3]).unwrap();
        let mut placed = with_gaps(&host).unwrap();
        assert!(gaps_are_intact(&placed));
        let gap = placed.element(2) + 1;
        placed.storage_mut().unwrap().host_mut().unwrap().set(gap, 0.0);
        assert!(!gaps_are_intact(&placed));
    }
}
