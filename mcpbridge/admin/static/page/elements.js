/**
 * Elements of the page, changed only where they differ.
 */

import { shortened } from "./texts.js";

/** Return a new element with a class and children, which are elements or texts. */
export function element(tag, className = "", ...children) {
  const found = document.createElement(tag);
  if (className) found.className = className;
  found.append(...children);
  return found;
}

/** Return the element with an id. */
export const byId = (id) => document.getElementById(id);

/** Set the text of an element if it differs; the text node stays, and a selection within it. */
export function setText(node, value) {
  const text = shortened(String(value));
  const first = node.firstChild;
  if (first === null) {
    if (text) node.append(text);
  } else if (first.data !== text) {
    first.data = text;
  }
}

/** Set the class of an element if it differs. */
export function setClass(node, name) {
  if (node.className !== name) node.className = name;
}

/** Put children into an order, moving only those that stand elsewhere. */
export function arrange(parent, children) {
  let next = parent.firstElementChild;
  for (const child of children) {
    if (child === next) next = next.nextElementSibling;
    else parent.insertBefore(child, next);
  }
}

let spokenTimer = 0;

/** Say something to users of a screen reader. */
export function say(text) {
  clearTimeout(spokenTimer);
  setText(byId("spoken"), text);
  spokenTimer = setTimeout(() => setText(byId("spoken"), ""), 5000);
}

const TONES = new Map([
  ["serving", "good"], ["ready", "good"], ["open", "good"], ["starting", "wait"],
  ["draining", "wait"], ["stopping", "wait"], ["ending", "wait"], ["closing", "wait"],
  ["failing", "bad"], ["stopped", "bad"],
]);

/** Return the class of a badge that shows a state. */
export const badge = (state) => `state ${TONES.get(state) ?? "idle"}`;
