// Stationary keys: an invocation takes a key of a key head, and sweeps over the queries that see it, of every query head
// of the key head, for the gradients of the key and of its value. Additional keys are seen by all queries.

var<private> grad_key: array<R, DIM>;
var<private> grad_value: array<R, DIM_V>;
//:if TANGENTS
var<private> grad_key_t: array<R, DIM>;
var<private> grad_value_t: array<R, DIM_V>;
//:end

$ADD_PAIRS$

@compute @workgroup_size(64)
fn main(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let number = (group.y * groups.x + group.x) * 64u + lane;
    if (number >= KEY_VECTORS) { return; }
    let of_grid = u32(BATCH * KEYS * HEADS_KV);
    var key = Site();
    key.kv = number;
    key.is_additional = number >= of_grid;
    let n = i32(select(number, number - of_grid, key.is_additional));
    let tokens = select(KEYS, ADDITIONAL, key.is_additional);
    key.hkv = n % HEADS_KV;
    key.k = n / HEADS_KV % tokens + select(0, KEYS, key.is_additional);
    key.b = n / HEADS_KV / tokens;
    key.kc = coordinates_of_key(key.k);
    var spans = Spans(vec3<i32>(0), QUERY_SHAPE);
    var step = vec3<i32>(1);
    var residue = vec3<i32>(0);
    if (!key.is_additional) {
        spans = viewers(key.kc);
        step = DILATION;
        residue = key.kc % DILATION;
    }
    for (var g = 0; g < PER_KV; g++) {
        for (var x = spans.start.x; x < spans.end.x; x++) {
            for (var y = spans.start.y; y < spans.end.y; y++) {
                for (var z = spans.start.z; z < spans.end.z; z++) {
                    let qc = residue + step * vec3<i32>(x, y, z);
                    var at = site_of_query(query_vector(key.b, key.hkv * PER_KV + g, qc));
                    at.k = key.k;
                    at.kc = key.kc;
                    at.kv = key.kv;
                    at.is_additional = key.is_additional;
                    let row = load_row(at.qv);
                    if (!row.alive) { continue; }
//:if ADDITIONAL
                    if (key.is_additional) { add_pair_a(at, row); continue; }
//:end
                    add_pair_w(at, row);
                }
            }
        }
    }
//:each DIM
//:if TO_DK
        arena[TO_DK + number * DIM + d] = by_scale(grad_key[d]);
//:end
//:if TO_DK_T
        arena[TO_DK_T + number * DIM + d] = by_scale(grad_key_t[d]);
//:end
//:end
//:each DIM_V
//:if TO_DV
        arena[TO_DV + number * DIM_V + d] = grad_value[d];
//:end
//:if TO_DV_T
        arena[TO_DV_T + number * DIM_V + d] = grad_value_t[d];
//:end
//:end
}
