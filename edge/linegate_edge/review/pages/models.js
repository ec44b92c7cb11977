// The models of a station: what judges where, candidates with their comparison, trainings, data sets, promotions.
//
// Rules kept here: a section is drawn anew only when what it shows has changed, so that focus and open parts stay; every change
// is asked for in a dialog that says what will happen; a refusal is shown in the station's own words.

import { api, element, make, moment, open, say, toast, turns } from "/assets/shell.js";
import { candidate, chip, closePictures } from "/assets/models_candidate.js";
import { ask } from "/assets/models_ask.js";
import { datasets, runs } from "/assets/models_training.js";

const MODELS_EVERY_MS = 4000;
const RUNS_EVERY_MS = 1000;
const takeTurn = turns();
let underWay = 0;
const drawn = new Map();
const state = { models: null, promotions: [], training: { items: [] }, datasets: { items: [], broken: [] } };

const me = await open("models");
const may = (permission) => me.permissions.includes(permission);

/** Draw a section if what it shows is not what was drawn last; the focus stays where it was, by id. */
function draw(id, content, nodes) {
  const text = JSON.stringify(content);
  if (drawn.get(id) === text) return;
  drawn.set(id, text);
  const focused = document.activeElement?.id;
  element(id).replaceChildren(...nodes());
  if (focused && document.activeElement?.id !== focused) element(focused)?.focus();
}

async function refresh() {
  const newest = takeTurn();
  underWay += 1;
  try {
    const [models, promotions] = await Promise.all([api("GET", "/api/v1/models"), api("GET", "/api/v1/promotions")]);
    if (!newest()) return;
    state.models = models;
    state.promotions = promotions.items;
    const shadowed = models.models.filter((model) => model.shadows.length > 0 || model.state !== "champion");
    const answers = await Promise.all(shadowed.map((model) => api("GET", `/api/v1/models/${model.digest}/shadow`)));
    if (!newest()) return;
    state.shadows = new Map(answers.map((answer) => [answer.digest, answer]));
    drawAll();
    document.documentElement.dataset.link = "open";
  } catch (error) {
    if (newest()) lost(error);
  } finally {
    underWay -= 1;
  }
}

async function refreshRuns() {
  try {
    state.training = await api("GET", "/api/v1/training");
    drawRuns();
  } catch (error) {
    lost(error);
  }
}

async function refreshDatasets() {
  state.datasets = await api("GET", "/api/v1/datasets").catch(() => state.datasets);
  draw("datasets", state.datasets, () => datasets(state.datasets));
  drawStart();
}

function lost(error) {
  if (document.documentElement.dataset.link !== "lost") toast(error.message);
  document.documentElement.dataset.link = "lost";
}

function drawAll() {
  const { models, views, broken } = state.models;
  draw("views", views, () => views.map(view));
  const others = models.filter((model) => model.state !== "champion");
  const champions = models.filter((model) => model.state === "champion");
  draw("candidates", [others, champions, broken, [...state.shadows]], () => [
    ...others.map((model) => candidate(model, context(model))),
    ...(others.length === 0 ? [empty("No candidates yet", "Train one from a data set version, or bring a package as a zip.")] : []),
    ...broken.map((known) => make("p", { className: "panel note bad" }, `${known.name} ${known.version}: ${known.problem}`)),
    ...(champions.length > 0 ? [make("h3", { className: "label between" }, "Champions")] : []),
    ...champions.map((model) => candidate(model, context(model))),
  ]);
  draw("promotions", state.promotions, () =>
    state.promotions.length === 0 ? [make("li", { className: "hint" }, "Nothing was promoted here yet.")] : state.promotions.map(promotion));
  drawStart();
}

const context = (model) => ({
  me,
  may,
  views: state.models.views,
  needed: state.models.approvals_needed,
  shadow: state.shadows.get(model.digest),
  act,
});

function empty(title, text) {
  return make("div", { className: "panel empty" }, make("p", {}, make("strong", {}, title)), make("p", { className: "hint" }, text));
}

/** Do a change, tell it, and show what came of it. */
async function act(work, done) {
  await work();
  say(done);
  toast(done, "done");
  await refresh();
}

// -- in service ---------------------------------------------------------------------------------------------------------

function view(known) {
  const since = state.promotions.find((row) => row.number === known.promotion);
  const shadow = state.models.models.find((model) => model.digest === known.shadow);
  const facts = [
    fact("Threshold", number(known.threshold), known.threshold_version.startsWith("station") ? "of STATION.toml" : "the package's own"),
    fact("Undecided band", known.undecided_below > 0 ? number(known.undecided_below) : "none", "below the threshold"),
    fact("Runs on", known.provider, "execution provider"),
    fact("Since", since ? moment(since.at) : "STATION.toml", since ? `promotion ${since.number} by ${since.by}` : "as the settings say"),
  ];
  const back = make("button", { className: "button danger small", type: "button", id: `back-${known.promotion}` }, "Roll back");
  if (since) back.addEventListener("click", () => rollBack(since));
  return make(
    "li",
    { className: "panel view" },
    make("p", { className: "where" }, make("span", {}, known.recipe), " / ", make("span", {}, known.view)),
    make("p", { className: "what" }, make("strong", {}, name(known.package)), " ", make("code", {}, known.digest.slice(0, 12))),
    make("dl", { className: "facts" }, ...facts),
    make("div", { className: "bar" }, ...(since && may("approve") ? [back] : []), ...(shadow ? [chip("shadow", `${shadow.name} ${shadow.version} in the shadow`)] : [])),
  );
}

