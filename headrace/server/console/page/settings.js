// What the playground sends with a conversation: model, system message, sampling, tools.

import { h, swap } from "./dom.js";

const FIELDS = [
  ["temperature", "Temperature", { min: 0, max: 2, step: 0.05, value: 0.7 }],
  ["top_p", "Top p", { min: 0.01, max: 1, step: 0.01, value: 1 }],
  ["max_tokens", "Longest answer", { min: 1, step: 1, value: 400 }],
  ["seed", "Seed", { min: 0, step: 1, placeholder: "any" }],
];
const MORE = [
  ["top_k", "Top k", { min: 0, step: 1, placeholder: "off" }],
  ["min_p", "Min p", { min: 0, max: 1, step: 0.01, placeholder: "off" }],
  ["repetition_penalty", "Repetition penalty", { min: 0.1, max: 2, step: 0.05, placeholder: "1" }],
  ["presence_penalty", "Presence penalty", { min: -2, max: 2, step: 0.1, placeholder: "0" }],
  ["frequency_penalty", "Frequency penalty", { min: -2, max: 2, step: 0.1, placeholder: "0" }],
];
const TOOL = [{
  type: "function",
  function: {
    name: "get_weather", description: "The weather of a city now.",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];

export class Settings {
  constructor() {
    this.model = h("select", { id: "model" });
    this.system = h("textarea", { id: "system", rows: 3, placeholder: "You are a helpful assistant." });
    this.probabilities = h("input", { type: "checkbox", id: "probabilities" });
    this.tools = h("textarea", { id: "tools", rows: 5, class: "mono", spellcheck: "false", placeholder: "[ ]" });
    this.inputs = new Map();
    const fields = (list) => list.map((field) => this.field(...field));
    this.node = h("aside", { class: "settings", "aria-label": "Settings of the answer" },
      labelled("Model", this.model),
      labelled("System message", this.system),
      h("div", null, h("div", { class: "pair" }, fields(FIELDS)), h("p", { class: "hint below" }, "Temperature 0 takes the most likely token. The same seed gives the same answer, whoever else is served.")),
      h("label", { class: "check", for: "probabilities" }, this.probabilities, "Colour tokens by probability"),
      h("details", null, h("summary", null, "More sampling"), h("div", { class: "pair" }, fields(MORE))),
      h("details", null, h("summary", null, "Tools"),
        h("p", { class: "hint" }, "Functions as a JSON list, as the API takes them. The model's calls show up in the conversation."),
        this.tools,
        h("button", { type: "button", class: "plain small", onclick: () => { this.tools.value = JSON.stringify(TOOL, null, 1); } }, "Put in an example")));
  }

  field(name, label, attributes, hint) {
    const { value, ...rest } = attributes;
    const input = h("input", { type: "number", inputmode: "decimal", id: `set-${name}`, value: value ?? "", ...rest });
    this.inputs.set(name, input);
    return labelled(label, input, hint);
  }

  models(cards) {
    const chosen = this.model.value;
    const own = cards.filter((card) => !card.parent);
    const adapted = cards.filter((card) => card.parent);
    const entry = (card) => h("option", { value: card.id }, card.state && card.state !== "hot" ? `${card.id} (${card.state})` : card.id);
    swap(this.model, own.map(entry), adapted.length ? h("optgroup", { label: "Adapters" }, adapted.map(entry)) : null);
    if ([...this.model.options].some((option) => option.value === chosen)) this.model.value = chosen;
  }

  // The body of a call, without its messages. Throws what is wrong with the tools.
  body() {
    const body = { model: this.model.value || undefined, stream: true, stream_options: { include_usage: true } };
    for (const [name, input] of this.inputs) if (input.value !== "") body[name] = Number(input.value);
    if (this.probabilities.checked) Object.assign(body, { logprobs: true, top_logprobs: 5 });
    const tools = this.tools.value.trim();
    if (tools) {
      try {
        body.tools = JSON.parse(tools);
      } catch (error) {
        throw new Error(`The tools are not valid JSON: ${error.message}`);
      }
    }
    return body;
  }
}

function labelled(text, input, hint) {
  return h("div", { class: "field" }, h("label", { for: input.id }, text), input, hint ? h("p", { class: "hint" }, hint) : null);
}
