"use strict";
// The slide, and over it two layers a class: its areas and its outlines. Switches and slider only change opacities.
const data = JSON.parse(document.getElementById("data").textContent);
const get = (id) => document.getElementById(id);

const source = (geometry, folder, kind) => ({
  ...geometry,
  tileSize: 256,
  tileOverlap: 0,
  minLevel: Math.min(8, geometry.maxLevel), // one tile; those below are smaller still
  getTileUrl: (level, x, y) => `${data.url}/${folder}/${level}/${x}_${y}.${kind}`,
});
const layers = [];
const images = data.slide ? [{ tileSource: source(data.slide, "slide", "jpg") }] : [];
for (const kind of data.labels ? data.kinds : []) {
  for (const value of data.values) {
    layers.push({ kind, value, index: images.length });
    images.push({ tileSource: source(data.labels, `${kind}/${value}`, "png"), opacity: 0 });
  }
}

const wide = matchMedia("(min-width: 48rem)").matches;
const viewer = OpenSeadragon({
  element: get("view"),
  tileSources: images,
  drawer: "canvas",
  showNavigationControl: false,
  showNavigator: wide,
  navigatorPosition: "BOTTOM_RIGHT",
  navigatorBackground: "#fff",
  navigatorOpacity: 1,
  imageLoaderLimit: 6, // more would only wait for the slide's readers, and for tiles that are out of sight by then
  maxTilesPerFrame: 8, // asked for at once by a layer: one would make the last class appear long after the slide
  maxZoomPixelRatio: 4,
  minZoomImageRatio: 0.6,
  visibilityRatio: 0.5,
  animationTime: 0.6,
  gestureSettingsMouse: { clickToZoom: false, dblClickToZoom: true },
});

// Areas hide the tissue and outlines do not, so that each has an opacity of its own.
const opacities = { filled: 40, outlined: 100 };
const kind = () => document.querySelector("input[name=kind]:checked").value;
const shown = (value) => document.querySelector(`.shown[value="${value}"]`).checked;
const show = () => {
  const now = kind();
  get("percent").textContent = `${opacities[now]} %`;
  for (const layer of layers) {
    const image = viewer.world.getItemAt(layer.index);
    if (image) image.setOpacity(layer.kind === now && shown(layer.value) ? opacities[now] / 100 : 0);
    const small = viewer.navigator && viewer.navigator.world.getItemAt(layer.index);
    if (small && layer.kind === "outlined") small.setOpacity(0); // nothing but lines at that size
  }
};
if (layers.length) {
  get("opacity").addEventListener("input", (event) => {
    opacities[kind()] = Number(event.target.value);
    show();
  });
  for (const input of document.querySelectorAll("input[name=kind]")) {
    input.addEventListener("change", () => {
      get("opacity").value = opacities[kind()];
      show();
    });
  }
  for (const input of document.querySelectorAll(".shown")) input.addEventListener("change", show);
  opacities[kind()] = Number(get("opacity").value); // browsers keep a form's state when a page is loaded again
}

// Place and zoom stand in the address, in level-0 pixels and screen pixels a level-0 pixel: to come back, and to see
// another model's result of the same place. (All images have the slide's width, one unit of the viewport.)
const [width, height] = data.size;
const screen = () => viewer.viewport.getContainerSize().x / width; // screen pixels a level-0 pixel at zoom 1
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
  const centre = viewer.viewport.getCenter();
  const zoom = viewer.viewport.getZoom() * screen();
  history.replaceState(null, "", `#${Math.round(centre.x * width)},${Math.round(centre.y * width)},${zoom.toPrecision(4)}`);
};

// The longest bar of 1, 2 or 5 times a power of ten um that is no longer than 140 screen pixels.
const scale = () => {
  const um = data.mpp / (viewer.viewport.getZoom(true) * screen()); // a screen pixel
  const power = 10 ** Math.floor(Math.log10(140 * um));
  const length = power * [5, 2, 1].find((each) => each * power <= 140 * um);
  get("bar").style.width = `${length / um}px`;
  get("length").textContent = length >= 1000 ? `${length / 1000} mm` : `${Number(length.toPrecision(1))} µm`;
};

viewer.addOnceHandler("open", () => {
  show();
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
