// Clicks and boxes become proposals; one of them becomes an annotation.
import { countClick, drawable, edit, outlines, post, target } from "./server.js";
import { clipped, onSlide, umPerPixel } from "./slide.js";
import { noPrompt, state } from "./state.js";
import { redraw } from "./overlay.js";
import { fail, say, update } from "./panel.js";

let asked = 0; // number of the last question; answers to earlier ones are dropped

export const isOpen = () => state.prompt.points.length > 0 || state.prompt.box !== null;
const changed = () => {
  redraw();
  update();
};

const ask = async (previous) => {
  const question = ++asked;
  const prompt = state.prompt;
  prompt.waits = true;
  const slow = setTimeout(() => question === asked && say("Computing this view …", true), 400);
  try {
    for (;;) {
      const { points, box } = prompt;
      const answer = await post("prompt", { points, box, um_per_pixel: prompt.umPerPixel, previous });
      if (question !== asked) return;
      if (answer.computing) continue; // the server has waited for the view; it goes on computing
      prompt.answer = answer.answer;
      prompt.proposals = answer.proposals.map(drawable);
      prompt.choice = 0;
      say(prompt.proposals.length ? "" : "Nothing was found here; click elsewhere, or draw a box.");
      break;
    }
  } catch (error) {
    if (question !== asked) return;
    prompt.proposals = [];
    fail(error);
  } finally {
    clearTimeout(slow);
    if (question === asked) prompt.waits = false;
    changed();
  }
};
const begin = () => {
  if (!isOpen()) state.prompt.umPerPixel = umPerPixel();
  countClick();
};
const previous = () => {
  const { answer, choice, proposals } = state.prompt;
  return answer !== null && proposals.length ? [answer, choice] : null;
};

export const click = (at, inside) => {
  if (!onSlide(at)) return say("This is outside of the slide.");
  const before = previous();
  begin();
  state.prompt.points.push({ at, inside });
  changed();
  return ask(before);
};
export const box = (corners) => {
  const [x0, y0] = clipped(corners.slice(0, 2));
  const [x1, y1] = clipped(corners.slice(2));
  if (x0 === x1 || y0 === y1) return say("This box has no area on the slide.");
  begin();
  state.prompt.box = [Math.min(x0, x1), Math.min(y0, y1), Math.max(x0, x1), Math.max(y0, y1)];
  state.inside = true;
  changed();
  return ask(null);
};
export const takeBack = () => {
  const { prompt } = state;
  if (prompt.points.length) prompt.points.pop();
  else prompt.box = null;
  if (!isOpen()) return cancel();
  changed();
  return ask(null);
};
export const choose = (number) => {
  if (number >= state.prompt.proposals.length) return;
  state.prompt.choice = number;
  changed();
};
export const cancel = () => {
  asked += 1;
  state.prompt = noPrompt();
  state.inside = true;
  say("");
  changed();
};
export const accept = async (toSelected = false) => {
  const { answer, choice, proposals } = state.prompt;
  if (!proposals.length || state.prompt.waits) return;
  const to = toSelected && outlines.has(state.selected) ? state.selected : null;
  try {
    const made = edit("add", () => ({ answer, choice, class_name: state.class.name, to: to && target(to) }));
    cancel();
    state.selected = (await made).made;
  } catch (error) {
    fail(error);
  }
  changed();
};
