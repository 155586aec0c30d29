//! Problems whose arena is larger than a device can bind, cut by batch entries and heads: each part is a problem of its
//! own, which takes its share of every tensor and leaves the arena to the next. Nothing that is seen together is parted.

use std::collections::BTreeMap;
use std::ops::Range;

use natten_core::{Error, OpRequest, PlanOptions, Problem, Result, Role};

use super::{First, piece};
use crate::NAME;
use crate::sequence::{Cut, Packed, Part, Sequence, Step};
use crate::target::Target;

/// What an operation does, in one piece where that fits the device, or else in as few parts as do.
///
/// # Errors
/// Those of [`piece`]; [`Error::Unsupported`] where no part fits, or the operation cannot be cut.
pub(crate) fn sequence(
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    target: &Target,
) -> Result<Sequence> {
    let whole = piece(problem, request, options, target, First::default())?;
    let Err(too_large) = check_bindings(&whole, target) else { return Ok(whole) };
    // Every family keeps a part's share of this at least; parts may be done by another than the whole.
    let parted = whole.tensors.iter().filter(|spec| !is_of_heads_alone(spec.role) && !is_captured(spec.role));
    let bytes = parted.map(|spec| spec.bytes() as u64).max().unwrap_or(0);
    let (batch, heads_kv) = (problem.batch(), problem.heads_kv());
    let pieces_of = |batches: usize, heads: usize| {
        let all = |of: usize, len: usize| (0..of).step_by(len).map(move |n| n..(n + len).min(of));
        let pairs = all(batch, batches).flat_map(|b| all(heads_kv, heads).map(move |h| (b.clone(), h)));
        pairs.collect::<Vec<_>>()
    };
    let mut last = (batch, heads_kv);
    for count in 2..=batch * heads_kv {
        // Batch entries lie behind each other in memory; heads are parted where there are no more of those, or what is
        // added up over them is wanted.
        let (batches, rest) = match is_summed_over_batch(request) {
            true => (batch, count),
            false => (batch.div_ceil(count), count.div_ceil(batch)),
        };
        let lengths = (batches, heads_kv.div_ceil(rest));
        if lengths == last || count as u64 * target.most_binding() < bytes {
            continue;
        }
        last = lengths;
        let part = part_of(problem, 0..lengths.0, 0..lengths.1)?;
        let first = piece(&part, request, options, target, First::default())?;
        if check_bindings(&first, target).is_ok() {
            check_sums(problem, request)?;
            return join(problem, request, options, target, whole, &pieces_of(lengths.0, lengths.1));
        }
    }
    Err(too_large)
}

/// That the device can bind what shaders compute in.
fn check_bindings(sequence: &Sequence, target: &Target) -> Result<()> {
    target.check_binding("the arena", sequence.arena * sequence.element)?;
    let mut packed = sequence.packed.iter();
    packed.try_for_each(|packed| target.check_binding(&format!("the packed {}", packed.role), packed.bytes()))
}

/// Whether a result that is wanted is a sum over batch entries, of each head.
fn is_summed_over_batch(request: &OpRequest) -> bool {
    request.wants.iter().any(is_of_heads_alone)
}

const fn is_of_heads_alone(role: Role) -> bool {
    matches!(role, Role::Rpb | Role::TangentRpb | Role::GradRpb | Role::Grad2Rpb)
}

/// A captured tensor, its tangent or its gradient: no part has one of its own.
const fn is_captured(role: Role) -> bool {
    matches!(role, Role::Capture(_) | Role::TangentCapture(_) | Role::GradCapture(_) | Role::Grad2Capture(_))
}

/// That no result is a sum over parts.
fn check_sums(problem: &Problem, request: &OpRequest) -> Result<()> {
    match request.wants.iter().find(|&role| is_captured(role)) {
        None => Ok(()),
        Some(role) => Err(Error::unsupported(
            NAME,
            format!("{} of {}", problem.name(role), problem.neighborhood()),
            "the tensors are larger than this adapter binds at a time (max_storage_buffer_binding_size), and the gradient \
             of a captured tensor is a sum over all batch entries and heads, which are computed one part behind the \
             other; want other results, or use --backend cpu",
        )),
    }
}

