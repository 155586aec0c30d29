//! Runs a [`Tape`]: an instruction a block, a loop over lanes a row.

use std::cell::Cell;

use natten_core::program::numeric::{float_binary, float_unary, int_binary};
use natten_core::program::{Binary, Compare, Index, Type, Unary, Var};

use super::{Action, CapturedSet, Instruction, Register, Registers, Tape};
use crate::dispatch::run_on;
use crate::element::Real;
use crate::isa::Isa;
use crate::simd::{Outlined, Simd};

impl Tape {
    /// Begins a batch entry and head: `index` gives the indices that stay the same for all their tokens.
    pub(crate) fn begin<R: Real>(
        &self,
        isa: Isa,
        registers: &mut Registers<'_, R>,
        captured: &CapturedSet,
        index: impl Fn(Index) -> usize,
    ) {
        for &(register, value) in &self.constants {
            registers.numbers[register.at] = R::of(value);
        }
        for &(register, value) in &self.integer_constants {
            registers.integers[register.at] = value;
        }
        for &(which, register) in &self.fixed {
            if which == Index::Lane {
                for (lane, to) in registers.integers[register.at..][..self.lanes].iter_mut().enumerate() {
                    *to = integer(lane);
                }
            } else {
                registers.integers[register.at] = integer(index(which));
            }
        }
        run(
            isa,
            Block { tape: self, instructions: &self.before, captured, rows: self.rows, lanes: self.lanes },
            registers,
        );
    }

    /// Sets the indices of a block's tokens, which are `count` rows, or lanes.
    pub(crate) fn move_to<R: Real>(
        &self,
        registers: &mut Registers<'_, R>,
        count: usize,
        index: impl Fn(Index, usize) -> usize,
    ) {
        for &(which, register) in &self.moving {
            for (token, to) in registers.integers[register.at..][..count].iter_mut().enumerate() {
                *to = integer(index(which, token));
            }
        }
    }

    /// Computes a block, whose variables and tokens are set.
    pub(crate) fn run<R: Real>(
        &self,
        isa: Isa,
        registers: &mut Registers<'_, R>,
        captured: &CapturedSet,
        rows: usize,
        lanes: usize,
    ) {
        run(isa, Block { tape: self, instructions: &self.body, captured, rows, lanes }, registers);
    }

    /// Where the first `rows` rows of a variable go, if the expressions are of it.
    pub(crate) fn variable<'r, R>(
        &self,
        registers: &'r mut Registers<'_, R>,
        var: Var,
        rows: usize,
    ) -> Option<&'r mut [R]> {
        let (_, register) = self.variables.iter().find(|(which, _)| *which == var)?;
        Some(&mut registers.numbers[register.at..][..rows * self.lanes])
    }

    /// A row of the root of some number: as many numbers as lanes, or one where lanes do not differ.
    pub(crate) fn root<'r, R>(&self, registers: &'r Registers<'_, R>, root: usize, row: usize) -> &'r [R] {
        let register = self.roots[root];
        &registers.numbers[register.row(row, self.lanes)..][..register.width(self.lanes)]
    }

    /// Copies a row of a root.
    pub(crate) fn copy<R: Real>(&self, registers: &Registers<'_, R>, root: usize, row: usize, to: &mut [R]) {
        match *self.root(registers, root, row) {
            [value] => to.fill(value),
            ref values => to.copy_from_slice(&values[..to.len()]),
        }
    }
}

/// An index as programs see it.
fn integer(index: usize) -> i32 {
    i32::try_from(index).unwrap_or(i32::MAX)
}

/// Instructions, and how much of their registers a block fills.
#[derive(Clone, Copy, Debug)]
struct Block<'t> {
    tape: &'t Tape,
    instructions: &'t [Instruction],
    captured: &'t CapturedSet,
    rows: usize,
    lanes: usize,
}

fn run<R: Real>(isa: Isa, block: Block<'_>, registers: &mut Registers<'_, R>) {
    // SAFETY: the instruction set was detected.
    unsafe { run_on(isa, Run { block, registers }) };
}

/// A block, to be run with the features of an instruction set.
struct Run<'b, 'r, 'm, R> {
    block: Block<'b>,
    registers: &'r mut Registers<'m, R>,
}

impl<R: Real> Outlined for Run<'_, '_, '_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        self.block.run(self.registers);
    }
}

