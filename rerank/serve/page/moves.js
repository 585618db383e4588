// Where documents moved: places, how far two orders agree, and the lines between them.

const SVG = "http://www.w3.org/2000/svg";

/** Places, from 1, by a document's name. */
export const placesOf = (names) => new Map(names.map((name, index) => [name, index + 1]));

/** How far up a document went: above 0 is up; null where it was not there before. */
export const climbed = (before, place) => (before === undefined ? null : before - place);

/**
 * Kendall's tau of two orders over what both hold: 1 for the same order, -1 for the reverse; null for fewer than two.
 *
 * @param {string[]} one
 * @param {string[]} other
 */
export function tau(one, other) {
  const places = placesOf(other);
  const shared = one.filter((name) => places.has(name)).map((name) => places.get(name));
  if (shared.length < 2) return null;
  let agreed = 0;
  for (let high = 0; high < shared.length; high++) {
    for (let low = high + 1; low < shared.length; low++) agreed += shared[high] < shared[low] ? 1 : -1;
  }
  return agreed / ((shared.length * (shared.length - 1)) / 2);
}

/** How many names the first k of two orders share. */
export function sharedOf(one, other, k) {
  const first = new Set(one.slice(0, k));
  return other.slice(0, k).filter((name) => first.has(name)).length;
}

/**
 * Draws a line for each pair of heights, from the left edge to the right one.
 *
 * @param {SVGElement} svg as wide and high as it is shown
 * @param {{name: string, from: number, to: number, way: "up" | "down" | "same"}[]} lines heights in pixels
 */
export function drawLines(svg, lines) {
  const { width, height } = svg.getBoundingClientRect();
  svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
  const bend = width / 2;
  svg.replaceChildren(
    ...lines.map(({ name, from, to, way }) => {
      const path = document.createElementNS(SVG, "path");
      path.setAttribute("d", `M0 ${from} C${bend} ${from} ${bend} ${to} ${width} ${to}`);
      path.setAttribute("class", way);
      path.dataset.name = name;
      return path;
    }),
  );
}

/** An empty drawing that screen readers pass over: what it shows is said in words in every row. */
export function drawing() {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("class", "lines");
  svg.setAttribute("aria-hidden", "true");
  return svg;
}
