//! Random cases, as proptest strategies: small enough for the oracle, and shrinking towards one query that sees one key.

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::Field;
use natten_core::{DType, OpRequest, PlanOptions, Problem, Result, Role, RoleSet};
use proptest::prelude::*;

use crate::case::{Case, copied};
use crate::data::Data;
use crate::drafts::{Content, Draft, decays, drafts};
use crate::memory::Layout;

/// The parameters of one axis of at most `longest` tokens: every kernel that fits, every stride up to it, every dilation
/// that it fits with. Remainders bring the numbers into range, not dependent draws, which would shrink slowly.
pub fn axes(longest: usize) -> impl Strategy<Value = AxisParams> {
    let any_size = 0..longest;
    (1..=longest, any_size.clone(), any_size.clone(), any_size, any::<bool>()).prop_map(
        |(len, kernel_size, stride, dilation, is_causal)| {
            let kernel_size = 1 + kernel_size % len;
            let stride = 1 + stride % kernel_size;
            let dilation = 1 + dilation % (len / kernel_size);
            AxisParams::new(len, kernel_size).stride(stride).dilation(dilation).causal(is_causal)
        },
    )
}

/// Windows of one to three axes.
pub fn windows() -> impl Strategy<Value = Neighborhood> {
    prop_oneof![
        prop::collection::vec(axes(48), 1),
        prop::collection::vec(axes(10), 2),
        prop::collection::vec(axes(6), 3)
    ]
    .prop_map(|params| Neighborhood::new(&params).expect("the axes are drawn so that they fit"))
}

/// Ordinary attention, causal or not, of at most 40 queries and keys.
pub fn full() -> impl Strategy<Value = Neighborhood> {
    let causal = prop_oneof![Just(None), Just(Some(Alignment::TopLeft)), Just(Some(Alignment::BottomRight))];
    (1..=40usize, 1..=40usize, causal).prop_map(|(queries, keys, causal)| {
        Neighborhood::full(queries, keys, causal).expect("lengths are not 0")
    })
}

/// The default, zero, and others of either sign.
pub fn scales() -> impl Strategy<Value = Option<f64>> {
    prop_oneof![4 => Just(None), 1 => Just(Some(0.0)), 2 => (-2.0..2.0f64).prop_map(Some)]
}

/// Head dims up to 24, and some of those that models have.
pub fn head_dims() -> impl Strategy<Value = usize> {
    prop_oneof![3 => 1..=24usize, 1 => prop::sample::select(vec![32, 40, 48, 64, 72, 80, 96, 128])]
}

/// Problems of every kind.
pub fn problems() -> impl Strategy<Value = Problem> {
    let neighborhood = prop_oneof![4 => windows(), 1 => full()];
    let dtype = prop::sample::select(DType::FLOATS.to_vec());
    let heads = (1..=3usize, 1..=3usize);
    let dims = (head_dims(), prop_oneof![1 => Just(None), 1 => head_dims().prop_map(Some)]);
    let additional = prop_oneof![2 => Just(0), 1 => 1..=20usize];
    (neighborhood, dtype, 1..=2usize, heads, dims, additional, any::<bool>(), scales()).prop_map(
        |(neighborhood, dtype, batch, (heads_kv, group), (head_dim, head_dim_v), additional, bias, scale)| {
            let bias = bias && !neighborhood.is_full();
            Problem::builder(neighborhood, dtype)
                .batch(batch)
                .heads(heads_kv * group)
                .heads_kv(heads_kv)
                .head_dim(head_dim)
                .head_dim_v(head_dim_v.unwrap_or(head_dim))
                .additional_tokens(additional)
                .relative_positional_bias(bias)
                .scale(scale)
                .build()
                .expect("the parameters are drawn so that they fit")
        },
    )
}

/// A number that is not finite, and where to plant it: a role and a fraction of the tensor.
fn plants() -> impl Strategy<Value = Vec<(Role, f64, f64)>> {
    let role = prop::sample::select(vec![
        Role::Query,
        Role::Key,
        Role::Value,
        Role::Rpb,
        Role::AdditionalKey,
        Role::AdditionalValue,
        Role::GradOutput,
    ]);
    let value = prop::sample::select(vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY]);
    prop_oneof![3 => Just(Vec::new()), 1 => prop::collection::vec((role, 0.0..1.0, value), 1..=2)]
}

/// Cases of every kind: a problem, which results are wanted, layout, tiles, a seed, and now and then a number that is
/// not finite. `number` goes into the name.
pub fn random_cases(number: usize) -> impl Strategy<Value = Case> {
    let (layout, tiles) = (layouts(), tiles());
    let wants = prop_oneof![3 => Just(u32::MAX), 1 => any::<u32>()];
    let seed = any::<u64>().no_shrink();
    (problems(), any::<bool>(), wants, layout, tiles, plants(), seed).prop_map(
        move |(problem, grad_logsumexp, wants, layout, tiles, plants, seed)| {
            let options = with_tiles(&problem, tiles);
            let requests = [OpRequest::forward(&problem), OpRequest::backward(&problem)]
                .map(|request| some(request, wants));
            let case = Case::new(format!("random-{number}"), problem).requests(requests);
            let case = case.options(options).layout(layout).data(calm(&plants, Data::new(seed)));
            let case = planted(case, &plants);
            if grad_logsumexp { case.grad_logsumexp() } else { case }
        },
    )
}

