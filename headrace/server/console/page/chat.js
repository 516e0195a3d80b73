// The playground: a conversation with a model of this server.

import { get, events, post } from "./api.js";
import { h, icon, iconButton, swap } from "./dom.js";
import { Answer, messageNode } from "./message.js";
import { Settings } from "./settings.js";

const IDEAS = ["What is a headrace, and why do mills need one?", "Write a haiku about a river in winter.", "List three uses of a paging system, one line each."];

class Chat {
  constructor() {
    this.settings = new Settings();
    this.turns = [];
    this.running = null;
    this.list = h("div", { class: "turns", "aria-live": "polite", "aria-busy": "false" });
    this.input = h("textarea", { rows: 1, id: "prompt", placeholder: "Write a message", oninput: () => this.grow(), onkeydown: (event) => this.key(event) });
    this.button = h("button", { class: "primary send", type: "submit" });
    this.problem = h("p", { class: "problem", role: "alert" });
    const form = h("form", { class: "compose", onsubmit: (event) => { event.preventDefault(); this.submit(); } },
      h("label", { class: "hidden-label", for: "prompt" }, "Message"), this.input, this.button);
    const toggle = iconButton("sliders", "Settings", () => this.node.classList.toggle("with-settings"));
    toggle.classList.add("toggle");
    this.node = h("div", { class: "chat" },
      h("section", { class: "talk", "aria-label": "Conversation" },
        h("div", { class: "talk-top" }, iconButton("trash", "Start anew", () => this.clear()), toggle),
        h("div", { class: "scroll", tabindex: "-1" }, this.list), h("div", { class: "foot" }, this.problem, form)),
      this.settings.node);
    this.scroll = this.node.querySelector(".scroll");
    this.draw();
    this.state();
  }

  async models() {
    try {
      this.settings.models((await get("/v1/models")).data);
    } catch (error) {
      this.problem.textContent = error.message;
    }
  }

  grow() {
    this.input.style.height = "auto";
    this.input.style.height = `${Math.min(this.input.scrollHeight + 2, 220)}px`;
  }

  key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.submit();
    } else if (event.key === "Escape" && this.running) this.running.abort();
  }

  submit() {
    if (this.running) return this.running.abort();
    const text = this.input.value.trim();
    if (!text) return undefined;
    this.input.value = "";
    this.grow();
    this.turns.push({ role: "user", content: text });
    return this.answer();
  }

  clear() {
    this.running?.abort();
    this.turns = [];
    this.problem.textContent = "";
    this.draw();
    this.input.focus();
  }

  messages() {
    const system = this.settings.system.value.trim();
    const turns = this.turns.map((turn) => (turn.answer ? turn.answer.message() : turn)).filter((turn) => turn.content || turn.tool_calls);
    return [...(system ? [{ role: "system", content: system }] : []), ...turns.map(({ role, content, tool_calls, tool_call_id }) => ({ role, content, tool_calls, tool_call_id }))];
  }

  async answer() {
    this.problem.textContent = "";
    const control = new AbortController();
    const messages = this.messages();
    const answer = new Answer();
    const turn = { role: "assistant", answer };
    this.turns.push(turn);
    this.running = control;
    this.state();
    this.draw();
    try {
      const reply = await post("/v1/chat/completions", { ...this.settings.body(), messages }, control.signal);
      answer.seed = reply.headers.get("x-headrace-seed");
      let drawn = 0;
      for await (const chunk of events(reply)) {
        if (chunk.error) throw new Error(chunk.error.message);
        answer.take(chunk);
        if (performance.now() - drawn > 40) {
          answer.draw();
          this.follow();
          drawn = performance.now();
        }
      }
    } catch (error) {
      if (error.name === "AbortError") answer.finish = "you";
      else this.problem.textContent = error.message;
      if (!answer.text && !answer.calls.length) this.turns = this.turns.filter((one) => one !== turn);
    }
    answer.end();
    if (this.running === control) this.running = null;
    this.state();
    this.draw();
  }

  follow() {
    const { scroll } = this;
    if (scroll.scrollHeight - scroll.scrollTop - scroll.clientHeight < 160) scroll.scrollTop = scroll.scrollHeight;
  }

  state() {
    swap(this.button, icon(this.running ? "stop" : "send"), h("span", null, this.running ? "Stop" : "Send"));
    this.list.setAttribute("aria-busy", String(Boolean(this.running)));
  }

  cut(turn, keep) {
    this.running?.abort();
    this.turns = this.turns.slice(0, this.turns.indexOf(turn) + (keep ? 1 : 0));
  }

  draw() {
    this.node.classList.toggle("fresh", !this.turns.length);
    if (!this.turns.length) {
      const idea = (text) => h("button", { type: "button", class: "idea", onclick: () => { this.input.value = text; this.submit(); } }, text);
      swap(this.list, h("div", { class: "hello" }, h("h1", null, "What would you like to know?"), h("p", null, "The model runs on this machine. What you write stays between this tab and the server."), h("div", { class: "ideas" }, IDEAS.map(idea))));
      return;
    }
    swap(this.list, this.turns.map((turn) => this.turn(turn)));
    this.scroll.scrollTop = this.scroll.scrollHeight;
  }

  turn(turn) {
    const { answer } = turn;
    if (!answer) {
      const edit = turn.role === "user" ? [["edit", "Edit, and answer again", () => this.edit(turn)]] : [];
      return (turn.node = messageNode(turn.role, h("div", { class: "text" }, turn.content), edit));
    }
    const acts = this.running ? [] : [["copy", "Copy", () => navigator.clipboard?.writeText(answer.text)], ["again", "Answer again", () => { this.cut(turn, false); this.answer(); }]];
    const open = answer.calls.filter((call) => call && !this.turns.some((one) => one.tool_call_id === call.id));
    const replies = this.running ? [] : open.map((call) => this.reply(call));
    return messageNode("assistant", h("div", null, answer.body, answer.tools, replies, answer.meta), acts);
  }

  reply(call) {
    const input = h("input", { placeholder: `What ${call.function.name} gave back`, "aria-label": "Tool result" });
    return h("form", { class: "row reply", onsubmit: (event) => {
      event.preventDefault();
      this.turns.push({ role: "tool", content: input.value, tool_call_id: call.id });
      this.answer();
    } }, input, h("button", { class: "plain", type: "submit" }, "Give back"));
  }

  edit(turn) {
    const input = h("textarea", { rows: 3, "aria-label": "Edit the message", value: turn.content });
    const save = () => {
      const text = input.value.trim();
      if (!text) return;
      this.cut(turn, false);
      this.turns.push({ role: "user", content: text });
      this.answer();
    };
    const cancel = h("button", { type: "button", class: "plain small", onclick: () => this.draw() }, "Leave it");
    const form = h("form", { class: "editing", onsubmit: (event) => { event.preventDefault(); save(); } }, input, h("div", { class: "row end" }, cancel, h("button", { class: "primary small", type: "submit" }, "Answer again")));
    turn.node.replaceWith(form);
    input.focus();
  }
}

export function chatView() {
  const chat = new Chat();
  return { node: chat.node, needs: {}, open() { chat.models(); if (matchMedia("(pointer: fine)").matches) chat.input.focus(); } };
}
