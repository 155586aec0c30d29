//! Captured tensors, as the evaluator of masks reads them: the least and the greatest element over a box of indices.

/// The captured tensors of a program, by ranges.
pub trait Captured {
    /// The least and the greatest element of a capture over a box of indices, both ends included and clamped into range
    /// as loads clamp them. None where this is not known, or where NaN is among the elements.
    fn range(&self, capture: u8, index: &[[i64; 2]]) -> Option<[f64; 2]>;
}

/// Captured tensors in the host's memory, by the number of the capture. None of those that no mask loads from.
#[derive(Clone, Debug, Default)]
pub struct HostCaptures<'a> {
    /// The tensors.
    pub tensors: Vec<Option<HostCapture<'a>>>,
}

impl Captured for HostCaptures<'_> {
    fn range(&self, capture: u8, index: &[[i64; 2]]) -> Option<[f64; 2]> {
        self.tensors.get(usize::from(capture))?.as_ref()?.range(index)
    }
}

/// A captured tensor in the host's memory, its runs of elements summed up.
#[derive(Clone, Debug)]
pub struct HostCapture<'a> {
    shape: Vec<usize>,
    elements: &'a [f64],
    /// The least and the greatest element of every [`RUN`] of the last axis, NaN where one is NaN.
    runs: Vec<[f64; 2]>,
}

/// Elements of the last axis that are summed up: about the side of a small box.
const RUN: usize = 32;
/// A box that takes more steps is not looked at.
const MOST_STEPS: usize = 1 << 16;

impl<'a> HostCapture<'a> {
    /// A contiguous tensor; none where the shape does not fit the elements, or there is no element.
    pub fn new(shape: &[usize], elements: &'a [f64]) -> Option<Self> {
        let len = shape.iter().try_fold(1usize, |len, &extent| len.checked_mul(extent))?;
        if len != elements.len() || len == 0 {
            return None;
        }
        let rows = elements.chunks(shape.last().copied().unwrap_or(1));
        let runs =
            rows.flat_map(|row| row.chunks(RUN)).map(|run| bounds(run).unwrap_or([f64::NAN; 2])).collect();
        Some(Self { shape: shape.to_vec(), elements, runs })
    }

    pub(super) fn range(&self, index: &[[i64; 2]]) -> Option<[f64; 2]> {
        if index.len() != self.shape.len() {
            return None;
        }
        let clamp = |extent: usize, span: [i64; 2]| {
            span.map(|i| usize::try_from(i.max(0)).map_or(extent - 1, |i| i.min(extent - 1)))
        };
        let (leading, last) = match (&self.shape[..], index) {
            ([leading @ .., extent], [_, .., last] | [last]) => (leading, clamp(*extent, *last)),
            _ => (&[][..], [0, 0]),
        };
        let row_len = self.shape.last().copied().unwrap_or(1);
        let (from, to) = (last[0], last[1] + 1);
        if from >= to {
            return None;
        }
        // Whole runs by what is known of them, the elements on either side one by one.
        let (first_run, last_run) = (from.div_ceil(RUN), to / RUN);
        let (head, runs, tail) = match first_run <= last_run {
            true => (from..first_run * RUN, first_run..last_run, last_run * RUN..to),
            false => (from..to, 0..0, 0..0),
        };
        let spans = || leading.iter().zip(index).map(|(&extent, &range)| clamp(extent, range));
        let rows = spans().try_fold(1usize, |rows, [lo, hi]| rows.checked_mul(hi.checked_sub(lo)? + 1))?;
        let steps = head.len() + runs.len() + tail.len();
        if steps.checked_mul(rows).is_none_or(|steps| steps > MOST_STEPS) {
            return None;
        }
        let mut range = [f64::INFINITY, f64::NEG_INFINITY];
        for row in 0..rows {
            // The row's number in the tensor, from its number in the box.
            let (mut inside, mut number, mut stride) = (row, 0, 1);
            for (&extent, [lo, hi]) in leading.iter().zip(spans()).rev() {
                number += (lo + inside % (hi - lo + 1)) * stride;
                inside /= hi - lo + 1;
                stride *= extent;
            }
            let elements = &self.elements[number * row_len..][..row_len];
            let of_runs = &self.runs[number * row_len.div_ceil(RUN)..];
            for [lo, hi] in [bounds(&elements[head.clone()])?, bounds(&elements[tail.clone()])?]
                .into_iter()
                .chain(of_runs[runs.clone()].iter().copied())
            {
                if lo.is_nan() {
                    return None;
                }
                range = [range[0].min(lo), range[1].max(hi)];
            }
        }
        (range[0] <= range[1]).then_some(range)
    }
}

/// The least and the greatest of some elements, infinite of none; nothing where one is NaN.
fn bounds(elements: &[f64]) -> Option<[f64; 2]> {
    elements.iter().try_fold([f64::INFINITY, f64::NEG_INFINITY], |[lo, hi], &x| {
        (!x.is_nan()).then_some([lo.min(x), hi.max(x)])
    })
}
