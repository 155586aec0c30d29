//! Compiles every kernel that a plan can choose for a list of representative problems, for every generation of GPU, with
//! NVRTC and without a GPU. Plain kernels have to compile; of kernels for tensor cores the compiler's messages and the
//! machine code are read too, because what ruins them is not an error there.
//!
//! Where NVRTC is not on the loader's path nothing can be compiled: `NATTEN_REQUIRE_NVRTC=1` makes that a failure, as
//! continuous integration does. `NATTEN_NVDISASM` names the disassembler; required in the same way.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use natten_core::geometry::{Alignment, AxisParams, Neighborhood};
use natten_core::program::{Capture, Program};
use natten_core::{DType, Error, Op, OpRequest, PlanOptions, Precision, Problem, ProblemBuilder, Role};
use natten_cuda::{Class, Compiler, Generated, Target, generate, generate_matmul_probes};

/// Every generation: the first and the second digit of the compute capability.
const ARCHITECTURES: [(u32, u32); 7] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];

/// The one that all problems are compiled for; the others get the short list.
const THOROUGH: (u32, u32) = (9, 0);

fn is_required() -> bool {
    std::env::var("NATTEN_REQUIRE_NVRTC").is_ok_and(|value| !value.is_empty() && value != "0")
}

/// The compiler, every time anew; `None` where it is neither there nor required.
fn compiler() -> Option<Compiler> {
    match Compiler::new() {
        Ok(compiler) => Some(compiler.without_cache()),
        Err(error) => {
            assert!(!is_required(), "NVRTC is required: {error}");
            None
        }
    }
}

fn window(params: &[AxisParams]) -> Neighborhood {
    Neighborhood::new(params).unwrap()
}

/// Neighborhoods of every rank and kind.
fn neighborhoods() -> Vec<Neighborhood> {
    let axis = AxisParams::new;
    vec![
        Neighborhood::full(4096, 4096, None).unwrap(),
        Neighborhood::full(4096, 4096, Some(Alignment::TopLeft)).unwrap(),
        window(&[axis(32_768, 2048)]),
        window(&[axis(256, 80), axis(256, 80)]),
        window(&[axis(256, 80).stride(16), axis(256, 80).stride(16)]),
        window(&[axis(64, 13), axis(64, 13)]),
        window(&[axis(64, 13).dilation(4), axis(64, 13).dilation(4)]),
        window(&[axis(30, 18), axis(48, 24), axis(80, 24)]),
        window(&[axis(16, 7).causal(true), axis(24, 7), axis(24, 7).dilation(2)]),
        window(&[axis(56, 7), axis(56, 7)]),
    ]
}

fn builder(neighborhood: &Neighborhood, dtype: DType, dim: usize) -> ProblemBuilder {
    Problem::builder(neighborhood.clone(), dtype).heads(4).head_dim(dim)
}

/// What tells a problem of the list from the others.
fn name(problem: &Problem) -> String {
    let program = if problem.program().is_plain_softmax() { "softmax" } else { "a program" };
    format!("{:?} in {}, D {}, {program}", problem.neighborhood(), problem.dtype(), problem.head_dim())
}

fn softcap(rank: usize) -> Program {
    Program::builder(rank).score("30 * tanh(score / 30)").build().unwrap()
}

fn alibi(rank: usize) -> Program {
    let slope = Capture::new("slope", &[4], DType::F32);
    Program::builder(rank).capture(slope).score("score - slope[h] * abs(q0 - k0)").build().unwrap()
}

/// Linear attention, each token with a decay of its own.
fn gated(tokens: usize) -> Program {
    let gate = Capture::new("gate", &[4, tokens], DType::F32);
    Program::builder(1).capture(gate).decay("-softplus(gate[h, k])").build().unwrap()
}

/// Problems that between them ask for every kernel: all neighborhoods in 16 bits, all dtypes, head dims, features,
/// programs. `thorough` has all of them, otherwise a few.
fn problems(thorough: bool) -> Vec<Problem> {
    let all = neighborhoods();
    let (full, plane) = (&all[0], &all[5]);
    let mut builders = vec![
        builder(full, DType::Bf16, 128),
        builder(plane, DType::Bf16, 64),
        builder(plane, DType::F32, 64),
        builder(&all[7], DType::Bf16, 128),
    ];
    if thorough {
        builders.extend(all.iter().map(|n| builder(n, DType::Bf16, 128)));
        builders.extend([64, 128].map(|dim| builder(&all[1], DType::F16, dim)));
        builders.extend([32, 72, 96, 256].map(|dim| builder(plane, DType::F16, dim)));
        builders.extend([DType::F32, DType::F64].map(|dtype| builder(full, dtype, 64)));
        builders.extend(
            [DType::F64, DType::Bf16]
                .map(|dtype| builder(plane, dtype, 40).head_dim_v(24).heads_kv(2).additional_tokens(3)),
        );
        builders.push(builder(plane, DType::Bf16, 64).relative_positional_bias(true));
        builders.push(builder(full, DType::Bf16, 128).program(softcap(1)));
        builders.push(builder(full, DType::F32, 64).program(alibi(1)));
        builders.push(builder(&all[8], DType::F32, 32).program(softcap(3)));
        builders.push(builder(&all[1], DType::F32, 64).program(gated(4096)).initial_state(true));
        builders.push(builder(&all[1], DType::F64, 128).program(gated(4096)));
    }
    builders.into_iter().map(|builder| builder.build().unwrap()).collect()
}

