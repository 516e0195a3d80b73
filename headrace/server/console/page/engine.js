// The engine while it works: steps by what their rows are for, pages by owner, queue, and every mechanism that has numbers.

import { brief, bytes, count, h, plain, seconds, swap } from "./dom.js";
import { lines, panel, share, stacks, tile } from "./charts.js";
import { started } from "./requests.js";
import { trainingPanels } from "./training.js";

const COLOURS = { decode: "k-decode", verify: "k-verify", train: "k-train", embed: "k-embed", recompute: "k-recompute", prompt: "k-prompt" };
const SPARE = "k-rest";
const BARS = 110;
const PARTS = {
  moves: ["Swapping", "requests that gave way leave for the disk and come back"],
  views: ["Contiguous views", "pages mapped one behind the other"],
  kept: ["Prompts kept on disk", "found again, also after a restart"],
  adapters: ["Adapters", "many in one step"],
  speculation: ["Speculation", "guessed tokens, checked in one step"],
  training: ["Fine-tuning", "beside the requests"],
};

const last = (points) => (points.length ? points.slice(-3).reduce((sum, point) => sum + point.value, 0) / Math.min(points.length, 3) : 0);
const middle = (values) => [...values].sort((one, other) => one - other)[Math.floor(values.length / 2)];

class Engine {
  constructor() {
    this.tiles = h("div", { class: "tiles" });
    this.steps = h("div");
    this.picked = h("p", { class: "picked", "aria-live": "off" });
    this.rates = h("div");
    this.pages = h("div", { class: "stack-rows" });
    this.parts = h("div", { class: "grid-panels" });
    this.models = h("div", { class: "scroll-x" });
    this.running = h("div", { class: "scroll-x" });
    this.training = h("div", { class: "grid-panels" });
    this.node = h("div", { class: "page" },
      h("h1", null, "Engine"), this.tiles,
      panel("Steps", "each bar is one execution of the model; its colours say what its rows were computed for", this.steps, this.picked),
      h("div", { class: "grid-panels" }, panel("Tokens per second", null, this.rates), panel("Pages", "of 16 tokens, by who holds them", this.pages)),
      this.training, this.parts, panel("Running and waiting", null, this.running), panel("Models", null, this.models));
    this.trainer = trainingPanels(this.training);
  }

  update(feed) {
    if (!feed.data) return;
    const now = feed.data.now;
    const sum = feed.history.at(-1).sum;
    const made = feed.rates((one) => one.generated_tokens);
    const read = feed.rates((one) => one.prompt_tokens);
    const recent = feed.steps.filter((step) => step.at > now - 10);
    const ms = recent.map((step) => step.ms);
    const queue = feed.history.map((one) => ({ at: one.at, value: one.sum.waiting }));
    const running = feed.history.map((one) => ({ at: one.at, value: one.sum.running }));
    swap(this.tiles,
      tile("Generated", `${brief(last(made))} /s`, `${count(sum.generated_tokens)} tokens so far`, made),
      tile("Prompts", `${brief(last(read))} /s`, `${count(sum.prompt_tokens)} tokens computed`, read),
      tile("Running", count(sum.running), "sequences that hold pages", running),
      tile("Waiting", count(sum.waiting), "for their first or next pages", queue),
      tile("Step", ms.length ? `${brief(middle(ms))} ms` : "idle", ms.length ? `median of ${count(ms.length)} in 10 s` : "no step in 10 s", recent.slice(-90).map((step) => ({ value: step.ms }))));
    this.drawSteps(feed);
    swap(this.rates, lines({ series: [{ name: "generated", colour: "k-decode", points: made }, { name: "prompts", colour: "k-prompt", points: read }], from: Math.max(now - 120, Math.min(feed.history[0].at, now - 20)), to: now, unit: "/s", label: "Tokens per second over two minutes", hole: 6 }));
    swap(this.pages, feed.data.models.filter((model) => model.gauges.pages_total).flatMap((model) => pages(model)));
    if (!this.pages.childElementCount) swap(this.pages, h("p", { class: "hint" }, feed.data.models.some((model) => model.state === "hot") ? "Nothing has run yet." : "No model is in memory."));
    swap(this.parts, Object.entries(sum).filter(([, part]) => typeof part === "object").map(([name, part]) => card(name, part, feed)), card("prefix", prefix(sum), feed));
    swap(this.models, modelTable(feed.data.models));
    swap(this.running, runningTable(feed.data.requests.filter((one) => one.ended === null), now));
    this.trainer.poll();
  }

  drawSteps(feed) {
    const shown = feed.steps.slice(-BARS);
    if (!shown.length) {
      swap(this.steps, h("p", { class: "empty" }, "No step since you came. Send a message in Chat and look again."));
      return;
    }
    const kinds = new Set(shown.flatMap((step) => Object.keys(step.rows)));
    const colours = { ...COLOURS };
    for (const kind of kinds) colours[kind] ??= SPARE;
    const bars = shown.map((step) => ({ parts: step.rows, step }));
    swap(this.steps,
      stacks({ bars, colours, unit: "rows", label: `The last ${shown.length} steps, rows by kind`, onpick: (bar) => this.pick(bar.step) }),
      h("div", { class: "key" }, [...kinds].map((kind) => h("span", null, h("i", { style: { background: `var(--${colours[kind]})` } }), kind))));
    if (!this.picked.textContent) this.pick(shown.at(-1));
  }

