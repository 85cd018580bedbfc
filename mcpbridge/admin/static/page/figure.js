/**
 * Figures, with small charts.
 */

import { element, setClass, setText } from "./elements.js";
import { HISTORY_SECONDS, peak, runs } from "./history.js";
import { NONE } from "./texts.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 44;

function svg(tag, attributes, ...children) {
  const found = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) found.setAttribute(name, value);
  found.append(...children);
  return found;
}

/** A figure with its name, a value, a note and, where it has a `key`, a chart of its points. */
export class Figure {
  #value = element("p", "value", NONE);
  #note = element("p", "", "");
  #line = svg("path", { class: "line" });
  #area = svg("path", { class: "area" });
  #node;
  #key;

  constructor(place, title, key = "") {
    this.#key = key;
    this.#node = element("div", "figure", element("p", "", title), this.#value);
    if (key) this.#node.append(this.#chart());
    this.#node.append(this.#note);
    place.append(this.#node);
  }

  #chart() {
    const base = HEIGHT - 1;
    const axis = svg("path", { class: "axis", d: `M0 ${base}H${WIDTH}` });
    const view = { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" };
    return svg("svg", { ...view, "aria-hidden": "true" }, this.#area, axis, this.#line);
  }

  show(value, note, alarming = false) {
    setText(this.#value, value);
    setText(this.#note, note);
    setClass(this.#node, alarming ? "figure alarming" : "figure");
  }

  /** Draw the points until `now`, up to the largest. */
  draw(points, now) {
    const most = Math.max(peak(points, this.#key), 1e-9);
    const x = (point) => (WIDTH * (1 - (now - point.at) / HISTORY_SECONDS)).toFixed(1);
    const y = (point) => (HEIGHT - 2 - (HEIGHT - 5) * (point[this.#key] / most)).toFixed(1);
    let [line, area] = ["", ""];
    for (const run of runs(points, this.#key)) {
      const path = run.map((point) => `${x(point)} ${y(point)}`).join("L");
      line += `M${path}`;
      area += `M${x(run[0])} ${HEIGHT - 1}L${path}L${x(run.at(-1))} ${HEIGHT - 1}Z`;
    }
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", area);
  }
}
