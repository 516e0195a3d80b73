// The newest requests, and the life of one of them in spans. No text of any request is kept, so none can be shown.

import { brief, clock, count, h, s, seconds, swap } from "./dom.js";
import { panel, room } from "./charts.js";

function state(one) {
  if (one.ended === null) return one.first !== null ? "decoding" : started(one) !== null ? "prompt" : "waiting";
  return [...new Set(one.finish)].join(", ") || "refused";
}

// When a step first computed something of it: the engine says so with its first token, and a watched step at once.
export function started(one) {
  return one.queued ?? one.chunks[0]?.[0] ?? null;
}

// [name, colour, begin, end] of each phase, in seconds after its arrival.
function phases(one, now) {
  const end = one.ended ?? Math.max(now - one.began, 0);
  const queued = started(one) ?? (one.first !== null ? 0 : end);
  const first = one.first ?? end;
  return [["queued", "k-rest", 0, Math.min(queued, end)], ["prompt", "k-prompt", queued, first], ["decode", "k-decode", first, end]].filter(([, , begin, finish]) => finish > begin);
}

class Requests {
  constructor() {
    this.note = h("p", { class: "hint" });
    this.table = h("div", { class: "scroll-x" });
    this.detail = h("div");
    this.wanted = "";
    this.node = h("div", { class: "page" }, h("h1", null, "Requests"), this.note, this.detail, panel("Newest first", "choose one to see its life", this.table));
  }

  update(feed) {
    if (feed.data) this.data = feed.data;
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const { requests, now } = this.data;
    this.note.textContent = this.data.own_only ? "Only requests of your own key are shown." : "Times and counts only: no prompt and no answer is kept.";
    if (!requests.length) swap(this.table, h("p", { class: "empty" }, "No request since the server began."));
    else this.drawTable(requests, now);
    const one = requests.find((request) => request.id === this.wanted) ?? requests.find((request) => request.ended !== null && request.first !== null) ?? requests[0];
    if (one) swap(this.detail, life(one, now));
  }

  drawTable(requests, now) {
    const from = Math.min(...requests.slice(0, 40).map((one) => one.began));
    const to = Math.max(now, from + 1);
    const rows = requests.slice(0, 40).map((one) => h("tr", { class: one.id === this.wanted ? "chosen" : null },
      h("td", null, h("a", { href: `#requests/${one.id}`, class: "mono", title: one.id }, one.id.slice(0, 10))), h("td", null, clock(one.began)), h("td", null, state(one)),
      h("td", { class: "num" }, count(one.prompt_tokens), one.cached_tokens ? h("small", null, ` ${count(one.cached_tokens)} cached`) : null), h("td", { class: "num" }, count(one.generated_tokens)),
      h("td", { class: "num" }, seconds(one.first)), h("td", { class: "num" }, seconds(one.ended ?? now - one.began)), h("td", { class: "lane" }, strip(one, from, to, now))));
    const names = ["request", "came", "state", "prompt", "tokens", "first", "whole", "over time"];
    swap(this.table, h("table", null, h("thead", null, h("tr", null, names.map((name, place) => h("th", { scope: "col", class: place > 2 && place < 7 ? "num" : null }, name)))), h("tbody", null, rows)));
  }
}

function strip(one, from, to, now) {
  const x = (at) => ((one.began + at - from) / (to - from)) * 100;
  return s("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", class: "strip", "aria-hidden": "true" }, phases(one, now).map(([, colour, begin, end]) => s("rect", { x: x(begin), y: 1, width: Math.max(x(end) - x(begin), 0.35), height: 6, style: { fill: `var(--${colour})` } })));
}

function life(one, now) {
  const WIDTH = room(true);
  const end = Math.max(one.ended ?? now - one.began, 0.001);
  const x = (at) => 4 + (at / end) * (WIDTH - 8);
  const found = phases(one, now);
  const bars = found.map(([name, colour, begin, finish]) => s("rect", { x: x(begin), y: 22, width: Math.max(x(finish) - x(begin), 1.5), height: 22, rx: 3, style: { fill: `var(--${colour})` } }, s("title", null, `${name}: ${seconds(finish - begin)}`)));
  const chunks = one.chunks.map(([begin, span, rows]) => s("rect", { x: x(begin), y: 50, width: Math.max(x(begin + span) - x(begin) - 0.6, 1.2), height: 10, rx: 2, style: { fill: "var(--k-prompt)" } }, s("title", null, `${count(rows)} rows of the prompt in ${seconds(span)}`)));
  const setbacks = one.setbacks.map((at) => s("path", { d: `M${x(at)} 20l-5 -9h10z`, style: { fill: "var(--bad)" } }, s("title", null, `gave its pages back at ${seconds(at)}`)));
  const ticks = [0, 0.25, 0.5, 0.75, 1].map((share, place) => s("text", { class: "tick", x: x(end * share), y: 80, "text-anchor": ["start", "middle", "middle", "middle", "end"][place] }, share ? seconds(end * share) : "0"));
  const pace = one.first !== null && one.last > one.first ? (one.generated_tokens - one.choices) / (one.last - one.first) : NaN;
  const facts = [
    ["came", clock(one.began)], ["model", one.name], ["key", one.tenant || "none"], ["state", state(one)], ["queued", seconds(one.queued)], ["first token", seconds(one.first)],
    ["whole", one.ended === null ? "goes on" : seconds(one.ended)], ["prompt", `${count(one.prompt_tokens)} tokens`], ["from cache", `${count(one.cached_tokens)} tokens`], ["answer", `${count(one.generated_tokens)} of at most ${count(one.max_tokens * one.choices)}`],
    ["pace", Number.isFinite(pace) ? `${brief(pace)} tokens/s` : "–"], ["longest gap", seconds(one.longest_gap)],
  ];
  const legend = found.map(([name, colour, begin, finish]) => h("span", null, h("i", { style: { background: `var(--${colour})` } }), `${name} `, h("b", null, seconds(finish - begin))));
  const note = one.chunks.length ? `prompt in ${one.chunks.length} ${one.chunks.length === 1 ? "piece" : "pieces"}` : "";
  return panel(h("span", { class: "mono" }, one.id), note, h("figure", { class: "chart" }, s("svg", { viewBox: `0 0 ${WIDTH} 84`, role: "img", "aria-label": `Life of request ${one.id}` }, bars, chunks, setbacks, ticks)), h("div", { class: "key" }, legend), h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", null, h("dt", null, name), h("dd", null, value)))));
}

export function requestsView() {
  const view = new Requests();
  return { node: view.node, needs: { requests: 200, steps: 1 }, update: (feed) => view.update(feed), open(id) { view.wanted = id; view.draw(); } };
}