/// The sequences of all parts, one behind the other.
fn join(
    problem: &Problem,
    request: &OpRequest,
    options: &PlanOptions,
    target: &Target,
    whole: Sequence,
    parts: &[(Range<usize>, Range<usize>)],
) -> Result<Sequence> {
    let mut joined = Sequence { arena: 0, integers: 0, steps: Vec::new(), packed: Vec::new(), ..whole };
    for (batch, heads) in parts {
        let part = part_of(problem, batch.clone(), heads.clone())?;
        let first = First {
            batch: batch.start,
            head: heads.start * problem.heads_per_kv(),
            head_kv: heads.start,
            heads: problem.heads(),
        };
        let sequence = piece(&part, request, options, target, first)?;
        let cuts =
            joined.tensors.iter().map(|spec| (spec.role, cuts(problem, &part, batch, heads, spec.role)));
        joined.steps.push(Step::Begin(Part(cuts.collect::<BTreeMap<_, _>>())));
        joined.steps.extend(sequence.steps);
        joined.arena = joined.arena.max(sequence.arena);
        joined.integers = joined.integers.max(sequence.integers);
        // A tensor is not its part, and takes no place of packed vectors. The first part is the largest.
        let packed = sequence.packed.into_iter().map(|packed| Packed { may_be_direct: false, ..packed });
        if joined.packed.is_empty() {
            joined.packed.extend(packed);
        }
        (joined.family, joined.tiles) = (sequence.family, sequence.tiles);
    }
    Ok(joined)
}

/// Some of a problem's batch entries and key heads, with the query heads of those.
fn part_of(problem: &Problem, batch: Range<usize>, heads_kv: Range<usize>) -> Result<Problem> {
    Problem::builder(problem.neighborhood().clone(), problem.dtype())
        .batch(batch.len())
        .heads(heads_kv.len() * problem.heads_per_kv())
        .heads_kv(heads_kv.len())
        .head_dim(problem.head_dim())
        .head_dim_v(problem.head_dim_v())
        .additional_tokens(problem.additional_tokens())
        .relative_positional_bias(problem.has_rpb())
        .initial_state(problem.has_initial_state())
        .scale(Some(problem.scale()))
        .program(problem.program().clone())
        .build()
}

/// What a part takes of a tensor: its axes are told by how their extents depend on the numbers of entries and heads.
fn cuts(
    problem: &Problem,
    part: &Problem,
    batch: &Range<usize>,
    heads: &Range<usize>,
    role: Role,
) -> Vec<Cut> {
    let (whole, of_part) = (problem.shape(role), part.shape(role));
    let mut cuts = Vec::new();
    // The batch is the first axis of every tensor that has one; the bias and captured tensors have none.
    let has_batch = !is_of_heads_alone(role) && !is_captured(role);
    if has_batch && whole[0] != of_part[0] {
        cuts.push((0, batch.start, of_part[0]));
    }
    let differs = |axis: &usize| (*axis > 0 || !has_batch) && whole[*axis] != of_part[*axis];
    if let Some(axis) = (0..whole.len()).find(differs) {
        // Of query heads there are as many a key head everywhere.
        let of_each = whole[axis] / problem.heads_kv();
        cuts.push((axis, heads.start * of_each, of_part[axis]));
    }
    cuts
}

#[cfg(test)]
mod tests {
    use natten_conformance::{Case, HostTensors, cases, evaluate, run_case};
    use natten_core::DType;
    use natten_core::geometry::{AxisParams, Neighborhood};
    use natten_core::program::{Capture, Program};

    use super::*;
    use crate::gpu::tests::backend;

    fn parts(sequence: &Sequence) -> usize {
        sequence.steps.iter().filter(|step| matches!(step, Step::Begin(_))).count()
    }

    /// Whole it takes the arena that it needs.
    fn bytes_of(problem: &Problem, request: &OpRequest) -> u64 {
        let target = Target { has_f64: true, ..Target::BROWSER };
        let whole = piece(problem, request, &PlanOptions::default(), &target, First::default()).unwrap();
        whole.arena * whole.element
    }

    fn problem(batch: usize, heads: usize) -> Problem {
        let axes = [AxisParams::new(9, 3), AxisParams::new(8, 5).causal(true)];
        let program = Program::builder(2)
            .capture(Capture::new("slope", &[heads], DType::F32))
            .score("score - slope[h]*abs(q0 - k0)")
            .dropout(0.25, 3);
        Problem::builder(Neighborhood::new(&axes).unwrap(), DType::F32)
            .batch(batch)
            .heads(heads)
            .heads_kv(heads / 2)
            .head_dim(16)
            .relative_positional_bias(true)
            .program(program.build().unwrap())
            .build()
            .unwrap()
    }

    #[test]
    fn batch_entries_are_parted_before_heads() {
        let problem = problem(3, 8);
        let request = OpRequest::forward(&problem);
        let bytes = bytes_of(&problem, &request);
        for (part, expected) in [(1, 1), (2, 3), (4, 6), (12, 12)] {
            let target = Target { binding_bytes: bytes / part + 2048, ..Target::BROWSER };
            let sequence = sequence(&problem, &request, &PlanOptions::default(), &target).unwrap();
            assert_eq!(parts(&sequence).max(1), expected, "a {part}th");
            assert!(sequence.arena * 4 <= target.binding_bytes);
            // Together they are the whole: every batch entry once, or every one's every head.
            let taken: usize = sequence
                .steps
                .iter()
                .filter_map(|step| match step {
                    Step::Begin(part) => {
                        Some(part.cuts(Role::Key).iter().map(|cut| cut.2).product::<usize>())
                    }
                    _ => None,
                })
                .sum();
            assert!(expected == 1 || taken == if expected == 3 { 3 } else { 3 * 4 }, "{taken}");
        }
    }