/// Forward passes of f32 from planes of bf16: every neighborhood, short and long vectors, everything that is read.
fn split_problems() -> Vec<Problem> {
    let all = neighborhoods();
    let mut builders: Vec<_> = all.iter().map(|n| builder(n, DType::F32, 128)).collect();
    builders.extend([32, 64, 72, 192].map(|dim| builder(&all[0], DType::F32, dim)));
    builders.push(builder(&all[5], DType::F32, 64).heads_kv(2).additional_tokens(3));
    builders.push(builder(&all[5], DType::F32, 64).relative_positional_bias(true));
    builders.push(builder(&all[0], DType::F32, 128).program(softcap(1)));
    builders.into_iter().map(|builder| builder.build().unwrap()).collect()
}

/// The requests that a problem has: the thorough list has every operation, of the problems that are not in 16 bits.
fn requests(problem: &Problem, thorough: bool) -> Vec<OpRequest> {
    let mut requests = vec![OpRequest::forward(problem)];
    if thorough && problem.dtype().size() > 2 {
        let given = |op| problem.optional_inputs_of(op).iter().collect::<Vec<_>>();
        requests.push(OpRequest::of(Op::ForwardJvp, problem, given(Op::ForwardJvp)));
        requests.push(OpRequest::backward(problem));
        requests.push(OpRequest::of(Op::BackwardJvp, problem, given(Op::BackwardJvp)));
        if problem.program().is_plain_softmax() && !problem.neighborhood().is_full() {
            requests.extend([OpRequest::qk(problem), OpRequest::av(problem)]);
            requests.extend([OpRequest::qk_backward(problem), OpRequest::av_backward(problem)]);
            requests.push(OpRequest::qk_jvp(problem, [Role::TangentQuery]));
            requests.push(OpRequest::av_jvp(problem, [Role::TangentValue]));
        }
    } else {
        requests.push(OpRequest::backward(problem));
    }
    requests
}

/// Calls `check` on every item from as many threads as there are cores, and returns what it complains of.
fn in_parallel<T: Sync>(items: &[T], check: impl Fn(&T) -> Result<(), String> + Sync) -> Vec<String> {
    let (next, complaints) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(complaint) = check(item) {
                        complaints.lock().unwrap().push(complaint);
                    }
                }
            });
        }
    });
    complaints.into_inner().unwrap()
}

/// What of the compiler's messages a kernel's class forbids.
fn complaint(class: Class, log: &str) -> Option<String> {
    if class == Class::Plain {
        return None;
    }
    // Such as C7510 and C7519: wgmma serialised, waits put in. They come as remarks, and the code is correct and slow.
    let codes = ["(C75", "(C76"];
    let bad = |line: &&str| {
        codes.iter().any(|code| line.contains(code))
            || line.contains("bytes stack frame")
                && !line.contains("0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads")
    };
    let lines: Vec<&str> = log.lines().filter(bad).collect();
    (!lines.is_empty()).then(|| lines.join("\n"))
}

/// The machine code as text; `None` where there is no disassembler and none is required.
fn disassemble(cubin: &[u8]) -> Option<String> {
    let Some(program) = std::env::var_os("NATTEN_NVDISASM").filter(|path| !path.is_empty()) else {
        assert!(!is_required(), "NATTEN_NVDISASM must name nvdisasm");
        return None;
    };
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(cubin).unwrap();
    let output = Command::new(program).arg("--print-code").arg(file.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is wrong with the machine code of a kernel for tensor cores.
fn complaint_of_code(class: Class, arch: (u32, u32), code: &str) -> Option<String> {
    let has = |name: &str| {
        code.split_whitespace().any(|word| {
            word.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ';']))
        })
    };
    let mut missing: Vec<String> = match class {
        Class::Wgmma => vec!["HGMMA", "USETMAXREG"],
        // Before Ampere a product of 16 bits is of another shape, and on the newest it has the same name.
        Class::Mma if arch >= (8, 0) => vec!["HMMA.16816", "LDSM"],
        _ => Vec::new(),
    }
    .into_iter()
    .filter(|name| !has(name))
    .map(|name| format!("no {name}"))
    .collect();
    if class != Class::Plain {
        // Before Hopper a shuffle has a way out for diverged warps, which is a call that nobody makes.
        let unwanted = if arch >= (9, 0) { &["LDL", "STL", "CALL"][..] } else { &["LDL", "STL"] };
        missing.extend(unwanted.iter().filter(|name| has(name)).map(|name| format!("has {name}")));
    }
    // What the compiler puts in where it serialises wgmma.
    if class == Class::Wgmma && code.contains("HGMMA.64x8x16.F16") {
        missing.push("has the HGMMA of serialised code".to_owned());
    }
    (!missing.is_empty()).then(|| missing.join(", "))
}

