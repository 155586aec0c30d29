//! A neighborhood: one to three axes, each with its own window. A key is visible where it is visible on every axis.

use std::fmt;

use super::axis::{Alignment, Axis, AxisParams};
use crate::error::{Error, Result};

/// The most axes that a neighborhood has. Kernels always run three: [`Neighborhood::axes`] pads with axes of length 1.
pub const MAX_RANK: usize = 3;

/// Which keys each query of a token grid sees.
///
/// Ordinary attention is a neighborhood too: of one axis, on which a query sees everything ([`Neighborhood::full`]).
///
/// ```
/// use natten_core::geometry::{AxisParams, Neighborhood};
/// # fn main() -> natten_core::Result<()> {
/// let picture = Neighborhood::new(&[AxisParams::new(32, 7), AxisParams::new(48, 5)])?;
/// assert_eq!(picture.query_shape(), [32, 48]);
/// assert_eq!(picture.useful_pairs(), (32 * 7) * (48 * 5));
/// # Ok(())
/// # }
/// ```
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Neighborhood {
    rank: usize,
    /// The last `rank` are the user's; those before them have length 1.
    axes: [Axis; MAX_RANK],
}

impl Neighborhood {
    /// A neighborhood with one window an axis.
    ///
    /// # Errors
    /// [`Error::Invalid`] for zero or more than three axes, and for whatever [`Axis::new`] refuses.
    pub fn new(params: &[AxisParams]) -> Result<Self> {
        check_rank(params.len())?;
        let mut axes = [Axis::UNIT; MAX_RANK];
        let padding = MAX_RANK - params.len();
        for (number, &params) in params.iter().enumerate() {
            axes[padding + number] = Axis::new(number, params)?;
        }
        Ok(Self { rank: params.len(), axes })
    }

    /// Like [`new`](Self::new), but clamps what is too large for the axes ([`AxisParams::fit`]).
    ///
    /// # Errors
    /// As [`new`](Self::new); and, where `has_bias`, for a kernel that would have to shrink: a relative positional
    /// bias table has one entry an offset, and a smaller window would silently read others.
    pub fn fit(params: &[AxisParams], has_bias: bool) -> Result<Self> {
        let fitted: Vec<AxisParams> = params.iter().map(|p| p.fit()).collect();
        for (number, (given, fitted)) in params.iter().zip(&fitted).enumerate() {
            if has_bias && given.kernel_size != fitted.kernel_size {
                return Err(Error::invalid(
                    format!("kernel_size[{number}]"),
                    given.kernel_size,
                    format!(
                        "it does not fit the axis, which is {} long, and cannot shrink with a bias table of {} entries",
                        given.len,
                        given.kernel_size.saturating_mul(2).saturating_sub(1)
                    ),
                    "use a larger input, or slice the bias table to the smaller window yourself",
                ));
            }
        }
        Self::new(&fitted)
    }

    /// Ordinary attention: every query sees every key, or with `causal` those up to a diagonal.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zero length.
    pub fn full(query_len: usize, key_len: usize, causal: Option<Alignment>) -> Result<Self> {
        let mut axes = [Axis::UNIT; MAX_RANK];
        axes[MAX_RANK - 1] = Axis::full(query_len, key_len, causal)?;
        Ok(Self { rank: 1, axes })
    }

    /// The number of axes.
    pub const fn rank(&self) -> usize {
        self.rank
    }

    /// The three axes that kernels run: those that the user gave, after as many of length 1 as are missing.
    pub const fn axes(&self) -> &[Axis; MAX_RANK] {
        &self.axes
    }

    /// The axes that the user gave.
    pub fn user_axes(&self) -> &[Axis] {
        &self.axes[MAX_RANK - self.rank..]
    }

    /// Whether this is ordinary attention, without a window.
    pub fn is_full(&self) -> bool {
        self.user_axes().iter().all(|axis| axis.params().is_none())
    }

    /// Query tokens an axis.
    pub fn query_shape(&self) -> Vec<usize> {
        self.user_axes().iter().map(Axis::query_len).collect()
    }

    /// Key tokens an axis.
    pub fn key_shape(&self) -> Vec<usize> {
        self.user_axes().iter().map(Axis::key_len).collect()
    }

