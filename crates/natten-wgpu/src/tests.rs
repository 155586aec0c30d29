//! Every shader of every family, dtype, operation and representative program is WGSL that naga takes, and free of what
//! browsers refuse; a page of them is kept to be read.

use std::collections::HashSet;

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::{DType, Op, OpRequest, PlanOptions, Problem, Role};

use crate::family::Family;
use crate::generic::sequence;
use crate::sequence::Sequence;
use crate::target::{Matrices, Target};

const VULKAN: Target = Target { has_f64: true, workgroup_bytes: 48 << 10, ..Target::BROWSER };

/// With matrices that subgroups hold, of the device's own or as loops.
fn with_matrices(edge: u32, is_native: bool) -> Target {
    let matrices = Some(Matrices { edge, lanes: 32, is_native });
    Target { matrices, subgroup: Some(32), ..VULKAN }
}

fn program(name: &str) -> Program {
    let builder = Program::builder(2);
    let builder = match name {
        "softmax" => builder,
        "score-mask-dropout" => builder
            .capture(Capture::new("bias", &[2, 12, 14], DType::F32))
            .capture(Capture::new("document", &[168], DType::I32))
            .score("20*tanh(score/20) + bias[h, q0, k1]")
            .mask("document[q] == document[k] || k0 <= q0")
            .dropout(0.25, 7),
        "blocks" => {
            builder.capture(Capture::new("blocks", &[2, 3], DType::I32)).mask("blocks[q % 2, k % 3] != 0")
        }
        "rows" => builder.row("m = max(x); a = sum(abs(x)); x/(1 + a + abs(m))"),
        "sigmoid" => builder.row("sigmoid"),
        _ => builder
            .capture(Capture::new("turn", &[168, 8], DType::F16))
            .query_mod("x*turn[q, d] + half(x)")
            .key_mod("x/sqrt(sum(x*x) + 1)")
            .value_mod("pair(x)*erf(x)"),
    };
    builder.build().unwrap()
}

fn problem(dtype: DType, name: &str) -> Problem {
    let axes = [AxisParams::new(12, 5).stride(2).causal(true), AxisParams::new(14, 3).dilation(3)];
    Problem::builder(Neighborhood::new(&axes).unwrap(), dtype)
        .batch(2)
        .heads(4)
        .heads_kv(2)
        .head_dim(8)
        .head_dim_v(6)
        .additional_tokens(3)
        .relative_positional_bias(true)
        .program(program(name))
        .build()
        .unwrap()
}

fn recurrence(dtype: DType) -> Problem {
    let sequence = Neighborhood::full(9, 9, Some(Alignment::TopLeft)).unwrap();
    let gates = Capture::new("gate", &[2, 4, 9], dtype);
    let program = Program::builder(1).capture(gates).decay("-softplus(gate[b, h, k])").build().unwrap();
    Problem::builder(sequence, dtype)
        .batch(2)
        .heads(4)
        .heads_kv(2)
        .head_dim(8)
        .head_dim_v(6)
        .initial_state(true)
        .program(program)
        .build()
        .unwrap()
}

/// The operation with everything given and wanted that there is.
fn whole(problem: &Problem, op: Op) -> OpRequest {
    OpRequest::of(op, problem, problem.optional_inputs_of(op).iter())
}

/// A family that is the only one may refuse; a planner that has the choice does not.
fn visit_planned(
    name: &str,
    target: &Target,
    sequence: natten_core::Result<Sequence>,
    visit: &mut impl FnMut(&str, &Sequence),
) {
    match sequence {
        Ok(sequence) => visit(name, &sequence),
        Err(error) => assert!(target.family.is_some(), "{name}: {error}"),
    }
}

fn every_sequence(target: &Target, mut visit: impl FnMut(&str, &Sequence)) {
    for dtype in DType::FLOATS {
        for name in ["softmax", "score-mask-dropout", "rows", "sigmoid", "mods"] {
            let problem = problem(dtype, name);
            for &op in Op::ALL {
                if op.is_unfused() && name != "softmax" {
                    continue;
                }
                let request = whole(&problem, op);
                let sequence = sequence(&problem, &request, &PlanOptions::default(), target);
                visit_planned(&format!("{name} {op} {dtype}"), target, sequence, &mut visit);
            }
        }
        let axes = [AxisParams::new(12, 5), AxisParams::new(14, 3).dilation(3)];
        // Without additional tokens, which not every family takes.
        for (name, dim) in [("softmax", 72), ("blocks", 72), ("softmax", 24), ("blocks", 24)] {
            let window = Neighborhood::new(&axes).unwrap();
            let plain = Problem::builder(window, dtype).heads(4).heads_kv(2).head_dim(dim);
            let plain = plain.program(program(name)).build().unwrap();
            for op in [Op::Forward, Op::Backward] {
                let sequence = sequence(&plain, &whole(&plain, op), &PlanOptions::default(), target);
                visit_planned(&format!("plain {name} {dim} {op} {dtype}"), target, sequence, &mut visit);
            }
        }
        let problem = recurrence(dtype);
        for op in [Op::Forward, Op::ForwardJvp, Op::Backward, Op::BackwardJvp] {
            let sequence = sequence(&problem, &whole(&problem, op), &PlanOptions::default(), target);
            visit_planned(&format!("recurrence {op} {dtype}"), target, sequence, &mut visit);
        }
    }
}