fn layouts() -> impl Strategy<Value = Layout> {
    prop_oneof![
        3 => Just(Layout::HeadsLast),
        1 => Just(Layout::HeadsFirst),
        1 => Just(Layout::Reversed),
        1 => Just(Layout::Gapped)
    ]
}

/// Query and key tiles, now and then.
type Tiles = Option<([usize; 3], [usize; 3])>;

fn tiles() -> impl Strategy<Value = Tiles> {
    prop::option::weighted(0.2, (prop::array::uniform3(1..=9usize), prop::array::uniform3(1..=9usize)))
}

fn with_tiles(problem: &Problem, tiles: Tiles) -> PlanOptions {
    let rank = problem.neighborhood().rank();
    tiles.map_or_else(PlanOptions::default, |(queries, keys)| {
        PlanOptions::default().query_tile(&queries[..rank]).key_tile(&keys[..rank])
    })
}

/// Problems of every kind, short ones, with a program on them.
pub fn programs(content: Content) -> impl Strategy<Value = Problem> {
    (problems(), drafts(content)).prop_map(|(problem, draft)| {
        with_draft(&problem, &draft).expect("what is drawn is a program of the problem")
    })
}

fn with_draft(problem: &Problem, draft: &Draft) -> Result<Problem> {
    let neighborhood = problem.neighborhood().clone();
    let program = draft.program(neighborhood.rank(), problem.heads())?;
    // Even, and short: a program goes through the oracle many times.
    let dim = |dim: usize| 2 * (dim % 8 + 1);
    let builder = copied(problem, neighborhood, problem.dtype());
    builder.head_dim(dim(problem.head_dim())).head_dim_v(dim(problem.head_dim_v())).program(program).build()
}

/// Problems of linear attention, with decays of every strength.
pub fn recurrences() -> impl Strategy<Value = Problem> {
    let dtype = prop::sample::select(DType::FLOATS.to_vec());
    let sizes = (1..=150usize, 1..=2usize, 1..=2usize, 1..=2usize, 1..=12usize, 1..=12usize);
    (sizes, dtype, decays(), any::<bool>()).prop_map(
        |((len, batch, heads_kv, group, head_dim, head_dim_v), dtype, draft, state)| {
            let window = Neighborhood::full(len, len, Some(Alignment::TopLeft)).expect("lengths are not 0");
            let heads = heads_kv * group;
            Problem::builder(window, dtype)
                .batch(batch)
                .heads(heads)
                .heads_kv(heads_kv)
                .head_dim(head_dim)
                .head_dim_v(head_dim_v)
                .initial_state(state)
                .program(draft.program(1, heads).expect("what is drawn is a program"))
                .build()
                .expect("the parameters are drawn so that they fit")
        },
    )
}

/// Cases of programs and of linear attention, every operation with every optional input. `number` goes into the name.
pub fn random_programs(number: usize) -> impl Strategy<Value = Case> {
    let problem = prop_oneof![4 => programs(Content::Everything), 1 => recurrences()];
    (problem, layouts(), tiles(), any::<u64>().no_shrink()).prop_map(move |(problem, layout, tiles, seed)| {
        // A recurrence walks along its tokens: it has no tiles.
        let tiles = tiles.filter(|_| problem.program().field(Field::Decay).is_none());
        let options = with_tiles(&problem, tiles);
        let case = Case::new(format!("random-program-{number}"), problem).fused();
        case.options(options).layout(layout).data(Data::new(seed))
    })
}

/// The wanted results that `mask` keeps; all, if it keeps none.
fn some(request: OpRequest, mask: u32) -> OpRequest {
    let kept: RoleSet = (0..)
        .zip(request.wants.iter())
        .filter(|(bit, _)| mask >> bit & 1 == 1)
        .map(|(_, role)| role)
        .collect();
    if kept.is_empty() { request } else { request.wanting(kept.iter()) }
}

/// Beside numbers that are not finite, scores are kept so small that no weight underflows (see the module `special`).
fn calm(plants: &[(Role, f64, f64)], data: Data) -> Data {
    if plants.is_empty() {
        return data;
    }
    [Role::Query, Role::AdditionalKey, Role::Key, Role::Rpb]
        .into_iter()
        .fold(data, |data, role| data.deviation(role, 0.25))
}

fn planted(mut case: Case, plants: &[(Role, f64, f64)]) -> Case {
    for &(role, fraction, value) in plants {
        let len: usize = case.problem.shape(role).iter().product();
        if len > 0 && (case.problem.has_input(role) || role == Role::GradOutput) {
            case.data = case.data.plant(role, (fraction * len as f64) as usize, value);
        }
    }
    case
}
