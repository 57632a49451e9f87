// One answer as it denoises: a grid of tokens, figures, and a slider to see it again.

import { Trace } from "./trace.js";

const NAMES = {
  mask: "mask", guess: "guess", decided: "decided, may still change", drafted: "draft, to be verified",
  final: "final", dropped: "behind the end of the answer",
};
const STEP_MS = 90;

// Text of a token that can be seen: line ends and parts of characters have no shape of their own.
function shown(text) {
  if (text === "") return "\u00a0";
  if (text.startsWith("bytes:")) return "\u2337";
  const seen = text.replaceAll("\n", "\u21b5").replaceAll("\t", "\u21e5");
  // The space before a word is a gap between cells.
  return seen.length > 1 && seen.startsWith(" ") ? seen.slice(1) : seen;
}

export class Lane {
  constructor(place, title) {
    const template = document.getElementById("lane-template");
    this.root = template.content.firstElementChild.cloneNode(true);
    this.part = (selector) => this.root.querySelector(selector);
    this.title = title;
    this.part("h2").textContent = title;
    this.canvas = this.part(".canvas");
    this.slider = this.part(".replay input");
    this.slider.setAttribute("aria-label", `${title}: forward to show`);
    this.part(".play").setAttribute("aria-label", `${title}: replay`);
    this.spans = [];
    this.chosen = -1;
    this.part(".play").addEventListener("click", () => (this.timer ? this.pause() : this.play()));
    this.slider.addEventListener("input", () => this.seek(Number(this.slider.value)));
    this.canvas.addEventListener("click", (event) => this.choose(this.spans.indexOf(event.target)));
    this.canvas.addEventListener("keydown", (event) => this.move(event));
    place.append(this.root);
    this.start();
  }

  // Begins anew, or shows a trace that is there already.
  start(events = [], seconds = 0) {
    this.pause();
    this.trace = new Trace(events);
    this.began = performance.now();
    this.seconds = seconds;
    this.live = events.length === 0;
    this.following = true;
    this.part(".detail").textContent = "";
    this.choose(-1);
    this.draw();
  }

  add(event) {
    this.trace.add(event);
    this.seconds = (performance.now() - this.began) / 1000;
    if (this.waiting) return;
    this.waiting = requestAnimationFrame(() => this.draw());
  }

  // Returns what is to be kept of it.
  finish(note = "") {
    if (this.trace.events.length) this.trace.add({ event: "finished", index: 0 });
    this.live = false;
    this.part(".detail").textContent = note;
    this.draw();
    return { title: this.title, seconds: this.seconds, events: this.trace.events };
  }

  draw() {
    if (this.waiting) cancelAnimationFrame(this.waiting);
    this.waiting = 0;
    const { forwards } = this.trace;
    this.slider.max = String(forwards);
    if (this.following) this.slider.value = String(forwards);
    const at = Number(this.slider.value);
    this.slider.setAttribute("aria-valuetext", `forward ${at} of ${forwards}`);
    this.part("output").textContent = `${at} / ${forwards}`;
    const state = this.trace.after(at);
    state.cells.forEach((cell, place) => this.paint(place, cell, state));
    while (this.spans.length > state.cells.length) this.spans.pop().remove();
    this.figures(state);
    const left = state.cells.filter((cell) => cell.state === "mask" || cell.state === "guess").length;
    const facts = `${state.final} tokens are final, ${left} positions are open, after forward ${at} of ${forwards}`;
    this.canvas.setAttribute("aria-label", `${this.title}: ${facts}. Arrow keys go through the tokens.`);
    if (this.live && this.following) this.canvas.scrollTop = this.canvas.scrollHeight;
  }

  paint(place, cell, state) {
    let span = this.spans[place];
    if (!span) {
      span = document.createElement("span");
      span.setAttribute("aria-hidden", "true");
      this.spans.push(span);
      this.canvas.append(span);
    }
    const fresh = cell.forward === state.forward && cell.state !== "mask" && cell.state !== "guess";
    const words = ["cell", cell.state];
    if (cell.edited || cell.before !== undefined) words.push("edited");
    if (fresh) words.push("fresh");
    if (cell.text.startsWith(" ")) words.push("word");
    if (cell.state === "dropped" && cell.text === "") words.push("blank");
    if (state.starts.has(place)) words.push("start");
    if (place === this.chosen) words.push("chosen");
    const key = `${words.join(" ")}|${cell.text}|${cell.sure ?? ""}`;
    if (span.dataset.key === key) return;
    span.dataset.key = key;
    span.className = words.join(" ");
    span.textContent = cell.state === "mask" ? "\u00a0\u00a0\u00a0" : shown(cell.text);
    span.style.setProperty("--sure", String(cell.sure ?? 0));
  }

  figures(state) {
    const set = (name, value) => (this.part(`[data-figure="${name}"]`).textContent = value);
    const whole = this.following && this.seconds > 0;
    set("rate", state.forward ? (state.final / state.forward).toFixed(2) : "-");
    set("speed", whole ? (state.final / this.seconds).toFixed(1) : "-");
    set("tokens", String(state.final));
    set("forwards", String(state.forward));
  }

  seek(forward) {
    this.pause();
    this.following = forward >= this.trace.forwards;
    this.slider.value = String(forward);
    this.draw();
  }

  play() {
    if (!this.trace.forwards) return;
    let at = Number(this.slider.value);
    if (at >= this.trace.forwards) at = 0;
    this.part(".play").textContent = "Pause";
    const step = () => {
      this.following = at >= this.trace.forwards;
      this.slider.value = String(at);
      this.draw();
      if (this.following) this.pause();
      at += 1;
    };
    this.timer = setInterval(step, STEP_MS);
    step();
  }

  pause() {
    clearInterval(this.timer);
    this.timer = 0;
    this.part(".play").textContent = "Replay";
  }

  move(event) {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step === undefined || !this.spans.length) return;
    event.preventDefault();
    this.choose(Math.max(0, Math.min(this.spans.length - 1, this.chosen + step)));
  }

  // Says all that is known of a position.
  choose(place) {
    this.spans[this.chosen]?.classList.remove("chosen");
    this.chosen = place;
    const cell = place < 0 ? null : this.trace.after(Number(this.slider.value)).cells[place];
    if (!cell) return;
    this.spans[place].classList.add("chosen");
    this.spans[place].scrollIntoView({ block: "nearest", inline: "nearest" });
    const facts = [`position ${place}`, NAMES[cell.state]];
    if (cell.state !== "mask") facts.splice(1, 0, JSON.stringify(cell.text));
    if (cell.sure !== undefined) facts.push(`confidence ${cell.sure.toFixed(3)}`);
    if (cell.forward !== undefined) facts.push(`forward ${cell.forward}`);
    if (cell.before !== undefined) facts.push(`instead of ${JSON.stringify(cell.before)}`);
    this.part(".detail").textContent = facts.join(", ");
  }
}
