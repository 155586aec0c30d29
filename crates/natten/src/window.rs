//! The options of a window, one value for all axes or one an axis, and the neighborhood that they describe.

use natten_core::Result;
use natten_core::geometry::{AxisParams, Neighborhood};

use crate::array::PerAxis;

/// The window of every query.
#[derive(Clone, Debug)]
pub(crate) struct Window {
    pub(crate) kernel_size: PerAxis<usize>,
    pub(crate) stride: PerAxis<usize>,
    pub(crate) dilation: PerAxis<usize>,
    pub(crate) causal: PerAxis<bool>,
    pub(crate) fit: bool,
}

impl Window {
    pub(crate) fn new(kernel_size: PerAxis<usize>) -> Self {
        Self { kernel_size, stride: 1.into(), dilation: 1.into(), causal: false.into(), fit: false }
    }

    /// The neighborhood over a grid of tokens.
    ///
    /// # Errors
    /// [`Error::Invalid`](natten_core::Error::Invalid) where an option has another number of axes, or does not fit them.
    pub(crate) fn neighborhood(&self, tokens: &[usize], has_bias: bool) -> Result<Neighborhood> {
        let rank = tokens.len();
        let kernel_size = self.kernel_size.spread("kernel_size", rank)?;
        let stride = self.stride.spread("stride", rank)?;
        let dilation = self.dilation.spread("dilation", rank)?;
        let causal = self.causal.spread("causal", rank)?;
        let along = |a: usize| {
            AxisParams::new(tokens[a], kernel_size[a]).stride(stride[a]).dilation(dilation[a]).causal(causal[a])
        };
        let params: Vec<AxisParams> = (0..rank).map(along).collect();
        match self.fit {
            true => Neighborhood::fit(&params, has_bias),
            false => Neighborhood::new(&params),
        }
    }
}
