// The slide on the screen, and where its pixels are. Places are pixels of level 0; the width of the slide is one unit of
// OpenSeadragon's viewport.
import { data } from "./server.js";

const get = (id) => document.getElementById(id);
const [width, height] = data.size;
const TILE = 256;

export const viewer = OpenSeadragon({
  element: get("view"),
  tileSources: {
    ...data.slide,
    tileSize: TILE,
    tileOverlap: 0,
    minLevel: Math.min(8, data.slide.maxLevel),
    getTileUrl: (level, x, y) => `/slide/${level}/${x}_${y}.jpg`,
  },
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: false,
  imageLoaderLimit: 6,
  maxTilesPerFrame: 8,
  maxZoomPixelRatio: 8,
  minZoomImageRatio: 0.6,
  visibilityRatio: 0.5,
  animationTime: 0.4,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: false },
  gestureSettingsTouch: { clickToZoom: false, dblClickToZoom: false },
  gestureSettingsPen: { clickToZoom: false, dblClickToZoom: false },
});
viewer.addHandler("canvas-key", (event) => (event.preventDefaultAction = true)); // keyboard.js handles keys

export const placeAt = (pixel) => {
  const point = viewer.viewport.pointFromPixel(pixel, true);
  return [point.x * width, point.y * width];
};
export const middle = () => {
  const size = viewer.viewport.getContainerSize();
  return placeAt(new OpenSeadragon.Point(size.x / 2, size.y / 2));
};
// Screen pixels of the place (0, 0), and screen pixels per pixel of level 0.
export const transform = () => {
  const origin = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(0, 0), true);
  const end = viewer.viewport.pixelFromPoint(new OpenSeadragon.Point(1, 0), true);
  return { x: origin.x, y: origin.y, scale: (end.x - origin.x) / width };
};
export const umPerPixel = () => data.mpp / transform().scale;
export const onSlide = ([x, y]) => x >= 0 && y >= 0 && x <= width && y <= height;
export const clipped = ([x, y]) => [Math.min(Math.max(x, 0), width), Math.min(Math.max(y, 0), height)];
// The part of the slide that is on the screen.
export const seen = () => {
  const size = viewer.viewport.getContainerSize();
  const [x0, y0] = clipped(placeAt(new OpenSeadragon.Point(0, 0)));
  const [x1, y1] = clipped(placeAt(new OpenSeadragon.Point(size.x, size.y)));
  return [x0, y0, x1, y1];
};
export const whole = (immediately = false) => {
  const [x, y, w, h] = data.bounds || [0, 0, width, height];
  viewer.viewport.fitBounds(new OpenSeadragon.Rect(x / width, y / width, w / width, h / width), immediately);
};
export const show = ([x0, y0, x1, y1]) => {
  const [a, b, c, d] = seen();
  if (x0 >= a && y0 >= b && x1 <= c && y1 <= d) return;
  fit([x0, y0, x1, y1], 0.3 * Math.max(x1 - x0, y1 - y0, 64));
};
export const fit = ([x0, y0, x1, y1], margin = 0.04 * (x1 - x0)) => {
  const [left, top] = [x0 - margin, y0 - margin].map((each) => each / width);
  viewer.viewport.fitBounds(
    new OpenSeadragon.Rect(left, top, (x1 - x0 + 2 * margin) / width, (y1 - y0 + 2 * margin) / width),
  );
};
export const zoomBy = (factor) => viewer.viewport.zoomBy(factor).applyConstraints();
export const pan = (x, y) => {
  const size = viewer.viewport.getContainerSize();
  const delta = viewer.viewport.deltaPointsFromPixels(new OpenSeadragon.Point(x * size.x, y * size.y));
  viewer.viewport.panBy(delta, true).applyConstraints(true);
};

// Position and zoom are kept in the address, as in the viewer of results.
const restore = () => {
  const numbers = location.hash.slice(1).split(",").map(Number);
  if (numbers.length === 3 && numbers.every(Number.isFinite) && numbers[2] > 0) {
    viewer.viewport.panTo(new OpenSeadragon.Point(numbers[0] / width, numbers[1] / width), true);
    viewer.viewport.zoomTo((numbers[2] * width) / viewer.viewport.getContainerSize().x, null, true);
    viewer.viewport.applyConstraints(true);
  } else {
    whole(true);
  }
};
const remember = () => {
  const [x, y] = middle();
  history.replaceState(null, "", `#${Math.round(x)},${Math.round(y)},${transform().scale.toPrecision(4)}`);
};
const scale = () => {
  const um = umPerPixel();
  const power = 10 ** Math.floor(Math.log10(140 * um));
  const length = power * [5, 2, 1].find((each) => each * power <= 140 * um);
  get("bar").style.width = `${length / um}px`;
  get("length").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
};

const moves = [];
export const onMove = (listener) => moves.push(listener);
export const hasPlace = /^#-?\d+,-?\d+,/.test(location.hash); // the address says what to show
export const opened = new Promise((resolve) =>
  viewer.addOnceHandler("open", () => {
    restore();
    viewer.addHandler("update-viewport", () => moves.forEach((listener) => listener()));
    viewer.addHandler("animation", scale);
    viewer.addHandler("animation-finish", remember);
    viewer.addHandler("resize", () => requestAnimationFrame(scale));
    scale();
    resolve();
  }),
);
get("closer").addEventListener("click", () => zoomBy(2));
get("farther").addEventListener("click", () => zoomBy(0.5));
get("whole").addEventListener("click", () => whole());
