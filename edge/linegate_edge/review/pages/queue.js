// The review queue: one part after the other, by one hand on the keyboard; or many at once, in a grid.
//
// Rules kept here: the next parts are fetched and decoded before they are asked for; a decision shows the next part at once and
// is stored behind it, in order; where the station refuses one, the part comes back with the station's own words. What is before
// this tab is lent to it by the station, and given back when it goes.

import { api, element, make, moment, open, say, toast } from "/assets/shell.js";
import { Viewer, load, release } from "/assets/viewer.js";

const AHEAD = 4; // parts that are fetched and decoded before they are asked for
const LENT = 24; // parts that this tab borrows at once
const GRID = 60;
const POLL_MS = 3000;
const RENEW_MS = 60_000;
const NAMES = { confirmed: "Confirmed", false_reject: "False reject", escape: "Escape", limit_sample: "Limit sample" };
const WORDS = { pass: "Passed", fail: "Failed", undecided: "Undecided" };

const reader = readerOfThisTab();
const viewer = new Viewer(element("picture"), { onChange: () => mark() });
const items = []; // { row, detail, looks, promise } in the order of the queue; decided ones stay, to go back to
let at = 0; // which one is shown
let view = 0; // which of its views
let cursor = null;
let ended = false;
let fetching = null;
let sending = Promise.resolve(); // decisions go out one after the other
let classKeys = [];
let drawClass = null;
let me = null;
let grid = false;
let decidedCount = 0;
let startedAt = null;
let shownKey = "";
let waiting = 0;
let hears = true;
const undoable = [];

function readerOfThisTab() {
  let name = sessionStorage.getItem("linegate-reader");
  // A tab that was duplicated has the same storage: what is open twice must not be one reader.
  if (name === null || performance.getEntriesByType("navigation")[0]?.type !== "reload") {
    name = crypto.randomUUID?.() ?? Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
    sessionStorage.setItem("linegate-reader", name);
  }
  return name;
}

// -- the queue --------------------------------------------------------------------------------------------------------

function wanted(limit) {
  const body = { reader, limit, order: element("order").value };
  for (const [key, id] of [["kind", "kind"], ["defect_class", "class-filter"], ["recipe", "recipe-filter"]]) {
    if (element(id).value !== "") body[key] = element(id).value;
  }
  return body;
}

/** Borrow more parts, those after the last one that is here. */
function more() {
  fetching ??= fetchMore().finally(() => (fetching = null));
  return fetching;
}

async function fetchMore() {
  const body = { ...wanted(LENT), details: true }; // one request, not one for each part
  if (cursor !== null) body.after = cursor;
  const answer = await api("POST", "/api/v1/queue/lend", body);
  const known = new Set(items.map((item) => item.row.verdict_id));
  const details = new Map(answer.details.map((detail) => [detail.part.verdict_id, detail]));
  for (const row of answer.items) {
    if (!known.has(row.verdict_id)) items.push({ row, detail: details.get(row.verdict_id) ?? null, looks: [], promise: null, done: null, refused: null });
  }
  if (answer.items.length > 0) cursor = answer.items.at(-1).sequence;
  ended = answer.next === null;
  showWaiting(answer.waiting);
}

async function restart() {
  await api("POST", "/api/v1/queue/give-back", { reader });
  for (const item of items) item.looks.forEach((loaded) => loaded && release(loaded));
  items.length = 0;
  undoable.length = 0;
  at = 0;
  view = 0;
  cursor = null;
  await more();
  grid ? await showGrid() : show();
}

function showWaiting(count) {
  waiting = count;
  element("waiting").textContent = count >= 10_000 ? "10,000+" : String(count);
  tellEmpty();
}

/** Why there is nothing to decide: nothing waits, or others have it before them. */
function tellEmpty() {
  const others = waiting > 0 && items.every((item) => item.done !== null);
  element("empty-title").textContent = others ? "Others are at it." : "Nothing waits.";
  element("empty-hint").textContent = others
    ? `${waiting} ${waiting === 1 ? "part waits" : "parts wait"}, and other people have them before them, or the filters above leave them out.`
    : "New rejects appear here by themselves.";
}

/** Fetch and decode a part, once. */
function prepare(item) {
  item.promise ??= prepareAll(item);
  return item.promise;
}

async function prepareAll(item) {
  item.detail ??= await api("GET", `/api/v1/parts/${item.row.verdict_id}`);
  item.row = item.detail.part;
  const first = firstView(item);
  const order = [first, ...item.detail.looks.keys()].filter((value, index, all) => all.indexOf(value) === index);
  for (const index of order) {
    try {
      item.looks[index] = await load(item.detail.looks[index], element("picture"));
    } catch (error) {
      item.looks[index] = { look: item.detail.looks[index], blob: null, fit: null, heat: null, size: [4, 3], trouble: error.message };
    }
  }
}

