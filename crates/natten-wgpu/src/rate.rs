//! What a device reaches at best: multiply-adds in registers and nothing else, to hold a kernel's rate against.

use std::time::Instant;

use natten_core::Result;

use crate::WgpuBackend;

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

impl WgpuBackend {
    /// Multiply-adds of f32 that the device makes, in flops a second: the best of a few runs.
    ///
    /// # Errors
    /// [`Error::Compile`](natten_core::Error::Compile), [`Error::Device`](natten_core::Error::Device).
    pub fn measure_multiply_adds(&self) -> Result<f64> {
        let gpu = self.gpu();
        let (rounds, groups) = if gpu.is_software { (64, 16) } else { (4096, 4096) };
        let lines = |of: &dyn Fn(usize) -> String| (0..CHAINS).map(of).collect::<Vec<_>>().join("\n");
        let source = format!("const ROUNDS: u32 = {rounds}u;\n")
            + &PROBE
                .replace("$DECLARE$", &lines(&|c| format!("    var x{c} = vec4<f32>({c}.5);")))
                .replace("$CHAINS$", &lines(&|c| format!("        x{c} = fma(x{c}, a, a);")))
                .replace("$SUM$", &(0..CHAINS).map(|c| format!("x{c}")).collect::<Vec<_>>().join(" + "));
        let pipeline = gpu.pipeline("multiply-adds", &source)?;
        let out = gpu.buffer("out", 1024 * 16, wgpu::BufferUsages::STORAGE)?;
        let group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
            label: None,
            layout: &pipeline.get_bind_group_layout(0),
            entries: &[wgpu::BindGroupEntry { binding: 0, resource: out.as_entire_binding() }],
        });
        let flops = (rounds * groups * 256 * CHAINS * 4 * 2) as f64;
        let mut best = 0.0f64;
        for _ in 0..5 {
            gpu.wait()?;
            let start = Instant::now();
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                pass.set_pipeline(&pipeline);
                pass.set_bind_group(0, &group, &[]);
                pass.dispatch_workgroups(groups as u32, 1, 1);
            }
            gpu.queue.submit([encoder.finish()]);
            gpu.wait()?;
            best = best.max(flops / start.elapsed().as_secs_f64());
        }
        Ok(best)
    }
}
