// Brush and eraser.
import { countClick, edit, outlines, target } from "./server.js";
import { transform } from "./slide.js";
import { state } from "./state.js";
import { contains, outlineAt, redraw } from "./overlay.js";
import { fail, update } from "./panel.js";

const MOST = 20000; // points of a stroke

export const begin = (at) => {
  const radius = state.brush / 2 / transform().scale;
  state.stroke = { points: [at], radius, erases: state.tool === "eraser" };
  redraw();
};
export const draw = (at) => {
  const { points, radius } = state.stroke;
  const [x, y] = points.at(-1);
  if (Math.hypot(at[0] - x, at[1] - y) > radius / 8 && points.length < MOST) points.push(at);
  redraw();
};
// The brush extends the annotation of this class over which it goes: the selected one, or the first that it meets.
const extended = (points) => {
  const fits = (each) => each && each.accepted && each.name === state.class.name;
  const selected = outlines.get(state.selected);
  if (fits(selected) && points.some((at) => contains(selected, at))) return selected.id;
  const under = points.map(outlineAt).find(fits);
  return under ? under.id : null;
};
export const end = async () => {
  const { points, radius, erases } = state.stroke;
  state.stroke = null;
  countClick();
  try {
    if (erases) {
      const of = outlines.has(state.selected) ? state.selected : null;
      await edit("erase", () => ({ points, radius, of: of && target(of) }));
    } else {
      const to = extended(points);
      const values = () => ({ points, radius, class_name: state.class.name, to: to && target(to) });
      state.selected = (await edit("brush", values)).made;
    }
  } catch (error) {
    fail(error);
  }
  redraw();
  update();
};
export const cancel = () => {
  state.stroke = null;
  redraw();
};
