// The page of quality: asks the station, and shows what it answers as numbers, drawings and tables.
//
// Rules kept here: the page computes no statistic; what is drawn is also there as a table; a block that gets an error says it in
// its own place, and the others go on; what was chosen stands in the address, so that a view can be sent to somebody.

import { api, element, make, open, say, toast, turns } from "/assets/shell.js";
import { controlChart, intervals, keepDrawn, paretoChart, thresholdCurves } from "/assets/quality_charts.js";

const CHOICES = ["days", "package", "period", "by", "last"];
const BARS = 12;
const SIGNALS = {
  above: "above the upper limit",
  below: "below the lower limit",
  run_above: "eighth or later in a row above the centre",
  run_below: "eighth or later in a row below the centre",
};
const UNKNOWN = "(not stated)";

const whole = new Intl.NumberFormat("en");
let zone = "UTC";

const percent = (share) => (share === null ? "–" : `${digits(100 * share)}\u00a0%`);
const number = (value) => (value === null ? "–" : Number(value.toPrecision(4)).toString());
const small = (p) => (p === null ? "–" : p < 0.0001 ? "< 0.0001" : Number(p.toPrecision(2)).toString());
const plural = (count, word) => `${whole.format(count)} ${word}${count === 1 ? "" : "s"}`;
const clock = (iso, options) => new Intl.DateTimeFormat("en-GB", { timeZone: zone, ...options }).format(new Date(iso));
const dateTime = (iso) => clock(iso, { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" });
const words = (name) => (name ?? UNKNOWN).replaceAll("_", " ");

function digits(value) {
  if (value === 0 || value === 100) return String(value);
  // 99.96 must not become 100: what is not whole is not shown as whole.
  const places = Math.min(value, 100 - value) < 1 ? 2 : 1;
  return Number(value.toFixed(places)).toString();
}

const setText = (id, text) => (element(id).textContent = text);

/** A table: heads are texts (numbers end with "#"), rows arrays of texts or nodes, the first of each its head. */
function table(caption, heads, rows) {
  const isNumber = heads.map((head) => head.endsWith("#"));
  const cell = (tag, content, place, more = {}) => make(tag, { className: isNumber[place] ? "number" : "", ...more }, content);
  const head = make("tr", {}, ...heads.map((text, place) => cell("th", text.replace("#", ""), place, { scope: "col" })));
  const body = rows.map((row) => make("tr", {}, ...row.map((content, place) => cell(place ? "td" : "th", content, place, place ? {} : { scope: "row" }))));
  return make("table", { className: "table" }, make("caption", {}, caption), make("thead", {}, head), make("tbody", {}, ...body));
}

// -- asking -------------------------------------------------------------------------------------------------------

function chosen() {
  return Object.fromEntries(CHOICES.map((name) => [name, element(name).value]));
}

function question(path, ...names) {
  const values = chosen();
  const query = new URLSearchParams(names.filter((name) => values[name] !== "").map((name) => [name, values[name]]));
  return `/api/v1/quality/${path}?${query}`;
}

const takers = {};

/** Fill a block with the answer of a question; an older answer that comes late is dropped. */
async function fill(block, path, show) {
  const panel = element(block);
  const newest = (takers[block] ??= turns())();
  panel.setAttribute("aria-busy", "true");
  try {
    const answer = await api("GET", path);
    if (newest()) show(answer);
  } catch (error) {
    if (!newest()) return;
    const place = panel.querySelector(".plot, .scroll");
    if (place) place.replaceChildren(make("p", { className: "nothing error" }, error.message));
    else toast(error.message);
  } finally {
    if (newest()) panel.removeAttribute("aria-busy");
  }
}

const BLOCKS = {
  tiles: () => fill("tiles", question("yield", "days", "package"), showYield),
  chart: () => fill("chart", question("chart", "days", "package", "period"), showChart),
  pareto: () => fill("pareto", `${question("pareto", "days", "package", "by")}&limit=${BARS}`, showPareto),
  reviews: () => fill("reviews", question("reviews", "days", "package"), showReviews),
  threshold: () => fill("threshold", question("threshold", "package", "last"), showThreshold),
  drift: () => fill("drift", question("drift", "days"), showDrift),
};

async function ask(...blocks) {
  await Promise.all(blocks.map((name) => BLOCKS[name]()));
}

// -- the numbers on top -------------------------------------------------------------------------------------------

function showYield({ span, now, before, packages }) {
  zone = span.time_zone === "local" ? undefined : span.time_zone;
  setText("span", `${dateTime(span.since)} – ${dateTime(span.until)}, ${span.time_zone}; each part at its first inspection`);
  setText("yield", percent(now.first_pass_yield));
  const change = now.first_pass_yield === null || before.first_pass_yield === null ? null : 100 * (now.first_pass_yield - before.first_pass_yield);
  const signed = change === null ? "" : Math.abs(change) < 0.005 ? "as" : `${change > 0 ? "+" : "−"}${digits(Math.abs(change))} points on`;
  setText("yield-more", change === null ? "no parts in the time before" : `${signed} the time before (${percent(before.first_pass_yield)})`);
  setText("parts", whole.format(now.parts));
  setText("parts-more", `${whole.format(now.passed)} passed`);
  for (const name of ["failed", "undecided"]) {
    setText(name, whole.format(now[name]));
    setText(`${name}-more`, now.parts ? `${percent(now[name] / now.parts)} of parts` : "");
  }
  const select = element("package");
  const kept = select.value;
  const options = packages.toReversed().map((name) => make("option", { value: name }, name));
  select.replaceChildren(make("option", { value: "" }, "All packages"), ...options);
  select.value = packages.includes(kept) ? kept : "";
}

// -- the control chart --------------------------------------------------------------------------------------------

function showChart({ points, centre, why, kind, period, preliminary }) {
  const named = points.map((point) => {
    const when = period === "day" ? clock(point.begin, { weekday: "short", day: "numeric", month: "short" }) : `${dateTime(point.begin)}–${clock(point.end, { hour: "2-digit", minute: "2-digit" })}`;
    const signals = point.signals.map((name) => SIGNALS[name]).join(", ");
    const label = `${when}: ${percent(point.share)}, ${whole.format(point.rejects)} of ${plural(point.parts, "part")}${signals && `, ${signals}`}`;
    const date = period === "hour" && points.length < 30 ? clock(point.begin, { hour: "2-digit", minute: "2-digit" }) : clock(point.begin, { day: "numeric", month: "short" });
    return { ...point, when, label, date, signalWords: signals };
  });
  const marked = named.filter((point) => point.signals.length).length;
  const label = `Control chart with ${plural(points.length, "point")}, ${marked} marked; use the arrow keys`;
  const tell = (place) => setText("chart-readout", named[place].label);
  keepDrawn(element("chart").querySelector(".plot"), "No parts in this time.", points.length ? (width) => controlChart(width, { points: named, centre, percent, label }, tell) : null);
  setText("chart-readout", points.length ? `Centre ${percent(centre)}; ${marked ? `${plural(marked, "point")} to look into` : "no signal"}` : "\u00a0");
  const early = preliminary && points.length ? " Fewer than 20 points: the limits are preliminary." : "";
  setText("chart-why", points.length ? `${why[0].toUpperCase()}${why.slice(1)}.${early}` : "");
  const rows = named.map((point) => [point.when, whole.format(point.parts), whole.format(point.rejects), percent(point.share), percent(point.low), percent(point.high), point.signalWords || "–"]);
  const name = kind === "p" ? "p chart" : "Laney p′ chart";
  element("chart-table").replaceChildren(table(`${name}, centre ${percent(centre)}`, ["Period", "Parts#", "Rejects#", "Share#", "Lower limit#", "Upper limit#", "Signal"], rows));
}

// -- Pareto -------------------------------------------------------------------------------------------------------

function showPareto({ by, bars, rejects, rest, rest_groups: restGroups }) {
  const named = bars.map((bar) => {
    const name = by === "defect_class" ? words(bar.name) : bar.name ?? UNKNOWN;
    const rate = bar.reject_rate === null ? "" : `, ${percent(bar.reject_rate)} of its ${plural(bar.parts, "part")}`;
    const split = bar.undecided ? ` (${whole.format(bar.failed)} failed, ${whole.format(bar.undecided)} undecided)` : "";
    return { ...bar, name, label: `${name}: ${plural(bar.rejects, "reject")}${split}, ${percent(bar.share)}, together ${percent(bar.cumulative)}${rate}` };
  });
  const label = `Pareto chart of ${plural(rejects, "reject")} in ${plural(bars.length, "group")}; use the arrow keys`;
  const tell = (place) => setText("pareto-readout", named[place].label);
  keepDrawn(element("pareto").querySelector(".plot"), "No rejects in this time.", bars.length ? (width) => paretoChart(width, { bars: named, total: rejects, percent, label }, tell) : null);
  const keys = [["failed", "failed"], ["undecided", "undecided"], ["sum", "share so far"]].map(([kind, text]) => {
    const key = make("span", { className: "key" }, text);
    key.dataset.kind = kind;
    return key;
  });
  element("pareto-readout").replaceChildren(plural(rejects, "reject"), ...(bars.length ? keys : []));
  setText("pareto-rest", restGroups ? `${plural(restGroups, "more group")} with ${plural(rest, "reject")} not shown.` : "");
  const rows = named.map((bar) => [bar.name, whole.format(bar.failed), whole.format(bar.undecided), percent(bar.share), percent(bar.cumulative), bar.parts === null ? "–" : whole.format(bar.parts), percent(bar.reject_rate)]);
  element("pareto-table").replaceChildren(table("Rejects, the most first", ["Group", "Failed#", "Undecided#", "Share#", "Cumulative#", "Parts#", "Reject rate#"], rows));
}

// -- reviews ------------------------------------------------------------------------------------------------------

const interval = (found) => (found.total ? `${whole.format(found.count)} of ${whole.format(found.total)}, ${percent(found.share)} (${percent(found.low)} to ${percent(found.high)})` : "nothing reviewed yet");

function showReviews(answer) {
  const { false_rejects: falseRejects, audit, close } = answer;
  setText("false-rejects", percent(falseRejects.share));
  setText("false-rejects-more", falseRejects.total ? `of ${whole.format(falseRejects.total)} reviewed; ${percent(falseRejects.low)} to ${percent(falseRejects.high)}` : "no reject reviewed yet");
  setText("escapes", percent(audit.share));
  const none = answer.audit_share ? "no part of the sample reviewed" : "no audit sample: [review] audit_share";
  setText("escapes-more", audit.total ? `of ${whole.format(audit.total)} audited; ${percent(audit.low)} to ${percent(audit.high)}` : none);
  const rows = [
    ["Rejects that were good", falseRejects],
    ["Escapes in the audit sample", audit],
    ["Escapes close to the threshold", close],
  ].map(([name, found]) => ({ ...found, name, words: interval(found) }));
  const label = "Shares with their intervals of 95 %; use the arrow keys";
  keepDrawn(element("reviews").querySelector(".plot"), "", (width) => intervals(width, { rows, percent, label }, () => {}));
  const waiting = answer.audit_waiting ? ` ${plural(answer.audit_waiting, "part")} of the sample ${answer.audit_waiting === 1 ? "waits" : "wait"} in the queue.` : "";
  setText("reviews-note", `Clopper–Pearson intervals of 95 %. The audit sample is a random ${percent(answer.audit_share)} of passed parts that are not close to the threshold.${waiting}`);
  const heads = ["Reviewed#", "Confirmed#", "False rejects#", "Escapes#", "Limit samples#"];
  const row = (item, name) => [name, ...["reviewed", "confirmed", "false_rejects", "escapes", "limit_samples"].map((key) => whole.format(item[key]))];
  element("reviews-table").replaceChildren(table("Reviewed parts by class, or by reason where there is none", ["Class", ...heads], answer.by_class.map((item) => row(item, words(item.name)))));
  element("reviews-periods").replaceChildren(table("By day of the plant", ["Day", ...heads], answer.by_period.map((item) => row(item, clock(item.name, { weekday: "short", day: "numeric", month: "short" })))));
  element("reviews-packages").replaceChildren(table("Escapes in the audit sample by package", ["Package", "Escapes"], answer.audit_by_package.map((item) => [item.package, interval(item.escapes)])));
}

// -- the threshold ------------------------------------------------------------------------------------------------

let curves = null;

function showThreshold(answer) {
  const points = answer.breakpoints;
  const scores = points.map((point) => point.threshold).filter((score) => score !== null);
  if (answer.current !== null) scores.push(answer.current);
  const slider = element("slider");
  slider.disabled = element("reset").disabled = answer.reviewed === 0;
  setText("threshold-note", answer.reviewed ? `${answer.note}${answer.limit_samples ? ` ${plural(answer.limit_samples, "limit sample")} left out.` : ""}` : "");
  const rows = points.map((point) => [point.threshold === null ? "above all scores" : number(point.threshold), ...["escapes", "false_rejects", "confirmed", "passes"].map((key) => whole.format(point[key]))]);
  const heads = ["Threshold up to", "Escapes#", "False rejects#", "Confirmed#", "Good, passed#"];
  element("threshold-table").replaceChildren(table(`${plural(answer.reviewed, "reviewed part")} of ${answer.package ?? "no package"}`, heads, rows));
  if (answer.reviewed === 0) {
    curves = null;
    keepDrawn(element("threshold").querySelector(".plot"), "No part of this package was reviewed yet.", null);
    for (const name of ["escapes", "false-rejects", "confirmed", "passes"]) setText(`at-${name}`, "–"), setText(`at-${name}-more`, "");
    return setText("at-words", "\u00a0");
  }
  const [least, most] = [Math.min(...scores), Math.max(...scores)];
  const room = (most - least || Math.abs(most) || 1) * 0.05;
  const [low, high] = [least - room, most + room];
  const step = 10 ** Math.floor(Math.log10((high - low) / 400));
  Object.assign(slider, { min: low, max: high, step });
  curves = { ...answer, points, low, high, move: null, start: answer.current ?? (low + high) / 2 };
  slider.value = curves.start;
  const label = `Escapes and false rejects of ${plural(answer.reviewed, "reviewed part")} at every threshold`;
  keepDrawn(element("threshold").querySelector(".plot"), "", (width) => {
    const drawn = thresholdCurves(width, { points, low, high, current: answer.current, number, label });
    curves.move = drawn.move;
    drawn.move(Number(slider.value));
    return drawn.svg;
  });
  showAt(curves.start);
}

/** The counts at a threshold are those of the first breakpoint at or above it. */
function countsAt(threshold) {
  let [low, high] = [0, curves.points.length - 1];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (curves.points[middle].threshold < threshold) low = middle + 1;
    else high = middle;
  }
  return curves.points[low];
}

function showAt(threshold) {
  const here = countsAt(threshold);
  const now = curves.current === null ? null : countsAt(curves.current);
  for (const key of ["escapes", "false_rejects", "confirmed", "passes"]) {
    const id = `at-${key.replace("_", "-")}`;
    setText(id, whole.format(here[key]));
    const change = now === null ? 0 : here[key] - now[key];
    setText(`${id}-more`, change === 0 ? "" : `${change > 0 ? "+" : "−"}${whole.format(Math.abs(change))}`);
  }
  curves.move?.(threshold);
  const same = threshold === curves.current;
  setText("at-words", same ? `At the present threshold, ${number(threshold)}` : `At ${number(threshold)}${curves.current === null ? "" : `; the present threshold is ${number(curves.current)}`}`);
  element("slider").setAttribute("aria-valuetext", `${number(threshold)}: ${plural(here.escapes, "escape")}, ${plural(here.false_rejects, "false reject")}`);
}

// -- drift --------------------------------------------------------------------------------------------------------

function showDrift({ test, adjustment, packages }) {
  const LEVELS = { stable: "stable", watch: "watch", drift: "drift" };
  const rows = packages.map((item) => {
    const level = make("span", { className: "level" }, LEVELS[item.level] ?? "not tested");
    level.dataset.level = item.level ?? "none";
    return [item.package, level, `${whole.format(item.parts)} against ${item.reference}`, number(item.reference_median), number(item.median), number(item.distance), small(item.p_value), small(item.adjusted_p), number(item.psi), item.note ?? ""];
  });
  const heads = ["Package", "Scores are", "Compared", "Median then#", "Median now#", "D#", "p#", "Adjusted p#", "PSI#", ""];
  const some = rows.some((row) => row.at(-1) !== "");
  const cut = (row) => (some ? row : row.slice(0, -1));
  const place = element("drift-table");
  if (rows.length) place.replaceChildren(table(`Test: ${test}; p adjusted by ${adjustment}`, cut(heads), rows.map(cut)));
  else place.replaceChildren(make("p", { className: "hint" }, "No package has judged parts yet."));
  setText("drift-note", "Watch: adjusted p under 0.05 and a population stability index (PSI) from 0.1 on; drift: from 0.25 on. Many parts make any change certain; PSI says whether it is large.");
}

// -- start --------------------------------------------------------------------------------------------------------

function readAddress() {
  for (const [name, value] of new URLSearchParams(location.search)) {
    if (!CHOICES.includes(name)) continue;
    const select = element(name);
    if (name === "package" && value !== "") select.append(make("option", { value }, value));
    if ([...select.options].some((option) => option.value === value)) select.value = value;
  }
}

function writeAddress() {
  const usual = { days: "7", package: "", period: "shift", by: "defect_class", last: "500" };
  const query = new URLSearchParams(Object.entries(chosen()).filter(([name, value]) => value !== usual[name]));
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
}

function listen(id, ...blocks) {
  element(id).addEventListener("change", async () => {
    writeAddress();
    await ask(...blocks);
    say("Shown");
  });
}

const ALL = Object.keys(BLOCKS);

await open("quality");
readAddress();
listen("days", "tiles", "chart", "pareto", "reviews", "drift");
listen("package", "tiles", "chart", "pareto", "reviews", "threshold");
listen("period", "chart");
listen("by", "pareto");
listen("last", "threshold");
element("choice").addEventListener("submit", async (event) => {
  event.preventDefault();
  await ask(...ALL);
  say("Refreshed");
});
element("slider").addEventListener("input", (event) => showAt(Number(event.target.value)));
element("reset").addEventListener("click", () => {
  element("slider").value = curves.start;
  showAt(curves.start);
  say(element("slider").getAttribute("aria-valuetext"));
});
// The plant's time zone comes with the first answer; what shows moments waits for it.
await ask("tiles");
await ask(...ALL.filter((name) => name !== "tiles"));
document.documentElement.dataset.ready = "true";
