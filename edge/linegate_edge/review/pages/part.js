// One part: its views, every decision and who made it, what judged it, and its evidence to take away.

import { api, element, make, moment, open, toast } from "/assets/shell.js";
import { Viewer, load } from "/assets/viewer.js";

const WORDS = { pass: "Passed", fail: "Failed", undecided: "Undecided" };
const NAMES = { confirmed: "Confirmed", false_reject: "False reject", escape: "Escape", limit_sample: "Limit sample" };

function pairs(id, rows) {
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  element(id).replaceChildren(
    ...known.map(([name, value, kind]) => make("div", {}, make("dt", {}, name), make("dd", { className: kind ?? "" }, String(value)))),
  );
}

async function showLook(look, message, decisions) {
  const canvas = make("canvas", { tabIndex: 0, role: "img", ariaLabel: `View ${look.view}: ${message.reason_text}` });
  const heat = make("input", { type: "range", min: 0, max: 100, value: 40, ariaLabel: `Heat map of view ${look.view}` });
  const score = message.score === null ? message.reason_text : `score ${message.score.toPrecision(4)}, threshold ${message.threshold.toPrecision(4)}`;
  const bar = make("div", { className: "bar" }, make("strong", {}, look.view), make("span", { className: "hint" }, `${message.camera} · ${score}`), heat);
  element("looks").append(make("article", { className: "panel look" }, bar, canvas));
  const viewer = new Viewer(canvas);
  heat.addEventListener("input", () => {
    viewer.heatOpacity = Number(heat.value) / 100;
    viewer.redraw();
  });
  viewer.heatOpacity = 0.4;
  let loaded;
  try {
    loaded = await load(look, canvas);
  } catch (error) {
    loaded = { look, blob: null, fit: null, heat: null, size: [4, 3], trouble: error.message };
  }
  viewer.show(loaded, message.regions);
  const last = decisions.at(-1);
  if (last?.disposition != null) viewer.put(last.regions.filter((region) => region.view === look.view));
}

function showHistory({ part, message, decisions }) {
  const verdict = make("li", {}, make("strong", {}, `Station: ${WORDS[message.decision].toLowerCase()}`), make("p", { className: "hint" }, `${moment(message.time.decided)} · ${message.reason_text}`));
  const steps = decisions.map((decision) => {
    const what = decision.disposition === null ? "Undone" : NAMES[decision.disposition] + (decision.defect_class ? `, ${decision.defect_class}` : "");
    const drawn = [decision.regions.length > 0 ? `${decision.regions.length} regions` : "", decision.masks.length > 0 ? `mask of ${decision.masks.join(", ")}` : ""].filter(Boolean);
    const step = make("li", {}, make("strong", {}, what), make("p", { className: "hint" }, `${decision.by}, ${moment(decision.at)}${drawn.length > 0 ? ` · ${drawn.join(", ")}` : ""}`));
    if (decision.comment) step.append(make("p", {}, decision.comment));
    step.dataset.current = String(decision.number === part.decision_number && decision.disposition !== null);
    return step;
  });
  element("history").replaceChildren(verdict, ...steps);
}

async function start() {
  await open("parts");
  const id = new URLSearchParams(location.search).get("id") ?? "";
  const found = await api("GET", `/api/v1/parts/${encodeURIComponent(id)}`);
  const { message } = found;
  document.title = `${found.part.serial} · Linegate`;
  element("serial").textContent = found.part.serial;
  element("word").textContent = WORDS[message.decision];
  element("word").dataset.decision = message.decision;
  element("reason").textContent = message.reason_text;
  element("download").href = `/api/v1/parts/${encodeURIComponent(id)}/evidence.zip`;
  pairs("identity", [
    ["Serial", `${message.part.serial} (${message.part.serial_source})`], ["Type", message.part.type], ["Order", message.part.order], ["Batch", message.part.batch],
    ["Supplier lot", message.part.supplier_lot], ["Carrier", message.part.carrier], ["Attempt", message.part.attempt], ["Captured", moment(message.time.captured)],
    ["Decided", moment(message.time.decided)], ["Station", message.station], ["Sequence", message.sequence], ["Mode", message.mode], ["Verdict id", message.verdict_id, "digest"],
  ]);
  const { provenance } = message;
  pairs("provenance", [
    ["Recipe", provenance.recipe], ["Recipe digest", provenance.recipe_digest, "digest"], ["Package", `${provenance.package}@${provenance.package_version}`],
    ["Package digest", provenance.package_digest, "digest"], ["Threshold", provenance.threshold_version], ["Linegate", provenance.software_version],
    ...message.views.filter((view) => view.image_sha256 !== null).map((view) => [`Image ${view.view}`, view.image_sha256, "digest"]),
    ["Latency", Object.entries(message.latency_ms).map(([stage, ms]) => `${stage} ${ms.toFixed(1)} ms`).join(", ")],
  ]);
  showHistory(found);
  for (const [index, look] of found.looks.entries()) showLook(look, message.views[index], found.decisions);
}

start().catch((error) => toast(error.message));