    #[test]
    fn what_cannot_be_parted_is_refused() {
        let problem = problem(2, 4);
        let backward = OpRequest::backward(&problem);
        let target = Target { binding_bytes: bytes_of(&problem, &backward) / 2, ..Target::BROWSER };
        let of = |request: &OpRequest, target: &Target| {
            sequence(&problem, request, &PlanOptions::default(), target).map(|sequence| parts(&sequence))
        };
        let error = of(&backward, &target).unwrap_err().to_string();
        assert!(error.contains("grad_slope") && error.contains("max_storage_buffer_binding_size"), "{error}");
        // The bias' gradient is of heads: both batch entries are in every part.
        assert_eq!(of(&backward.wanting([Role::GradQuery, Role::GradRpb]), &target).unwrap(), 2);
        let tiny = Target { binding_bytes: 1000, ..Target::BROWSER };
        let error = of(&OpRequest::forward(&problem), &tiny).unwrap_err().to_string();
        assert!(error.contains("binds at most 1000 bytes"), "{error}");
    }

    /// Cases of the suite on a device that seems to bind less than they need.
    #[test]
    fn parts_give_what_the_whole_gives() {
        let Some(mut backend) = backend() else { return };
        let wanted = [
            "feature-heads-6-2",
            "feature-extra-64-f16",
            "feature-dtype-bf16-2d-extra",
            "feature-layout-reversed-1d-f32",
            "program-alibi-2d",
            "program-dropout-1d",
            "program-rotated-by",
            "linear-gla-state-5",
            "unfused-2d-extra-5-f32",
        ];
        let of = |name: &&str| cases().into_iter().find(|case: &Case| case.name.starts_with(name));
        for case in wanted.iter().filter_map(of) {
            let largest = case.requests.iter().map(|request| bytes_of(&case.problem, request)).max().unwrap();
            backend.target_mut().binding_bytes = largest * 3 / 5;
            let outcome = run_case(&backend, &case);
            assert!(outcome.failures.is_empty(), "{outcome}");
            assert!(
                outcome.refusals.iter().all(|refusal| refusal.reason.contains("sum over all")),
                "{outcome}"
            );
            assert!(!outcome.tensors.is_empty(), "{outcome}");
        }
    }

    /// Tensors that no binding holds, a share at a time: of batch entries, and of heads where an entry is too much.
    #[test]
    fn parts_are_the_whole_to_the_last_bit() {
        let Some(whole) = backend() else { return };
        let window = [AxisParams::new(9, 4), AxisParams::new(7, 3).dilation(2)];
        let problem = Problem::builder(Neighborhood::new(&window).unwrap(), DType::F32)
            .batch(12)
            .heads(4)
            .heads_kv(2)
            .head_dim(12)
            .build()
            .unwrap();
        let requests = [OpRequest::forward(&problem), OpRequest::backward(&problem)];
        let case = Case::new("parts", problem.clone());
        let mut inputs = HostTensors::new();
        let mut expected = Vec::new();
        for request in &requests {
            for spec in problem.tensors(request).unwrap().iter().filter(|spec| !spec.is_output) {
                inputs.entry(spec.role).or_insert_with(|| case.input(spec.role).unwrap());
            }
            let results = evaluate(&whole, &problem, request, &PlanOptions::default(), &inputs).unwrap();
            // What the forward pass gives, the backward pass takes.
            inputs.extend(results.clone());
            expected.push(results);
        }
        for (request, expected) in requests.iter().zip(&expected) {
            // Room for one of the twelve batch entries, and for one key head of the two.
            for (share, count) in [(8, 12), (20, 24)] {
                let most = bytes_of(&problem, request) / share;
                let backend = backend().unwrap().binding_at_most(most);
                let sequence =
                    sequence(&problem, request, &PlanOptions::default(), backend.target()).unwrap();
                assert_eq!(parts(&sequence), count, "{} in bindings of {most} bytes", request.op);
                let largest = sequence.tensors.iter().map(|spec| spec.bytes() as u64).max().unwrap();
                assert!(largest > most, "{largest} bytes and bindings of {most}");
                let found = evaluate(&backend, &problem, request, &PlanOptions::default(), &inputs).unwrap();
                for (role, expected) in expected {
                    assert!(found[role].to_le_bytes() == expected.to_le_bytes(), "{role} in {count} parts");
                }
            }
        }
    }
}
