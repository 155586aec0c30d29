// What a pair adds to the gradients of its key and its value.
fn add_pair_$P$(at: Site, row: Row) {
    if (!$P$_mask(at, row)) { return; }
    let x = pair_of(at);
//:if KEY_GRADS
    let ds = $P$_grad_score(at, row, x);
//:each DIM
        let q = arena[Q + at.qv * DIM + d];
        grad_key[d] += ds[0] * q;
//:if TANGENTS
        grad_key_t[d] += ds[1] * q;
//:if QT
        grad_key_t[d] += ds[0] * arena[QT + at.qv * DIM + d];
//:end
//:end
//:end
//:end
//:if VALUE_GRADS
    let w = $P$_weight(at, row, x);
//:each DIM_V
        let grad = arena[DO + at.qv * DIM_V + d];
        grad_value[d] += w[0] * grad;
//:if TANGENTS
        grad_value_t[d] += w[1] * grad;
//:if DOT
        grad_value_t[d] += w[0] * arena[DOT + at.qv * DIM_V + d];
//:end
//:end
//:end
//:end
}
