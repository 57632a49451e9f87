// What survives a reload: conversation, settings and the last traces, in this browser alone. Never a key.

const NAME = "difflm.page.1";
const MOST_MESSAGES = 200;
const MOST_TRACE = 400_000; // characters

function messagesOf(value) {
  if (!Array.isArray(value)) return [];
  const good = value.filter((each) => ["user", "assistant"].includes(each?.role) && typeof each.content === "string");
  return good.slice(-MOST_MESSAGES).map(({ role, content, note }) => ({
    role, content, note: typeof note === "string" ? note : "",
  }));
}

export function load() {
  let found = {};
  try {
    found = JSON.parse(localStorage.getItem(NAME)) ?? {};
  } catch {
    // Not ours, or not allowed: begin anew.
  }
  return {
    messages: messagesOf(found.messages),
    settings: typeof found.settings === "object" && found.settings ? found.settings : {},
    traces: Array.isArray(found.traces) ? found.traces : [],
    theme: ["light", "dark"].includes(found.theme) ? found.theme : "",
    draft: typeof found.draft === "string" ? found.draft : "",
  };
}

// Returns whether it is kept; traces are the first to be left out.
export function save(state) {
  const traces = state.traces.filter((each) => JSON.stringify(each).length <= MOST_TRACE);
  const messages = state.messages.slice(-MOST_MESSAGES);
  for (const kept of [{ ...state, messages, traces }, { ...state, messages, traces: [] }]) {
    try {
      localStorage.setItem(NAME, JSON.stringify(kept));
      return true;
    } catch {
      // Full, or not allowed.
    }
  }
  return false;
}
