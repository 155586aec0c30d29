//! What a device reaches at best, to hold a kernel's rate against: multiply-adds in registers and nothing else, by
//! general-purpose cores, and by matrices that subgroups hold together.

use std::time::{Duration, Instant};

use natten_core::{DType, Result};
use pollster::block_on;

use crate::WgpuBackend;
use crate::spirv::MATRICES;
use crate::target::Matrices;

/// 16 independent chains of four multiply-adds in every invocation.
const PROBE: &str = "
@group(0) @binding(0) var<storage, read_write> out: array<vec4<f32>>;

@compute @workgroup_size(256)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    let a = vec4<f32>(f32(id.x & 7u) * 0.01 + 0.5);
$DECLARE$
    for (var i = 0u; i < ROUNDS; i++) {
$CHAINS$
    }
    out[id.x & 1023u] = $SUM$;
}
";

const CHAINS: usize = 16;

/// Independent chains of products of matrices in every subgroup; their factors stay where they are.
const MATRIX_PROBE: &str = "
@group(0) @binding(0) var<storage, read_write> out: array<f32>;

var<workgroup> factor: array<vec4<f16>, CELLS>;

@compute @workgroup_size($THREADS$)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    for (var i = lane; i < CELLS; i += $THREADS$u) { factor[i] = vec4<f16>(f16(f32(i & 7u) * 0.01)); }
    workgroupBarrier();
    let a = coopLoadT<$TYPE$<f16, A>>(&factor[0], EDGE / 4u);
    let b = coopLoadT<$TYPE$<f16, B>>(&factor[0], EDGE / 4u);
$DECLARE$
    for (var i = 0u; i < ROUNDS; i++) {
$CHAINS$
    }
    let sum = $SUM$;
    coopStoreT(sum, &out[(group.x & 63u) * EDGE * EDGE], EDGE);
}
";

pub(crate) const MATRIX_CHAINS: usize = 8;

/// Subgroups of a workgroup of the matrix probe.
const SUBGROUPS: u32 = 8;

/// A line of each chain.
fn lines(chains: usize, of: impl Fn(usize) -> String) -> String {
    (0..chains).map(of).collect::<Vec<_>>().join("\n")
}

fn sum(chains: usize) -> String {
    (0..chains).map(|c| format!("x{c}")).collect::<Vec<_>>().join(" + ")
}

/// The probe by matrices.
pub(crate) fn matrix_probe(matrices: &Matrices, rounds: usize) -> String {
    let edge = matrices.edge;
    let ty = format!("coop_mat{edge}x{edge}");
    let declare = lines(MATRIX_CHAINS, |c| format!("    var x{c} = {ty}<f32, C>();"));
    let chains = lines(MATRIX_CHAINS, |c| format!("        x{c} = coopMultiplyAdd(a, b, x{c});"));
    let text = MATRIX_PROBE
        .replace("$THREADS$", &(SUBGROUPS * matrices.lanes).to_string())
        .replace("$TYPE$", &ty)
        .replace("$DECLARE$", &declare)
        .replace("$CHAINS$", &chains)
        .replace("$SUM$", &sum(MATRIX_CHAINS));
    format!(
        "enable f16;\n{MATRICES}const ROUNDS: u32 = {rounds}u;\nconst EDGE: u32 = {edge}u;\n\
         const CELLS: u32 = {}u;\n{text}",
        edge * edge / 4
    )
}

impl WgpuBackend {
    /// Multiply-adds of f32 that the device makes, in flops a second: the best of a few runs.
    ///
    /// # Errors
    /// [`Error::Compile`](natten_core::Error::Compile), [`Error::Device`](natten_core::Error::Device).
    pub fn measure_multiply_adds(&self) -> Result<f64> {
        let (rounds, groups) = if self.gpu().is_software { (64, 16) } else { (4096, 4096) };
        let source = format!("const ROUNDS: u32 = {rounds}u;\n")
            + &PROBE
                .replace("$DECLARE$", &lines(CHAINS, |c| format!("    var x{c} = vec4<f32>({c}.5);")))
                .replace("$CHAINS$", &lines(CHAINS, |c| format!("        x{c} = fma(x{c}, a, a);")))
                .replace("$SUM$", &sum(CHAINS));
        self.measure_probe("multiply-adds", &source, groups, (rounds * groups * 256 * CHAINS * 4 * 2) as f64)
    }

    /// Products of small matrices of f16 with sums in f32 that the device makes, in flops a second: the best of a few
    /// runs. `None` where it has none.
    ///
    /// # Errors
    /// [`Error::Compile`](natten_core::Error::Compile), [`Error::Device`](natten_core::Error::Device).
    pub fn measure_matrices(&self) -> Result<Option<f64>> {
        let Some(matrices) = self.target().matrices.filter(|matrices| matrices.is_native) else {
            return Ok(None);
        };
        let (rounds, groups) = (4096, 4096);
        let products = rounds * groups * SUBGROUPS as usize * MATRIX_CHAINS;
        let flops = products as f64 * 2.0 * f64::from(matrices.edge).powi(3);
        self.measure_probe("matrices", &matrix_probe(&matrices, rounds), groups, flops).map(Some)
    }

    /// The rate of the products that shaders make for tensors of a dtype. `None` for f64.
    pub(crate) fn measure_products(&self, dtype: DType) -> Result<Option<f64>> {
        let of_matrices = if dtype == DType::F16 { self.measure_matrices()? } else { None };
        match (of_matrices, dtype) {
            (None, DType::F64) => Ok(None),
            (None, _) => self.measure_multiply_adds().map(Some),
            _ => Ok(of_matrices),
        }
    }

    fn measure_probe(&self, label: &str, source: &str, groups: usize, flops: f64) -> Result<f64> {
        let gpu = self.gpu();
        let pipeline = block_on(gpu.pipeline(label, source))?;
        let out = gpu.buffer("out", 64 << 10, wgpu::BufferUsages::STORAGE)?;
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: out.as_entire_binding() }],
        });
        let mut best = 0.0f64;
        let begun = Instant::now();
        // Until the clock has settled, and five times at least.
        for run in 0.. {
            if run >= 5 && (gpu.is_software || begun.elapsed() > Duration::from_millis(300)) {
                break;
            }
            block_on(gpu.finish())?;
            let start = Instant::now();
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &group, &[]);
                pass.dispatch_workgroups(groups as u32, 1, 1);
            }
            gpu.queue.submit([encoder.finish()]);
            block_on(gpu.finish())?;
            best = best.max(flops / start.elapsed().as_secs_f64());
        }
        Ok(best)
    }
}
