// What happened on the way to an answer, and how it looked after any of its forwards. Knows no page.

// A cell is {state, text, token, sure, forward, before}; state is "mask", "guess", "decided", "drafted", "final" or
// "dropped" (decided, but behind the end of the answer).
const MASK = { state: "mask", text: "" };

function empty() {
  return { cells: [], starts: new Set(), forward: 0, final: 0, open: new Set(), at: 0 };
}

function filled(event, number, facts) {
  return { text: event.texts[number] ?? `#${event.tokens[number]}`, token: event.tokens[number], ...facts };
}

function denoise(state, event) {
  const { cells } = state;
  state.open = new Set(event.open_positions);
  const blocks = event.block_stop - event.block_start > 1;
  if (blocks) {
    state.starts.add(Math.max(0, event.block_start));
    while (cells.length < event.block_stop) cells.push(MASK);
    for (let place = Math.max(0, event.block_start); place < event.block_stop; place++) {
      if (cells[place].state === "guess") cells[place] = MASK;
    }
  }
  const drafts = cells.map((cell) => (cell.state === "drafted" ? cell : null));
  if (!blocks) while (cells.length && cells.at(-1).state === "drafted") cells.pop();
  event.positions.forEach((place, number) => {
    const draft = drafts[place];
    const before = draft && draft.token !== event.tokens[number] ? draft.text : undefined;
    cells[place] = filled(event, number, {
      state: "decided", sure: event.confidences[number], forward: event.forward, before, drafted: Boolean(draft),
    });
  });
  event.guesses?.positions.forEach((place, number) => {
    cells[place] = filled(event.guesses, number, { state: "guess", sure: event.guesses.confidences[number] });
  });
}

function apply(state, event) {
  const { cells } = state;
  state.forward = event.forward ?? state.forward;
  if (event.event === "denoised") denoise(state, event);
  if (event.event === "edited") {
    event.positions.forEach((place, number) => {
      const before = event.before_texts[number] ?? `#${event.before[number]}`;
      cells[place] = state.open.has(place) ? MASK : filled(event, number, {
        state: "decided", sure: event.confidences[number], forward: event.forward, before, edited: true,
      });
    });
  }
  if (event.event === "drafted") {
    event.positions.forEach((place, number) => {
      cells[place] = filled(event, number, { state: "drafted", sure: event.confidences[number] });
    });
  }
  if (event.event === "committed") {
    event.positions.forEach((place, number) => {
      cells[place] = { ...cells[place], ...filled(event, number, { state: "final" }) };
      state.final = place + 1;
    });
  }
  if (event.event === "finished") {
    cells.forEach((cell, place) => {
      if (cell.state !== "final") cells[place] = { ...cell, state: "dropped" };
    });
  }
  // What was never told (a reader that was late) is a hole.
  for (let place = 0; place < cells.length; place++) cells[place] ??= MASK;
}

export class Trace {
  constructor(events = []) {
    this.events = [];
    this.stops = [0]; // number of events after each forward
    this.state = empty();
    events.forEach((event) => this.add(event));
  }

  add(event) {
    this.events.push(event);
    if (event.event === "denoised") this.stops.push(this.events.length);
    else this.stops[this.stops.length - 1] = this.events.length;
  }

  get forwards() {
    return this.stops.length - 1;
  }

  // Returns the state after so many forwards.
  after(forwards) {
    const stop = this.stops[Math.max(0, Math.min(forwards, this.forwards))];
    if (stop < this.state.at) this.state = empty();
    while (this.state.at < stop) apply(this.state, this.events[this.state.at++]);
    return this.state;
  }
}
