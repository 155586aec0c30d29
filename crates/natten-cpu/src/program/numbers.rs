//! The numbers that a query has while its row is computed, one a lane, or one a streamed row where keys are stationary:
//! stages, their cotangents, and what these are made of.

use natten_core::program::Var;

/// A number of a query, of one batch entry and head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Number {
    /// A variable of a program's functions.
    Var(Var),
    /// The largest element of a logsumexp stage so far.
    Peak(u8),
    /// The sum of the exponentials of a logsumexp stage's elements less the peak.
    Total(u8),
    /// One over the total of the exponential stage.
    Inverse,
    /// What the row's sum of values is multiplied with at the end.
    Factor,
    /// Its tangent.
    FactorTangent,
}

/// Which numbers there are, each at a slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Numbers {
    slots: Vec<(Number, f64)>,
}

impl Numbers {
    /// The slot of a number, which is made if there is none.
    pub(super) fn slot(&mut self, number: Number) -> usize {
        let initial = match number {
            Number::Peak(_) => f64::NEG_INFINITY,
            _ => 0.0,
        };
        self.slot_from(number, initial)
    }

    /// The same for a number that begins with `initial`.
    pub(super) fn slot_from(&mut self, number: Number, initial: f64) -> usize {
        self.find(number).unwrap_or_else(|| {
            self.slots.push((number, initial));
            self.slots.len() - 1
        })
    }

    /// The slot of a number, if there is one.
    pub(super) fn find(&self, number: Number) -> Option<usize> {
        self.slots.iter().position(|&(known, _)| known == number)
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The variables, with their slots.
    pub(super) fn variables(&self) -> impl Iterator<Item = (usize, Var)> {
        self.slots.iter().enumerate().filter_map(|(slot, (number, _))| match number {
            Number::Var(var) => Some((slot, *var)),
            _ => None,
        })
    }

    /// What every number begins with.
    pub(super) fn initial(&self) -> impl Iterator<Item = f64> {
        self.slots.iter().map(|&(_, initial)| initial)
    }
}
