// One curve over whole numbers, such as a loss over steps.

import { room } from "./charts.js";
import { brief, count, h, s } from "./dom.js";

const [HEIGHT, LEFT, BOTTOM] = [150, 46, 20];

export function curve(points, label, wide) {
  const WIDTH = room(wide);
  const [first, last] = [points[0].at, points.at(-1).at];
  const values = points.map((point) => point.value);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const span = high - low || 1;
  const x = (at) => LEFT + ((at - first) / (last - first || 1)) * (WIDTH - LEFT);
  const y = (value) => 10 + (HEIGHT - BOTTOM - 18) * (1 - (value - low) / span);
  const d = points.map((point, place) => `${place ? "L" : "M"}${x(point.at).toFixed(1)} ${y(point.value).toFixed(1)}`).join("");
  const ticks = [low, high].map((value) => [s("line", { class: "grid", x1: LEFT, x2: WIDTH, y1: y(value), y2: y(value) }), s("text", { class: "tick", x: LEFT - 7, y: y(value) + 3.5, "text-anchor": "end" }, brief(value))]);
  const ends = [[first, "start"], [last, "end"]].map(([at, anchor]) => s("text", { class: "tick", x: x(at), y: HEIGHT - 4, "text-anchor": anchor }, `step ${count(at)}`));
  return h("figure", { class: "chart" }, s("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": label }, ticks.flat(), s("path", { class: "line", d, style: { stroke: "var(--k-train)" } }), ends));
}
