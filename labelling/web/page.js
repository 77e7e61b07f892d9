"use strict";
// Texts of others reach the page as text nodes only; nothing here parses HTML.

const byId = (id) => document.getElementById(id);
const PAUSE = 200; // ms for which a new duel takes no answer, so that a key pressed twice answers once
const WORDS = { left: "left", right: "right", tie: "tie", skip: "skipped" };

let state = null; // what the server said last
let name = ""; // who labels in this tab
let busy = false;
let shownAt = 0;

function named() {
  try {
    return decodeURIComponent(location.hash.slice(1));
  } catch {
    return "";
  }
}

function element(tag, text, kind) {
  const made = document.createElement(tag);
  made.textContent = text;
  if (kind) made.className = kind;
  return made;
}

function said(text) {
  const shown = text.trim() ? element("p", text, "said") : element("p", "(empty)", "said empty");
  shown.dir = "auto";
  return shown;
}

function show(id, content) {
  const place = byId(id);
  const parts = [];
  if (typeof content === "string") parts.push(said(content));
  else if (content.length === 1) parts.push(said(content[0].content));
  else for (const turn of content) parts.push(element("span", turn.role, "role"), said(turn.content));
  place.replaceChildren(...parts);
  place.scrollTop = 0;
}

function notice(text) {
  byId("notice").textContent = text;
  byId("notice").hidden = !text;
}

function percent(share) {
  return `${Math.round(100 * share)} %`;
}

function agreed(agreement) {
  if (!agreement) return "No duel has answers of two people yet.";
  const alpha = agreement.alpha === null ? "" : `; Krippendorff’s α ${agreement.alpha.toFixed(2)}`;
  const of = agreement.duels === 1 ? "1 duel" : `${agreement.duels} duels`;
  return `Agreement ${percent(agreement.share)} on ${of} that several people answered${alpha}.`;
}

function rows(place, pairs) {
  byId(place).replaceChildren(
    ...pairs.map(([label, count]) => {
      const row = document.createElement("tr");
      const first = element("td", label);
      first.dir = "auto";
      row.append(first, element("td", String(count)));
      return row;
    }),
  );
}

function people() {
  const options = state.people.map((person) => new Option(person.name, person.name, false, person.name === name));
  options.push(new Option("Someone else…", "", false, false));
  byId("annotator").replaceChildren(...options);
  rows("people", state.people.map((person) => [person.name, `${person.answered} of ${state.total}`]));
  byId("agreement").textContent = agreed(state.agreement);
}

function render() {
  const duel = state.duel;
  const [question, ...guidelines] = state.question.split("\n");
  document.title = question;
  byId("question").textContent = question;
  byId("guidelines").textContent = guidelines.join("\n").trim();
  byId("guidelines").hidden = !byId("guidelines").textContent;
  byId("bar").hidden = byId("actions").hidden = false;
  byId("duel").hidden = !duel;
  byId("finished").hidden = Boolean(duel);
  document.body.classList.toggle("over", !duel);
  byId("progress").max = state.total;
  byId("progress").value = state.answered;
  byId("count").textContent = `${state.answered} of ${state.total}`;
  for (const card of ["left-card", "right-card"]) byId(card).classList.remove("chosen");
  people();
  if (duel) {
    show("prompt", duel.prompt);
    show("left", duel.left);
    show("right", duel.right);
  } else {
    const all = state.answered === state.total;
    byId("finished-title").textContent = all ? "All duels are answered. Thank you!" : "Nothing is left for you. Thank you!";
    byId("finished-text").textContent = all
      ? "Every answer is saved; this page can be closed."
      : "The other duels have been answered, or are being answered, by other people. Every answer of yours is saved.";
    rows("finished-counts", ["left", "right", "tie", "skip"].map((answer) => [WORDS[answer], state.counts[answer]]));
    byId("finished-agreement").textContent = state.agreement ? agreed(state.agreement) : "";
  }
  document.querySelectorAll("[data-answer]").forEach((button) => (button.disabled = !duel));
  byId("undo").disabled = !state.undo;
  window.scrollTo(0, 0);
  shownAt = performance.now();
}

