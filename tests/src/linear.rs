//! Linear attention: decays of every strength, with an initial state and without, lengths around a chunk.

use natten_core::geometry::{Alignment, Neighborhood};
use natten_core::program::{Program, ProgramBuilder};
use natten_core::{DType, Op, OpRequest, Problem, ProblemBuilder, Role};

use crate::case::{Case, everything};
use crate::data::uniform;
use crate::features::case;
use crate::memory::Layout;
use crate::programs::{HEADS, built, number};

/// Every case of this module.
pub(crate) fn linear_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: &str,
                   len: usize,
                   of: &dyn Fn(ProgramBuilder) -> ProgramBuilder,
                   problem: &dyn Fn(ProblemBuilder) -> ProblemBuilder,
                   finish: &dyn Fn(Case) -> Case| {
        let window = Neighborhood::full(len, len, Some(Alignment::TopLeft));
        let window = window.unwrap_or_else(|error| panic!("{name}: {error}"));
        let dtype = DType::FLOATS[cases.len() % 4];
        let builder =
            Problem::builder(window, dtype).batch(2).heads(HEADS).heads_kv(2).head_dim(6).head_dim_v(5);
        let builder = problem(builder).program(built(of(Program::builder(1))));
        cases.push(finish(case(format!("linear-{name}-{len}-{dtype}"), builder).fused()));
    };
    let (plain, as_it_is) = (|problem: ProblemBuilder| problem, |case: Case| case);
    let with_state = |problem: ProblemBuilder| problem.initial_state(true);
    let gated = |len: usize| {
        move |p: ProgramBuilder| p.capture(number("g", &[2, HEADS, len])).decay("-softplus(g[b, h, k])")
    };
    for len in [1, 5, 63, 64, 65, 130] {
        add("gla", len, &gated(len), &plain, &as_it_is);
        add("gla-state", len, &gated(len), &with_state, &as_it_is);
    }
    let direct = |p: ProgramBuilder| p.capture(number("g", &[2, HEADS, 70])).decay("g[b, h, k]");
    let negative = |case: Case| case.fill("g", |at| -4.0 * uniform(9, at as u64));
    add("gla-direct", 70, &direct, &with_state, &negative);
    add("retention", 70, &|p| p.decay("log(1 - exp2(-5 - float(h)))"), &with_state, &as_it_is);
    let mamba = |p: ProgramBuilder| {
        let p = p.capture(number("dt", &[2, 70, HEADS])).capture(number("a", &[HEADS]));
        p.decay("-softplus(dt[b, k, h])*exp(a[h])").value_mod("x*softplus(dt[b, k, hkv])")
    };
    add("mamba2", 70, &mamba, &|problem| problem.heads_kv(HEADS), &as_it_is);
    add("mamba2-grouped", 70, &mamba, &with_state, &as_it_is);
    for (name, decay) in [
        ("none", "0.0"),
        ("strong", "-50.0"),
        ("mixed", "select(k % 7 == 3, -50.0, -0.01)"),
        ("weak", "-0.001*float(k % 5)"),
    ] {
        add(&format!("decay-{name}"), 70, &move |p| p.decay(decay), &with_state, &as_it_is);
        add(&format!("decay-{name}"), 20, &move |p| p.decay(decay), &plain, &as_it_is);
    }
    let strong = |p: ProgramBuilder| p.capture(number("g", &[HEADS, 70])).decay("-50*sigmoid(4*g[h, k])");
    add("decay-strong-captured", 70, &strong, &with_state, &as_it_is);
    let rotated = |p: ProgramBuilder| {
        let p = p.capture(number("g", &[HEADS])).decay("-softplus(g[h])");
        p.query_mod("x*cos(float(q)/8) + pair(x)*sin(float(q)/8)").key_mod("relu(x) + 0.1")
    };
    add("mods", 70, &rotated, &with_state, &as_it_is);
    for (dim, dim_v) in [(1, 1), (33, 16), (16, 64)] {
        let dims = move |problem: ProblemBuilder| problem.head_dim(dim).head_dim_v(dim_v).initial_state(true);
        add(&format!("dims-{dim}-{dim_v}"), 40, &gated(40), &dims, &as_it_is);
    }
    add("batch-0", 20, &|p| p.decay("-0.1"), &|problem| problem.batch(0).initial_state(true), &as_it_is);
    let layouts = [Layout::HeadsFirst, Layout::Reversed, Layout::Gapped];
    for layout in layouts {
        let name = format!("layout-{}", layout.name());
        add(&name, 40, &gated(40), &with_state, &move |case| case.layout(layout));
    }
    let parts = |case: Case| {
        let problem = case.problem.clone();
        let some = [Role::TangentInitialState];
        let every = everything(&problem, Op::Backward);
        let single = every.wants.iter().map(|role| every.wanting([role])).collect::<Vec<_>>();
        let jvp = [OpRequest::forward_jvp(&problem, some), OpRequest::backward_jvp(&problem, some)];
        let plain = [OpRequest::forward(&problem).wanting([Role::FinalState]), OpRequest::backward(&problem)];
        case.requests(single.into_iter().chain(jvp).chain(plain))
    };
    add("parts", 40, &gated(40), &with_state, &parts);
    // Heads and tokens meet in elements of the captured tensor.
    let crossed = |p: ProgramBuilder| p.capture(number("g", &[70, 70])).decay("-softplus(g[h, k] + g[k, h])");
    add("crossed", 70, &crossed, &with_state, &as_it_is);
    cases
}
