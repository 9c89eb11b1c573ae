"use strict";
/* The page around the charts: theme, runs, axes, tokens, options. */
const root = document.documentElement;
root.classList.add("js");
for (const figure of document.querySelectorAll("[data-chart]")) plots.push(new Plot(figure));

/* theme: as the system has it, light, dark */
const themes = ["system", "light", "dark"], button = document.getElementById("theme");
const remember = (value) => { try { localStorage.setItem("faisca-theme", value); } catch { /* a file may have no storage */ } };
const remembered = () => { try { return localStorage.getItem("faisca-theme"); } catch { return null; } };
function dress(theme) {
  if (theme === "system") delete root.dataset.theme; else root.dataset.theme = theme;
  button.textContent = "theme: " + theme;
  for (const one of plots) one.repaint();
}
button.addEventListener("click", () => {
  const next = themes[(themes.indexOf(root.dataset.theme || "system") + 1) % themes.length];
  remember(next);
  dress(next);
});
dress(themes.includes(remembered()) ? remembered() : "system");
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plots.forEach((one) => one.repaint()));

/* runs, everywhere at once; the last one stays */
for (const one of document.querySelectorAll("[data-toggle-run]")) {
  one.addEventListener("click", () => {
    const run = +one.dataset.toggleRun;
    if (!hiddenRuns.delete(run) && hiddenRuns.size < report.runs.length - 1) hiddenRuns.add(run);
    one.setAttribute("aria-pressed", String(!hiddenRuns.has(run)));
    for (const part of document.querySelectorAll("[data-run]")) part.classList.toggle("off", hiddenRuns.has(+part.dataset.run));
    for (const head of document.querySelectorAll("[data-span]")) {
      const seen = head.dataset.span.split(" ").filter((shown) => !hiddenRuns.has(+shown)).length;
      head.colSpan = Math.max(1, seen);
      head.classList.toggle("off", !seen);
    }
    for (const plot of plots) plot.show();
  });
}

/* what curves are drawn against */
for (const input of document.querySelectorAll(".axes input")) {
  input.addEventListener("change", () => {
    const section = input.closest("section");
    for (const one of plots) if (section.contains(one.figure)) one.against(input.value);
  });
}

/* a token's probability under the pointer, or with arrows */
const tip = document.createElement("span");
tip.className = "tip";
tip.setAttribute("role", "status");
function point(token) {
  for (const other of document.querySelectorAll(".t.on")) other.classList.remove("on");
  if (!token) { tip.remove(); return; }
  token.classList.add("on");
  tip.textContent = (token.textContent.trim() || "space") + "  " + token.dataset.p + " %";
  token.parentNode.append(tip);
  const wide = tip.offsetWidth / 2, middle = token.offsetLeft + token.offsetWidth / 2;
  tip.style.left = Math.min(Math.max(middle, wide), token.parentNode.clientWidth - wide) + "px";
  tip.style.top = token.offsetTop + "px";
}
for (const line of document.querySelectorAll(".tokens")) {
  const tokens = [...line.querySelectorAll(".t")];
  line.tabIndex = 0;
  line.setAttribute("role", "group");
  line.setAttribute("aria-label", line.textContent + ": arrows read the tokens");
  line.addEventListener("pointerover", (event) => point(event.target.closest(".t")));
  line.addEventListener("pointerleave", () => point(null));
  line.addEventListener("blur", () => point(null));
  line.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!move) return;
    event.preventDefault();
    const at = tokens.findIndex((token) => token.classList.contains("on"));
    point(tokens[Math.min(tokens.length - 1, Math.max(0, at + move))]);
  });
}

/* options */
const only = document.getElementById("only-changed");
if (only) only.addEventListener("change", () => root.classList.toggle("only-changed", only.checked));

/* where one is on the page */
const links = new Map([...document.querySelectorAll("nav a")].map((link) => [link.hash.slice(1), link]));
const seen = new Set();
const watch = new IntersectionObserver((entries) => {
  for (const entry of entries) if (entry.isIntersecting) seen.add(entry.target.id); else seen.delete(entry.target.id);
  const first = [...links.keys()].find((id) => seen.has(id));
  if (!first) return;
  for (const [id, link] of links) if (id === first) link.setAttribute("aria-current", "true"); else link.removeAttribute("aria-current");
}, { rootMargin: "-20% 0px -60% 0px" });
for (const id of links.keys()) watch.observe(document.getElementById(id));

addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => { one.open = true; }));