    /// Kernel size an axis; on an axis of ordinary attention the number of keys.
    pub fn kernel_size(&self) -> Vec<usize> {
        self.user_axes().iter().map(Axis::window_len).collect()
    }

    /// The most keys that one query can see.
    pub fn window_len(&self) -> usize {
        self.axes.iter().map(Axis::window_len).product()
    }

    /// Visible (query, key) pairs of one batch entry and head, exactly: the unit that useful work is counted in.
    pub fn useful_pairs(&self) -> u128 {
        self.axes.iter().map(Axis::useful_pairs).fold(1, u128::saturating_mul)
    }

    /// The slot of a key among the attention weights of a query, both as token coordinates on the three padded axes;
    /// None where the query does not see the key.
    ///
    /// Slots are those of NATTEN 0.17's unfused operations: [`window_len`](Self::window_len) a query, in row-major order
    /// of the key's number in the query's window axis by axis, counted from the window's first key. A causal window is
    /// cut off at its end, so that slots without a key come last along each axis.
    pub fn slot_of(&self, query: [usize; MAX_RANK], key: [usize; MAX_RANK]) -> Option<usize> {
        let mut slot = 0;
        for (a, axis) in self.axes.iter().enumerate() {
            let (query_group, query) = axis.locate(query[a]);
            let (key_group, key) = axis.locate(key[a]);
            let window = axis.window(query_group, query);
            if query_group != key_group || !window.contains(&key) {
                return None;
            }
            slot = slot * axis.window_len() + (key - window.start);
        }
        Some(slot)
    }

    /// The key of a slot of a query, as token coordinates on the three padded axes: the inverse of
    /// [`slot_of`](Self::slot_of). None where the slot has no key.
    pub fn key_of(&self, query: [usize; MAX_RANK], mut slot: usize) -> Option<[usize; MAX_RANK]> {
        let mut found = [0; MAX_RANK];
        for (a, axis) in self.axes.iter().enumerate().rev() {
            let (group, position) = axis.locate(query[a]);
            let window = axis.window(group, position);
            let offset = slot % axis.window_len();
            slot /= axis.window_len();
            if offset >= window.len() {
                return None;
            }
            found[a] = axis.token(group, window.start + offset);
        }
        (slot == 0).then_some(found)
    }

    /// Whether a query sees a key, both as token coordinates on the three padded axes. For tests and dense loops;
    /// kernels walk [`Tiles`](super::Tiles).
    pub fn sees(&self, query: [usize; MAX_RANK], key: [usize; MAX_RANK]) -> bool {
        (0..MAX_RANK).all(|a| {
            let axis = &self.axes[a];
            let (query_group, query) = axis.locate(query[a]);
            let (key_group, key) = axis.locate(key[a]);
            query_group == key_group && axis.window(query_group, query).contains(&key)
        })
    }
}

fn check_rank(rank: usize) -> Result<()> {
    if (1..=MAX_RANK).contains(&rank) {
        return Ok(());
    }
    Err(Error::invalid(
        "rank",
        rank,
        "a neighborhood has one, two or three axes",
        "fold further axes into the batch",
    ))
}

/// One line for reports: `56x56 kernel 7x7 stride 1x1 dilation 2x2 causal -,x`.
impl fmt::Display for Neighborhood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_full() {
            let axis = &self.axes[MAX_RANK - 1];
            write!(f, "full {}x{}", axis.query_len(), axis.key_len())?;
            return match axis.alignment() {
                None => Ok(()),
                Some(Alignment::TopLeft) => f.write_str(" causal top-left"),
                Some(Alignment::BottomRight) => f.write_str(" causal bottom-right"),
            };
        }
        let join = |of: fn(&AxisParams) -> String, by: &str| {
            self.user_axes().iter().filter_map(Axis::params).map(|p| of(&p)).collect::<Vec<_>>().join(by)
        };
        write!(
            f,
            "{} kernel {}",
            join(|p| p.len.to_string(), "x"),
            join(|p| p.kernel_size.to_string(), "x")
        )?;
        let params = || self.user_axes().iter().filter_map(Axis::params);
        if params().any(|p| p.stride != 1) {
            write!(f, " stride {}", join(|p| p.stride.to_string(), "x"))?;
        }
        if params().any(|p| p.dilation != 1) {
            write!(f, " dilation {}", join(|p| p.dilation.to_string(), "x"))?;
        }
        if params().any(|p| p.is_causal) {
            write!(f, " causal {}", join(|p| if p.is_causal { "true" } else { "false" }.to_owned(), ","))?;
        }
        Ok(())
    }
}

