//! A problem's sizes and windows as WGSL: what [`Axis::window`] and [`Axis::queries_of`] answer, with the axis' numbers
//! filled in.

use std::fmt::Write;

use natten_core::Problem;
use natten_core::geometry::{Alignment, Axis};

/// Declarations of a problem's sizes.
pub(super) fn sizes(problem: &Problem) -> String {
    let neighborhood = problem.neighborhood();
    let axes = neighborhood.axes();
    let queries: usize = axes.iter().map(Axis::query_len).product();
    let keys: usize = axes.iter().map(Axis::key_len).product();
    let mut text = String::new();
    for (name, value) in [
        ("BATCH", problem.batch()),
        ("HEADS", problem.heads()),
        ("HEADS_KV", problem.heads_kv()),
        ("PER_KV", problem.heads_per_kv()),
        ("ADDITIONAL", problem.additional_tokens()),
        ("QUERIES", queries),
        ("KEYS", keys),
        (
            "SLOTS",
            neighborhood.window_len().saturating_add(problem.additional_tokens()).min(i32::MAX as usize),
        ),
    ] {
        let _ = writeln!(text, "const {name}: i32 = {value};");
    }
    for (name, value) in [
        ("DIM", problem.head_dim()),
        ("DIM_V", problem.head_dim_v()),
        ("ROWS", problem.batch() * problem.heads() * queries),
        ("KEY_VECTORS", problem.batch() * problem.heads_kv() * (keys + problem.additional_tokens())),
        ("STAGES", problem.program().row().stages.len().max(1)),
    ] {
        let _ = writeln!(text, "const {name}: u32 = {value}u;");
    }
    for (name, of) in [
        ("QUERY_SHAPE", Axis::query_len as fn(&Axis) -> usize),
        ("KEY_SHAPE", Axis::key_len),
        ("DILATION", Axis::dilation),
        ("WINDOW", Axis::window_len),
    ] {
        let [x, y, z] = axes.each_ref().map(of);
        let _ = writeln!(text, "const {name}: vec3<i32> = vec3<i32>({x}, {y}, {z});");
    }
    text
}

/// The functions `window_0` to `window_2` and `queries_of_0` to `queries_of_2`.
pub(super) fn windows(problem: &Problem) -> String {
    problem
        .neighborhood()
        .axes()
        .iter()
        .enumerate()
        .map(|(a, axis)| window(a, axis) + &viewers(a, axis))
        .collect()
}

fn window(a: usize, axis: &Axis) -> String {
    let (queries, keys, dilation) = (axis.query_len(), axis.key_len(), axis.dilation());
    let body = match (axis.params(), axis.alignment()) {
        (None, None) => format!("    return vec2<i32>(0, {keys});\n"),
        (None, Some(Alignment::TopLeft)) => format!("    return vec2<i32>(0, min(position + 1, {keys}));\n"),
        (None, Some(_)) => {
            format!("    return vec2<i32>(0, clamp(position + 1 + {keys} - {queries}, 0, {keys}));\n")
        }
        (Some(params), _) => {
            let (kernel, stride) = (params.kernel_size, params.stride);
            let group = format!(
                "    let last = ({keys} - group + {dilation} - 1) / {dilation} - 1;\n    \
                 let block = position / {stride} * {stride};\n"
            );
            let span = match params.is_causal {
                true => format!(
                    "    return vec2<i32>(max(min(block + {stride} - 1, last) + 1 - {kernel}, 0), position + 1);\n"
                ),
                false => format!(
                    "    let start = min(max(min(block + {stride} / 2, last) - {kernel} / 2, 0), last + 1 - {kernel});\n    \
                     return vec2<i32>(start, start + {kernel});\n"
                ),
            };
            group + &span
        }
    };
    format!("fn window_{a}(group: i32, position: i32) -> vec2<i32> {{\n{body}}}\n")
}

fn viewers(a: usize, axis: &Axis) -> String {
    let (queries, keys, dilation) = (axis.query_len(), axis.key_len(), axis.dilation());
    let (first, span) = match (axis.params(), axis.alignment()) {
        (Some(params), _) => {
            let (kernel, stride) = (params.kernel_size, params.stride);
            let (reach, offset) = match params.is_causal {
                true => (format!("{kernel} - 1"), format!("{stride} - 1")),
                false => (format!("{kernel} / 2"), format!("{stride} / 2")),
            };
            let first = format!(
                "    if (key == 0) {{ return 0; }}\n    \
                 if (key > max(len - {kernel}, 0)) {{ return len; }}\n    \
                 let needed = max(key + {reach} - ({offset}), 0);\n    \
                 return min((needed + {stride} - 1) / {stride} * {stride}, len);\n"
            );
            let start = match params.is_causal {
                true => "position".to_owned(),
                false => format!("first_query_{a}(group, max(position + 1 - {kernel}, 0))"),
            };
            (first, start)
        }
        (None, None) => ("    return len;\n".to_owned(), "0".to_owned()),
        (None, Some(Alignment::TopLeft)) => {
            ("    return len;\n".to_owned(), format!("min(position, {queries})"))
        }
        (None, Some(_)) => {
            ("    return len;\n".to_owned(), format!("clamp(position + {queries} - {keys}, 0, {queries})"))
        }
    };
    format!(
        "// The first query of a group whose window starts at a key or behind it.\n\
         fn first_query_{a}(group: i32, key: i32) -> i32 {{\n    \
         let len = ({queries} - group + {dilation} - 1) / {dilation};\n{first}}}\n\
         fn queries_of_{a}(group: i32, position: i32) -> vec2<i32> {{\n    let start = {span};\n    \
         return vec2<i32>(start, max(start, first_query_{a}(group, position + 1)));\n}}\n"
    )
}

/// The coordinates of a key's number on the three axes, those beyond the grid along the first of the user's.
pub(super) fn key_coordinates(problem: &Problem) -> &'static str {
    match problem.neighborhood().rank() {
        1 => "vec3<i32>(0, 0, k)",
        2 => "vec3<i32>(0, k / KEY_SHAPE.z, k % KEY_SHAPE.z)",
        _ => "vec3<i32>(k / (KEY_SHAPE.y * KEY_SHAPE.z), k / KEY_SHAPE.z % KEY_SHAPE.y, k % KEY_SHAPE.z)",
    }
}
