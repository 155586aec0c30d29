//! One axis of a neighborhood: its window and the window's inverse, in closed form.
//!
//! The formulas are those of NATTEN's reference mask (`csrc/include/natten/cuda/reference/mask.hpp`, version 0.21),
//! rewritten as clamps. With group length `n`, kernel size `w`, stride `s`, and a query at position `p` of its group:
//!
//! ```text
//! not causal:  leader = min(p/s*s + s/2, n-1)      window = [clamp(leader - w/2, 0, n-w), + w)
//! causal:      leader = min(p/s*s + s-1, n-1)      window = [max(leader - (w-1), 0), p+1)
//! ```
//!
//! Both ends never decrease as `p` grows, the query is always inside its own window, and so the queries that see one
//! key are an interval too.

use std::ops::Range;

use crate::error::{Error, Result};

/// A half-open interval of positions inside a residue group.
pub type Span = Range<usize>;

/// Which corner of the score matrix the diagonal of a causal mask touches when queries and keys differ in length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Alignment {
    /// Query `i` sees the keys `j <= i`.
    #[default]
    TopLeft,
    /// Query `i` sees the keys `j <= i + key_len - query_len`: the last query sees everything.
    BottomRight,
}

/// What a user says about one axis of a neighborhood, unchecked. [`Axis::new`] checks it, [`AxisParams::fit`] clamps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AxisParams {
    /// Tokens along the axis.
    pub len: usize,
    /// Keys in a window.
    pub kernel_size: usize,
    /// Neighbouring queries that share one window. 1 is sliding-window attention, `kernel_size` is blocked attention.
    pub stride: usize,
    /// Distance between the keys of a window.
    pub dilation: usize,
    /// Whether a query sees only itself and keys before it.
    pub is_causal: bool,
}

impl AxisParams {
    /// A sliding, undilated window that looks both ways.
    pub const fn new(len: usize, kernel_size: usize) -> Self {
        Self { len, kernel_size, stride: 1, dilation: 1, is_causal: false }
    }

    /// The same window, shared by `stride` neighbouring queries.
    #[must_use]
    pub const fn stride(self, stride: usize) -> Self {
        Self { stride, ..self }
    }

    /// The same window, with keys `dilation` tokens apart.
    #[must_use]
    pub const fn dilation(self, dilation: usize) -> Self {
        Self { dilation, ..self }
    }

    /// The same window, which sees nothing behind the query where `is_causal`.
    #[must_use]
    pub const fn causal(self, is_causal: bool) -> Self {
        Self { is_causal, ..self }
    }

