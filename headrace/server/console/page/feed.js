// The server's state, asked for while somebody looks: one call at a time, none while the tab is hidden.

import { get } from "./api.js";

const PERIOD = 1000;
const LONGEST = 600;
const MOST_STEPS = 3000;

export class Feed {
  constructor() {
    this.data = null;
    this.history = [];
    this.steps = [];
    this.problem = null;
    this.needs = {};
    this.listener = null;
    this.cursor = 0;
    this.timer = null;
    document.addEventListener("visibilitychange", () => { if (!document.hidden) this.poll(); });
  }

  show(needs, listener) {
    this.needs = needs;
    this.listener = listener;
    this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    if (this.busy) return;
    this.busy = true;
    try {
      const query = new URLSearchParams(Object.entries({ ...this.needs, since: this.needs.steps ? this.cursor : 0 }).filter(([, value]) => value));
      this.take(await get(`/console/data?${query}`));
      this.problem = null;
    } catch (error) {
      this.problem = error;
    }
    this.busy = false;
    this.listener?.(this);
    document.dispatchEvent(new CustomEvent("headrace:data", { detail: this }));
    if (!document.hidden) this.timer = setTimeout(() => this.poll(), PERIOD);
  }

  take(data) {
    if (this.data && data.started !== this.data.started) this.forget();
    this.data = data;
    if (data.steps.length) {
      this.cursor = data.cursor;
      this.steps = [...this.steps, ...data.steps].slice(-MOST_STEPS);
    }
    this.history.push({ at: data.now, sum: total(data.models), models: data.models });
    this.history = this.history.filter((one) => one.at > data.now - LONGEST);
  }

  forget() {
    this.history = [];
    this.steps = [];
    this.cursor = 0;
  }

  // What a counter grew by, a second, between looks: [{at, value}].
  rates(read) {
    const found = [];
    for (let place = 1; place < this.history.length; place += 1) {
      const [before, after] = [this.history[place - 1], this.history[place]];
      const span = after.at - before.at;
      if (span > 0.2) found.push({ at: after.at, value: Math.max(0, (read(after.sum) - read(before.sum)) / span) });
    }
    return found;
  }
}

// All models' gauges added up; nested groups too.
export function total(models) {
  const sum = {};
  for (const model of models) add(sum, model.gauges);
  return sum;
}

function add(sum, gauges) {
  for (const [name, value] of Object.entries(gauges)) {
    if (typeof value === "number") sum[name] = (sum[name] ?? 0) + value;
    else if (value && typeof value === "object" && !Array.isArray(value)) add((sum[name] ??= {}), value);
  }
}
