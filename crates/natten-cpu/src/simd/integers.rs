//! Vectors of 32-bit integers, as many as a vector of numbers has lanes.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Vectors of 32-bit integers, wrapping.
///
/// # Safety
/// Every method may be called only on a processor that has the instruction set of the [`Simd`](super::Simd) that names
/// the type; loads and stores need as many integers at the pointer as the vector has. No alignment is needed.
pub(crate) trait Integers: Copy {
    unsafe fn splat(value: i32) -> Self;
    unsafe fn load(from: *const i32) -> Self;
    unsafe fn store(self, to: *mut i32);
    unsafe fn add(self, b: Self) -> Self;
    unsafe fn sub(self, b: Self) -> Self;
    unsafe fn mul(self, b: Self) -> Self;
    /// The upper 32 bits of the products of unsigned integers.
    unsafe fn mul_high(self, b: Self) -> Self;
    unsafe fn min(self, b: Self) -> Self;
    unsafe fn max(self, b: Self) -> Self;
    unsafe fn and(self, b: Self) -> Self;
    unsafe fn or(self, b: Self) -> Self;
    unsafe fn xor(self, b: Self) -> Self;
    /// Unsigned integers divided by 2^8.
    unsafe fn shift_right_8(self) -> Self;
    /// Bit `i` tells whether integer `i` is less.
    unsafe fn lt(self, b: Self) -> u32;
    /// Bit `i` tells whether integers `i` are equal.
    unsafe fn eq(self, b: Self) -> u32;
    /// Integer `i` of `a` where bit `i` is set, of `b` where it is not.
    unsafe fn select(bits: u32, a: Self, b: Self) -> Self;
}

impl<const N: usize> Integers for [i32; N] {
    #[inline(always)]
    unsafe fn splat(value: i32) -> Self {
        [value; N]
    }

    #[inline(always)]
    unsafe fn load(from: *const i32) -> Self {
        // SAFETY: the caller gives as many integers.
        unsafe { from.cast::<Self>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        // SAFETY: the caller gives room for as many integers.
        unsafe { to.cast::<Self>().write_unaligned(self) }
    }

    #[inline(always)]
    unsafe fn add(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i].wrapping_add(b[i]))
    }

    #[inline(always)]
    unsafe fn sub(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i].wrapping_sub(b[i]))
    }

    #[inline(always)]
    unsafe fn mul(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i].wrapping_mul(b[i]))
    }

    #[inline(always)]
    unsafe fn mul_high(self, b: Self) -> Self {
        let wide = |x: i32| u64::from(x.cast_unsigned());
        std::array::from_fn(|i| ((wide(self[i]) * wide(b[i])) >> 32) as i32)
    }

    #[inline(always)]
    unsafe fn min(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i].min(b[i]))
    }

    #[inline(always)]
    unsafe fn max(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i].max(b[i]))
    }

    #[inline(always)]
    unsafe fn and(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] & b[i])
    }

    #[inline(always)]
    unsafe fn or(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] | b[i])
    }

    #[inline(always)]
    unsafe fn xor(self, b: Self) -> Self {
        std::array::from_fn(|i| self[i] ^ b[i])
    }

    #[inline(always)]
    unsafe fn shift_right_8(self) -> Self {
        self.map(|x| (x.cast_unsigned() >> 8).cast_signed())
    }

    #[inline(always)]
    unsafe fn lt(self, b: Self) -> u32 {
        (0..N).fold(0, |bits, i| bits | u32::from(self[i] < b[i]) << i)
    }

    #[inline(always)]
    unsafe fn eq(self, b: Self) -> u32 {
        (0..N).fold(0, |bits, i| bits | u32::from(self[i] == b[i]) << i)
    }

    #[inline(always)]
    unsafe fn select(bits: u32, a: Self, b: Self) -> Self {
        std::array::from_fn(|i| if bits >> i & 1 == 1 { a[i] } else { b[i] })
    }
}

