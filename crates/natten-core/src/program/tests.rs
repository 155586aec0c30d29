//! Derivatives against finite differences, and the derived algorithms against the rows that they compute.

use std::collections::HashMap;

use super::numeric::{float_binary, float_unary, int_binary};
use super::*;

/// A plain evaluator, for scalars.
struct Env<'a> {
    vars: HashMap<Var, f64>,
    load: &'a dyn Fn(Buffer, &[i32]) -> f64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Value {
    F(f64),
    I(i32),
    B(bool),
}

impl Value {
    fn f(self) -> f64 {
        match self {
            Self::F(x) => x,
            other => panic!("{other:?} is no number"),
        }
    }

    fn i(self) -> i32 {
        match self {
            Self::I(x) => x,
            other => panic!("{other:?} is no integer"),
        }
    }

    fn b(self) -> bool {
        match self {
            Self::B(x) => x,
            other => panic!("{other:?} is no condition"),
        }
    }
}

fn eval(graph: &Graph, expr: Expr, env: &Env<'_>) -> f64 {
    let reached = graph.reached(&[expr]);
    let mut values: Vec<Value> = vec![Value::I(0); graph.len()];
    for (at, node) in graph.iter().filter(|(at, _)| reached[at.index()]) {
        let v = |e: &Expr| values[e.index()];
        values[at.index()] = match node {
            Node::Float(bits) => Value::F(f64::from_bits(*bits)),
            Node::Int(x) => Value::I(*x),
            Node::Bool(x) => Value::B(*x),
            Node::Var(var) => Value::F(env.vars.get(var).copied().unwrap_or_else(|| panic!("{var:?}"))),
            Node::Index(_) => Value::I(3),
            Node::Load(buffer, index) => {
                Value::F((env.load)(*buffer, &index.iter().map(|i| v(i).i()).collect::<Vec<_>>()))
            }
            Node::Unary(Unary::ToFloat, a) => Value::F(f64::from(v(a).i())),
            Node::Unary(Unary::ToInt, a) => Value::I(v(a).f().floor() as i32),
            Node::Unary(Unary::Not, a) => Value::B(!v(a).b()),
            Node::Unary(op, a) => Value::F(float_unary(*op, v(a).f()).expect("an operation of numbers")),
            Node::Binary(op, a, b) => match (v(a), v(b)) {
                (Value::F(x), Value::F(y)) => Value::F(float_binary(*op, x, y).expect("of numbers")),
                (Value::I(x), Value::I(y)) => Value::I(int_binary(*op, x, y)),
                (Value::B(x), Value::B(y)) => Value::B(if *op == Binary::And { x && y } else { x || y }),
                other => panic!("{other:?}"),
            },
            Node::Compare(op, a, b) => Value::B(match (v(a), v(b)) {
                (Value::F(x), Value::F(y)) => op.of(&x, &y),
                (x, y) => op.of(&x.i(), &y.i()),
            }),
            Node::Select(c, a, b) => {
                if v(c).b() {
                    v(a)
                } else {
                    v(b)
                }
            }
            Node::Powi(a, n) => Value::F(v(a).f().powi(*n)),
            Node::Random(..) => Value::F(0.25),
        };
    }
    values[expr.index()].f()
}

fn at_score(graph: &Graph, expr: Expr, s: f64) -> f64 {
    eval(graph, expr, &Env { vars: [(Var::Score, s)].into(), load: &|_, _| panic!("no captures") })
}

fn score_of(text: &str) -> Program {
    Program::builder(1).score(text).build().unwrap_or_else(|error| panic!("{text}: {error}"))
}