/** The view that decided the part. */
function firstView(item) {
  const index = item.detail.looks.findIndex((look) => look.view === item.row.view);
  return Math.max(0, index);
}

function ahead() {
  for (let index = at; index < Math.min(items.length, at + 1 + AHEAD); index++) if (items[index].done === null) prepare(items[index]).catch(() => {});
  // What lies far behind gives its pictures back.
  for (let index = 0; index < at - AHEAD; index++) {
    items[index].looks.forEach((loaded) => loaded && release(loaded));
    Object.assign(items[index], { looks: [], promise: null, detail: null });
  }
  if (!ended && items.length - at < LENT / 2) more().then(() => ahead(), (error) => toast(error.message));
}

// -- showing ----------------------------------------------------------------------------------------------------------

function show() {
  if (grid) return;
  const item = items[at];
  element("empty").hidden = item !== undefined;
  tellEmpty();
  element("desk").hidden = item === undefined;
  for (const id of ["confirm", "false-reject", "escape", "limit-sample"]) element(id).disabled = item === undefined || !me.permissions.includes("review");
  element("undo").disabled = undoable.length === 0;
  element("previous").disabled = at === 0;
  element("next").disabled = item === undefined;
  if (item === undefined) return;
  ahead();
  if (item.detail !== null && item.looks[firstView(item)] !== undefined) {
    view = firstView(item);
    paint(item);
    return;
  }
  element("desk").setAttribute("aria-busy", "true");
  prepare(item).then(
    () => {
      if (items[at] !== item) return;
      view = firstView(item);
      paint(item);
    },
    (error) => {
      item.promise = null;
      toast(error.message);
    },
  );
}

function paint(item) {
  const loaded = item.looks[view];
  const message = item.detail.message.views[view];
  viewer.show(loaded ?? { look: null, fit: null, size: [4, 3], trouble: "the part has no picture", heat: null }, message?.regions ?? []);
  const last = item.detail.decisions.at(-1);
  if (last !== undefined && last.disposition !== null) viewer.put(last.regions.filter((region) => region.view === message?.view));
  if (item.refused !== null) takeUp(item, message?.view);
  element("desk").removeAttribute("aria-busy");
  element("picture").dataset.verdictId = item.row.verdict_id; // a test, and a person with tools, can see which one is drawn
  const key = `${item.row.verdict_id}/${view}`;
  if (key !== shownKey) tell(item, message, last);
  shownKey = key;
}

function tell(item, message, last) {
  const { row } = item;
  const panel = element("verdict");
  panel.dataset.decision = row.decision;
  element("word").textContent = WORDS[row.decision] + (row.queued === "close" ? " · close" : row.queued === "audit" ? " · audit sample" : "");
  element("serial").textContent = row.serial;
  element("why").textContent = item.detail.message.reason_text;
  const facts = [
    ["Score", message?.score == null ? "–" : `${message.score.toPrecision(4)} of ${message.threshold.toPrecision(4)}`],
    ["Decided", moment(row.decided_at)],
    ["Recipe", row.recipe],
    ["Package", row.package],
  ];
  if (row.batch !== null) facts.push(["Batch", row.batch]);
  if (row.disposition !== null && last !== undefined) facts.push(["Reviewed", `${NAMES[row.disposition]}${row.decided_class ? `, ${row.decided_class}` : ""}, by ${last.by}`]);
  element("facts").replaceChildren(...facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value))));
  element("regions").replaceChildren(
    ...(message?.regions ?? []).map((region) => make("li", {}, make("span", {}, region.defect_class), make("span", { className: "hint" }, region.score.toPrecision(3)))),
  );
  const looks = item.detail.looks;
  element("views").replaceChildren(
    ...(looks.length < 2 ? [] : looks.map((look, index) => {
      const tab = make("button", { className: "button small", type: "button", role: "tab", ariaSelected: String(index === view) }, look.view);
      tab.addEventListener("click", () => chooseView(index));
      return tab;
    })),
  );
  const reference = looks[view]?.reference_uri ?? null;
  element("reference").hidden = reference === null;
  if (reference !== null) element("reference").src = reference;
  else element("reference").removeAttribute("src");
  element("no-reference").textContent = reference === null ? "no picture of a good part was kept yet: see [evidence] passed_share" : "";
  element("picture").setAttribute("aria-label", `Part ${row.serial}, ${WORDS[row.decision]}: ${item.detail.message.reason_text}`);
  element("escape").disabled = row.decision !== "pass";
  element("false-reject").disabled = row.decision === "pass";
  say(`Part ${row.serial}, ${WORDS[row.decision]}`);
}