  pick(step) {
    const rows = Object.entries(step.rows).map(([kind, value]) => `${count(value)} ${kind}`).join(", ");
    const guess = step.predicted_ms ? `, ${brief(step.predicted_ms)} ms predicted` : "";
    this.picked.textContent = `Step ${count(step.number)}: ${rows} rows of ${count(step.sequences)} sequences in ${brief(step.ms)} ms (${brief(step.model_ms)} in the model${guess}); ${count(step.waiting)} waiting.`;
  }
}

function prefix(sum) {
  return { lookups: sum.prefix_lookups, found_tokens: sum.prefix_found_tokens, evictions: sum.prefix_evictions, preemptions: sum.preemptions, recomputed_tokens: sum.recomputed_tokens };
}

function pages(model) {
  const { gauges } = model;
  const free = gauges.pages_free - gauges.pages_cached;
  const adapters = gauges.adapters?.adapter_pages ?? 0;
  const training = gauges.training?.pages ?? 0;
  const parts = [
    ["sequences", gauges.pages_total - gauges.pages_free - adapters - training, "k-decode"], ["adapters", adapters, "k-embed"], ["training", training, "k-train"],
    ["kept for prompts", gauges.pages_cached, "k-prompt"], ["free", free, "line"],
  ].filter(([name, value]) => value > 0 || name === "sequences" || name === "free").map(([name, value, colour]) => ({ name, value, colour, text: count(value) }));
  const rows = [h("div", null, h("h3", null, `${model.name} · memory`), share(parts, gauges.pages_total, "Pages in memory"))];
  const disk = [["swapped out", gauges.moves?.stored_pages ?? 0, "k-recompute"], ["kept for prompts", gauges.kept?.stored_pages ?? 0, "k-prompt"]].filter(([, value]) => value > 0);
  if (disk.length) {
    const whole = Math.max(gauges.kept?.total_pages ?? 0, disk.reduce((sum, [, value]) => sum + value, 0));
    rows.push(h("div", null, h("h3", null, `${model.name} · disk`), share(disk.map(([name, value, colour]) => ({ name, value, colour, text: count(value) })), whole, "Pages on disk")));
  }
  return rows;
}

function card(name, part, feed) {
  const [title, note] = name === "prefix" ? ["Reuse and giving way", "prompts that begin like earlier ones, and requests that had to wait again"] : PARTS[name] ?? [plain(name), ""];
  const entries = Object.entries(part).filter(([field, value]) => typeof value === "number" && field !== "page_bytes");
  if (!entries.some(([, value]) => value > 0)) return null;
  const read = (field) => feed.rates((sum) => (name === "prefix" ? prefix(sum)[field] : sum[name]?.[field]) ?? 0);
  return panel(title, note, name === "speculation" ? helps(part) : null, h("dl", { class: "facts" }, entries.map(([field, value]) => {
    const rate = last(read(field));
    return h("div", null, h("dt", null, plain(field.replace(/_seconds$/, " time"))), h("dd", null, field.endsWith("_seconds") ? seconds(value) : brief(value), rate > 0.05 ? h("small", null, `${brief(rate)}/s`) : null));
  })));
}

// What guessing brings: a stream's steps yield one token each without it, and those that were right come on top.
function helps({ drafted, accepted, ...rest }) {
  const steps = Object.entries(rest).reduce((sum, [field, value]) => (field.startsWith("streams_") ? sum + value : sum), 0);
  const guessing = steps - rest.streams_0;
  if (!guessing) return h("p", { class: "hint" }, "Nothing was worth guessing: every step computes one row for a stream, as without speculation.");
  return h("p", { class: "hint" }, `${brief(1 + accepted / steps)} tokens a step and stream. ${brief((100 * guessing) / steps)} % of the steps checked guesses, of which ${brief((100 * accepted) / drafted)} % were right.`);
}

function modelTable(models) {
  const head = ["model", "state", "requests", "waiting", "memory", "context"];
  return h("table", null, h("thead", null, h("tr", null, head.map((name, place) => h("th", { class: place > 1 ? "num" : null, scope: "col" }, name)))),
    h("tbody", null, models.map((model) => h("tr", null, h("td", null, model.name), h("td", null, h("i", { class: `dot ${{ hot: "good", failed: "bad" }[model.state] ?? "warn"}` }), ` ${model.state}`),
      h("td", { class: "num" }, count(model.requests)), h("td", { class: "num" }, count(model.waiting)), h("td", { class: "num" }, model.memory_bytes ? bytes(model.memory_bytes) : "–"), h("td", { class: "num" }, model.context_length ? count(model.context_length) : "–")))));
}

function runningTable(requests, now) {
  if (!requests.length) return h("p", { class: "hint" }, "Nothing runs.");
  const row = (one) => h("tr", null, h("td", null, h("a", { href: `#requests/${one.id}`, class: "mono" }, one.id.slice(0, 12))), h("td", null, one.name), h("td", null, one.first !== null ? "decoding" : started(one) !== null ? "prompt" : "waiting"),
    h("td", { class: "num" }, count(one.prompt_tokens)), h("td", { class: "num" }, count(one.generated_tokens)), h("td", { class: "num" }, seconds(now - one.began)));
  return h("table", null, h("thead", null, h("tr", null, ["request", "model", "doing", "prompt", "tokens", "since"].map((name, place) => h("th", { scope: "col", class: place > 2 ? "num" : null }, name)))), h("tbody", null, requests.slice(0, 40).map(row)));
}

export function engineView() {
  const engine = new Engine();
  return { node: engine.node, needs: { steps: 1, requests: 100 }, update: (feed) => engine.update(feed) };
}
