/* A text of tokens: each can be chosen, with the pointer or with arrows and Enter, and is shaded by its probability. */
import { make } from "./api.js";

let levels = [];
export const setLevels = (found) => { levels = found; };
export const levelOf = (p) => levels.filter((least) => p < least).length;

/** A probability for people. */
export function percent(p) {
  if (p === 0) return "–";
  if (p < 0.001) return "< 0.1 %";
  return p < 0.0995 ? `${(100 * p).toFixed(1)} %` : `${Math.round(100 * p)} %`;
}

/** A token for people: what cannot be seen is named. */
export const named = (piece) => (piece.end ? "¶ end" : piece.text.trim() || (piece.text.includes("\n") ? "line break" : "space"));

export class Line {
  /** `ask` is what it was asked with, `forced` the number of token ids that were given; `choose(line, index)` is called. */
  constructor(ask, row, choose, forced = 0) {
    this.ask = ask;
    this.row = row;
    this.forced = forced;
    this.pieces = [];
    this.choose = choose;
    this.tokens = make("p", { className: "tokens", aria: { role: "group", label: "tokens: arrows move, Enter shows alternatives" } });
    this.note = make("small", { className: "cut", hidden: true });
    this.element = make("div", { className: "line" }, this.tokens, this.note);
    this.tokens.addEventListener("click", (event) => this.open(event.target.closest(".t")));
    this.tokens.addEventListener("keydown", (event) => this.key(event));
  }

  /** What stands before the tokens. */
  begin(prompt) {
    this.tokens.prepend(make("span", { className: "given", textContent: prompt }));
  }

  add(piece) {
    const before = this.ids(this.pieces.length).length;
    const span = make("span", { className: "t", textContent: piece.end ? "¶" : piece.text, tabIndex: this.pieces.length ? -1 : 0 });
    span.setAttribute("role", "button");
    span.setAttribute("aria-label", named(piece));
    if (this.forced && before + piece.ids.length >= this.forced && before < this.forced) span.classList.add("forced");
    this.pieces.push({ ...piece, span });
    this.tokens.append(span);
  }

  score(probabilities) {
    probabilities.forEach((p, i) => {
      const piece = this.pieces[i];
      if (p === null) return;
      piece.span.classList.add(`l${levelOf(p)}`);
      piece.span.title = percent(p);
      piece.span.setAttribute("aria-label", `${named(piece)}, ${percent(p)}`);
    });
  }

  /** The whole text, and what cut it short. */
  done(text, cut) {
    this.text = text;
    this.note.hidden = !cut;
    const length = this.ids(this.pieces.length).length;
    this.note.textContent = cut === "context" ? "the model’s context is full" : `cut after ${length} tokens`;
  }

  /** Token ids of the first `count` pieces. */
  ids(count) {
    return this.pieces.slice(0, count).flatMap((piece) => piece.ids);
  }

  key(event) {
    const at = this.pieces.findIndex((piece) => piece.span === event.target);
    const last = this.pieces.length - 1;
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: last }[event.key];
    if (at < 0) return;
    if (event.key === "Enter" || event.key === " ") this.open(event.target);
    else if (to === undefined) return;
    else this.focus(Math.max(0, Math.min(last, to)));
    event.preventDefault();
  }

  focus(index) {
    this.pieces.forEach((piece, i) => { piece.span.tabIndex = i === index ? 0 : -1; });
    this.pieces[index].span.focus();
  }

  open(span) {
    const index = this.pieces.findIndex((piece) => piece.span === span);
    if (index >= 0) this.choose(this, index);
  }
}
