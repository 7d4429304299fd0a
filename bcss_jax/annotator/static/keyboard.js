// Every tool by keyboard: Space uses it in the middle of the view.
import { state, TOOLS } from "./state.js";
import { middle, pan, show, whole, zoomBy } from "./slide.js";
import { outlineAt, redraw } from "./overlay.js";
import * as panel from "./panel.js";
import * as prompts from "./prompts.js";
import * as region from "./region.js";
import * as strokes from "./strokes.js";
import { data } from "./server.js";

const TOOL_KEYS = { v: "move", c: "click", b: "box", p: "brush", e: "eraser" };
const PANS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const STEP = 0.08; // of the view

const space = (outside) => {
  state.byKeyboard = true;
  const at = middle();
  if (state.tool === "move") {
    const found = outlineAt(at);
    panel.select(found && found.id);
  } else if (state.tool === "click") {
    prompts.click(at, state.inside && !outside);
  } else if (state.tool === "box") {
    if (state.corner) {
      prompts.box([...state.corner, ...at]);
      state.corner = state.dragged = null;
    } else {
      state.corner = at;
      panel.say("Move to the other corner, and press Space again.", true);
    }
  } else if (state.stroke) {
    strokes.end();
  } else {
    strokes.begin(at);
    panel.say("The pen is down: arrows draw, Space lifts it.", true);
  }
  redraw();
};
const arrow = ([x, y]) => {
  state.byKeyboard = true;
  pan(STEP * x, STEP * y);
  requestAnimationFrame(() => {
    if (state.corner) state.dragged = [...state.corner, ...middle()];
    if (state.stroke) strokes.draw(middle());
    redraw();
  });
};
const escape = () => {
  if (state.stroke) strokes.cancel();
  else if (state.corner || state.dragged) state.corner = state.dragged = null;
  else if (prompts.isOpen()) prompts.cancel();
  else panel.select(null);
  panel.say("");
  redraw();
};
const enter = (shift) => {
  if (prompts.isOpen()) prompts.accept(shift);
  else panel.acceptSelected();
};
const withControl = (event) => {
  const key = event.key.toLowerCase();
  if (key === "z") return event.shiftKey ? panel.redo : panel.undo;
  return key === "y" ? panel.redo : null;
};
const digit = (event) => {
  const found = /^(?:Digit|Numpad)([1-9])$/.exec(event.code);
  if (!found) return null;
  const number = Number(found[1]) - 1;
  if (event.shiftKey) return data.classes[number] ? () => panel.selectClass(data.classes[number].name) : null;
  return number < 3 ? () => prompts.choose(number) : null;
};
const next = (step) => {
  const found = panel.next(step);
  if (found) show(found.box);
};
const plain = (event) => {
  const key = event.key;
  const lower = key.toLowerCase();
  if (event.shiftKey && lower === "a") return panel.acceptView;
  if (lower === "n") return () => next(event.shiftKey ? -1 : 1);
  if (TOOL_KEYS[lower] && TOOLS.includes(TOOL_KEYS[lower])) return () => panel.selectTool(TOOL_KEYS[lower]);
  if (PANS[key]) return () => arrow(PANS[key]);
  const actions = {
    " ": () => space(event.altKey),
    Enter: () => enter(event.shiftKey),
    Escape: escape,
    Backspace: () => (prompts.isOpen() ? prompts.takeBack() : panel.remove()),
    Delete: panel.remove,
    "[": () => panel.resize(state.brush - 4),
    "]": () => panel.resize(state.brush + 4),
    "+": () => zoomBy(2),
    "=": () => zoomBy(2),
    "-": () => zoomBy(0.5),
    "0": () => whole(),
    Home: () => whole(),
    "?": panel.toggleHelp,
    x: () => panel.setInside(!state.inside),
    g: region.goToNext,
    h: () => {
      state.hidden = !state.hidden;
      redraw();
    },
  };
  return actions[key] || actions[lower] || null;
};

const isField = (element) => element.matches("input, select, textarea, dialog, dialog *");
export const start = () => {
  document.addEventListener("keydown", (event) => {
    const element = event.target instanceof Element ? event.target : document.body;
    if (isField(element) && !(element.matches("#size, #opacity") && !/^(Arrow|Home|End|Page)/.test(event.key))) return;
    if (element.matches("button, a") && (event.key === "Enter" || event.key === " ")) return; // it is pressed
    const action =
      event.ctrlKey || event.metaKey ? withControl(event) : digit(event) || plain(event);
    if (!action) return;
    event.preventDefault();
    action();
  });
};
