// What this page is doing now.
import { data } from "./server.js";

export const TOOLS = ["move", "click", "box", "brush", "eraser"];
export const noPrompt = () => ({
  points: [], // {at: [x, y], inside}
  box: null,
  umPerPixel: null, // of the screen at the first click, which chooses the view
  answer: null,
  proposals: [],
  choice: 0,
  waits: false,
});
export const state = {
  tool: "click",
  region: null, // to annotate next: {rank, box, share}
  class: data.classes[0],
  selected: null, // id of an annotation
  inside: true, // what the next click means
  prompt: noPrompt(),
  corner: null, // of a box that is set by keyboard
  dragged: null, // box that is drawn now
  stroke: null, // {points, radius, erases} that is drawn now
  brush: 28, // diameter in pixels of the screen
  opacity: 25, // percent
  hidden: false,
  pointer: null, // pixel of the screen
  byKeyboard: false,
};