    /// Clamps what is too large for the axis: the kernel to `len`, the dilation to `len / kernel_size`, the stride to
    /// `kernel_size`. Zeros stay as they are, and stay errors.
    #[must_use]
    pub fn fit(self) -> Self {
        let kernel_size = self.kernel_size.min(self.len);
        let dilation = match self.len.checked_div(kernel_size) {
            Some(most) => self.dilation.min(most),
            None => self.dilation,
        };
        Self { kernel_size, dilation, stride: self.stride.min(kernel_size), ..self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    Window { kernel_size: usize, stride: usize, dilation: usize, is_causal: bool },
    Everything,
    Causal(Alignment),
}

/// One checked axis: which keys each query sees along it.
///
/// Positions are in residue-group coordinates (see [`geometry`](crate::geometry)); an axis without dilation has one
/// group, and positions are token indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Axis {
    query_len: usize,
    key_len: usize,
    kind: Kind,
}

impl Axis {
    /// An axis with a window. `axis` is the axis's number, for the error message.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zero, for `kernel_size * dilation > len` and for `stride > kernel_size`.
    pub fn new(axis: usize, params: AxisParams) -> Result<Self> {
        let AxisParams { len, kernel_size, stride, dilation, is_causal } = params;
        for (name, value) in
            [("shape", len), ("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation)]
        {
            if value == 0 {
                return Err(Error::invalid(
                    format!("{name}[{axis}]"),
                    0,
                    "it must be at least 1",
                    "leave an axis out instead of giving it a zero",
                ));
            }
        }
        check_len(format!("shape[{axis}]"), len)?;
        if kernel_size > len {
            return Err(Error::invalid(
                format!("kernel_size[{axis}]"),
                kernel_size,
                format!("it must not be larger than the axis, which is {len} long"),
                "make the window smaller, or clamp it with fit()",
            ));
        }
        if kernel_size.checked_mul(dilation).is_none_or(|span| span > len) {
            return Err(Error::invalid(
                format!("dilation[{axis}]"),
                dilation,
                format!(
                    "kernel_size * dilation = {kernel_size} * {dilation} must not be larger than the axis, which is {len} long"
                ),
                format!("use a dilation of at most {}, or clamp it with fit()", len / kernel_size),
            ));
        }
        if stride > kernel_size {
            return Err(Error::invalid(
                format!("stride[{axis}]"),
                stride,
                format!(
                    "it must not be larger than kernel_size[{axis}] = {kernel_size}, or some keys would be seen by nobody"
                ),
                "use a smaller stride, or clamp it with fit()",
            ));
        }
        Ok(Self {
            query_len: len,
            key_len: len,
            kind: Kind::Window { kernel_size, stride, dilation, is_causal },
        })
    }

    /// The axis of ordinary attention: every query sees every key, or with `causal` those up to a diagonal.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a zero length.
    pub fn full(query_len: usize, key_len: usize, causal: Option<Alignment>) -> Result<Self> {
        for (name, value) in [("query length", query_len), ("key length", key_len)] {
            if value == 0 {
                return Err(Error::invalid(name, 0, "it must be at least 1", "give at least one token"));
            }
            check_len(name.to_owned(), value)?;
        }
        let kind = causal.map_or(Kind::Everything, Kind::Causal);
        Ok(Self { query_len, key_len, kind })
    }

    /// An axis of one token, which sees itself: what pads a neighborhood of lower rank to three axes.
    pub(crate) const UNIT: Self = Self { query_len: 1, key_len: 1, kind: Kind::Everything };

    /// Queries along the axis.
    pub const fn query_len(&self) -> usize {
        self.query_len
    }

    /// Keys along the axis.
    pub const fn key_len(&self) -> usize {
        self.key_len
    }

    /// The window's parameters; `None` on an axis of ordinary attention.
    pub const fn params(&self) -> Option<AxisParams> {
        match self.kind {
            Kind::Window { kernel_size, stride, dilation, is_causal } => {
                Some(AxisParams { len: self.query_len, kernel_size, stride, dilation, is_causal })
            }
            Kind::Everything | Kind::Causal(_) => None,
        }
    }

    /// How ordinary attention along this axis is causal; `None` where it is not, and on an axis with a window.
    pub const fn alignment(&self) -> Option<Alignment> {
        match self.kind {
            Kind::Causal(alignment) => Some(alignment),
            Kind::Window { .. } | Kind::Everything => None,
        }
    }

    /// Whether a query sees nothing behind itself.
    pub const fn is_causal(&self) -> bool {
        matches!(self.kind, Kind::Window { is_causal: true, .. } | Kind::Causal(_))
    }

    /// The most keys that one query can see.
    pub const fn window_len(&self) -> usize {
        match self.kind {
            Kind::Window { kernel_size, .. } => kernel_size,
            Kind::Everything | Kind::Causal(_) => self.key_len,
        }
    }

    /// The distance between neighbours of one residue group, and the number of groups.
    pub const fn dilation(&self) -> usize {
        match self.kind {
            Kind::Window { dilation, .. } => dilation,
            Kind::Everything | Kind::Causal(_) => 1,
        }
    }

    /// The token index of a position of a residue group.
    pub const fn token(&self, group: usize, position: usize) -> usize {
        group + position * self.dilation()
    }

    /// The group and the position of a token: the inverse of [`token`](Self::token).
    pub const fn locate(&self, token: usize) -> (usize, usize) {
        (token % self.dilation(), token / self.dilation())
    }

    /// Queries in a residue group. Groups are ragged: the first `len % dilation` have one more.
    pub const fn query_group_len(&self, group: usize) -> usize {
        group_len(self.query_len, self.dilation(), group)
    }

    /// Keys in a residue group.
    pub const fn key_group_len(&self, group: usize) -> usize {
        group_len(self.key_len, self.dilation(), group)
    }

    /// The keys that the query at `position` of `group` sees, as positions of the same group. Empty only for a causal
    /// axis of ordinary attention that is aligned bottom-right and has more queries than keys.
    pub fn window(&self, group: usize, position: usize) -> Span {
        match self.kind {
            Kind::Everything => 0..self.key_len,
            Kind::Causal(alignment) => {
                let end = match alignment {
                    Alignment::TopLeft => position + 1,
                    Alignment::BottomRight => (position + 1 + self.key_len).saturating_sub(self.query_len),
                };
                0..end.min(self.key_len)
            }
            Kind::Window { kernel_size, stride, is_causal, .. } => {
                let len = self.key_group_len(group);
                let block = position / stride * stride;
                if is_causal {
                    let leader = (block + stride - 1).min(len - 1);
                    (leader + 1).saturating_sub(kernel_size)..position + 1
                } else {
                    let leader = (block + stride / 2).min(len - 1);
                    let start = leader.saturating_sub(kernel_size / 2).min(len - kernel_size);
                    start..start + kernel_size
                }
            }
        }
    }

    /// The queries that see the key at `position` of `group`: the inverse of [`window`](Self::window). An interval,
    /// since both ends of the window never decrease. Empty where no query sees the key.
    pub fn queries_of(&self, group: usize, position: usize) -> Span {
        let end = self.first_window_starting_at(group, position + 1);
        let start = match self.kind {
            Kind::Everything => 0,
            Kind::Causal(Alignment::TopLeft) => position.min(self.query_len),
            Kind::Causal(Alignment::BottomRight) => {
                (position + self.query_len).saturating_sub(self.key_len).min(self.query_len)
            }
            Kind::Window { is_causal: true, .. } => position,
            // The window ends after the key once it starts at `position + 1 - kernel_size` or later.
            Kind::Window { kernel_size, is_causal: false, .. } => {
                self.first_window_starting_at(group, (position + 1).saturating_sub(kernel_size))
            }
        };
        start..end
    }

    /// The first query of `group` whose window starts at `key` or later; the group's length if there is none.
    fn first_window_starting_at(&self, group: usize, key: usize) -> usize {
        let queries = self.query_group_len(group);
        if key == 0 {
            return 0;
        }
        let Kind::Window { kernel_size, stride, is_causal, .. } = self.kind else {
            return queries;
        };
        // The window starts at `key` once its leader reaches `needed`; the leader of a stride block is `offset` into it.
        let (needed, offset, last_start) = if is_causal {
            (key + kernel_size - 1, stride - 1, queries.saturating_sub(kernel_size))
        } else {
            (key + kernel_size / 2, stride / 2, queries - kernel_size)
        };
        if key > last_start {
            return queries;
        }
        (needed.saturating_sub(offset).div_ceil(stride) * stride).min(queries)
    }

    /// The union of the windows of some neighbouring queries.
    pub fn window_union(&self, group: usize, queries: &Span) -> Span {
        if queries.is_empty() {
            return 0..0;
        }
        self.window(group, queries.start).start..self.window(group, queries.end - 1).end
    }

    /// The keys that every one of some neighbouring queries sees. Empty (start >= end) where there is none.
    pub fn window_intersection(&self, group: usize, queries: &Span) -> Span {
        if queries.is_empty() {
            return 0..0;
        }
        self.window(group, queries.end - 1).start..self.window(group, queries.start).end
    }

    /// The union of the queries that see some neighbouring keys.
    pub fn queries_union(&self, group: usize, keys: &Span) -> Span {
        if keys.is_empty() {
            return 0..0;
        }
        self.queries_of(group, keys.start).start..self.queries_of(group, keys.end - 1).end
    }

    /// Visible pairs along the axis, over all groups; in closed form, since a length may be anything.
    pub(crate) fn useful_pairs(&self) -> u128 {
        let dilation = self.dilation();
        let long = self.query_len % dilation;
        let pairs = |groups: usize, group: usize| groups as u128 * self.group_pairs(group);
        pairs(long, 0) + pairs(dilation - long, long)
    }

    /// Visible pairs of one group.
    fn group_pairs(&self, group: usize) -> u128 {
        let queries = self.query_group_len(group) as u128;
        let keys = self.key_group_len(group) as u128;
        // The sum of `count` windows, of which the first has `first` keys and each has one more than the one before.
        let growing = |first: u128, count: u128| count * first + count * count.saturating_sub(1) / 2;
        match self.kind {
            Kind::Everything => queries * keys,
            Kind::Causal(Alignment::TopLeft) => {
                let corner = queries.min(keys);
                growing(1, corner) + (queries - corner) * keys
            }
            Kind::Causal(Alignment::BottomRight) => {
                let seeing = queries.min(keys);
                growing(keys - seeing + 1, seeing)
            }
            Kind::Window { kernel_size, is_causal: false, .. } => queries * kernel_size as u128,
            Kind::Window { kernel_size, stride, is_causal: true, .. } => {
                let (window, stride) = (kernel_size as u128, stride as u128);
                // Windows that start at the first key, then whole stride blocks, then what is left of the last.
                let at_start = self.first_window_starting_at(group, 1) as u128;
                let rest = queries - at_start;
                let (blocks, last) = (rest / stride, rest % stride);
                growing(1, at_start)
                    + blocks * growing(window + 1 - stride, stride)
                    + growing(window + 1 - last, last)
            }
        }
    }
}

/// Half of the address space bounds every length, so that no sum of two of them overflows.
fn check_len(argument: String, len: usize) -> Result<()> {
    if len <= isize::MAX as usize {
        return Ok(());
    }
    Err(Error::invalid(argument, len, "no tensor can be that long", "check the shape for an overflow"))
}

const fn group_len(len: usize, dilation: usize, group: usize) -> usize {
    len / dilation + if group < len % dilation { 1 } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The window by NATTEN's own wording, on token indices: a slow and literal statement to test the closed form with.
    fn sees(p: AxisParams, query: usize, key: usize) -> bool {
        if query % p.dilation != key % p.dilation {
            return false;
        }
        let (q, k) = ((query / p.dilation) as isize, (key / p.dilation) as isize);
        let len = (0..p.len).filter(|i| i % p.dilation == query % p.dilation).count() as isize;
        let (w, s) = (p.kernel_size as isize, p.stride as isize);
        if p.is_causal {
            let leader = (q / s * s + s - 1).min(len - 1);
            k <= q && k > leader - w
        } else {
            let leader = (q / s * s + s / 2).min(len - 1);
            let (left, right) = (w / 2, w / 2 + w % 2 - 1);
            let shift = if leader + right >= len { len - right - leader - 1 } else { 0 };
            let start = (leader - left).max(0) + shift;
            start <= k && k < start + w
        }
    }

    pub(crate) fn params() -> impl Strategy<Value = AxisParams> {
        (1usize..48).prop_flat_map(|len| {
            (1..=len).prop_flat_map(move |kernel_size| {
                (1..=kernel_size, 1..=len / kernel_size, any::<bool>()).prop_map(
                    move |(stride, dilation, is_causal)| AxisParams {
                        len,
                        kernel_size,
                        stride,
                        dilation,
                        is_causal,
                    },
                )
            })
        })
    }

    fn full_axes() -> impl Strategy<Value = Axis> {
        let causal =
            prop_oneof![Just(None), Just(Some(Alignment::TopLeft)), Just(Some(Alignment::BottomRight))];
        (1usize..20, 1usize..20, causal).prop_map(|(q, k, causal)| Axis::full(q, k, causal).unwrap())
    }

    fn assert_inverse(axis: &Axis) -> Result<(), TestCaseError> {
        for group in 0..axis.dilation() {
            for key in 0..axis.key_group_len(group) {
                let span = axis.queries_of(group, key);
                for query in 0..axis.query_group_len(group) {
                    prop_assert_eq!(
                        span.contains(&query),
                        axis.window(group, query).contains(&key),
                        "{:?} group {} query {} key {}",
                        axis,
                        group,
                        query,
                        key
                    );
                }
            }
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn window_is_what_natten_sees(p in params()) {
            let axis = Axis::new(0, p).unwrap();
            for query in 0..p.len {
                let (group, position) = axis.locate(query);
                let window = axis.window(group, position);
                prop_assert!(window.contains(&position), "a query sees itself");
                prop_assert!(window.end <= axis.key_group_len(group));
                for key in 0..p.len {
                    let inside = key % p.dilation == group && window.contains(&(key / p.dilation));
                    prop_assert_eq!(inside, sees(p, query, key), "{:?} query {} key {}", p, query, key);
                }
            }
        }

        #[test]
        fn inverse_of_windows(p in params()) {
            let axis = Axis::new(0, p).unwrap();
            assert_inverse(&axis)?;
            for key in 0..p.len {
                let (group, position) = axis.locate(key);
                prop_assert!(!axis.queries_of(group, position).is_empty(), "every key is seen by somebody");
            }
        }

        #[test]
        fn useful_pairs_are_the_sum_of_windows(p in params(), full in full_axes()) {
            for axis in [Axis::new(0, p).unwrap(), full] {
                let sum: usize = (0..axis.dilation())
                    .flat_map(|g| (0..axis.query_group_len(g)).map(move |q| axis.window(g, q).len()))
                    .sum();
                prop_assert_eq!(axis.useful_pairs(), sum as u128, "{:?}", axis);
            }
        }

        #[test]
        fn inverse_of_full(axis in full_axes()) {
            assert_inverse(&axis)?;
        }

        #[test]
        fn fit_always_gives_a_valid_axis(
            len in 1usize..40, kernel_size in 1usize..80, stride in 1usize..80, dilation in 1usize..80,
            is_causal: bool,
        ) {
            let given = AxisParams { len, kernel_size, stride, dilation, is_causal };
            let fitted = given.fit();
            prop_assert!(Axis::new(0, fitted).is_ok(), "{:?}", fitted);
            if Axis::new(0, given).is_ok() {
                prop_assert_eq!(given, fitted, "what is valid stays");
            }
        }
    }

    /// The golden window table: first and last key of every query, from NATTEN's reference mask.
    #[test]
    fn golden_windows() {
        let cases: [(AxisParams, &str); 12] = [
            (AxisParams::new(7, 3), "0-2 0-2 1-3 2-4 3-5 4-6 4-6"),
            (AxisParams::new(7, 4), "0-3 0-3 0-3 1-4 2-5 3-6 3-6"),
            (AxisParams { stride: 2, ..AxisParams::new(8, 4) }, "0-3 0-3 1-4 1-4 3-6 3-6 4-7 4-7"),
            (AxisParams { stride: 3, ..AxisParams::new(9, 4) }, "0-3 0-3 0-3 2-5 2-5 2-5 5-8 5-8 5-8"),
            (AxisParams { stride: 4, ..AxisParams::new(10, 5) }, "0-4 0-4 0-4 0-4 4-8 4-8 4-8 4-8 5-9 5-9"),
            (AxisParams { stride: 4, ..AxisParams::new(10, 4) }, "0-3 0-3 0-3 0-3 4-7 4-7 4-7 4-7 6-9 6-9"),
            (
                AxisParams { stride: 3, is_causal: true, ..AxisParams::new(9, 3) },
                "0-0 0-1 0-2 3-3 3-4 3-5 6-6 6-7 6-8",
            ),
            (
                AxisParams { stride: 2, is_causal: true, ..AxisParams::new(8, 4) },
                "0-0 0-1 0-2 0-3 2-4 2-5 4-6 4-7",
            ),
            (
                AxisParams { stride: 3, is_causal: true, ..AxisParams::new(7, 4) },
                "0-0 0-1 0-2 2-3 2-4 2-5 3-6",
            ),
            (
                AxisParams { dilation: 2, ..AxisParams::new(11, 3) },
                "0-4 1-5 0-4 1-5 2-6 3-7 4-8 5-9 6-10 5-9 6-10",
            ),
            (
                AxisParams { dilation: 3, stride: 2, ..AxisParams::new(11, 3) },
                "0-6 1-7 2-8 0-6 1-7 2-8 3-9 4-10 2-8 3-9 4-10",
            ),
            (
                AxisParams { dilation: 4, stride: 2, is_causal: true, ..AxisParams::new(13, 3) },
                "0-0 1-1 2-2 3-3 0-4 1-5 2-6 3-7 4-8 1-9 2-10 3-11 4-12",
            ),
        ];
        for (params, expected) in cases {
            let axis = Axis::new(0, params).unwrap();
            let got: Vec<String> = (0..params.len)
                .map(|query| {
                    let (group, position) = axis.locate(query);
                    let w = axis.window(group, position);
                    format!("{}-{}", axis.token(group, w.start), axis.token(group, w.end - 1))
                })
                .collect();
            assert_eq!(got.join(" "), expected, "{params:?}");
        }
    }

    #[test]
    fn broken_rules_name_axis_values_and_way_out() {
        let cases = [
            (AxisParams::new(5, 7), "kernel_size[2] is 7", "5 long"),
            (AxisParams { dilation: 3, ..AxisParams::new(8, 3) }, "dilation[2] is 3", "at most 2"),
            (AxisParams { dilation: usize::MAX, ..AxisParams::new(8, 3) }, "dilation[2]", "at most 2"),
            (AxisParams { stride: 4, ..AxisParams::new(8, 3) }, "stride[2] is 4", "kernel_size[2] = 3"),
            (AxisParams { stride: 0, ..AxisParams::new(8, 3) }, "stride[2] is 0", "at least 1"),
            (AxisParams { dilation: 0, ..AxisParams::new(8, 3) }, "dilation[2] is 0", "at least 1"),
            (AxisParams::new(8, 0), "kernel_size[2] is 0", "at least 1"),
            (AxisParams::new(0, 0), "shape[2] is 0", "at least 1"),
        ];
        for (params, argument, way_out) in cases {
            let message = Axis::new(2, params).unwrap_err().to_string();
            assert!(message.contains(argument) && message.contains(way_out), "{message}");
        }
        assert!(Axis::full(0, 3, None).is_err() && Axis::full(3, 0, None).is_err());
    }
}
