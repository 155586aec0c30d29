//! Vectors of AVX2 with FMA, and of AVX-512.

use std::arch::x86_64::*;
use std::marker::PhantomData;

use super::gemm::gemm;
use super::{Extents, Isa, Left, Outlined, Simd};

/// 256-bit vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx2;

/// 512-bit vectors.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Avx512;

/// Vectors of `T` on `I`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Vector<I, T>(PhantomData<(I, T)>);

impl Isa for Avx2 {
    type F32 = Vector<Self, f32>;
    type F64 = Vector<Self, f64>;
}

impl Isa for Avx512 {
    type F32 = Vector<Self, f32>;
    type F64 = Vector<Self, f64>;
}

const FLOOR: i32 = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
const ROUND: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;

/// `a * 2^n` on AVX2, in two steps: the power itself may be out of range where the product is not.
#[inline(always)]
unsafe fn scale_ps(a: __m256, n: __m256) -> __m256 {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let whole = _mm256_cvtps_epi32(n);
        let half = _mm256_srai_epi32::<1>(whole);
        let rest = _mm256_sub_epi32(whole, half);
        let bias = _mm256_set1_epi32(127);
        let low = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(half, bias)));
        let high = _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(rest, bias)));
        _mm256_mul_ps(_mm256_mul_ps(a, low), high)
    }
}

/// As [`scale_ps`].
#[inline(always)]
unsafe fn scale_pd(a: __m256d, n: __m256d) -> __m256d {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let whole = _mm256_cvtpd_epi32(n);
        let half = _mm_srai_epi32::<1>(whole);
        let rest = _mm_sub_epi32(whole, half);
        let bias = _mm_set1_epi32(1023);
        let widen = |n| _mm256_slli_epi64::<52>(_mm256_cvtepi32_epi64(_mm_add_epi32(n, bias)));
        let (low, high) = (_mm256_castsi256_pd(widen(half)), _mm256_castsi256_pd(widen(rest)));
        _mm256_mul_pd(_mm256_mul_pd(a, low), high)
    }
}

#[inline(always)]
unsafe fn select_ps(bits: u32, a: __m256, b: __m256) -> __m256 {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
        let set = _mm256_and_si256(_mm256_set1_epi32(bits.cast_signed()), lane);
        _mm256_blendv_ps(b, a, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, lane)))
    }
}

#[inline(always)]
unsafe fn select_pd(bits: u32, a: __m256d, b: __m256d) -> __m256d {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let lane = _mm256_setr_epi64x(1, 2, 4, 8);
        let set = _mm256_and_si256(_mm256_set1_epi64x(i64::from(bits)), lane);
        _mm256_blendv_pd(b, a, _mm256_castsi256_pd(_mm256_cmpeq_epi64(set, lane)))
    }
}

/// Mantissa and exponent on AVX2. A subnormal number becomes a normal one first.
#[inline(always)]
unsafe fn split_ps(a: __m256) -> (__m256, __m256) {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let small = _mm256_cmp_ps::<_CMP_LT_OQ>(a, _mm256_set1_ps(f32::MIN_POSITIVE));
        let normal = _mm256_blendv_ps(a, _mm256_mul_ps(a, _mm256_set1_ps(8_388_608.0)), small);
        let bits = _mm256_castps_si256(normal);
        let one = _mm256_set1_epi32(127 << 23);
        let mantissa = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi32(0x7f_ffff)), one);
        let bias = _mm256_blendv_ps(_mm256_set1_ps(127.0), _mm256_set1_ps(127.0 + 23.0), small);
        let exponent = _mm256_sub_ps(_mm256_cvtepi32_ps(_mm256_srli_epi32::<23>(bits)), bias);
        (_mm256_castsi256_ps(mantissa), exponent)
    }
}

