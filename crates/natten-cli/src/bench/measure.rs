//! Measures one operation of one case: fresh random inputs, a warm-up, then samples of many runs each, long enough that a
//! clock which ramps up or a launch that costs something does not show. Some rows of a forward pass are computed again in
//! f64 here, so that a rate is never that of a wrong result.

use std::time::{Duration, Instant};

use half::{bf16, f16};
use natten::{
    Bindings, DType, Device, Error, HostElement, HostTensor, Op, OpRequest, Plan, PlanOptions, Precision,
    Problem, Result, Role, Tensor, TensorSpec, Workspace, block_on, checked_len,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, StandardNormal};

/// Samples of a case.
const SAMPLES: u32 = 10;

/// The most runs of a sample, however short they are.
const MAX_RUNS: u32 = 2000;

/// Random numbers that are drawn for a tensor; larger ones repeat them. A prime, so that no two rows are alike.
const DRAWN: usize = 1_000_003;

/// Query rows that are computed again.
const CHECKED: usize = 12;

/// What was measured of an operation.
#[derive(Clone, Debug)]
pub(crate) struct Measured {
    /// The median of the samples' times a run.
    pub(crate) median: Duration,
    /// The least of them.
    pub(crate) least: Duration,
    /// Flops of the visible pairs.
    pub(crate) useful_flops: f64,
    /// Flops of the visited boxes.
    pub(crate) visited_flops: f64,
    /// Bytes of all tensors.
    pub(crate) memory: usize,
    /// Bytes of workspace.
    pub(crate) workspace: usize,
    /// The planner's choices.
    pub(crate) config: Vec<(String, String)>,
    /// The largest error of the rows that were computed again, over the largest value in them; `None` where none were.
    pub(crate) error: Option<f64>,
}

/// How long to measure, and from which random numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// The time that all samples of a case take together, about.
    pub(crate) time: Duration,
    /// What the inputs are drawn from.
    pub(crate) seed: u64,
}

/// Measures an operation on a device.
///
/// # Errors
/// Whatever the device says; [`Error::Device`] where rows that were computed again differ.
pub(crate) fn measure(
    device: &Device,
    problem: &Problem,
    op: Op,
    options: &PlanOptions,
    effort: Effort,
) -> Result<Measured> {
    let given: Vec<Role> = match op.is_forward_mode() {
        true => problem.optional_inputs_of(op).iter().filter(|role| role.tangent_of().is_some()).collect(),
        false => Vec::new(),
    };
    // Of the forward pass only what inference asks for, as the peers are measured.
    let request = match op {
        Op::Forward => OpRequest::forward(problem).wanting([Role::Output]),
        op => OpRequest::of(op, problem, given),
    };
    let plan = device.plan(problem, &request, options)?;
    let mut run = Run::new(device, problem, &*plan, effort.seed)?;
    let (median, least) = run.time(effort.time)?;
    let error = match op == Op::Forward && problem.program().is_plain_softmax() {
        true => Some(run.check(problem, options.precision, effort.seed)?),
        false => None,
    };
    let report = plan.report();
    Ok(Measured {
        median,
        least,
        useful_flops: report.cost.useful_flops,
        visited_flops: report.cost.visited_flops,
        memory: plan.tensors().iter().map(TensorSpec::bytes).sum(),
        workspace: report.workspace,
        config: report.config.clone(),
        error,
    })
}

/// A plan with everything that it runs on.
struct Run<'a> {
    device: &'a Device,
    plan: &'a dyn Plan,
    hosts: Vec<HostTensor>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    workspace: Workspace,
}

impl<'a> Run<'a> {
    fn new(device: &'a Device, problem: &Problem, plan: &'a dyn Plan, seed: u64) -> Result<Self> {
        let specs = || plan.tensors().iter().filter(|spec| !spec.is_output);
        let hosts = specs().map(|spec| random(spec, seed)).collect::<Result<Vec<_>>>()?;
        let mut inputs = hosts
            .iter()
            .map(|host| device.backend().upload(&**device.queue(), host.clone()))
            .collect::<Result<Vec<_>>>()?;
        // The backward pass is given what the forward pass gave: weights of other numbers could overflow.
        let of_forward: Vec<Role> =
            specs().map(|s| s.role).filter(|r| matches!(r, Role::Output | Role::Logsumexp)).collect();
        if !of_forward.is_empty() {
            let forward = OpRequest::forward(problem).wanting(of_forward);
            let forward = device.plan(problem, &forward, &PlanOptions::default())?;
            let places: Vec<usize> = forward
                .tensors()
                .iter()
                .filter_map(|spec| specs().position(|input| input.role == spec.role))
                .collect();
            let (given, results) =
                places.split_at(forward.tensors().iter().filter(|spec| !spec.is_output).count());
            let mut outputs = outputs_of(device, &*forward)?;
            let bound: Vec<&Tensor> = given.iter().map(|&place| &inputs[place]).collect();
            let bindings = Bindings { inputs: &bound, outputs: &mut outputs };
            forward.run(&**device.queue(), bindings, &mut forward.new_workspace()?)?;
            block_on(device.queue().finish())?;
            for (&place, output) in results.iter().zip(outputs) {
                inputs[place] = output;
            }
        }
        let outputs = outputs_of(device, plan)?;
        Ok(Self { device, plan, hosts, inputs, outputs, workspace: plan.new_workspace()? })
    }

