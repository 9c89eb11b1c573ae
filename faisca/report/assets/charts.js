"use strict";
/* Each figure's printed drawing gives way to one of uPlot's: hover, zoom, toggles, keyboard. */
const report = JSON.parse(document.getElementById("data").textContent);
const hiddenRuns = new Set();
const plots = [];
const DASHES = [[], [6, 4], [1.5, 4], [9, 3, 2, 3]];
const WHOLE = [...Array(13).keys()].flatMap((n) => [10 ** n, 2 * 10 ** n, 5 * 10 ** n]);
const CLOCK = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400, 43200,
  ...[1, 2, 5, 10, 50, 100].map((days) => 86400 * days)];
const CHARACTER = 6.3, LONGEST = 18, LABELS_FROM = 430, LINE = 14;

const css = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const inkOf = (curve) => css(curve.ink);
const keyOf = (curve) => curve.run + "\n" + curve.name;

function engineering(value) {
  for (const [size, unit] of [[1e12, "T"], [1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return +(value / size).toPrecision(3) + " " + unit;
  }
  return String(+value.toPrecision(4));
}

function duration(seconds) {
  if (seconds < 120) return +seconds.toPrecision(3) + " s";
  if (seconds < 7200) return +(seconds / 60).toPrecision(3) + " min";
  return Math.floor(seconds / 3600) + ":" + String(Math.floor(seconds / 60) % 60).padStart(2, "0") + " h";
}

function measure(value) {
  if (value == null) return "–";
  if (value && Math.abs(value) < 1e-3) return (+value.toPrecision(3)).toExponential();
  return Math.abs(value) < 1e4 ? String(+value.toPrecision(4)) : Math.round(value).toLocaleString("en");
}

function tick(value) {
  if (value === 0 || Math.abs(value) < 1e-12) return "0";
  if (Math.abs(value) < 1e-3) return (+value.toPrecision(3)).toExponential();
  return Math.abs(value) < 1e4 ? String(+value.toPrecision(5)) : engineering(value);
}

const across = { steps: engineering, tokens: engineering, time: duration };
const words = { steps: (x) => "step " + Math.round(x), tokens: (x) => engineering(x) + " tokens", time: duration };

/* The place of the value nearest to `at` in sorted values. */
function nearest(values, at) {
  let low = 0, high = values.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (values[middle] < at) low = middle; else high = middle;
  }
  return Math.abs(values[low] - at) <= Math.abs(values[high] - at) ? low : high;
}

class Plot {
  constructor(figure) {
    this.figure = figure;
    this.spec = report.charts[figure.dataset.chart];
    this.box = figure.querySelector(".plot");
    this.at = figure.querySelector(".at");
    this.axis = this.spec.axes[0];
    this.hidden = new Set();
    this.names = new Map(this.spec.labels.map(([run, name, text]) => [run + "\n" + name, text]));
    this.box.tabIndex = 0;
    this.box.setAttribute("role", "group");
    this.box.setAttribute("aria-label", this.spec.title + ", chart: arrows read values, plus and minus zoom");
    this.spoken = this.box.appendChild(document.createElement("p"));
    this.spoken.className = "spoken";
    this.spoken.setAttribute("aria-live", "polite");
    this.box.addEventListener("keydown", (event) => this.key(event));
    for (const button of figure.querySelectorAll(".legend button")) {
      button.addEventListener("click", () => this.toggle(button));
    }
    new ResizeObserver(() => this.fit()).observe(this.box);
    this.make();
  }

  get curves() { return this.spec.curves.filter((curve) => this.axis in curve.x); }
  shows(curve) { return !hiddenRuns.has(curve.run) && !this.hidden.has(keyOf(curve)); }
  get size() {
    const width = this.box.clientWidth;
    return { width, height: { wide: 330, half: 260, small: 190 }[this.spec.size] };
  }
  get room() { return 14 + CHARACTER * Math.min(LONGEST, Math.max(...[...this.names.values()].map((name) => name.length))); }
  get labelled() { return this.names.size > 0 && this.box.clientWidth >= LABELS_FROM; }

  make() {
    if (this.plot) this.plot.destroy();
    const tables = [], series = [{}], bands = [];
    for (const curve of this.curves) {
      const x = curve.x[this.axis], one = curve.y.length === 1, dots = curve.look === "dots" && x.length <= 60;
      tables.push([x, curve.y]);
      series.push({
        show: this.shows(curve), curve, spanGaps: true, alpha: curve.look === "faint" ? 0.35 : 1,
        width: curve.look === "faint" ? 1 : 1.75, dash: DASHES[curve.dash], stroke: () => inkOf(curve),
        points: { show: one || dots, size: 6, width: 0, fill: () => inkOf(curve), stroke: () => inkOf(curve) },
      });
      if (!curve.spread) continue;
      for (const sign of [1, -1]) {
        tables.push([x, curve.y.map((y, i) => y + sign * curve.spread[i])]);
        series.push({ show: this.shows(curve), edge: curve, spanGaps: true, width: 0, stroke: "transparent", points: { show: false } });
      }
      bands.push({ series: [series.length - 2, series.length - 1], fill: () => inkOf(curve) + "22" });
    }
    this.data = uPlot.join(tables);
    this.plot = new uPlot({
      ...this.size, series, bands, legend: { show: false }, padding: [8, this.labelled ? this.room : 10, 0, 0],
      scales: { x: { time: false, range: (u, low, high) => this.range(low, high) }, y: { range: padded } },
      axes: [this.rule(across[this.axis], { size: 28, gap: 6, space: 70, grid: { show: false }, incrs: this.axis === "time" ? CLOCK : WHOLE }),
             this.rule(tick, { size: 48, gap: 8, space: this.spec.size === "small" ? 36 : 48 })],
      cursor: {
        sync: { key: this.spec.group + this.axis }, points: { size: 7 }, drag: { x: true, y: false, dist: 4 },
        dataIdx: (u, s, i, x) => (s && u.series[s].curve && u.data[s][i] == null ? this.nearby(u, s, x) : i),
      },
      hooks: { draw: [(u) => this.labels(u)], setCursor: [(u) => this.read(u)] },
    }, this.data, this.box);
    this.width = this.box.clientWidth;
    this.read(this.plot);
  }

  rule(form, more) {
    const plain = { stroke: () => css("soft"), font: "11.5px " + css("sans"), ticks: { show: false } };
    const grid = { stroke: () => css("line"), width: 1 };
    return { ...plain, grid, values: (u, values) => values.map(form), ...more };
  }

  range(low, high) {
    if (low == null) return [0, 1];
    const first = low <= this.data[0][0] ? Math.min(0, low) : low;
    return [first, high > first ? high : first + 1];
  }

  nearby(u, s, x) {
    const own = u.series[s].curve.x[this.axis];
    return nearest(u.data[0], own[nearest(own, x)]);
  }

  fit() {
    const width = this.box.clientWidth;
    if (!width || width === this.width) return;
    const labelled = width >= LABELS_FROM, before = this.width >= LABELS_FROM;
    if (labelled !== before && this.names.size) this.make();
    else { this.width = width; this.plot.setSize(this.size); }
  }

  /* Names at the ends of the curves that are seen, moved where two would touch. */
  labels(u) {
    if (!this.labelled) return;
    const ends = new Map(), { ctx } = u, ratio = devicePixelRatio;
    for (const curve of this.curves.filter((one) => this.shows(one))) {
      const xs = curve.x[this.axis];
      let last = xs.length - 1;
      while (last > 0 && xs[last] > u.scales.x.max) last -= 1;
      ends.set(keyOf(curve), { curve, y: u.valToPos(curve.y[last], "y", true) });
    }
    const top = u.bbox.top + 4, bottom = u.bbox.top + u.bbox.height, room = LINE * ratio;
    const placed = [...ends.values()].sort((a, b) => a.y - b.y);
    placed.forEach((one, i) => { one.y = Math.max(one.y, i ? placed[i - 1].y + room : top); });
    for (let i = placed.length - 1; i >= 0; i -= 1) placed[i].y = Math.min(placed[i].y, i + 1 < placed.length ? placed[i + 1].y - room : bottom);
    ctx.save();
    ctx.font = 11.5 * ratio + "px " + css("sans");
    ctx.textBaseline = "middle";
    ctx.textAlign = "left";
    for (const { curve, y } of placed) {
      const name = this.names.get(keyOf(curve));
      ctx.fillStyle = inkOf(curve);
      ctx.fillText(name.length > LONGEST ? name.slice(0, LONGEST - 1) + "…" : name, u.bbox.left + u.bbox.width + 8 * ratio, y);
    }
    ctx.restore();
  }

  /* Values under the cursor into the legend; the last ones where there is no cursor. */
  read(u) {
    const inside = u.cursor.left >= 0 && u.cursor.idx != null;
    const x = inside ? u.posToVal(u.cursor.left, "x") : null, said = [];
    for (const item of this.figure.querySelectorAll(".legend [data-run]")) {
      const curves = this.curves.filter((one) => one.run === +item.dataset.run && one.name === item.dataset.name);
      const curve = curves[curves.length - 1];
      if (!curve) continue;
      const place = x == null ? curve.y.length - 1 : nearest(curve.x[this.axis], x);
      item.querySelector("b").textContent = measure(curve.y[place]);
      if (this.shows(curve)) said.push([curve.name || this.spec.title, measure(curve.y[place])].join(" "));
    }
    this.at.hidden = x == null;
    this.at.textContent = x == null ? "" : words[this.axis](u.data[0][u.cursor.idx]);
    return this.at.textContent + ": " + said.join(", ");
  }

  toggle(button) {
    const key = button.dataset.run + "\n" + button.dataset.name;
    if (!this.hidden.delete(key)) this.hidden.add(key);
    button.setAttribute("aria-pressed", String(!this.hidden.has(key)));
    this.show();
  }

  show() {
    this.plot.batch(() => this.plot.series.forEach((one, i) => {
      const curve = one.curve || one.edge;
      if (curve && one.show !== this.shows(curve)) this.plot.setSeries(i, { show: this.shows(curve) });
    }));
  }

  against(axis) { if (this.spec.axes.includes(axis)) { this.axis = axis; this.make(); } }
  repaint() { if (this.plot.status) this.plot.redraw(false); }

  zoom(factor) {
    const { min, max } = this.plot.scales.x, u = this.plot;
    const middle = u.cursor.left >= 0 ? u.posToVal(u.cursor.left, "x") : (min + max) / 2;
    const all = [Math.min(0, u.data[0][0]), u.data[0][u.data[0].length - 1]];
    const low = factor ? Math.max(all[0], middle - (middle - min) * factor) : all[0];
    const high = factor ? Math.min(all[1], middle + (max - middle) * factor) : all[1];
    if (high > low) u.setScale("x", { min: low, max: high });
  }

  key(event) {
    const u = this.plot, move = { ArrowLeft: -1, ArrowRight: 1, Home: -1e9, End: 1e9 }[event.key];
    const zoom = { "+": 0.6, "=": 0.6, "-": 1 / 0.6, Escape: 0 }[event.key];
    if (event.target !== this.box || event.ctrlKey || event.metaKey || (move === undefined && zoom === undefined)) return;
    event.preventDefault();
    if (zoom !== undefined) { this.zoom(zoom); return; }
    const at = u.cursor.left >= 0 && u.cursor.idx != null ? u.cursor.idx : move > 0 ? -1 : u.data[0].length;
    const place = Math.min(u.data[0].length - 1, Math.max(0, at + move));
    u.setCursor({ left: u.valToPos(u.data[0][place], "x"), top: u.over.clientHeight / 2 });
    this.spoken.textContent = this.read(u);
  }
}

function padded(u, low, high) {
  if (low == null) return [0, 1];
  const room = 0.06 * (high - low) || 0.1 * Math.abs(high) || 1;
  return [low === 0 ? 0 : low - room, high + room];
}