async function ask(path, body) {
  const options = { cache: "no-store", credentials: "omit" };
  if (body) Object.assign(options, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });
  let reply;
  try {
    reply = await fetch(path, options);
  } catch {
    throw new Error("The server does not answer, so nothing was saved just now; all earlier answers are. Start activedpo label again and open the address that it prints.");
  }
  let content = null;
  try {
    content = await reply.json();
  } catch {
    throw new Error(`The server answered with status ${reply.status}. Open the address that activedpo label printed.`);
  }
  if (content.state) return content;
  throw new Error(content.error || `The server answered with status ${reply.status}.`);
}

async function turn(path, body, focus) {
  if (busy) return;
  busy = true;
  document.body.classList.add("busy");
  try {
    const reply = await ask(path, body);
    state = reply.state;
    render();
    notice(reply.error || "");
    byId("status").textContent = reply.done || "";
    if (focus) byId(state.duel ? "question" : "finished-title").focus({ preventScroll: true });
  } catch (error) {
    for (const card of ["left-card", "right-card"]) byId(card).classList.remove("chosen");
    byId("status").textContent = "Not saved";
    notice(error.message);
  } finally {
    busy = false;
    document.body.classList.remove("busy");
  }
}

function answer(choice) {
  const duel = state && state.duel;
  if (busy || !duel || performance.now() - shownAt < PAUSE) return;
  if (choice !== "right" && choice !== "skip") byId("left-card").classList.add("chosen");
  if (choice !== "left" && choice !== "skip") byId("right-card").classList.add("chosen");
  turn("answer", { annotator: name, query: duel.id, hash: duel.hash, seen: duel.seen, answer: choice }, true);
}

function undo() {
  if (busy || !state || !state.undo) return;
  turn("undo", { annotator: name, query: state.undo.query, seen: state.undo.seen }, true);
}

async function whoLabels() {
  byId("name-error").textContent = "";
  let known = [];
  try {
    known = (await ask("people")).state.people;
  } catch (error) {
    notice(error.message);
  }
  byId("known").replaceChildren(
    ...known.map((person) => {
      const button = element("button", person.name);
      button.type = "button";
      button.addEventListener("click", () => choose(person.name));
      return button;
    }),
  );
  byId("name").value = "";
  if (!byId("naming").open) byId("naming").showModal();
}

function choose(chosen) {
  location.hash = encodeURIComponent(chosen);
}

async function arrive() {
  name = named();
  if (!name) return whoLabels();
  const path = `state?annotator=${encodeURIComponent(name)}`;
  try {
    const reply = await ask(path);
    state = reply.state;
    name = state.annotator;
  } catch (error) {
    if (!state) await whoLabels();
    byId("name-error").textContent = error.message;
    if (!byId("naming").open) notice(error.message);
    return;
  }
  if (byId("naming").open) byId("naming").close();
  notice("");
  byId("status").textContent = "";
  render();
}

const KEYS = { ArrowLeft: () => answer("left"), ArrowRight: () => answer("right"), t: () => answer("tie"), s: () => answer("skip"), u: undo };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing || byId("naming").open) return;
  if (event.key === "Escape") byId("team").open = false;
  if (event.target.closest("input, select, textarea")) return;
  const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!act) return;
  event.preventDefault();
  if (!event.repeat) act();
});
document.addEventListener("click", (event) => {
  if (!event.target.closest("#team")) byId("team").open = false;
});
document.querySelectorAll("[data-answer]").forEach((button) => button.addEventListener("click", () => answer(button.dataset.answer)));
byId("undo").addEventListener("click", undo);
byId("annotator").addEventListener("change", (event) => {
  const chosen = event.target.value;
  event.target.blur();
  if (chosen) choose(chosen);
  else {
    event.target.value = name;
    whoLabels();
  }
});
byId("name-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const chosen = byId("name").value.trim();
  if (!chosen) return;
  if (named() === chosen) arrive();
  else choose(chosen);
});
byId("naming").addEventListener("cancel", (event) => {
  if (!state) event.preventDefault(); // nobody labels yet
});
window.addEventListener("hashchange", arrive);
window.addEventListener("pageshow", (event) => event.persisted && arrive());
arrive();
