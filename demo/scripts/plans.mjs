// Writes the plans that the page runs, and the CPU's picture to compare with: `natten emit wgsl` and `natten denoise`.
// NATTEN names the program; without it, it is built.

import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

const demo = join(dirname(fileURLToPath(import.meta.url)), "..");
const plans = join(demo, "public", "plans");
const size = 64;
const patch = 5;
const strength = 0.75;
const takenOff = 1.05;
const windows = [3, 5, 7, 9, 11, 13];
const expected = { window: 9, sigma: 25, file: "expected.png" };

function natten(...args) {
  const [program, before] = process.env.NATTEN
    ? [process.env.NATTEN, []]
    : ["cargo", ["run", "--release", "--quiet", "--manifest-path", join(demo, "..", "Cargo.toml"), "--bin", "natten", "--"]];
  execFileSync(program, [...before, ...args], { stdio: ["ignore", "ignore", "inherit"] });
}

mkdirSync(plans, { recursive: true });
for (const window of windows) {
  natten(
    "emit", "wgsl", "--shape", `${size},${size}`, "--kernel-size", String(window), "--head-dim", String(patch * patch * 3),
    "--head-dim-v", "3", "--scale", "1", "--want", "output", "--capture", `nq:${size * size}`, "--capture", `nk:${size * size}`,
    "--capture", "s2", "--capture", "h2", "--score", "-max(nq[q] + nk[k] - 2*score - 2*s2, 0)/h2",
    "--output", join(plans, `${window}.json`),
  );
}
natten(
  "denoise", join(demo, "public", "photo.png"), join(plans, expected.file), "--backend", "cpu", "--sigma", String(expected.sigma),
  "--strength", String(strength), "--kernel-size", String(expected.window), "--patch", String(patch),
);
writeFileSync(join(plans, "index.json"), JSON.stringify({ width: size, height: size, patch, strength, takenOff, windows, expected }));
