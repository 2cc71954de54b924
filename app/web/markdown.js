// Markdown as a model writes it, as elements that are safe to show, also while it is still being written.
//
// `marked` reads it, `DOMPurify` keeps of its HTML what an answer needs and nothing that acts: no script, no form, no
// style. Images are shown as links, since the address of one could carry away what was said (the page's
// Content-Security-Policy would not fetch it either). Links open apart and tell the other site nothing of this one.
//
// An answer that grows is cut at blank lines: what is above the last cut will not change and is rendered once, the tail
// stays plain text. So a token costs the same at the answer's end as at its beginning.

import { marked } from "./vendor/marked.js";
import createPurifier from "./vendor/purify.js";
import { el } from "./dom.js";

const KEPT = {
  ALLOWED_TAGS:
    "a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i input li ol p pre s strong sub sup table tbody td th thead tr ul".split(
      " ",
    ),
  ALLOWED_ATTR: ["align", "checked", "class", "disabled", "href", "start", "type"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  RETURN_DOM_FRAGMENT: true,
};

const renderer = new marked.Renderer();
renderer.image = ({ href, text, title }) => `<a href="${escaped(href)}">${escaped(text || title || href)}</a>`;
renderer.html = ({ text }) => escaped(text);

/** Markdown as a fragment of safe elements. */
export function rendered(source) {
  const fragment = read(source);
  for (const link of fragment.querySelectorAll("a")) {
    link.target = "_blank";
    link.rel = "noopener noreferrer";
  }
  for (const box of fragment.querySelectorAll("input")) {
    if (box.type !== "checkbox") box.remove();
    else box.disabled = true;
  }
  for (const table of fragment.querySelectorAll("table")) {
    const frame = el("div", { class: "md-table", tabindex: 0, role: "region", "aria-label": "Table" });
    table.replaceWith(frame);
    frame.append(table);
  }
  for (const code of fragment.querySelectorAll("pre > code")) code.parentElement.replaceWith(codeBlock(code));
  return fragment;
}

const LONGEST_LINE = 4_000; // characters, and of a paragraph: past them, signs that open and do not close take seconds
const LONGEST_PARAGRAPH = 12_000;

/** What would take too long, or is nested so deeply that the stack does not hold it, is shown as it was written. */
function read(source) {
  try {
    if (longest(source, "\n") > LONGEST_LINE || longest(source, "\n\n") > LONGEST_PARAGRAPH)
      throw new RangeError("long");
    return createPurifier.sanitize(marked.parse(source, { gfm: true, renderer }), KEPT);
  } catch {
    const fragment = new DocumentFragment();
    fragment.append(el("p", { class: "md-plain" }, source.trim()));
    return fragment;
  }
}

function longest(text, between) {
  return text.split(between).reduce((most, one) => Math.max(most, one.length), 0);
}

/** An element that shows a text as it grows: `show(text)` whenever there is more of it, `finish(text)` at its end. */
export class Growing {
  constructor() {
    this._tail = document.createTextNode("");
    this._open = el("div", { class: "md-tail" }, this._tail);
    this.element = el("div", { class: "md" }, this._open);
    this._restart();
  }

  /** The text as far as it is known. It only grows. */
  show(text) {
    if (this._finished || text.length < this._text.length) this._restart();
    this._look(text);
    if (this._cut > this._rendered) {
      this._open.before(rendered(text.slice(this._rendered, this._cut)));
      this._rendered = this._cut;
      this._tail.data = text.slice(this._rendered);
    } else {
      const shown = this._tail.data.length;
      if (this._rendered + shown < text.length) this._tail.appendData(text.slice(this._rendered + shown));
    }
  }

  /** The whole text: the tail is rendered too; all of it anew where its parts depend on each other. */
  finish(text) {
    if (this._finished && text === this._text) return;
    const mended = this._finished || !text.startsWith(this._text); // there was a hole in it, or its end was missing
    if (mended || (this._rendered > 0 && BOUND.test(text))) this._restart();
    this._open.before(rendered(text.slice(this._rendered)));
    this._tail.data = "";
    this._text = text;
    this._finished = true;
  }

  /** Find the last place at which the text above will not change any more: a blank line outside of code and lists. */
  _look(text) {
    let start = this._lineStart;
    for (;;) {
      const end = text.indexOf("\n", start);
      if (end === -1) break;
      const line = text.slice(start, end);
      const fence = /^ {0,3}(`{3,}|~{3,})/.exec(line);
      if (this._fence !== null) {
        if (fence && fence[1].startsWith(this._fence) && !line.trim().slice(fence[1].length)) this._fence = null;
      } else if (fence) {
        this._settle(start, line);
        this._fence = fence[1];
      } else if (line.trim() === "") this._blank = end + 1;
      else this._settle(start, line);
      start = end + 1;
    }
    this._lineStart = start;
    this._text = text;
  }

  /** A line that follows a blank one and is neither indented nor a list's next item begins a block of its own. */
  _settle(start, line) {
    if (this._blank === start && !/^(?:\s|[-*+>|]|\d+[.)])/.test(line)) this._cut = start;
    this._blank = null;
  }

  _restart() {
    this.element.replaceChildren(this._open);
    this._tail.data = "";
    this._text = "";
    this._rendered = this._cut = this._lineStart = 0;
    this._fence = this._blank = null;
    this._finished = false;
  }
}

const BOUND = /^ {0,3}\[[^\]\n]+\]:\s/m; // a link's address that stands apart from the link

function codeBlock(code) {
  const language = /language-([\w+#.-]+)/.exec(code.className)?.[1] ?? "";
  const copy = el(
    "button",
    { type: "button", class: "md-copy", onclick: () => copied(copy, code.textContent) },
    "Copy",
  );
  const pre = el("pre", { tabindex: 0 }, el("code", {}, code.textContent));
  return el("div", { class: "md-code" }, el("div", { class: "md-code-head" }, el("span", {}, language), copy), pre);
}

async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    // No clipboard outside of https and localhost: the old way, by a selection.
    const area = el("textarea", { class: "visually-hidden", "aria-hidden": "true" });
    area.value = text;
    button.after(area);
    area.select();
    document.execCommand("copy");
    area.remove();
    button.focus();
  }
  button.textContent = "Copied";
  setTimeout(() => (button.textContent = "Copy"), 1500);
}

function escaped(text) {
  const signs = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
  return String(text).replace(/[&<>"']/g, (sign) => signs[sign]);
}
