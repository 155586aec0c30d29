// What a pair adds to gradients: its weight, and the gradient of its score.

// The factor of a pair that does not count: -0, which adds nothing and can be told from a factor that underflows.
const ABSENT: u32 = 0x80000000u;

fn absent() -> f32 { return bitcast<f32>(ABSENT | zero); }
// A factor that counts.
fn present(x: f32) -> f32 { return select(x, 0.0, x == 0.0); }

// The numbers of a query's row: its logsumexp, its shift, and whether it counts.
fn numbers_of(query: u32) -> vec3<f32> {
    let at = NUMBERS + query * (1u + 4u * STAGES);
    return vec3<f32>(arena[at + 1u], arena[at + 3u], arena[at]);
}

//:if PROGRAM
// The weight of a pair and the gradient of its score, from the scaled product; ABSENT where the mask leaves it out.
fn factors_of(query: u32, kc: vec3<i32>, scaled: f32, grad: f32) -> vec2<f32> {
    let at = with_key(site_of_query(query), kc);
    let row = load_row(query);
    if (!w_mask(at, row)) { return vec2<f32>(absent()); }
    var x = Pair();
    x.score = scaled;
    x.grad = grad;
//:if RPB
    x.score += arena[RPB + bias_entry(at)];
//:end
    return vec2<f32>(present(w_weight(at, row, x)[0]), present(w_grad_score(at, row, x)[0]));
}
//:end

