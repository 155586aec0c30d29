    // A row of the state and of its cotangent: the gradients of queries, keys, decays and the initial state. States are
    // kept where a chunk of tokens begins, and computed again inside.
    let head = number / DIM;
    let i = number % DIM;
    let kept = number * u32(CHUNKS) * DIM_V;
    let inside = number * u32(CHUNK) * DIM_V;
    let scale = value(SCALE, R(0.0));
    var state = array<Num, DIM_V>();
//:each DIM_V
        let j = d;
        state[j] = load_S((head * DIM + i) * DIM_V + j);
//:end
    for (var token = 0; token < KEYS; token++) {
        if (token % CHUNK == 0) {
//:each DIM_V
                let j = d;
                store(KEPT, kept + u32(token / CHUNK) * DIM_V + j, state[j]);
//:end
        }
        let at = site_of(head, token);
        let factor = factor_of(at);
        let k = load_K(key_at(at, DIM) + i);
        var sum = value(R(0.0), R(0.0));
//:each DIM_V
            let j = d;
            state[j] = add(mul(factor, state[j]), mul(k, load_V(key_at(at, DIM_V) + j)));
            sum = add(sum, mul(state[j], load_DO(query_at(at, DIM_V) + j)));
//:end
        sum = mul(scale, sum);
//:if TO_DQ
        arena[TO_DQ + query_at(at, DIM) + i] = first_of(sum);
//:end
//:if TO_DQ_T
        arena[TO_DQ_T + query_at(at, DIM) + i] = result_of(sum);
//:end
    }
    var grad = array<Num, DIM_V>();
//:each DIM_V
        let j = d;
        grad[j] = load_DS((head * DIM + i) * DIM_V + j);
//:end
    for (var chunk = CHUNKS - 1; chunk >= 0; chunk--) {
        let begin = chunk * CHUNK;
        let end = min(begin + CHUNK, KEYS);
//:each DIM_V
            let j = d;
            state[j] = fetch(KEPT, kept + u32(chunk) * DIM_V + j);
//:end
        for (var token = begin; token < end; token++) {
            let at = site_of(head, token);
            let factor = factor_of(at);
            let k = load_K(key_at(at, DIM) + i);
//:each DIM_V
                let j = d;
                store(INSIDE, inside + u32(token - begin) * DIM_V + j, state[j]);
                state[j] = add(mul(factor, state[j]), mul(k, load_V(key_at(at, DIM_V) + j)));
//:end
        }
        for (var token = end - 1; token >= begin; token--) {
            let at = site_of(head, token);
            let factor = factor_of(at);
            let q = mul(scale, load_Q(query_at(at, DIM) + i));
            var of_key = value(R(0.0), R(0.0));
            var of_decay = value(R(0.0), R(0.0));
//:each DIM_V
                let j = d;
                grad[j] = add(grad[j], mul(q, load_DO(query_at(at, DIM_V) + j)));
                of_key = add(of_key, mul(grad[j], load_V(key_at(at, DIM_V) + j)));
                of_decay = add(of_decay, mul(grad[j], fetch(INSIDE, inside + u32(token - begin) * DIM_V + j)));
                grad[j] = mul(factor, grad[j]);
//:end
            let place = (head * u32(KEYS) + u32(token)) * DIM + i;
            store(PART_K, place, of_key);
            store(PART_L, place, mul(factor, of_decay));
        }
    }
//:if TO_DS
//:each DIM_V
        let j = d;
        arena[TO_DS + (head * DIM + i) * DIM_V + j] = result_of(grad[j]);
//:end
//:end