#[test]
fn every_function_has_the_derivatives_of_its_differences() {
    let texts = [
        "score*score - 3/score",
        "abs(score)",
        "exp(score/2)",
        "exp2(score)",
        "log(score*score+1)",
        "log2(score*score+2)",
        "expm1(score)",
        "log1p(score*score)",
        "sqrt(score*score+1)",
        "rsqrt(score*score+1)",
        "tanh(score)",
        "sigmoid(score)",
        "softplus(score)",
        "relu(score)",
        "erf(score)",
        "sin(score)",
        "cos(score)",
        "min(score, 1-score)",
        "max(score*score, score)",
        "select(score < 0.5, score*score, 2*score)",
        "powi(score, 3)",
        "powi(score*score+1, -2)",
        "score % 0.9",
        "logaddexp(score, 2*score)",
        "select(abs(score) < 9, tanh(score)*exp(-score), 0.0)",
    ];
    for text in texts {
        let program = score_of(text);
        let mut g = program.graph().clone();
        let s = g.var(Var::Score);
        let first = derive::derivative(&mut g, program.score(), s);
        let second = derive::derivative(&mut g, first, s);
        let tangent = derive::forward(&mut g, &[program.score()], |g, e| (e == s).then(|| g.float(1.0)))[0];
        for x in [-1.3, -0.4, 0.21, 0.7, 1.9] {
            let h = 1e-5;
            let slope =
                (at_score(&g, program.score(), x + h) - at_score(&g, program.score(), x - h)) / (2.0 * h);
            let value = at_score(&g, first, x);
            assert!(
                (value - slope).abs() <= 1e-7 * (1.0 + slope.abs()),
                "{text} at {x}: {value}, not {slope}"
            );
            assert!((at_score(&g, tangent, x) - value).abs() <= 1e-12 * (1.0 + value.abs()), "{text} at {x}");
            let slope = (at_score(&g, first, x + h) - at_score(&g, first, x - h)) / (2.0 * h);
            let value = at_score(&g, second, x);
            assert!(
                (value - slope).abs() <= 1e-6 * (1.0 + slope.abs()),
                "{text}'' at {x}: {value}, not {slope}"
            );
        }
    }
}

#[test]
fn a_shared_subexpression_counts_once() {
    // A walk over the tree would count the path through `2*score` twice and give 4.4323.
    let program = score_of("2*score + tanh(2*score)");
    let mut g = program.graph().clone();
    let s = g.var(Var::Score);
    let derivative = derive::derivative(&mut g, program.score(), s);
    assert!((at_score(&g, derivative, 0.7) - 2.4323).abs() < 5e-5);
}

#[test]
fn ties_follow_the_rules() {
    for (text, expected) in [
        ("abs(score)", 0.0),
        ("relu(score)", 0.0),
        ("max(2*score, score)", 2.0),
        ("min(2*score, score)", 2.0),
    ] {
        let program = score_of(text);
        let mut g = program.graph().clone();
        let s = g.var(Var::Score);
        let derivative = derive::derivative(&mut g, program.score(), s);
        assert_eq!(at_score(&g, derivative, 0.0), expected, "{text}");
    }
}

#[test]
fn two_loads_of_one_tensor_both_count() {
    let capture = Capture::new("c", &[4], DType::F64);
    let program = Program::builder(1).capture(capture).score("score*c[q] + c[q]*c[k + 1]").build().unwrap();
    let lowered = Lowered::new(&program, false, &Given::default());
    // `q` and `k + 1` are two nodes, so two loads; both of `c`.
    assert_eq!(lowered.loads.len(), 2);
    assert!(lowered.loads.iter().all(|load| load.capture == 0));
}

fn row_of(row: &str) -> Program {
    let sink = Capture::new("sink", &[4], DType::F64);
    Program::builder(1).capture(sink).row(row).build().unwrap_or_else(|error| panic!("{row}: {error}"))
}

/// A row's stages and weights in two plain passes.
fn plain_row(program: &Program, xs: &[f64]) -> (Vec<f64>, Vec<f64>) {
    let (g, row) = (program.graph(), program.row());
    let load = |_: Buffer, _: &[i32]| 0.3;
    let mut vars: HashMap<Var, f64> = HashMap::new();
    let mut stages = Vec::new();
    for stage in &row.stages {
        let values =
            xs.iter().map(|&x| eval(g, stage.value, &Env { vars: [(Var::X, x)].into(), load: &load }));
        stages.push(values.fold(stage.reduce.identity(), |a, b| stage.reduce.merge(a, b)));
    }
    for (k, &value) in stages.iter().enumerate() {
        vars.insert(Var::Stage(k as u8), value);
    }
    let weight = |&x: &f64| {
        vars.insert(Var::X, x);
        eval(g, row.weight, &Env { vars: vars.clone(), load: &load })
    };
    (stages, xs.iter().map(weight).collect())
}

