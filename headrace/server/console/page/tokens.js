// Tokens coloured by how sure the model was of each; the best other ones on hover or focus.

import { brief, h, swap } from "./dom.js";

const BANDS = [[0.9, "sure"], [0.6, "likely"], [0.3, "open"], [0.1, "unlikely"], [0, "rare"]];

function band(logprob) {
  const chance = Math.exp(logprob);
  return BANDS.find(([least]) => chance >= least)[1];
}

const shown = (token) => token.replaceAll("\n", "↵").replaceAll(" ", "␣") || "∅";

export class TokenText {
  constructor() {
    this.decoder = new TextDecoder();
    this.card = h("div", { class: "alternatives", role: "tooltip", hidden: true });
    this.text = h("div", { class: "tokens" });
    this.node = h("div", { class: "token-view" }, legend(), this.text, this.card);
    this.waiting = [];
    this.text.addEventListener("pointerover", (event) => this.show(event.target));
    this.text.addEventListener("focusin", (event) => this.show(event.target));
    this.text.addEventListener("pointerleave", () => { this.card.hidden = true; });
    this.text.addEventListener("focusout", () => { this.card.hidden = true; });
    this.text.addEventListener("keydown", (event) => this.step(event));
    this.entries = new WeakMap();
  }

  add(entries) {
    for (const entry of entries) {
      const text = this.decoder.decode(new Uint8Array(entry.bytes ?? []), { stream: true });
      const node = h("span", { class: `token ${band(entry.logprob)}`, tabindex: this.text.childElementCount ? "-1" : "0" }, text || "·");
      this.entries.set(node, entry);
      this.text.append(node);
    }
  }

  show(node) {
    const entry = this.entries.get(node);
    if (!entry) return;
    const rows = entry.top_logprobs.some((other) => other.token === entry.token) ? entry.top_logprobs : [entry, ...entry.top_logprobs];
    swap(this.card, rows.map((other) => {
      const chance = Math.exp(other.logprob);
      const bar = h("i", { class: "chance", style: { width: `${Math.max(1, chance * 100)}%` } });
      return h("div", { class: other.token === entry.token ? "other chosen" : "other" }, h("code", null, shown(other.token)), h("span", { class: "track" }, bar), h("b", null, `${brief(chance * 100)} %`));
    }));
    this.card.hidden = false;
    const [frame, place] = [this.node.getBoundingClientRect(), node.getBoundingClientRect()];
    this.card.style.top = `${place.bottom - frame.top + 6}px`;
    this.card.style.left = `${Math.max(0, Math.min(place.left - frame.left, frame.width - this.card.offsetWidth))}px`;
  }

  step(event) {
    const next = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const other = next && event.target[next];
    if (!other) return;
    event.target.tabIndex = -1;
    other.tabIndex = 0;
    other.focus();
    event.preventDefault();
  }
}

function legend() {
  const names = { sure: "≥ 90 %", likely: "≥ 60 %", open: "≥ 30 %", unlikely: "≥ 10 %", rare: "below" };
  return h("div", { class: "legend" }, Object.entries(names).map(([name, text]) => h("span", null, h("i", { class: `token ${name}` }, " "), text)));
}