/// The numbers of a row: one a lane, or one for all.
type Row<'r, T> = &'r [Cell<T>];

#[inline(always)]
fn map<A: Copy, T: Copy>(to: Row<'_, T>, a: Row<'_, A>, f: impl Fn(A) -> T) {
    for (to, a) in to.iter().zip(a) {
        to.set(f(a.get()));
    }
}

#[inline(always)]
fn map2<A: Copy, T: Copy>(to: Row<'_, T>, a: Row<'_, A>, b: Row<'_, A>, f: impl Fn(A, A) -> T) {
    if a.len() == b.len() {
        for ((to, a), b) in to.iter().zip(a).zip(b) {
            to.set(f(a.get(), b.get()));
        }
    } else if let [b] = b {
        let b = b.get();
        map(to, a, |a| f(a, b));
    } else {
        let a = a[0].get();
        map(to, b, |b| f(a, b));
    }
}

impl Block<'_> {
    #[inline(always)]
    fn run<R: Real>(&self, registers: &mut Registers<'_, R>) {
        for instruction in self.instructions {
            let rows = if instruction.to.rows { self.rows } else { 1 };
            let lanes = instruction.to.width(self.lanes);
            if let (Action::Load(buffer, place), Type::F) = (&instruction.action, instruction.of) {
                // A tensor that is not bound is one that nothing loads.
                let Some(captured) = self.captured.of(*buffer) else { continue };
                for row in 0..rows {
                    let to = &mut registers.numbers[instruction.to.row(row, self.tape.lanes)..][..lanes];
                    captured.numbers(place, registers.integers, row, self.tape.lanes, to);
                }
                continue;
            }
            let numbers = Cell::from_mut(&mut *registers.numbers).as_slice_of_cells();
            let integers = Cell::from_mut(&mut *registers.integers).as_slice_of_cells();
            for row in 0..rows {
                self.row(instruction, row, numbers, integers);
            }
        }
    }

    #[inline(always)]
    fn row<R: Real>(
        &self,
        instruction: &Instruction,
        row: usize,
        numbers: &[Cell<R>],
        integers: &[Cell<i32>],
    ) {
        let Instruction { action, of, to, arguments: [a, b, c] } = instruction;
        let start = |register: &Register| register.row(row, self.tape.lanes);
        let number = |register: &Register| &numbers[start(register)..][..register.width(self.lanes)];
        let integer = |register: &Register| &integers[start(register)..][..register.width(self.lanes)];
        match (action, of) {
            (Action::Unary(op), Type::F) if *op == Unary::ToInt => {
                map(integer(to), number(a), |x| x.to_f64().floor() as i32);
            }
            (Action::Unary(op), Type::F) => unary(*op, number(to), number(a), self.lanes),
            (Action::Unary(Unary::ToFloat), _) => map(number(to), integer(a), |x| R::of(f64::from(x))),
            (Action::Unary(Unary::Neg), _) => map(integer(to), integer(a), i32::wrapping_neg),
            (Action::Unary(Unary::Abs), _) => map(integer(to), integer(a), i32::wrapping_abs),
            (Action::Unary(Unary::Not), _) => map(integer(to), integer(a), |x| 1 - x),
            (Action::Unary(_), _) => {}
            (Action::Binary(op), Type::F) => binary(*op, number(to), number(a), number(b)),
            (Action::Binary(op), _) => integer_binary(*op, integer(to), integer(a), integer(b)),
            (Action::Compare(op), Type::F) => compare(*op, integer(to), number(a), number(b)),
            (Action::Compare(op), _) => compare(*op, integer(to), integer(a), integer(b)),
            (Action::Select, Type::F) => select(number(to), integer(a), number(b), number(c)),
            (Action::Select, _) => select(integer(to), integer(a), integer(b), integer(c)),
            (Action::Powi(exponent), _) => map(number(to), number(a), |x| power(x, *exponent)),
            (Action::Load(buffer, place), _) => {
                if let Some(captured) = self.captured.of(*buffer) {
                    captured.integers(place, integers, row, self.tape.lanes, integer(to));
                }
            }
        }
    }
}

