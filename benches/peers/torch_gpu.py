#!/usr/bin/env python3
"""Times other libraries on the cases of `natten bench`, on this machine's GPU, and prints the same JSON.

    natten bench --suite peers --backend cuda --list > cases.json
    python3 benches/peers/torch_gpu.py --cases cases.json --json peers.json
    natten bench --suite peers --backend cuda --compare peers.json

Peers: cuDNN and FlashAttention through torch's scaled_dot_product_attention (full and causal cases), torch's
flex_attention compiled with a BlockMask on raster order (windows and programs), and NATTEN where it can be imported.
Every peer is given heads-last tensors; its own permutes inside the call are in its time, building a BlockMask is not.
Only pairs inside the window count: 4*D flops a pair forward, 10*D backward. Backward is (forward and backward) less
forward. Times are medians of samples by CUDA events, each of many calls; the matmul rate is of 8192^3 in bf16, in the
same process. A peer that cannot do a case is an entry with the reason.
"""

import argparse
import json
import statistics
import sys

import torch
import torch.nn.functional as F

SAMPLES = 10


def timed(call, seconds):
    """The median time of a call, in seconds, of samples that together take about so long."""

    def runs(count):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(count):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / count

    runs(1)
    once = runs(2)
    runs(max(1, min(2000, round(seconds / 4 / once))))
    count = max(1, min(2000, round(seconds / SAMPLES / once)))
    return statistics.median(runs(count) for _ in range(SAMPLES if once * count * SAMPLES < 3 * seconds else 3))


