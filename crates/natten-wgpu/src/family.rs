//! The kinds of shaders that a plan's main work may be done by.

use std::fmt;
use std::str::FromStr;

use natten_core::{Error, OpRequest, PlanOptions, Problem, Result};

use crate::render::math::Real;
use crate::target::Target;
use crate::{NAME, matrix, matrix_backward, row, tiled, tiled_backward};

/// The environment variable that names the only family that may be taken.
pub const FAMILY_VARIABLE: &str = "NATTEN_WGPU_FAMILY";

/// A kind of shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Family {
    /// Softmax of f16, forward and backward, by products of matrices that subgroups hold together.
    Matrix,
    /// Forward softmax in register tiles, whose rows lanes of a subgroup work out among them.
    Subgroup,
    /// Softmax, forward and backward, in register tiles.
    Tiled,
    /// Everything.
    Generic,
    /// Plain forward softmax with a query to an invocation, to measure the others against: planners do not take it.
    Row,
}

impl Family {
    /// All of them, in the order in which planners ask them; the first that does everything ends the search.
    pub const ALL: [Self; 5] = [Self::Matrix, Self::Subgroup, Self::Tiled, Self::Generic, Self::Row];

    /// The name in reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Matrix => "matrix",
            Self::Subgroup => "subgroup",
            Self::Tiled => "tiled",
            Self::Generic => "generic",
            Self::Row => "row",
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Family {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL.into_iter().find(|family| family.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            let rule = format!("it must be one of {names}");
            Error::invalid(
                FAMILY_VARIABLE,
                text.escape_debug(),
                rule,
                "leave it out to let the planner choose",
            )
        })
    }
}

/// The family that does an operation, and how it cuts it.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Choice {
    Matrix(matrix::Shape),
    Tiled(tiled::Shape),
    Backward(tiled_backward::Shape),
    MatrixBackward(matrix_backward::Shape),
    Row(row::Shape),
    Generic,
}

impl Choice {
    /// The first family that does the operation.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where only one may be taken, and that one does not do it.
    pub(crate) fn of(
        problem: &Problem,
        request: &OpRequest,
        options: &PlanOptions,
        target: &Target,
        real: Real,
    ) -> Result<Self> {
        let choice = |family| match family {
            // The faster families multiply: see the shaders' `by_scale`.
            _ if family != Family::Generic && problem.scale() == 0.0 => None,
            Family::Matrix => {
                let forward = matrix::Shape::of(problem, request, options, target);
                let backward = || matrix_backward::Shape::of(problem, request, options, target);
                forward.map(Self::Matrix).or_else(|| backward().map(Self::MatrixBackward))
            }
            Family::Subgroup => {
                tiled::Shape::of(problem, request, options, target, real, true).map(Self::Tiled)
            }
            Family::Tiled => {
                let forward = tiled::Shape::of(problem, request, options, target, real, false);
                let backward = || tiled_backward::Shape::of(problem, request, options, target, real);
                forward.map(Self::Tiled).or_else(|| backward().map(Self::Backward))
            }
            Family::Generic => Some(Self::Generic),
            Family::Row => row::Shape::of(problem, request, options, target, real).map(Self::Row),
        };
        match target.family {
            None => Ok(Family::ALL.into_iter().find_map(choice).unwrap_or(Self::Generic)),
            Some(family) => choice(family).ok_or_else(|| {
                let what = format!("{} of {} by {family}", request.op, problem.dtype());
                let why = format!(
                    "it is no operation of the family that {FAMILY_VARIABLE} names, or not on this device"
                );
                Error::unsupported(NAME, what, why)
            }),
        }
    }

    /// The boxes of queries and keys that its main shader walks.
    pub(crate) const fn tiles(&self) -> [[usize; 3]; 2] {
        match self {
            Self::Matrix(matrix::Shape { boxes, .. })
            | Self::Tiled(tiled::Shape { boxes, .. })
            | Self::Row(row::Shape { boxes, .. })
            | Self::Backward(tiled_backward::Shape { of_queries: boxes, .. })
            | Self::MatrixBackward(matrix_backward::Shape { of_queries: boxes, .. }) => {
                [boxes.query_tile, boxes.key_tile]
            }
            Self::Generic => [[1; 3], [usize::MAX; 3]],
        }
    }

    pub(crate) const fn family(&self) -> Family {
        match self {
            Self::Matrix(_) | Self::MatrixBackward(_) => Family::Matrix,
            Self::Tiled(shape) if shape.has_subgroups() => Family::Subgroup,
            Self::Tiled(_) | Self::Backward(_) => Family::Tiled,
            Self::Row(_) => Family::Row,
            Self::Generic => Family::Generic,
        }
    }
}
