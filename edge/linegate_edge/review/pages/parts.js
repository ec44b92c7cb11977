// Finding parts: by serial, time, verdict, class, recipe, package, batch and review.
//
// Rules kept here: what was asked for stands in the address, so that it can be kept and sent; times are asked for and shown on the
// clocks of whoever looks, and told to the station with their zone.

import { api, element, make, moment, open, say, toast, turns } from "/assets/shell.js";

const FIELDS = ["serial", "since", "until", "decision", "defect_class", "recipe", "package", "batch", "disposition"];
const WORDS = { pass: "passed", fail: "failed", undecided: "undecided" };
let before = null;
const takeTurn = turns();

function asked() {
  const query = new URLSearchParams();
  for (const name of FIELDS) {
    const value = element(name).value.trim();
    if (value !== "") query.set(name, value);
  }
  return query;
}

function row(part) {
  const link = make("a", { href: `/part?id=${encodeURIComponent(part.verdict_id)}` }, part.serial);
  const word = make("span", { className: "verdict-word" }, WORDS[part.decision]);
  word.dataset.decision = part.decision;
  const score = part.score === null ? "–" : `${part.score.toPrecision(4)} / ${part.threshold.toPrecision(4)}`;
  const review = part.disposition === null ? (part.queued === null ? "–" : "waits") : `${part.disposition.replace("_", " ")}${part.decided_class ? `, ${part.decided_class}` : ""}`;
  const cells = [link, word, part.defect_class ?? (part.decision === "pass" ? "–" : part.reason.replaceAll("_", " ")), score, moment(part.decided_at), part.recipe, part.package, part.batch ?? "–", review];
  return make("tr", {}, ...cells.map((cell) => make("td", {}, cell)));
}

async function find(more = false) {
  const shown = asked();
  history.replaceState(null, "", shown.size > 0 ? `?${shown}` : location.pathname);
  const query = new URLSearchParams(shown);
  for (const name of ["since", "until"]) if (query.has(name)) query.set(name, new Date(query.get(name)).toISOString());
  if (more) query.set("before", before);
  const newest = takeTurn();
  try {
    const page = await api("GET", `/api/v1/parts?${query}`);
    if (!newest()) return;
    const rows = page.items.map(row);
    more ? element("rows").append(...rows) : element("rows").replaceChildren(...rows);
    before = page.next;
    element("more").hidden = before === null;
    const count = element("rows").children.length;
    element("found").textContent = count === 0 ? "No part is like this." : `${count} ${count === 1 ? "part" : "parts"}${before === null ? "" : ", and more"}, newest first`;
    if (more) rows[0]?.querySelector("a").focus();
    say(element("found").textContent);
  } catch (error) {
    if (newest()) toast(error.message);
  }
}

async function start() {
  await open("parts");
  const choices = await api("GET", "/api/v1/choices");
  for (const [id, values] of [["defect_class", choices.defect_classes], ["recipe", choices.recipes], ["package", choices.packages]]) {
    element(id).append(...values.map((value) => make("option", { value }, value)));
  }
  const query = new URLSearchParams(location.search);
  for (const name of FIELDS) if (query.has(name)) element(name).value = query.get(name);
  element("find").addEventListener("click", () => find());
  element("more").addEventListener("click", () => find(true));
  element("clear").addEventListener("click", () => {
    for (const name of FIELDS) element(name).value = "";
    find();
  });
  for (const name of FIELDS) {
    const field = element(name);
    if (field.tagName === "SELECT") field.addEventListener("change", () => find());
    field.addEventListener("keydown", (event) => event.key === "Enter" && find());
  }
  await find();
  element("serial").focus();
}

start().catch((error) => toast(error.message));
