// Which region to annotate next: goes to it, frames it, and says how much of it is in dispute.
import { data, mayChange, post } from "./server.js";
import { fit } from "./slide.js";
import { state } from "./state.js";
import { redraw } from "./overlay.js";
import { fail, say } from "./panel.js";

const get = (id) => document.getElementById(id);
const percent = (share) => `${Math.max(1, Math.round(100 * share))} %`;
const about = ({ rank, share }) =>
  `Region ${rank + 1} of ${data.regions.of}: ${percent(share)} of its area is in dispute.`;

const tell = (left) => {
  const { members, of } = data.regions;
  const whole = members.replace(/^the /, "The ");
  if (!of) get("region-text").textContent = `${whole} agree: there is no region to show.`;
  else if (!left) get("region-text").textContent = `All ${of} regions where ${members} disagree are annotated.`;
  else get("region-text").textContent = `${about(state.region)} ${whole} disagree; ${left} left to annotate.`;
};
export const goToNext = async () => {
  if (!data.regions) return say("Start the command with --next to be shown which region to annotate.");
  try {
    const after = state.region ? state.region.rank : -1;
    const { region, left } = await post("next_region", { after });
    if (region && region.rank <= after) say(region.rank === after ? "This is the only region left." : "From the first again.");
    state.region = region;
    tell(left);
    if (region) fit(region.box);
  } catch (error) {
    fail(error);
  }
  redraw();
};
export const start = async (keepsPlace) => {
  get("region").hidden = !data.regions || !mayChange;
  if (get("region").hidden) return;
  get("next-region").disabled = !data.regions.of;
  get("next-region").addEventListener("click", goToNext);
  if (!data.regions.of) tell(0);
  else if (keepsPlace) get("region-text").textContent = `${data.regions.of} regions where ${data.regions.members} disagree.`;
  else await goToNext();
};
