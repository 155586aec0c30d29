//! What a plan does, without a device: WGSL texts, what each binds, how many workgroups it takes. The same sequence is
//! run through wgpu, checked by naga in tests, and written out for a page to run.

use std::collections::BTreeMap;

use natten_core::{Role, TensorSpec};

/// Invocations of a workgroup of the shaders that need no others beside them.
pub(crate) const WORKGROUP: u32 = 64;

/// What a shader binds, by number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Binding {
    /// The arena, to read and write.
    Arena,
    /// Captured tensors of integers, one behind the other.
    Integers {
        /// Whether the shader writes it.
        is_written: bool,
    },
    /// A tensor of the caller, as it lies in memory.
    Tensor {
        /// Which one.
        role: Role,
        /// Whether the shader writes it.
        is_written: bool,
    },
    /// Vectors of f16 in rows: see [`Packed`].
    Packed {
        /// Which.
        role: Role,
        /// Whether the shader writes them.
        is_written: bool,
    },
    /// How the tensor of this step lies in memory: see [`convert`](crate::generic::convert).
    Parameters {
        /// The tensor.
        role: Role,
        /// The first element in the arena, or among the integers.
        at: u32,
    },
}

/// A part of a problem: some of its batch entries and heads. What it takes of a tensor, of those that it does not take
/// whole: an axis, where it begins there, and how far it goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Part(pub(crate) BTreeMap<Role, Vec<Cut>>);

/// What is taken along an axis: its number, the first element, and how many.
pub(crate) type Cut = (usize, usize, usize);

impl Part {
    /// What is taken of a tensor.
    pub(crate) fn cuts(&self, role: Role) -> &[Cut] {
        self.0.get(&role).map_or(&[], Vec::as_slice)
    }
}

/// A step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// What follows is of this part of the tensors. Without one it is of all.
    Begin(Part),
    /// Sets elements of the arena to zero.
    Clear {
        /// The first element.
        at: u64,
        /// Elements.
        len: u64,
    },
    /// Runs a shader.
    Run(Run),
}

/// A shader to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// What it does, for reports and errors.
    pub(crate) label: String,
    /// The text; its entry point is `main`.
    pub(crate) source: String,
    /// What it binds, all in group 0, numbered from 0.
    pub(crate) bindings: Vec<Binding>,
    /// Workgroups an axis.
    pub(crate) workgroups: [u32; 3],
}

impl Run {
    /// The packed vectors that this step only copies from a tensor or to it.
    pub(crate) fn copies(&self) -> Option<Role> {
        match self.bindings[..] {
            [Binding::Tensor { .. }, Binding::Packed { role, .. }, ..] => Some(role),
            _ => None,
        }
    }
}

/// Vectors of f16, one behind the other, each padded with zeros, in a buffer of their own. Where a run finds the tensor
/// itself like this, it is bound in their place, and the steps between the two are left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packed {
    /// The tensor; additional tokens lie behind its own.
    pub(crate) role: Role,
    /// Numbers of a vector.
    pub(crate) dim: u64,
    /// The same, padded.
    pub(crate) dims: u64,
    pub(crate) vectors: u64,
    /// Whether the tensor may take their place: there is no padding, and nothing else among them.
    pub(crate) may_be_direct: bool,
}

impl Packed {
    /// Their size.
    pub(crate) const fn bytes(&self) -> u64 {
        self.vectors * self.dims * 2
    }
}

/// A plan's work.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    /// The family of its main shaders.
    pub(crate) family: &'static str,
    /// Bytes of an element of the arena.
    pub(crate) element: u64,
    /// Elements of the arena.
    pub(crate) arena: u64,
    /// Elements of all captured tensors of integers.
    pub(crate) integers: u64,
    /// The tensors that shaders take packed.
    pub(crate) packed: Vec<Packed>,
    /// What is done, in order.
    pub(crate) steps: Vec<Step>,
    /// The tensors of the caller, whole.
    pub(crate) tensors: Vec<TensorSpec>,
    /// The query and key boxes that its main shader walks, on the three padded axes.
    pub(crate) tiles: [[usize; 3]; 2],
}

impl Sequence {
    /// The shaders.
    pub(crate) fn runs(&self) -> impl Iterator<Item = &Run> {
        self.steps.iter().filter_map(|step| match step {
            Step::Run(run) => Some(run),
            Step::Begin(_) | Step::Clear { .. } => None,
        })
    }
}

/// Workgroups for so many invocations, spread over two axes where one is not enough: shaders put them together again by
/// `num_workgroups`.
pub(crate) fn workgroups(invocations: u64, most: u32) -> [u32; 3] {
    let groups = invocations.div_ceil(u64::from(WORKGROUP));
    let most = u64::from(most);
    let rows = groups.div_ceil(most).max(1);
    [groups.div_ceil(rows) as u32, rows as u32, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workgroups_cover_all_invocations() {
        for count in [0, 1, 64, 65, 65535 * 64, 65535 * 64 + 1, 1 << 31] {
            let [x, y, z] = workgroups(count, 65535);
            assert!(x <= 65535 && y <= 65535 && z == 1);
            assert!(u64::from(x) * u64::from(y) * 64 >= count, "{count}");
        }
        assert_eq!(workgroups(0, 65535)[0], 0);
    }
}
