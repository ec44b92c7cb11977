// Users, tokens and the audit trail.
//
// Rules kept here: what was made once (a password, a token) is shown once, and not kept by the page; what takes something away
// from somebody is asked about first; after each change the page shows what the station says, not what it thinks.

import { api, element, make, moment, open, say, toast, turns } from "/assets/shell.js";

const PEOPLE = ["operator", "quality", "ml", "auditor", "admin"];
let me = null;
let before = null;
const takeTurn = turns();

const mayManage = () => me.permissions.includes("users");

async function attempt(work) {
  try {
    await work();
  } catch (error) {
    toast(error.message);
  }
}

function button(text, work, kind = "") {
  const made = make("button", { className: `button small ${kind}`, type: "button" }, text);
  made.addEventListener("click", () => attempt(work));
  return made;
}

function sure(text, yes) {
  const dialog = element("sure");
  element("sure-text").textContent = text;
  element("sure-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true }));
}

function showSecret(why, text) {
  element("secret-why").textContent = why;
  element("secret-text").textContent = text;
  element("secret").showModal();
}

element("secret").addEventListener("close", () => (element("secret-text").textContent = ""));

// -- users ----------------------------------------------------------------------------------------------------------

async function showUsers() {
  const { items } = await api("GET", "/api/v1/users");
  element("user-rows").replaceChildren(...items.map(userRow));
}

function userRow(user) {
  const role = make("select", { className: "control", ariaLabel: `Role of ${user.name}` }, ...options(PEOPLE, user.role));
  role.addEventListener("change", () =>
    attempt(async () => {
      const yes = await sure(`Make ${user.name} ${role.value}? All sessions of ${user.name} end.`, "Change role");
      if (yes) await change(user, { role: role.value });
      else role.value = user.role;
    }).finally(() => attempt(showUsers)),
  );
  const state = user.disabled_at !== null ? "disabled" : user.must_change ? "one-time password" : user.issuer !== null ? "plant's account" : "active";
  const actions = make("div", { className: "actions" });
  if (user.sessions > 0) actions.append(button("End sessions", () => change(user, { end_sessions: true })));
  if (user.issuer === null) {
    actions.append(
      button("One-time password", async () => {
        if (await sure(`Give ${user.name} a one-time password? The one so far is over, and all sessions of ${user.name} end.`, "Make one")) await change(user, { reset_password: true });
      }),
    );
  }
  if (user.disabled_at !== null) actions.append(button("Enable", () => change(user, { disabled: false })));
  else {
    actions.append(
      button("Disable", async () => {
        if (await sure(`Let ${user.name} in no more? All sessions of ${user.name} end.`, "Disable")) await change(user, { disabled: true });
      }, "danger"),
    );
  }
  const row = make("tr", {}, make("th", { scope: "row" }, user.name), cell(role), cell(state), cell(String(user.sessions)), cell(moment(user.created_at)), cell(actions));
  row.dataset.over = user.disabled_at !== null;
  return row;
}

async function change(user, body) {
  const answer = await api("PATCH", `/api/v1/users/${encodeURIComponent(user.name)}`, body);
  if (answer.one_time_password !== null) showSecret(`Give this password to ${user.name}; it has to be changed at the first login.`, answer.one_time_password);
  say(`${user.name} was changed`);
  await refresh();
}

element("new-user").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const answer = await api("POST", "/api/v1/users", { name: element("user-name").value.trim(), role: element("user-role").value });
    event.target.reset();
    showSecret(`Give this password to ${answer.user.name}; it has to be changed at the first login.`, answer.one_time_password);
    await refresh();
  });
});

// -- tokens ---------------------------------------------------------------------------------------------------------

async function showTokens() {
  const { items } = await api("GET", "/api/v1/tokens");
  element("token-rows").replaceChildren(...items.map(tokenRow));
}

function tokenRow(token) {
  const over = token.revoked_at !== null || new Date(token.expires_at) <= new Date();
  const actions = make("div", { className: "actions" });
  if (!over) {
    actions.append(
      button("Revoke", async () => {
        if (!(await sure(`Revoke the token ${token.name}? What uses it is refused from now on.`, "Revoke"))) return;
        await api("DELETE", `/api/v1/tokens/${encodeURIComponent(token.name)}`);
        say(`${token.name} was revoked`);
        await refresh();
      }, "danger"),
    );
  }
  const state = token.revoked_at !== null ? `revoked ${moment(token.revoked_at)}` : over ? "over" : "good";
  const row = make("tr", {}, make("th", { scope: "row" }, token.name), cell(token.role), cell(token.created_by), cell(moment(token.expires_at)), cell(state), cell(actions));
  row.dataset.over = over;
  return row;
}

element("new-token").addEventListener("submit", (event) => {
  event.preventDefault();
  attempt(async () => {
    const body = { name: element("token-name").value.trim(), role: element("token-role").value, days: Number(element("token-days").value) };
    const answer = await api("POST", "/api/v1/tokens", body);
    event.target.reset();
    showSecret(`The token ${answer.token.name} goes into the header Authorization, after the word Bearer.`, answer.secret);
    await refresh();
  });
});

// -- the audit trail ------------------------------------------------------------------------------------------------

async function showAudit(older = false) {
  const newest = takeTurn();
  const { items, next } = await api("GET", older ? `/api/v1/audit?before=${before}` : "/api/v1/audit");
  if (!newest()) return;
  const rows = items.map(auditRow);
  if (older) element("audit-rows").append(...rows);
  else element("audit-rows").replaceChildren(...rows);
  before = next;
  element("older").hidden = next === null;
}

function auditRow(line) {
  const detail = Object.entries(line.detail).map(([key, value]) => `${key}: ${typeof value === "string" ? value : JSON.stringify(value)}`);
  const digest = make("span", { className: "digest", title: line.digest }, `${line.digest.slice(0, 12)}…`);
  return make("tr", {}, cell(String(line.number)), cell(moment(line.at)), cell(`${line.actor} (${line.role})`), cell(line.action), cell(line.subject), cell(detail.join(" · ")), cell(digest));
}

element("older").addEventListener("click", () => attempt(() => showAudit(true)));
element("verify").addEventListener("click", () =>
  attempt(async () => {
    const noted = element("noted");
    if (!noted.reportValidity()) return;
    const answer = await api("GET", `/api/v1/audit/verify${noted.value === "" ? "" : `?noted=${noted.value}`}`);
    const verdict = element("verified");
    verdict.dataset.holds = answer.holds;
    verdict.textContent = answer.holds ? `✓ The trail holds: ${answer.lines} lines, head ${answer.head.slice(0, 12)}…` : `✗ The trail does not hold: ${answer.problem}`;
  }),
);

// -- small things ---------------------------------------------------------------------------------------------------

function cell(content) {
  return make("td", {}, content);
}

function options(names, chosen) {
  return names.map((name) => make("option", { value: name, selected: name === chosen }, name));
}

async function refresh() {
  if (mayManage()) await Promise.all([showUsers(), showTokens()]);
  await showAudit();
}

attempt(async () => {
  me = await open("admin");
  if (mayManage()) {
    element("user-role").replaceChildren(...options(PEOPLE, "operator"));
    element("token-role").replaceChildren(...options(["machine", ...PEOPLE], "machine"));
    element("users").hidden = element("tokens").hidden = false;
  }
  await refresh();
});
