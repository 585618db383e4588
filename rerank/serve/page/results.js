// What was answered, drawn: a column for each model, a row for each document.

import { climbed, drawLines, drawing, placesOf } from "./moves.js";

const MOST_LINES = 60;
/** More rows than these would take longer to move than anybody wants to watch. */
const MOST_MOVING = 60;

/**
 * An element with children; strings become text, and nothing is ever read as HTML.
 *
 * @param {string} tag
 * @param {object} properties `class`, `data-...` and `aria-...` as attributes, the rest as properties
 * @param {...(Node | string | null)} children
 */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (/^(class|role|data-|aria-)/.test(name)) element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

/** Seconds for reading. */
export function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(2)} s`;
  const milliseconds = seconds * 1000;
  return `${milliseconds.toFixed(milliseconds < 9.95 && milliseconds >= 0.05 ? 1 : 0)} ms`;
}

/** A score for reading: four places, or what is left of a very small one. */
export function scoreText(score) {
  if (score === 0 || Math.abs(score) >= 1e-4) return score.toFixed(Math.abs(score) < 10 ? 4 : 2);
  return score.toExponential(1).replace("-", "\u2212");
}

/** Which way a document went. */
export function wayOf(moved) {
  if (moved === null) return "new";
  return moved > 0 ? "up" : moved < 0 ? "down" : "same";
}

const WORDS = {
  new: () => ["new", "not among those that were given"],
  up: (moved) => [`↑ ${moved}`, `up ${moved},`],
  down: (moved) => [`↓ ${-moved}`, `down ${-moved},`],
  same: () => ["=", "stayed,"],
};

/**
 * @typedef {object} Row
 * @property {string} name tells documents apart
 * @property {string} label what the document calls itself, or nothing
 * @property {string} text
 * @property {number} score
 * @property {string[]} reasoning
 */
/**
 * @typedef {object} Column
 * @property {string} title
 * @property {string} note
 * @property {Row[]} rows best first
 * @property {[string, string][]} facts
 * @property {string[]} warnings
 * @property {{documents: number[], text: string}[]} reasoning of answers about several documents
 */

/**
 * @param {HTMLElement} place where columns are drawn, in place of what is there
 * @param {Column[]} columns one or two
 * @param {string[]} before names of the documents in the order in which they were given
 */
export function drawColumns(place, columns, before) {
  const was = placesOf(before);
  const orders = columns.map((column) => placesOf(column.rows.map((row) => row.name)));
  const drawn = columns.map((column, index) => {
    const other = columns.length === 2 ? { title: columns[1 - index].title, places: orders[1 - index] } : null;
    return columnElement(column, was, other);
  });
  const lines = drawing();
  place.className = columns.length === 2 ? "two" : "one";
  place.replaceChildren(...(drawn.length === 2 ? [drawn[0], lines, drawn[1]] : [lines, ...drawn]));
  const redraw = () => {
    drawn.forEach(offerMore);
    drawLines(lines, drawn.length === 2 ? between(lines, drawn, orders) : fromBefore(lines, drawn[0], was));
  };
  watch(place, redraw);
  if (!matchMedia("(prefers-reduced-motion: reduce)").matches) drawn.forEach((column) => moveRows(column, was));
}

function columnElement(column, was, other) {
  const largest = Math.max(...column.rows.map((row) => Math.abs(row.score)), 1);
  const rows = column.rows.map((row, index) => rowElement(row, index + 1, was.get(row.name), largest, other));
  return make(
    "article",
    { class: "column", "aria-label": column.title },
    make("header", {}, make("h3", {}, column.title), make("p", { class: "hint" }, column.note)),
    make("dl", {}, ...column.facts.map(([name, value]) => make("div", {}, make("dt", {}, name), make("dd", {}, value)))),
    ...column.warnings.map((warning) => make("p", { class: "warning" }, warning)),
    make("ol", { role: "list" }, ...rows),
    column.reasoning.length ? groupReasoning(column.reasoning) : null,
  );
}

function rowElement(row, place, before, largest, other) {
  const moved = climbed(before, place);
  const way = wayOf(moved);
  const [badge, words] = WORDS[way](moved);
  const score = make("span", { class: "bar", "aria-hidden": "true" }, make("span"));
  score.firstChild.style.width = `${(100 * Math.max(0, row.score)) / largest}%`;
  const there = other?.places.get(row.name);
  return make(
    "li",
    { "data-name": row.name },
    make("span", { class: "place" }, make("span", { class: "aside" }, "Place "), String(place)),
    make(
      "span",
      { class: "move" },
      make("span", { class: `badge ${way}`, "aria-hidden": "true" }, badge),
      make("span", { class: "aside" }, words),
      before === undefined ? null : make("span", { class: "was" }, ` was ${before}`),
    ),
    make("span", { class: "score" }, make("span", { class: "aside" }, "score "), scoreText(row.score), score),
    make(
      "div",
      { class: "text" },
      row.label ? make("p", { class: "label" }, row.label) : null,
      make("p", { class: "words" }, row.text || "(empty)"),
      make("button", { type: "button", class: "quiet more", hidden: true, "aria-expanded": "false", onclick: more }, "More"),
      other ? make("p", { class: "there" }, `${other.title}: ${there ? `place ${there}` : "left out"}`) : null,
      row.reasoning.length ? reasoningElement("Reasoning", row.reasoning) : null,
    ),
  );
}

function reasoningElement(title, texts) {
  return make("details", {}, make("summary", {}, title), ...texts.map((text) => make("p", { class: "reasoning" }, text)));
}

/** Answers about several documents name these by the places at which they were given. */
function groupReasoning(answers) {
  const texts = answers.map(
    ({ documents, text }) => `Documents ${documents.map((index) => index + 1).join(", ")}: ${text}`,
  );
  return reasoningElement(`Reasoning about several documents at once (${answers.length})`, texts);
}

// -- long texts -----------------------------------------------------------

function more(event) {
  const button = event.currentTarget;
  const isOpen = button.parentElement.classList.toggle("open");
  button.setAttribute("aria-expanded", String(isOpen));
  button.textContent = isOpen ? "Less" : "More";
}

/** Shows the button where a text does not fit. */
function offerMore(column) {
  const found = [...column.querySelectorAll(".text:not(.open)")].map((text) => {
    const words = text.querySelector(".words");
    return [text.querySelector(".more"), words.scrollHeight > words.clientHeight + 1];
  });
  for (const [button, isCut] of found) button.hidden = !isCut;
}

// -- lines and movement -----------------------------------------------------------

let watching = null;

function watch(place, redraw) {
  watching?.disconnect();
  watching = new ResizeObserver(redraw);
  watching.observe(place);
  place.onpointerover = (event) => light(place, event.target.closest("li[data-name]")?.dataset.name);
  place.onpointerleave = () => light(place, undefined);
}

function light(place, name) {
  for (const element of place.querySelectorAll("[data-name]")) {
    element.classList.toggle("lit", element.dataset.name === name);
  }
}

/** How far below the top of the drawing each row has its number. */
function heightsOf(lines, column) {
  const top = lines.getBoundingClientRect().top;
  const rows = [...column.querySelectorAll("li[data-name]")].slice(0, MOST_LINES);
  return new Map(
    rows.map((row) => {
      // Where the row stands when it has arrived.
      const shift = new DOMMatrix(getComputedStyle(row).transform).m42;
      const number = row.querySelector(".place").getBoundingClientRect();
      return [row.dataset.name, number.top + number.height / 2 - shift - top];
    }),
  );
}

/** From where a document would stand if nothing had moved. */
function fromBefore(lines, column, was) {
  const heights = heightsOf(lines, column);
  const levels = [...heights.values()];
  return [...heights]
    .filter(([name]) => was.get(name) <= levels.length)
    .map(([name, to]) => {
      const before = was.get(name);
      return { name, from: levels[before - 1], to, way: wayOf(climbed(before, levels.indexOf(to) + 1)) };
    });
}

function between(lines, columns, orders) {
  const [left, right] = columns.map((column) => heightsOf(lines, column));
  return [...left]
    .filter(([name]) => right.has(name))
    .map(([name, from]) => ({
      name,
      from,
      to: right.get(name),
      way: wayOf(climbed(orders[0].get(name), orders[1].get(name))),
    }));
}

/** Lets rows begin where they stood before. */
function moveRows(column, was) {
  const rows = [...column.querySelectorAll("li[data-name]")];
  if (rows.length > MOST_MOVING) return;
  const tops = new Map(rows.map((row) => [row, row.offsetTop]));
  let top = Math.min(...tops.values());
  const last = was.size + 1;
  const placeOf = (row) => was.get(row.dataset.name) ?? last;
  for (const row of [...rows].sort((one, other) => placeOf(one) - placeOf(other))) {
    const shift = top - tops.get(row);
    const frames = [{ transform: `translateY(${shift}px)` }, { transform: "none" }];
    if (shift) row.animate(frames, { duration: 600, delay: 80, easing: "cubic-bezier(.3, 0, .1, 1)", fill: "backwards" });
    top += row.offsetHeight;
  }
}
