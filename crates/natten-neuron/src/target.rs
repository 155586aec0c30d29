//! The machine: sizes, clocks and costs, every number a named parameter. Where AWS documents none, the field says so.

use crate::ir::Engine;

/// A generation of the NeuronCore.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Its name: `NeuronCore-v2`.
    pub name: &'static str,
    /// NKI's name of the generation: `gen2`.
    pub nki: &'static str,
    /// Bytes of SBUF a partition.
    pub sbuf_bytes: usize,
    /// Banks of PSUM.
    pub psum_banks: usize,
    /// Bytes of a PSUM bank a partition.
    pub psum_bank_bytes: usize,
    /// Clock of the tensor engine, GHz.
    pub tensor_ghz: f64,
    /// Clock of the vector engine, GHz.
    pub vector_ghz: f64,
    /// Clock of the scalar engine, GHz.
    pub scalar_ghz: f64,
    /// Clock of the GpSimd engine and of the sync engine, GHz.
    pub gpsimd_ghz: f64,
    /// The fewest cycles of an instruction.
    pub min_cycles: f64,
    /// Passes of an f32 matmul.
    pub f32_passes: f64,
    /// Cycles that a sum beside an activation or a reduction beside a tensor_scalar adds.
    pub reduce_cycles: f64,
    /// Cycles that GpSimd takes to start.
    pub gpsimd_start_cycles: f64,
    /// Cycles until a result is visible to another instruction. AWS: about 60.
    pub latency_cycles: f64,
    /// Cycles to start a DMA on the queue of its engine. Not documented; assumed.
    pub dma_issue_cycles: f64,
    /// Nanoseconds from there to the first byte.
    pub dma_latency_ns: f64,
    /// DMA engines of a core.
    pub dma_queues: usize,
    /// Bytes a nanosecond of one DMA engine.
    pub dma_bytes_per_ns: f64,
    /// Nanoseconds a descriptor, beside its bytes. Not documented; assumed.
    pub dma_descriptor_ns: f64,
    /// Whether vector and GpSimd engine share a port of SBUF, and vector and scalar engine one of PSUM.
    pub shares_ports: bool,
    /// Whether the vector engine is faster on 16-bit numbers in SBUF.
    pub fast_copies: bool,
    /// Whether the scalar engine has tensor_copy.
    pub scalar_copies: bool,
}

impl Target {
    /// NeuronCore-v2, of Trainium and Inferentia2.
    pub const fn v2() -> Self {
        Self {
            name: "NeuronCore-v2",
            nki: "gen2",
            sbuf_bytes: 192 * 1024,
            psum_banks: 8,
            psum_bank_bytes: 2048,
            tensor_ghz: 2.8,
            vector_ghz: 1.12,
            scalar_ghz: 1.4,
            gpsimd_ghz: 1.4,
            min_cycles: 64.0,
            f32_passes: 4.0,
            reduce_cycles: 64.0,
            gpsimd_start_cycles: 150.0,
            latency_cycles: 60.0,
            dma_issue_cycles: 64.0,
            dma_latency_ns: 1300.0,
            dma_queues: 16,
            dma_bytes_per_ns: 17.0,
            dma_descriptor_ns: 25.0,
            shares_ports: true,
            fast_copies: false,
            scalar_copies: false,
        }
    }

    /// NeuronCore-v3, of Trainium2.
    pub const fn v3() -> Self {
        Self {
            name: "NeuronCore-v3",
            nki: "gen3",
            sbuf_bytes: 224 * 1024,
            tensor_ghz: 2.4,
            vector_ghz: 0.96,
            scalar_ghz: 1.2,
            gpsimd_ghz: 1.2,
            dma_bytes_per_ns: 23.0,
            shares_ports: false,
            fast_copies: true,
            scalar_copies: true,
            ..Self::v2()
        }
    }

    /// The machine with what AWS does not document, or gives as about so much, at the low and at the high end of what is
    /// likely: the range of a simulated time is that of these two. NKI's guide says that instructions that depend on each
    /// other take some 100 cycles more, its table of latencies about 60.
    #[must_use]
    pub fn extremes(&self) -> [Self; 2] {
        let of = |latency_cycles, dma_issue_cycles, dma_descriptor_ns| Self {
            latency_cycles,
            dma_issue_cycles,
            dma_descriptor_ns,
            ..self.clone()
        };
        [of(50.0, 32.0, 10.0), of(100.0, 128.0, 50.0)]
    }

    /// Bytes of PSUM a partition.
    pub const fn psum_bytes(&self) -> usize {
        self.psum_banks * self.psum_bank_bytes
    }

    /// The clock of an engine, GHz.
    pub const fn ghz(&self, engine: Engine) -> f64 {
        match engine {
            Engine::Tensor => self.tensor_ghz,
            Engine::Vector => self.vector_ghz,
            Engine::Scalar => self.scalar_ghz,
            Engine::GpSimd | Engine::Sync => self.gpsimd_ghz,
        }
    }

    /// Flops a second of the tensor engine in 16-bit numbers: 128 x 128 multiply-adds a cycle.
    pub const fn peak_flops(&self) -> f64 {
        128.0 * 128.0 * 2.0 * self.tensor_ghz * 1e9
    }

    /// Bytes a second of the DMA engines together.
    pub const fn bandwidth(&self) -> f64 {
        self.dma_queues as f64 * self.dma_bytes_per_ns * 1e9
    }
}

impl Default for Target {
    fn default() -> Self {
        Self::v2()
    }
}
