//! From the tensors of a file and the command line to a [`Problem`]: every extent is read off one tensor and checked
//! against all others, and what does not fit is an error that names the tensor, its shape and the rule.

use std::collections::BTreeMap;
use std::fmt::Display;

use natten::geometry::{Alignment, AxisParams, MAX_RANK, Neighborhood};
use natten::{DType, Error, HostTensor, OpRequest, Problem, Result, Role, check_tensor, contiguous_strides};

use super::args::{Corner, RunArgs};
use crate::console;

/// The tensors of a run, by what they are.
pub(super) type Inputs = BTreeMap<Role, HostTensor>;

/// Describes the attention that the arguments and the tensors ask for.
///
/// # Errors
/// [`Error::Invalid`] where they do not fit each other.
pub(super) fn describe(args: &RunArgs, inputs: &Inputs, dtype: DType) -> Result<Problem> {
    let shapes = Shapes::read(args, inputs)?;
    let neighborhood = if args.full { full(args, &shapes)? } else { window(args, &shapes)? };
    Problem::builder(neighborhood, dtype)
        .batch(shapes.query[0])
        .heads(shapes.heads)
        .heads_kv(shapes.heads_kv)
        .head_dim(shapes.head_dim)
        .head_dim_v(shapes.head_dim_v)
        .additional_tokens(shapes.additional)
        .relative_positional_bias(shapes.has_rpb)
        .scale(args.scale)
        .build()
}

/// Checks the inputs of an operation against the problem.
///
/// # Errors
/// [`Error::Invalid`] where a shape or a dtype is not the problem's.
pub(super) fn check(problem: &Problem, request: &OpRequest, inputs: &Inputs) -> Result<()> {
    for spec in problem.tensors(request)? {
        if let Some(tensor) = inputs.get(&spec.role) {
            check_tensor(&spec, tensor.shape(), tensor.dtype(), &contiguous_strides(tensor.shape()))?;
        }
    }
    Ok(())
}

/// The extents that the tensors were given with. Those that must agree with another tensor's are not here.
struct Shapes {
    query: Vec<usize>,
    key: Vec<usize>,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    head_dim_v: usize,
    additional: usize,
    has_rpb: bool,
}

impl Shapes {
    fn read(args: &RunArgs, inputs: &Inputs) -> Result<Self> {
        let shape = |role: Role| inputs.get(&role).map(HostTensor::shape);
        let required = |role: Role| shape(role).ok_or_else(|| missing(role, "every operation needs it"));
        let (query, key, value) = (required(Role::Query)?, required(Role::Key)?, required(Role::Value)?);
        let most = if args.full { 1 } else { MAX_RANK };
        if !(4..=3 + most).contains(&query.len()) {
            let (axes, hint) = if args.full {
                ("one token axis", "fold the token axes into one for --full")
            } else {
                ("one to three token axes", "add a batch axis of 1 in front if it is missing")
            };
            return Err(broken(
                Role::Query,
                query,
                format!("it must be [batch, tokens…, heads, head_dim] with {axes}"),
                hint,
            ));
        }
        for (role, shape) in [(Role::Key, key), (Role::Value, value)] {
            if shape.len() != query.len() {
                return Err(broken(
                    role,
                    shape,
                    format!("it must have as many axes as query, which is {query:?}"),
                    "layouts are heads-last, [batch, tokens…, heads, head_dim]",
                ));
            }
        }
        let additional = shape(Role::AdditionalKey);
        if let Some(shape) = additional
            && shape.len() != 4
        {
            return Err(broken(
                Role::AdditionalKey,
                shape,
                "it must be [batch, additional tokens, key heads, head_dim]".to_owned(),
                "keep one axis of additional tokens",
            ));
        }
        let named = [(Role::Query, Some(query)), (Role::Key, Some(key)), (Role::Value, Some(value))];
        for (role, shape) in named.into_iter().chain([(Role::AdditionalKey, additional)]) {
            if let Some(shape) = shape
                && shape[1..].contains(&0)
            {
                return Err(broken(
                    role,
                    shape,
                    "only the batch may be 0".to_owned(),
                    "give every other axis an extent of at least 1, or leave an optional tensor out",
                ));
            }
        }
        let heads_axis = query.len() - 2;
        let (heads, heads_kv) = (query[heads_axis], key[heads_axis]);
        if !heads.is_multiple_of(heads_kv) {
            return Err(broken(
                Role::Key,
                key,
                format!("its {heads_kv} heads must divide the {heads} heads of query"),
                "repeat or drop key and value heads until they divide",
            ));
        }
        Ok(Self {
            heads,
            heads_kv,
            head_dim: query[heads_axis + 1],
            head_dim_v: value[heads_axis + 1],
            additional: additional.map_or(0, |shape| shape[1]),
            has_rpb: shape(Role::Rpb).is_some(),
            query: query.to_vec(),
            key: key.to_vec(),
        })
    }
}

/// The error of a tensor that the file does not have.
pub(super) fn missing(role: Role, why: &str) -> Error {
    Error::invalid(role.name(), "missing", why, "add this tensor to the input file")
}

fn broken(role: Role, shape: &[usize], rule: String, hint: &'static str) -> Error {
    Error::invalid(role.name(), format!("{shape:?}"), rule, hint)
}

fn full(args: &RunArgs, shapes: &Shapes) -> Result<Neighborhood> {
    let alignment = match args.align {
        None | Some(Corner::TopLeft) => Alignment::TopLeft,
        Some(Corner::BottomRight) => Alignment::BottomRight,
    };
    let is_causal = per_axis("causal", &args.causal, 1, false)?[0];
    Neighborhood::full(shapes.query[1], shapes.key[1], is_causal.then_some(alignment))
}

fn window(args: &RunArgs, shapes: &Shapes) -> Result<Neighborhood> {
    let lens = &shapes.query[1..shapes.query.len() - 2];
    let kernel_size = per_axis("kernel_size", &args.kernel_size, lens.len(), 1)?;
    let stride = per_axis("stride", &args.stride, lens.len(), 1)?;
    let dilation = per_axis("dilation", &args.dilation, lens.len(), 1)?;
    let is_causal = per_axis("causal", &args.causal, lens.len(), false)?;
    let params: Vec<AxisParams> = (0..lens.len())
        .map(|axis| {
            AxisParams::new(lens[axis], kernel_size[axis])
                .stride(stride[axis])
                .dilation(dilation[axis])
                .causal(is_causal[axis])
        })
        .collect();
    if !args.fit {
        return Neighborhood::new(&params);
    }
    let fitted = Neighborhood::fit(&params, shapes.has_rpb)?;
    let changed = fitted.user_axes().iter().zip(&params).any(|(axis, given)| axis.params() != Some(*given));
    if changed {
        console::note(&format!("--fit made the window smaller: {fitted}"));
    }
    Ok(fitted)
}

/// One value an axis: as given, or the one that is given for all, or the default where none is.
fn per_axis<T: Copy + Display>(name: &'static str, given: &[T], rank: usize, default: T) -> Result<Vec<T>> {
    match given {
        [] => Ok(vec![default; rank]),
        [one] => Ok(vec![*one; rank]),
        values if values.len() == rank => Ok(values.to_vec()),
        values => Err(Error::invalid(
            name,
            values.iter().map(T::to_string).collect::<Vec<_>>().join(","),
            format!("query has {rank} token {}", if rank == 1 { "axis" } else { "axes" }),
            "give one value an axis, or one for all axes",
        )),
    }
}
