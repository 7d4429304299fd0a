"use strict";
// Shows the slide, with the labels as one layer over it. The server sends label values, which are painted here: switching
// classes or outlines repaints the tiles, the slider changes the opacity of the layer, and neither needs the server.
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);

const TILE = 256;
const MARGIN = 2; // pixels around each tile of labels; also the width of outlines
const source = (geometry, folder, kind) => ({
  ...geometry,
  tileSize: TILE,
  tileOverlap: 0,
  minLevel: Math.min(8, geometry.maxLevel), // level 8 is a single tile; lower levels are not needed
  getTileUrl: (level, x, y) => `${data.url}/${folder}/${level}/${x}_${y}.${kind}`,
});

// The color of each label as RGBA in the byte order of ImageData; 0 (transparent) for labels that are not shown.
const palette = (shown) => {
  const colors = new Uint32Array(256);
  const bytes = new Uint8Array(colors.buffer);
  for (const [value, rgb] of Object.entries(data.colors)) if (shown(value)) bytes.set([...rgb, 255], 4 * value);
  return colors;
};
// Returns the colors [height, width] of labels [height + 2 MARGIN, width + 2 MARGIN].
const areas = (labels, width, height, colors) => {
  const pixels = new Uint32Array(width * height);
  const stride = width + 2 * MARGIN;
  for (let y = 0; y < height; y++) {
    const row = (y + MARGIN) * stride + MARGIN;
    for (let x = 0; x < width; x++) pixels[y * width + x] = colors[labels[row + x]];
  }
  return pixels;
};
// The same, but only for pixels that have a different label at most MARGIN pixels away along x or y or both.
const outlines = (labels, width, height, colors) => {
  const pixels = areas(labels, width, height, colors);
  const stride = width + 2 * MARGIN;
  const alike = new Uint8Array(labels.length); // whether all neighbors in the same row have this label
  for (let i = MARGIN; i < labels.length - MARGIN; i++) {
    const label = labels[i];
    alike[i] = 1;
    for (let j = i - MARGIN; j <= i + MARGIN; j++) if (labels[j] !== label) alike[i] = 0;
  }
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const i = (y + MARGIN) * stride + x + MARGIN;
      let inside = true;
      for (let j = i - MARGIN * stride; j <= i + MARGIN * stride; j += stride) {
        if (labels[j] !== labels[i] || !alike[j]) inside = false;
      }
      if (inside) pixels[y * width + x] = 0;
    }
  }
  return pixels;
};

// The state of the form. Areas hide the tissue and outlines do not, so each has its own opacity.
const opacities = { areas: 40, outlines: 100 };
const kind = () => document.querySelector("input[name=kind]:checked").value;
const checked = (value) => document.querySelector(`.shown[value="${value}"]`).checked;

const canvases = new Set(); // weak references to the contexts of tiles, which OpenSeadragon discards when it wants
const paint = (context) => {
  const { width, height } = context.canvas;
  const painter = kind() === "areas" ? areas : outlines;
  const pixels = painter(context.labels, width, height, palette(checked));
  context.putImageData(new ImageData(new Uint8ClampedArray(pixels.buffer), width, height), 0, 0);
};
const canvasOf = (tile, labels) => {
  const step = 2 ** (data.labels.maxLevel - tile.level);
  const canvas = document.createElement("canvas");
  canvas.width = Math.min(TILE, Math.ceil(data.labels.width / step) - TILE * tile.x);
  canvas.height = Math.min(TILE, Math.ceil(data.labels.height / step) - TILE * tile.y);
  const context = canvas.getContext("2d");
  context.labels = labels;
  canvases.add(new WeakRef(context));
  paint(context);
  return context;
};
const labelSource = (geometry) => ({
  ...source(geometry, "labels", "labels"),
  hasTransparency: () => true,
  downloadTileStart: async (job) => {
    const stop = new AbortController();
    job.userData.stop = stop;
    try {
      const response = await fetch(job.src, { signal: stop.signal });
      if (!response.ok) throw new Error(`${response.status}`);
      job.finish(canvasOf(job.tile, new Uint8Array(await response.arrayBuffer())), null, "context2d");
    } catch (error) {
      if (!stop.signal.aborted) job.fail(error.message, null);
    }
  },
  downloadTileAbort: (job) => job.userData.stop.abort(),
});