/** What was drawn and written for a decision that the station did not take is there again. */
function takeUp(item, name) {
  const { body } = item.refused;
  viewer.put(body.regions.filter((region) => region.view === name));
  for (const mask of body.masks ?? []) if (mask.view === name) viewer.putMask(mask.png);
  element("comment").value = body.comment;
  item.refused = null;
}

function chooseView(index) {
  const item = items[at];
  if (item?.detail == null || index === view) return;
  view = index;
  paint(item);
}

/** Say in the buttons that there is something drawn. */
function mark() {
  const { boxes, painted } = viewer.drawn();
  element("picture").dataset.drawn = String(boxes.length + Number(painted));
}

function pace() {
  if (decidedCount === 0) return;
  const minutes = (performance.now() - startedAt) / 60_000;
  element("pace").textContent = `${decidedCount} decided${minutes > 0.25 ? `, ${Math.round(decidedCount / minutes)} a minute` : ""}`;
}

// -- deciding ---------------------------------------------------------------------------------------------------------

function decide(disposition, defectClass = null) {
  const item = items[at];
  if (grid) return decideMany(disposition, defectClass);
  if (item?.detail == null || !me.permissions.includes("review")) return undefined;
  if (disposition === "false_reject" && item.row.decision === "pass") return toast("this part passed: a false reject is a part that did not pass");
  if (disposition === "escape" && item.row.decision !== "pass") return toast("this part did not pass: confirm it instead");
  const drawn = viewer.drawn();
  const name = item.detail.looks[view]?.view;
  const body = {
    disposition,
    defect_class: defectClass ?? drawn.boxes[0]?.defect_class ?? null,
    regions: drawn.boxes.map((box) => ({ view: name, defect_class: box.defect_class, box_xyxy: box.box_xyxy })),
    comment: element("comment").value,
    follows: item.row.decision_number,
  };
  const masked = drawn.painted ? viewer.mask() : null; // taken now: the next part has a mask of its own
  element("comment").value = "";
  item.done = disposition;
  undoable.push(item);
  startedAt ??= performance.now();
  decidedCount += 1;
  go(1);
  pace();
  say(`${NAMES[disposition]}${body.defect_class ? `, ${body.defect_class}` : ""}`);
  sending = sending.then(() => send(item, body, masked, name));
  return undefined;
}

async function send(item, body, masked, name) {
  try {
    const mask = await masked;
    if (mask !== null) body.masks = [{ view: name, png: mask }];
    const answer = await api("POST", `/api/v1/parts/${item.row.verdict_id}/decision`, body);
    item.row.decision_number = answer.number;
    if (waiting < 10_000) showWaiting(Math.max(0, waiting - 1));
  } catch (error) {
    item.done = null;
    decidedCount -= 1;
    const index = undoable.indexOf(item);
    if (index >= 0) undoable.splice(index, 1);
    toast(`Part ${item.row.serial}: ${error.message}`);
    item.promise = null;
    item.detail = null;
    if (error.status !== 409) {
      item.refused = { body };
      at = items.indexOf(item);
      show();
    }
  }
}

async function undo() {
  if (viewer.undo()) return;
  const item = undoable.pop();
  if (item === undefined) return;
  await sending; // its decision may still be on its way
  if (item.row.decision_number === null) return;
  try {
    const answer = await api("POST", `/api/v1/parts/${item.row.verdict_id}/undo`, { follows: item.row.decision_number });
    item.done = null;
    item.promise = null;
    item.detail = null;
    item.row.decision_number = answer.number;
    decidedCount -= 1;
    at = items.indexOf(item);
    shownKey = "";
    show();
    say(`Part ${item.row.serial} waits again`);
  } catch (error) {
    toast(error.message);
  }
}

function go(steps) {
  if (grid) {
    const tiles = [...element("tiles").children];
    const focused = tiles.indexOf(document.activeElement);
    tiles[Math.min(tiles.length - 1, Math.max(0, focused + steps))]?.focus();
    return;
  }
  at = Math.min(items.length, Math.max(0, at + steps));
  show();
}

// -- the grid ---------------------------------------------------------------------------------------------------------

async function toggleGrid() {
  grid = !grid;
  element("grid-button").setAttribute("aria-pressed", String(grid));
  element("grid").hidden = !grid;
  document.body.dataset.grid = String(grid);
  if (grid) await showGrid();
  else {
    shownKey = "";
    show();
  }
}

