// Buttons, classes, messages and what is said of the annotations.
import * as server from "./server.js";
import { data, known, outlines, target } from "./server.js";
import { seen } from "./slide.js";
import { state } from "./state.js";
import { redraw } from "./overlay.js";
import * as prompts from "./prompts.js";

const get = (id) => document.getElementById(id);
let fades;

// Shows a line; it goes by itself unless it stays until the next one.
export const say = (text, stays = false) => {
  clearTimeout(fades);
  get("message").textContent = text;
  if (text && !stays) fades = setTimeout(() => (get("message").textContent = ""), 6000);
};
export const fail = (error) => say(error.message);
const trying = (action) => async () => {
  try {
    await action();
  } catch (error) {
    fail(error);
  }
  redraw();
  update();
};

export const selectTool = (tool) => {
  state.tool = tool;
  state.corner = state.dragged = null;
  redraw();
  update();
};
export const selectClass = async (name) => {
  state.class = data.classes.find((each) => each.name === name);
  const id = state.selected;
  if (state.tool === "move" && outlines.has(id) && outlines.get(id).name !== name) {
    await trying(() => server.edit("set_class", () => ({ targets: [target(id)], class_name: name })))();
  }
  redraw();
  update();
};
export const select = (id) => {
  state.selected = id;
  redraw();
  update();
};
export const remove = trying(async () => {
  const id = state.selected;
  if (!outlines.has(id)) return;
  server.countClick();
  await server.edit("delete", () => ({ targets: [target(id)] }));
  state.selected = null;
});
export const acceptSelected = trying(async () => {
  const id = state.selected;
  if (!outlines.has(id) || outlines.get(id).accepted) return;
  server.countClick();
  await server.edit("accept", () => ({ targets: [target(id)] }));
});
const suggestions = () => [...outlines.values()].filter((each) => !each.accepted);
const inView = () => {
  const [x0, y0, x1, y1] = seen();
  return suggestions().filter(({ box }) => box[2] >= x0 && box[3] >= y0 && box[0] <= x1 && box[1] <= y1);
};
export const acceptView = trying(async () => {
  const ids = inView().map(({ id }) => id);
  if (!ids.length) return say("No suggestions are in view.");
  server.countClick();
  await server.edit("accept", () => ({ targets: ids.slice(0, 10000).map(target) }));
  say(`Accepted ${ids.length}.`);
});
export const undo = trying(async () => (prompts.isOpen() ? prompts.takeBack() : server.undo()));
export const redo = trying(() => server.redo());
export const next = (step) => {
  const all = [...outlines.values()].sort((one, other) => one.box[1] - other.box[1] || one.box[0] - other.box[0]);
  if (!all.length) return null;
  const at = all.findIndex(({ id }) => id === state.selected);
  const found = all[(at < 0 && step < 0 ? all.length - 1 : at + step + all.length) % all.length];
  select(found.id);
  return found;
};
export const toggleHelp = () => (get("help").open ? get("help").close() : get("help").showModal());
export const resize = (value) => {
  state.brush = Math.min(120, Math.max(4, value));
  redraw();
  update();
};
export const setInside = (inside) => {
  state.inside = inside;
  update();
};

