/**
 * Tables that are sorted by their headers, filtered, and updated in place.
 */

import { arrange, element, setClass, setText } from "./elements.js";

/** Rows beyond which none is shown. */
export const MAX_ROWS = 1000;

const COLLATOR = new Intl.Collator("en", { numeric: true, sensitivity: "base" });

/** Compare two values of a column: numbers, or texts; what has no value comes last. */
export function compare(one, other, ascending) {
  if (one == null || other == null) return (one == null) - (other == null);
  const found = typeof one === "number" ? one - other : COLLATOR.compare(one, other);
  return ascending ? found : -found;
}

/**
 * A table whose columns are sorted by their headers, and whose rows are updated in place.
 *
 * A column has `title`, `text(item)`, and where that is of use `label` for a longer title,
 * `value(item)` to sort by, `aside(item)` for a second line, `tone(item)` for the class of its
 * text or `alarming(item)`, and `kind` for the class of its cells.  `action` has `title`,
 * `label(item)`, `disabled(item)` and `run(item)`: a button in each row.
 */
export class Table {
  #columns;
  #action;
  #key;
  #none;
  #body = element("tbody");
  #box;
  #headers = [];
  #rows = new Map();
  #items = new WeakMap();
  #sorted;
  #ascending = true;
  #words = [];

  constructor(place, { label, columns, key, none, sorted, action = null }) {
    [this.#columns, this.#key, this.#action] = [columns, key, action];
    this.#sorted = columns.findIndex((each) => each.title === sorted);
    this.#none = element("p", "none", none);
    const head = element("tr");
    const table = element("table", "", element("thead", "", head), this.#body);
    table.setAttribute("aria-label", label);
    this.#box = element("div", "box", table);
    this.#box.tabIndex = 0;
    this.#box.setAttribute("role", "region");
    this.#box.setAttribute("aria-label", `${label}, scrolls`);
    head.append(...columns.map((each, index) => this.#header(each, index)));
    if (action) {
      const header = element("th", "action", element("span", "spoken", action.title));
      header.setAttribute("role", "columnheader");
      head.append(header);
      this.#body.addEventListener("click", (event) => {
        const button = event.target.closest("td.action button");
        if (button) action.run(this.#items.get(button.closest("tr")));
      });
    }
    // The parts of a table are not laid out as one everywhere; their roles stay.
    setRoles(table, { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row" });
    place.append(this.#none, this.#box);
    this.#showSorted();
  }

  #header(column, index) {
    const button = element("button", "", column.title);
    button.type = "button";
    if (column.label) button.title = column.label;
    button.addEventListener("click", () => this.#sortBy(index));
    const header = element("th", column.kind ?? "", button);
    header.scope = "col";
    header.setAttribute("role", "columnheader");
    this.#headers.push(header);
    return header;
  }

  #sortBy(index) {
    // Numbers are of interest from the largest, at first.
    const first = this.#columns[index].kind !== "number";
    this.#ascending = index === this.#sorted ? !this.#ascending : first;
    this.#sorted = index;
    this.#showSorted();
    this.#arrange();
  }

  #showSorted() {
    this.#headers.forEach((header, index) => {
      if (index !== this.#sorted) header.removeAttribute("aria-sort");
      else header.setAttribute("aria-sort", this.#ascending ? "ascending" : "descending");
    });
  }

  /** Show only the rows that have all words of a text. */
  filter(text) {
    this.#words = text.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of this.#rows.values()) this.#applyFilter(row);
    return this.shown;
  }

  get shown() {
    return [...this.#rows.values()].filter((row) => !row.node.hidden).length;
  }

  /** Show these items. */
  update(items) {
    const before = this.#rows;
    this.#rows = new Map();
    let added = 0;
    for (const item of items.slice(0, MAX_ROWS)) {
      let key = this.#key(item);
      while (this.#rows.has(key)) key += "+";
      let row = before.get(key);
      if (!row) {
        row = this.#newRow(item);
        added += 1;
      }
      before.delete(key);
      this.#rows.set(key, row);
      this.#show(row, item);
    }
    const focused = document.activeElement;
    for (const { node } of before.values()) {
      if (node.contains(focused)) this.#box.focus({ preventScroll: true });
      node.remove();
    }
    this.#none.hidden = this.#rows.size > 0;
    this.#box.hidden = this.#rows.size === 0;
    // Rows stand still below the pointer and around the focus; new ones come at the end then.
    if (!this.#inUse()) this.#arrange();
    else if (added) {
      for (const { node } of this.#rows.values()) if (!node.isConnected) this.#body.append(node);
    }
  }

  #inUse() {
    const pointed = matchMedia("(hover: hover)").matches && this.#body.matches(":hover");
    return pointed || this.#body.contains(document.activeElement);
  }

  #newRow(item) {
    const cells = this.#columns.map((column) => {
      const main = element("span");
      const cell = element("td", column.kind ?? "", main);
      cell.dataset.label = column.label ?? column.title;
      return { cell, main, aside: null };
    });
    const node = element("tr", "", ...cells.map((each) => each.cell));
    const row = { node, cells, button: null, searched: "", item };
    if (this.#action) {
      row.button = element("button", "", this.#action.title);
      row.button.type = "button";
      node.append(element("td", "action", row.button));
    }
    setRoles(node, { tr: "row", td: "cell" });
    return row;
  }

  #show(row, item) {
    row.item = item;
    this.#items.set(row.node, item);
    this.#columns.forEach((column, index) => this.#showCell(column, row.cells[index], item));
    if (row.button) {
      const label = this.#action.label(item);
      if (row.button.getAttribute("aria-label") !== label) {
        row.button.setAttribute("aria-label", label);
      }
      row.button.disabled = this.#action.disabled(item);
    }
    if (this.#words.length) this.#applyFilter(row);
  }

  #showCell(column, parts, item) {
    setText(parts.main, column.text(item));
    if (column.tone) setClass(parts.main, column.tone(item));
    if (column.alarming) parts.cell.classList.toggle("alarming", column.alarming(item));
    const aside = column.aside?.(item) ?? "";
    if (!parts.aside && !aside) return;
    if (!parts.aside) {
      parts.aside = element("span", "aside");
      parts.cell.append(parts.aside);
    }
    setText(parts.aside, aside);
  }

  #applyFilter(row) {
    const text = row.cells.map((each) => each.cell.textContent).join("\n").toLowerCase();
    const hidden = !this.#words.every((word) => text.includes(word));
    if (row.node.hidden !== hidden) row.node.hidden = hidden;
  }

  #arrange() {
    const column = this.#columns[this.#sorted];
    const value = column.value ?? column.text;
    const pairs = [...this.#rows.values()].map((row) => [value(row.item), row.node]);
    pairs.sort((one, other) => compare(one[0], other[0], this.#ascending));
    arrange(this.#body, pairs.map(([, node]) => node));
  }
}

function setRoles(root, roles) {
  for (const [tag, role] of Object.entries(roles)) {
    if (root.localName === tag) root.setAttribute("role", role);
    for (const each of root.getElementsByTagName(tag)) each.setAttribute("role", role);
  }
}