#[inline(always)]
fn unary<R: Real>(op: Unary, to: Row<'_, R>, a: Row<'_, R>, lanes: usize) {
    let minus = R::of(-1.0);
    match op {
        Unary::Neg => map(to, a, |x| minus * x),
        Unary::Abs => map(to, a, |x| if x < R::ZERO { minus * x } else { x }),
        Unary::LaneSum => to[0].set(sum(a, lanes)),
        Unary::LaneHalf => {
            let (low, high) = a.split_at(a.len() / 2);
            let (to_low, to_high) = to.split_at(high.len());
            map(to_low, high, |x| x);
            map(to_high, low, |x| x);
        }
        Unary::LanePair => {
            for (to, a) in to.chunks_exact(2).zip(a.chunks_exact(2)) {
                to[0].set(a[1].get());
                to[1].set(a[0].get());
            }
        }
        // In f64 whatever the type: one definition of every function, and in f32 the right rounding nearly always.
        op => map(to, a, |x| float_unary(op, x.to_f64()).map_or(x, R::of)),
    }
}

/// The sum over a row, in an order that does not depend on the vectors it is computed with.
#[inline(always)]
fn sum<R: Real>(a: Row<'_, R>, lanes: usize) -> R {
    const PARTS: usize = 16;
    if let ([value], true) = (a, lanes != 1) {
        return value.get() * R::of(lanes as f64);
    }
    let mut parts = [R::ZERO; PARTS];
    let chunks = a.chunks_exact(PARTS);
    for (part, x) in parts.iter_mut().zip(chunks.remainder()) {
        *part = x.get();
    }
    for chunk in chunks {
        for (part, x) in parts.iter_mut().zip(chunk) {
            *part = *part + x.get();
        }
    }
    let mut width = PARTS;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            parts[i] = parts[i] + parts[i + width];
        }
    }
    parts[0]
}

#[inline(always)]
fn binary<R: Real>(op: Binary, to: Row<'_, R>, a: Row<'_, R>, b: Row<'_, R>) {
    match op {
        Binary::Add => map2(to, a, b, |x, y| x + y),
        Binary::Sub => map2(to, a, b, |x, y| x - y),
        Binary::Mul => map2(to, a, b, |x, y| x * y),
        Binary::Div => map2(to, a, b, |x, y| x / y),
        op => map2(to, a, b, |x, y| float_binary(op, x.to_f64(), y.to_f64()).map_or(x, R::of)),
    }
}

#[inline(always)]
fn integer_binary(op: Binary, to: Row<'_, i32>, a: Row<'_, i32>, b: Row<'_, i32>) {
    match op {
        Binary::Add => map2(to, a, b, i32::wrapping_add),
        Binary::Sub => map2(to, a, b, i32::wrapping_sub),
        Binary::Mul => map2(to, a, b, i32::wrapping_mul),
        op => map2(to, a, b, |x, y| int_binary(op, x, y)),
    }
}

#[inline(always)]
fn compare<T: Copy + PartialOrd>(op: Compare, to: Row<'_, i32>, a: Row<'_, T>, b: Row<'_, T>) {
    match op {
        Compare::Lt => map2(to, a, b, |x, y| i32::from(x < y)),
        Compare::Le => map2(to, a, b, |x, y| i32::from(x <= y)),
        Compare::Eq => map2(to, a, b, |x, y| i32::from(x == y)),
        Compare::Ne => map2(to, a, b, |x, y| i32::from(x != y)),
    }
}

#[inline(always)]
fn select<T: Copy>(to: Row<'_, T>, condition: Row<'_, i32>, a: Row<'_, T>, b: Row<'_, T>) {
    let width = to.len();
    if condition.len() == width && a.len() == width && b.len() == width {
        for (((to, condition), a), b) in to.iter().zip(condition).zip(a).zip(b) {
            to.set(if condition.get() != 0 { a.get() } else { b.get() });
        }
        return;
    }
    let at = |row: Row<'_, T>, lane: usize| row[lane.min(row.len() - 1)].get();
    for (lane, to) in to.iter().enumerate() {
        let holds = condition[lane.min(condition.len() - 1)].get() != 0;
        to.set(if holds { at(a, lane) } else { at(b, lane) });
    }
}

fn power<R: Real>(x: R, exponent: i32) -> R {
    let one = R::of(1.0);
    let mut result = one;
    let mut square = x;
    let mut left = exponent.unsigned_abs();
    while left > 0 {
        if left & 1 == 1 {
            result = result * square;
        }
        square = square * square;
        left >>= 1;
    }
    if exponent < 0 { one / result } else { result }
}