async function showGrid() {
  element("desk").hidden = true;
  if (!ended && items.filter((item) => item.done === null).length < GRID) await more();
  const open_ = items.filter((item) => item.done === null).slice(0, GRID);
  element("empty").hidden = open_.length > 0;
  tellEmpty();
  await Promise.all(open_.map((item) => (item.detail === null ? api("GET", `/api/v1/parts/${item.row.verdict_id}`).then((detail) => (item.detail = detail)) : null)));
  const tiles = open_.map((item) => {
    const look = item.detail.looks.find((one) => one.view === item.row.view) ?? item.detail.looks[0];
    const picture = look?.picture_uri ? make("img", { src: look.picture_uri, alt: "", loading: "lazy", decoding: "async" }) : make("p", { className: "hint" }, look?.trouble ?? "no picture");
    const tile = make("li", { className: "tile", role: "option", tabIndex: 0, ariaSelected: "false" }, picture, make("p", {}, make("strong", {}, item.row.serial), " ", item.row.defect_class ?? WORDS[item.row.decision]));
    tile.dataset.verdictId = item.row.verdict_id;
    tile.dataset.decision = item.row.decision;
    tile.addEventListener("click", () => choose(tile));
    tile.addEventListener("keydown", (event) => {
      if (event.key === " ") {
        event.preventDefault();
        choose(tile);
      }
    });
    return tile;
  });
  element("tiles").replaceChildren(...tiles);
  for (const id of ["confirm", "false-reject", "escape", "limit-sample"]) element(id).disabled = tiles.length === 0 || !me.permissions.includes("review");
  tiles[0]?.focus();
}

function choose(tile, chosen = tile.ariaSelected !== "true") {
  tile.ariaSelected = String(chosen);
}

async function decideMany(disposition, defectClass) {
  const chosen = [...element("tiles").children].filter((tile) => tile.ariaSelected === "true");
  if (chosen.length === 0) return toast("choose parts first: click them, press space, or A for all");
  const byId = new Map(items.map((item) => [item.row.verdict_id, item]));
  const body = {
    items: chosen.map((tile) => ({ verdict_id: tile.dataset.verdictId, follows: byId.get(tile.dataset.verdictId).row.decision_number })),
    disposition,
    defect_class: defectClass,
  };
  try {
    const answer = await api("POST", "/api/v1/queue/decide", body);
    let done = 0;
    for (const result of answer.items) {
      const item = byId.get(result.verdict_id);
      if (result.error === null) {
        Object.assign(item, { done: disposition });
        item.row.decision_number = result.number;
        undoable.push(item);
        done += 1;
      } else toast(`Part ${item.row.serial}: ${result.error}`);
    }
    startedAt ??= performance.now();
    decidedCount += done;
    pace();
    toast(`${done} parts: ${NAMES[disposition].toLowerCase()}`, "done");
    at = items.findIndex((item) => item.done === null);
    if (at < 0) at = items.length;
    await refresh();
    await showGrid();
  } catch (error) {
    toast(error.message);
  }
  return undefined;
}

// -- keys, buttons, filters -------------------------------------------------------------------------------------------

function classAt(index) {
  const name = classKeys[index];
  if (name === undefined) return;
  if (viewer.tool !== "pan") {
    setDrawClass(name); // while drawing, a digit says what is drawn
    return;
  }
  const item = items[at];
  decide(!grid && item?.row.decision === "pass" ? "escape" : "confirmed", name);
}

function setDrawClass(name) {
  drawClass = name;
  viewer.label = name;
  for (const [index, button] of [...element("classes").querySelectorAll("button")].entries()) button.ariaPressed = String(classKeys[index] === name);
}

function setTool(tool) {
  const to = viewer.tool === tool ? "pan" : tool;
  viewer.tool = to;
  for (const name of ["pan", "box", "brush"]) element(`tool-${name}`).setAttribute("aria-pressed", String(name === to));
  element("picture").dataset.tool = to;
  element("classes-title").textContent = to === "pan" ? "Decide with a class" : "Class that is drawn";
  setDrawClass(to === "pan" ? null : (drawClass ?? items[at]?.row.defect_class ?? classKeys[0] ?? "defect"));
}

function toggleHeat() {
  const slider = element("heat");
  const off = Number(slider.value) === 0;
  if (!off) slider.dataset.before = slider.value;
  slider.value = off ? (slider.dataset.before ?? "55") : "0";
  setHeat();
}

function setHeat() {
  viewer.heatOpacity = Number(element("heat").value) / 100;
  viewer.redraw();
}

