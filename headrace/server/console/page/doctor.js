// What the doctor finds: first what this running server shows, then its machine.

import { get } from "./api.js";
import { h, swap } from "./dom.js";
import { panel } from "./charts.js";

const WORDS = { ok: "fine", note: "could be better", bad: "wrong" };
const DOTS = { ok: "good", note: "warn", bad: "bad" };

function list(findings) {
  return h("ul", { class: "findings" }, findings.map((one) => h("li", { class: one.state },
    h("i", { class: `dot ${DOTS[one.state]}`, title: WORDS[one.state] }), h("div", null, h("h3", null, one.what, h("span", { class: "hidden-label" }, `: ${WORDS[one.state]}`)), h("p", null, one.found), one.advice ? h("p", { class: "advice" }, one.advice) : null))));
}

class Doctor {
  constructor() {
    this.found = h("div", { class: "grid-panels" });
    this.button = h("button", { type: "button", class: "plain", onclick: () => this.look() }, "Look again");
    this.node = h("div", { class: "page" }, h("div", { class: "title-row" }, h("h1", null, "Doctor"), this.button), this.found);
  }

  async look() {
    this.button.disabled = true;
    if (!this.found.childElementCount) swap(this.found, h("p", { class: "empty" }, "Looking …"));
    try {
      const { server, machine } = await get("/console/doctor");
      swap(this.found, panel("This server", null, list(server)), panel("This machine", null, list(machine)));
    } catch (error) {
      swap(this.found, h("p", { class: "empty" }, error.message));
    }
    this.button.disabled = false;
  }
}

export function doctorView() {
  const doctor = new Doctor();
  return { node: doctor.node, needs: {}, open: () => doctor.look() };
}
