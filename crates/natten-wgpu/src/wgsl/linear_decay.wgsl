    // What the decays of some tokens add to the elements that they load, in a table of this invocation's own.
    let table = TABLE + number * ENTRIES;
    let first = TOKENS / PIECES * number + min(number, TOKENS % PIECES);
    let end = first + TOKENS / PIECES + select(0u, 1u, number < TOKENS % PIECES);
    for (var n = first; n < end; n++) {
        let at = site_of(n / u32(KEYS), i32(n % u32(KEYS)));
        var sum = value(R(0.0), R(0.0));
//:each DIM
            let i = d;
            sum = add(sum, fetch(PART_L, n * DIM + i));
//:end
        let grad = first_of(sum);
        let grad_t = result_of(sum);
        let loads = decay_loads(at, grad, grad_t);
        for (var i = 0; i < $LOADS_COUNT$; i++) { arena[table + u32(loads.element[i])] += loads.gradient[i]; }
    }
