// Settings of the page: what the server offers and within which bounds, and the request that they make.

const PARTS = ["threshold", "block", "editing", "temperature"];

export class Controls {
  constructor(settings, changed) {
    this.form = document.getElementById("controls");
    this.changed = changed;
    this.wanted = settings;
    this.offer = null;
    this.form.addEventListener("input", () => this.read());
    this.form.addEventListener("submit", (event) => event.preventDefault());
    document.getElementById("reset").addEventListener("click", () => {
      this.wanted = {};
      this.fill();
      this.read();
    });
  }

  field(name) {
    return document.getElementById(name);
  }

  // Takes what /v1/models says under `diffusion`.
  take(offer) {
    this.offer = offer;
    const names = { block: "blocks", next_token: "left to right", verified: "left to right, drafted and verified" };
    const options = offer.decodings.map((each) => new Option(names[each] ?? each, each));
    options.push(...Object.keys(offer.policies).map((each) => new Option(`blocks, as ${each}`, `policy ${each}`)));
    this.field("decoding").replaceChildren(...options);
    this.field("block").max = String(offer.most_block_size);
    this.field("threshold").min = String(offer.least_threshold);
    this.field("tokens").max = String(offer.most_tokens);
    this.field("parent").disabled = !offer.decodings.includes("next_token");
    this.fill();
    this.show();
  }

  fill() {
    const { offer, wanted } = this;
    const own = {
      decoding: offer.policy ? `policy ${offer.policy}` : offer.decoding,
      threshold: offer.threshold, block: offer.block_size, editing: 1, temperature: offer.temperature,
      tokens: Math.min(256, offer.most_tokens), parent: false,
    };
    for (const [name, value] of Object.entries(own)) {
      const field = this.field(name);
      if (field.type === "checkbox") field.checked = !field.disabled && (wanted[name] ?? value) === true;
      else field.value = String(wanted[name] ?? value);
    }
    if (!this.field("decoding").value) this.field("decoding").value = own.decoding;
  }

  // Keeps what differs from the server's own settings only by being chosen.
  read() {
    this.wanted = { decoding: this.field("decoding").value, parent: this.field("parent").checked };
    for (const name of [...PARTS, "tokens"]) this.wanted[name] = Number(this.field(name).value);
    this.show();
    this.changed(this.wanted);
  }

  show() {
    const decoding = this.field("decoding").value;
    const settings = this.offer.policies[decoding.replace("policy ", "")];
    const used = {
      threshold: decoding === "block" || Boolean(settings?.includes("threshold")),
      block: decoding === "block" || Boolean(settings?.some((each) => each.startsWith("block_"))),
      editing: decoding === "block",
      temperature: !settings || settings.includes("temperature"),
    };
    for (const name of PARTS) {
      const field = this.field(name);
      field.disabled = !used[name];
      const value = name === "editing" && Number(field.value) >= 1 ? "never" : field.value;
      this.form.querySelector(`output[for="${name}"]`).textContent = used[name] ? value : "not used";
    }
  }

  get parent() {
    return this.field("parent").checked && this.field("decoding").value !== "next_token";
  }

  // Returns the fields of a request, of the parent's where asked; what nobody chose is left to the server.
  body(parent = false) {
    const { wanted, offer } = this;
    const found = { stream: true, stream_options: { include_usage: true, denoising: true } };
    found.max_tokens = Math.max(1, Math.min(Number(this.field("tokens").value) || 1, offer.most_tokens));
    if (parent || (wanted.temperature !== undefined && !this.field("temperature").disabled)) {
      found.temperature = Number(this.field("temperature").value);
    }
    if (parent) return { ...found, diffusion: { decoding: "next_token" } };
    if (wanted.decoding === undefined) return found;
    const decoding = this.field("decoding").value;
    const [threshold, block] = [Number(this.field("threshold").value), Number(this.field("block").value)];
    if (decoding === "block") {
      found.diffusion = { decoding, threshold, block_size: block };
      if (Number(this.field("editing").value) < 1) found.diffusion.editing = { threshold: Number(this.field("editing").value) };
    } else if (decoding.startsWith("policy ")) {
      const name = decoding.replace("policy ", "");
      const policy = { name };
      const size = offer.policies[name].find((each) => each.startsWith("block_"));
      if (size) policy[size] = block;
      if (offer.policies[name].includes("threshold")) policy.threshold = threshold;
      found.diffusion = { policy };
    } else found.diffusion = { decoding };
    return found;
  }
}
