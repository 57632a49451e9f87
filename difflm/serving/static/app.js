// The page: a conversation, its answers as they denoise, and what to do when something goes wrong.

import { answer, model, Problem } from "./api.js";
import { Controls } from "./controls.js";
import { Lane } from "./lane.js";
import { load, save } from "./store.js";

const at = (id) => document.getElementById(id);
const kept = load();
const lanes = [];
let key = ""; // in memory only
let served = null;
let running = null;
let again = null;
let countdown = 0;

function keep() {
  const whole = save(kept);
  if (!whole) at("status").textContent = "This browser does not keep the conversation: its storage is full or off.";
}

const controls = new Controls(kept.settings, (settings) => {
  kept.settings = settings;
  keep();
});

// Messages. Whatever a model wrote is text, and never anything else.

function show(message, place) {
  const item = document.createElement("li");
  const who = document.createElement("h3");
  const text = document.createElement("p");
  const note = document.createElement("small");
  item.className = message.role;
  who.textContent = message.role === "user" ? "You" : "Model";
  text.textContent = message.content;
  note.textContent = message.note;
  item.append(who, text, note);
  if (place) place.replaceWith(item);
  else at("messages").append(item);
  at("empty").hidden = kept.messages.length > 0;
  at("messages").scrollTop = at("messages").scrollHeight;
  return { item, text, note };
}

function showAll() {
  at("messages").replaceChildren();
  kept.messages.forEach((message) => show(message));
  at("empty").hidden = kept.messages.length > 0;
  at("messages").scrollTop = at("messages").scrollHeight;
}

// Problems: what happened, and what to do next.

function hideProblem() {
  clearInterval(countdown);
  at("problem").hidden = true;
}

function showProblem(error, retry) {
  const problem = error instanceof Problem ? error : new Problem("page", "The page failed", String(error?.message ?? error));
  again = retry;
  hideProblem();
  at("problem").hidden = false;
  at("problem").dataset.kind = problem.kind;
  at("problem").querySelector("h2").textContent = problem.title;
  at("problem").querySelector("p").textContent = problem.text;
  at("key-form").hidden = problem.kind !== "401";
  at("retry").hidden = problem.kind === "401";
  let left = problem.wait;
  const tick = () => {
    at("retry").disabled = left > 0;
    at("retry").textContent = left > 0 ? `Try again in ${left} s` : "Try again";
    if (left-- <= 0) clearInterval(countdown);
  };
  tick();
  if (problem.wait > 0) countdown = setInterval(tick, 1000);
  (problem.kind === "401" ? at("key") : at("dismiss")).focus();
}

// The server.

async function connect() {
  served = await model(key);
  const offer = served.diffusion;
  at("model").textContent = `${served.id}, ${offer.chat ? "chat" : "plain text"}, context ${served.max_model_len} tokens`;
  document.title = `${served.id} - difflm`;
  at("message").placeholder = offer.chat ? "Message" : "Text to go on with";
  controls.take(offer);
  suggest(offer.questions ?? []);
}

// Questions that suit the model, where the server names some.
function suggest(questions) {
  at("questions").hidden = !questions.length;
  at("questions").replaceChildren(...questions.map((question) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const text = document.createElement("span");
    button.type = "button";
    button.title = question;
    text.textContent = question;
    button.append(text);
    button.addEventListener("click", () => {
      at("message").value = question;
      send();
    });
    item.append(button);
    return item;
  }));
}

async function begin() {
  try {
    await connect();
    hideProblem();
  } catch (error) {
    at("model").textContent = "Not connected";
    showProblem(error, begin);
  }
}

// Answers.

function busy(controller) {
  running = controller;
  at("send").hidden = Boolean(controller);
  at("stop").hidden = !controller;
  at("fresh").disabled = Boolean(controller);
}

function lane(number, title) {
  lanes[number] ??= new Lane(at("lanes"), title);
  lanes[number].title = title;
  lanes[number].part("h2").textContent = title;
  return lanes[number];
}

function drop(number) {
  lanes.splice(number).forEach((each) => {
    each.pause();
    each.root.remove();
  });
}

// Streams an answer into a lane, and its text to `told`; returns the trace and how it ended.
async function follow(view, body, signal, told) {
  let reason = "";
  let note = "";
  view.start();
  try {
    for await (const chunk of answer(served.diffusion.chat ? "v1/chat/completions" : "v1/completions", body, { key, signal })) {
      if (chunk.diffusion) view.add(chunk.diffusion);
      const choice = chunk.choices[0];
      const text = choice?.delta?.content ?? choice?.text;
      if (text) told?.(text);
      reason = choice?.finish_reason ?? reason;
    }
  } catch (error) {
    note = error.name === "AbortError" ? "stopped" : "broke off";
    throw error;
  } finally {
    view.kept = view.finish(note);
  }
  return reason;
}