/// As [`split_ps`].
#[inline(always)]
unsafe fn split_pd(a: __m256d) -> (__m256d, __m256d) {
    // SAFETY: the caller's processor has AVX2.
    unsafe {
        let small = _mm256_cmp_pd::<_CMP_LT_OQ>(a, _mm256_set1_pd(f64::MIN_POSITIVE));
        let normal = _mm256_blendv_pd(a, _mm256_mul_pd(a, _mm256_set1_pd(4_503_599_627_370_496.0)), small);
        let bits = _mm256_castpd_si256(normal);
        let one = _mm256_set1_epi64x(1023 << 52);
        let mantissa = _mm256_or_si256(_mm256_and_si256(bits, _mm256_set1_epi64x((1 << 52) - 1)), one);
        // An integer below 2^52 in the mantissa of 2^52 is 2^52 and that integer.
        let whole = 4_503_599_627_370_496.0;
        let shifted =
            _mm256_or_si256(_mm256_srli_epi64::<52>(bits), _mm256_castpd_si256(_mm256_set1_pd(whole)));
        let bias =
            _mm256_blendv_pd(_mm256_set1_pd(whole + 1023.0), _mm256_set1_pd(whole + 1023.0 + 52.0), small);
        (_mm256_castsi256_pd(mantissa), _mm256_sub_pd(_mm256_castsi256_pd(shifted), bias))
    }
}

#[inline(always)]
unsafe fn load_16(from: *const i32) -> __m512i {
    // SAFETY: the caller's processor has AVX-512, and there are 16 integers.
    unsafe { _mm512_loadu_si512(from.cast()) }
}

#[inline(always)]
unsafe fn load_8(from: *const i32) -> __m256i {
    // SAFETY: the caller's processor has AVX2, and there are 8 integers.
    unsafe { _mm256_loadu_si256(from.cast()) }
}

#[inline(always)]
unsafe fn load_4(from: *const i32) -> __m128i {
    // SAFETY: there are 4 integers.
    unsafe { _mm_loadu_si128(from.cast()) }
}

/// The sign bits.
#[inline(always)]
unsafe fn bits_8(of: __m256i) -> u32 {
    // SAFETY: the caller's processor has AVX2.
    unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(of)).cast_unsigned() }
}

/// The sign bits.
#[inline(always)]
unsafe fn bits_4(of: __m128i) -> u32 {
    // SAFETY: every x86-64 processor has SSE2.
    unsafe { _mm_movemask_ps(_mm_castsi128_ps(of)).cast_unsigned() }
}

