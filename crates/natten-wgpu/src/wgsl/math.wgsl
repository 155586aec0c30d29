// Elementary functions of R, alike on every driver: what WGSL has is too inexact for some, and has no doubles.

//:if F64
fn power_of_two(n: i32) -> R { return bitcast<f64>(u64(n + 1023) << 52u); }
//:else
fn power_of_two(n: i32) -> R { return bitcast<f32>(u32(n + 127) << 23u); }
//:end
// y * 2^n, for n that one power may not reach.
fn scaled(y: R, n: i32) -> R {
    let half = n / 2;
    return y * power_of_two(half) * power_of_two(n - half);
}

// e^r - 1 for |r| <= ln(2) / 2.
fn small_expm1(r: R) -> R {
    var p: R = R($EXP_FIRST$);
$EXP_REST$
    return r + r * r * p;
}

const LOG2_E: R = R(1.4426950408889634);
const LN2: R = R(0.6931471805599453);
// The two parts of ln(2): a multiple of the first has no rounding.
const LN2_HIGH: R = R($LN2_HIGH$);
const LN2_LOW: R = R($LN2_LOW$);

fn f_exp(x: R) -> R {
    if (x < R($EXP_LEAST$)) { return R(0.0); }
    if (x > R($EXP_MOST$)) { return inf(); }
    if (is_nan(x)) { return x; }
    let n = floor(x * LOG2_E + R(0.5));
    return scaled(R(1.0) + small_expm1((x - n * LN2_HIGH) - n * LN2_LOW), i32(n));
}
fn f_exp2(x: R) -> R {
    if (x < R($EXP_LEAST$) * R(1.45)) { return R(0.0); }
    if (x > R($EXP_MOST$) * R(1.45)) { return inf(); }
    if (is_nan(x)) { return x; }
    let n = floor(x + R(0.5));
    return scaled(R(1.0) + small_expm1((x - n) * LN2), i32(n));
}
fn f_expm1(x: R) -> R {
    if (abs(x) < R(0.34)) { return small_expm1(x); }
    if (x < R(-40.0)) { return R(-1.0); }
    if (x > R($EXP_MOST$)) { return inf(); }
    if (is_nan(x)) { return x; }
    let n = floor(x * LOG2_E + R(0.5));
    let p = small_expm1((x - n * LN2_HIGH) - n * LN2_LOW);
    return scaled(p, i32(n)) + (scaled(R(1.0), i32(n)) - R(1.0));
}

// ln(1 + f) for 1 + f between the halved root of 2 and the root of 2, from the series of the inverse hyperbolic tangent.
fn small_log1p(f: R) -> R {
    let s = f / (R(2.0) + f);
    let z = s * s;
    var p: R = R($LOG_FIRST$);
$LOG_REST$
    return f - s * (f - z * p);
}

struct Split { m: R, e: R }
// x = m * 2^e with m between the halved root of 2 and the root of 2, for positive finite x.
fn split(given: R) -> Split {
    var x = given;
    var e = R(0.0);
//:if F64
    if (x < R(2.2250738585072014e-308)) { x *= R(18014398509481984.0); e = R(-54.0); }
    let bits = bitcast<u64>(x);
    e += R(i32(bits >> 52u) - 1023);
    var m = bitcast<f64>((bits & 0xffffffffffffflu) | 0x3ff0000000000000lu);
//:else
    if (x < R(1.1754943508222875e-38)) { x *= R(33554432.0); e = R(-25.0); }
    let bits = bitcast<u32>(x);
    e += R(i32(bits >> 23u) - 127);
    var m = bitcast<f32>((bits & 0x7fffffu) | 0x3f800000u);
//:end
    if (m > R(1.4142135623730951)) { m *= R(0.5); e += R(1.0); }
    return Split(m, e);
}
fn f_log(x: R) -> R {
    if (is_nan(x) || x < R(0.0)) { return nan(); }
    if (x == R(0.0)) { return -inf(); }
    if (x > -LOWEST) { return x; }
    let parts = split(x);
    return parts.e * LN2_HIGH + (small_log1p(parts.m - R(1.0)) + parts.e * LN2_LOW);
}
fn f_log2(x: R) -> R {
    if (is_nan(x) || x < R(0.0)) { return nan(); }
    if (x == R(0.0)) { return -inf(); }
    if (x > -LOWEST) { return x; }
    let parts = split(x);
    return parts.e + small_log1p(parts.m - R(1.0)) * LOG2_E;
}
fn f_log1p(x: R) -> R {
    if (x > R(-0.29) && x < R(0.41)) { return small_log1p(x); }
    return f_log(R(1.0) + x);
}
fn f_sqrt(x: R) -> R {
    if (x < R(0.0)) { return nan(); }
    return sqrt(x);
}
fn f_rsqrt(x: R) -> R {
    if (x == R(0.0)) { return inf(); }
    return R(1.0) / f_sqrt(x);
}
fn f_tanh(x: R) -> R {
    if (is_nan(x)) { return x; }
    let a = abs(x);
    if (a > R(22.0)) { return sign(x); }
    let power = f_expm1(R(2.0) * a);
    return sign(x) * power / (power + R(2.0));
}
fn f_sigmoid(x: R) -> R {
    let small = f_exp(-abs(x));
    return select(small, R(1.0), x >= R(0.0)) / (R(1.0) + small);
}
fn f_softplus(x: R) -> R {
    // NaN comes through the second term.
    return select(R(0.0), x, x > R(0.0)) + f_log1p(f_exp(-abs(x)));
}
fn f_erf(x: R) -> R {
    if (is_nan(x)) { return x; }
    let a = abs(x);
    if (a > R(6.0)) { return sign(x); }
    if (a < R(2.0)) {
        // A series of positive terms.
        var term = a;
        var sum = a;
        for (var k = 1; k < 80; k++) {
            term *= R(2.0) * a * a / R(2 * k + 1);
            sum += term;
            if (term < sum * R(1e-18)) { break; }
        }
        return sign(x) * R(1.1283791670955126) * f_exp(-a * a) * sum;
    }
    // The continued fraction of what is missing to 1.
    var rest = a;
    for (var k = 100; k > 0; k--) { rest = a + R(k) * R(0.5) / rest; }
    return sign(x) * (R(1.0) - f_exp(-a * a) / rest * R(0.5641895835477563));
}