impl fmt::Debug for Neighborhood {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Neighborhood({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_outside_one_to_three_are_refused() {
        assert!(Neighborhood::new(&[]).is_err());
        let message = Neighborhood::new(&[AxisParams::new(4, 2); 4]).unwrap_err().to_string();
        assert!(message.contains("rank is 4"), "{message}");
    }

    #[test]
    fn fit_refuses_to_shrink_a_kernel_under_a_bias_table() {
        let too_large = [AxisParams::new(5, 7)];
        assert_eq!(Neighborhood::fit(&too_large, false).unwrap().kernel_size(), [5]);
        let message = Neighborhood::fit(&too_large, true).unwrap_err().to_string();
        assert!(message.contains("kernel_size[0]") && message.contains("13 entries"), "{message}");
        // Only the kernel is tied to the table: a dilation may shrink.
        let dilated = [AxisParams::new(10, 3).dilation(9)];
        assert!(Neighborhood::fit(&dilated, true).is_ok());
    }

    /// Every visible key has one slot and every slot at most one key, in row-major order; others have none.
    #[test]
    fn slots_and_keys_are_one_to_one() {
        let window = |axes: &[AxisParams]| Neighborhood::new(axes).unwrap();
        let cases = [
            window(&[AxisParams::new(7, 4).causal(true)]),
            window(&[AxisParams::new(7, 3).dilation(2), AxisParams::new(5, 4).stride(3).causal(true)]),
            window(&[AxisParams::new(3, 2), AxisParams::new(4, 3).causal(true), AxisParams::new(5, 5)]),
            Neighborhood::full(5, 3, Some(Alignment::BottomRight)).unwrap(),
            Neighborhood::full(2, 6, None).unwrap(),
        ];
        for n in cases {
            let tokens = |shape: [usize; 3]| -> Vec<[usize; 3]> {
                let [z, y, x] = shape;
                (0..z * y * x).map(|i| [i / (x * y), i / x % y, i % x]).collect()
            };
            let keys = tokens(n.axes().map(|axis| axis.key_len()));
            for query in tokens(n.axes().map(|axis| axis.query_len())) {
                let seen: Vec<_> = keys.iter().filter(|&&key| n.sees(query, key)).copied().collect();
                let slots: Vec<_> = (0..n.window_len()).filter_map(|slot| n.key_of(query, slot)).collect();
                assert_eq!(slots, seen, "{n:?} {query:?}");
                for &key in &keys {
                    let slot = n.slot_of(query, key);
                    assert_eq!(slot.is_some(), seen.contains(&key), "{n:?} {query:?} {key:?}");
                    assert_eq!(slot.and_then(|slot| n.key_of(query, slot)), slot.map(|_| key));
                }
                assert_eq!(n.key_of(query, n.window_len()), None);
            }
        }
    }

    #[test]
    fn causal_slots_begin_with_the_oldest_key() {
        let n = Neighborhood::new(&[AxisParams::new(7, 4).causal(true)]).unwrap();
        let keys =
            |query| (0..4).map(|slot| n.key_of([0, 0, query], slot).map(|key| key[2])).collect::<Vec<_>>();
        assert_eq!(keys(1), [Some(0), Some(1), None, None]);
        assert_eq!(keys(5), [Some(2), Some(3), Some(4), Some(5)]);
    }

    #[test]
    fn displays_one_line() {
        let n = Neighborhood::new(&[AxisParams::new(9, 4).stride(2), AxisParams::new(8, 3).causal(true)])
            .unwrap();
        assert_eq!(n.to_string(), "9x8 kernel 4x3 stride 2x1 causal false,true");
        assert_eq!(
            Neighborhood::full(3, 4, Some(Alignment::BottomRight)).unwrap().to_string(),
            "full 3x4 causal bottom-right"
        );
    }
}
