/**
 * Why servers fail: their problems, and their last failures.
 */

import { arrange, badge, element, setClass, setText } from "./elements.js";
import { capitalized, clock, duration, shortened } from "./texts.js";

/** Seconds for which a start is not a problem yet. */
export const SLOW_START = 15;
/** Failures of a server, and lines of stderr of each, beyond which none is shown. */
const MAX_FAILURES = 20;
const MAX_LINES = 200;

/** Return whether an operator should look at a server now. */
export function isProblem(server, now) {
  return server.state === "failing" || isSlow(server, now);
}

function isSlow(server, now) {
  return server.state === "starting" && server.since != null && now - server.since >= SLOW_START;
}

function describeProblem(server) {
  if (server.why) return capitalized(server.why);
  return server.state === "starting" ? "No process has answered yet" : "It does not start";
}

/** One failure: a line, behind which is what is known of it. */
class FailureView {
  node = element("details");
  #ago = element("time");
  #what = element("span");
  #about = element("p", "soft");
  #label = element("p", "soft");
  #stderr = element("pre");

  constructor(failure) {
    this.#stderr.tabIndex = 0;
    this.#stderr.setAttribute("aria-label", "The end of its stderr");
    this.node.append(
      element("summary", "", this.#what, " ", this.#ago),
      element("div", "", this.#about, this.#label, this.#stderr),
    );
    const when = new Date(failure.when * 1000);
    if (!Number.isNaN(when.getTime())) this.#ago.dateTime = when.toISOString();
    setText(this.#what, capitalized(failure.what || failure.exit || "failed"));
    const about = [clock(failure.when)];
    if (failure.exit) about.push(`the process ended with ${failure.exit}`);
    if (failure.session) about.push(`session ${failure.session}`);
    setText(this.#about, about.join(" · "));
    const lines = (failure.stderr ?? []).map(shortened);
    setText(this.#label, lines.length ? "The end of its stderr:" : "Nothing came on its stderr.");
    this.#stderr.hidden = lines.length === 0;
    // Each line is within its bound, and so is their number.
    this.#stderr.append(lines.slice(-MAX_LINES).join("\n"));
  }

  show(failure, now) {
    setText(this.#ago, `${duration(now - failure.when)} ago`);
  }
}

/** The problem of a server, and its last failures, the newest first. */
export class ServerFailures {
  node = element("article", "problem");
  #name = element("h3");
  #state = element("span", "state");
  #why = element("p", "why");
  #since = element("p", "soft");
  #list = element("div");
  #failures = new Map();
  /** Whether the user has opened or closed a failure; then the page does not. */
  #touched = false;

  constructor(server) {
    setText(this.#name, server.name);
    const title = element("div", "title", this.#name, this.#state);
    this.node.append(title, this.#why, this.#since, this.#list);
    this.#list.addEventListener("click", (event) => {
      if (event.target.closest("summary")) this.#touched = true;
    });
  }

  show(server, now) {
    const problem = isProblem(server, now);
    const tone = problem ? (isSlow(server, now) ? "wait" : "") : "idle";
    setClass(this.node, `problem ${tone}`.trim());
    setText(this.#state, server.state);
    setClass(this.#state, badge(server.state));
    this.#why.hidden = this.#since.hidden = !problem;
    setClass(this.#why, `why ${tone}`.trim());
    setText(this.#why, describeProblem(server));
    this.#showFailures(server.failures ?? [], now, problem);
  }

  /** Show the times that pass without a new document. */
  tick(server, now) {
    setText(this.#since, capitalized(sinceText(server, now)));
  }

  #showFailures(failures, now, problem) {
    const before = this.#failures;
    this.#failures = new Map();
    for (const failure of failures.slice(0, MAX_FAILURES)) {
      const key = JSON.stringify([failure.when, failure.what, failure.session]);
      const view = before.get(key) ?? new FailureView(failure);
      before.delete(key);
      this.#failures.set(key, view);
      view.show(failure, now);
    }
    for (const { node } of before.values()) node.remove();
    const nodes = [...this.#failures.values()].map((each) => each.node);
    arrange(this.#list, nodes);
    // The reader wants the reason at once, and not the list to grow with each new try.
    if (problem && !this.#touched) {
      nodes.forEach((node, index) => { if (node.open !== (index === 0)) node.open = index === 0; });
    }
  }
}

/** Return since when a server is in its state, and when it is tried again. */
function sinceText(server, now) {
  const parts = [];
  if (server.since != null) {
    parts.push(`since ${clock(server.since)}, for ${duration(now - server.since)}`);
  }
  if (server.retryAt != null) {
    const left = Math.ceil(server.retryAt - now);
    parts.push(left > 0 ? `next try in ${duration(left)}` : "the next client tries again");
  }
  return parts.join("; ");
}
