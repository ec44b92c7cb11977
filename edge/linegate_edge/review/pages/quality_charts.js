// Drawings of the page of quality, in SVG: the control chart, the Pareto chart, intervals, and the curves of a threshold.
//
// Rules kept here: a drawing is as wide as its place and drawn anew when that changes; geometry is set by attributes, colours
// by classes; every bar and point can be reached by keyboard (one stop of Tab, then the arrows) and has its words.

const SPACE = "http://www.w3.org/2000/svg";
const PAD = { left: 48, right: 16, top: 12, bottom: 28 };

export function draw(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SPACE, tag);
  for (const [name, value] of Object.entries(attributes)) if (value !== null) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** Draw into a place, now and whenever its width changes; `make(width)` gives the SVG, null shows the words instead. */
export function keepDrawn(place, words, make) {
  place.watcher?.disconnect();
  let drawn = 0;
  const show = () => {
    const width = Math.floor(place.clientWidth);
    if (width === drawn || width < 40) return;
    drawn = width;
    const focused = place.contains(document.activeElement) ? document.activeElement.dataset.place : null;
    const svg = make?.(width);
    if (svg) return place.replaceChildren(svg), focused !== null && place.querySelector(`[data-place="${focused}"]`)?.focus();
    const nothing = document.createElement("p");
    nothing.className = "nothing";
    nothing.textContent = words;
    place.replaceChildren(nothing);
  };
  place.watcher = new ResizeObserver(show);
  place.watcher.observe(place);
  show();
}

/** A mark that says `label` to screen readers and calls `tell` when it is pointed at; the first of its kind is the Tab stop. */
function mark(place, label, tell, attributes, ...children) {
  const made = draw("g", { class: "point", role: "listitem", tabindex: place === 0 ? 0 : -1, "aria-label": label, "data-place": place, ...attributes }, ...children);
  for (const event of ["focus", "pointerenter"]) made.addEventListener(event, tell);
  return made;
}

function walk(event) {
  const steps = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  if (!(event.key in steps)) return;
  const marks = [...event.currentTarget.querySelectorAll(".point")];
  const at = marks.indexOf(document.activeElement);
  if (at < 0) return;
  event.preventDefault();
  const next = Math.min(marks.length - 1, Math.max(0, at + steps[event.key]));
  marks[at].setAttribute("tabindex", -1);
  marks[next].setAttribute("tabindex", 0);
  marks[next].focus();
}

function sheet(width, height, label, role = "list") {
  const svg = draw("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role, "aria-label": label });
  svg.addEventListener("keydown", walk);
  return svg;
}

/** Round values from 0 to at least `top`, about four of them. */
function ticks(top, whole = false) {
  const rough = top / 4;
  const unit = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 2.5, 5, 10].map((factor) => factor * unit).find((value) => value >= rough - 1e-12);
  if (whole) step = Math.max(1, Math.ceil(step));
  return Array.from({ length: Math.ceil(top / step - 1e-9) + 1 }, (_, index) => index * step);
}

function axis(svg, width, values, y, words, right = width - PAD.right) {
  for (const value of values) {
    svg.append(draw("line", { class: value === 0 ? "base" : "grid", x1: PAD.left, x2: right, y1: y(value), y2: y(value) }));
    svg.append(draw("text", { x: PAD.left - 8, y: y(value) + 4, "text-anchor": "end" }, words(value)));
  }
}

