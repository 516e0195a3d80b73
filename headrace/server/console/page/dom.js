// Making elements. Text is always set as text: nothing that a model or a server says is ever read as markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(node.style, value);
    else if (name === "value" || name === "checked") node[name] = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

export function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

const ICONS = {
  sun: ["M12 3v2M12 19v2M3 12h2M19 12h2M5.600 5.600l1.400 1.400M17 17l1.400 1.400M5.600 18.400l1.400-1.400M17 7l1.400-1.400", "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8"],
  moon: ["M20 14.500A8.500 8.500 0 0 1 9.500 4 8.500 8.500 0 1 0 20 14.500"],
  send: ["M4 12h15M13 6l6 6-6 6"],
  stop: ["M7 7h10v10H7z"],
  again: ["M4 12a8 8 0 0 1 14-5.300L20 9M20 4v5h-5M20 12a8 8 0 0 1-14 5.300L4 15M4 20v-5h5"],
  edit: ["M4 20h4L19 9l-4-4L4 16z"],
  copy: ["M9 9h11v11H9z", "M5 15H4V4h11v1"],
  sliders: ["M4 7h9M17 7h3M4 17h3M11 17h9", "M15 5v4M9 15v4"],
  trash: ["M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13"],
};

export function icon(name) {
  const lines = ICONS[name].map((d) => s("path", { d }));
  return s("svg", { viewBox: "0 0 24 24", fill: "none", stroke: "currentColor", "stroke-width": 1.8, "stroke-linecap": "round", "stroke-linejoin": "round", "aria-hidden": "true" }, lines);
}

export function iconButton(name, label, onclick) {
  return h("button", { type: "button", class: "icon", title: label, "aria-label": label, onclick }, icon(name));
}

export function swap(node, ...children) {
  node.replaceChildren(...children.flat().filter(Boolean));
  return node;
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const count = (value) => whole.format(value);
export function brief(value) {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) >= 100 || value === 0) return count(value);
  return String(Number(value.toPrecision(value < 1 ? 2 : 3)));
}
export function seconds(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value < 1) return `${brief(value * 1000)} ms`;
  if (value < 120) return `${brief(value)} s`;
  return value < 7200 ? `${count(value / 60)} min` : `${brief(value / 3600)} h`;
}
export function bytes(value) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let place = 0;
  while (value >= 1024 && place < units.length - 1) { value /= 1024; place += 1; }
  return `${brief(value)} ${units[place]}`;
}
export const clock = (at) => new Date(at * 1000).toLocaleTimeString("en-GB");
export const plain = (name) => name.replaceAll("_", " ");