#[test]
fn every_kernel_compiles_for_every_architecture() {
    let Some(compiler) = compiler() else { return };
    let mut kernels = Kernels::default();
    let full = PlanOptions::default();
    for arch in ARCHITECTURES {
        let target = Target::of_arch(arch.0, arch.1);
        let thorough = arch == THOROUGH;
        for problem in problems(thorough) {
            for request in requests(&problem, thorough) {
                kernels.add(&problem, &request, &full, &target);
            }
        }
    }
    kernels.compile(&compiler);
}

#[test]
fn every_kernel_of_split_operands_compiles() {
    let Some(compiler) = compiler() else { return };
    let mut kernels = Kernels::default();
    for precision in [Precision::Bf16x3, Precision::Bf16x6] {
        let options = PlanOptions::default().precision(precision);
        for problem in split_problems() {
            kernels.add(&problem, &OpRequest::forward(&problem), &options, &Target::of_arch(9, 0));
        }
    }
    kernels.compile(&compiler);
}

#[test]
fn a_precision_is_refused_where_nothing_computes_in_it() {
    let [problem, short] =
        [DType::F32, DType::Bf16].map(|dtype| builder(&neighborhoods()[0], dtype, 64).build().unwrap());
    let options = PlanOptions::default().precision(Precision::Bf16x3);
    let refused = |problem, request: &OpRequest, arch: (u32, u32)| {
        let error = generate(problem, request, &options, &Target::of_arch(arch.0, arch.1)).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(&problem, &OpRequest::forward(&problem), (8, 0)).contains("sm_90a"));
    assert!(refused(&problem, &OpRequest::backward(&problem), (9, 0)).contains("forward"));
    assert!(refused(&short, &OpRequest::forward(&short), (9, 0)).contains("bf16x3 in bf16"));
}

/// Kernels to compile, each text once.
#[derive(Default)]
struct Kernels {
    all: Vec<(Generated, Target, String)>,
    seen: BTreeSet<(String, &'static [&'static str], String)>,
}

impl Kernels {
    /// Adds what a plan would launch.
    fn add(&mut self, problem: &Problem, request: &OpRequest, options: &PlanOptions, target: &Target) {
        let kernels = generate(problem, request, options, target).unwrap_or_else(|error| {
            panic!("{} of {} on {}: {error}", request.op, name(problem), target.name())
        });
        assert!(!kernels.is_empty(), "{} of {} launches nothing", request.op, name(problem));
        for kernel in kernels {
            if self.seen.insert((kernel.source.clone(), kernel.options, target.name())) {
                let what = format!("{} {}, {} of {}", kernel.family, kernel.entry, request.op, name(problem));
                self.all.push((kernel, *target, what));
            }
        }
    }

    /// Compiles them all and judges what came of it.
    fn compile(&self, compiler: &Compiler) {
        let complaints = complaints(compiler, &self.all);
        let count = self.all.len();
        assert!(complaints.is_empty(), "{} of {count}:\n{}", complaints.len(), complaints.join("\n"));
    }
}

fn complaints(compiler: &Compiler, kernels: &[(Generated, Target, String)]) -> Vec<String> {
    in_parallel(kernels, |(kernel, target, what)| {
        let fail = |complaint: String| format!("{what} for {}: {complaint}", target.name());
        let compiled = compiler
            .compile(&kernel.source, kernel.options, target)
            .map_err(|error| fail(error.to_string()))?;
        if let Some(complaint) = complaint(kernel.class, &compiled.log) {
            return Err(fail(complaint));
        }
        let code = (kernel.class != Class::Plain).then(|| disassemble(&compiled.cubin)).flatten();
        match code.and_then(|code| complaint_of_code(kernel.class, target.arch, &code)) {
            Some(complaint) => Err(fail(complaint)),
            None => Ok(()),
        }
    })
}

