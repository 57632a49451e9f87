// Requests to the server, and what may go wrong with them: what it is, and what to do next.

export class Problem extends Error {
  constructor(kind, title, text, wait = 0) {
    super(text);
    Object.assign(this, { kind, title, text, wait });
  }
}

const ADVICE = {
  400: ["The server does not take this request", "Change the settings or the message, and try again."],
  401: ["The server asks for an API key", "Enter a key that it knows. It stays in this tab and is forgotten on reload."],
  403: ["The server does not serve this address", "Open the page under the address that difflm serve printed."],
  404: ["The model is not served here", "Reload the page: the server may have been started with another one."],
  413: ["The conversation is too large", "Start a new conversation."],
  429: ["The queue is full", "Other requests are being answered. Try again in a moment."],
  500: ["The server failed at this request", "Try again. Its log says what happened."],
  503: ["The server is stopping or not ready", "Try again when it has started."],
  504: ["The answer took too long", "Try again, or ask for fewer tokens."],
};

// An error inside a stream has no status of its own.
const STATUS = { queue_full: 429, engine: 500, draining: 503, engine_dead: 503, timeout: 504 };

export function problemOf(status, body, headers) {
  const [title, advice] = ADVICE[status] ?? [`The server answered with ${status}`, "Try again."];
  const said = body?.error?.message;
  const long = body?.error?.code === "context_length_exceeded";
  const next = long ? "Start a new conversation, or ask for fewer tokens." : advice;
  const wait = Math.min(Number(headers?.get("retry-after")) || 0, 120);
  return new Problem(String(status), long ? "The conversation is too long" : title, said ? `${said}. ${next}` : next, wait);
}

const UNREACHABLE = ["offline", "The server cannot be reached", "Is difflm serve still running? Start it, and try again."];
const BROKEN = ["broken", "The answer broke off", "The connection was lost before the answer was whole. Try again."];

async function ask(path, { key, signal, body } = {}) {
  const headers = { Accept: "application/json" };
  // A header holds bytes; a key may hold any letters.
  if (key) headers["X-Api-Key"] = String.fromCharCode(...new TextEncoder().encode(key));
  if (body) headers["Content-Type"] = "application/json";
  let response;
  try {
    const method = body ? "POST" : "GET";
    response = await fetch(path, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(...UNREACHABLE);
  }
  if (!response.ok) throw problemOf(response.status, await response.json().catch(() => null), response.headers);
  return response;
}

export async function model(key) {
  const found = await (await ask("v1/models", { key })).json();
  return found.data[0];
}

// Yields the objects of a stream of events; comments are skipped, bytes may come in any pieces.
export async function* objectsOf(stream) {
  const reader = stream.getReader();
  const decoder = new TextDecoder();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    left += done ? decoder.decode() : decoder.decode(value, { stream: true });
    const events = left.split(/\r?\n\r?\n/);
    left = events.pop();
    for (const event of events) {
      const lines = event.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (data) yield JSON.parse(data);
    }
    if (done) throw new Problem(...BROKEN);
  }
}

// Yields the chunks of an answer; what goes wrong on the way is a Problem.
export async function* answer(path, body, { key, signal }) {
  const response = await ask(path, { key, signal, body });
  try {
    for await (const chunk of objectsOf(response.body)) {
      if (chunk.error) throw problemOf(STATUS[chunk.error.code] ?? 500, chunk);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof Problem || error.name === "AbortError") throw error;
    throw new Problem(...BROKEN);
  }
}
