#!/usr/bin/env python3
"""Compares `natten denoise` with scikit-image's `denoise_nl_means`: same clean picture, same noisy picture, same patch,
same window.

    pip install scikit-image
    cargo build --release
    python3 benches/compare_denoise.py

natten gets the noisy file and nothing else: it estimates the noise and chooses its strength. scikit-image gets the true
sigma, and for each of its rows the best of all `h` that are tried is shown, which only someone who has the clean picture
can know. It is run twice: as called with `h` alone, and with `sigma` too, so that it takes the expected distance of
noise off. Times are wall times, scikit-image's of the one call, natten's of the whole program from start to end.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np
from skimage import io
from skimage.restoration import denoise_nl_means

ROOT = pathlib.Path(__file__).resolve().parent.parent


def psnr(clean, other):
    difference = clean.astype(np.float64) - other.astype(np.float64)
    return 10 * np.log10(255**2 / np.mean(difference**2))


def to_levels(values):
    return np.clip(np.round(np.nan_to_num(values)), 0, 255).astype(np.uint8)


def scikit_image(clean, noisy, sigma, args, knows_sigma, is_fast):
    """The best PSNR over h, that h over sigma, and the time of that call."""
    best = (-np.inf, 0.0, 0.0)
    for strength in args.strengths if is_fast else args.strengths[::3]:
        start = time.perf_counter()
        denoised = denoise_nl_means(
            noisy.astype(np.float32) / 255,
            patch_size=args.patch,
            patch_distance=args.kernel_size // 2,
            h=strength * sigma / 255,
            sigma=sigma / 255 if knows_sigma else 0.0,
            fast_mode=is_fast,
            channel_axis=-1 if clean.ndim == 3 else None,
        )
        took = time.perf_counter() - start
        best = max(best, (psnr(clean, to_levels(denoised * 255)), strength, took))
    return best


def natten(clean, folder, args):
    """The PSNR, what the program printed of the noise and the window, and the least wall time of some runs."""
    command = [args.natten, "denoise", folder / "noisy.png", folder / "out.png", "--backend", args.backend]
    command += ["--kernel-size", str(args.kernel_size), "--patch", str(args.patch)]
    times = []
    for _ in range(args.runs):
        start = time.perf_counter()
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        times.append(time.perf_counter() - start)
    said = [line.split(None, 1)[1] for line in printed.splitlines() if line.startswith(("noise", "window", "time"))]
    return psnr(clean, io.imread(folder / "out.png")), "; ".join(said), min(times)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--picture", type=pathlib.Path, default=ROOT / "assets" / "astronaut.png")
    parser.add_argument("--sigma", type=float, nargs="+", default=[10, 25, 50])
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--patch", type=int, default=7)
    parser.add_argument("--kernel-size", type=int, default=21, help="odd: scikit-image's patch_distance is half of it")
    parser.add_argument("--natten", type=pathlib.Path, default=ROOT / "target" / "release" / "natten")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--runs", type=int, default=3, help="runs of natten, of which the fastest counts")
    parser.add_argument("--plain", action="store_true", help="scikit-image without fast_mode too: takes minutes")
    args = parser.parse_args()
    args.strengths = [round(0.1 + 0.05 * step, 2) for step in range(21)]
    if not args.natten.exists():
        sys.exit(f"{args.natten} is not there: run 'cargo build --release', or name the program with --natten")

    clean = io.imread(args.picture)
    print(f"{args.picture.name} {clean.shape}, patch {args.patch}, window {args.kernel_size}, seed {args.seed}\n")
    print("| sigma | | PSNR | time | h and what else was chosen |\n|---|---|---|---|---|")
    for sigma in args.sigma:
        noise = np.random.default_rng(args.seed).normal(0, sigma, clean.shape)
        noisy = to_levels(clean + noise)
        rows = [("noisy", psnr(clean, noisy), None, "")]
        modes = [("fast", True, False), ("fast, with sigma", True, True)]
        modes += [("plain", False, False), ("plain, with sigma", False, True)] if args.plain else []
        for name, is_fast, knows_sigma in modes:
            value, strength, took = scikit_image(clean, noisy, sigma, args, knows_sigma, is_fast)
            rows.append((f"scikit-image {name}", value, took, f"h = {strength:g} sigma, the best of those tried"))
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            io.imsave(folder / "noisy.png", noisy, check_contrast=False)
            value, said, took = natten(clean, folder, args)
            rows.append(("natten denoise", value, took, said))
        for name, value, took, how in rows:
            print(f"| {sigma:g} | {name} | {value:.2f} dB | {'' if took is None else f'{took:.2f} s'} | {how} |", flush=True)


if __name__ == "__main__":
    main()