/** The control chart; `points` have share, low, high, signals, label and date; `tell(index)` fills the readout. */
export function controlChart(width, { points, centre, percent, label }, tell) {
  const height = 300;
  const svg = sheet(width, height, label);
  const values = ticks(Math.max(0.001, ...points.map((point) => Math.max(point.share, Math.min(point.high, 4 * centre + 0.01)))) * 1.06);
  const top = values.at(-1);
  const inner = width - PAD.left - PAD.right;
  const step = inner / points.length;
  const x = (place) => PAD.left + step * (place + 0.5);
  const y = (share) => PAD.top + (height - PAD.top - PAD.bottom) * (1 - Math.min(share, top) / top);
  const stairs = (name) => points.map((point, place) => `${place ? "L" : "M"}${x(place) - step / 2} ${y(point[name])}H${x(place) + step / 2}`).join("");
  const back = [...points.keys()].reverse().map((place) => `L${x(place) + step / 2} ${y(points[place].low)}H${x(place) - step / 2}`).join("");
  svg.append(draw("path", { class: "limits", d: `${stairs("high")}${back}Z` }));
  axis(svg, width, values, y, percent);
  svg.append(draw("path", { class: "limit", d: stairs("high") }), draw("path", { class: "limit", d: stairs("low") }));
  svg.append(draw("line", { class: "centre", x1: PAD.left, x2: width - PAD.right, y1: y(centre), y2: y(centre) }));
  svg.append(draw("path", { class: "course", d: points.map((point, place) => `${place ? "L" : "M"}${x(place)} ${y(point.share)}`).join("") }));
  const every = Math.ceil(points.length / Math.max(1, Math.floor(inner / 84)));
  const small = step < 9;
  points.forEach((point, place) => {
    const signal = point.signals.some((name) => name === "above" || name === "below") ? "outside" : point.signals.length ? "run" : null;
    const at = [x(place), y(point.share)];
    // A shape goes with each colour: a square outside the limits, a diamond in a run.
    const shape =
      signal === "outside" ? draw("rect", { class: "dot-shape", x: at[0] - 5.5, y: at[1] - 5.5, width: 11, height: 11 })
      : signal === "run" ? draw("path", { class: "dot-shape", d: `M${at[0]} ${at[1] - 6.5}l6.5 6.5-6.5 6.5-6.5-6.5z` })
      : draw("circle", { class: "dot-shape", cx: at[0], cy: at[1], r: small ? 2.5 : 4.5 });
    const hit = draw("rect", { class: "hit", x: x(place) - step / 2, y: PAD.top - 4, width: step, height: height - PAD.top - PAD.bottom + 4, rx: 3 });
    svg.append(mark(place, point.label, () => tell(place), { "data-signal": signal }, hit, shape));
    if (place % every === 0) svg.append(draw("text", { x: x(place), y: height - 8, "text-anchor": "middle", "aria-hidden": "true" }, point.date));
  });
  return svg;
}

/** The Pareto chart; `bars` have failed, undecided, rejects, cumulative, name and label. */
export function paretoChart(width, { bars, total, percent, label }, tell) {
  const step = (width - PAD.left - 48) / bars.length;
  const longest = Math.max(...bars.map((bar) => bar.name.length));
  const slanted = step < 7 * Math.min(longest, 14) + 8;
  const bottom = slanted ? 84 : 28;
  const height = 272 + bottom;
  const svg = sheet(width, height, label);
  const values = ticks(Math.max(1, bars[0].rejects), true);
  const top = Math.max(values.at(-1), 1);
  const floor = height - bottom;
  const right = width - 48;
  const x = (place) => PAD.left + step * (place + 0.5);
  const y = (count) => PAD.top + (floor - PAD.top) * (1 - count / top);
  const line = (share) => PAD.top + (floor - PAD.top) * (1 - share);
  axis(svg, width, values, y, (value) => value.toLocaleString("en"), right);
  for (const share of [0, 0.5, 0.8, 1]) svg.append(draw("text", { x: right + 8, y: line(share) + 4 }, percent(share)));
  const broad = Math.min(72, step * 0.66);
  bars.forEach((bar, place) => {
    const left = x(place) - broad / 2;
    const hit = draw("rect", { class: "hit", x: x(place) - step / 2, y: PAD.top - 4, width: step, height: floor - PAD.top + 4, rx: 3 });
    const failed = draw("rect", { class: "bar-failed", x: left, y: y(bar.failed), width: broad, height: floor - y(bar.failed) });
    const rest = draw("rect", { class: "bar-undecided", x: left, y: y(bar.rejects), width: broad, height: y(bar.failed) - y(bar.rejects) });
    svg.append(mark(place, bar.label, () => tell(place), {}, hit, ...(bar.failed ? [failed] : []), ...(bar.undecided ? [rest] : [])));
    const room = slanted ? 15 : Math.floor(step / 7);
    const short = bar.name.length > room ? `${bar.name.slice(0, room - 1)}…` : bar.name;
    const turn = slanted ? `rotate(-38 ${x(place) + 4} ${floor + 16})` : null;
    svg.append(draw("text", { x: x(place) + (slanted ? 4 : 0), y: floor + (slanted ? 16 : 20), "text-anchor": slanted ? "end" : "middle", transform: turn, "aria-hidden": "true" }, short));
  });
  svg.append(draw("path", { class: "cumulative", d: bars.map((bar, place) => `${place ? "L" : "M"}${x(place)} ${line(bar.cumulative)}`).join("") }));
  bars.forEach((bar, place) => svg.append(draw("circle", { class: "cumulative-dot", cx: x(place), cy: line(bar.cumulative), r: 3.5 })));
  return svg;
}

