// Starts the page, and gives pointers to the tools.
import { active, mayChange, post, refresh } from "./server.js";
import { hasPlace, onMove, opened, placeAt, seen, umPerPixel, viewer } from "./slide.js";
import { state } from "./state.js";
import { outlineAt, redraw, watch } from "./overlay.js";
import * as keyboard from "./keyboard.js";
import * as panel from "./panel.js";
import * as prompts from "./prompts.js";
import * as region from "./region.js";
import * as strokes from "./strokes.js";

const POLL_MS = 2000;
const LOOK_MS = 250; // after the last movement
const view = document.getElementById("view");

const draws = () => state.tool === "brush" || state.tool === "eraser";
const isAlt = (event) => Boolean(event.originalEvent && event.originalEvent.altKey);
viewer.addHandler("canvas-click", (event) => {
  if (!event.quick) return;
  state.byKeyboard = false;
  const at = placeAt(event.position);
  if (state.tool === "move") {
    const found = outlineAt(at);
    panel.select(found && found.id);
  } else if (state.tool === "click" || (state.tool === "box" && state.prompt.box)) {
    prompts.click(at, state.inside && !isAlt(event));
  } else if (draws()) {
    strokes.begin(at);
    strokes.end();
  }
});
let pressed = null; // where the pointer went down
viewer.addHandler("canvas-press", (event) => (pressed = placeAt(event.position)));
viewer.addHandler("canvas-drag", (event) => {
  if (state.tool !== "box" && !draws()) return;
  event.preventDefaultAction = true;
  state.byKeyboard = false;
  const at = placeAt(event.position);
  if (state.tool === "box") state.dragged = [...(pressed || at), ...at];
  else if (state.stroke) strokes.draw(at);
  else {
    strokes.begin(pressed || at);
    strokes.draw(at);
  }
  redraw();
});
viewer.addHandler("canvas-drag-end", (event) => {
  if (state.tool === "box" || draws()) event.preventDefaultAction = true;
  if (state.dragged && !state.corner) {
    const box = state.dragged;
    state.dragged = null;
    prompts.box(box);
  }
  if (state.stroke) strokes.end();
});
viewer.addHandler("canvas-pinch", () => {
  if (state.stroke) strokes.cancel(); // two fingers move the slide
  state.dragged = null;
});
view.addEventListener("pointermove", (event) => {
  const box = view.getBoundingClientRect();
  state.pointer = event.pointerType === "touch" ? null : [event.clientX - box.left, event.clientY - box.top];
  if (draws()) redraw();
});
view.addEventListener("pointerleave", () => {
  state.pointer = null;
  redraw();
});
for (const kind of ["pointerdown", "keydown", "wheel"]) document.addEventListener(kind, active, { passive: true });

// Tells the server what is looked at, so that it computes that in the background.
const ready = document.getElementById("ready");
let looks;
const look = async () => {
  if (!mayChange || document.hidden) return;
  try {
    const { ready: done, of } = await post("look", { box: seen(), um_per_pixel: umPerPixel() });
    ready.textContent = done === of ? "Ready for clicks" : `Preparing this view: ${done} of ${of} parts`;
    ready.dataset.ready = String(done);
    if (done < of) lookLater(1000);
  } catch (error) {
    ready.textContent = "";
    if (error.status !== 0) panel.fail(error);
  }
};
const lookLater = (milliseconds) => {
  clearTimeout(looks);
  looks = setTimeout(look, milliseconds);
};
const poll = async () => {
  if (!document.hidden) await refresh();
  setTimeout(poll, POLL_MS);
};

await opened;
watch();
panel.start();
keyboard.start();
let place = "";
onMove(() => {
  const now = seen().join();
  if (now === place) return;
  place = now;
  lookLater(LOOK_MS);
  panel.update();
});
await poll();
await region.start(hasPlace);
look();
document.documentElement.dataset.started = "true";
