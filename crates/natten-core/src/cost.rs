//! What a plan should cost, by the roofline: the larger of arithmetic time and memory time. Counted from the coverage
//! and the device's description; tuners rank by it, users read it in reports.

use crate::backend::DeviceInfo;
use crate::geometry::{Coverage, Tiles};
use crate::problem::{OpRequest, Problem};

/// What a kernel that walks `tiles` visits for one batch entry and head of `problem`: nothing where there is no batch
/// entry, whatever the lengths.
pub fn coverage_of(problem: &Problem, tiles: &Tiles) -> Coverage {
    if problem.batch() == 0 { Coverage::default() } else { tiles.coverage() }
}

/// Counted work, and the time that it should take.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Cost {
    /// Floating-point operations of the visible pairs: what has to be done.
    pub useful_flops: f64,
    /// Floating-point operations of the visited boxes.
    pub visited_flops: f64,
    /// Bytes of the inputs and outputs, each moved once.
    pub bytes: f64,
    /// Predicted seconds, where the device's rates are known.
    pub seconds: Option<f64>,
}

impl Cost {
    /// The cost of an operation whose kernel walks `coverage` on `device`.
    pub fn of(problem: &Problem, request: &OpRequest, coverage: &Coverage, device: &DeviceInfo) -> Self {
        let per_pair = problem.flops_per_pair(request.op) as f64;
        let useful = problem.useful_pairs() as f64;
        let rows = problem.batch() as f64 * problem.heads() as f64;
        let additional = useful - coverage.useful as f64 * rows;
        let visited = coverage.visited as f64 * rows + additional;
        let bytes = problem
            .tensors(request)
            .map(|specs| specs.iter().map(|spec| spec.bytes() as f64).sum())
            .unwrap_or_default();
        let visited_flops = visited * per_pair;
        let seconds = match (device.peak_f32, device.bandwidth) {
            (Some(peak), Some(bandwidth)) => Some((visited_flops / peak).max(bytes / bandwidth)),
            (Some(peak), None) => Some(visited_flops / peak),
            (None, _) => None,
        };
        Self { useful_flops: useful * per_pair, visited_flops, bytes, seconds }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DType;
    use crate::backend::DeviceKind;
    use crate::geometry::{AxisParams, Neighborhood, Tiles};

    #[test]
    fn an_empty_batch_costs_nothing_whatever_its_lengths() {
        let n = Neighborhood::new(&[AxisParams::new(1 << 40, 3).causal(true)]).unwrap();
        let tiles = Tiles::new(&n, [1; 3], [1; 3]);
        let problem = Problem::builder(n, DType::F32).batch(0).build().unwrap();
        let coverage = coverage_of(&problem, &tiles);
        let device = DeviceInfo::new("cpu", "test", DeviceKind::Cpu);
        let cost = Cost::of(&problem, &OpRequest::forward(&problem), &coverage, &device);
        assert_eq!((cost.useful_flops, cost.visited_flops), (0.0, 0.0));
    }

    #[test]
    fn cost_counts_pairs_and_bytes() {
        let n = Neighborhood::new(&[AxisParams::new(64, 9)]).unwrap();
        let coverage = Tiles::new(&n, [1, 1, 8], [1, 1, 16]).coverage();
        let problem = Problem::builder(n, DType::F16)
            .batch(2)
            .heads(3)
            .head_dim(16)
            .additional_tokens(4)
            .build()
            .unwrap();
        let mut device = DeviceInfo::new("cpu", "test", DeviceKind::Cpu);
        let request = OpRequest::forward(&problem);
        let cost = Cost::of(&problem, &request, &coverage, &device);
        assert_eq!(cost.useful_flops, (6 * 64 * (9 + 4) * 4 * 16) as f64);
        // A box of 8 queries sees a union of 16 keys, less at the two borders.
        assert_eq!(cost.visited_flops, (6 * (6 * 8 * 16 + 2 * 8 * 12 + 64 * 4) * 4 * 16) as f64);
        assert_eq!(cost.bytes, (6 * 64 * (4 * 16 * 2 + 4) + 2 * 6 * 4 * 16 * 2) as f64);
        assert_eq!(cost.seconds, None);
        device.peak_f32 = Some(1e9);
        device.bandwidth = Some(1e3);
        assert_eq!(Cost::of(&problem, &request, &coverage, &device).seconds, Some(cost.bytes / 1e3));
    }
}
