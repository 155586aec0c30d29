//! The elementary functions in WGSL: `wgsl/math.wgsl` with polynomials of the degree that a type of numbers needs.

use crate::template::Fill;

const PRELUDE: &str = include_str!("../wgsl/prelude.wgsl");
const MATH: &str = include_str!("../wgsl/math.wgsl");

/// The type that is computed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Real {
    /// f32, of f32, f16 and bf16 problems.
    F32,
    /// f64, of f64 problems.
    F64,
}

impl Real {
    /// Its name in WGSL.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        }
    }

    /// Bytes of a number.
    pub(crate) const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F64 => 8,
        }
    }
}

/// The alias, the arena and the captured integers, and functions that say what is not finite.
pub(crate) fn prelude(real: Real, has_integers: bool) -> String {
    let largest = match real {
        Real::F32 => "R(3.4028234663852886e38)",
        Real::F64 => "1.7976931348623157e308lf",
    };
    Fill::default()
        .flag("INTEGERS", has_integers)
        .flag("F64", real == Real::F64)
        .value("REAL", real.name())
        .value("LARGEST", largest)
        .apply(PRELUDE)
}

/// The elementary functions.
pub(crate) fn functions(real: Real) -> String {
    let is_f64 = real == Real::F64;
    // Powers behind the first, of the argument or of its square.
    let degree = |of_f32: usize, of_f64: usize| if is_f64 { of_f64 } else { of_f32 };
    let factorial = |n: usize| (1..=n).map(|k| k as f64).product::<f64>();
    let exp: Vec<f64> = (2..=degree(8, 15)).map(|k| 1.0 / factorial(k)).collect();
    let log: Vec<f64> = (1..=degree(6, 12)).map(|k| 2.0 / (2 * k + 1) as f64).collect();
    let signed = |k: usize| if k % 2 == 1 { -1.0 } else { 1.0 };
    let sin: Vec<f64> = (1..=degree(5, 9)).map(|k| signed(k) / factorial(2 * k + 1)).collect();
    let cos: Vec<f64> = (1..=degree(5, 9)).map(|k| signed(k) / factorial(2 * k)).collect();
    let pick = |of_f32: &'static str, of_f64: &'static str| if is_f64 { of_f64 } else { of_f32 };
    let mut fill = Fill::default()
        .flag("F64", is_f64)
        .value("LN2_HIGH", pick("0.693359375", "6.93147180369123816490e-01"))
        .value("LN2_LOW", pick("-2.12194440054690583e-4", "1.90821492927058770002e-10"))
        .value("EXP_LEAST", pick("-104.0", "-746.0"))
        .value("EXP_MOST", pick("88.8", "709.9"))
        .value("RIGHT_1", pick("1.5703125", "1.57079632673412561417"))
        .value("RIGHT_2", pick("4.837512969970703125e-4", "6.07710050630396597660e-11"))
        .value("RIGHT_3", pick("7.549789948768648e-8", "2.02226624879595063154e-21"));
    for (first, rest, argument, coefficients) in [
        ("EXP_FIRST", "EXP_REST", "r", &exp),
        ("LOG_FIRST", "LOG_REST", "z", &log),
        ("SIN_FIRST", "SIN_REST", "z", &sin),
        ("COS_FIRST", "COS_REST", "z", &cos),
    ] {
        let mut falling = coefficients.iter().rev();
        let leading = falling.next().copied().unwrap_or_default();
        let lines: Vec<String> =
            falling.map(|coefficient| format!("    p = p * {argument} + R({coefficient:?});")).collect();
        fill = fill.value(first, format!("{leading:?}")).value(rest, lines.join("\n"));
    }
    fill.apply(MATH)
}
