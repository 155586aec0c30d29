def _windows():
    """Which query sees which key of the grid: [queries, keys]."""
    sees = np.ones((1, 1), bool)
    for dilation, first, last, keys in AXES:
        query, key = np.arange(len(first)), np.arange(keys)
        inside = (first[:, None] <= key // dilation) & (key // dilation < last[:, None])
        sees = np.kron(sees, inside & (query[:, None] % dilation == key % dilation))
    return sees.astype(bool)


def _bias(table):
    """The entries of a bias table that belong to the pairs: [heads, queries, keys]."""
    entries, sizes = np.zeros((1, 1), int), table.shape[1:]
    for (dilation, first, _, keys), size in zip(AXES, sizes):
        apart = np.arange(keys) // dilation - np.arange(len(first))[:, None] // dilation
        inside = np.clip(apart + size // 2, 0, size - 1)
        rows, columns = entries.shape[0] * len(first), entries.shape[1] * keys
        entries = (entries[:, None, :, None] * size + inside[None, :, None, :]).reshape(rows, columns)
    return table.reshape(len(table), -1)[:, entries]


def _tokens(x):
    """[batch, tokens..., heads, dim] as [batch, heads, tokens, dim]."""
    return x.reshape(x.shape[0], -1, *x.shape[-2:]).transpose(0, 2, 1, 3)


def _logsumexp(x):
    most = np.maximum(x.max(-1, initial=-np.inf), np.finfo(x.dtype).min)
    return np.log(np.exp(x - most[..., None]).sum(-1)) + most


_REDUCTIONS = {
    "sum": (0.0, lambda x: x.sum(-1)),
    "max": (-np.inf, lambda x: x.max(-1, initial=-np.inf)),
    "min": (np.inf, lambda x: x.min(-1, initial=np.inf)),
    "lse": (-np.inf, _logsumexp),
}


def attention(tensors):
    """The operation in float64, pair by pair, of a dict of arrays by name: output and logsumexp."""
    with np.errstate(all="ignore"):
        t = {name: np.asarray(x, np.float64).reshape(SHAPES[name]) for name, x in tensors.items()}
        query = _tokens(t["query"])
        parts = []
        for keys, values, sees, of_pairs, of_weights in PARTS:
            key, value = (np.repeat(_tokens(t[name]), HEADS // HEADS_KV, axis=1) for name in (keys, values))
            score = SCALE * query @ key.swapaxes(-1, -2)
            if keys == "key" and "rpb" in t:
                score = score + _bias(t["rpb"])
            at = _indices(score.shape, beyond=0 if keys == "key" else len(_windows()[0]))
            mask, elements = of_pairs(t, score, at)
            parts.append((score, value, at, sees() & np.broadcast_to(mask, score.shape), elements, of_weights))
        rows = []
        for n, reduce in enumerate(STAGES):
            nothing, total = _REDUCTIONS[reduce]
            pieces = [np.where(sees, elements[n], nothing) for _, _, _, sees, elements, _ in parts]
            rows.append(total(np.concatenate(pieces, -1)))
        finite = [np.maximum(row, np.finfo(np.float64).min)[..., None] for row in rows]
        output = 0
        for score, value, at, sees, _, of_weights in parts:
            output = output + np.where(sees, of_weights(t, score, at, finite), 0.0) @ value
    results = {"output": output.transpose(0, 2, 1, 3).reshape(SHAPES["output"])}
    if LOGSUMEXP is not None:
        results["logsumexp"] = rows[LOGSUMEXP].transpose(0, 2, 1).reshape(SHAPES["logsumexp"])
    return results


def _indices(shape, beyond):
    """What expressions call b, h, hkv, q and k, and the coordinates along the axes."""
    batch, heads, queries, keys = np.ogrid[tuple(slice(extent) for extent in shape)]
    keys = keys + beyond
    at = {"b": batch, "h": heads, "hkv": heads // (HEADS // HEADS_KV), "q": queries, "k": keys}
    for name, number, extents in (("q", queries, SHAPES["query"]), ("k", keys, SHAPES["key"])):
        for axis in reversed(range(len(AXES))):
            extent = extents[1 + axis]
            at[f"{name}{axis}"] = number % extent if axis > 0 else number
            number = number // extent
    return {name: index.astype(np.int32) for name, index in at.items()}


def _rounded(x, dtype):
    x = np.asarray(x, np.float32)
    if dtype == "bfloat16":
        bits = x.view(np.uint32)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return x.astype(dtype).astype(np.float32)


def check(run=lambda kernel, *arguments: kernel(*arguments), seed=0):
    """Launches the kernels on random numbers and compares with `attention`: outputs element by element, tangents with
    its difference quotients, gradients with its difference quotient along random directions. Raises AssertionError."""
    random = np.random.default_rng(seed)
    tensors = {name: _rounded(random.standard_normal(SHAPES[name]), DTYPES[name]) for name in INPUTS}
    moved = lambda step, by: attention({**tensors, **{n: np.float64(tensors[n]) + step * x for n, x in by.items()}})
    slope = lambda total, by: (total(moved(1e-5, by)) - total(moved(-1e-5, by))) / 2e-5
    expected = attention(tensors)
    tensors.update({name: _rounded(expected[name], DTYPES[name]) for name in KEPT})
    results = {name: np.asarray(x, np.float64).reshape(-1) for name, x in launch(tensors, run).items()}

    def close(name, found, expected, size):
        error = 16 * EPSILON[DTYPES["query"]] * size
        assert np.all(np.abs(found - expected) <= error), f"{name}: {np.abs(found - expected).max()} off, {error} granted"

    for name, found in results.items():
        if name in expected:
            close(name, found, expected[name].reshape(-1), np.abs(expected[name]).max())
        elif name in TANGENTS:
            by = {of: tensors[tangent] for tangent, of in GIVEN.items()}
            quotient = slope(lambda x: x[TANGENTS[name]].reshape(-1), by)
            close(name, found, quotient, np.abs(quotient).max())
        else:
            loss = lambda x: sum((x[of] * tensors[cotangent]).sum() for cotangent, of in COTANGENTS.items())
            for _ in range(4):
                by = random.choice([-1.0, 1.0], SHAPES[GRADIENTS[name]])
                size = int(np.prod(SHAPES[GRADIENTS[name]]))
                along = np.pad(found, (0, size - len(found))) @ by.reshape(-1)
                close(name, along, slope(loss, {GRADIENTS[name]: by}), np.linalg.norm(found))


EPSILON = {"float32": 2.0**-21, "float16": 2.0**-11, "bfloat16": 2.0**-8}
