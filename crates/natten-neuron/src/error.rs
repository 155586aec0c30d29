//! Errors of kernels: broken rules of the hardware, with the codes and the words that AWS's tools use for them.

use std::fmt;

/// A rule that a kernel breaks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeuronError {
    /// The code of AWS's compiler (`GCA035`) or the legacy name of the error (`err_num_partition_exceed_arch_limit`).
    pub code: &'static str,
    /// What is wrong, in the words of NKI 0.6.0 where it has some.
    pub message: String,
    /// The instruction, counted in the unrolled kernel or in program order, where one is to blame.
    pub instruction: Option<usize>,
    /// The tensor, where one is to blame.
    pub tensor: Option<String>,
}

impl NeuronError {
    pub(crate) fn new(code: &'static str, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), instruction: None, tensor: None }
    }

    pub(crate) fn at(self, instruction: usize) -> Self {
        Self { instruction: self.instruction.or(Some(instruction)), ..self }
    }

    pub(crate) fn of(self, tensor: &str) -> Self {
        Self { tensor: Some(tensor.to_owned()), ..self }
    }
}

impl fmt::Display for NeuronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}] {}", self.code, self.message)?;
        if let Some(tensor) = &self.tensor {
            write!(f, " (tensor {tensor})")?;
        }
        if let Some(instruction) = self.instruction {
            write!(f, " (instruction {instruction})")?;
        }
        Ok(())
    }
}

impl std::error::Error for NeuronError {}

impl NeuronError {
    /// The library's error. No `From`: a second conversion into it would leave callers' types open.
    pub fn into_error(self) -> natten_core::Error {
        natten_core::Error::Compile {
            backend: crate::NAME.into(),
            log: self.to_string(),
            source_text: String::new(),
        }
    }
}
