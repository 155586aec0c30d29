use super::*;
use crate::DType;
use crate::program::expr::{Binary, Type};
use crate::program::{Algorithm, Buffer, Capture, Index, Program};

type Backward = fn(&mut OnlineContext<'_>, &OnlineGradient, &[Expr]) -> Expr;

/// A function put together from closures, so that a test can spoil one of them.
struct Function {
    start: Vec<(&'static str, f64)>,
    step: fn(&mut OnlineContext<'_>, Expr, &[Expr]) -> OnlineStep,
    end: fn(&mut OnlineContext<'_>, &[Expr]) -> OnlineEnd,
    forward: fn(&mut OnlineContext<'_>, Expr, &[Expr]) -> Expr,
    backward: Option<Backward>,
}

impl OnlineFunction for Function {
    fn online_rowscales(&self) -> Vec<(String, f64)> {
        self.start.iter().map(|&(name, start)| (name.to_owned(), start)).collect()
    }

    fn online_fwd(&self, ctx: &mut OnlineContext<'_>, scores: Expr, rowscales: &[Expr]) -> OnlineStep {
        (self.step)(ctx, scores, rowscales)
    }

    fn online_fwd_epilogue(&self, ctx: &mut OnlineContext<'_>, rowscales: &[Expr]) -> OnlineEnd {
        (self.end)(ctx, rowscales)
    }

    fn forward(&self, ctx: &mut OnlineContext<'_>, scores: Expr, final_rowscales: &[Expr]) -> Expr {
        (self.forward)(ctx, scores, final_rowscales)
    }

    fn backward(&self, ctx: &mut OnlineContext<'_>, of: &OnlineGradient, finals: &[Expr]) -> Option<Expr> {
        self.backward.map(|backward| backward(ctx, of, finals))
    }
}

fn softmax() -> Function {
    Function {
        start: vec![("m", f64::NEG_INFINITY), ("l", 0.0)],
        step: |ctx, x, z| {
            let tile = ctx.reduce_max(x);
            let m = ctx.binary(Binary::Max, z[0], tile);
            let fallen = ctx.sub(z[0], m);
            let o_scale = ctx.unary(Unary::Exp, fallen);
            let below = ctx.sub(x, m);
            let weights = ctx.unary(Unary::Exp, below);
            let sum = ctx.reduce_sum(weights);
            let kept = ctx.mul(z[1], o_scale);
            OnlineStep { weights, rowscales: vec![m, ctx.add(kept, sum)], o_scale }
        },
        end: |ctx, z| {
            let one = ctx.float(1.0);
            let log = ctx.unary(Unary::Log, z[1]);
            OnlineEnd { o_factor: ctx.div(one, z[1]), final_rowscales: vec![ctx.add(log, z[0])] }
        },
        forward: |ctx, x, finals| {
            let below = ctx.sub(x, finals[0]);
            ctx.unary(Unary::Exp, below)
        },
        backward: Some(|ctx, of, _| {
            let rest = ctx.sub(of.dp, of.doosum);
            ctx.mul(of.p, rest)
        }),
    }
}

fn retention() -> Function {
    Function {
        start: vec![("a", 0.0), ("r", 1.0)],
        step: |ctx, x, z| {
            let tile = ctx.reduce_abssum(x);
            let a = ctx.add(z[0], tile);
            let one = ctx.float(1.0);
            let r = ctx.binary(Binary::Max, a, one);
            OnlineStep { weights: ctx.div(x, r), rowscales: vec![a, r], o_scale: ctx.div(z[1], r) }
        },
        end: |ctx, z| OnlineEnd { o_factor: ctx.float(1.0), final_rowscales: vec![z[1]] },
        forward: |ctx, x, finals| ctx.div(x, finals[0]),
        backward: None,
    }
}

/// No running numbers: every element by itself.
fn elementwise(forward: fn(&mut OnlineContext<'_>, Expr, &[Expr]) -> Expr) -> Function {
    Function {
        start: vec![],
        step: |ctx, x, _| OnlineStep { weights: x, rowscales: vec![], o_scale: ctx.float(1.0) },
        end: |ctx, _| OnlineEnd { o_factor: ctx.float(1.0), final_rowscales: vec![] },
        forward,
        backward: None,
    }
}

fn text_of(function: &Function) -> String {
    Program::builder(1).online(function).unwrap().build().unwrap().to_string()
}

#[track_caller]
fn assert_refused(function: &Function, law: &str) {
    let message = Row::import(&mut Graph::new(), function).unwrap_err().to_string();
    assert!(message.contains(&format!("law of {law}")), "{message}");
}

#[test]
fn the_usual_functions_are_recognised() {
    let preset = |name: &str| Program::builder(1).row(name).build().unwrap().to_string();
    assert_eq!(text_of(&softmax()), preset("softmax"));
    assert_eq!(text_of(&retention()), preset("retention"));
    assert_eq!(text_of(&elementwise(|_, x, _| x)), preset("identity"));
    let sigmoid = Function {
        step: |ctx, x, _| OnlineStep {
            weights: ctx.unary(Unary::Sigmoid, x),
            rowscales: vec![],
            o_scale: ctx.float(1.0),
        },
        ..elementwise(|ctx, x, _| ctx.unary(Unary::Sigmoid, x))
    };
    assert_eq!(text_of(&sigmoid), preset("sigmoid"));
}

/// Running numbers that do not start from nothing: `exp(x) / (1 + Σ exp(x))` keeps `m` at least 0 and counts a 1.
#[test]
fn a_start_is_an_element_more() {
    let softmax1 = Function { start: vec![("m", 0.0), ("l", 1.0)], ..softmax() };
    let mut graph = Graph::new();
    let row = Row::import(&mut graph, &softmax1).unwrap();
    assert_eq!(row.stages.len(), 1, "the maximum is gone");
    assert!(matches!(row.algorithm(&mut graph), Algorithm::OnePass { exponential: Some(0), .. }));
    // The weight of one element of score 0.5 in a row of it alone, whose logsumexp is 0.5.
    let replace = [(graph.var(Var::X), graph.float(0.5)), (graph.var(Var::Stage(0)), graph.float(0.5))];
    let weight = graph.substitute(row.weight, &replace.into());
    let weight = graph.as_float(weight).unwrap();
    assert!((weight - 0.5f64.exp() / (1.0 + 0.5f64.exp())).abs() < 1e-15, "{weight}");
}

/// Numbers of the row that a captured tensor has a say in, more than one reduction, and one that nothing needs.
#[test]
fn stages_are_shared_and_dropped() {
    let function = Function {
        start: vec![("count", 0.0), ("total", 0.0), ("largest", f64::NEG_INFINITY), ("mean", 0.0)],
        step: |ctx, x, z| {
            let (one, head) = (ctx.float(1.0), ctx.index(Index::Head));
            let gain = ctx.load(Buffer { capture: 0, tangent: false }, Type::F, &[head]);
            let scaled = ctx.mul(gain, x);
            let (ones, sum, max) = (ctx.reduce_sum(one), ctx.reduce_sum(scaled), ctx.reduce_max(x));
            let (count, total) = (ctx.add(z[0], ones), ctx.add(z[1], sum));
            let largest = ctx.binary(Binary::Max, z[2], max);
            let mean = ctx.div(total, count);
            OnlineStep { weights: x, rowscales: vec![count, total, largest, mean], o_scale: one }
        },
        end: |ctx, z| OnlineEnd { o_factor: ctx.float(1.0), final_rowscales: z.to_vec() },
        forward: |_, x, _| x,
        backward: None,
    };
    // Weights that the running numbers have no part in leave no stage.
    let builder = || Program::builder(1).capture(Capture::new("gain", &[4], DType::F64));
    assert_eq!(builder().online(&function).unwrap().build().unwrap().to_string(), "row: x\n");
    let by_mean = Function {
        end: |ctx, z| {
            let one = ctx.float(1.0);
            OnlineEnd { o_factor: ctx.div(one, z[3]), final_rowscales: vec![z[3]] }
        },
        forward: |ctx, x, finals| ctx.div(x, finals[0]),
        ..function
    };
    let program = builder().online(&by_mean).unwrap().build().unwrap();
    assert_eq!(program.row().stages.len(), 2, "{program}");
    assert_eq!(program.captures_of(&crate::program::Field::ALL), [0]);
}

#[test]
fn a_wrong_rescaling_is_refused() {
    let wrong = Function {
        step: |ctx, x, z| {
            let step = (softmax().step)(ctx, x, z);
            OnlineStep { o_scale: ctx.float(1.0), ..step }
        },
        ..softmax()
    };
    assert_refused(&wrong, "tiling");
    let upside_down = Function {
        step: |ctx, x, z| {
            let step = (retention().step)(ctx, x, z);
            OnlineStep { o_scale: ctx.div(step.rowscales[1], z[1]), ..step }
        },
        ..retention()
    };
    assert_refused(&upside_down, "tiling");
}

#[test]
fn what_depends_on_the_order_is_refused() {
    // Elements are forgotten as the row goes on, whatever the tiles.
    let fading = Function {
        start: vec![("z", 0.0)],
        step: |ctx, x, z| {
            let (half, k) = (ctx.float(0.5), ctx.index(Index::Key));
            let k = ctx.unary(Unary::ToFloat, k);
            let early = ctx.mul(k, half);
            let below = ctx.sub(x, early);
            let tile = ctx.reduce_sum(below);
            let kept = ctx.mul(z[0], half);
            let one = ctx.float(1.0);
            OnlineStep { weights: x, rowscales: vec![ctx.add(kept, tile)], o_scale: one }
        },
        end: |ctx, z| OnlineEnd { o_factor: ctx.float(1.0), final_rowscales: vec![z[0]] },
        forward: |_, x, _| x,
        backward: None,
    };
    assert_refused(&fading, "tiling");
    // The first element decides, whatever the tiles.
    let first = Function {
        start: vec![("z", 0.0), ("n", 0.0)],
        step: |ctx, x, z| {
            let (zero, one, k) = (ctx.float(0.0), ctx.float(1.0), ctx.index(Index::Key));
            let k = ctx.unary(Unary::ToFloat, k);
            let place = ctx.reduce_min(k);
            let is_first = ctx.compare(crate::program::Compare::Eq, k, place);
            let alone = ctx.select(is_first, x, zero);
            let (head, ones) = (ctx.reduce_sum(alone), ctx.reduce_sum(one));
            let starts = ctx.compare(crate::program::Compare::Eq, z[1], zero);
            let found = ctx.select(starts, head, z[0]);
            OnlineStep { weights: x, rowscales: vec![found, ctx.add(z[1], ones)], o_scale: one }
        },
        end: |ctx, z| OnlineEnd { o_factor: ctx.float(1.0), final_rowscales: vec![z[0]] },
        forward: |_, x, _| x,
        backward: None,
    };
    assert_refused(&first, "order");
}

#[test]
fn other_broken_laws_are_named() {
    let forgotten = Function { forward: |ctx, x, _| ctx.unary(Unary::Exp, x), ..softmax() };
    assert_refused(&forgotten, "forward");
    let per_element =
        Function { step: |ctx, x, z| OnlineStep { o_scale: x, ..(softmax().step)(ctx, x, z) }, ..softmax() };
    assert_refused(&per_element, "the row");
    let late = Function {
        end: |ctx, z| {
            let sum = ctx.reduce_sum(z[0]);
            OnlineEnd { o_factor: sum, final_rowscales: vec![z[0]] }
        },
        ..softmax()
    };
    assert_refused(&late, "the row");
    let infinite = Function {
        step: |ctx, x, _| OnlineStep {
            weights: ctx.unary(Unary::Log, x),
            rowscales: vec![],
            o_scale: ctx.float(1.0),
        },
        ..elementwise(|ctx, x, _| ctx.unary(Unary::Log, x))
    };
    assert_refused(&infinite, "finite");
    let missing = Function {
        step: |ctx, x, _| OnlineStep { weights: x, rowscales: vec![], o_scale: ctx.float(1.0) },
        ..softmax()
    };
    let message = Row::import(&mut Graph::new(), &missing).unwrap_err().to_string();
    assert!(message.contains("online_rowscales lists 2"), "{message}");
}

/// A Euclidean norm obeys every law, but its running number is no reduction.
#[test]
fn what_is_not_recognised_is_told_the_forms() {
    let norm = Function {
        start: vec![("n", 0.0)],
        step: |ctx, x, z| {
            let square = ctx.mul(x, x);
            let (tile, before) = (ctx.reduce_sum(square), ctx.mul(z[0], z[0]));
            let sum = ctx.add(before, tile);
            let one = ctx.float(1.0);
            OnlineStep { weights: x, rowscales: vec![ctx.unary(Unary::Sqrt, sum)], o_scale: one }
        },
        end: |ctx, z| {
            let one = ctx.float(1.0);
            OnlineEnd { o_factor: ctx.div(one, z[0]), final_rowscales: vec![z[0]] }
        },
        forward: |ctx, x, finals| ctx.div(x, finals[0]),
        backward: None,
    };
    assert_refused(&norm, "stages");
    let message = Row::import(&mut Graph::new(), &norm).unwrap_err().to_string();
    assert!(message.contains("'n'") && message.contains("reduce_sum(f(x))"), "{message}");
}

#[test]
fn a_backward_is_compared_with_the_derived_one() {
    let wrong = Function { backward: Some(|ctx, of, _| ctx.mul(of.p, of.dp)), ..softmax() };
    assert_refused(&wrong, "backward");
    // The row's scale as a constant: the gradient of retention whose forward says so, and of no other.
    let detached: fn(&mut OnlineContext<'_>, &OnlineGradient, &[Expr]) -> Expr =
        |ctx, of, finals| ctx.div(of.dp, finals[0]);
    assert_refused(&Function { backward: Some(detached), ..retention() }, "backward");
    let stopped = Function {
        forward: |ctx, x, finals| {
            let scale = ctx.unary(Unary::StopGrad, finals[0]);
            ctx.div(x, scale)
        },
        backward: Some(detached),
        ..retention()
    };
    let detach = Program::builder(1).row("retention:detach").build().unwrap().to_string();
    assert_eq!(text_of(&stopped), detach);
}
