// Pictures as attention tensors, as `natten denoise` makes them: the weighted patch around a pixel is both its query and
// its key, and what noise loses where it is cut off at black and white is added to the norms.

/** Numbers of a picture, three channels a pixel, 0 to 255. */
export interface Picture {
  width: number;
  height: number;
  levels: Float64Array;
}

export interface Tokens {
  patches: Float32Array;
  norms: Float32Array;
}

const CHANNELS = 3;
const WHITE = 255;

function weightsOf(side: number): number[] {
  const radius = Math.floor(side / 2);
  const deviation = (side - 1) / 4;
  const falls = Array.from({ length: side }, (_, at) =>
    deviation === 0 ? 1 : Math.exp(-((at - radius) ** 2) / (2 * deviation * deviation)),
  );
  const sum = falls.reduce((a, b) => a + b, 0);
  return falls.map((weight) => weight / sum);
}

/** The line at the edge is not repeated. */
function mirrored(at: number, length: number): number {
  if (length === 1) return 0;
  const period = 2 * (length - 1);
  const inside = ((at % period) + period) % period;
  return Math.min(inside, period - inside);
}

/** The share of the noise's variance that is left where a mean level is seen. */
function clipping(sigma: number): (mean: number) => number {
  const nodes = Array.from({ length: 401 }, (_, step) => {
    const z = (step - 200) / 40;
    return [z, Math.exp((-z * z) / 2) / (40 * Math.sqrt(2 * Math.PI))];
  });
  const means: number[] = [];
  const shares: number[] = [];
  for (let level = 0; level <= WHITE; level++) {
    const clipped = (z: number) => Math.min(Math.max(level + sigma * z, 0), WHITE);
    const mean = nodes.reduce((sum, [z, weight]) => sum + weight * clipped(z), 0);
    const variance = nodes.reduce((sum, [z, weight]) => sum + weight * (clipped(z) - mean) ** 2, 0);
    means.push(mean);
    shares.push(variance / (sigma * sigma));
  }
  return (mean) => {
    let above = means.findIndex((m) => m >= mean);
    above = Math.min(Math.max(above < 0 ? means.length : above, 1), means.length - 1);
    const [low, high] = [means[above - 1], means[above]];
    const part = high > low ? Math.min(Math.max((mean - low) / (high - low), 0), 1) : 0;
    return shares[above - 1] + part * (shares[above] - shares[above - 1]);
  };
}

export function tokensOf(picture: Picture, side: number, sigma: number): Tokens {
  const { width, height, levels } = picture;
  const radius = Math.floor(side / 2);
  const weights = weightsOf(side);
  const pixels = width * height;
  const average = (plane: Float64Array): Float64Array => {
    const along = new Float64Array(pixels);
    const both = new Float64Array(pixels);
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let i = 0; i < side; i++) along[y * width + x] += plane[y * width + mirrored(x + i - radius, width)] * weights[i];
      }
    }
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let i = 0; i < side; i++) both[y * width + x] += along[mirrored(y + i - radius, height) * width + x] * weights[i];
      }
    }
    return both;
  };
  const share = clipping(sigma);
  const norms = new Float64Array(pixels);
  const centred: Float64Array[] = [];
  for (let channel = 0; channel < CHANNELS; channel++) {
    const plane = Float64Array.from({ length: pixels }, (_, pixel) => levels[pixel * CHANNELS + channel]);
    const mean = plane.reduce((a, b) => a + b, 0) / pixels;
    const around = average(plane);
    centred.push(plane.map((level) => level - mean));
    const squares = centred[channel].map((level, pixel) => level * level + sigma * sigma * (1 - share(around[pixel])));
    average(squares).forEach((square, pixel) => (norms[pixel] += square / CHANNELS));
  }
  const length = side * side * CHANNELS;
  const patches = new Float32Array(pixels * length);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      let to = (y * width + x) * length;
      for (let i = 0; i < side; i++) {
        for (let j = 0; j < side; j++) {
          const from = mirrored(y + i - radius, height) * width + mirrored(x + j - radius, width);
          const root = Math.fround(Math.sqrt((weights[i] * weights[j]) / CHANNELS));
          for (let channel = 0; channel < CHANNELS; channel++) patches[to++] = Math.fround(centred[channel][from]) * root;
        }
      }
    }
  }
  return { patches, norms: Float32Array.from(norms) };
}
