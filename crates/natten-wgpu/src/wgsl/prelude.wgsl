// What every shader that computes begins with. R is the type of numbers, f32 or f64; the arena holds all of them.
alias R = $REAL$;

@group(0) @binding(0) var<storage, read_write> arena: array<R>;
//:if INTEGERS
@group(0) @binding(1) var<storage, read> ints: array<i32>;
//:end

// No constant to a compiler: WGSL refuses infinities that it can see.
var<private> zero: u32 = 0u;

const LOWEST: R = -$LARGEST$;

fn inf() -> R { return R(bitcast<f32>(0x7f800000u | zero)); }
fn nan() -> R { return R(bitcast<f32>(0x7fc00000u | zero)); }
//:if F64
fn is_nan(x: R) -> bool { return (bitcast<u64>(x) & 0x7ffffffffffffffflu) > 0x7ff0000000000000lu; }
fn is_minus_inf(x: R) -> bool { return bitcast<u64>(x) == 0xfff0000000000000lu; }
//:else
fn is_nan(x: R) -> bool { return (bitcast<u32>(x) & 0x7fffffffu) > 0x7f800000u; }
fn is_minus_inf(x: R) -> bool { return bitcast<u32>(x) == 0xff800000u; }
//:end