macro_rules! vector {
    (
        $isa:ty, $features:literal, $type:ty, $vector:ty, $mask:ty, $lanes:literal, $rows:literal, $splat:ident, $load:ident,
        $store:ident, $add:ident, $sub:ident, $mul:ident, $mul_add:ident, $div:ident, $sqrt:ident, $max:ident,
        $min:ident, $floor:path, $round:path, $scale:path, $split:expr, $abs:expr, $with_sign:expr, $select:expr,
        $compare:ident, $blend:expr, $bits:expr, $from_integers:expr, $integers_lt:expr, $integers_eq:expr
    ) => {
        impl Simd for Vector<$isa, $type> {
            type T = $type;
            type V = $vector;
            type M = $mask;

            const LANES: usize = $lanes;
            const ROWS: usize = $rows;

            #[inline(always)]
            unsafe fn splat(value: $type) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $splat(value) }
            }

            #[inline(always)]
            unsafe fn load(from: *const $type) -> Self::V {
                // SAFETY: as above, and the caller gives `LANES` readable elements.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(to: *mut $type, value: Self::V) {
                // SAFETY: as above, and the caller gives `LANES` writable elements.
                unsafe { $store(to, value) }
            }

            #[inline(always)]
            unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $add(a, b) }
            }

            #[inline(always)]
            unsafe fn sub(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $sub(a, b) }
            }

            #[inline(always)]
            unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $mul(a, b) }
            }

            #[inline(always)]
            unsafe fn mul_add(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $mul_add(a, b, c) }
            }

            #[inline(always)]
            unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $div(a, b) }
            }

            #[inline(always)]
            unsafe fn sqrt(a: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $sqrt(a) }
            }

            #[inline(always)]
            unsafe fn abs(a: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $abs(a) }
            }

            #[inline(always)]
            unsafe fn with_sign(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $with_sign(a, b) }
            }

            #[inline(always)]
            unsafe fn floor(a: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $floor(a) }
            }

            #[inline(always)]
            unsafe fn split(a: Self::V) -> (Self::V, Self::V) {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $split(a) }
            }

            #[inline(always)]
            unsafe fn from_integers(from: *const i32) -> Self::V {
                // SAFETY: as above, and the caller gives `LANES` readable integers.
                unsafe { $from_integers(from) }
            }

            #[inline(always)]
            unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $max(a, b) }
            }

            #[inline(always)]
            unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $min(a, b) }
            }

            #[inline(always)]
            unsafe fn round(a: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $round(a) }
            }

            #[inline(always)]
            unsafe fn scale(a: Self::V, n: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $scale(a, n) }
            }

            #[inline(always)]
            unsafe fn select(bits: u32, a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $select(bits, a, b) }
            }

            #[inline(always)]
            unsafe fn lt(a: Self::V, b: Self::V) -> Self::M {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $compare::<_CMP_LT_OQ>(a, b) }
            }

            #[inline(always)]
            unsafe fn le(a: Self::V, b: Self::V) -> Self::M {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $compare::<_CMP_LE_OQ>(a, b) }
            }

            #[inline(always)]
            unsafe fn eq(a: Self::V, b: Self::V) -> Self::M {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $compare::<_CMP_EQ_OQ>(a, b) }
            }

            #[inline(always)]
            unsafe fn blend(which: Self::M, a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $blend(which, a, b) }
            }

            #[inline(always)]
            unsafe fn bits(which: Self::M) -> u32 {
                // SAFETY: the caller's processor has the instruction set.
                unsafe { $bits(which) }
            }

            #[inline(always)]
            unsafe fn integers_lt(a: *const i32, b: *const i32) -> u32 {
                // SAFETY: as above, and the caller gives `LANES` readable integers at both.
                unsafe { $integers_lt(a, b) }
            }

            #[inline(always)]
            unsafe fn integers_eq(a: *const i32, b: *const i32) -> u32 {
                // SAFETY: as above, and the caller gives `LANES` readable integers at both.
                unsafe { $integers_eq(a, b) }
            }

            #[inline(always)]
            unsafe fn outlined<W: Outlined<T = $type>>(work: W) {
                #[target_feature(enable = $features)]
                #[inline(never)]
                unsafe fn compiled<W: Outlined<T = $type>>(work: W) {
                    // SAFETY: the caller's.
                    unsafe { work.run::<Vector<$isa, $type>>() }
                }
                // SAFETY: the caller's.
                unsafe { compiled(work) }
            }

            #[inline(always)]
            unsafe fn gemm<const ACCUMULATE: bool>(
                extents: Extents,
                a: Left<$type>,
                b: (*const $type, usize),
                c: (*mut $type, usize),
            ) {
                #[target_feature(enable = $features)]
                unsafe fn compiled<const ACCUMULATE: bool>(
                    extents: Extents,
                    a: Left<$type>,
                    b: (*const $type, usize),
                    c: (*mut $type, usize),
                ) {
                    // SAFETY: the caller's.
                    unsafe { gemm::<Vector<$isa, $type>, ACCUMULATE>(extents, a, b, c) }
                }
                // SAFETY: the caller's.
                unsafe { compiled::<ACCUMULATE>(extents, a, b, c) }
            }
        }
    };
}

