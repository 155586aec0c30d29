    // An element of a key's or a value's gradient: over the query heads of its head.
    let d = number % EXTENT;
    let vector = i32(number / EXTENT);
    let hkv = vector % HEADS_KV;
    let token = vector / HEADS_KV % KEYS;
    let b = vector / HEADS_KV / KEYS;
    var sum = value(R(0.0), R(0.0));
    for (var g = 0; g < PER_KV; g++) {
        let head = u32(b * HEADS + hkv * PER_KV + g);
        sum = add(sum, fetch(PART, (head * u32(KEYS) + u32(token)) * EXTENT + d));
    }
//:if TO
    arena[TO + number] = first_of(sum);
//:end
//:if TO_T
    arena[TO_T + number] = result_of(sum);
//:end
