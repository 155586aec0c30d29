//! From the tensors of a file and the command line to a [`Problem`]: every extent is read off one tensor and checked
//! against all others, and what does not fit is an error that names the tensor, its shape and the rule.

use std::fmt::Display;

use natten::geometry::{Alignment, AxisParams, MAX_RANK, Neighborhood};
use natten::program::Program;
use natten::{DType, Error, Problem, Result, Role};

use super::args::{Corner, RunArgs};
use super::inputs::Inputs;
use crate::console;

/// Describes the attention that the arguments and the tensors ask for.
///
/// # Errors
/// [`Error::Invalid`] where they do not fit each other.
pub(super) fn describe(args: &RunArgs, inputs: &Inputs, dtype: DType, program: Program) -> Result<Problem> {
    let shapes = Shapes::read(args, inputs)?;
    if args.full && shapes.has_rpb {
        return Err(Error::invalid(
            "rpb",
            "given",
            "a relative positional bias needs a window, and --full has none",
            "leave it out of the file, or use a --kernel-size that spans the axis",
        ));
    }
    let neighborhood = if args.full { full(args, &shapes)? } else { window(args, &shapes)? };
    let is_sequence = args.full && neighborhood.axes()[0].is_causal();
    if program.decay().is_some() && !is_sequence {
        return Err(Error::invalid(
            "decay",
            "given",
            "a recurrence runs over one sequence, causal and without a window",
            "add --full --causal true",
        ));
    }
    Problem::builder(neighborhood, dtype)
        .batch(shapes.batch)
        .heads(shapes.heads)
        .heads_kv(shapes.heads_kv)
        .head_dim(shapes.head_dim)
        .head_dim_v(shapes.head_dim_v)
        .additional_tokens(shapes.additional)
        .relative_positional_bias(shapes.has_rpb)
        .initial_state(inputs.contains_key(&Role::InitialState))
        .scale(args.scale)
        .program(program)
        .build()
}

/// The number of token axes.
///
/// # Errors
/// [`Error::Invalid`] where there is a number of them that no attention has.
pub(super) fn rank(args: &RunArgs, inputs: &Inputs) -> Result<usize> {
    Shapes::read(args, inputs).map(|shapes| shapes.queries.len())
}

/// The extents that the tensors were given with. Those that must agree with another tensor's are not here.
struct Shapes {
    batch: usize,
    queries: Vec<usize>,
    keys: Vec<usize>,
    heads: usize,
    heads_kv: usize,
    head_dim: usize,
    head_dim_v: usize,
    additional: usize,
    has_rpb: bool,
}

impl Shapes {
    fn read(args: &RunArgs, inputs: &Inputs) -> Result<Self> {
        let shape = |role: Role| inputs.get(&role).map(|tensor| (role, tensor.shape()));
        let (query, key, value) = (shape(Role::Query), shape(Role::Key), shape(Role::Value));
        // Every operation needs one of the two, and its layout is what tells the token grid.
        let first = query.or(shape(Role::Attention));
        let second = key.or(value);
        let (Some((of, queries)), Some((_, keys))) = (first, second) else {
            return Err(Error::invalid("query", "missing", "every operation needs it", "add this tensor to the input file"));
        };
        let most = if args.full { 1 } else { MAX_RANK };
        let layout = if of == Role::Query { QUERY_LAYOUT } else { ATTENTION_LAYOUT };
        if !(4..=3 + most).contains(&queries.len()) {
            let (axes, hint) = if args.full {
                ("one token axis", "fold the token axes into one for --full")
            } else {
                ("one to three token axes", "add a batch axis of 1 in front if it is missing")
            };
            return Err(broken(of, queries, format!("it must be {layout} with {axes}"), hint));
        }
        for (role, shape) in [key, value, shape(Role::Attention)].into_iter().flatten() {
            if shape.len() != queries.len() {
                return Err(broken(
                    role,
                    shape,
                    format!("it must have as many axes as {of}, which is {queries:?}"),
                    "layouts are heads-last, [batch, tokens…, heads, head_dim], but for attention, which is heads-first",
                ));
            }
        }
        let additional = shape(Role::AdditionalKey).or(shape(Role::AdditionalValue));
        if let Some((role, shape)) = additional
            && shape.len() != 4
        {
            return Err(broken(
                role,
                shape,
                "it must be [batch, additional tokens, key heads, head_dim]".to_owned(),
                "keep one axis of additional tokens",
            ));
        }
        for (role, shape) in [first, key, value, additional].into_iter().flatten() {
            if shape[1..].contains(&0) {
                return Err(broken(
                    role,
                    shape,
                    "only the batch may be 0".to_owned(),
                    "give every other axis an extent of at least 1, or leave an optional tensor out",
                ));
            }
        }
        let end = queries.len() - 1;
        let (heads, grid) = if of == Role::Query {
            (queries[end - 1], &queries[1..end - 1])
        } else {
            (queries[1], &queries[2..end])
        };
        let heads_kv = keys[end - 1];
        if !heads.is_multiple_of(heads_kv) {
            return Err(broken(
                second.map_or(Role::Key, |(role, _)| role),
                keys,
                format!("its {heads_kv} heads must divide the {heads} heads of {of}"),
                "repeat or drop key and value heads until they divide",
            ));
        }
        let head_dim = query.map_or(1, |(_, shape)| shape[end]);
        Ok(Self {
            batch: queries[0],
            queries: grid.to_vec(),
            keys: keys[1..end - 1].to_vec(),
            heads,
            heads_kv,
            head_dim,
            head_dim_v: value.map_or(head_dim, |(_, shape)| shape[end]),
            additional: additional.map_or(0, |(_, shape)| shape[1]),
            has_rpb: inputs.contains_key(&Role::Rpb),
        })
    }
}

const QUERY_LAYOUT: &str = "[batch, tokens…, heads, head_dim]";
const ATTENTION_LAYOUT: &str = "[batch, heads, tokens…, window + additional tokens]";

fn broken(role: Role, shape: &[usize], rule: String, hint: &'static str) -> Error {
    Error::invalid(role.name(), format!("{shape:?}"), rule, hint)
}

fn full(args: &RunArgs, shapes: &Shapes) -> Result<Neighborhood> {
    let alignment = match args.align {
        None | Some(Corner::TopLeft) => Alignment::TopLeft,
        Some(Corner::BottomRight) => Alignment::BottomRight,
    };
    let is_causal = per_axis("causal", &args.causal, 1, false)?[0];
    Neighborhood::full(shapes.queries[0], shapes.keys[0], is_causal.then_some(alignment))
}

fn window(args: &RunArgs, shapes: &Shapes) -> Result<Neighborhood> {
    let lens = &shapes.queries;
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
            format!("the input has {rank} token {}", if rank == 1 { "axis" } else { "axes" }),
            "give one value an axis, or one for all axes",
        )),
    }
}
