//! The kernel IR: tensors in HBM, SBUF and PSUM, views of them, static loops, and one operation for each instruction of
//! the machine, with the engine that runs it written down. Nothing in a kernel depends on data, so unrolling it gives
//! the one list of instructions that the verifier, the allocator, the simulator and the printers all see.

mod op;

pub use self::op::{Alu, Engine, Function, Instr, Op, Operand};
use crate::dtype::Dtype;

/// Partitions of SBUF and PSUM: the largest first dimension.
pub const PARTITIONS: usize = 128;
/// The most columns of a moving operand: one PSUM bank of f32.
pub const MOVING_MAX: usize = 512;
/// The most (stride, count) pairs of a view's free dimensions.
pub const MAX_FREE_DIMS: usize = 4;

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Space {
    /// Device memory that the launcher fills before the kernel.
    Input,
    /// Device memory that the kernel fills.
    Output,
    /// The state buffer: 128 partitions.
    Sbuf,
    /// The accumulators of the tensor engine: 128 partitions of 8 banks.
    Psum,
}

impl Space {
    /// Whether this is device memory, which only DMA reaches.
    pub const fn is_hbm(self) -> bool {
        matches!(self, Self::Input | Self::Output)
    }

    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Input | Self::Output => "shared_hbm",
            Self::Sbuf => "sbuf",
            Self::Psum => "psum",
        }
    }
}

/// The number of a tensor in its kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// A tensor. In SBUF and PSUM the first extent is partitions.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// A Python identifier, unique in the kernel.
    pub name: String,
    /// Where it lies.
    pub space: Space,
    /// Its extents.
    pub shape: Vec<usize>,
    /// Its element type.
    pub dtype: Dtype,
}

impl Tensor {
    /// Elements a partition; of HBM tensors all elements.
    pub fn free_len(&self) -> usize {
        let skip = usize::from(!self.space.is_hbm());
        self.shape.iter().skip(skip).product()
    }

    /// Bytes a partition; of HBM tensors all bytes.
    pub fn free_bytes(&self) -> usize {
        self.free_len() * self.dtype.size()
    }
}

/// A loop variable, by its depth.
pub type Var = usize;

/// A sum of loop variables with whole factors.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Affine {
    /// The constant.
    pub base: usize,
    /// Factors of loop variables.
    pub terms: Vec<(Var, usize)>,
}

impl Affine {
    /// The value, with the values of the loop variables by depth.
    pub fn at(&self, vars: &[usize]) -> usize {
        self.base + self.terms.iter().map(|&(var, factor)| factor * vars[var]).sum::<usize>()
    }

    /// The largest value, with the trip counts of the loops by depth.
    pub fn max(&self, counts: &[usize]) -> usize {
        self.base
            + self.terms.iter().map(|&(var, factor)| factor * counts[var].saturating_sub(1)).sum::<usize>()
    }
}

impl From<usize> for Affine {
    fn from(base: usize) -> Self {
        Self { base, terms: Vec::new() }
    }
}

/// A part of a tensor: a range of partitions, and of each the same elements. Of an HBM tensor one "partition" of all
/// elements, read in the order of the pairs.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The tensor.
    pub tensor: TensorId,
    /// The first partition.
    pub part: usize,
    /// Partitions.
    pub parts: usize,
    /// The first element of the free dimensions.
    pub offset: Affine,
    /// (stride, count) pairs, outermost first, in elements.
    pub ap: Vec<(usize, usize)>,
}

impl View {
    /// Elements a partition.
    pub fn len(&self) -> usize {
        self.ap.iter().map(|&(_, count)| count).product()
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 || self.parts == 0
    }

    /// The place of the last element, counted from the first.
    pub fn reach(&self) -> usize {
        self.ap.iter().map(|&(stride, count)| stride * count.saturating_sub(1)).sum()
    }

    /// Elements that lie one behind the other at the end of the pattern.
    pub fn run(&self) -> usize {
        let mut run = 1;
        for &(stride, count) in self.ap.iter().rev() {
            if count == 1 {
                continue;
            }
            if stride != run {
                break;
            }
            run *= count;
        }
        run
    }

    /// Calls `f` with the place of every run of elements: first element, stride, count.
    pub fn runs(&self, vars: &[usize], mut f: impl FnMut(usize, usize, usize)) {
        fn walk(ap: &[(usize, usize)], base: usize, f: &mut impl FnMut(usize, usize, usize)) {
            match ap {
                [] => f(base, 1, 1),
                [(stride, count)] => f(base, *stride, *count),
                [(stride, count), rest @ ..] => {
                    for i in 0..*count {
                        walk(rest, base + i * stride, f);
                    }
                }
            }
        }
        walk(&self.ap, self.offset.at(vars), &mut f);
    }

    /// The first `count` of its partitions.
    #[must_use]
    pub fn first_parts(&self, count: usize) -> Self {
        Self { parts: count, ..self.clone() }
    }

    /// Columns `start..start + len` of a view of one contiguous run.
    #[must_use]
    pub fn columns(&self, start: usize, len: usize) -> Self {
        debug_assert!(self.ap.len() == 1, "columns of a run");
        let stride = self.ap[0].0;
        let offset = Affine { base: self.offset.base + start * stride, terms: self.offset.terms.clone() };
        Self { offset, ap: vec![(stride, len)], ..self.clone() }
    }
}

/// A statement.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "nearly all are instructions")]
pub enum Stmt {
    /// A static loop. Its variable is its depth.
    For {
        /// Trips.
        count: usize,
        /// The body.
        body: Vec<Stmt>,
    },
    /// An instruction.
    Instr(Instr),
}

/// A kernel.
#[derive(Clone, Debug, PartialEq)]
pub struct Kernel {
    /// A Python identifier.
    pub name: String,
    /// Every tensor, inputs and outputs in the order of the kernel's arguments and results.
    pub tensors: Vec<Tensor>,
    /// What it does.
    pub body: Vec<Stmt>,
}

impl Kernel {
    /// The tensor of a view.
    pub fn tensor(&self, id: TensorId) -> &Tensor {
        &self.tensors[id.0]
    }

    /// Calls `f` with every instruction in order, loops unrolled, and the values of the loop variables.
    pub fn for_each<'a, E>(
        &'a self,
        mut f: impl FnMut(&'a Instr, &[usize]) -> Result<(), E>,
    ) -> Result<(), E> {
        fn walk<'a, E>(
            body: &'a [Stmt],
            vars: &mut Vec<usize>,
            f: &mut impl FnMut(&'a Instr, &[usize]) -> Result<(), E>,
        ) -> Result<(), E> {
            for stmt in body {
                match stmt {
                    Stmt::Instr(instr) => f(instr, vars)?,
                    Stmt::For { count, body } => {
                        for i in 0..*count {
                            vars.push(i);
                            walk(body, vars, f)?;
                            vars.pop();
                        }
                    }
                }
            }
            Ok(())
        }
        walk(&self.body, &mut Vec::new(), &mut f)
    }

    /// Instructions, loops unrolled.
    pub fn instructions(&self) -> usize {
        fn count(body: &[Stmt]) -> usize {
            body.iter()
                .map(|stmt| match stmt {
                    Stmt::Instr(_) => 1,
                    Stmt::For { count: trips, body } => trips * count(body),
                })
                .sum()
        }
        count(&self.body)
    }
}
