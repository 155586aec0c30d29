// What the shaders with tiles in registers have in common.

// The factor of a pair that does not count: -0, which adds nothing and can be told from a factor that underflows.
const ABSENT: u32 = 0x80000000u;

// Three places below 512 in a number, each under a bit of guard; and a place that nobody sees.
const GUARD: u32 = 0x20080200u;
const NOWHERE: u32 = 0x1ff7fdffu;
fn packed(place: vec3<u32>) -> u32 { return place.x | (place.y << 10u) | (place.z << 20u); }
// Whether low <= place < high along each axis; the guards are in `high`.
fn is_between(place: u32, low: u32, high: u32) -> bool {
    return (((place | GUARD) - low) & (high - place) & GUARD) == GUARD;
}

// A number, four numbers one behind the other, and a number to a place.
//:if WIDE
fn number_at(at: u32) -> f32 { return arena[at / 4u][at % 4u]; }
fn four_at(at: u32) -> vec4<f32> { return arena[at / 4u]; }
fn put(at: u32, x: f32) { arena[at / 4u][at % 4u] = x; }
//:else
fn number_at(at: u32) -> f32 { return arena[at]; }
fn four_at(at: u32) -> vec4<f32> { return vec4<f32>(arena[at], arena[at + 1u], arena[at + 2u], arena[at + 3u]); }
fn put(at: u32, x: f32) { arena[at] = x; }
//:end

// Four elements of a vector, those behind its end 0.
fn four_of(at: u32, d: u32, dim: u32) -> vec4<f32> {
    if (d + 4u <= dim) { return four_at(at + d); }
    var four = vec4<f32>(0.0);
//:if !WIDE
    if (d < dim) { four.x = arena[at + d]; }
    if (d + 1u < dim) { four.y = arena[at + d + 1u]; }
    if (d + 2u < dim) { four.z = arena[at + d + 2u]; }
//:end
    return four;
}

// Writes four elements of a vector, but those behind its end.
fn put_four(at: u32, d: u32, dim: u32, four: vec4<f32>) {
//:if WIDE
    if (d < dim) { arena[(at + d) / 4u] = four; }
//:else
    if (d < dim) { put(at + d, four.x); }
    if (d + 1u < dim) { put(at + d + 1u, four.y); }
    if (d + 2u < dim) { put(at + d + 2u, four.z); }
    if (d + 3u < dim) { put(at + d + 3u, four.w); }
//:end
}
