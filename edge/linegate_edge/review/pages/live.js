// The live page: shows what the station's event stream says, and says so when it says nothing.
//
// Rules kept here: the page decides nothing; a page that hears nothing for LOST_AFTER_MS shows no verdict; a picture is
// shown only under the name of its own part; texts from the station are set as text, never as markup.

import { element, open as openShell, readSession, toLogin } from "/assets/shell.js";

const LOST_AFTER_MS = 3000;
const RECONNECT_MS = 2000;
const ANNOUNCE_EVERY_MS = 1500;
const PICTURE_EVERY_MS = 150;
const RECENT_PARTS = 12;
const WORDS = { pass: "Pass", fail: "Fail", undecided: "Undecided", waiting: "Waiting", stop: "Line stop", lost: "No signal" };

const whole = new Intl.NumberFormat("en");
const time = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

let state = null;
let heardAt = performance.now();
let heardTime = new Date();
let stream = null;

// -- the event stream ---------------------------------------------------------------------------------------------

function connect() {
  stream?.close();
  stream = new EventSource("/live/events");
  stream.addEventListener("state", (event) => {
    const next = JSON.parse(event.data);
    // A station that started anew may be another release: begin anew with its own page.
    if (state !== null && state.boot_id !== next.boot_id) return location.reload();
    state = next;
    hear();
    showState();
  });
  stream.addEventListener("heartbeat", hear);
  stream.addEventListener("error", () => {
    // A browser tries again by itself after a broken connection, but not after an answer that is no stream.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connectAgain, RECONNECT_MS);
  });
}

async function connectAgain() {
  // The answer was no stream: perhaps because the login is over.
  const session = await readSession().catch(() => null);
  if (session !== null && !session.pages.includes("live")) return toLogin();
  connect();
}

function hear() {
  heardAt = performance.now();
  heardTime = new Date();
  showLink();
}

function isLost() {
  return performance.now() - heardAt > LOST_AFTER_MS;
}

function showLink() {
  const link = isLost() ? "lost" : state === null ? "connecting" : "live";
  if (document.documentElement.dataset.link === link) return;
  document.documentElement.dataset.link = link;
  element("link").dataset.level = { live: "good", lost: "warn", connecting: "idle" }[link];
  setText("link-text", { live: "live", lost: "no signal", connecting: "connecting" }[link]);
  const since = state === null ? "The station does not answer." : `Nothing heard from the station since ${time.format(heardTime)}.`;
  showAlarm("alarm-lost", link === "lost" ? `${since} Trying again. What is shown below is old.` : null);
  showVerdict();
}

// -- the state ----------------------------------------------------------------------------------------------------

function showState() {
  showStation();
  showAlarm("alarm-stop", state.line_stop);
  showAlarm("alarm-trouble", state.line_stop === null ? state.trouble : null);
  showBroker();
  showVerdict();
  showCounters();
  rememberParts();
  wantPicture();
}

function showStation() {
  const cut = state.station.lastIndexOf("/") + 1;
  setText("station-path", state.station.slice(0, cut).replaceAll("/", " / "));
  setText("station-name", state.station.slice(cut));
  setText("package", state.package);
  setText("provider", state.provider);
  setText("note", state.note);
}

function showBroker() {
  const { connected, text, no_subscriber: deaf } = state.broker;
  element("broker").dataset.level = connected && !deaf ? "good" : "warn";
  setText("broker-text", !connected ? `MQTT: ${text}` : deaf ? "MQTT connected, but nobody subscribes" : "MQTT connected");
}

function whatToShow(last) {
  // Neither a page that hears nothing nor a line that must stop shows green, whatever the last part was.
  if (document.documentElement.dataset.link === "lost") return "lost";
  if (state !== null && state.line_stop !== null) return "stop";
  return last?.decision ?? "waiting";
}

function showVerdict() {
  const last = state?.last ?? null;
  const show = whatToShow(last);
  const panel = element("verdict");
  panel.dataset.show = show;
  setText("word", WORDS[show]);
  element("sign-icon").setAttribute("href", `#icon-${show}`);
  const current = last !== null && show === last.decision;
  document.title = [WORDS[show], current ? last.part.serial : null, "Linegate"].filter(Boolean).join(" · ");
  setText("serial-label", last !== null && !current ? `Last part: ${WORDS[last.decision]}` : "Part");
  if (last === null) return;
  setText("serial", last.part.serial);
  setText("reason", last.reason_text);
  showScore(last.views[0]);
  if (panel.dataset.part !== last.verdict_id) {
    panel.dataset.part = last.verdict_id;
    restart(panel.querySelector(".sign"), "new");
    announce(last);
  }
}

function showScore(view) {
  const known = view !== undefined && view.score !== null && view.threshold !== null;
  element("score-fact").dataset.known = known;
  if (!known) return;
  setText("score", view.score.toPrecision(3));
  setText("threshold", ` · threshold ${view.threshold.toPrecision(3)}`);
  const gauge = element("gauge");
  gauge.hidden = view.threshold <= 0;
  const share = Math.min(1, Math.max(0, view.score / (2 * view.threshold)));
  gauge.style.setProperty("--share", `${(share * 100).toFixed(1)}%`);
}