/** Shares with their intervals, one below the other; `rows` have name, words, share, low, high. */
export function intervals(width, { rows, percent, label }, tell) {
  const each = 58;
  const svg = sheet(width, rows.length * each + 22, label);
  // An interval of nothing, or of a handful, would press all others into a corner.
  const top = ticks(Math.max(0.01, ...rows.filter((row) => row.total > 0).map((row) => Math.min(row.high, Math.max(4 * row.share, 0.1)))));
  const x = (share) => 8 + (width - 32) * Math.min(1, share / top.at(-1));
  rows.forEach((row, place) => {
    const middle = place * each + 38;
    const parts = [
      draw("rect", { class: "hit", x: 0, y: middle - 34, width, height: each - 4, rx: 3 }),
      draw("text", { class: "strong", x: 8, y: middle - 16 }, row.name),
      draw("text", { x: width - 24, y: middle - 16, "text-anchor": "end" }, row.words),
      draw("rect", { class: "track", x: 8, y: middle - 3, width: width - 32, height: 6, rx: 3 }),
    ];
    if (row.total > 0) {
      parts.push(draw("line", { class: "whisker", x1: x(row.low), x2: x(row.high), y1: middle, y2: middle }));
      for (const end of ["low", "high"]) if (row[end] <= top.at(-1)) parts.push(draw("line", { class: "whisker", x1: x(row[end]), x2: x(row[end]), y1: middle - 6, y2: middle + 6 }));
      parts.push(draw("circle", { class: "estimate", cx: x(row.share), cy: middle, r: 6.5 }));
    }
    svg.append(mark(place, `${row.name}: ${row.words}`, () => tell(place), {}, ...parts));
  });
  for (const value of top) svg.append(draw("text", { x: x(value), y: rows.length * each + 16, "text-anchor": value === 0 ? "start" : "middle", "aria-hidden": "true" }, percent(value)));
  return svg;
}

/** Escapes and false rejects over the threshold; returns the SVG and `move(threshold)`. */
export function thresholdCurves(width, { points, low, high, current, number, label }) {
  const height = 210;
  const svg = sheet(width, height, label, "img");
  const most = Math.max(1, ...points.map((point) => Math.max(point.escapes, point.false_rejects)));
  const values = ticks(most, true);
  const x = (score) => PAD.left + (width - PAD.left - PAD.right) * Math.min(1, Math.max(0, (score - low) / (high - low)));
  const y = (count) => 26 + (height - 26 - PAD.bottom) * (1 - count / values.at(-1));
  axis(svg, width, values, y, (value) => value.toLocaleString("en"));
  for (const [name, kind] of [["false_rejects", "line-false-rejects"], ["escapes", "line-escapes"]]) {
    // Up to each breakpoint, its own count: a step ends at its threshold.
    const stairs = points.map((point, place) => `${place ? "V" : `M${x(low)} `}${y(point[name])}H${x(point.threshold ?? high)}`).join("");
    svg.append(draw("path", { class: kind, d: stairs }));
  }
  for (const share of [0, 0.25, 0.5, 0.75, 1]) {
    const score = low + share * (high - low);
    svg.append(draw("text", { x: x(score), y: height - 8, "text-anchor": share === 1 ? "end" : "middle" }, number(score)));
  }
  if (current !== null) {
    svg.append(draw("line", { class: "now", x1: x(current), x2: x(current), y1: 20, y2: height - PAD.bottom }));
    const nearRight = x(current) > width - 90;
    svg.append(draw("text", { x: x(current) + (nearRight ? -5 : 5), y: 14, "text-anchor": nearRight ? "end" : "start" }, `present ${number(current)}`));
  }
  const here = draw("line", { class: "here", y1: 20, y2: height - PAD.bottom });
  svg.append(here);
  const move = (threshold) => ["x1", "x2"].forEach((name) => here.setAttribute(name, x(threshold)));
  return { svg, move };
}