#[test]
fn naga_takes_every_shader() {
    let mut seen = HashSet::new();
    let mut targets = vec![
        VULKAN,
        Target { subgroup: Some(32), ..VULKAN },
        with_matrices(16, true),
        with_matrices(8, true),
        with_matrices(16, false),
    ];
    targets.extend(Family::ALL.map(|family| Target { family: Some(family), ..with_matrices(16, true) }));
    for target in &targets {
        every_sequence(target, |name, sequence| check(&mut seen, name, sequence));
    }
    for family in Family::ALL.map(Family::name) {
        assert!(seen.iter().any(|(_, of)| *of == family), "{family}");
    }
    // Gradients of keys and values in one shader, and in one each.
    for sums in [["first", "second"], ["first", ""], ["second", ""]] {
        let has = |source: &str| {
            ["first", "second"]
                .iter()
                .all(|name| source.contains(&format!("fn write_{name}(")) == sums.contains(name))
        };
        assert!(seen.iter().any(|(source, _)| has(source)), "{sums:?}");
    }
    assert!(seen.len() > 100);
}

fn check(seen: &mut HashSet<(String, &'static str)>, name: &str, sequence: &Sequence) {
    for run in sequence.runs().filter(|run| seen.insert((run.source.clone(), sequence.family))) {
        let module = naga::front::wgsl::parse_str(&run.source)
            .unwrap_or_else(|e| panic!("{name}, {}: {}", run.label, e.emit_to_string(&run.source)));
        let capabilities = naga::valid::Capabilities::FLOAT64
            | naga::valid::Capabilities::SHADER_INT64
            | naga::valid::Capabilities::SHADER_FLOAT16
            | naga::valid::Capabilities::SUBGROUP
            | naga::valid::Capabilities::COOPERATIVE_MATRIX;
        let info = naga::valid::Validator::new(naga::valid::ValidationFlags::all(), capabilities)
            .subgroup_operations(naga::valid::SubgroupOperationSet::all())
            .subgroup_stages(naga::valid::ShaderStages::COMPUTE)
            .validate(&module)
            .unwrap_or_else(|e| panic!("{name}, {}: {}", run.label, e.emit_to_string(&run.source)));
        // Vulkan's compilers take cooperative matrices as SPIR-V alone.
        if run.source.contains(crate::spirv::MATRICES) {
            for is_checked in [false, true] {
                let compiled = crate::spirv::compile(&run.source, is_checked).unwrap();
                assert!(crate::spirv::tests::check(&compiled.words) > 0, "{name}, {}", run.label);
                let bound: Vec<u32> = compiled.bindings.iter().map(|&(binding, _)| binding).collect();
                assert_eq!(
                    bound,
                    (0..run.bindings.len() as u32).collect::<Vec<_>>(),
                    "{name}, {}",
                    run.label
                );
            }
        }
        // What the shader uses is what the step binds: layouts are made from the texts.
        let entry = info.get_entry_point(0);
        let used = module
            .global_variables
            .iter()
            .filter(|(handle, variable)| variable.binding.is_some() && !entry[*handle].is_empty());
        assert_eq!(used.count(), run.bindings.len(), "{name}, {}", run.label);
    }
}

/// The probe is WGSL too.
#[test]
fn naga_takes_the_probe_of_matrices() {
    for edge in [8, 16] {
        let matrices = Matrices { edge, lanes: 32, is_native: true };
        let source = crate::rate::matrix_probe(&matrices, 4);
        for is_checked in [false, true] {
            let compiled = crate::spirv::compile(&source, is_checked).unwrap_or_else(|e| panic!("{e}"));
            assert!(crate::spirv::tests::check(&compiled.words) > 0);
        }
    }
}

/// The planner's sum is what the shader takes: no driver is asked to refuse it.
#[test]
fn workgroup_memory_fits_the_target() {
    let both = vec![Op::Forward, Op::Backward];
    let tiled = [(Target::BROWSER, 16 << 10), (VULKAN, 48 << 10)]
        .map(|(target, most)| (target, most, DType::F32, "tiled", both.clone(), vec![8, 64, 128, 256]));
    let matrix = (with_matrices(16, true), 48 << 10, DType::F16, "matrix", both, vec![8, 64, 128]);
    for (target, most, dtype, family, ops, dims) in tiled.into_iter().chain([matrix]) {
        for (&dim, &op) in dims.iter().flat_map(|dim| ops.iter().map(move |op| (dim, op))) {
            let neighborhood = Neighborhood::full(300, 300, None).unwrap();
            let problem = Problem::builder(neighborhood, dtype).head_dim(dim).build().unwrap();
            let request = OpRequest::of(op, &problem, []);
            let sequence = sequence(&problem, &request, &PlanOptions::default(), &target).unwrap();
            assert_eq!(sequence.family, family);
            for run in sequence.runs() {
                let module = naga::front::wgsl::parse_str(&run.source).unwrap();
                let mut layouter = naga::proc::Layouter::default();
                layouter.update(module.to_ctx()).unwrap();
                let shared = |(_, variable): &(_, &naga::GlobalVariable)| {
                    variable.space == naga::AddressSpace::WorkGroup
                };
                let sizes = module.global_variables.iter().filter(shared);
                let sizes: Vec<u32> = sizes.map(|(_, variable)| layouter[variable.ty].size).collect();
                let bytes: u32 = sizes.iter().sum();
                assert!(bytes <= most, "{op}, head dim {dim}: {bytes} bytes of {most}");
                // NVIDIA's driver lays arrays out one behind the other in an order of its own, and loads matrices from
                // multiples of 16 bytes: where something smaller lay before the weights, outputs were wrong.
                if run.source.contains(crate::spirv::MATRICES) {
                    assert!(sizes.iter().all(|size| size.is_multiple_of(16)), "{op}, {dim}: {sizes:?}");
                }
            }
        }
    }
}

/// Boxes that a caller asks for are taken, by the smallest tile that holds them, and refused where there is none.
#[test]
fn tiles_hold_the_boxes_that_are_asked_for() {
    let neighborhood = Neighborhood::full(1000, 1000, None).unwrap();
    let problem = Problem::builder(neighborhood, DType::F32).head_dim(64).build().unwrap();
    let request = OpRequest::forward(&problem);
    let target = Target { family: Some(Family::Tiled), ..VULKAN };
    let of = |query: usize, key: usize| {
        let options = PlanOptions::default().query_tile(&[query]).key_tile(&[key]);
        sequence(&problem, &request, &options, &target)
    };
    for (query, key, threads) in [(128, 64, 128), (128, 32, 128), (64, 64, 64), (50, 30, 64), (65, 33, 128)] {
        let sequence = of(query, key).unwrap();
        assert_eq!(sequence.tiles, [[1, 1, query], [1, 1, key]]);
        let is_tile = |run: &&crate::sequence::Run| run.label == "tiles";
        let source = &sequence.runs().find(is_tile).unwrap().source;
        assert!(source.contains(&format!("@workgroup_size({threads})")), "{query} by {key}");
        let columns = if key > 32 { 64 } else { 32 };
        assert!(source.contains(&format!("const COLUMN_COUNT: u32 = {columns}u;")), "{query} by {key}");
    }
    for (query, key) in [(129, 64), (64, 65)] {
        assert!(matches!(of(query, key), Err(natten_core::Error::Unsupported { .. })), "{query} by {key}");
    }
}

/// Browsers want barriers where control flow is uniform. Shaders with barriers have them in `main` alone, outside of what
/// depends on an invocation: lines that open a block by `lane`, and those inside, have none.
#[test]
fn barriers_stand_where_all_invocations_come() {
    every_sequence(&VULKAN, |name, sequence| {
        for run in sequence.runs() {
            assert!(!run.source.contains("atomicAdd") && !run.source.contains("subgroup"), "{name}");
            let mut depth_of_lane: Option<usize> = None;
            let mut depth = 0;
            for line in run.source.lines() {
                let opens_by_lane =
                    line.contains("if (") && line.contains("lane") && line.trim_end().ends_with('{');
                if opens_by_lane && depth_of_lane.is_none() {
                    depth_of_lane = Some(depth);
                }
                assert!(depth_of_lane.is_none() || !line.contains("Barrier"), "{name}: {line}");
                depth += line.matches('{').count();
                depth -= line.matches('}').count();
                if depth_of_lane.is_some_and(|at| depth <= at) {
                    depth_of_lane = None;
                }
            }
        }
    });
}

#[test]
fn what_does_not_fit_is_refused_with_the_limit() {
    let problem = problem(DType::F64, "softmax");
    let request = OpRequest::forward(&problem);
    let of = |problem: &Problem, target: &Target| {
        sequence(problem, &OpRequest::forward(problem), &PlanOptions::default(), target)
            .unwrap_err()
            .to_string()
    };
    assert!(of(&problem, &Target::BROWSER).contains("SHADER_F64"), "{request:?}");
    let neighborhood = Neighborhood::full(1 << 20, 1 << 20, None).unwrap();
    let large = Problem::builder(neighborhood, DType::F32).head_dim(64).build().unwrap();
    let message = of(&large, &Target::BROWSER);
    assert!(
        message.contains("max_storage_buffer_binding_size") && message.contains("134217728"),
        "{message}"
    );
    let slow = Target { loop_iterations: Some(65_535), ..Target::BROWSER };
    let neighborhood = Neighborhood::full(1 << 16, 1 << 16, None).unwrap();
    let long = Problem::builder(neighborhood, DType::F32).head_dim(64).build().unwrap();
    assert!(of(&long, &slow).contains("llvmpipe"));
}

#[test]
fn emitted_plans_are_whole() {
    let problem = problem(DType::F16, "softmax");
    let request = OpRequest::of(Op::Backward, &problem, [Role::GradLogsumexp]);
    let text = crate::wgsl(&problem, &request, &PlanOptions::default()).unwrap().text;
    let plan: serde_json::Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> =
        plan["buffers"].as_array().unwrap().iter().map(|buffer| buffer["name"].as_str().unwrap()).collect();
    for step in plan["steps"].as_array().unwrap().iter().filter(|step| step.get("clear").is_none()) {
        assert!(plan["shaders"].get(step["shader"].as_u64().unwrap() as usize).is_some());
        for binding in step["bindings"].as_array().unwrap() {
            assert!(names.contains(&binding.as_str().unwrap()), "{binding}");
        }
    }
}

/// Representative shaders as they are, to be read in a change's diff.
#[test]
fn representative_shaders() {
    let softmax = problem(DType::F32, "softmax");
    let program = problem(DType::F16, "score-mask-dropout");
    let forward =
        sequence(&softmax, &OpRequest::forward(&softmax), &PlanOptions::default(), &Target::BROWSER);
    let backward = whole(&program, Op::Backward);
    let backward = sequence(&program, &backward, &PlanOptions::default(), &Target::BROWSER);
    let linear = recurrence(DType::F32);
    let linear =
        sequence(&linear, &whole(&linear, Op::ForwardJvp), &PlanOptions::default(), &Target::BROWSER);
    let axes = [AxisParams::new(40, 13), AxisParams::new(44, 9).dilation(2)];
    let plain = |dtype| {
        let problem = Problem::builder(Neighborhood::new(&axes).unwrap(), dtype).heads(4).heads_kv(2);
        problem.head_dim(64).build().unwrap()
    };
    let of = |dtype, op, family| {
        let problem = plain(dtype);
        let target = Target { family: Some(family), ..with_matrices(16, true) };
        sequence(&problem, &whole(&problem, op), &PlanOptions::default(), &target)
    };
    let matrix = of(DType::F16, Op::Forward, Family::Matrix);
    let subgroup = of(DType::F32, Op::Forward, Family::Subgroup);
    let tiled_backward = of(DType::F32, Op::Backward, Family::Tiled);
    let matrix_backward = of(DType::F16, Op::Backward, Family::Matrix);
    for (name, sequence) in [
        ("forward", forward),
        ("backward", backward),
        ("recurrence", linear),
        ("matrix", matrix),
        ("subgroup", subgroup),
        ("tiled_backward", tiled_backward),
        ("matrix_backward", matrix_backward),
    ] {
        let sequence = sequence.unwrap();
        let mut known: Vec<&str> = Vec::new();
        let mut text = String::new();
        for run in sequence.runs() {
            text += &format!("=== {} {:?} {:?}\n", run.label, run.bindings, run.workgroups);
            // The elementary functions are alike in all.
            let shown = match run.source.split_once("// natten-core's random numbers") {
                Some((_, rest)) => rest,
                None => &run.source,
            };
            if !known.contains(&shown) {
                known.push(shown);
                text += shown;
            }
        }
        insta::assert_snapshot!(name, text);
    }
}