function fact(term, value, note) {
  return make("div", {}, make("dt", {}, term), make("dd", {}, value, make("small", {}, note)));
}

const name = (reference) => reference.replace(/ \([0-9a-f]{12}\)$/, "");
const number = (value) => String(Number(value.toPrecision(4)));

function rollBack(row) {
  ask({
    title: "Roll back?",
    text: [`${row.recipe} / ${row.view}: ${name(row.former)} (${row.former_digest.slice(0, 12)}) judges again from the next part on, in the place of ${name(row.package)}.`],
    yes: "Roll back",
    danger: true,
    reason: { label: "Why (goes into the audit trail)", needed: false },
    work: ({ reason }) => act(() => api("POST", `/api/v1/promotions/${row.number}/roll-back`, { reason }), `Rolled back: ${name(row.former)} judges ${row.recipe} / ${row.view}`),
  });
}

function promotion(row) {
  const words = row.rolls_back === null ? "promoted" : `rolled back (${row.rolls_back})`;
  return make(
    "li",
    { className: "row" },
    make("p", {}, make("strong", {}, name(row.package)), " ", make("code", {}, row.digest.slice(0, 12)), row.in_force ? chip("champion", "in force") : ""),
    make("p", { className: "hint" }, `${words} for ${row.recipe} / ${row.view} by ${row.by}, ${moment(row.at)}`),
    ...(row.override_reason ? [make("p", { className: "hint" }, `In spite of the gate: “${row.override_reason}”`)] : []),
  );
}

// -- training -----------------------------------------------------------------------------------------------------------

function drawRuns() {
  const { items, why_not: whyNot } = state.training;
  draw("runs", items, () => runs(items, { may, act: actOnRun, bring }));
  element("why-not").hidden = whyNot === null;
  element("why-not").textContent = whyNot ?? "";
  drawStart();
}

async function actOnRun(work, done) {
  await work();
  say(done);
  await refreshRuns();
}

function bring(run) {
  return act(() => api("POST", "/api/v1/models", { run: run.number }), `The candidate of run ${run.number} is on the shelf`).then(refreshRuns);
}

function drawStart() {
  const versions = state.datasets.items;
  const idle = !state.training.items.some((item) => item.run.state === "running");
  element("start").hidden = !may("models_write") || state.training.why_not !== null || versions.length === 0 || !idle;
  draw("start-version", versions.map((item) => item.folder), () =>
    versions.map((item) => make("option", { value: item.folder }, `${item.name} v${item.number}, ${total(item.train)} to learn from, ${total(item.test)} to test`)));
  const views = state.models?.views ?? [];
  const champions = [...new Map(views.map((known) => [known.digest, known])).values()];
  draw("start-champion", champions, () => champions.map((known) => make("option", { value: known.digest }, `${name(known.package)}, ${known.recipe} / ${known.view}`)));
}

const total = (counts) => Object.values(counts).reduce((sum, count) => sum + count, 0);

element("start").addEventListener("submit", (event) => {
  event.preventDefault();
  const version = element("start-version").value;
  const champion = element("start-champion").value;
  ask({
    title: "Train a candidate?",
    text: [`${version}`, "It runs beside the line at the lowest priority, and takes minutes to hours. The line goes before it."],
    yes: "Train",
    work: () => actOnRun(() => api("POST", "/api/v1/training", { version, champion }), "The training has begun"),
  });
});

element("upload-file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  event.target.value = "";
  if (file === undefined) return;
  element("upload").ariaBusy = "true";
  try {
    await act(() => upload(file), `${file.name} is on the shelf`);
  } catch (error) {
    toast(error.message);
  } finally {
    element("upload").ariaBusy = null;
  }
});

/** Send a file as it is: `api` sends JSON alone. */
async function upload(file) {
  const headers = { "Content-Type": "application/zip", Accept: "application/json", ...(me.csrf ? { "X-CSRF-Token": me.csrf } : {}) };
  const response = await fetch("/api/v1/models", { method: "POST", headers, body: file });
  if (!response.ok) throw new Error((await response.json().catch(() => null))?.error ?? `the station answered ${response.status}`);
}

element("freeze").addEventListener("click", () =>
  ask({
    title: "Freeze what was reviewed?",
    text: ["All decisions so far become a data set version, which never changes. Parts of its test set stay in the test set of all later ones."],
    yes: "Freeze",
    reason: { label: "Note", needed: false },
    work: async ({ reason }) => {
      const name = state.datasets.items[0]?.name;
      const made = await api("POST", "/api/v1/datasets", { note: reason, ...(name ? { name } : {}) });
      const text = made.new ? `${made.name} v${made.number} is frozen` : `Nothing new was reviewed: ${made.name} v${made.number} stands`;
      say(text);
      toast([text, ...made.left_out.slice(0, 3)].join(". "), "done");
      await refreshDatasets();
    },
  }));

element("freeze").hidden = !may("models_write");
element("upload").hidden = !may("models_write");
closePictures();
await Promise.all([refresh(), refreshRuns(), refreshDatasets()]);
document.documentElement.dataset.ready = "true";
setInterval(() => {
  if (underWay === 0) refresh();
}, MODELS_EVERY_MS);
setInterval(() => {
  if (!document.hidden) refreshRuns();
}, RUNS_EVERY_MS);
setInterval(refreshDatasets, 10 * MODELS_EVERY_MS);
