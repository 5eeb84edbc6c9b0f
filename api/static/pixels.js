// From the levels of a probability PNG to buildings: which pixels, how many, where their edges run.
// A pixel of level k has probability k/255 or more, so "level >= threshold" is the server's own
// mask, to the pixel.
"use strict";

// The levels (one byte a pixel) of a greyscale PNG.
async function readLevels(blob) {
  const bitmap = await createImageBitmap(blob, {colorSpaceConversion: "none", premultiplyAlpha: "none"});
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  const rgba = context.getImageData(0, 0, bitmap.width, bitmap.height).data;
  const levels = new Uint8Array(bitmap.width * bitmap.height);
  for (let i = 0; i < levels.length; i++) levels[i] = rgba[4 * i];
  return {levels, width: bitmap.width, height: bitmap.height};
}

// Pixels that touch by a side are one building, as on the server. labels[i] is the building of
// pixel i (0: none), sizes[b] how many pixels building b has.
function findBuildings({levels, width, height}, threshold) {
  const labels = new Int32Array(width * height), parent = [0];
  const root = (a) => { while (parent[a] !== a) a = parent[a] = parent[parent[a]]; return a; };
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (levels[i] < threshold) continue;
      const left = x ? labels[i - 1] : 0, above = y ? labels[i - width] : 0;
      if (left && above) {
        const a = root(left), b = root(above);
        parent[Math.max(a, b)] = labels[i] = Math.min(a, b);
      } else if (left || above) labels[i] = left || above;
      else { labels[i] = parent.length; parent.push(parent.length); }
    }
  }
  const number = new Int32Array(parent.length), sizes = [0];
  for (let i = 0; i < labels.length; i++) {
    if (!labels[i]) continue;
    const a = root(labels[i]);
    if (!number[a]) { number[a] = sizes.length; sizes.push(0); }
    sizes[labels[i] = number[a]]++;
  }
  return {labels, sizes, width, height};
}

// The edges of buildings of at least `smallest` pixels, as segments x0 y0 x1 y1 in pixels.
function edgesOf({labels, sizes, width, height}, smallest) {
  const inside = new Uint8Array(labels.length), segments = [];
  for (let i = 0; i < labels.length; i++) inside[i] = labels[i] && sizes[labels[i]] >= smallest ? 1 : 0;
  const at = (x, y) => x >= 0 && y >= 0 && x < width && y < height ? inside[y * width + x] : 0;
  for (let y = 0; y <= height; y++) {
    for (let x = 0, start = -1; x <= width; x++) {
      const edge = x < width && at(x, y) !== at(x, y - 1);
      if (edge && start < 0) start = x;
      if (!edge && start >= 0) { segments.push(start, y, x, y); start = -1; }
    }
  }
  for (let x = 0; x <= width; x++) {
    for (let y = 0, start = -1; y <= height; y++) {
      const edge = y < height && at(x, y) !== at(x - 1, y);
      if (edge && start < 0) start = y;
      if (!edge && start >= 0) { segments.push(x, start, x, y); start = -1; }
    }
  }
  return Float32Array.from(segments);
}

// Paint the mask into a canvas of the picture's size.
function paintMask({levels, width, height}, threshold, canvas, colour = [255, 64, 0]) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer), table = new Uint32Array(256);
  const paint = new Uint32Array(new Uint8ClampedArray([...colour, 255]).buffer)[0];
  for (let level = threshold; level < 256; level++) table[level] = paint;
  for (let i = 0; i < levels.length; i++) pixels[i] = table[levels[i]];
  context.putImageData(image, 0, 0);
}