const pressed = (element, is) => element.setAttribute("aria-pressed", String(is));
const updateAnswer = () => {
  const { prompt } = state;
  get("answer").hidden = !prompts.isOpen();
  pressed(get("inside"), state.inside);
  pressed(get("outside"), !state.inside);
  get("accept").disabled = !prompt.proposals.length || prompt.waits;
  const buttons = prompt.proposals.map(({ score }, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = `${number + 1}: ${Math.round(100 * score)} %`;
    button.title = `Proposal ${number + 1} (key ${number + 1}), with its expected overlap`;
    pressed(button, number === prompt.choice);
    button.addEventListener("click", () => prompts.choose(number));
    return button;
  });
  get("choices").replaceChildren(...buttons);
};
const updateSelected = () => {
  const selected = outlines.get(state.selected);
  get("selected").hidden = !selected;
  if (!selected) return;
  const kind = selected.accepted ? { prompt: "from prompts", brush: "drawn", model: "of the model" }[selected.source] : "suggestion";
  get("selected-text").textContent =
    `${selected.name || "without a class"}, ${kind || "from a file"}` +
    (selected.clicks ? `, ${selected.clicks} click${selected.clicks > 1 ? "s" : ""}, ${Math.round(selected.seconds)} s` : "");
  get("accept-selected").hidden = selected.accepted;
  get("join").hidden = !state.prompt.proposals.length;
};
const updateProblem = () => {
  const { problem, offline } = known;
  const kind = offline ? "offline" : problem && problem.kind;
  get("problem").hidden = !kind;
  if (get("problem").dataset.kind === kind && !offline) return; // the buttons stay, so that they can be pressed
  get("problem").dataset.kind = kind || "";
  const actions = [];
  const button = (text, name) => {
    const made = document.createElement("button");
    made.type = "button";
    made.textContent = text;
    made.addEventListener("click", trying(() => server.edit(name, () => ({}))));
    actions.push(made);
  };
  if (kind === "offline") {
    get("problem-text").textContent = offline;
  } else if (kind === "storage") {
    get("problem-text").textContent = `Not saved: ${problem.text}. Your annotations are kept here, and saving is tried again.`;
    const link = document.createElement("a");
    [link.href, link.download, link.textContent] = ["/annotations.geojson", "annotations.geojson", "Download a copy"];
    actions.push(link);
  } else if (kind === "changed") {
    get("problem-text").textContent = `Not saved: ${problem.text}.`;
    button("Take the file's annotations", "take_the_files");
    button("Save mine, keep the file as a copy", "keep_mine");
  }
  get("problem-actions").replaceChildren(...actions);
};
export const update = () => {
  for (const button of document.querySelectorAll(".tool")) pressed(button, button.dataset.tool === state.tool);
  for (const button of document.querySelectorAll(".class")) {
    button.setAttribute("aria-checked", String(button.value === state.class.name));
  }
  if (!outlines.has(state.selected)) state.selected = null;
  updateAnswer();
  updateSelected();
  updateProblem();
  const open = suggestions().length;
  get("suggestions").hidden = !open;
  get("suggestions-text").textContent = `${open} left, dashed. Select one and press Enter to accept or Delete; the brush and the eraser correct and accept.`;
  get("accept-view").textContent = `Accept the ${inView().length} in view`;
  get("undo").disabled = !server.canUndo() && !prompts.isOpen();
  get("redo").disabled = !server.canRedo();
  get("count").textContent = String(outlines.size - open);
  get("clicks").textContent = String(known.clicks);
  get("minutes").textContent = (known.seconds / 60).toFixed(1);
  get("saved").textContent = known.problem || known.offline ? "no" : "yes";
  get("size-text").textContent = `${state.brush} px`;
  get("percent").textContent = `${state.opacity} %`;
  get("size").value = state.brush;
};

const on = (id, action) => get(id).addEventListener("click", action);
export const start = () => {
  get("readonly").hidden = server.mayChange;
  for (const button of document.querySelectorAll(".tool")) {
    button.addEventListener("click", () => selectTool(button.dataset.tool));
  }
  for (const button of document.querySelectorAll(".class")) {
    button.addEventListener("click", () => selectClass(button.value));
  }
  on("accept", () => prompts.accept());
  on("cancel", prompts.cancel);
  on("inside", () => setInside(true));
  on("outside", () => setInside(false));
  on("delete", remove);
  on("accept-selected", acceptSelected);
  on("join", () => prompts.accept(true));
  on("accept-view", acceptView);
  on("undo", undo);
  on("redo", redo);
  on("keys", toggleHelp);
  on("close-help", toggleHelp);
  get("size").addEventListener("input", (event) => resize(Number(event.target.value)));
  get("opacity").addEventListener("input", (event) => {
    state.opacity = Number(event.target.value);
    redraw();
    update();
  });
  state.opacity = Number(get("opacity").value);
  state.brush = Number(get("size").value);
  // A button that was pressed by pointer gives the keys back to the slide.
  document.addEventListener("click", (event) => {
    if (event.detail && event.target.closest("button") && !get("help").open) get("view").focus({ preventScroll: true });
  });
  server.onChange(() => {
    redraw();
    update();
  });
  update();
};
