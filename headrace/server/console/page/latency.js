// How long people wait: percentiles over time, and how often a target was kept. Computed here from counts by size.

import { brief, count, h, seconds, swap } from "./dom.js";
import { lines, panel, tile } from "./charts.js";

const PLACE = "headrace.targets";
const SHARES = [[0.5, "median", "k-decode"], [0.9, "90 %", "k-prompt"], [0.99, "99 %", "k-recompute"]];

function targets() {
  try {
    return { first: 500, gap: 100, ...JSON.parse(localStorage.getItem(PLACE) ?? "{}") };
  } catch {
    return { first: 500, gap: 100 };
  }
}

class Counts {
  constructor(data, counts) {
    this.data = data;
    this.counts = Object.entries(counts).map(([bucket, value]) => [Number(bucket), value]).sort(([one], [other]) => one - other);
    this.total = this.counts.reduce((sum, [, value]) => sum + value, 0);
  }

  edge(bucket) {
    return this.data.least_seconds * 10 ** (bucket / this.data.per_decade);
  }

  quantile(share) {
    let left = share * this.total;
    for (const [bucket, value] of this.counts) {
      left -= value;
      if (left <= 0) return this.edge(bucket + 1);
    }
    return NaN;
  }

  // The share that took no longer than so many seconds; within a bucket, as if spread evenly.
  within(target) {
    if (!this.total) return NaN;
    let kept = 0;
    for (const [bucket, value] of this.counts) {
      const [low, high] = [this.edge(bucket), this.edge(bucket + 1)];
      kept += value * Math.min(Math.max((target - low) / (high - low), 0), 1);
    }
    return kept / this.total;
  }
}

function merged(windows, kind) {
  const sum = {};
  for (const window of windows) for (const [bucket, value] of Object.entries(window[kind])) sum[bucket] = (sum[bucket] ?? 0) + value;
  return sum;
}

const percent = (share) => (Number.isFinite(share) ? `${brief(share * 100)} %` : "–");

class Latency {
  constructor() {
    this.span = h("select", { id: "span", onchange: () => this.draw() }, [[300, "5 minutes"], [900, "15 minutes"], [1800, "30 minutes"]].map(([value, name]) => h("option", { value }, name)));
    const wanted = targets();
    const input = (kind) => h("input", { id: `target-${kind}`, type: "number", min: 1, step: 1, value: wanted[kind], onchange: () => this.draw() });
    this.targets = { first: input("first"), gap: input("gap") };
    this.tiles = h("div", { class: "tiles" });
    this.charts = h("div", { class: "grid-panels" });
    this.node = h("div", { class: "page" }, h("div", { class: "title-row" }, h("h1", null, "Latency"),
      h("div", { class: "row wrap controls" },
        h("label", { for: "target-first" }, "First token within"), this.targets.first, h("span", { class: "unit" }, "ms"),
        h("label", { for: "target-gap" }, "Next within"), this.targets.gap, h("span", { class: "unit" }, "ms"),
        h("label", { for: "span", class: "hidden-label" }, "Span"), this.span)), this.tiles, this.charts);
  }

  update(feed) {
    if (feed.data?.latencies) this.data = feed.data;
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const { latencies, now } = this.data;
    const wanted = { first: Number(this.targets.first.value), gap: Number(this.targets.gap.value) };
    localStorage.setItem(PLACE, JSON.stringify(wanted));
    const from = Math.max(now - Number(this.span.value), Math.min(this.data.started, now - 60));
    const windows = latencies.windows.filter((window) => window.at + latencies.window_seconds > from);
    const all = { first: new Counts(latencies, merged(windows, "first")), gap: new Counts(latencies, merged(windows, "gap")) };
    swap(this.tiles,
      tile("First token, median", seconds(all.first.quantile(0.5)), `99 %: ${seconds(all.first.quantile(0.99))}`),
      tile("Next token, median", seconds(all.gap.quantile(0.5)), `99 %: ${seconds(all.gap.quantile(0.99))}`),
      tile("First in time", percent(all.first.within(wanted.first / 1000)), `of ${count(all.first.total)} requests`),
      tile("Next in time", percent(all.gap.within(wanted.gap / 1000)), `of ${count(all.gap.total)} tokens`));
    if (!all.first.total) {
      swap(this.charts, h("p", { class: "empty" }, "No request in this time."));
      return;
    }
    const middle = (window) => Math.min(window.at + latencies.window_seconds / 2, now);
    const over = (kind, read) => windows.map((window) => ({ at: middle(window), value: read(new Counts(latencies, window[kind])) }));
    const quantiles = (kind) => SHARES.map(([share, name, colour]) => ({ name, colour, points: over(kind, (counts) => counts.quantile(share) * 1000) }));
    const shape = { from, to: now, hole: 45, height: 170 };
    swap(this.charts,
      panel("First token", "from arrival, by 10 seconds", lines({ ...shape, series: quantiles("first"), unit: "ms", label: "Time to first token over time", marks: [{ value: wanted.first }] })),
      panel("Next token", "between two tokens of an answer", lines({ ...shape, series: quantiles("gap"), unit: "ms", label: "Time between tokens over time", marks: [{ value: wanted.gap }] })),
      panel("Targets kept", "share of first and next tokens that came in time", lines({ ...shape, unit: "%", most: 100, label: "Share in time over time",
        series: [["first", "first token", "k-decode"], ["gap", "next token", "k-prompt"]].map(([kind, name, colour]) => ({ name, colour, points: over(kind, (counts) => counts.within(wanted[kind] / 1000) * 100) })) })),
      panel("Requests", "first tokens in each 10 seconds", lines({ ...shape, series: [{ name: "requests", colour: "k-decode", points: windows.map((window) => ({ at: middle(window), value: new Counts(latencies, window.first).total })) }], label: "Requests over time" })));
  }
}

export function latencyView() {
  const view = new Latency();
  return { node: view.node, needs: { latencies: 1 }, update: (feed) => view.update(feed) };
}
