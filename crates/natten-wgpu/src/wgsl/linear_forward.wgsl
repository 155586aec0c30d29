    // A column of the state.
    let head = number / DIM_V;
    let j = number % DIM_V;
    var state = array<Num, DIM>();
//:each DIM
        let i = d;
        state[i] = load_S((head * DIM + i) * DIM_V + j);
//:end
    for (var token = 0; token < KEYS; token++) {
        let at = site_of(head, token);
        let factor = factor_of(at);
        let v = load_V(key_at(at, DIM_V) + j);
        var o = value(R(0.0), R(0.0));
//:each DIM
            let i = d;
            state[i] = add(mul(factor, state[i]), mul(load_K(key_at(at, DIM) + i), v));
            o = add(o, mul(load_Q(query_at(at, DIM) + i), state[i]));
//:end
//:if TO_OUT
        arena[TO_OUT + query_at(at, DIM_V) + j] = SCALE * result_of(o);
//:end
    }
//:if TO_S
//:each DIM
        let i = d;
        arena[TO_S + (head * DIM + i) * DIM_V + j] = result_of(state[i]);
//:end
//:end
