/* The panel below a line: what a token could have been, and which one takes its place. */
import { isStop, make, stream, words } from "./api.js";
import { named, percent } from "./line.js";

let opened = null;

/** Close the panel that is open, wherever it is; the focus goes back to its token. */
export function closePanel() {
  if (!opened) return;
  const { line, index, panel, stop, inside } = { ...opened, inside: opened.panel.contains(document.activeElement) };
  opened = null;
  stop.abort();
  panel.remove();
  line.pieces[index].span.classList.remove("on");
  line.pieces[index].span.setAttribute("aria-expanded", "false");
  if (inside && line.element.isConnected) line.focus(index);
}

/** Ask for the alternatives of a line's token; `force(line, index, id)` is called with the one that is chosen. */
export async function openPanel(line, index, settings, force) {
  const again = opened && opened.line === line && opened.index === index;
  closePanel();
  if (again) return;
  const piece = line.pieces[index], stop = new AbortController();
  const panel = make("div", { className: "panel", aria: { role: "group", label: `Instead of ${named(piece)}` } });
  panel.append(make("p", { className: "waiting", textContent: "asking the model …" }));
  opened = { line, index, panel, stop };
  line.element.append(panel);
  piece.span.classList.add("on");
  piece.span.setAttribute("aria-expanded", "true");
  panel.addEventListener("keydown", (event) => { if (event.key === "Escape") closePanel(); });
  const ask = { ...line.ask, row: line.row, after: line.ids(index) };
  const take = (event) => {
    if (event.event === "alternatives") show(panel, piece, event, (id) => { closePanel(); force(line, index, id); });
    if (event.event === "error") panel.replaceChildren(make("p", { className: "problem", textContent: event.message }));
  };
  try {
    await stream("alternatives", { asks: [ask], settings }, stop.signal, take);
  } catch (error) {
    if (!isStop(error)) panel.replaceChildren(make("p", { className: "problem", textContent: words(error) }));
  }
}

function show(panel, piece, event, choose) {
  const most = Math.max(...event.alternatives.map((one) => one.own));
  const rows = event.alternatives.map((one) => {
    const button = make("button", { type: "button", className: "choice", textContent: one.end ? "¶ end" : visible(one.text) });
    button.addEventListener("click", () => choose(one.id));
    const bar = make("span", { className: "bar" });
    bar.style.width = `${(100 * one.own) / most}%`;
    const row = make("tr", {}, make("th", { scope: "row" }, button),
      make("td", { className: "own" }, make("span", { className: "track" }, bar), percent(one.own)), make("td", {}, percent(one.drawn)));
    if (one.id === piece.ids[0]) { row.className = "taken"; button.setAttribute("aria-current", "true"); }
    return row;
  });
  const head = make("tr", {}, make("th", { scope: "col", textContent: "instead" }),
    make("th", { scope: "col", textContent: "the model's own" }), make("th", { scope: "col", textContent: "as set above" }));
  const close = make("button", { type: "button", className: "quiet", textContent: "close" });
  close.addEventListener("click", closePanel);
  const rest = make("p", {}, `all others: ${percent(event.rest)}`, close);
  panel.replaceChildren(make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows)), rest);
  panel.querySelector("[aria-current], button").focus();
}

/** A token with its leading space shown, for with and without one are different tokens. */
const visible = (text) => text.replace(/^ /, "␣").replaceAll("\n", "↵") || "␣";