const images = [];
if (data.slide) images.push({ tileSource: source(data.slide, "slide", "jpg") });
if (data.labels) images.push({ tileSource: labelSource(data.labels) });
const viewer = OpenSeadragon({
  element: get("view"),
  tileSources: images,
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: matchMedia("(min-width: 48rem)").matches,
  navigatorPosition: "BOTTOM_RIGHT",
  navigatorBackground: "#fff",
  navigatorOpacity: 1,
  navigatorAutoFade: false,
  navigatorSizeRatio: 0.16,
  imageLoaderLimit: 6, // more requests would only wait for the readers of the slide
  maxTilesPerFrame: 8,
  maxZoomPixelRatio: 4,
  minZoomImageRatio: 0.6,
  visibilityRatio: 0.5,
  animationTime: 0.6,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
});

const fade = () => {
  get("percent").textContent = `${opacities[kind()]} %`;
  const image = viewer.world.getItemAt(images.length - 1);
  if (image) image.setOpacity(opacities[kind()] / 100);
  const small = viewer.navigator && viewer.navigator.world.getItemAt(images.length - 1);
  if (small && kind() === "outlines") small.setOpacity(0); // at that size outlines would cover everything
};
const repaint = () => {
  for (const reference of canvases) {
    const context = reference.deref();
    if (context) paint(context);
    else canvases.delete(reference);
  }
  viewer.forceRedraw();
  if (viewer.navigator) viewer.navigator.forceRedraw();
};
if (data.labels) {
  get("opacity").addEventListener("input", (event) => {
    opacities[kind()] = Number(event.target.value);
    fade();
  });
  for (const input of document.querySelectorAll("input[name=kind]")) {
    input.addEventListener("change", () => {
      get("opacity").value = opacities[kind()];
      repaint();
      fade();
    });
  }
  for (const input of document.querySelectorAll(".shown")) input.addEventListener("change", repaint);
  opacities[kind()] = Number(get("opacity").value); // browsers keep the state of a form when a page is reloaded
}

// Position and zoom are kept in the address, in level-0 pixels and screen pixels per level-0 pixel. This makes the back
// button work, and shows another model's result at the same place. (The width of all images is one unit of the viewport.)
const [width, height] = data.size;
const screen = () => viewer.viewport.getContainerSize().x / width; // screen pixels per level-0 pixel at zoom 1
const restore = () => {
  const numbers = location.hash.slice(1).split(",").map(Number);
  if (numbers.length === 3 && numbers.every(Number.isFinite) && numbers[2] > 0) {
    const [x, y, zoom] = numbers;
    viewer.viewport.panTo(new OpenSeadragon.Point(x / width, y / width), true);
    viewer.viewport.zoomTo(zoom / screen(), null, true);
    viewer.viewport.applyConstraints(true);
  } else {
    whole(true);
  }
};
const whole = (immediately) => {
  const [x, y, w, h] = data.bounds || [0, 0, width, height];
  viewer.viewport.fitBounds(new OpenSeadragon.Rect(x / width, y / width, w / width, h / width), immediately);
};
const remember = () => {
  const center = viewer.viewport.getCenter();
  const zoom = viewer.viewport.getZoom() * screen();
  history.replaceState(null, "", `#${Math.round(center.x * width)},${Math.round(center.y * width)},${zoom.toPrecision(4)}`);
};

// Draws the longest bar of 1, 2 or 5 times a power of ten um that fits into 140 screen pixels.
const scale = () => {
  const um = data.mpp / (viewer.viewport.getZoom(true) * screen()); // per screen pixel
  const power = 10 ** Math.floor(Math.log10(140 * um));
  const length = power * [5, 2, 1].find((each) => each * power <= 140 * um);
  get("bar").style.width = `${length / um}px`;
  get("length").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
};

// Shows that tiles are still loading, because a class may seem to be missing until they have arrived.
const loading = () => {
  const items = images.map((_, index) => viewer.world.getItemAt(index));
  get("loading").hidden = items.every((item) => item.getOpacity() === 0 || item.getFullyLoaded());
};

viewer.addOnceHandler("open", () => {
  for (let index = 0; index < images.length; index++) {
    viewer.world.getItemAt(index).addHandler("fully-loaded-change", loading);
    viewer.world.getItemAt(index).addHandler("opacity-change", loading);
  }
  loading();
  if (data.labels) fade();
  restore();
  scale();
  viewer.addHandler("viewport-change", scale);
  viewer.addHandler("animation", scale);
  viewer.addHandler("animation-finish", remember);
  viewer.addHandler("resize", () => requestAnimationFrame(scale));
});
viewer.addHandler("tile-load-failed", () => {
  get("failed").hidden = false;
});

get("closer").addEventListener("click", () => viewer.viewport.zoomBy(2).applyConstraints());
get("farther").addEventListener("click", () => viewer.viewport.zoomBy(0.5).applyConstraints());
get("whole").addEventListener("click", () => whole(false));
const model = get("model");
if (model) model.addEventListener("change", () => location.assign(model.value + location.hash));