struct Angle { r: R, quadrant: i32 }
// x less the nearest multiple of a right angle, which is taken off in three parts.
fn reduced(x: R) -> Angle {
    let n = floor(x * R(0.6366197723675814) + R(0.5));
    let r = ((x - n * R($RIGHT_1$)) - n * R($RIGHT_2$)) - n * R($RIGHT_3$);
    return Angle(r, i32(n - R(4.0) * floor(n * R(0.25))));
}
fn small_sin(r: R) -> R {
    let z = r * r;
    var p: R = R($SIN_FIRST$);
$SIN_REST$
    return r + r * z * p;
}
fn small_cos(r: R) -> R {
    let z = r * r;
    var p: R = R($COS_FIRST$);
$COS_REST$
    return R(1.0) + z * p;
}
fn turned(a: Angle, by: i32) -> R {
    let quadrant = (a.quadrant + by) & 3;
    let y = select(small_sin(a.r), small_cos(a.r), (quadrant & 1) == 1);
    return select(y, -y, quadrant >= 2);
}
fn f_sin(x: R) -> R {
    if (is_nan(x) || abs(x) > -LOWEST) { return nan(); }
    return turned(reduced(x), 0);
}
fn f_cos(x: R) -> R {
    if (is_nan(x) || abs(x) > -LOWEST) { return nan(); }
    return turned(reduced(x), 1);
}

fn f_min(a: R, b: R) -> R { return select(b, a, a <= b || is_nan(a)); }
fn f_max(a: R, b: R) -> R { return select(b, a, a >= b || is_nan(a)); }
fn f_floordiv(a: R, b: R) -> R { return floor(a / b); }
fn f_mod(a: R, b: R) -> R { return a - b * floor(a / b); }
fn f_powi(x: R, exponent: i32) -> R {
    var power = R(1.0);
    var square = x;
    for (var rest = u32(abs(exponent)); rest > 0u; rest >>= 1u) {
        if ((rest & 1u) == 1u) { power *= square; }
        square *= square;
    }
    if (exponent < 0) { return R(1.0) / power; }
    return power;
}

// Integers wrap; a quotient by 0 is 0, and so is its rest.
fn i_floordiv(a: i32, b: i32) -> i32 {
    if (b == 0) { return 0; }
    if (b == -1) { return -a; }
    let quotient = a / b;
    return select(quotient, quotient - 1, a % b != 0 && (a < 0) != (b < 0));
}
fn i_mod(a: i32, b: i32) -> i32 {
    if (b == 0 || b == -1) { return 0; }
    let rest = a % b;
    return select(rest, rest + b, rest != 0 && (rest < 0) != (b < 0));
}
fn i_of(x: R) -> i32 {
    let y = floor(x);
    if (is_nan(y)) { return 0; }
    if (y >= R(2147483648.0)) { return 2147483647; }
    if (y < R(-2147483648.0)) { return -2147483647 - 1; }
    return i32(y);
}
fn clamped(index: i32, extent: i32) -> i32 { return clamp(index, 0, extent - 1); }

// natten-core's random numbers, Philox4x32-10 of a pair.
fn wide_product(a: u32, b: u32) -> vec2<u32> {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let middle = al * bh + ((al * bl) >> 16u);
    let other = ah * bl + (middle & 0xffffu);
    return vec2<u32>(a * b, ah * bh + (middle >> 16u) + (other >> 16u));
}
fn random_of(row: i32, query: i32, key: i32, low: i32, high: i32) -> R {
    var c = vec4<u32>(u32(key) / 4u, u32(query), u32(row), 0u);
    var k = vec2<u32>(u32(low), u32(high));
    for (var round = 0; round < 10; round++) {
        let p = wide_product(0xd2511f53u, c.x);
        let q = wide_product(0xcd9e8d57u, c.z);
        c = vec4<u32>(q.y ^ c.y ^ k.x, q.x, p.y ^ c.w ^ k.y, p.x);
        k += vec2<u32>(0x9e3779b9u, 0xbb67ae85u);
    }
    return R(c[u32(key) & 3u] >> 8u) * R(5.9604644775390625e-8);
}
