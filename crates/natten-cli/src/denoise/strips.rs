//! Strips: the rows that are denoised at a time.

use std::ops::Range;

/// How many times the rows that two strips share a strip is high: more strips show progress, and computing the shared
/// rows twice costs time.
const STRIP_HEIGHT: usize = 10;

/// A picture's rows, cut into strips of one height that overlap by what their windows reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Strips {
    height: usize,
    /// Rows of each strip.
    pub(super) rows: usize,
    pub(super) count: usize,
    /// Rows at an inner edge of a strip whose windows would reach beyond it.
    margin: usize,
}

/// A strip: the rows that it is computed from, and which of them have their whole windows in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Strip {
    pub(super) rows: Range<usize>,
    pub(super) kept: Range<usize>,
}

impl Strips {
    /// Cuts `height` rows, which windows of `window` rows go over, into strips of about `most` rows.
    pub(super) fn new(height: usize, window: usize, most: usize) -> Self {
        // A window at the picture's edge is moved inside, so it is as high as any other.
        let margin = window / 2;
        let shared = 2 * margin;
        // At least one row must be left that a strip does not share.
        let rows = most.min(STRIP_HEIGHT * shared).max(64.min(most)).max(shared + 1).max(window);
        let count = match height.checked_sub(rows) {
            Some(rest) => 1 + rest.div_ceil(rows - shared),
            None => 1,
        };
        // As many strips, as low as they can be.
        let rows = (height + shared * (count - 1)).div_ceil(count).max(window);
        Self { height, rows: rows.min(height), count, margin }
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Strip> {
        let mut done = 0usize;
        (0..self.count).map(move |_| {
            let start = done.saturating_sub(self.margin).min(self.height - self.rows);
            let rows = start..start + self.rows;
            let end = if rows.end == self.height { self.height } else { rows.end - self.margin };
            let kept = done - start..end - start;
            done = end;
            Strip { rows, kept }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strips_keep_every_row_once_with_its_whole_window() {
        for height in (1..70).chain([511, 512, 1000]) {
            for window in [1, 2, 3, 8, 21] {
                let window = window.min(height);
                for most in [0, 5, 30, 100, 10_000] {
                    let strips = Strips::new(height, window, most);
                    let mut next = 0;
                    for Strip { rows, kept } in strips.iter() {
                        assert_eq!((rows.len(), rows.start + kept.start), (strips.rows, next));
                        assert!(rows.end <= height && kept.end <= rows.len() && !kept.is_empty());
                        for row in kept.clone() {
                            let start = |row: usize, length: usize| {
                                row.saturating_sub(window / 2).min(length - window)
                            };
                            let inside = rows.start + start(row, strips.rows);
                            assert_eq!(inside, start(rows.start + row, height), "{strips:?} {row}");
                        }
                        next = rows.start + kept.end;
                    }
                    assert_eq!(next, height, "{strips:?}");
                }
            }
        }
    }

    #[test]
    fn strips_are_high_enough_to_pay() {
        assert_eq!(Strips::new(512, 21, 900), Strips { height: 512, rows: 184, count: 3, margin: 10 });
        assert_eq!(Strips::new(3000, 21, 900).rows, 196);
        assert_eq!(Strips::new(50, 21, 900).count, 1);
    }
}
