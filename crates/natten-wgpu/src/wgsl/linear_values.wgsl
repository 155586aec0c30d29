    // A column of the state's cotangent, from the last token to the first: the gradients of values.
    let head = number / DIM_V;
    let j = number % DIM_V;
    var grad = array<Num, DIM>();
//:each DIM
        let i = d;
        grad[i] = load_DS((head * DIM + i) * DIM_V + j);
//:end
    let scale = value(SCALE, R(0.0));
    for (var token = KEYS - 1; token >= 0; token--) {
        let at = site_of(head, token);
        let factor = factor_of(at);
        let o = mul(scale, load_DO(query_at(at, DIM_V) + j));
        var sum = value(R(0.0), R(0.0));
//:each DIM
            let i = d;
            grad[i] = add(grad[i], mul(load_Q(query_at(at, DIM) + i), o));
            sum = add(sum, mul(grad[i], load_K(key_at(at, DIM) + i)));
            grad[i] = mul(factor, grad[i]);
//:end
        store(PART_V, (head * u32(KEYS) + u32(token)) * DIM_V + j, sum);
    }
