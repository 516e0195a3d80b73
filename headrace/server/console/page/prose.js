// A model's text for people: paragraphs, code, lists, emphasis. Builds elements from text and never parses markup.

import { h } from "./dom.js";

export function prose(text) {
  const blocks = [];
  const parts = text.split(/^```([\w+-]*)[^\n]*\n?/m);
  for (let place = 0; place < parts.length; place += 1) {
    if (place % 2) continue; // the language behind the fence
    if (place % 4) blocks.push(h("pre", { tabindex: "0" }, h("code", null, parts[place].replace(/\n$/, ""))));
    else blocks.push(...paragraphs(parts[place]));
  }
  return blocks;
}

function paragraphs(text) {
  const blocks = [];
  let list = null;
  for (const piece of text.split(/\n{2,}/)) {
    let lines = [];
    const flush = () => {
      if (lines.length) blocks.push(h("p", null, lines.flatMap((line, place) => (place ? [h("br"), ...inline(line)] : inline(line)))));
      lines = [];
    };
    for (const line of piece.split("\n")) {
      const item = line.match(/^\s*(?:[-*•]|(\d+)[.)])\s+(.*)$/);
      const heading = line.match(/^#{1,6}\s+(.*)$/);
      if (item) {
        flush();
        const tag = item[1] ? "ol" : "ul";
        if (list?.tagName !== tag.toUpperCase()) blocks.push((list = h(tag, item[1] ? { start: item[1] } : null)));
        list.append(h("li", null, inline(item[2])));
        continue;
      }
      if (line.trim()) list = null;
      if (heading) {
        flush();
        blocks.push(h("p", { class: "heading" }, inline(heading[1])));
      } else if (line.trim()) lines.push(line);
    }
    flush();
  }
  return blocks;
}

function inline(text) {
  return text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).filter(Boolean).map((part) => {
    if (part.length > 2 && part.startsWith("`") && part.endsWith("`")) return h("code", null, part.slice(1, -1));
    if (part.length > 4 && part.startsWith("**") && part.endsWith("**")) return h("strong", null, part.slice(2, -2));
    return part;
  });
}
