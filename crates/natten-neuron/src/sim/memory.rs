//! The memory of a simulated kernel: numbers of the tensors' own types, poison where nothing was written, and for every
//! element whether something was.

use crate::error::NeuronError;
use crate::ir::{Kernel, Space, TensorId, View};

/// The contents of one tensor.
#[derive(Clone, Debug)]
struct Contents {
    /// Numbers of the tensor's dtype, each as the f32 that it is.
    data: Vec<f32>,
    written: Vec<bool>,
    /// Elements that are not written yet; reads need not look where there is none.
    missing: usize,
}

/// All tensors of a kernel.
#[derive(Debug)]
pub struct Memory<'k> {
    kernel: &'k Kernel,
    tensors: Vec<Contents>,
}

impl<'k> Memory<'k> {
    /// Poisoned memory.
    pub fn new(kernel: &'k Kernel) -> Self {
        let contents = |tensor: &crate::ir::Tensor| {
            let len = match tensor.space {
                Space::Input | Space::Output => tensor.free_len(),
                _ => tensor.shape.iter().product(),
            };
            Contents { data: vec![tensor.dtype.poison(); len], written: vec![false; len], missing: len }
        };
        Self { kernel, tensors: kernel.tensors.iter().map(contents).collect() }
    }

    /// Fills an input. The numbers are rounded to its dtype.
    ///
    /// # Errors
    /// Where there are not as many numbers as elements.
    pub fn fill(&mut self, id: TensorId, numbers: &[f32]) -> Result<(), NeuronError> {
        let tensor = self.kernel.tensor(id);
        let contents = &mut self.tensors[id.0];
        if contents.data.len() != numbers.len() {
            return Err(NeuronError::new(
                "err_input_shape",
                format!("input {} has {} elements, got {}", tensor.name, contents.data.len(), numbers.len()),
            ));
        }
        contents.data.copy_from_slice(numbers);
        tensor.dtype.round_all(&mut contents.data);
        contents.written.fill(true);
        contents.missing = 0;
        Ok(())
    }

    /// The contents of an output.
    ///
    /// # Errors
    /// Where the kernel left an element unwritten.
    pub fn output(&self, id: TensorId) -> Result<&[f32], NeuronError> {
        let (tensor, contents) = (self.kernel.tensor(id), &self.tensors[id.0]);
        if contents.missing > 0 {
            return Err(NeuronError::new(
                "err_tensor_output_not_written_to",
                format!("{} elements of output {} are never written", contents.missing, tensor.name),
            ));
        }
        Ok(&contents.data)
    }

    /// The distance of partitions.
    fn pitch(&self, view: &View) -> usize {
        let tensor = self.kernel.tensor(view.tensor);
        if tensor.space.is_hbm() { 0 } else { tensor.free_len() }
    }

    /// Reads a view, partition by partition.
    ///
    /// # Errors
    /// For elements that nothing was written to.
    pub fn read(&self, view: &View, vars: &[usize]) -> Result<Vec<f32>, NeuronError> {
        let contents = &self.tensors[view.tensor.0];
        let pitch = self.pitch(view);
        let mut out = Vec::with_capacity(view.parts * view.len());
        let mut is_written = true;
        for part in view.part..view.part + view.parts {
            view.runs(vars, |start, stride, count| {
                let start = part * pitch + start;
                if stride == 1 {
                    out.extend_from_slice(&contents.data[start..start + count]);
                    if contents.missing > 0 {
                        is_written &= contents.written[start..start + count].iter().all(|&written| written);
                    }
                } else {
                    for i in 0..count {
                        out.push(contents.data[start + i * stride]);
                        is_written &= contents.written[start + i * stride];
                    }
                }
            });
        }
        if !is_written {
            let tensor = self.kernel.tensor(view.tensor);
            return Err(NeuronError::new(
                "err_read_before_write",
                format!(
                    "read of uninitialised {} '{}': partitions {} to {}, from element {}",
                    tensor.space.name(),
                    tensor.name,
                    view.part,
                    view.part + view.parts - 1,
                    view.offset.at(vars)
                ),
            )
            .of(&tensor.name));
        }
        Ok(out)
    }

    /// Rounds numbers to the tensor's dtype and writes them.
    pub fn write(&mut self, view: &View, vars: &[usize], mut numbers: Vec<f32>) {
        self.kernel.tensor(view.tensor).dtype.round_all(&mut numbers);
        let pitch = self.pitch(view);
        let Contents { data, written, missing } = &mut self.tensors[view.tensor.0];
        let mut from = 0;
        for part in view.part..view.part + view.parts {
            view.runs(vars, |start, stride, count| {
                let start = part * pitch + start;
                for i in 0..count {
                    let at = start + i * stride;
                    data[at] = numbers[from + i];
                    *missing -= usize::from(!written[at]);
                    written[at] = true;
                }
                from += count;
            });
        }
    }
}
