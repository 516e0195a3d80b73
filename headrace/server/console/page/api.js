// Calls to the server. A key is asked for once, when the server wants one, and lives in this tab only.

const PLACE = "headrace.key";
let asking = null;

function headers() {
  const key = sessionStorage.getItem(PLACE);
  return key ? { authorization: `Bearer ${key}` } : {};
}

function ask(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("ask");
    const input = document.getElementById("key");
    document.getElementById("ask-problem").textContent = problem;
    input.value = "";
    dialog.addEventListener("close", () => {
      asking = null;
      if (input.value) sessionStorage.setItem(PLACE, input.value.trim());
      resolve();
    }, { once: true });
    dialog.showModal();
  });
  return asking;
}

export class Refused extends Error {
  constructor(status, body) {
    super(body?.error?.message ?? `the server answered ${status}`);
    this.status = status;
    this.param = body?.error?.param;
  }
}

export async function call(path, options = {}) {
  for (;;) {
    const used = sessionStorage.getItem(PLACE);
    const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
    if (answer.ok) return answer;
    const body = await answer.json().catch(() => null);
    if (answer.status !== 401) throw new Refused(answer.status, body);
    if (used === sessionStorage.getItem(PLACE)) await ask(used ? "The server does not know that key." : "");
  }
}

export const get = async (path) => (await call(path)).json();

export function post(path, body, signal) {
  return call(path, { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal });
}

// Server-sent events of a POST: yields each event's JSON until [DONE].
export async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}