const KEYS = {
  c: () => decide("confirmed"),
  f: () => decide("false_reject"),
  e: () => decide("escape"),
  l: () => decide("limit_sample"),
  u: () => undo(),
  ArrowRight: () => go(1),
  n: () => go(1),
  ArrowLeft: () => go(-1),
  p: () => go(-1),
  h: () => toggleHeat(),
  b: () => setTool("box"),
  m: () => setTool("brush"),
  v: () => chooseView((view + 1) % (items[at]?.detail?.looks.length || 1)),
  g: () => toggleGrid(),
  a: () => grid && [...element("tiles").children].forEach((tile) => choose(tile, true)),
  "0": () => viewer.fit(),
  "+": () => viewer.zoomTo(viewer.zoom * 1.5),
  "-": () => viewer.zoomTo(viewer.zoom / 1.5),
  "?": () => element("help").showModal(),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || element("help").open) return;
  if (event.target.closest("input:not([type=range]), select, textarea")) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  if (/^[1-9]$/.test(event.key)) classAt(Number(event.key) - 1);
  else {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (!(key in KEYS) || (event.target.matches("input[type=range]") && key.startsWith("Arrow"))) return;
    if (event.repeat && !key.startsWith("Arrow")) return; // a key held down decides one part, not fifty
    KEYS[key]();
  }
  event.preventDefault();
});

const BUTTONS = {
  confirm: "c", "false-reject": "f", escape: "e", "limit-sample": "l", undo: "u", previous: "ArrowLeft", next: "ArrowRight",
  "grid-button": "g", "help-button": "?", "zoom-in": "+", "zoom-out": "-", "zoom-fit": "0", "tool-box": "b", "tool-brush": "m",
};
for (const [id, key] of Object.entries(BUTTONS)) element(id).addEventListener("click", () => KEYS[key]());
element("tool-pan").addEventListener("click", () => setTool("pan"));
element("help-close").addEventListener("click", () => element("help").close());
element("heat").addEventListener("input", setHeat);
for (const id of ["kind", "class-filter", "recipe-filter", "order"]) {
  element(id).addEventListener("change", (event) => {
    event.target.blur(); // the keys decide parts again
    restart().catch((error) => toast(error.message));
  });
}

/** New rejects come by themselves, and what is before this tab stays lent to it. */
async function refresh() {
  const answer = await api("POST", "/api/v1/queue/lend", { ...wanted(1), ...(cursor === null ? {} : { after: cursor }) });
  showWaiting(answer.waiting);
  if (answer.items.length > 0) {
    ended = false;
    const empty = items[at] === undefined;
    await more();
    if (empty && !grid) show();
    else ahead();
  }
}

/** A queue that hears nothing says so, once, until it hears again. */
function silent(error) {
  if (hears) toast(`${error.message}: what waits is not known, and these parts may be shown to others`);
  hears = false;
}

function heard() {
  hears = true;
}

async function renew() {
  const open_ = items.slice(at, at + LENT).filter((item) => item.done === null);
  if (open_.length > 0) await api("POST", "/api/v1/queue/lend", { ...wanted(Math.min(200, open_.length + LENT)) });
}

window.addEventListener("pagehide", () => {
  const headers = { "Content-Type": "application/json", ...(me?.csrf ? { "X-CSRF-Token": me.csrf } : {}) };
  fetch("/api/v1/queue/give-back", { method: "POST", headers, body: JSON.stringify({ reader }), keepalive: true });
});

async function start() {
  me = await open("queue");
  const choices = await api("GET", "/api/v1/choices");
  for (const [id, values] of [["class-filter", choices.defect_classes], ["recipe-filter", choices.recipes]]) {
    element(id).append(...values.map((value) => make("option", { value }, value)));
  }
  classKeys = choices.class_keys;
  element("classes").replaceChildren(
    ...classKeys.map((name, index) => {
      const button = make("button", { className: "button small", type: "button" }, make("kbd", {}, String(index + 1)), ` ${name}`);
      button.addEventListener("click", () => classAt(index));
      return make("li", {}, button);
    }),
  );
  const asked = new URLSearchParams(location.search);
  for (const [name, id] of [["kind", "kind"], ["class", "class-filter"], ["recipe", "recipe-filter"], ["order", "order"]]) {
    if (asked.has(name)) element(id).value = asked.get(name);
  }
  setHeat();
  await more();
  show();
  setInterval(() => refresh().then(heard, silent), POLL_MS);
  setInterval(() => renew().then(heard, silent), RENEW_MS);
}

start().catch((error) => toast(error.message));
