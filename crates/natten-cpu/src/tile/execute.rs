//! The operations: each a loop over the rows of its places. This is compiled once an instruction set and type.

use natten_core::Element;
use natten_core::program::numeric::{float_unary, int_binary};
use natten_core::program::{Binary, Compare, Type, Unary};

use super::build::{Coordinate, Op};
use super::code::{Instruction, Place};
use super::run::{Operand, Strip};
use super::{Captured, TokenIndex, math, random};
use crate::element::Real;
use crate::simd::{Integers, Outlined, Simd};

/// Instructions, to be executed on `rows` rows of their places.
pub(super) struct Steps<'m, R> {
    pub(super) instructions: &'m [Instruction],
    pub(super) strip: &'m Strip<'m, R>,
    pub(super) rows: usize,
}

impl Operand {
    /// Vector `vector` of a row of numbers.
    #[inline(always)]
    pub(super) unsafe fn numbers<S: Simd>(self, row: usize, vector: usize) -> *mut S::T {
        // SAFETY: the row and the vector are inside the place.
        unsafe { self.at.cast::<S::T>().add(row * self.moves * S::WIDTH + vector * S::LANES) }
    }

    /// Vector `vector` of a row of integers.
    #[inline(always)]
    unsafe fn integers<S: Simd>(self, row: usize, vector: usize) -> *mut i32 {
        // SAFETY: the row and the vector are inside the place.
        unsafe { self.at.cast::<i32>().add(row * self.moves * S::WIDTH + vector * S::LANES) }
    }

    /// A row of numbers or integers.
    #[inline(always)]
    pub(super) unsafe fn row<'m, T>(self, row: usize, width: usize) -> &'m [T] {
        // SAFETY: the row is inside the place.
        unsafe { std::slice::from_raw_parts(self.at.cast::<T>().add(row * self.moves * width), width) }
    }

    /// A row of numbers or integers, to be written, in a place that no other slice shares.
    #[inline(always)]
    unsafe fn row_mut<'m, T>(self, row: usize, width: usize) -> &'m mut [T] {
        // SAFETY: the row is inside the place.
        unsafe { std::slice::from_raw_parts_mut(self.at.cast::<T>().add(row * self.moves * width), width) }
    }

    /// A row's word of conditions.
    #[inline(always)]
    unsafe fn word(self, row: usize) -> *mut u32 {
        // SAFETY: the row is inside the place.
        unsafe { self.at.cast::<u32>().add(row * self.moves) }
    }
}

impl<R: Real> Outlined for Steps<'_, R> {
    type T = R;

    #[inline(always)]
    unsafe fn run<S: Simd<T = R>>(self) {
        for instruction in self.instructions {
            // SAFETY: the caller's.
            unsafe { step::<S>(instruction, self.strip, self.rows) };
        }
    }
}

