// Small charts in SVG: lines over time, stacked bars, one stacked bar. Colours come from the style sheet by name.

import { brief, clock, h, s, swap } from "./dom.js";

const LEFT = 46;

// The width in which a chart will be drawn, so that its letters keep their size: all of the page, or half of it.
export function room(wide) {
  const whole = Math.min(1180, innerWidth) - (innerWidth > 760 ? 90 : 58);
  return Math.max(280, wide || innerWidth < 980 ? whole : whole / 2 - 32);
}

const BOTTOM = 20;

function ceiling(value) {
  if (!(value > 0)) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 1.02) ?? 10 * power;
}

function frame(WIDTH, height, top, unit) {
  const lines = [0, 0.5, 1].map((share) => {
    const y = 8 + (height - BOTTOM - 8) * (1 - share);
    return [s("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y, y2: y }), s("text", { class: "tick", x: LEFT - 7, y: y + 3.5, "text-anchor": "end" }, brief(top * share) + (share === 1 && unit ? ` ${unit}` : ""))];
  });
  return lines.flat();
}

// series: [{name, colour, points: [{at, value}]}]. Gaps longer than `hole` seconds are left open.
export function lines({ series, from, to, unit, label, height = 150, hole = 30, marks = [], most }) {
  const WIDTH = room(false);
  const values = series.flatMap((one) => one.points.map((point) => point.value)).concat(marks.map((mark) => mark.value));
  const top = most ?? ceiling(Math.max(0, ...values.filter(Number.isFinite)));
  const x = (at) => LEFT + (Math.min((at - from) / (to - from), 1)) * (WIDTH - LEFT);
  const y = (value) => 8 + (height - BOTTOM - 8) * (1 - Math.min(value / top, 1));
  const paths = series.map((one) => {
    let d = "";
    let before = null;
    for (const { at, value } of one.points) {
      if (!Number.isFinite(value) || at < from) { before = null; continue; }
      d += `${before !== null && at - before < hole ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
      before = at;
    }
    return s("path", { class: "line", d, style: { stroke: `var(--${one.colour})` } });
  });
  const lone = series.flatMap((one) => one.points.filter((point) => Number.isFinite(point.value) && point.at >= from).map((point) => s("circle", { cx: x(point.at), cy: y(point.value), r: one.points.length > 40 ? 0 : 1.8, style: { fill: `var(--${one.colour})` } })));
  const limits = marks.map((mark) => s("line", { class: "limit", x1: LEFT, x2: WIDTH, y1: y(mark.value), y2: y(mark.value) }));
  const times = [from, (from + to) / 2, to].map((at, place) => s("text", { class: "tick", x: x(at), y: height - 4, "text-anchor": ["start", "middle", "end"][place] }, clock(at)));
  return h("figure", { class: "chart" }, s("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label }, frame(WIDTH, height, top, unit), limits, paths, lone, times), key(series));
}

// bars: [{at?, parts: {kind: value}, title}], each drawn as a stack; heights grow with the square root so that small ones show.
export function stacks({ bars, colours, label, height = 190, unit, onpick }) {
  const WIDTH = room(true);
  const sums = bars.map((bar) => Object.values(bar.parts).reduce((sum, value) => sum + value, 0));
  const top = ceiling(Math.max(1, ...sums));
  const scale = (height - BOTTOM - 8) / Math.sqrt(top);
  const wide = (WIDTH - LEFT) / Math.max(bars.length, 1);
  const nodes = bars.map((bar, place) => {
    const whole = Math.sqrt(sums[place]) * scale;
    let y = height - BOTTOM;
    const parts = Object.keys(colours).filter((kind) => bar.parts[kind]).map((kind) => {
      const tall = (whole * bar.parts[kind]) / sums[place];
      y -= tall;
      return s("rect", { x: LEFT + place * wide, y, width: Math.max(wide - (wide > 4 ? 1.2 : 0.3), 0.6), height: Math.max(tall, 0.5), rx: wide > 5 ? 1 : 0, style: { fill: `var(--${colours[kind]})` } });
    });
    return s("g", { class: "stack", onpointerenter: () => onpick?.(bar) }, s("rect", { x: LEFT + place * wide, y: 0, width: wide, height, fill: "transparent" }), parts);
  });
  const rules = [0, 0.25, 1].map((share) => {
    const at = height - BOTTOM - Math.sqrt(top * share) * scale;
    return [s("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: at, y2: at }), s("text", { class: "tick", x: LEFT - 7, y: at + 3.5, "text-anchor": "end" }, brief(top * share) + (share === 1 && unit ? ` ${unit}` : ""))];
  });
  return h("figure", { class: "chart" }, s("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "img", "aria-label": label }, rules.flat(), nodes));
}

export function key(series) {
  if (series.length < 2) return null;
  return h("figcaption", { class: "key" }, series.map((one) => h("span", null, h("i", { style: { background: `var(--${one.colour})` } }), one.name)));
}

// One bar of parts that make up a whole: [{name, value, colour, text}].
export function share(parts, whole, label) {
  const known = parts.filter((part) => part.value > 0);
  return h("div", { class: "share" },
    h("div", { class: "share-bar", role: "img", "aria-label": `${label}: ${parts.map((part) => `${part.name} ${part.text}`).join(", ")}` },
      known.map((part) => h("i", { title: `${part.name}: ${part.text}`, style: { width: `${(part.value / whole) * 100}%`, background: `var(--${part.colour})` } }))),
    h("div", { class: "key" }, parts.map((part) => h("span", null, h("i", { style: { background: `var(--${part.colour})` } }), part.name, " ", h("b", null, part.text)))));
}

export function tile(name, value, note, points) {
  return h("div", { class: "tile" }, h("h3", null, name), h("div", { class: "figure" }, value), spark(points), h("p", { class: "hint" }, note ?? ""));
}

function spark(points) {
  if (!points || points.length < 2) return h("div", { class: "spark" });
  const shown = points.slice(-90);
  const top = Math.max(...shown.map((point) => point.value), 1e-9);
  const d = shown.map((point, place) => `${place ? "L" : "M"}${((place / (shown.length - 1)) * 120).toFixed(1)} ${(25 - (point.value / top) * 22).toFixed(1)}`).join("");
  return h("div", { class: "spark" }, s("svg", { viewBox: "0 0 120 27", preserveAspectRatio: "none", "aria-hidden": "true" }, s("path", { class: "spark-area", d: `${d}L120 27L0 27Z` }), s("path", { class: "spark-line", d })));
}

export function panel(title, note, ...children) {
  return h("section", { class: "panel" }, h("div", { class: "panel-top" }, h("h2", null, title), note ? h("p", { class: "hint" }, note) : null), children);
}

export { swap };