function showCounters() {
  for (const name of ["parts", "passed", "failed", "undecided", "published"]) setText(name, whole.format(state[name]));
  const share = state.first_pass_yield;
  setQuantity("yield", share === null ? null : (Math.floor(share * 1000) / 10).toFixed(1), "%");
  setQuantity("p50", milliseconds(state.latency_ms?.p50), "ms");
  setQuantity("p99", milliseconds(state.latency_ms?.p99), "ms");
}

function milliseconds(value) {
  if (value === undefined) return null;
  return value < 100 ? value.toFixed(1) : whole.format(Math.round(value));
}

// -- the last parts -----------------------------------------------------------------------------------------------

const recent = new Map();

function rememberParts() {
  const parts = [...state.recent];
  if (state.last !== null) parts.push({ ...state.last, serial: state.last.part.serial });
  if (parts.every((part) => recent.has(part.sequence))) return;
  for (const part of parts) recent.set(part.sequence, part);
  const newest = [...recent.keys()].sort((a, b) => b - a);
  for (const sequence of newest.splice(RECENT_PARTS)) recent.delete(sequence);
  element("recent").replaceChildren(...newest.map((sequence) => tile(recent.get(sequence))));
}

function tile(part) {
  const item = document.createElement("li");
  item.dataset.decision = part.decision;
  item.title = `${part.serial}: ${part.decision}`;
  const serial = document.createElement("span");
  serial.className = "serial";
  const name = document.createElement("bdi");
  name.textContent = part.serial;
  const word = document.createElement("span");
  word.className = "unseen";
  word.textContent = ` ${part.decision}`;
  serial.append(name);
  item.append(icon(part.decision), serial, word);
  return item;
}

function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#icon-${name}`);
  svg.append(use);
  return svg;
}

// -- the picture --------------------------------------------------------------------------------------------------

let shownPicture = null;
let loading = false;

function wantPicture() {
  const last = state.last;
  if (last === null) return;
  if (state.overlay_uri === null) {
    // The picture of another part must not stand beside this verdict.
    if (shownPicture !== last.verdict_id && !hasView(last)) clearPicture("This part has no picture that could be shown.", last);
    return;
  }
  if (!loading && shownPicture !== last.verdict_id) loadPicture(state.overlay_uri, last);
}

function hasView(message) {
  return message.views[0]?.score !== null && message.views[0] !== undefined;
}

async function loadPicture(uri, message) {
  loading = true;
  const image = new Image();
  image.alt = `${message.part.serial}: ${message.decision}; brighter colours show where the model sees a difference`;
  image.id = "overlay";
  image.src = uri;
  try {
    await image.decode();
    const mat = element("picture").querySelector(".mat");
    mat.querySelector("img")?.remove();
    mat.append(image);
    element("no-picture").hidden = true;
    caption(message);
    shownPicture = message.verdict_id;
  } catch {
    // Too late for this one: the next state brings the next.
    if (state.last?.verdict_id === message.verdict_id) clearPicture("The picture of this part could not be loaded.", message);
  }
  await new Promise((resolve) => setTimeout(resolve, PICTURE_EVERY_MS));
  loading = false;
  wantPicture();
}

function clearPicture(text, message) {
  element("picture").querySelector(".mat img")?.remove();
  element("no-picture").hidden = false;
  setText("no-picture", text);
  caption(message);
  shownPicture = message.verdict_id;
}

function caption(message) {
  const view = message.views[0];
  const moment = time.format(new Date(message.time.captured));
  setText("caption", [`Part ${message.part.serial}`, `no. ${whole.format(message.sequence)}`, view && `camera ${view.camera}`, moment].filter(Boolean).join(" · "));
}

// -- small things -------------------------------------------------------------------------------------------------

let announcedAt = -ANNOUNCE_EVERY_MS;
let announceTimer = null;

function announce(message) {
  // A screen reader that gets ten parts a second says nothing useful: the newest, now and then.
  clearTimeout(announceTimer);
  const wait = Math.max(0, announcedAt + ANNOUNCE_EVERY_MS - performance.now());
  announceTimer = setTimeout(() => {
    announcedAt = performance.now();
    setText("announcement", `${WORDS[message.decision]}: part ${message.part.serial}, ${message.reason_text}`);
  }, wait);
}

function showAlarm(id, text) {
  const alarm = element(id);
  alarm.hidden = text === null;
  if (text !== null) alarm.querySelector("span").textContent = text;
}

function setText(id, text) {
  const target = element(id);
  if (target.textContent !== text) target.textContent = text;
}

function setQuantity(id, number, unit) {
  const target = element(id);
  if (number === null) return setText(id, "–");
  const small = document.createElement("small");
  small.textContent = ` ${unit}`;
  target.replaceChildren(number, small);
}

function restart(target, name) {
  target.classList.remove(name);
  void target.offsetWidth; // the browser starts an animation anew only after it has seen the class gone
  target.classList.add(name);
}

connect();
openShell("live").catch(() => {}); // without the header's links the page still shows the station
setInterval(showLink, 250);
