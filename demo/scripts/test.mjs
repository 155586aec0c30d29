// Runs the built page in headless Chromium: it denoises the bundled photo that is dropped on it as the CPU does, follows
// the slider, and says so where there is no WebGPU. CHROMIUM names the browser, SCREENSHOT the picture to write.

import { createServer } from "node:http";
import { readFile } from "node:fs/promises";
import { dirname, extname, join, normalize } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";
import pngjs from "pngjs";

const demo = join(dirname(fileURLToPath(import.meta.url)), "..");
const types = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".png": "image/png", ".json": "application/json" };

const server = createServer(async (request, response) => {
  const path = normalize(decodeURIComponent(new URL(request.url, "http://localhost").pathname));
  const file = join(demo, "dist", path === "/" ? "index.html" : path);
  try {
    const body = await readFile(file);
    response.writeHead(200, { "content-type": types[extname(file)] ?? "application/octet-stream" }).end(body);
  } catch {
    response.writeHead(404).end();
  }
});
await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
const address = `http://127.0.0.1:${server.address().port}/`;

function check(holds, what) {
  if (!holds) throw new Error(what);
  console.log(`ok: ${what}`);
}

async function open(args) {
  const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--headless", "--no-sandbox", ...args],
  });
  const page = await browser.newPage({ viewport: { width: 900, height: 760 } });
  page.on("pageerror", (error) => console.error(`page: ${error}`));
  await page.goto(address);
  return { browser, page };
}

async function done(page, of) {
  const isOver = (of) => document.body.dataset.done === of || document.getElementById("message").classList.contains("error");
  await page.waitForFunction(isOver, of, { timeout: 180_000 });
  const isDone = await page.evaluate((of) => document.body.dataset.done === of, of);
  if (!isDone) throw new Error(`the page says: ${await page.textContent("#message")}`);
}
const levels = (page) =>
  page.evaluate(() => {
    const canvas = document.getElementById("denoised");
    return Array.from(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data);
  });

try {
  const index = JSON.parse(await readFile(join(demo, "dist", "plans", "index.json"), "utf8"));
  const { window, sigma, file } = index.expected;
  const { browser, page } = await open(["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader"]);
  await done(page, `${window} ${sigma}`);
  // The photo again, dropped: as a user would.
  const photo = (await readFile(join(demo, "dist", "photo.png"))).toString("base64");
  await page.evaluate(async (photo) => {
    const bytes = Uint8Array.from(atob(photo), (c) => c.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], "photo.png", { type: "image/png" }));
    delete document.body.dataset.done;
    document.getElementById("drop").dispatchEvent(new DragEvent("drop", { dataTransfer: data }));
  }, photo);
  await done(page, `${window} ${sigma}`);
  const found = await levels(page);
  const expected = pngjs.PNG.sync.read(await readFile(join(demo, "dist", "plans", file))).data;
  const most = found.reduce((most, level, i) => Math.max(most, Math.abs(level - expected[i])), 0);
  check(found.length === expected.length && most <= 1, `the browser's picture is the CPU's within one level (${most})`);
  check((await page.textContent("#comparison")).includes("CPU"), "the page compares with the CPU's picture");
  check(/\d ms/.test(await page.textContent("#time")), "the page shows the time");
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT });

  const other = index.windows.find((size) => size !== window);
  await page.evaluate((other) => {
    const slider = document.getElementById("window");
    slider.value = String(other);
    slider.dispatchEvent(new Event("input"));
  }, other);
  await done(page, `${other} ${sigma}`);
  const changed = await levels(page);
  check(changed.some((level, i) => level !== found[i]), "another window gives another picture");
  await browser.close();

  const without = await open(["--disable-features=WebGPU", "--disable-blink-features=WebGPU"]);
  await without.page.waitForFunction(() => document.getElementById("message").classList.contains("error"));
  check((await without.page.textContent("#message")).includes("no WebGPU"), "without WebGPU the page says so");
  await without.browser.close();
} finally {
  server.close();
}
