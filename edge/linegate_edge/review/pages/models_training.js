// Training runs with their progress and log, and data set versions.

import { api, make, moment, toast } from "/assets/shell.js";
import { ask } from "/assets/models_ask.js";
import { gateSign } from "/assets/models_candidate.js";

const WORDS = { running: "Running", done: "Done", failed: "Failed", cancelled: "Cancelled" };
const unfolded = new Set();

export function runs(items, context) {
  if (items.length === 0) return [make("li", { className: "panel note hint" }, "Nothing was trained here yet.")];
  return items.map((item) => run(item, context));
}

function run(item, context) {
  const { run: record, progress, gate } = item;
  const bar = make("div", { className: "bar" });
  const made = make(
    "li",
    { className: "panel run" },
    make("div", { className: "heading" }, make("h3", {}, `Run ${record.number}`), make("span", { className: `mark mark-${record.state}` }, WORDS[record.state]), ...(gate ? [gateSign(gate)] : [])),
    make("p", { className: "hint" }, `${record.version} · beside ${record.champion} · by ${record.by}, ${moment(record.started_at)}`),
  );
  if (record.state === "running") {
    const share = progress?.share ?? 0;
    const meter = make("div", { className: "progress", role: "progressbar", ariaValueMin: "0", ariaValueMax: "100", ariaValueNow: String(Math.round(100 * share)), ariaLabel: `Run ${record.number}` }, make("span", {}));
    meter.style.setProperty("--share", `${100 * share}%`);
    made.append(meter, make("p", { className: "step" }, make("strong", {}, `${Math.round(100 * share)} %`), ` ${progress ? `${progress.step}: ${progress.text}` : "starting"}`));
    if (context.may("models_write")) bar.append(button("Cancel", "danger small", `cancel-${record.number}`, () => cancel(record, context)));
  }
  if (record.problem) made.append(make("p", { className: "refused" }, record.problem));
  if (record.state === "done" && item.candidate_digest && !item.on_shelf && context.may("models_write")) {
    bar.append(button("Put the candidate on the shelf", "primary small", `bring-${record.number}`, (event) => bring(event, record, context)));
  }
  if (bar.childElementCount > 0) made.append(bar);
  made.append(log(item));
  return made;
}

function log(item) {
  const number = item.run.number;
  const text = make("pre", { className: "log", tabIndex: 0 }, item.log.join("\n"));
  const box = make("details", { open: unfolded.has(number) }, make("summary", { id: `log-${number}` }, "Log"), text);
  const fill = async () => {
    const whole = await api("GET", `/api/v1/training/${number}?lines=200`).catch(() => null);
    if (whole) text.textContent = whole.log.join("\n") || "nothing yet";
    text.scrollTop = text.scrollHeight;
  };
  box.addEventListener("toggle", () => {
    if (box.open) unfolded.add(number);
    else unfolded.delete(number);
    if (box.open) fill();
  });
  if (box.open) fill();
  return box;
}

function button(text, kind, id, work) {
  const made = make("button", { className: `button ${kind}`, type: "button", id }, text);
  made.addEventListener("click", work);
  return made;
}

async function bring(event, record, context) {
  event.target.disabled = true;
  try {
    await context.bring(record);
  } catch (error) {
    toast(error.message);
    event.target.disabled = false;
  }
}

function cancel(record, context) {
  ask({
    title: `Cancel run ${record.number}?`,
    text: ["What it has learned so far is lost."],
    yes: "Cancel the run",
    danger: true,
    work: () => context.act(() => api("POST", `/api/v1/training/${record.number}/cancel`), `Run ${record.number} is being cancelled`),
  });
}

export function datasets({ items, broken }) {
  if (items.length + broken.length === 0) return [make("li", { className: "hint" }, "No version yet: build one from reviewed parts.")];
  return [...items.map(version), ...broken.map((text) => make("li", { className: "row refused" }, text))];
}

function version(item) {
  const counts = (by) => Object.entries(by).map(([label, count]) => `${label} ${count}`).join(", ") || "none";
  const conflicts = [item.conflicts > 0 ? `${item.conflicts} conflicts to settle` : null, item.left_out > 0 ? `${item.left_out} left out` : null].filter(Boolean);
  return make(
    "li",
    { className: "row" },
    make("p", {}, make("strong", {}, `${item.name} v${item.number}`), " ", make("code", { title: item.digest }, item.digest.slice(0, 12))),
    make("p", { className: "hint" }, `Learn: ${counts(item.train)}. Test: ${counts(item.test)}.`),
    make("p", { className: "hint" }, `${moment(item.created_at)} by ${item.created_by}${item.note ? `: ${item.note}` : ""}`),
    ...(conflicts.length > 0 ? [make("p", { className: "hint warn" }, conflicts.join(", "))] : []),
  );
}
