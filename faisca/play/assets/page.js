/* The page: what is asked, of which columns, with which settings. */
import { facts, isStop, make, stream, words } from "./api.js";
import { closePanel } from "./alternatives.js";
import { Column } from "./column.js";
import { setLevels } from "./line.js";
import { wireTheme } from "./theme.js";

const $ = (id) => document.getElementById(id);
const NUMBERS = ["temperature", "top_k", "top_p", "rows", "max_new_tokens", "seed"];
const SLIDERS = ["temperature", "top_k", "top_p"];
let run, columns = [], stop = null;
const longest = { headlines: 0, chat: 0 };

wireTheme($("theme"));
const mode = () => document.querySelector("[name=mode]:checked").value;

/** The settings as the server takes them; an answer has a length of its own. */
function settings(of = mode()) {
  const found = Object.fromEntries(NUMBERS.map((name) => [name, $(name).valueAsNumber]));
  return { ...found, max_new_tokens: of === mode() ? found.max_new_tokens : longest[of] };
}

const chosen = (name) => [...document.querySelectorAll(`[name=${name}]:checked`)].map((input) => input.value);

/** The columns that are shown: of the stages and backends that are chosen, and in a conversation those that can have one. */
function shown() {
  const [stages, backends] = [chosen("stage"), chosen("backend")];
  return columns.filter((one) => stages.includes(one.stage.name) && backends.includes(one.backend.name)
    && (mode() === "headlines" || one.stage.chats));
}

function arrange() {
  const visible = shown(), across = new Set(visible.map((one) => one.stage.name)).size;
  for (const one of columns) one.element.hidden = !visible.includes(one);
  $("columns").dataset.across = across;
  $("write").disabled = $("another").disabled = !visible.length; // until there is a column, Enter would only reload the page
  if (!visible.length) announce("no column is shown: choose a stage and a backend");
}

function announce(text) {
  $("status").textContent = text;
}

/** Ask for all of these at once; columns take the events that are theirs. */
async function write(asks, of) {
  stop?.abort();
  const mine = stop = new AbortController();
  const byId = new Map(of.map((one) => [one.id, one]));
  $("write").textContent = "Stop";
  announce("writing");
  try {
    await stream("write", { asks, settings: settings(asks[0].messages ? "chat" : "headlines") }, mine.signal,
      (event) => byId.get(event.column).take(event));
    announce("written");
  } catch (error) {
    if (stop !== mine) return; // something else is written already
    for (const one of of) if (isStop(error)) one.say("stopped"); else one.fail(words(error));
    announce(isStop(error) ? "stopped" : words(error));
  } finally {
    if (stop === mine) idle();
  }
}

/** Nothing is written any more. */
function idle() {
  stop?.abort();
  stop = null;
  $("write").textContent = mode() === "chat" ? "Send" : "Write";
}

function begin() {
  const of = shown(), text = $("prompt").value;
  if (!$("ask").reportValidity() || !of.length || (mode() === "chat" && !text.trim())) return;
  const asks = of.map((one) => one.ask(mode(), text));
  of.forEach((one, i) => one.prepare(asks[i]));
  if (mode() === "chat") $("prompt").value = "";
  write(asks, of);
}

function wireForm() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    if (stop) stop.abort(); else begin();
  });
  $("another").addEventListener("click", () => {
    $("seed").value = Math.floor(Math.random() * 1e6);
    begin();
  });
  $("anew").addEventListener("click", () => { idle(); columns.forEach((one) => one.anew()); $("prompt").focus(); });
  for (const name of SLIDERS) $(name).addEventListener("input", () => showSlider(name));
  for (const input of document.querySelectorAll("[name=mode]")) input.addEventListener("change", changeMode);
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") closePanel(); });
}

function showSlider(name) {
  const value = $(name).valueAsNumber;
  const off = (name === "top_k" && value === 0) || (name === "top_p" && value === 1);
  $(`${name}-shown`).textContent = off ? "off" : String(value);
}

/** Headlines or a conversation: each begins with nothing, and has its own length. */
function changeMode() {
  const chat = mode() === "chat";
  idle();
  longest[chat ? "headlines" : "chat"] = $("max_new_tokens").valueAsNumber;
  $("max_new_tokens").value = longest[mode()];
  $("rows-label").hidden = $("rows").disabled = chat;
  $("another").hidden = chat;
  $("anew").hidden = !chat;
  $("prompt-label").textContent = chat ? "Your message" : "How the headline begins";
  $("prompt").placeholder = chat ? "What do you say?" : "How does the headline begin?";
  $("prompt").value = chat ? "" : run.prompt;
  columns.forEach((one) => one.anew());
  arrange();
}

function toggle(name, value, words, checked, problem = "") {
  const input = make("input", { type: "checkbox", name, value, checked, disabled: Boolean(problem) });
  input.addEventListener("change", arrange);
  return make("label", { className: "toggle" }, input, make("span", { textContent: problem || words }));
}

function fill() {
  document.title = `${run.name} – Faísca play`;
  $("name").textContent = run.name;
  $("prompt").value ||= run.prompt; // unless something is typed already
  for (const [name, value] of Object.entries(run.settings)) {
    const input = $(name);
    if (SLIDERS.includes(name)) { input.max = Math.max(input.max, value); input.min = Math.min(input.min, value); input.step = fine(input, value); }
    else input.max = run.most[name];
    input.value = value;
  }
  SLIDERS.forEach(showSlider);
  Object.assign(longest, { headlines: run.settings.max_new_tokens, chat: Math.min(run.longest_answer, run.most.max_new_tokens) });
  $("stages").append(...run.stages.map((one) => toggle("stage", one.name, one.title, true)));
  $("backends").append(...run.backends.map((one) => toggle("backend", one.name, one.name, one.chosen && !one.problem, one.problem)));
  $("modes").hidden = !run.stages.some((one) => one.chats);
  setLevels(run.levels);
  $("levels").append(...legend(run.levels));
  // the stages of a backend stand beside each other, the other backend's below
  columns = run.backends.flatMap((backend) => run.stages.map((stage) => new Column(stage, backend, { settings, write })));
  $("columns").append(...columns.map((one) => one.element));
}

/** A slider's step with which it can stand at the run's own value. */
const fine = (input, value) => (Math.abs(value / input.step - Math.round(value / input.step)) < 1e-9 ? input.step : "any");

function legend(levels) {
  const percents = levels.map((least) => `${100 * least}`);
  const texts = [`over ${percents[0]} %`, ...percents.slice(1).map((low, i) => `${low}–${percents[i]} %`), `under ${percents.at(-1)} %`];
  return texts.map((text, i) => make("span", { className: `t l${i}`, textContent: text }));
}

try {
  run = await facts();
  fill();
  wireForm();
  arrange();
  $("prompt").focus();
} catch (error) {
  document.querySelector("main").replaceChildren(make("p", { className: "problem", textContent: words(error) }));
}