    /// The time that so many runs take one after another, the device's own where it has a clock.
    fn runs(&mut self, count: u32) -> Result<Duration> {
        let queue = &**self.device.queue();
        let inputs: Vec<&Tensor> = self.inputs.iter().collect();
        let mut simulated = None;
        block_on(queue.finish())?;
        let timer = queue.timer()?;
        let start = Instant::now();
        for _ in 0..count {
            let bindings = Bindings { inputs: &inputs, outputs: &mut self.outputs };
            let submission = self.plan.run(queue, bindings, &mut self.workspace)?;
            if let Some(time) = submission.simulated {
                *simulated.get_or_insert(Duration::ZERO) += time;
            }
        }
        let elapsed = match timer {
            Some(timer) => block_on(timer.stop())?,
            None => {
                block_on(queue.finish())?;
                start.elapsed()
            }
        };
        Ok(simulated.unwrap_or(elapsed))
    }

    /// The median and the least time of a run.
    fn time(&mut self, effort: Duration) -> Result<(Duration, Duration)> {
        let start = Instant::now();
        self.runs(1)?;
        let mut once = self.runs(1)?;
        while start.elapsed() < effort / 4 {
            let runs = runs_in(effort / 16, once);
            once = self.runs(runs)? / runs;
        }
        let runs = runs_in(effort / SAMPLES, once);
        let mut samples = Vec::new();
        let start = Instant::now();
        for _ in 0..SAMPLES {
            samples.push(self.runs(runs)? / runs);
            // What takes seconds is measured less often, and three times at least.
            if samples.len() >= 3 && start.elapsed() > effort * 2 {
                break;
            }
        }
        samples.sort_unstable();
        Ok((samples[samples.len() / 2], samples[0]))
    }

    /// The largest error of some rows of the output, over the largest value in them.
    fn check(&self, problem: &Problem, precision: Precision, seed: u64) -> Result<f64> {
        let output = block_on(self.device.backend().download(&**self.device.queue(), &self.outputs[0]))?;
        let [query, key, value] = &self.hosts[..] else { return Ok(0.0) };
        let n = problem.neighborhood();
        let queries: usize = n.query_shape().iter().product();
        let mut random = StdRng::seed_from_u64(!seed);
        let (mut error, mut largest) = (0.0f64, 0.0f64);
        for number in 0..CHECKED {
            // The first and the last query are where windows meet borders.
            let token = match number {
                0 => 0,
                1 => queries - 1,
                _ => random.random_range(0..queries),
            };
            let batch = random.random_range(0..problem.batch());
            let head = random.random_range(0..problem.heads());
            let row = row(problem, [query, key, value], batch, head, token);
            let start = ((batch * queries + token) * problem.heads() + head) * problem.head_dim_v();
            for (index, expected) in row.into_iter().enumerate() {
                error = error.max((output.slice().get(start + index) - expected).abs());
                largest = largest.max(expected.abs());
            }
        }
        let relative = error / largest.max(f64::MIN_POSITIVE);
        // The weights are rounded to the dtype before they are summed; sums in f32 of thousands of terms lose more.
        let bound = 4.0 * precision.roundoff(problem.dtype()) + 1e-5;
        if relative.is_nan() || relative > bound {
            return Err(Error::Device {
                backend: self.plan.report().backend.into(),
                message: format!(
                    "an output is off by {relative:.1e} of its largest value; {bound:.1e} is allowed"
                ),
            });
        }
        Ok(relative)
    }
}

fn outputs_of(device: &Device, plan: &dyn Plan) -> Result<Vec<Tensor>> {
    plan.tensors().iter().filter(|spec| spec.is_output).map(|spec| device.backend().empty(spec)).collect()
}

/// How many runs fill a time.
fn runs_in(time: Duration, once: Duration) -> u32 {
    let runs = time.as_secs_f64() / once.as_secs_f64().max(1e-9);
    (runs.ceil() as u32).clamp(1, MAX_RUNS)
}

