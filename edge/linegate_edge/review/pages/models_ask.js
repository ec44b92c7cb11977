// One dialog for all questions: what will happen, where, why, and the station's refusal in its own words.

import { element } from "/assets/shell.js";

const dialog = element("ask");
let asked = null;

/**
 * Ask before a change is made; `work` gets { reason, place } and may throw, which the dialog shows and stays open.
 *
 * `text` are paragraphs, or nodes; `reason` is { label, needed } or nothing; `places` is a list of { recipe, view }, and
 * `onPlace` is called with the one chosen, and may return other paragraphs and whether a reason is needed.
 */
export function ask(question) {
  asked = question;
  element("ask-title").textContent = question.title;
  element("ask-yes").textContent = question.yes;
  element("ask-yes").className = question.danger ? "button danger" : "button primary";
  element("ask-reason").value = "";
  element("ask-refused").hidden = true;
  const places = question.places ?? [];
  element("ask-place").replaceChildren(...places.map((place, index) => new Option(`${place.recipe} / ${place.view}`, index)));
  element("ask-place-field").hidden = places.length < 2;
  show(question);
  dialog.showModal();
}

function show(question) {
  const place = question.places?.[Number(element("ask-place").value || 0)];
  const { text, reason } = { ...question, ...(question.onPlace?.(place) ?? {}) };
  element("ask-text").replaceChildren(...text.map((item) => (typeof item === "string" ? paragraph(item) : item)));
  element("ask-reason-field").hidden = !reason;
  element("ask-reason").required = reason?.needed ?? false;
  element("ask-reason-label").textContent = reason?.label ?? "";
}

function paragraph(text) {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}

element("ask-place").addEventListener("change", () => show(asked));
element("ask-no").addEventListener("click", () => dialog.close());
element("ask-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const place = asked.places?.[Number(element("ask-place").value || 0)];
  element("ask-yes").disabled = true;
  try {
    await asked.work({ reason: element("ask-reason").value.trim(), place });
    dialog.close();
  } catch (error) {
    element("ask-refused").textContent = error.message;
    element("ask-refused").hidden = false;
  } finally {
    element("ask-yes").disabled = false;
  }
});
