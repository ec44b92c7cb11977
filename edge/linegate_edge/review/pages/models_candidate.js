// One package as a card: gate, numbers beside the champion's, differences, approvals, shadow, and what may be done with it.

import { api, element, make, moment } from "/assets/shell.js";
import { ask } from "/assets/models_ask.js";

const opened = new Set();
const chosenSet = new Map();
const comparisons = new Map();
const STATES = { champion: "Champion", shadow: "In the shadow", candidate: "Candidate", retired: "Retired" };

export function chip(level, text) {
  return make("span", { className: `mark mark-${level}` }, text);
}

export function icon(id) {
  const drawn = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  drawn.setAttribute("class", "icon");
  drawn.setAttribute("aria-hidden", "true");
  const use = document.createElementNS("http://www.w3.org/2000/svg", "use");
  use.setAttribute("href", `#icon-${id}`);
  drawn.append(use);
  return drawn;
}

/** What the gate says, as icon and word. */
export function gateSign(gate) {
  const kind = gate === null ? "open" : gate.go ? "go" : "no-go";
  const words = { open: "Not compared", go: "Gate: go", "no-go": "Gate: no-go" };
  const sign = make("span", { className: "gate" }, icon(kind), words[kind]);
  sign.dataset.gate = kind;
  return sign;
}

export function candidate(model, context) {
  const comparison = model.comparison;
  const card = make("article", { className: "panel candidate", id: `model-${model.digest.slice(0, 12)}` });
  card.dataset.state = model.state;
  card.append(
    make(
      "header",
      {},
      make("div", { className: "title" }, make("h3", {}, `${model.name} ${model.version}`), make("code", { title: model.digest }, model.digest.slice(0, 12))),
      gateSign(comparison?.gate ?? null),
      chip(model.state, STATES[model.state]),
      make("p", { className: "hint origin" }, origin(model)),
    ),
  );
  if (comparison && ["candidate", "shadow"].includes(model.state)) card.append(...compared(model, comparison));
  if (comparison && !["candidate", "shadow"].includes(model.state)) {
    const before = folding(`before-${model.digest}`, `Comparison with the champion before it (${comparison.champion})`, ...compared(model, comparison));
    before.classList.add("before");
    card.append(before);
  }
  card.append(approvals(model, context));
  if (context.shadow && (context.shadow.parts > 0 || context.shadow.places.length > 0)) card.append(shadowed(model, context.shadow));
  card.append(more(model), actions(model, context));
  return card;
}

function origin(model) {
  const trained = model.trained_by ? `trained by ${model.trained_by}, ` : "";
  const brought = model.imported_at ? `on the shelf since ${moment(model.imported_at)}` : "named in STATION.toml";
  return `${trained}${brought} · ${model.task}, ${model.input_wh.join(" × ")} px · learned from ${model.dataset}`;
}

// -- the comparison -----------------------------------------------------------------------------------------------------

function compared(model, comparison) {
  const sets = [
    ["frozen", comparison.frozen, "Frozen test set"],
    ["recent", comparison.recent, `Reviewed last (${comparison.recent_reviews})`],
  ].filter(([, numbers]) => numbers !== null);
  const parts = [];
  if (sets.length > 0) {
    const area = make("div", { className: "numbers" });
    const shown = chosenSet.get(model.digest) ?? sets[0][0];
    const buttons = sets.map(([key, numbers, text]) => {
      const button = make("button", { type: "button", className: "tab", id: `set-${key}-${model.digest.slice(0, 12)}`, ariaPressed: String(key === shown) }, text);
      button.addEventListener("click", () => {
        chosenSet.set(model.digest, key);
        for (const other of buttons) other.ariaPressed = String(other === button);
        area.replaceChildren(table(numbers, comparison));
      });
      return button;
    });
    area.append(table((sets.find(([key]) => key === shown) ?? sets[0])[1], comparison));
    parts.push(make("div", { className: "sets", role: "group", ariaLabel: "Which parts" }, ...buttons, make("span", { className: "hint" }, `of ${comparison.version}`)), area);
  }
  parts.push(rules(comparison.gate));
  if (comparison.differences > 0) parts.push(differences(model, comparison.differences));
  return parts;
}