def windows(case):
    """For each axis, the first key and one past the last of every query's window, in its residue group."""
    spans = []
    for length, size, stride, dilation in zip(case["shape"], case["window"], case["stride"], case["dilation"]):
        at = torch.arange(length)
        group, position = at % dilation, at // dilation
        count = (length - group + dilation - 1) // dilation
        centre = torch.minimum(position // stride * stride + stride // 2, count - 1)
        start = torch.minimum(torch.clamp(centre - size // 2, min=0), count - size)
        spans.append((start, start + size))
    return spans


def useful_pairs(case):
    heads = case["batch"] * case["heads"]
    if case["window"] is None:
        n = case["shape"][0]
        return heads * (n * (n + 1) // 2 if case["causal"] else n * n)
    pairs = heads
    for length, size in zip(case["shape"], case["window"]):
        pairs *= length * size
    return pairs


def sdpa(case, backend):
    from torch.nn.attention import SDPBackend, sdpa_kernel

    if case["window"] is not None or case["program"] != "softmax":
        raise NotImplementedError("it has neither windows nor programs")
    kind = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash2": SDPBackend.FLASH_ATTENTION}[backend]

    def call(q, k, v):
        with sdpa_kernel(kind):
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return F.scaled_dot_product_attention(q, k, v, is_causal=case["causal"]).transpose(1, 2)

    return call


def flex(case):
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    torch._dynamo.reset()
    tokens = 1
    for length in case["shape"]:
        tokens *= length
    mask = None
    if case["window"] is not None:
        spans = [tuple(t.cuda() for t in span) for span in windows(case)]

        def mask_mod(b, h, q, k):
            seen = q >= 0
            for length, dilation, (start, end) in zip(
                reversed(case["shape"]), reversed(case["dilation"]), reversed(spans)
            ):
                i, j = q % length, k % length
                q, k = q // length, k // length
                seen = seen & (i % dilation == j % dilation)
                seen = seen & (j // dilation >= start[i]) & (j // dilation < end[i])
            return seen

        mask = create_block_mask(mask_mod, None, None, tokens, tokens, device="cuda", _compile=True)
    elif case["causal"]:
        mask = create_block_mask(lambda b, h, q, k: q >= k, None, None, tokens, tokens, device="cuda")
    slope = torch.rand(case["heads"], device="cuda") * 0.01
    score = {
        "softmax": None,
        "softcap": lambda s, b, h, q, k: 30 * torch.tanh(s / 30),
        "alibi": lambda s, b, h, q, k: s - slope[h] * (q - k).abs(),
    }
    if case["program"] not in score:
        raise NotImplementedError("it is softmax alone")
    compiled = torch.compile(flex_attention, dynamic=False)

    def call(q, k, v):
        q, k, v = (t.flatten(1, -3).transpose(1, 2) for t in (q, k, v))
        return compiled(q, k, v, score_mod=score[case["program"]], block_mask=mask).transpose(1, 2)

    return call


def natten(case):
    from natten.functional import neighborhood_attention_generic as attention

    if case["window"] is None or case["program"] != "softmax":
        raise NotImplementedError("a case of windows without a program is what it is for")

    def call(q, k, v):
        return attention(q, k, v, case["window"], stride=case["stride"], dilation=case["dilation"])

    return call


PEERS = {
    "torch cudnn": lambda case: sdpa(case, "cudnn"),
    "torch flash2": lambda case: sdpa(case, "flash2"),
    "torch flex": flex,
    "natten": natten,
}


def measure(case, make, dtype, ops, seconds):
    """Times by operation, in seconds."""
    shape = [case["batch"], *case["shape"], case["heads"], case["head_dim"]]
    q, k, v, grad = (torch.randn(shape, device="cuda", dtype=dtype) for _ in range(4))
    call = make(case)
    times = {}
    with torch.no_grad():
        times["forward"] = timed(lambda: call(q, k, v), seconds)
    if "backward" in ops:
        for t in (q, k, v):
            t.requires_grad_()

        def both():
            out = call(q, k, v)
            torch.autograd.grad(out, (q, k, v), grad.reshape(out.shape))

        times["backward"] = timed(both, seconds) - times["forward"]
    return {op: times[op] for op in ops}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True, help="what natten bench --list prints")
    parser.add_argument("--op", default="forward", help="forward, backward, or both with a comma between")
    parser.add_argument("--dtype", default="bf16", choices=["f16", "bf16", "f32"])
    parser.add_argument("--peer", default="", help="only the peers whose name contains this")
    parser.add_argument("--filter", default="", help="only the cases whose name contains this")
    parser.add_argument("--seconds", type=float, default=1.0, help="how long to measure each case, about")
    parser.add_argument("--json", help="where to write the results; default: stdout")
    args = parser.parse_args()
    ops = args.op.split(",")
    dtype = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]
    with open(args.cases) as file:
        cases = [case for case in json.load(file) if args.filter in case["case"]]
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    matmul = 2 * 8192**3 / timed(lambda: a @ b, args.seconds) / 1e12
    print(f"matmul {matmul:.0f} TFLOP/s", file=sys.stderr)
    entries = []
    for case in cases:
        for peer, make in PEERS.items():
            if args.peer not in peer:
                continue
            try:
                times = measure(case, make, dtype, ops, args.seconds)
            except Exception as error:  # What a peer cannot do is a result too.
                why = f"{type(error).__name__}: {error}".splitlines()[0]
                print(f"{case['case']} {peer}: {why}", file=sys.stderr)
                entries += [
                    {"case": case["case"], "op": op, "dtype": args.dtype, "peer": peer, "failure": why} for op in ops
                ]
                continue
            for op, seconds in times.items():
                per_pair = {"forward": 4, "backward": 10}[op] * case["head_dim"]
                tflops = useful_pairs(case) * per_pair / seconds / 1e12
                entry = {"case": case["case"], "op": op, "dtype": args.dtype, "peer": peer}
                entries.append(entry | {"ms": seconds * 1e3, "tflops": tflops})
                print(f"{case['case']} {peer} {op}: {seconds * 1e3:.4g} ms, {tflops:.4g} TFLOP/s", file=sys.stderr)
    results = {"device": torch.cuda.get_device_name(), "matmul_tflops": matmul, "entries": entries}
    text = json.dumps(results, indent=1)
    if args.json:
        with open(args.json, "w") as file:
            print(text, file=file)
    else:
        print(text)


if __name__ == "__main__":
    main()
