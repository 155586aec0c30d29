//! Numbers that are not finite. A NaN or an infinity in a key, a value, a query, a bias or a cotangent goes where the
//! definition's arithmetic takes it, and nowhere else: tokens that share a tile with it but do not see it keep finite
//! results. Classes are compared (NaN, +inf, -inf, finite), and finite elements within their bounds.
//!
//! Inputs have half the usual deviation, so that no weight of a visible key underflows in any dtype: zero times infinity
//! is NaN, a small number times infinity is not, and which of the two it is should not hang on the width of an exponent.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::{DType, Problem, ProblemBuilder, Role};

use crate::case::Case;
use crate::features::{axis, case, windows};

const NOT_FINITE: [(&str, f64); 3] =
    [("nan", f64::NAN), ("inf", f64::INFINITY), ("minus-inf", f64::NEG_INFINITY)];

/// Every case of this module.
pub(crate) fn special_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    planted(&mut cases);
    hidden(&mut cases);
    masked_by_bias(&mut cases);
    masked_by_keys(&mut cases);
    cases.into_iter().map(halved).collect()
}

fn halved(case: Case) -> Case {
    let data = [Role::Query, Role::Key, Role::AdditionalKey, Role::Rpb]
        .into_iter()
        .fold(case.data.clone(), |data, role| data.deviation(role, 0.5));
    case.data(data)
}

/// A name, the axes of a window, and three of its tokens: the first, one inside, the last.
type Grid = (&'static str, Vec<AxisParams>, [Vec<usize>; 3]);

fn grids() -> [Grid; 3] {
    [
        ("1d", vec![axis(40, 5, 1, 2, false)], [vec![0], vec![21], vec![39]]),
        ("2d", vec![axis(9, 4, 2, 1, true), axis(12, 3, 1, 1, false)], [vec![0, 0], vec![4, 6], vec![8, 11]]),
        (
            "3d",
            vec![axis(4, 2, 1, 1, false), axis(5, 3, 1, 1, true), axis(6, 3, 2, 2, false)],
            [vec![0, 0, 0], vec![2, 2, 3], vec![3, 4, 5]],
        ),
    ]
}

fn sized(problem: ProblemBuilder) -> ProblemBuilder {
    problem.batch(2).heads(4).heads_kv(2).head_dim(8).head_dim_v(6)
}

/// One number that is not finite, in each input at each of three tokens.
fn planted(cases: &mut Vec<Case>) {
    for (grid, axes, tokens) in grids() {
        for role in [Role::Query, Role::Key, Role::Value, Role::GradOutput] {
            for (turn, token) in tokens.iter().enumerate() {
                for (name, value) in NOT_FINITE {
                    let dtype = DType::FLOATS[(turn + cases.len()) % 4];
                    let at = [&[1], &token[..], &[1, 2]].concat();
                    let problem = sized(windows(&axes, dtype)).additional_tokens(2);
                    let case = case(format!("special-{role}-{name}-{grid}-{turn}-{dtype}"), problem);
                    cases.push(case.plant(role, &at, value));
                }
            }
        }
        for (name, value) in NOT_FINITE {
            for dtype in [DType::F32, DType::F16] {
                let case = |role: Role| {
                    let problem = sized(windows(&axes, dtype)).additional_tokens(2);
                    let problem = problem.relative_positional_bias(role == Role::Rpb);
                    case(format!("special-{role}-{name}-{grid}-{dtype}"), problem)
                };
                cases.push(case(Role::AdditionalKey).plant(Role::AdditionalKey, &[0, 1, 1, 3], value));
                cases.push(case(Role::AdditionalValue).plant(Role::AdditionalValue, &[0, 0, 0, 3], value));
                let row = [&[1], &tokens[1][..], &[2]].concat();
                let grads = case(Role::GradLogsumexp).grad_logsumexp();
                cases.push(grads.plant(Role::GradLogsumexp, &row, value));
                // The entry of the query's own token, in one head.
                let own = axes.iter().map(|axis| axis.kernel_size - 1);
                let entry: Vec<usize> = std::iter::once(3).chain(own).collect();
                cases.push(case(Role::Rpb).plant(Role::Rpb, &entry, value));
            }
        }
    }
    let problem = sized(windows(&[axis(33, 5, 1, 1, false)], DType::F32));
    let opposite = case("special-value-opposite-infinities", problem);
    let opposite = opposite.plant(Role::Value, &[0, 10, 0, 1], f64::INFINITY);
    cases.push(opposite.plant(Role::Value, &[0, 12, 0, 1], f64::NEG_INFINITY));
}

/// Keys and values that nobody sees, or that only the tail of a causal sequence sees.
fn hidden(cases: &mut Vec<Case>) {
    for (name, value) in NOT_FINITE {
        for dtype in [DType::F32, DType::Bf16] {
            let top_left = Neighborhood::full(10, 24, Some(Alignment::TopLeft));
            let causal = Neighborhood::full(24, 24, Some(Alignment::TopLeft));
            for (what, neighborhood, token) in [("unseen", top_left, 12), ("last", causal, 23)] {
                let neighborhood = neighborhood.unwrap_or_else(|error| panic!("{error}"));
                let problem = sized(Problem::builder(neighborhood, dtype));
                let case = case(format!("special-{what}-{name}-{dtype}"), problem);
                let at = [0, token, 1, 2];
                cases.push(case.plant(Role::Key, &at, value).plant(Role::Value, &at, value));
            }
        }
    }
}

/// A bias of -inf is a mask: those pairs have no weight, and a row all of whose keys are masked sees nothing.
fn masked_by_bias(cases: &mut Vec<Case>) {
    for dtype in DType::FLOATS {
        let axes = [axis(21, 5, 1, 2, true)];
        let problem = || sized(windows(&axes, dtype)).relative_positional_bias(true);
        // In a causal window the first query of a group sees itself alone, at offset 0, which is entry 4.
        let first_rows = case(format!("special-mask-first-rows-{dtype}"), problem());
        cases.push(first_rows.plant(Role::Rpb, &[1, 4], f64::NEG_INFINITY).grad_logsumexp());
        let masked = |name: &str, problem: ProblemBuilder| {
            let case = case(format!("special-mask-{name}-{dtype}"), problem);
            (0..9).fold(case, |case, entry| case.plant(Role::Rpb, &[2, entry], f64::NEG_INFINITY))
        };
        cases.push(masked("whole-head", problem()).grad_logsumexp());
        cases.push(masked("whole-head-extra", problem().additional_tokens(3)).grad_logsumexp());
    }
}

/// A key of -inf under positive queries has the score -inf for everybody who sees it.
fn masked_by_keys(cases: &mut Vec<Case>) {
    for dtype in DType::FLOATS {
        let positive = |name: &str, axes: &[AxisParams]| {
            let case = case(format!("special-mask-{name}-{dtype}"), sized(windows(axes, dtype)));
            let data = case.data.clone().positive(Role::Query);
            case.data(data)
        };
        let one = positive("key", &[axis(30, 4, 1, 1, false)]);
        cases.push(one.plant(Role::Key, &[1, 14, 0, 3], f64::NEG_INFINITY));
        let rows = positive("rows", &[axis(8, 3, 1, 1, false), axis(9, 3, 1, 1, false)]);
        let block = (0..25).map(|i| [1, i / 5, i % 5, 1, 3]);
        cases.push(
            block.fold(rows, |case, at| case.plant(Role::Key, &at, f64::NEG_INFINITY)).grad_logsumexp(),
        );
    }
}
