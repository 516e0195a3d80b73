// The frame: views by the address behind #, theme, and the pulse of the server in the corner.

import { h, icon, swap } from "./dom.js";
import { Feed } from "./feed.js";
import { chatView } from "./chat.js";
import { engineView } from "./engine.js";
import { latencyView } from "./latency.js";
import { requestsView } from "./requests.js";
import { doctorView } from "./doctor.js";

const VIEWS = {
  chat: ["Chat", chatView], engine: ["Engine", engineView], latency: ["Latency", latencyView],
  requests: ["Requests", requestsView], doctor: ["Doctor", doctorView],
};
const feed = new Feed();
const main = document.getElementById("main");
const made = new Map();

function go() {
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = VIEWS[name] ? name : "chat";
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  document.title = `${VIEWS[view][0]} · headrace`;
  if (!made.has(view)) made.set(view, VIEWS[view][1](feed));
  const shown = made.get(view);
  if (main.firstChild !== shown.node) swap(main, shown.node);
  feed.show(shown.needs, () => shown.update?.(feed));
  shown.open?.(rest.join("/"));
}

function theme(wanted) {
  const dark = wanted === "dark" || (!wanted && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  const button = document.getElementById("theme");
  const label = dark ? "Light colours" : "Dark colours";
  button.title = label;
  button.setAttribute("aria-label", label);
  swap(button, icon(dark ? "sun" : "moon"));
}

function pulse() {
  const out = document.getElementById("pulse");
  if (feed.problem) return swap(out, h("i", { class: "dot bad" }), "no answer");
  const models = feed.data?.models ?? [];
  const hot = models.filter((model) => model.state === "hot");
  const kind = feed.data?.draining ? "warn" : hot.length ? "good" : models.some((model) => model.state === "failed") ? "bad" : "warn";
  const text = feed.data?.draining ? "draining" : hot.length === 1 ? hot[0].name : hot.length ? `${hot.length} models` : models[0]?.state ?? "";
  return swap(out, h("i", { class: `dot ${kind}` }), h("span", { class: "pulse-text" }, text));
}

swap(document.getElementById("views"), Object.entries(VIEWS).map(([name, [title]]) => h("a", { href: `#${name}`, "data-view": name }, title)));
theme(localStorage.getItem("headrace.theme"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme(localStorage.getItem("headrace.theme")));
document.getElementById("theme").addEventListener("click", () => {
  const next = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem("headrace.theme", next);
  theme(next);
});
document.addEventListener("headrace:data", pulse);
addEventListener("hashchange", go);
addEventListener("keydown", (event) => {
  const place = Number(event.key) - 1;
  if (event.altKey && place >= 0 && place < Object.keys(VIEWS).length) {
    location.hash = Object.keys(VIEWS)[place];
    event.preventDefault();
  }
});
go();
