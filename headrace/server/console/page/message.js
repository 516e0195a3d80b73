// One message of the conversation: its text, its tool calls, what it cost, and what can be done with it.

import { count, h, iconButton, brief, seconds, swap } from "./dom.js";
import { prose } from "./prose.js";
import { TokenText } from "./tokens.js";

export class Answer {
  constructor() {
    this.text = "";
    this.calls = [];
    this.tokens = null;
    this.body = h("div", { class: "text" });
    this.meta = h("div", { class: "meta" });
    this.tools = h("div", { class: "tools" });
    this.began = performance.now();
    this.first = null;
    this.last = null;
    this.count = 0;
    this.body.classList.add("waiting");
  }

  take(chunk) {
    const choice = chunk.choices[0];
    if (chunk.usage) this.usage = chunk.usage;
    if (!choice) return;
    const { delta } = choice;
    if (delta.content || delta.tool_calls || choice.logprobs?.content?.length) {
      this.last = performance.now();
      this.first ??= this.last;
      this.count += choice.logprobs?.content?.length || 1;
      this.body.classList.remove("waiting");
    }
    if (delta.content) this.text += delta.content;
    for (const piece of delta.tool_calls ?? []) this.call(piece);
    if (choice.logprobs?.content?.length) {
      this.tokens ??= new TokenText();
      this.tokens.add(choice.logprobs.content);
    }
    if (choice.finish_reason) this.finish = choice.finish_reason;
  }

  call(piece) {
    const known = (this.calls[piece.index] ??= { id: "", type: "function", function: { name: "", arguments: "" } });
    if (piece.id) known.id = piece.id;
    known.function.name += piece.function?.name ?? "";
    known.function.arguments += piece.function?.arguments ?? "";
  }

  draw() {
    if (this.tokens) {
      if (this.tokens.node.parentNode !== this.body) swap(this.body, this.tokens.node);
    } else swap(this.body, prose(this.text));
    swap(this.tools, this.calls.map((one) => h("div", { class: "call" }, h("b", null, one.function.name), h("pre", null, pretty(one.function.arguments)))));
  }

  end() {
    this.body.classList.remove("waiting");
    this.draw();
    const facts = [];
    const tokens = this.usage?.completion_tokens ?? this.count;
    const span = (this.last - this.first) / 1000;
    if (tokens > 1 && span > 0) facts.push(["speed", `${brief((tokens - 1) / span)} tokens/s`]);
    if (this.first) facts.push(["first token", seconds((this.first - this.began) / 1000)]);
    facts.push(["answer", `${count(tokens)} tokens`]);
    if (this.usage) {
      facts.push(["prompt", `${count(this.usage.prompt_tokens)} tokens`]);
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      if (cached) facts.push(["from cache", `${count(cached)} tokens`]);
    }
    if (this.finish && this.finish !== "stop") facts.push(["ended by", this.finish === "length" ? "its longest length" : this.finish]);
    if (this.seed) facts.push(["seed", this.seed]);
    swap(this.meta, facts.map(([name, value]) => h("span", null, `${name} `, h("b", null, value))));
  }

  message() {
    const calls = this.calls.filter(Boolean);
    return calls.length ? { role: "assistant", content: this.text || null, tool_calls: calls } : { role: "assistant", content: this.text };
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 1);
  } catch {
    return text;
  }
}

const NAMES = { user: "You", assistant: "Model", tool: "Tool result" };

export function messageNode(role, content, buttons) {
  return h("article", { class: `message ${role}`, "aria-label": NAMES[role] },
    h("div", { class: "who" }, NAMES[role]),
    content,
    h("div", { class: "acts" }, buttons.map(([name, label, run]) => iconButton(name, label, run))));
}