/// Executes one instruction.
///
/// # Safety
/// The processor has `S`, the instruction's places are of the strip and hold `rows` rows.
#[inline(always)]
unsafe fn step<S: Simd>(instruction: &Instruction, strip: &Strip<'_, S::T>, rows: usize) {
    let &Instruction { op, ty, to: place, arguments } = instruction;
    let tile = strip.tile;
    // SAFETY: the caller's: every loop below stays inside `rows` rows of the operands.
    unsafe {
        let to = strip.operand(place);
        let [a, b, c] = arguments.map(|argument| strip.operand(argument));

        /// A function of numbers, vector by vector.
        macro_rules! numbers {
            (|$($x:ident),+| $value:expr) => {
                for row in 0..rows {
                    for vector in 0..2 {
                        $(let $x = S::load($x.numbers::<S>(row, vector));)+
                        S::store(to.numbers::<S>(row, vector), $value);
                    }
                }
            };
        }

        /// A function of integers, vector by vector.
        macro_rules! integers {
            (|$($x:ident),+| $value:expr) => {
                for row in 0..rows {
                    for vector in 0..2 {
                        $(let $x = S::I::load($x.integers::<S>(row, vector));)+
                        $value.store(to.integers::<S>(row, vector));
                    }
                }
            };
        }

        /// The bits of a condition of two numbers or integers, vector by vector.
        macro_rules! conditions {
            ($load:path, $operand:ident, |$x:ident, $y:ident| $bits:expr) => {
                for row in 0..rows {
                    let mut word = 0;
                    for vector in 0..2 {
                        let ($x, $y) =
                            ($load(a.$operand::<S>(row, vector)), $load(b.$operand::<S>(row, vector)));
                        word |= $bits << (vector * S::LANES);
                    }
                    *to.word(row) = word;
                }
            };
        }

        /// A function of words of conditions.
        macro_rules! words {
            (|$($x:ident),+| $value:expr) => {
                for row in 0..rows {
                    $(let $x = *$x.word(row);)+
                    *to.word(row) = $value;
                }
            };
        }

        match (op, ty) {
            (Op::Number(bits), _) => fill::<S>(to, S::T::of(f64::from_bits(bits))),
            (Op::Integer(value), _) => to.row_mut::<i32>(0, S::WIDTH).fill(value),
            (Op::Batch, _) => to.row_mut::<i32>(0, S::WIDTH).fill(tile.batch),
            (Op::Head, _) => to.row_mut::<i32>(0, S::WIDTH).fill(tile.head),
            (Op::HeadKv, _) => to.row_mut::<i32>(0, S::WIDTH).fill(tile.head_kv),
            (Op::Truth(value), _) => *to.word(0) = if value { u32::MAX } else { 0 },
            (Op::LaneNumbers(number), _) => {
                to.row_mut::<S::T>(0, S::WIDTH).copy_from_slice(&tile.lane_numbers[number][..S::WIDTH]);
            }
            (Op::LaneIndex(coordinate), _) => {
                let from = &indices(tile.lane_index, coordinate)[..S::WIDTH];
                to.row_mut::<i32>(0, S::WIDTH).copy_from_slice(from);
            }
            (Op::RowNumbers(number), _) => {
                let from = &tile.row_numbers[number][strip.rows.clone()];
                row_register(to.at.cast::<S::T>(), from, rows * S::WIDTH);
            }
            (Op::RowIndex(coordinate), _) => {
                let from = &indices(tile.row_index, coordinate)[strip.rows.clone()];
                row_register(to.at.cast::<i32>(), from, rows * S::WIDTH);
            }
            (Op::Tile(_), _) => unreachable!("an input tile is a place"),

            (Op::Copy, _) => {
                let is_row = matches!(arguments[0], Place::Row(_));
                copy::<S>(ty, to, a, is_row, rows);
            }

            (Op::Unary(op), Type::F) => match op {
                Unary::Neg => numbers!(|a| math::negate::<S>(a)),
                Unary::Abs => numbers!(|a| S::abs(a)),
                Unary::Exp => numbers!(|a| S::exp(a)),
                Unary::Exp2 => numbers!(|a| math::exp2::<S>(a)),
                Unary::Log => numbers!(|a| math::log::<S>(a)),
                Unary::Log2 => numbers!(|a| math::log2::<S>(a)),
                Unary::Expm1 => numbers!(|a| math::expm1::<S>(a)),
                Unary::Log1p => numbers!(|a| math::log1p::<S>(a)),
                Unary::Sqrt => numbers!(|a| S::sqrt(a)),
                Unary::Rsqrt => numbers!(|a| math::rsqrt::<S>(a)),
                Unary::Tanh => numbers!(|a| math::tanh::<S>(a)),
                Unary::Sigmoid => numbers!(|a| math::sigmoid::<S>(a)),
                Unary::Softplus => numbers!(|a| math::softplus::<S>(a)),
                Unary::Floor => numbers!(|a| S::floor(a)),
                Unary::ToFloat => {
                    for row in 0..rows {
                        for vector in 0..2 {
                            let from = S::I::load(a.integers::<S>(row, vector));
                            S::store(to.numbers::<S>(row, vector), S::from_integers(from));
                        }
                    }
                }
                _ => one_by_one::<S::T>(op, to, a, (rows, S::WIDTH)),
            },
            (Op::Unary(op), Type::I) => match op {
                Unary::Neg => integers!(|a| S::I::splat(0).sub(a)),
                Unary::Abs => integers!(|a| a.max(S::I::splat(0).sub(a))),
                _ => {
                    for row in 0..rows {
                        let to = to.row_mut::<i32>(row, S::WIDTH);
                        for (to, x) in to.iter_mut().zip(a.row::<S::T>(row, S::WIDTH)) {
                            *to = x.to_f64().floor() as i32;
                        }
                    }
                }
            },
            (Op::Unary(_), Type::B) => words!(|a| !a),

            (Op::Binary(op), Type::F) => match op {
                Binary::Add => numbers!(|a, b| S::add(a, b)),
                Binary::Sub => numbers!(|a, b| S::sub(a, b)),
                Binary::Mul => numbers!(|a, b| S::mul(a, b)),
                Binary::Div => numbers!(|a, b| S::div(a, b)),
                Binary::Min => numbers!(|a, b| math::min::<S>(a, b)),
                Binary::Max => numbers!(|a, b| math::max::<S>(a, b)),
                _ => unreachable!("{op:?} is not an operation on numbers, or made of others"),
            },
            (Op::Binary(op), Type::I) => match op {
                Binary::Add => integers!(|a, b| a.add(b)),
                Binary::Sub => integers!(|a, b| a.sub(b)),
                Binary::Mul => integers!(|a, b| a.mul(b)),
                Binary::Min => integers!(|a, b| a.min(b)),
                Binary::Max => integers!(|a, b| a.max(b)),
                Binary::BitAnd => integers!(|a, b| a.and(b)),
                Binary::BitOr => integers!(|a, b| a.or(b)),
                Binary::BitXor => integers!(|a, b| a.xor(b)),
                _ => integers_one_by_one(op, to, [a, b], (rows, S::WIDTH)),
            },
            (Op::Binary(op), Type::B) => match op {
                Binary::And => words!(|a, b| a & b),
                _ => words!(|a, b| a | b),
            },

            (Op::Compare(op), _) => match op {
                Compare::Lt => conditions!(S::load, numbers, |x, y| S::bits(S::lt(x, y))),
                Compare::Le => conditions!(S::load, numbers, |x, y| S::bits(S::le(x, y))),
                Compare::Eq => conditions!(S::load, numbers, |x, y| S::bits(S::eq(x, y))),
                Compare::Ne => {
                    conditions!(S::load, numbers, |x, y| S::bits(S::eq(x, y)));
                    invert(to, rows);
                }
            },
            (Op::IntegerCompare(op), _) => match op {
                Compare::Lt => conditions!(S::I::load, integers, |x, y| x.lt(y)),
                Compare::Le => {
                    conditions!(S::I::load, integers, |x, y| y.lt(x));
                    invert(to, rows);
                }
                Compare::Eq => conditions!(S::I::load, integers, |x, y| x.eq(y)),
                Compare::Ne => {
                    conditions!(S::I::load, integers, |x, y| x.eq(y));
                    invert(to, rows);
                }
            },

            (Op::Select, Type::F) => {
                for row in 0..rows {
                    let bits = *a.word(row);
                    for vector in 0..2 {
                        let (x, y) =
                            (S::load(b.numbers::<S>(row, vector)), S::load(c.numbers::<S>(row, vector)));
                        S::store(to.numbers::<S>(row, vector), S::select(bits >> (vector * S::LANES), x, y));
                    }
                }
            }
            (Op::Select, Type::I) => {
                for row in 0..rows {
                    let bits = *a.word(row);
                    for vector in 0..2 {
                        let x = S::I::load(b.integers::<S>(row, vector));
                        let y = S::I::load(c.integers::<S>(row, vector));
                        let picked = S::I::select(bits >> (vector * S::LANES), x, y);
                        picked.store(to.integers::<S>(row, vector));
                    }
                }
            }
            (Op::Select, Type::B) => words!(|a, b, c| a & b | !a & c),

            (Op::Powi(exponent), _) => numbers!(|a| math::powi::<S>(a, exponent)),
            (Op::Offset { last, stride }, _) => {
                let [zero, last, stride] = [0, last, stride].map(|value| S::I::splat(value));
                integers!(|a, b| a.max(zero).min(last).mul(stride).add(b));
            }
            (Op::Load(buffer), _) => match (tile.captures[buffer.capture as usize], ty) {
                (Captured::Numbers { primal, tangent }, Type::F) => {
                    let from = if buffer.tangent { tangent } else { primal };
                    for row in 0..rows {
                        gather(to.row_mut::<S::T>(row, S::WIDTH), a.row(row, S::WIDTH), from);
                    }
                }
                (Captured::Integers(from), Type::I) => {
                    for row in 0..rows {
                        gather(to.row_mut::<i32>(row, S::WIDTH), a.row(row, S::WIDTH), from);
                    }
                }
                _ => unreachable!("the code knows which captured tensors hold integers"),
            },
            (Op::Random, _) => random::fill::<S>(to, [a, b], strip),
        }
    }
}