#[test]
fn the_matmul_probes_compile_and_multiply_on_the_fastest_cores() {
    let Some(compiler) = compiler() else { return };
    for arch in ARCHITECTURES {
        let target = Target::of_arch(arch.0, arch.1);
        let probes = generate_matmul_probes(&target);
        let instructions = match arch {
            (9, 0) => ["DMMA", "FFMA", "HGMMA", "HGMMA"],
            (8.., _) => ["DMMA", "FFMA", "HMMA", "HMMA"],
            _ => ["DFMA", "FFMA", "FFMA", "FFMA"],
        };
        for (probe, instruction) in probes.iter().zip(instructions) {
            let compiled = compiler.compile(&probe.source, probe.options, &target).unwrap();
            assert_eq!(complaint(probe.class, &compiled.log), None, "{instruction} on {}", target.name());
            if let Some(code) = disassemble(&compiled.cubin) {
                let count = code.matches(instruction).count();
                assert!(count >= 4, "{count} {instruction} on {}", target.name());
            }
        }
    }
}

#[test]
fn mma_sync_serves_what_wgmma_does_not() {
    let Some(compiler) = compiler() else { return };
    let all = neighborhoods();
    let (full, line, plane, small) = (&all[0], &all[2], &all[5], &all[9]);
    let axis = AxisParams::new;
    let space = window(&[axis(16, 7), axis(24, 7), axis(24, 7)]);
    let problems = [
        builder(small, DType::Bf16, 32),
        builder(&space, DType::Bf16, 64),
        builder(plane, DType::Bf16, 128).heads_kv(2).additional_tokens(77),
        builder(small, DType::F16, 32).additional_tokens(3),
        builder(plane, DType::Bf16, 64),
        builder(full, DType::F16, 64),
        builder(line, DType::Bf16, 128),
        builder(&all[3], DType::F16, 72),
        builder(plane, DType::Bf16, 256),
        builder(small, DType::F16, 64).relative_positional_bias(true),
        builder(full, DType::Bf16, 128).program(alibi(1)),
        builder(full, DType::Bf16, 64).program(alibi(1)).additional_tokens(128),
        builder(line, DType::F16, 64).additional_tokens(20),
        builder(plane, DType::F16, 256).additional_tokens(40),
    ]
    .map(|builder| builder.build().unwrap());
    let mut kernels = Kernels::default();
    for arch in [(8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)] {
        let target = Target::of_arch(arch.0, arch.1);
        // Every problem for the oldest, two of small windows for all, two with additional tokens where no wgmma is.
        let count = match arch {
            (8, 0) => problems.len(),
            (9, 0) => 2,
            _ => 4,
        };
        for problem in &problems[..count] {
            kernels.add(problem, &OpRequest::forward(problem), &PlanOptions::default(), &target);
        }
    }
    // The others are for tensors that are not aligned.
    kernels.all.retain(|(kernel, ..)| kernel.family == "mma");
    assert_eq!(kernels.all.len(), problems.len() + 2 + 4 * 4);
    kernels.compile(&compiler);
}

#[test]
fn a_refused_source_comes_back_with_the_log() {
    let Some(compiler) = compiler() else { return };
    let source = "extern \"C\" __global__ void broken() { return undeclared; }";
    match compiler.compile(source, &[], &Target::of_arch(8, 0)).unwrap_err() {
        Error::Compile { log, source_text, .. } => {
            assert!(log.contains("undeclared"), "{log}");
            assert_eq!(source_text, source);
        }
        other => panic!("{other}"),
    }
}

#[test]
fn an_architecture_that_is_too_old_is_unavailable_and_a_new_one_takes_its_family() {
    let Some(compiler) = compiler() else { return };
    let source = "extern \"C\" __global__ void empty() {}";
    let old = compiler.compile(source, &[], &Target::of_arch(3, 0)).unwrap_err();
    assert!(matches!(old, Error::Unavailable { .. }) && old.to_string().contains("3.0"), "{old}");
    let unknown = compiler.compile(source, &[], &Target::of_arch(8, 8)).unwrap();
    assert!(!unknown.cubin.is_empty());
}

#[test]
fn messages_and_code_are_judged_by_class() {
    let clean = "ptxas info : 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads";
    let spilled = "ptxas info : 40 bytes stack frame, 36 bytes spill stores, 40 bytes spill loads";
    let serialised =
        "ptxas info : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized";
    assert_eq!(complaint(Class::Mma, clean), None);
    assert_eq!(complaint(Class::Plain, spilled), None);
    assert!(complaint(Class::Mma, spilled).is_some() && complaint(Class::Wgmma, serialised).is_some());
    let good = "HGMMA.64x128x16.F32.BF16 R24 ; USETMAXREG.DEALLOC.CTAPOOL 0x18 ;";
    assert_eq!(complaint_of_code(Class::Wgmma, (9, 0), good), None);
    assert!(complaint_of_code(Class::Wgmma, (9, 0), &format!("{good} STL [R1] ;")).unwrap().contains("STL"));
    assert!(complaint_of_code(Class::Mma, (8, 0), "HMMA.16816.F32.BF16").unwrap().contains("LDSM"));
}