function table(numbers, comparison) {
  const { champion, candidate: own } = numbers;
  const most = Math.max(0.02, ...[champion, own].flatMap((side) => [side.escapes, side.false_rejects, side.undecided_good].map((one) => one.ci95?.[1] ?? 0)));
  const undecided = (side) => sum(side.undecided_defective, side.undecided_good);
  const rows = [
    row("Escapes", "defective parts that pass", champion.escapes, own.escapes, most, numbers.escapes.p),
    row("False rejects", "good parts that fail", champion.false_rejects, own.false_rejects, most, numbers.false_rejects.p),
    plain("Undecided", "neither pass nor fail", undecided(champion), undecided(own), null),
    plain("AUROC", "how well scores tell them apart", ranged(champion.auroc, champion.auroc_ci95), ranged(own.auroc, own.auroc_ci95), numbers.auroc_difference?.p ?? null),
  ];
  if (comparison.speed) {
    const { champion_ms: before, candidate_ms: after, provider, threads } = comparison.speed;
    rows.push(plain("Speed", `one image, ${provider}, ${threads} thread${threads === 1 ? "" : "s"}`, `${before.toFixed(1)} ms`, `${after.toFixed(1)} ms`, null));
  }
  const head = make("tr", {}, ...["", "Champion", "Candidate", "p value"].map((text) => make("th", { scope: "col" }, text)));
  const caption = make("caption", { className: "hint" }, `${numbers.good} good and ${numbers.defective} defective parts; bars are 95 % intervals`);
  return make("div", { className: "scroll" }, make("table", { className: "table compare" }, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
}

const percent = (share) => (share === null ? "–" : `${(100 * share).toFixed(share < 0.1 ? 1 : 0)} %`);
const sum = (one, other) => `${one.events + other.events} of ${one.trials + other.trials}`;
const ranged = (value, interval) => (value === null ? "–" : `${value.toFixed(3)}${interval ? ` (${interval[0].toFixed(3)} … ${interval[1].toFixed(3)})` : ""}`);
const chance = (p) => (p === null ? "" : p < 0.001 ? "< 0.001" : p.toFixed(3));

function row(term, note, champion, own, most, p) {
  return make("tr", {}, heading(term, note), make("td", {}, rated(champion, most)), make("td", {}, rated(own, most)), make("td", { className: "p" }, chance(p)));
}

function plain(term, note, champion, own, p) {
  return make("tr", {}, heading(term, note), make("td", {}, champion), make("td", {}, own), make("td", { className: "p" }, chance(p)));
}

function heading(term, note) {
  return make("th", { scope: "row" }, term, make("small", {}, note));
}

/** A rate with its interval as a bar: the range is the bar, the rate the line in it. */
function rated(rate, most) {
  if (rate.rate === null) return "–";
  const bar = make("span", { className: "interval", ariaHidden: "true" }, make("span", { className: "range" }), make("span", { className: "point" }));
  const at = (share) => `${Math.min(100, (100 * share) / most)}%`;
  bar.style.setProperty("--low", at(rate.ci95[0]));
  bar.style.setProperty("--high", at(rate.ci95[1]));
  bar.style.setProperty("--rate", at(rate.rate));
  return make("div", { className: "rate" }, make("strong", {}, percent(rate.rate)), make("small", {}, `${rate.events} of ${rate.trials}, ${percent(rate.ci95[0])} to ${percent(rate.ci95[1])}`), bar);
}

function rules(gate) {
  const items = gate.rules.map((rule) => {
    const item = make("li", {}, icon(rule.met ? "go" : "no-go"), make("span", {}, make("span", { className: "unseen" }, rule.met ? "met: " : "not met: "), rule.reason));
    item.dataset.gate = rule.met ? "go" : "no-go";
    return item;
  });
  return make("ul", { className: "rules" }, ...items);
}

// -- differences --------------------------------------------------------------------------------------------------------

function differences(model, count) {
  const list = make("ul", { className: "differences" });
  const box = folding(`differences-${model.digest}`, `Parts on which they differ (${count})`, list);
  const fill = async () => {
    try {
      if (!comparisons.has(model.digest)) comparisons.set(model.digest, await api("GET", `/api/v1/models/${model.digest}/comparison`));
      list.replaceChildren(...comparisons.get(model.digest).differences.map((one) => make("li", {}, difference(model, one))));
    } catch (error) {
      list.replaceChildren(make("li", { className: "hint" }, error.message));
    }
  };
  box.addEventListener("toggle", () => box.open && list.childElementCount === 0 && fill());
  if (box.open) fill();
  return box;
}

function difference(model, one) {
  const text = `${one.label}: ${one.champion.decision} → ${one.candidate.decision}`;
  const caption = [make("strong", {}, one.outcome), make("span", {}, `${one.group} · ${text}`)];
  const better = one.outcome === "escape caught" || one.outcome === "false reject mended";
  const address = one.picture === null ? null : `/api/v1/models/${model.digest}/differences/${encodeURIComponent(one.picture.split("/").pop())}`;
  const button = make("button", { type: "button", className: "difference" }, ...(address ? [make("img", { src: address, alt: "", loading: "lazy" })] : []), ...caption);
  button.dataset.better = String(better);
  button.disabled = address === null;
  button.addEventListener("click", () => {
    element("look-picture").src = address;
    element("look-picture").alt = `${one.outcome}, part ${one.group}`;
    const scores = `champion ${one.champion.score.toPrecision(3)} of ${one.champion.threshold.toPrecision(3)}, candidate ${one.candidate.score.toPrecision(3)} of ${one.candidate.threshold.toPrecision(3)}`;
    element("look-caption").replaceChildren(make("strong", {}, one.outcome), ` · part ${one.group}, ${text} · ${scores} `, ...(one.verdict_id ? [make("a", { href: `/part?id=${encodeURIComponent(one.verdict_id)}` }, "open the part")] : []));
    element("look").showModal();
  });
  return button;
}

export function closePictures() {
  element("look-close").addEventListener("click", () => element("look").close());
  element("look").addEventListener("click", (event) => event.target === element("look") && element("look").close());
}

// -- approvals, shadow, the rest ----------------------------------------------------------------------------------------

function approvals(model, context) {
  const counted = model.approvals.filter((one) => one.counts).length;
  const names = model.approvals.map((one) => make("li", { className: one.counts ? "" : "idle", title: `${moment(one.at)}${one.comment ? `: ${one.comment}` : ""}` }, one.by, ...(one.comment ? [make("small", {}, one.comment)] : []), ...(one.counts ? [] : [make("small", {}, "trained it, does not count")])));
  return make("div", { className: "approvals" }, make("span", { className: "label" }, `Approved by ${counted}, ${context.needed} needed`), make("ul", {}, ...names));
}

const DECISIONS = ["pass", "undecided", "fail"];

function shadowed(model, shadow) {
  const count = (champion, own) => shadow.agreement.find((cell) => cell.champion === champion && cell.candidate === own)?.parts ?? 0;
  const head = make("tr", {}, make("th", { scope: "col" }, "Champion ↓ Candidate →"), ...DECISIONS.map((name) => make("th", { scope: "col" }, name)));
  const body = DECISIONS.map((champion) =>
    make("tr", {}, make("th", { scope: "row" }, champion), ...DECISIONS.map((own) => make("td", { className: champion === own ? "same" : count(champion, own) > 0 ? "other" : "" }, String(count(champion, own))))));
  const same = DECISIONS.reduce((sumOf, name) => sumOf + count(name, name), 0);
  const facts = `${shadow.parts} parts, ${shadow.parts > 0 ? percent(same / shadow.parts) : "–"} the same · median ${shadow.median_ms === null ? "–" : `${shadow.median_ms.toFixed(1)} ms`} · ${shadow.dropped} dropped · ${(100 * shadow.share).toFixed(1)} % of one core`;
  const trouble = [shadow.hangs ? "the candidate hangs" : null, shadow.failed > 0 ? `${shadow.failed} failed: ${shadow.last_error ?? ""}` : null].filter(Boolean);
  const parts = shadow.differing.slice(0, 20).map((part) => make("li", {}, make("a", { href: `/part?id=${encodeURIComponent(part.verdict_id)}` }, part.serial), ` ${part.champion} → ${part.candidate}`));
  return folding(
    `shadow-${model.digest}`,
    `In the shadow${shadow.places.length > 0 ? `: ${shadow.places.map((place) => `${place.recipe} / ${place.view}`).join(", ")}` : ", off"}`,
    make("p", { className: "hint" }, facts),
    ...trouble.map((text) => make("p", { className: "refused" }, text)),
    make("div", { className: "shadow" }, make("table", { className: "table agreement" }, make("thead", {}, head), make("tbody", {}, ...body)), make("ul", { className: "parts" }, ...parts)),
  );
}

function more(model) {
  const own = model.thresholds;
  return folding(
    `more-${model.digest}`,
    "Card and thresholds",
    make("p", { className: "hint" }, `Threshold ${own.score.toPrecision(4)}, undecided from ${own.undecided_below.toPrecision(3)} below; version ${own.version}, set by ${own.set_by}, ${moment(own.set_at)}`),
    make("pre", { className: "card", tabIndex: 0 }, model.card),
  );
}

function folding(key, title, ...children) {
  const box = make("details", { open: opened.has(key) }, make("summary", { id: `fold-${key}` }, title), ...children);
  box.addEventListener("toggle", () => (box.open ? opened.add(key) : opened.delete(key)));
  return box;
}

// -- what may be done ---------------------------------------------------------------------------------------------------

function actions(model, context) {
  const bar = make("div", { className: "bar actions" });
  const add = (text, kind, work) => {
    const button = make("button", { className: `button ${kind}`, type: "button", id: `${text.split(" ")[0].toLowerCase()}-${model.digest.slice(0, 12)}` }, text);
    button.addEventListener("click", work);
    bar.append(button);
  };
  if (!model.on_shelf) return bar;
  const open = context.views.filter((view) => view.digest !== model.digest);
  const name = `${model.name} ${model.version}`;
  if (context.may("approve")) {
    const ready = model.approvals.filter((one) => one.counts).length >= context.needed;
    if (open.length > 0) add("Promote …", ready ? "primary" : "", () => promote(model, name, open, context));
    const mine = model.approvals.some((one) => one.by === context.me.name);
    if (mine) add("Withdraw approval", "", () => withdraw(model, name, context));
    else if (open.length > 0) add("Approve …", ready ? "" : "primary", () => approve(model, name, context));
  }
  if (context.may("models_write")) {
    for (const place of model.shadows) add(`Shadow off${model.shadows.length > 1 ? `: ${place.recipe} / ${place.view}` : ""}`, "", () => context.act(() => shadow(model, place, false), `${name} is in the shadow no more`));
    const free = open.filter((view) => view.shadow !== model.digest);
    if (free.length > 0) add("Shadow …", "", () => shadowOn(model, name, free, context));
  }
  return bar;
}

const shadow = (model, place, on) => api("POST", `/api/v1/models/${model.digest}/shadow`, { recipe: place.recipe, view: place.view, on });

function shadowOn(model, name, places, context) {
  ask({
    title: "Let it judge in the shadow?",
    text: [`${name} judges the same frames after the champion gave its verdict, at the lowest priority. Nothing of it is published.`],
    yes: "Shadow",
    places,
    work: ({ place }) => context.act(() => shadow(model, place, true), `${name} is in the shadow of ${place.recipe} / ${place.view}`),
  });
}

function approve(model, name, context) {
  ask({
    title: `Approve ${name}?`,
    text: ["You say that this package, with the comparison that it has now, is fit for the line. It judges nothing before it is promoted.", ...(model.comparison && !model.comparison.gate.go ? ["The gate said no-go."] : [])],
    yes: "Approve",
    reason: { label: "Comment (goes into the audit trail)", needed: false },
    work: ({ reason }) => context.act(() => api("POST", `/api/v1/models/${model.digest}/approve`, { comment: reason }), `${name} is approved by you`),
  });
}

function withdraw(model, name, context) {
  ask({
    title: "Withdraw your approval?",
    text: [`${name} then has one approval less. Where it judges already, it goes on.`],
    yes: "Withdraw",
    danger: true,
    work: () => context.act(() => api("POST", `/api/v1/models/${model.digest}/withdraw`), `Your approval of ${name} is withdrawn`),
  });
}

function promote(model, name, places, context) {
  const told = (place) => {
    const objections = [];
    if (model.comparison === null) objections.push("It was never compared with the champion.");
    else {
      if (!model.comparison.gate.go) objections.push("The gate said no-go.");
      if (model.comparison.champion_digest !== place.digest) objections.push("It was compared with another champion than the one that judges here.");
    }
    const text = [
      `${name} judges ${place.recipe} / ${place.view} from the next part on, in the place of ${place.package}.`,
      `Threshold ${model.thresholds.score.toPrecision(4)}, the package's own${place.threshold_version.startsWith("station") ? "; that of STATION.toml was set for the other package, and is set aside" : ""}. One call undoes it.`,
      ...objections.map((objection) => make("p", { className: "refused" }, objection)),
    ];
    return { text, reason: objections.length > 0 ? { label: "Why all the same (goes into the audit trail)", needed: true } : null };
  };
  ask({
    title: `Promote ${name}?`,
    text: [],
    yes: "Promote",
    places,
    onPlace: told,
    work: ({ place, reason }) =>
      context.act(() => api("POST", `/api/v1/models/${model.digest}/promote`, { recipe: place.recipe, view: place.view, override_reason: reason || null }), `${name} judges ${place.recipe} / ${place.view}`),
  });
}
