// The login page: name and password, a new password where it has to be, and the plant's own login where there is one.
//
// Rules kept here: where to go afterwards is the station's word, never the address's; a password stays in its field and nowhere
// else.

import { api, element, readSession, toast } from "/assets/shell.js";

const asked = new URLSearchParams(location.search).get("next");
let destination = "/";

function show(form) {
  for (const id of ["login", "change"]) element(id).hidden = id !== form;
  element(form).querySelector("input:not([readonly])").focus();
}

function leave() {
  location.assign(destination);
}

async function send(form, button, work) {
  const problem = element(`${form}-problem`);
  problem.textContent = "";
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    problem.textContent = `${error.message[0].toUpperCase()}${error.message.slice(1)}.`;
    const field = element(form).querySelector("input[type=password]");
    field.select();
    field.focus();
  } finally {
    button.disabled = false;
  }
}

element("login").addEventListener("submit", (event) => {
  event.preventDefault();
  send("login", event.submitter ?? element("login").querySelector("[type=submit]"), async () => {
    const name = element("name").value.trim();
    const body = { name, password: element("password").value };
    if (asked !== null) body.next = asked;
    const session = await api("POST", "/api/v1/login", body);
    destination = session.next ?? "/";
    await readSession();
    if (!session.must_change) return leave();
    element("change-name").value = session.name;
    element("current").value = element("password").value;
    element("password").value = "";
    show("change");
    element("new").focus();
  });
});

element("change").addEventListener("submit", (event) => {
  event.preventDefault();
  send("change", event.submitter ?? element("change").querySelector("[type=submit]"), async () => {
    if (element("new").value !== element("again").value) throw new Error("the new password is not the same both times");
    await api("POST", "/api/v1/password", { current: element("current").value, new: element("new").value });
    leave();
  });
});

async function start() {
  const session = await readSession();
  if (session.oidc) {
    if (asked !== null) element("provider-link").href = `/api/v1/oidc/start?next=${encodeURIComponent(asked)}`;
    element("provider").hidden = false;
  }
  // Also where somebody is logged in and wants another password: /login?change
  const change = session.must_change || (session.csrf !== null && new URLSearchParams(location.search).has("change"));
  if (change) {
    element("change-name").value = session.name;
    if (!session.must_change) element("change-why").textContent = "At least 12 characters; a few words that only you would put together are best.";
  }
  show(change ? "change" : "login");
}

start().catch((error) => toast(error.message));