/// A tensor of standard normal numbers, of other ones for each role; captured tensors small and positive, as slopes are.
fn random(spec: &TensorSpec, seed: u64) -> Result<HostTensor> {
    let role = spec.name.bytes().fold(seed, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    let mut random = StdRng::seed_from_u64(role);
    let len = checked_len(&spec.shape)?;
    let is_capture = matches!(spec.role, Role::Capture(_));
    let drawn: Vec<f64> = (0..len.min(DRAWN))
        .map(|_| StandardNormal.sample(&mut random))
        .map(|x: f64| if is_capture { x.abs() * 0.01 } else { x })
        .collect();
    match spec.dtype {
        DType::F64 => repeated::<f64>(&spec.shape, &drawn, len),
        DType::F32 => repeated::<f32>(&spec.shape, &drawn, len),
        DType::F16 => repeated::<f16>(&spec.shape, &drawn, len),
        DType::Bf16 => repeated::<bf16>(&spec.shape, &drawn, len),
        _ => repeated::<i32>(&spec.shape, &drawn, len),
    }
}

fn repeated<T: HostElement>(shape: &[usize], drawn: &[f64], len: usize) -> Result<HostTensor> {
    let drawn: Vec<T> = drawn.iter().map(|&x| T::from_f64(x)).collect();
    let mut data = Vec::new();
    data.try_reserve_exact(len)
        .map_err(|_| Error::OutOfMemory { needed: len * size_of::<T>(), available: None })?;
    while data.len() < len {
        data.extend_from_slice(&drawn[..drawn.len().min(len - data.len())]);
    }
    HostTensor::new(shape, data)
}

/// A row of the output of softmax attention, in f64, for the query of a row-major number.
fn row(
    problem: &Problem,
    [query, key, value]: [&HostTensor; 3],
    batch: usize,
    head: usize,
    token: usize,
) -> Vec<f64> {
    let axes = problem.neighborhood().axes();
    let [_, y, x] = axes.map(|axis| axis.query_len());
    let at = [token / (x * y), token / x % y, token % x];
    // The keys along each axis, and how many tokens lie between neighbours.
    let keys: [Vec<usize>; 3] = std::array::from_fn(|a| {
        let (group, position) = axes[a].locate(at[a]);
        axes[a].window(group, position).map(|position| axes[a].token(group, position)).collect()
    });
    let lens = axes.map(|axis| axis.key_len());
    let (heads, heads_kv) = (problem.heads(), problem.heads_kv());
    let (dim, dim_v) = (problem.head_dim(), problem.head_dim_v());
    let queries: usize = axes.iter().map(|axis| axis.query_len()).product();
    let query_at = ((batch * queries + token) * heads + head) * dim;
    let query: Vec<f64> = (0..dim).map(|d| query.slice().get(query_at + d)).collect();
    let head_kv = head / problem.heads_per_kv();
    let mut rows = Vec::new();
    for &i in &keys[0] {
        for &j in &keys[1] {
            for &k in &keys[2] {
                let token = ((batch * lens[0] + i) * lens[1] + j) * lens[2] + k;
                let row = token * heads_kv + head_kv;
                let dot: f64 = (0..dim).map(|d| query[d] * key.slice().get(row * dim + d)).sum();
                rows.push((row, dot * problem.scale()));
            }
        }
    }
    let largest = rows.iter().map(|row| row.1).fold(f64::NEG_INFINITY, f64::max);
    let (mut sum, mut output) = (0.0, vec![0.0; dim_v]);
    for (row, score) in rows {
        let weight = (score - largest).exp();
        sum += weight;
        for (d, output) in output.iter_mut().enumerate() {
            *output += weight * value.slice().get(row * dim_v + d);
        }
    }
    output.iter_mut().for_each(|output| *output /= sum);
    output
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use natten::geometry::{AxisParams, Neighborhood};
    use natten::reference::ReferenceBackend;

    use super::*;

    #[test]
    fn every_operation_is_measured_and_the_forward_pass_is_checked() {
        let device = Device::new(Arc::new(ReferenceBackend::new())).unwrap();
        let axes = [AxisParams::new(5, 3), AxisParams::new(6, 3).dilation(2)];
        let n = Neighborhood::new(&axes).unwrap();
        let problem = Problem::builder(n, DType::F32).heads(2).head_dim(4).build().unwrap();
        let effort = Effort { time: Duration::from_millis(2), seed: 3 };
        for op in [Op::Forward, Op::ForwardJvp, Op::Backward, Op::BackwardJvp] {
            let measured = measure(&device, &problem, op, &PlanOptions::default(), effort).unwrap();
            assert!(measured.least > Duration::ZERO && measured.least <= measured.median);
            assert_eq!(measured.error.is_some(), op == Op::Forward);
            assert!(measured.error.is_none_or(|error| error < 1e-6), "{measured:?}");
        }
    }

    #[test]
    fn a_short_run_is_repeated_and_a_long_one_is_not() {
        assert_eq!(runs_in(Duration::from_millis(50), Duration::from_millis(7)), 8);
        assert_eq!(runs_in(Duration::from_millis(50), Duration::from_secs(7)), 1);
        assert_eq!(runs_in(Duration::from_secs(50), Duration::from_nanos(1)), MAX_RUNS);
    }
}
