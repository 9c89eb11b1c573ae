/* A column: one stage's checkpoint on one backend, and what it has written. */
import { make } from "./api.js";
import { closePanel, openPanel } from "./alternatives.js";
import { Line } from "./line.js";

export class Column {
  /** `page` has `settings()` and `write(asks, columns)`. */
  constructor(stage, backend, page) {
    this.id = `${stage.name}/${backend.name}`;
    this.stage = stage;
    this.backend = backend;
    this.page = page;
    this.lines = new Map();
    this.turns = [];
    this.list = make("div", { className: "lines" });
    this.state = make("p", { className: "state", textContent: "nothing written yet" });
    this.code = make("code");
    this.terminal = make("details", { className: "terminal", hidden: true }, make("summary", { textContent: "the same in a terminal" }), this.code);
    const heading = make("h2", {}, stage.title, make("small", { textContent: `${backend.name} · ${stage.checkpoint}` }));
    this.element = make("article", { className: "column", aria: { label: `${stage.title}, ${backend.name}` } },
      heading, this.state, this.list, this.terminal);
  }

  /** What it is to be asked: a headline, or an answer to one more message. */
  ask(mode, text) {
    return mode === "chat"
      ? { column: this.id, messages: [...this.messages(), { role: "user", content: text }] }
      : { column: this.id, prompt: text };
  }

  /** Before anything comes: old headlines go, a conversation gets its next turn. */
  prepare(ask) {
    closePanel();
    this.fail("");
    this.terminal.hidden = true;
    this.lines = new Map();
    this.parent = null;
    this.asked = ask;
    if (ask.messages) {
      const said = make("p", { className: "said", textContent: ask.messages.at(-1).content });
      this.list.append(said);
      this.turns.push({ user: ask.messages.at(-1).content, said });
    } else {
      this.list.replaceChildren();
    }
    this.say("waiting …");
  }

  /** The conversation so far, the turns that have an answer. */
  messages() {
    return this.turns.filter((turn) => turn.line?.text !== undefined)
      .flatMap((turn) => [{ role: "user", content: turn.user }, { role: "assistant", content: turn.line.text }]);
  }

  take(event) {
    if (event.event === "loading") this.say("loading the model …");
    if (event.event === "error") this.fail(event.message);
    if (event.event === "begin") this.begin(event);
    if (event.event === "tokens") for (const [row, piece] of event.tokens) this.line(row).add(piece);
    if (event.event === "scores") for (const [row, found] of event.scores) this.line(row).score(found);
    if (event.event === "done") for (const [row, text, cut] of event.texts) this.line(row).done(text, cut);
    if (event.event === "end" && !this.failed) this.say("");
  }

  begin(event) {
    this.say("");
    this.prompt = event.prompt;
    if (event.command) { this.code.textContent = event.command; this.terminal.hidden = false; }
  }

  /** The line of a row; the first token of a row makes it. */
  line(row) {
    if (!this.lines.has(row)) {
      const line = new Line(this.asked, row, (chosen, index) => this.choose(chosen, index), this.asked.after?.length);
      line.begin(this.prompt);
      this.lines.set(row, line);
      this.put(line);
    }
    return this.lines.get(row);
  }

  /** A headline after another token stands below the one that it comes from; an answer takes its place. */
  put(line) {
    if (line.ask.messages) {
      const turn = this.turns.at(-1);
      turn.line?.element.remove();
      turn.line = line;
      turn.said.after(line.element);
    } else if (this.parent) {
      line.element.classList.add("branch");
      this.parent.element.after(line.element);
    } else {
      const after = [...this.lines.values()].filter((one) => one.row < line.row);
      if (after.length) after.reduce((a, b) => (a.row > b.row ? a : b)).element.after(line.element);
      else this.list.prepend(line.element);
    }
  }

  choose(line, index) {
    const messages = line.ask.messages;
    const settings = this.page.settings(messages ? "chat" : "headlines");
    openPanel(line, index, settings, (one, at, id) => this.force(one, at, id));
  }

  /** Go on from another token. */
  async force(line, index, id) {
    const { after, row, ...ask } = line.ask;
    const asked = this.asked = { ...ask, row: line.row, after: [...line.ids(index), id] };
    this.parent = line;
    this.lines = new Map();
    if (ask.messages) this.cutTurnsAfter(line);
    this.fail("");
    await this.page.write([asked], [this]);
    if (this.asked !== asked) return; // something else was asked for meanwhile
    this.parent = null;
    const written = [...this.lines.values()][0];
    if (written?.pieces.length) written.focus(Math.min(index, written.pieces.length - 1));
  }

  /** What was said after an answer that changes was said to another one. */
  cutTurnsAfter(line) {
    const at = this.turns.findIndex((turn) => turn.line === line);
    for (const turn of this.turns.splice(at + 1)) { turn.said.remove(); turn.line?.element.remove(); }
  }

  anew() {
    closePanel();
    this.turns = [];
    this.lines = new Map();
    this.list.replaceChildren();
    this.terminal.hidden = true;
    this.fail("");
    this.say("nothing written yet");
  }

  say(words) {
    this.state.hidden = !words;
    this.state.textContent = words;
    this.state.classList.remove("problem");
  }

  fail(words) {
    this.failed = Boolean(words);
    this.say(words);
    this.state.classList.toggle("problem", this.failed);
  }
}
