//! Softmax beside its forward and backward pass: the tangents of both, and the unfused pair, `qk` and `av`.

use natten_core::geometry::{Alignment, Neighborhood};
use natten_core::{DType, Op, OpRequest, Problem};

use crate::case::Case;
use crate::features::case;
use crate::memory::Layout;
use crate::programs::{long, small};

/// The unfused pair on windows of every kind.
pub(crate) fn unfused_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for grid in small().into_iter().chain([long()]) {
        for (turn, additional) in [0, 5].into_iter().enumerate() {
            for dtype in DType::FLOATS {
                let problem = grid.problem(dtype).additional_tokens(additional);
                let has_bias = !grid.window.is_full() && (turn == 1 || dtype == DType::F64);
                let problem = problem.relative_positional_bias(has_bias);
                let name = format!("unfused-{}-extra-{additional}-{dtype}", grid.name);
                cases.push(case(name, problem).unfused());
            }
        }
        for layout in Layout::ALL {
            let problem = grid.problem(DType::F32).additional_tokens(2).scale(Some(-0.5));
            let name = format!("unfused-{}-{}", grid.name, layout.name());
            cases.push(case(name, problem).unfused().layout(layout));
        }
        let name = format!("unfused-{}-parts", grid.name);
        let parts = case(name, grid.problem(DType::F32).additional_tokens(2)).unfused();
        let problem = parts.problem.clone();
        let requests = parts.requests.clone().into_iter().flat_map(|request| {
            let results = request.wants.iter().map(move |role| request.wanting([role]));
            let tangents = request.given.iter().map(|role| match request.op {
                Op::QkJvp => OpRequest::qk_jvp(&problem, [role]),
                _ => OpRequest::av_jvp(&problem, [role]),
            });
            results.chain(tangents).collect::<Vec<_>>()
        });
        cases.push(parts.clone().requests(requests.collect::<Vec<_>>()));
    }
    let rows =
        Neighborhood::full(9, 4, Some(Alignment::BottomRight)).unwrap_or_else(|error| panic!("{error}"));
    for (name, batch) in [("empty-rows", 1), ("batch-0", 0)] {
        let problem = Problem::builder(rows.clone(), DType::F32).batch(batch).heads(2).head_dim(8);
        cases.push(case(format!("unfused-{name}"), problem).unfused());
    }
    cases
}

/// The fused operations of softmax, along the tangents of everything, on the grids of the programs.
pub(crate) fn softmax_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for grid in small().into_iter().chain([long()]) {
        for additional in [0, 5] {
            for dtype in DType::FLOATS {
                let problem = grid.problem(dtype).additional_tokens(additional);
                let problem = problem.relative_positional_bias(additional > 0 && !grid.window.is_full());
                cases.push(
                    case(format!("program-softmax-{}-extra-{additional}-{dtype}", grid.name), problem)
                        .fused(),
                );
            }
        }
    }
    cases
}
