// What all pages share: the header with its navigation, requests to the station, words for screen readers, toasts.
//
// How to use it (see shell.css for the page around it):
//   import { api, element, make, open, say, toast } from "/assets/shell.js";
//   const me = await open("queue");                 // fills the header; goes to /login where nobody is logged in
//   me.permissions.includes("review")               // what this user may do; the station checks it again all the same
//   const page = await api("GET", "/api/v1/queue"); // JSON in and out; adds the CSRF token; on 401 goes to /login
//   try { await api("POST", "/api/v1/…", {…}); say("Confirmed"); } catch (error) { toast(error.message); }
//   list.replaceChildren(make("li", { className: "row" }, "text", node));
//
// Rules kept here: texts from the station are set as text, never as markup; an error of the station is shown in its own words; an
// answer that a newer question has overtaken is dropped (`turns`).

export const element = (id) => document.getElementById(id);
const TOAST_MS = 5000;
const LINKS = [
  ["live", "/", "Live"],
  ["queue", "/queue", "Queue"],
  ["parts", "/parts", "Parts"],
  ["quality", "/quality", "Quality"],
  ["models", "/models", "Models"],
  ["admin", "/admin", "Admin"],
];

let session = null;

/** An answer of the station that is an error; `status` is that of HTTP, 0 where it could not be reached. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Ask the station: `body` goes as JSON, the answer comes as JSON (null where it has none). Throws ApiError. */
export async function api(method, path, body) {
  const headers = { Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (method !== "GET" && session?.csrf) headers["X-CSRF-Token"] = session.csrf;
  let response;
  try {
    response = await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
  } catch {
    throw new ApiError(0, "the station does not answer");
  }
  const text = await response.text();
  let answer = null;
  try {
    answer = text === "" ? null : JSON.parse(text);
  } catch {
    // no JSON: the status has to say it
  }
  if (response.ok) return answer;
  if (response.status === 401 && path !== "/api/v1/login") toLogin();
  throw new ApiError(response.status, answer?.error ?? `the station answered ${response.status}`);
}

/** Who is logged in, as GET /api/v1/session says; `name` is null for nobody. Asked anew each time. */
export async function readSession() {
  session = await api("GET", "/api/v1/session");
  return session;
}

/** Make a taker of turns: `const newest = takeTurn()` before a question, `newest()` after it says whether none was asked since. */
export function turns() {
  let last = 0;
  return () => {
    const turn = ++last;
    return () => turn === last;
  };
}

/** Fill the header for the page of this name and return the session. */
export async function open(page) {
  await readSession();
  if (session.must_change || (session.name === null && !session.pages.includes(page))) {
    toLogin();
    return new Promise(() => {}); // the page goes away: nothing after this may run
  }
  fillHeader(page);
  return session;
}

/** Go to the login page, and come back here after it. */
export function toLogin() {
  location.assign(`/login?next=${encodeURIComponent(location.pathname + location.search)}`);
}

function fillHeader(page) {
  const header = element("shell");
  if (header.querySelector(".brand") === null) {
    header.prepend(make("a", { className: "brand", href: "/" }, make("img", { src: "/assets/icon.svg", alt: "", width: 28, height: 28 }), "Linegate"));
  }
  if (element("main") !== null) header.before(make("a", { className: "skip", href: "#main" }, "Skip to content"));
  const links = LINKS.filter(([name]) => session.pages.includes(name));
  if (links.length > 1) {
    const items = links.map(([name, href, text]) => make("li", {}, make("a", { href, ...(name === page ? { ariaCurrent: "page" } : {}) }, text)));
    header.querySelector(".brand").after(make("nav", { className: "pages", ariaLabel: "Pages" }, make("ul", {}, ...items)));
  }
  header.append(account());
}

function account() {
  if (session.name === null) return make("p", { className: "account" }, make("a", { className: "button small", href: "/login" }, "Log in"));
  const out = make("button", { className: "button small", type: "button", id: "logout" }, "Log out");
  out.addEventListener("click", logOut);
  const who = make("a", { className: "name", href: "/login?change", title: "Change password" }, session.name, " ", make("span", { className: "role" }, session.role));
  return make("p", { className: "account" }, make("span", { className: "unseen" }, "Logged in as "), who, out);
}

async function logOut() {
  try {
    await api("POST", "/api/v1/logout");
    location.assign("/login");
  } catch (error) {
    toast(error.message);
  }
}

/** Make an element: properties are set as properties, children are nodes or texts. */
export function make(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Say something to a screen reader, politely. */
export function say(text) {
  let region = element("shell-said");
  if (region === null) {
    region = make("p", { id: "shell-said", className: "unseen", ariaLive: "polite" });
    document.body.append(region);
  }
  region.textContent = ""; // the same text twice is said twice
  setTimeout(() => (region.textContent = text), 50);
}

/** Show a line in the corner: an "error" stays until it is closed, a "done" goes by itself. */
export function toast(text, level = "error") {
  let stack = element("shell-toasts");
  if (stack === null) {
    stack = make("div", { id: "shell-toasts", className: "toasts" });
    document.body.append(stack);
  }
  const close = make("button", { className: "button small", type: "button" }, "Close");
  const shown = make("div", { className: "toast", role: level === "error" ? "alert" : "status" }, make("p", {}, text), close);
  shown.dataset.level = level;
  close.addEventListener("click", () => shown.remove());
  if (level !== "error") setTimeout(() => shown.remove(), TOAST_MS);
  stack.append(shown);
}

const local = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "medium" });

/** An ISO moment as people read it here; "–" for null. */
export function moment(iso) {
  return iso === null ? "–" : local.format(new Date(iso));
}
