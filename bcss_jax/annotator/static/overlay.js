// Draws annotations, proposals, clicks and the brush over the slide.
import { outlines } from "./server.js";
import { onMove, transform } from "./slide.js";
import { state } from "./state.js";

const canvas = document.getElementById("overlay");
const context = canvas.getContext("2d");
const HALO = "#ffffffd0";
const SIGN = { true: "#006d2c", false: "#b00020" }; // of clicks inside and outside, which have a plus and a minus too

const place = (at) => {
  context.setTransform(at.ratio * at.scale, 0, 0, at.ratio * at.scale, at.ratio * at.x, at.ratio * at.y);
};
const onScreen = (box, at) => {
  const size = canvas.getBoundingClientRect();
  return (
    at.x + box[2] * at.scale >= 0 &&
    at.y + box[3] * at.scale >= 0 &&
    at.x + box[0] * at.scale <= size.width &&
    at.y + box[1] * at.scale <= size.height
  );
};
const area = (outline, at, color, fill, width, dash) => {
  place(at);
  context.globalAlpha = fill;
  context.fillStyle = color;
  context.fill(outline.path, "evenodd");
  context.globalAlpha = 1;
  context.lineJoin = "round";
  context.setLineDash([]);
  context.strokeStyle = HALO;
  context.lineWidth = (width + 2) / at.scale;
  context.stroke(outline.path);
  context.setLineDash(dash.map((each) => each / at.scale));
  context.strokeStyle = color;
  context.lineWidth = width / at.scale;
  context.stroke(outline.path);
  context.setLineDash([]);
};
const screen = (at) => context.setTransform(at.ratio, 0, 0, at.ratio, 0, 0);
const pixel = ([x, y], at) => [at.x + x * at.scale, at.y + y * at.scale];

const drawOutlines = (at) => {
  const fill = state.opacity / 100;
  for (const outline of outlines.values()) {
    if (outline.id === state.selected || !onScreen(outline.box, at)) continue;
    area(outline, at, outline.color, outline.accepted ? fill : fill / 3, 2, outline.accepted ? [] : [6, 5]);
  }
  const selected = outlines.get(state.selected);
  if (!selected) return;
  area(selected, at, selected.color, selected.accepted ? fill : fill / 3, 4, selected.accepted ? [] : [6, 5]);
  place(at);
  context.strokeStyle = "#000";
  context.lineWidth = 1.5 / at.scale;
  context.setLineDash([4 / at.scale, 4 / at.scale]);
  context.stroke(selected.path);
  context.setLineDash([]);
};
const drawProposals = (at) => {
  const { proposals, choice } = state.prompt;
  proposals.forEach((each, number) => {
    if (number !== choice) area(each, at, "#444", 0, 1, [2, 4]);
  });
  if (proposals[choice]) area(proposals[choice], at, state.class.color, 0.35, 3, []);
};
const drawClicks = (at) => {
  screen(at);
  context.setLineDash([]);
  for (const { at: where, inside } of state.prompt.points) {
    const [x, y] = pixel(where, at);
    context.beginPath();
    context.arc(x, y, 8, 0, 7);
    context.fillStyle = SIGN[inside];
    context.fill();
    context.lineWidth = 2;
    context.strokeStyle = "#fff";
    context.stroke();
    context.beginPath();
    context.moveTo(x - 4, y);
    context.lineTo(x + 4, y);
    if (inside) {
      context.moveTo(x, y - 4);
      context.lineTo(x, y + 4);
    }
    context.stroke();
  }
};
const drawBox = (box, at) => {
  screen(at);
  const [x0, y0] = pixel(box.slice(0, 2), at);
  const [x1, y1] = pixel(box.slice(2), at);
  for (const [color, width, dash] of [["#fff", 4, []], ["#000", 2, [7, 5]]]) {
    context.strokeStyle = color;
    context.lineWidth = width;
    context.setLineDash(dash);
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  context.setLineDash([]);
};
const drawStroke = (at) => {
  const { points, radius, erases } = state.stroke;
  place(at);
  context.lineCap = context.lineJoin = "round";
  context.globalAlpha = 0.5;
  context.strokeStyle = erases ? "#fff" : state.class.color;
  context.lineWidth = 2 * radius;
  context.beginPath();
  points.forEach(([x, y], number) => (number ? context.lineTo(x, y) : context.moveTo(x, y)));
  if (points.length === 1) context.lineTo(points[0][0] + 0.01, points[0][1]);
  context.stroke();
  context.globalAlpha = 1;
  context.lineCap = "butt";
};
const drawCursor = (at, rectangle) => {
  screen(at);
  context.lineWidth = 1.5;
  if (state.pointer && (state.tool === "brush" || state.tool === "eraser")) {
    for (const [color, width] of [["#fff", 3], [state.tool === "brush" ? state.class.color : "#000", 1.5]]) {
      context.beginPath();
      context.arc(state.pointer[0], state.pointer[1], state.brush / 2, 0, 7);
      context.strokeStyle = color;
      context.lineWidth = width;
      context.stroke();
    }
  }
  if (!state.byKeyboard) return;
  const [x, y] = [rectangle.width / 2, rectangle.height / 2];
  for (const [color, width] of [["#fff", 4], ["#000", 1.5]]) {
    context.beginPath();
    for (const [a, b] of [[-16, -4], [4, 16]]) {
      context.moveTo(x + a, y);
      context.lineTo(x + b, y);
      context.moveTo(x, y + a);
      context.lineTo(x, y + b);
    }
    context.strokeStyle = color;
    context.lineWidth = width;
    context.stroke();
  }
};

const draw = () => {
  waiting = false;
  const rectangle = canvas.getBoundingClientRect();
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [rectangle.width, rectangle.height].map((each) => Math.round(each * ratio));
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, width, height);
  const at = { ...transform(), ratio };
  if (state.region && !state.hidden) drawBox(state.region.box, at);
  if (!state.hidden) drawOutlines(at);
  drawProposals(at);
  if (state.stroke) drawStroke(at);
  if (state.prompt.box) drawBox(state.prompt.box, at);
  if (state.dragged) drawBox(state.dragged, at);
  drawClicks(at);
  drawCursor(at, rectangle);
};
let waiting = false;
export const redraw = () => {
  if (!waiting) requestAnimationFrame(draw);
  waiting = true;
};
export const watch = () => {
  onMove(draw);
  redraw();
};

export const contains = ({ box, path }, [x, y]) => {
  if (x < box[0] || y < box[1] || x > box[2] || y > box[3]) return false;
  context.setTransform(1, 0, 0, 1, 0, 0);
  return context.isPointInPath(path, x, y, "evenodd");
};
// The annotation at a place: the smallest one, so that one inside another can be reached.
export const outlineAt = (at) => {
  const size = ({ box }) => (box[2] - box[0]) * (box[3] - box[1]);
  const found = [...outlines.values()].filter((each) => contains(each, at));
  return found.sort((one, other) => size(one) - size(other))[0] || null;
};