function request(parent) {
  const own = controls.body(parent);
  const texts = kept.messages.filter((each) => each.content);
  // A message that never got an answer is not part of the conversation: templates want turns.
  const spoken = texts.filter((each, number) => each.role !== texts[number + 1]?.role)
    .map(({ role, content }) => ({ role, content }));
  return served.diffusion.chat ? { ...own, messages: spoken } : { ...own, prompt: spoken.at(-1).content };
}

const ENDS = { length: "cut at the limit of tokens", stop: "" };

async function generate() {
  hideProblem();
  const controller = new AbortController();
  busy(controller);
  const message = { role: "assistant", content: "", note: "" };
  let view = null;
  try {
    if (!served) await connect();
    const both = controls.parent;
    const bodies = [request(false), ...(both ? [request(true)] : [])];
    view = show(message);
    view.item.setAttribute("aria-busy", "true");
    at("status").textContent = "The answer is being written.";
    if (!both) drop(1);
    const told = (text) => {
      message.content += text;
      view.text.textContent = message.content;
      at("messages").scrollTop = at("messages").scrollHeight;
    };
    const title = both ? "Answer" : "Denoising";
    const first = follow(lane(0, title), bodies[0], controller.signal, told);
    const second = both && follow(lane(1, "Parent, left to right"), bodies[1], controller.signal);
    const [main, other] = await Promise.allSettled([first, second]);
    if (main.status === "rejected") throw main.reason;
    message.note = ENDS[main.value] ?? "";
    if (other.status === "rejected" && other.reason.name !== "AbortError") {
      lanes[1].part(".detail").textContent = other.reason.text ?? String(other.reason);
    }
    at("status").textContent = `The answer is whole: ${message.content}`;
  } catch (error) {
    if (error.name === "AbortError") {
      message.note = "stopped";
      at("status").textContent = "The answer was stopped.";
    } else {
      if (message.content) message.note = "broke off";
      showProblem(error, retry);
    }
  } finally {
    controller.abort();
    if (message.content || message.note === "stopped") {
      kept.messages.push(message);
      show(message, view?.item);
    } else view?.item.remove();
    kept.traces = lanes.map((each) => each.kept).filter(Boolean);
    keep();
    busy(null);
  }
}

// Answers the last message once more, without what came of the last attempt.
function retry() {
  while (kept.messages.at(-1)?.role === "assistant") kept.messages.pop();
  showAll();
  if (kept.messages.length) generate();
}

function send() {
  const text = at("message").value;
  if (running || !text.trim()) return;
  const message = { role: "user", content: text, note: "" };
  kept.messages.push(message);
  show(message);
  at("message").value = "";
  kept.draft = "";
  keep();
  generate();
}

// Colours.

const THEMES = { "": ["Auto", "as the system has them"], light: ["Light", "light"], dark: ["Dark", "dark"] };

function colour() {
  document.documentElement.dataset.theme = kept.theme;
  const [name, said] = THEMES[kept.theme];
  at("theme").textContent = name;
  at("theme").setAttribute("aria-label", `Colours: ${said}`);
}

at("theme").addEventListener("click", () => {
  const names = Object.keys(THEMES);
  kept.theme = names[(names.indexOf(kept.theme) + 1) % names.length];
  colour();
  keep();
});
at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
at("message").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
at("message").addEventListener("input", () => {
  kept.draft = at("message").value;
  keep();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
at("stop").addEventListener("click", () => running?.abort());
at("dismiss").addEventListener("click", () => {
  hideProblem();
  at("message").focus();
});
at("retry").addEventListener("click", () => again?.());
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = at("key").value;
  at("key").value = "";
  again?.();
});
at("fresh").addEventListener("click", () => {
  Object.assign(kept, { messages: [], traces: [] });
  drop(0);
  lane(0, "Denoising");
  hideProblem();
  showAll();
  keep();
  at("message").focus();
});

colour();
showAll();
at("message").value = kept.draft;
lane(0, "Denoising");
kept.traces.slice(0, 2).forEach((each, number) => {
  try {
    const view = lane(number, String(each.title));
    view.start(each.events, Number(each.seconds) || 0);
    view.kept = each;
  } catch {
    drop(0); // of another version
    lane(0, "Denoising");
  }
});
begin();