#[inline(always)]
fn indices<'a>(index: &TokenIndex<'a>, coordinate: Coordinate) -> &'a [i32] {
    match coordinate {
        Coordinate::Flat => index.flat,
        Coordinate::Axis(axis) => index.axis[axis as usize],
    }
}

/// A number to all lanes of a fixed register.
#[inline(always)]
unsafe fn fill<S: Simd>(to: Operand, value: S::T) {
    // SAFETY: the caller's processor has the instruction set, and the register has a row.
    unsafe {
        for vector in 0..2 {
            S::store(to.numbers::<S>(0, vector), S::splat(value));
        }
    }
}

/// Copies the numbers of a strip's rows to a row register, zeros behind them up to `len`.
#[inline(always)]
unsafe fn row_register<T: Copy + bytemuck::Zeroable>(to: *mut T, from: &[T], len: usize) {
    // SAFETY: the register has `len` elements.
    let (own, rest) = unsafe { std::slice::from_raw_parts_mut(to, len) }.split_at_mut(from.len());
    own.copy_from_slice(from);
    rest.fill(T::zeroed());
}

/// A value of any class to every pair.
#[inline(always)]
unsafe fn copy<S: Simd>(ty: Type, to: Operand, from: Operand, is_row: bool, rows: usize) {
    // SAFETY: the caller's: a row register has a number, or a bit, a row; the others have rows, or one.
    unsafe {
        for row in 0..rows {
            match ty {
                Type::F => {
                    for vector in 0..2 {
                        let x = if is_row {
                            S::splat(*from.at.cast::<S::T>().add(row))
                        } else {
                            S::load(from.numbers::<S>(row, vector))
                        };
                        S::store(to.numbers::<S>(row, vector), x);
                    }
                }
                Type::I if is_row => to.row_mut::<i32>(row, S::WIDTH).fill(*from.at.cast::<i32>().add(row)),
                Type::I => to.row_mut::<i32>(row, S::WIDTH).copy_from_slice(from.row(row, S::WIDTH)),
                Type::B if is_row => {
                    let word = *from.at.cast::<u32>().add(row / S::WIDTH);
                    *to.word(row) = if word >> (row % S::WIDTH) & 1 == 1 { u32::MAX } else { 0 };
                }
                Type::B => *to.word(row) = *from.word(row),
            }
        }
    }
}