vector!(
    Avx2,
    "avx2,fma",
    f32,
    __m256,
    __m256,
    8,
    4,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_sub_ps,
    _mm256_mul_ps,
    _mm256_fmadd_ps,
    _mm256_div_ps,
    _mm256_sqrt_ps,
    _mm256_max_ps,
    _mm256_min_ps,
    _mm256_round_ps::<FLOOR>,
    _mm256_round_ps::<ROUND>,
    scale_ps,
    split_ps,
    |a| _mm256_andnot_ps(_mm256_set1_ps(-0.0), a),
    |a, b| _mm256_or_ps(a, _mm256_and_ps(b, _mm256_set1_ps(-0.0))),
    |bits, a, b| select_ps(bits, a, b),
    _mm256_cmp_ps,
    |which, a, b| _mm256_blendv_ps(b, a, which),
    |which| _mm256_movemask_ps(which).cast_unsigned(),
    |from| _mm256_cvtepi32_ps(load_8(from)),
    |a, b| bits_8(_mm256_cmpgt_epi32(load_8(b), load_8(a))),
    |a, b| bits_8(_mm256_cmpeq_epi32(load_8(a), load_8(b)))
);
vector!(
    Avx2,
    "avx2,fma",
    f64,
    __m256d,
    __m256d,
    4,
    4,
    _mm256_set1_pd,
    _mm256_loadu_pd,
    _mm256_storeu_pd,
    _mm256_add_pd,
    _mm256_sub_pd,
    _mm256_mul_pd,
    _mm256_fmadd_pd,
    _mm256_div_pd,
    _mm256_sqrt_pd,
    _mm256_max_pd,
    _mm256_min_pd,
    _mm256_round_pd::<FLOOR>,
    _mm256_round_pd::<ROUND>,
    scale_pd,
    split_pd,
    |a| _mm256_andnot_pd(_mm256_set1_pd(-0.0), a),
    |a, b| _mm256_or_pd(a, _mm256_and_pd(b, _mm256_set1_pd(-0.0))),
    |bits, a, b| select_pd(bits, a, b),
    _mm256_cmp_pd,
    |which, a, b| _mm256_blendv_pd(b, a, which),
    |which| _mm256_movemask_pd(which).cast_unsigned(),
    |from| _mm256_cvtepi32_pd(load_4(from)),
    |a, b| bits_4(_mm_cmplt_epi32(load_4(a), load_4(b))),
    |a, b| bits_4(_mm_cmpeq_epi32(load_4(a), load_4(b)))
);
vector!(
    Avx512,
    "avx512f,avx2,fma",
    f32,
    __m512,
    __mmask16,
    16,
    8,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_sub_ps,
    _mm512_mul_ps,
    _mm512_fmadd_ps,
    _mm512_div_ps,
    _mm512_sqrt_ps,
    _mm512_max_ps,
    _mm512_min_ps,
    _mm512_roundscale_ps::<FLOOR>,
    _mm512_roundscale_ps::<ROUND>,
    _mm512_scalef_ps,
    |a| (_mm512_getmant_ps::<_MM_MANT_NORM_1_2, _MM_MANT_SIGN_ZERO>(a), _mm512_getexp_ps(a)),
    |a| _mm512_abs_ps(a),
    |a, b| _mm512_castsi512_ps(_mm512_or_epi32(
        _mm512_castps_si512(a),
        _mm512_and_epi32(_mm512_castps_si512(b), _mm512_castps_si512(_mm512_set1_ps(-0.0)))
    )),
    |bits: u32, a, b| _mm512_mask_blend_ps(bits as u16, b, a),
    _mm512_cmp_ps_mask,
    |which, a, b| _mm512_mask_blend_ps(which, b, a),
    |which| _mm512_mask2int(which).cast_unsigned(),
    |from| _mm512_cvtepi32_ps(load_16(from)),
    |a, b| u32::from(_mm512_cmplt_epi32_mask(load_16(a), load_16(b))),
    |a, b| u32::from(_mm512_cmpeq_epi32_mask(load_16(a), load_16(b)))
);
vector!(
    Avx512,
    "avx512f,avx2,fma",
    f64,
    __m512d,
    __mmask8,
    8,
    8,
    _mm512_set1_pd,
    _mm512_loadu_pd,
    _mm512_storeu_pd,
    _mm512_add_pd,
    _mm512_sub_pd,
    _mm512_mul_pd,
    _mm512_fmadd_pd,
    _mm512_div_pd,
    _mm512_sqrt_pd,
    _mm512_max_pd,
    _mm512_min_pd,
    _mm512_roundscale_pd::<FLOOR>,
    _mm512_roundscale_pd::<ROUND>,
    _mm512_scalef_pd,
    |a| (_mm512_getmant_pd::<_MM_MANT_NORM_1_2, _MM_MANT_SIGN_ZERO>(a), _mm512_getexp_pd(a)),
    |a| _mm512_abs_pd(a),
    |a, b| _mm512_castsi512_pd(_mm512_or_epi64(
        _mm512_castpd_si512(a),
        _mm512_and_epi64(_mm512_castpd_si512(b), _mm512_castpd_si512(_mm512_set1_pd(-0.0)))
    )),
    |bits: u32, a, b| _mm512_mask_blend_pd(bits as u8, b, a),
    _mm512_cmp_pd_mask,
    |which, a, b| _mm512_mask_blend_pd(which, b, a),
    |which: u8| _mm512_mask2int(which.into()).cast_unsigned(),
    |from| _mm512_cvtepi32_pd(load_8(from)),
    |a, b| bits_8(_mm256_cmpgt_epi32(load_8(b), load_8(a))),
    |a, b| bits_8(_mm256_cmpeq_epi32(load_8(a), load_8(b)))
);
