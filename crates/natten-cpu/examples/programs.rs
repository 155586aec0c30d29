//! What programs cost on the CPU, beside plain softmax in the same run: `cargo run --release -p natten-cpu --example
//! programs [f64|f32|f16|bf16]`. A rate is useful flops a second, those of visible pairs that no mask takes out; the
//! last column is that rate over the plain forward pass'. Runs of both alternate, and the fastest of each counts, so
//! that what else the machine does matters little.

#![allow(clippy::print_stdout, reason = "a program that prints a table")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use natten_core::geometry::{AxisParams, Neighborhood};
use natten_core::program::{Capture, Program, ProgramBuilder};
use natten_core::{
    Backend, Bindings, DType, HostTensor, Op, OpRequest, Plan, PlanOptions, Problem, Queue, Result, Role,
    Tensor, Workspace,
};
use natten_cpu::CpuBackend;

const RUNS: usize = 7;
const HEADS: usize = 2;
const DIM: usize = 64;

fn main() -> Result<()> {
    let dtype = std::env::args().nth(1).map_or(Ok(DType::F32), |name| name.parse())?;
    let cpu = CpuBackend::new()?;
    println!("{}, {} threads, {dtype}\n", cpu.device().name, cpu.device().units);
    println!("| window | program | op | ms | of plain forward's time | rate | of plain forward's rate |");
    println!("|---|---|---|---|---|---|---|");
    let windows = [
        ("full 4096", Neighborhood::full(4096, 4096, None)?),
        ("64x64 k13", Neighborhood::new(&[AxisParams::new(64, 13); 2])?),
    ];
    for (window, neighborhood) in windows {
        let softmax = Program::softmax(neighborhood.rank());
        let plain = problem(&neighborhood, dtype, softmax)?;
        let mut base = Job::new(&cpu, &plain, &OpRequest::forward(&plain))?;
        for (name, share, program) in programs(neighborhood.rank(), dtype)? {
            let problem = problem(&neighborhood, dtype, program)?;
            let tangents = |op: Op| problem.optional_inputs_of(op).iter().collect::<Vec<_>>();
            for request in [
                OpRequest::forward(&problem),
                OpRequest::backward(&problem),
                OpRequest::forward_jvp(&problem, tangents(Op::ForwardJvp)),
                OpRequest::backward_jvp(&problem, tangents(Op::BackwardJvp)),
            ] {
                let mut job = Job::new(&cpu, &problem, &request)?;
                let mut fastest = [f64::INFINITY; 2];
                for _ in 0..RUNS {
                    for (fastest, job) in fastest.iter_mut().zip([&mut base, &mut job]) {
                        *fastest = fastest.min(job.run()?);
                    }
                }
                let rate = |job: &Job, seconds: f64| job.plan.report().cost.useful_flops / seconds;
                let (of_plain, of_job) = (rate(&base, fastest[0]), share * rate(&job, fastest[1]));
                println!(
                    "| {window} | {name} | {} | {:.1} | {:.2} | {:.1} Gflop/s | {:.0} % |",
                    request.op,
                    fastest[1] * 1e3,
                    fastest[1] / fastest[0],
                    of_job / 1e9,
                    100.0 * of_job / of_plain
                );
            }
        }
    }
    Ok(())
}

fn problem(neighborhood: &Neighborhood, dtype: DType, program: Program) -> Result<Problem> {
    Problem::builder(neighborhood.clone(), dtype).heads(HEADS).head_dim(DIM).program(program).build()
}

/// Programs, each with the share of pairs that its mask leaves.
fn programs(rank: usize, dtype: DType) -> Result<Vec<(&'static str, f64, Program)>> {
    let build = |of: &dyn Fn(ProgramBuilder) -> ProgramBuilder| of(Program::builder(rank)).build();
    let slope = || Capture::new("slope", &[HEADS], dtype);
    let mut programs = vec![
        ("softmax", 1.0, build(&|p| p)?),
        ("softcap", 1.0, build(&|p| p.score("20*tanh(score/20)"))?),
        ("sigmoid", 1.0, build(&|p| p.row("sigmoid"))?),
    ];
    match rank {
        1 => {
            programs.push((
                "ALiBi",
                1.0,
                build(&|p| p.capture(slope()).score("score - slope[h]*abs(q - k)"))?,
            ));
            programs.push(("causal", 0.5, build(&|p| p.mask("k <= q"))?));
            programs.push(("dropout", 1.0, build(&|p| p.dropout(0.1, 1))?));
        }
        _ => {
            let table = || Capture::new("table", &[HEADS, 25, 25], dtype);
            let of =
                |p: ProgramBuilder| p.capture(table()).score("score + table[h, k0 - q0 + 12, k1 - q1 + 12]");
            programs.push(("table", 1.0, build(&of)?));
            programs.push(("mean shift", 1.0, build(&|p| p.row("m = sum(x); sigmoid(x - m/169)"))?));
        }
    }
    Ok(programs)
}

/// An operation with its tensors.
struct Job {
    plan: Arc<dyn Plan>,
    queue: Arc<dyn Queue>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    workspace: Workspace,
}

impl Job {
    fn new(cpu: &CpuBackend, problem: &Problem, request: &OpRequest) -> Result<Self> {
        let mut forward = BTreeMap::new();
        if request.op == Op::Backward {
            let mut before = Self::new(cpu, problem, &OpRequest::forward(problem))?;
            before.run()?;
            let outputs = before.plan.tensors().iter().filter(|spec| spec.is_output).map(|spec| spec.role);
            forward = outputs.zip(before.outputs).collect();
        }
        let plan = pollster::block_on(cpu.plan(problem, request, &PlanOptions::default()))?;
        let (mut inputs, mut outputs) = (Vec::new(), Vec::new());
        for spec in plan.tensors() {
            let seed = Role::ALL.iter().position(|&role| role == spec.role).unwrap_or(0);
            let number = |i: usize| ((i * 7919 + seed * 131) % 1009) as f64 / 336.0 - 1.5;
            let tensor = match forward.remove(&spec.role) {
                Some(tensor) => tensor,
                None => HostTensor::from_fn(spec.dtype, &spec.shape, number)?.into(),
            };
            if spec.is_output { &mut outputs } else { &mut inputs }.push(tensor);
        }
        let workspace = plan.new_workspace()?;
        Ok(Self { queue: cpu.queue()?, plan, inputs, outputs, workspace })
    }

    /// Seconds of a run.
    fn run(&mut self) -> Result<f64> {
        let start = Instant::now();
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let bindings = Bindings { inputs: &inputs, outputs: &mut self.outputs };
        self.plan.run(&*self.queue, bindings, &mut self.workspace)?;
        Ok(start.elapsed().as_secs_f64())
    }
}