/// Negates words of conditions.
#[inline(always)]
unsafe fn invert(words: Operand, rows: usize) {
    for row in 0..rows {
        // SAFETY: the caller's.
        unsafe { *words.word(row) = !*words.word(row) };
    }
}

/// `to[i] = from[at[i]]`.
///
/// # Safety
/// The offsets are inside `from`: every index was clamped into its axis, and a captured tensor has its shape's elements.
#[inline(always)]
unsafe fn gather<T: Copy>(to: &mut [T], at: &[i32], from: &[T]) {
    for (to, &at) in to.iter_mut().zip(at) {
        debug_assert!((at as usize) < from.len());
        // SAFETY: the caller's.
        *to = unsafe { *from.get_unchecked(at as usize) };
    }
}

/// A function of numbers that has no vector form here.
#[inline(never)]
unsafe fn one_by_one<R: Real>(op: Unary, to: Operand, from: Operand, (rows, width): (usize, usize)) {
    for row in 0..rows {
        for lane in 0..width {
            // SAFETY: the caller's: both have the rows.
            unsafe {
                let x = (*from.at.cast::<R>().add(row * from.moves * width + lane)).to_f64();
                let y = float_unary(op, x).unwrap_or_else(|| unreachable!("{op:?} is of numbers"));
                *to.at.cast::<R>().add(row * to.moves * width + lane) = R::of(y);
            }
        }
    }
}

/// An operation on integers that has no vector form here.
#[inline(never)]
unsafe fn integers_one_by_one(op: Binary, to: Operand, from: [Operand; 2], (rows, width): (usize, usize)) {
    for row in 0..rows {
        for lane in 0..width {
            // SAFETY: the caller's: all have the rows.
            unsafe {
                let [a, b] = from.map(|from| *from.at.cast::<i32>().add(row * from.moves * width + lane));
                *to.at.cast::<i32>().add(row * to.moves * width + lane) = int_binary(op, a, b);
            }
        }
    }
}