#[test]
fn one_pass_forms_are_the_rows_that_they_come_from() {
    let xs = [0.4, -1.2, 2.5, 0.0, 1.1, -0.3];
    for (row, one_pass) in [
        ("softmax", true),
        ("softmax-sink", true),
        ("softmax1", true),
        ("sigmoid", true),
        ("relu", true),
        ("relu:2", true),
        ("identity", true),
        ("retention", true),
        ("retention:detach", true),
        ("l1", true),
        ("m = sum(x); sigmoid(x - m/6)", false),
        ("m = max(x); x / m", true),
        ("m = max(x); exp(x - m)", false),
        ("l = lse(2*x); 3*exp(2*x - l)*x", true),
        ("l = lse(2*x); exp(x - l)", false),
        ("exp(x)", true),
    ] {
        let program = row_of(row);
        let (stages, weights) = plain_row(&program, &xs);
        let mut g = program.graph().clone();
        let algorithm = program.row().algorithm(&mut g);
        let Algorithm::OnePass { local, factor, .. } = algorithm else {
            assert!(!one_pass, "{row} needs no second pass");
            continue;
        };
        assert!(one_pass, "{row} cannot be done in one pass");
        for (&x, weight) in xs.iter().zip(weights) {
            let mut vars: HashMap<Var, f64> = [(Var::X, x), (Var::Shift, 0.77)].into();
            for (k, &stage) in stages.iter().enumerate() {
                vars.insert(Var::Stage(k as u8), stage);
            }
            let env = Env { vars, load: &|_, _| 0.3 };
            let value = eval(&g, local, &env) * eval(&g, factor, &env);
            assert!((value - weight).abs() <= 1e-12 * weight.abs().max(1.0), "{row}: {value}, not {weight}");
        }
    }
}

/// The derived gradient of `Σ g_j w_j` with respect to a score, against differences, for one-pass and two-pass rows.
#[test]
fn the_derived_backward_is_that_of_differences() {
    let scores = [0.4, -1.2, 1.5, 0.05, 1.1, -0.3];
    let grads = [0.7, -0.2, 1.3, 0.4, -0.9, 0.25];
    for (score, row) in [
        ("3*tanh(score/3)", "softmax"),
        ("score", "softmax-sink"),
        ("score + 0.1*score*score", "softmax1"),
        ("score", "sigmoid"),
        ("score - 0.2", "relu:2"),
        ("score", "retention"),
        ("2*score", "l1"),
        ("score", "m = sum(x); sigmoid(x - m/6)"),
        ("score", "m = max(x); exp(x - m)"),
        ("score", "l = lse(2*x); exp(x - l)*tanh(x)"),
    ] {
        let sink = Capture::new("sink", &[4], DType::F64);
        let program = Program::builder(1).capture(sink).score(score).row(row).build().unwrap();
        let modify = |s: f64| at_score(program.graph(), program.score(), s);
        let objective = |scores: &[f64]| {
            let xs: Vec<f64> = scores.iter().map(|&s| modify(s)).collect();
            plain_row(&program, &xs).1.iter().zip(grads).map(|(w, g)| w * g).sum::<f64>()
        };
        let lowered = Lowered::new(&program, false, &Given::default());
        let xs: Vec<f64> = scores.iter().map(|&s| modify(s)).collect();
        let (stages, _) = plain_row(&program, &xs);
        let delta = objective(&scores);
        let load = |_: Buffer, _: &[i32]| 0.3;
        let mut vars: HashMap<Var, f64> = [(Var::Delta, delta), (Var::GradLogsumexp, 0.0)].into();
        for (k, &stage) in stages.iter().enumerate() {
            vars.insert(Var::Stage(k as u8), stage);
        }
        let cotangents: Vec<f64> = match &lowered.grad_stages {
            GradStages::OfRow(stages) => stages
                .iter()
                .map(|stage| eval(&lowered.graph, stage.value, &Env { vars: vars.clone(), load: &load }))
                .collect(),
            GradStages::OfPairs(stages) => stages
                .iter()
                .map(|stage| {
                    scores
                        .iter()
                        .zip(grads)
                        .map(|(&s, g)| {
                            let mut vars = vars.clone();
                            vars.extend([(Var::Score, s), (Var::Grad, g)]);
                            eval(&lowered.graph, stage.value, &Env { vars, load: &load })
                        })
                        .sum()
                })
                .collect(),
        };
        for (k, &cotangent) in cotangents.iter().enumerate() {
            vars.insert(Var::GradStage(k as u8), cotangent);
        }
        for j in 0..scores.len() {
            let mut vars = vars.clone();
            vars.extend([(Var::Score, scores[j]), (Var::Grad, grads[j])]);
            let value = eval(&lowered.graph, lowered.grad_score.value, &Env { vars, load: &load });
            let moved = |by: f64| {
                let mut scores = scores;
                scores[j] += by;
                objective(&scores)
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((value - slope).abs() <= 1e-7, "{score}; {row}, element {j}: {value}, not {slope}");
        }
    }
}
