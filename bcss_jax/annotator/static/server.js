// What the server knows: requests with the session's token, the annotations, and what this browser can undo.
export const data = JSON.parse(document.getElementById("data").textContent);

// The token stands in the part of the address that is not sent. It is taken out of the address, so that a copied address
// of a place on the slide does not hold it, and kept for this tab alone.
const readToken = () => {
  const found = /^#token=([\w-]+)$/.exec(location.hash);
  if (found) {
    sessionStorage.setItem("token", found[1]);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem("token");
};
const token = readToken();
export const mayChange = token !== null;

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const answerOf = async (path, options) => {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", ...options });
  } catch {
    throw new Refused("The server does not answer: is the command still running?", 0);
  }
  const text = await response.text();
  let content;
  try {
    content = JSON.parse(text);
  } catch {
    content = { error: text };
  }
  if (!response.ok) throw new Refused(content.error || `error ${response.status}`, response.status);
  return content;
};
export const post = (name, values) =>
  answerOf(`/${name}`, {
    method: "POST",
    headers: { "content-type": "application/json", "x-annotate-token": token || "" },
    body: JSON.stringify(values),
  });

// The annotations by id, as the server has them at a revision.
export const outlines = new Map();
export const known = { revision: -1, problem: null, clicks: 0, seconds: 0, offline: null };
const listeners = [];
export const onChange = (listener) => listeners.push(listener);
const tell = () => listeners.forEach((listener) => listener());

const pathOf = (polygons) => {
  const path = new Path2D();
  for (const ring of polygons.flat()) {
    ring.forEach(([x, y], number) => (number ? path.lineTo(x, y) : path.moveTo(x, y)));
    path.closePath();
  }
  return path;
};
const boxOf = (polygons) => {
  const box = [Infinity, Infinity, -Infinity, -Infinity];
  for (const [outer] of polygons) {
    for (const [x, y] of outer) {
      box[0] = Math.min(box[0], x);
      box[1] = Math.min(box[1], y);
      box[2] = Math.max(box[2], x);
      box[3] = Math.max(box[3], y);
    }
  }
  return box;
};
export const drawable = (outline) => ({ ...outline, path: pathOf(outline.polygons), box: boxOf(outline.polygons) });

const take = (state) => {
  if (state.revision < known.revision) return; // an answer that was overtaken by a later one
  for (const id of state.removed) outlines.delete(id);
  for (const each of state.changed) outlines.set(each.id, drawable(each));
  known.revision = state.revision;
  known.problem = state.problem;
  known.clicks = state.clicks;
  known.seconds = state.seconds;
  known.offline = null;
  tell();
};
export const refresh = async () => {
  try {
    take(await answerOf(`/state/${known.revision + 1}`));
  } catch (error) {
    known.offline = error.message;
    tell();
  }
};

// The work since the last edit: time between two actions counts up to half a minute.
const work = { clicks: 0, seconds: 0, last: performance.now() };
export const countClick = () => (work.clicks += 1);
export const active = () => {
  const now = performance.now();
  work.seconds += Math.min(30, (now - work.last) / 1000);
  work.last = now;
};

// Edits are sent one after the other, so that each knows what the one before has done.
const done = [];
const undone = [];
let last = Promise.resolve();
const inTurn = (action) => {
  const result = last.then(action);
  last = result.catch(() => {});
  return result;
};
const send = async (name, values) => {
  const spent = { clicks: work.clicks, seconds: work.seconds };
  const answer = await post(name, { ...values, ...spent, since: known.revision });
  work.clicks -= spent.clicks;
  work.seconds -= spent.seconds;
  take(answer);
  return answer;
};
// `values` is a function, because the revision that targets state is known only when the edit is sent.
export const edit = (name, values) =>
  inTurn(async () => {
    const answer = await send(name, values());
    if (answer.transaction !== undefined) {
      done.push(answer.transaction);
      undone.length = 0;
      tell();
    }
    return answer;
  });
const step = (name, from, to) =>
  inTurn(async () => {
    if (!from.length) return false;
    const transaction = from.pop();
    await send(name, { transaction }); // what cannot be undone any more is forgotten
    to.push(transaction);
    tell();
    return true;
  });
export const undo = () => step("undo", done, undone);
export const redo = () => step("redo", undone, done);
export const canUndo = () => done.length > 0;
export const canRedo = () => undone.length > 0;
export const target = (id) => ({ id, revision: known.revision });
