// The page: a picture is dropped, cut to the size that the plans are for, and denoised by the plan of the chosen window.

import { Plan, type PlanText } from "./plan";
import { type Picture, tokensOf } from "./patches";

/** What `scripts/plans.mjs` wrote beside the plans. */
interface Index {
  width: number;
  height: number;
  patch: number;
  strength: number;
  /** The part of the noise that is taken off distances, as the CLI takes it. */
  takenOff: number;
  windows: number[];
  /** The window that the CPU's picture is of, and its noise. */
  expected: { window: number; sigma: number; file: string };
}

const element = <T extends HTMLElement>(id: string): T => document.getElementById(id) as T;
const message = element<HTMLParagraphElement>("message");
const windowSlider = element<HTMLInputElement>("window");
const sigmaSlider = element<HTMLInputElement>("sigma");
const noisyCanvas = element<HTMLCanvasElement>("noisy");
const denoisedCanvas = element<HTMLCanvasElement>("denoised");

function say(text: string, isError = false): void {
  message.textContent = text;
  message.classList.toggle("error", isError);
}

async function open(): Promise<GPUDevice | undefined> {
  const adapter = await navigator.gpu?.requestAdapter();
  if (!adapter) {
    say(
      "This browser has no WebGPU, or no adapter for it, so nothing can be computed here. Recent Chrome, Edge, Safari " +
        "and Firefox have it; on Linux it may have to be switched on. The program natten does the same on any machine.",
      true,
    );
    return undefined;
  }
  const device = await adapter.requestDevice();
  const info = adapter.info;
  say(`Computing on ${[info?.vendor, info?.architecture, info?.description].filter(Boolean).join(" ") || "this GPU"}.`);
  device.lost.then(({ message: why }) => say(`The GPU was lost: ${why}. Load the page again.`, true));
  return device;
}

async function json<T>(path: string): Promise<T> {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`${path}: ${response.status}; write the plans with npm run plans`);
  return response.json() as Promise<T>;
}

/** The middle of an image, scaled to the plans' size. A picture of this size stays as it is. */
async function pictureOf(blob: Blob, { width, height }: Index): Promise<Picture> {
  const image = await createImageBitmap(blob, { colorSpaceConversion: "none" });
  const scale = Math.max(width / image.width, height / image.height);
  const [w, h] = [image.width * scale, image.height * scale];
  noisyCanvas.width = width;
  noisyCanvas.height = height;
  const context = noisyCanvas.getContext("2d", { willReadFrequently: true })!;
  context.drawImage(image, (width - w) / 2, (height - h) / 2, w, h);
  return { width, height, levels: levelsOf(context.getImageData(0, 0, width, height)) };
}

function levelsOf({ data }: ImageData): Float64Array {
  const levels = new Float64Array((data.length / 4) * 3);
  for (let i = 0; i < levels.length; i++) levels[i] = data[Math.floor(i / 3) * 4 + (i % 3)];
  return levels;
}

function show(levels: Float32Array, { width, height }: Index): ImageData {
  const image = new ImageData(width, height);
  for (let i = 0; i < width * height; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(levels[3 * i + c]);
    image.data[4 * i + 3] = 255;
  }
  denoisedCanvas.width = width;
  denoisedCanvas.height = height;
  denoisedCanvas.getContext("2d")!.putImageData(image, 0, 0);
  return image;
}

/** The largest difference of two pictures, in levels. */
async function difference(image: ImageData, path: string): Promise<number> {
  const expected = await createImageBitmap(await (await fetch(path)).blob(), { colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(expected.width, expected.height);
  const context = canvas.getContext("2d")!;
  context.drawImage(expected, 0, 0);
  const other = context.getImageData(0, 0, expected.width, expected.height).data;
  return image.data.reduce((most, level, i) => Math.max(most, Math.abs(level - other[i])), 0);
}

async function start(): Promise<void> {
  const device = await open();
  if (!device) return;
  const index = await json<Index>("./plans/index.json");
  windowSlider.min = String(index.windows[0]);
  windowSlider.max = String(index.windows[index.windows.length - 1]);
  windowSlider.value = String(index.expected.window);
  sigmaSlider.value = String(index.expected.sigma);
  const photo = await (await fetch("./photo.png")).blob();
  let picture = await pictureOf(photo, index);
  let isPhoto = true;
  let plan: Plan | undefined;
  let planOf = 0;
  let busy: Promise<void> | undefined;
  let again = false;

  const denoise = async (): Promise<void> => {
    const [window, sigma] = [Number(windowSlider.value), Number(sigmaSlider.value)];
    element("window-size").textContent = `${window}×${window}`;
    element("sigma-size").textContent = String(sigma);
    if (planOf !== window || !plan) {
      plan?.destroy();
      plan = await Plan.create(device, await json<PlanText>(`./plans/${window}.json`));
      planOf = window;
    }
    const { patches, norms } = tokensOf(picture, index.patch, sigma);
    const square = (x: number): Float32Array => Float32Array.of(x * x);
    const inputs = new Map([
      ["query", patches],
      ["key", patches],
      ["value", Float32Array.from(picture.levels)],
      ["nq", norms],
      ["nk", norms],
      ["s2", square(index.takenOff * sigma)],
      ["h2", square(index.strength * sigma)],
    ]);
    const { outputs, milliseconds } = await plan.run(inputs);
    const image = show(outputs.get("output")!, index);
    element("time").textContent = `denoised in ${milliseconds.toFixed(1)} ms`;
    const { expected } = index;
    const isExpected = isPhoto && expected.window === window && expected.sigma === sigma;
    const most = isExpected ? await difference(image, `./plans/${expected.file}`) : undefined;
    element("comparison").textContent =
      most === undefined ? "" : `Largest difference from the CPU's picture: ${most} of 255 levels.`;
    document.body.dataset.done = `${window} ${sigma}`;
  };
  // One run at a time; what is asked for meanwhile runs once, behind it.
  const request = (): void => {
    again = true;
    busy ??= (async () => {
      while (again) {
        again = false;
        delete document.body.dataset.done;
        await denoise().catch((error: unknown) => say(String(error), true));
      }
      busy = undefined;
    })();
  };
  const take = async (file: Blob | undefined): Promise<void> => {
    if (!file) return;
    try {
      picture = await pictureOf(file, index);
      // The bundled photo may be dropped too.
      isPhoto = file.size === photo.size;
      request();
    } catch {
      say("That file is no picture that this browser can read.", true);
    }
  };
  windowSlider.addEventListener("input", request);
  sigmaSlider.addEventListener("input", request);
  element<HTMLInputElement>("file").addEventListener("change", (event) => {
    void take((event.target as HTMLInputElement).files?.[0]);
  });
  const drop = element("drop");
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  drop.addEventListener("dragleave", () => drop.classList.remove("over"));
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    void take(event.dataTransfer?.files[0]);
  });
  request();
}

start().catch((error: unknown) => say(String(error), true));
