//! The numbers of a case, by seed and position: no generator carries a state, so an element is the same whatever the
//! order it is asked for in, and on every machine up to the last bits of its logarithm and cosine.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::sync::Arc;

use natten_core::{DType, HostTensor, Result, Role};

/// What every input of a case holds.
///
/// Elements are independent draws of the normal distribution with mean 0 and the standard deviation
/// [`deviation`](Self::deviation), 1 unless set; then [`given`](Self::given), [`positive`](Self::positive) and, for one
/// element, [`plant`](Self::plant) replace what they name, in this order; then everything is rounded to the tensor's
/// dtype, integers to the nearest.
#[derive(Clone, Debug)]
pub struct Data {
    seed: u64,
    deviations: BTreeMap<Role, f64>,
    positive: Vec<Role>,
    tensors: BTreeMap<Role, Arc<HostTensor>>,
    plants: Vec<(Role, usize, f64)>,
}

impl Data {
    /// Standard normal numbers.
    pub const fn new(seed: u64) -> Self {
        Self {
            seed,
            deviations: BTreeMap::new(),
            positive: Vec::new(),
            tensors: BTreeMap::new(),
            plants: Vec::new(),
        }
    }

    /// The same with another standard deviation of one input.
    #[must_use]
    pub fn deviation(mut self, role: Role, deviation: f64) -> Self {
        self.deviations.insert(role, deviation);
        self
    }

    /// The same with the absolute values of one input.
    #[must_use]
    pub fn positive(mut self, role: Role) -> Self {
        self.positive.push(role);
        self
    }

    /// The same with one input given in full.
    #[must_use]
    pub fn given(mut self, role: Role, tensor: HostTensor) -> Self {
        self.tensors.insert(role, Arc::new(tensor));
        self
    }

    /// The same with one element, by its row-major index, replaced.
    #[must_use]
    pub fn plant(mut self, role: Role, index: usize, value: f64) -> Self {
        self.plants.push((role, index, value));
        self
    }

    /// What the numbers are drawn from.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// Every replaced element: its input, its row-major index, its number.
    pub fn plants(&self) -> &[(Role, usize, f64)] {
        &self.plants
    }

    /// One input, rounded.
    ///
    /// # Errors
    /// [`natten_core::Error::OutOfMemory`].
    pub fn tensor(&self, role: Role, dtype: DType, shape: &[usize]) -> Result<HostTensor> {
        let given = self.tensors.get(&role);
        let deviation = self.deviations.get(&role).copied().unwrap_or(1.0);
        let positive = self.positive.contains(&role);
        let stream = self.seed ^ hash(&role.to_string());
        let mut tensor = HostTensor::from_fn(dtype, shape, |index| {
            let number = match given {
                Some(tensor) => tensor.slice().get(index),
                None => deviation * normal(stream, index as u64),
            };
            if positive { number.abs() } else { number }
        })?;
        let mut elements = tensor.slice_mut();
        for &(_, index, value) in self.plants.iter().filter(|plant| plant.0 == role) {
            elements.set(index, value);
        }
        Ok(tensor)
    }
}

/// A standard normal number for a position of a stream, by the method of Box and Muller.
pub fn normal(stream: u64, index: u64) -> f64 {
    (-2.0 * uniform(stream, 2 * index).ln()).sqrt() * (TAU * uniform(stream, 2 * index + 1)).cos()
}

/// A number between 0 and 1, neither of them, for a position of a stream.
pub(crate) fn uniform(stream: u64, index: u64) -> f64 {
    // 53 bits, moved off 0 by half a step.
    ((mix(mix(stream).wrapping_add(index)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// The finalizer of SplitMix64: a bijection that spreads a counter over all bits.
fn mix(counter: u64) -> u64 {
    let mut z = counter.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// FNV-1a: the seed of a name.
pub fn hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_normal() {
        let n = 100_000;
        let numbers: Vec<f64> = (0..n).map(|i| normal(7, i)).collect();
        let moment = |k: i32| numbers.iter().map(|x| x.powi(k)).sum::<f64>() / n as f64;
        // Four standard errors of each moment's estimate.
        for (k, expected, deviation) in [(1, 0.0, 1.0), (2, 1.0, 2f64.sqrt()), (4, 3.0, 96f64.sqrt())] {
            assert!((moment(k) - expected).abs() < 4.0 * deviation / (n as f64).sqrt(), "moment {k}");
        }
        let neighbours = (1..n as usize).map(|i| numbers[i] * numbers[i - 1]).sum::<f64>() / n as f64;
        assert!(neighbours.abs() < 4.0 / (n as f64).sqrt());
    }

    #[test]
    fn inputs_differ_and_repeat() {
        let tensor = |role, seed| Data::new(seed).tensor(role, DType::F32, &[2, 3]).unwrap();
        assert_eq!(tensor(Role::Query, 1), tensor(Role::Query, 1));
        assert_ne!(tensor(Role::Query, 1), tensor(Role::Key, 1));
        assert_ne!(tensor(Role::Query, 1), tensor(Role::Query, 2));
        assert_ne!(tensor(Role::Capture(0), 1), tensor(Role::Capture(1), 1));
        let data = Data::new(1).deviation(Role::Key, 0.0).positive(Role::Query);
        assert_eq!(data.tensor(Role::Key, DType::F32, &[2]).unwrap().to_f64(), [0.0; 2]);
        assert!(data.tensor(Role::Query, DType::F16, &[99]).unwrap().to_f64().iter().all(|&x| x >= 0.0));
    }
}
