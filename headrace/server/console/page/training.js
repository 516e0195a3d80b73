// Fine-tuning jobs and their loss, where the server offers them; nothing at all where it does not.

import { call } from "./api.js";
import { brief, count, h, swap } from "./dom.js";
import { panel } from "./charts.js";
import { curve } from "./curve.js";

const PERIOD = 4000;
const LIVE = ["validating_files", "queued", "running"];

async function quiet(path) {
  return (await call(path)).json();
}

export function trainingPanels(node) {
  let absent = false;
  let next = 0;
  let known = null;
  async function look() {
    if (!known) {
      known = (await quiet("/openapi.json")).paths;
      absent = !known["/v1/fine_tuning/jobs"];
      if (absent) return;
    }
    const jobs = await quiet("/v1/fine_tuning/jobs?limit=3");
    const shown = [];
    const recent = jobs.data.slice(0, 2);
    for (const job of recent) {
      const found = await quiet(`/v1/fine_tuning/jobs/${encodeURIComponent(job.id)}/events?limit=100`);
      const points = (found?.data ?? []).map((event) => event.data).filter((data) => Number.isFinite(data?.train_loss)).map((data) => ({ at: data.step, value: data.train_loss })).sort((one, other) => one.at - other.at);
      const state = h("span", null, h("i", { class: `dot ${LIVE.includes(job.status) ? "warn" : job.status === "succeeded" ? "good" : "bad"}` }), ` ${job.status}`);
      const facts = h("p", { class: "hint" }, state, job.trained_tokens ? ` · ${count(job.trained_tokens)} tokens` : "", points.length ? ` · loss ${brief(points.at(-1).value)}` : "");
      shown.push(panel("Fine-tuning", job.fine_tuned_model ?? job.id, facts, points.length > 1 ? curve(points, "Loss by step", recent.length === 1) : null));
    }
    swap(node, shown);
  }
  return {
    poll() {
      if (absent || performance.now() < next) return;
      next = performance.now() + PERIOD;
      look().catch(() => { next = performance.now() + 10 * PERIOD; });
    },
  };
}