#[cfg(target_arch = "x86_64")]
macro_rules! integers {
    (
        $vector:ty, $splat:ident, $load:ident, $store:ident, $add:ident, $sub:ident, $mul:ident, $min:ident, $max:ident,
        $and:ident, $or:ident, $xor:ident, $wide:ident, $odd:path, $shift:path, $high:expr, $lt:expr, $eq:expr,
        $select:expr
    ) => {
        impl Integers for $vector {
            #[inline(always)]
            unsafe fn splat(value: i32) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $splat(value) }
            }

            #[inline(always)]
            unsafe fn load(from: *const i32) -> Self {
                // SAFETY: as above, and the caller gives as many integers.
                unsafe { $load(from.cast()) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut i32) {
                // SAFETY: as above, and the caller gives room for as many integers.
                unsafe { $store(to.cast(), self) }
            }

            #[inline(always)]
            unsafe fn add(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $add(self, b) }
            }

            #[inline(always)]
            unsafe fn sub(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $sub(self, b) }
            }

            #[inline(always)]
            unsafe fn mul(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $mul(self, b) }
            }

            #[inline(always)]
            unsafe fn mul_high(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe {
                    // The instruction multiplies the integers of even number.
                    let (even, odd) = ($wide(self, b), $wide($odd(self), $odd(b)));
                    $high($odd(even), odd)
                }
            }

            #[inline(always)]
            unsafe fn min(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $min(self, b) }
            }

            #[inline(always)]
            unsafe fn max(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $max(self, b) }
            }

            #[inline(always)]
            unsafe fn and(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $and(self, b) }
            }

            #[inline(always)]
            unsafe fn or(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $or(self, b) }
            }

            #[inline(always)]
            unsafe fn xor(self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $xor(self, b) }
            }

            #[inline(always)]
            unsafe fn shift_right_8(self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $shift(self) }
            }

            #[inline(always)]
            unsafe fn lt(self, b: Self) -> u32 {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $lt(self, b) }
            }

            #[inline(always)]
            unsafe fn eq(self, b: Self) -> u32 {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $eq(self, b) }
            }

            #[inline(always)]
            unsafe fn select(bits: u32, a: Self, b: Self) -> Self {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $select(bits, a, b) }
            }
        }
    };
}

/// The sign bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn bits_8(of: __m256i) -> u32 {
    // SAFETY: the caller's processor has AVX2.
    unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(of)).cast_unsigned() }
}

/// The sign bits.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn bits_4(of: __m128i) -> u32 {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_movemask_ps(_mm_castsi128_ps(of)).cast_unsigned() }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn select_8(bits: u32, a: __m256i, b: __m256i) -> __m256i {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_and_si256(_mm256_set1_epi32(bits.cast_signed()), lane);
        _mm256_blendv_epi8(b, a, _mm256_cmpeq_epi32(set, lane))
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn select_4(bits: u32, a: __m128i, b: __m128i) -> __m128i {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let lane = _mm_setr_epi32(1, 2, 4, 8);
        let set = _mm_and_si128(_mm_set1_epi32(bits.cast_signed()), lane);
        _mm_blendv_epi8(b, a, _mm_cmpeq_epi32(set, lane))
    }
}

#[cfg(target_arch = "x86_64")]
integers!(
    __m512i,
    _mm512_set1_epi32,
    _mm512_loadu_si512,
    _mm512_storeu_si512,
    _mm512_add_epi32,
    _mm512_sub_epi32,
    _mm512_mullo_epi32,
    _mm512_min_epi32,
    _mm512_max_epi32,
    _mm512_and_si512,
    _mm512_or_si512,
    _mm512_xor_si512,
    _mm512_mul_epu32,
    _mm512_srli_epi64::<32>,
    _mm512_srli_epi32::<8>,
    |even, odd| _mm512_mask_mov_epi32(even, 0xaaaa, odd),
    |a, b| u32::from(_mm512_cmplt_epi32_mask(a, b)),
    |a, b| u32::from(_mm512_cmpeq_epi32_mask(a, b)),
    |bits: u32, a, b| _mm512_mask_blend_epi32(bits as u16, b, a)
);
#[cfg(target_arch = "x86_64")]
integers!(
    __m256i,
    _mm256_set1_epi32,
    _mm256_loadu_si256,
    _mm256_storeu_si256,
    _mm256_add_epi32,
    _mm256_sub_epi32,
    _mm256_mullo_epi32,
    _mm256_min_epi32,
    _mm256_max_epi32,
    _mm256_and_si256,
    _mm256_or_si256,
    _mm256_xor_si256,
    _mm256_mul_epu32,
    _mm256_srli_epi64::<32>,
    _mm256_srli_epi32::<8>,
    |even, odd| _mm256_blend_epi32::<0b1010_1010>(even, odd),
    |a, b| bits_8(_mm256_cmpgt_epi32(b, a)),
    |a, b| bits_8(_mm256_cmpeq_epi32(a, b)),
    |bits, a, b| select_8(bits, a, b)
);
#[cfg(target_arch = "x86_64")]
integers!(
    __m128i,
    _mm_set1_epi32,
    _mm_loadu_si128,
    _mm_storeu_si128,
    _mm_add_epi32,
    _mm_sub_epi32,
    _mm_mullo_epi32,
    _mm_min_epi32,
    _mm_max_epi32,
    _mm_and_si128,
    _mm_or_si128,
    _mm_xor_si128,
    _mm_mul_epu32,
    _mm_srli_epi64::<32>,
    _mm_srli_epi32::<8>,
    |even, odd| _mm_blend_epi32::<0b1010>(even, odd),
    |a, b| bits_4(_mm_cmplt_epi32(a, b)),
    |a, b| bits_4(_mm_cmpeq_epi32(a, b)),
    |bits, a, b| select_4(bits, a, b)
);
