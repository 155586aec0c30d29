//! What of a program's derivatives is zero for a request, left out before any code is made of it.

use std::collections::HashMap;

use natten_core::program::{Expr, GradStages, Graph, Lowered, Primal, Pushed, Var};

/// Leaves out the cotangent of a logsumexp that is not given, and then cotangents of stages that are zero.
pub(super) fn drop(lowered: &mut Lowered, has_cotangent: bool) {
    let g = &mut lowered.graph;
    let zero = g.float(0.0);
    let mut absent = HashMap::new();
    if !has_cotangent {
        for var in [Var::GradLogsumexp, Var::Tangent(Primal::GradLogsumexp)] {
            absent.insert(g.var(var), zero);
        }
    }
    let replace = |g: &mut Graph, pushed: &mut Pushed, by: &HashMap<Expr, Expr>| {
        pushed.value = g.substitute(pushed.value, by);
        pushed.tangent = g.substitute(pushed.tangent, by);
    };
    let is_complete = matches!(lowered.grad_stages, GradStages::OfRow(_));
    let (GradStages::OfRow(list) | GradStages::OfPairs(list)) = &mut lowered.grad_stages else { return };
    let mut zeros = HashMap::new();
    for (k, pushed) in list.iter_mut().enumerate() {
        replace(g, pushed, &absent);
        let k = k as u8;
        if !is_complete && has_cotangent && lowered.logsumexp == Some(k) {
            continue;
        }
        for (expr, var) in
            [(pushed.value, Var::GradStage(k)), (pushed.tangent, Var::Tangent(Primal::GradStage(k)))]
        {
            if g.is_zero(expr) {
                zeros.insert(g.var(var), zero);
            }
        }
    }
    replace(g, &mut lowered.grad_score, &zeros);
    for load in &mut lowered.loads {
        replace(g, &mut load.gradient, &zeros);
    }
}
