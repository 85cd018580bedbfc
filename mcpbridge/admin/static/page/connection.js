/**
 * How the page is connected: its state, the form for a token, and what the reader should know.
 */

import { badge, byId, say, setClass, setText } from "./elements.js";
import { clock } from "./texts.js";

/** Shows the state of the connection, and the condition of the bridge. */
export class Connection {
  #token;
  #link = { state: "connecting", why: "", retryAt: 0 };
  #document = null;
  #version = "";
  #error = "";

  constructor(token) {
    this.#token = token;
  }

  /** Whether the last attempt to connect has failed. */
  get lost() {
    return this.#link.state === "lost";
  }

  /** Take a document. */
  received(found) {
    this.#document = found;
    this.#version ||= found.version;
    this.#error = "";
    this.#show();
  }

  /** Say that a document could not be shown. */
  failed(error) {
    this.#error = `The page cannot show what the bridge sent (${error.message}); reload it.`;
    this.#showNotice();
  }

  /** Take the state of the connection. */
  changed(link) {
    const news = link.state !== this.#link.state;
    this.#link = link;
    if (news) say(linkTexts(link, this.#document, this.#stopped)[1]);
    this.#show();
  }

  /** Show what changes with time alone. */
  tick() {
    if (this.#link.state === "lost") this.#show();
  }

  /** Return whether the bridge has gone, as it said that it would. */
  get #stopped() {
    const { state } = this.#link;
    return state === "lost" && this.#document !== null && this.#document.condition !== "serving";
  }

  #show() {
    const stopped = this.#stopped;
    const [tone, text, waits] = linkTexts(this.#link, this.#document, stopped);
    setClass(byId("link"), tone);
    setText(byId("link"), waits ? `${text} ${waits}` : text);
    byId("try-now").hidden = this.#link.state !== "lost";
    byId("forget").hidden = !this.#token.present;
    document.body.classList.toggle("stale", this.#link.state !== "live");
    const condition = byId("condition");
    const asked = this.#link.state === "login";
    const shown = asked ? "" : stopped ? "stopped" : this.#document?.condition ?? "";
    byId("about").hidden = byId("urls").hidden = asked;
    condition.hidden = shown === "";
    setText(condition, shown);
    setClass(condition, badge(shown));
    this.#showLogin();
    this.#showNotice();
  }

  #showLogin() {
    const asked = this.#link.state === "login";
    const form = byId("login");
    if (form.hidden === !asked) return;
    form.hidden = !asked;
    if (!asked) return;
    byId("content").hidden = true;
    const error = byId("login-error");
    error.hidden = !this.#token.rejected;
    setText(error, this.#token.rejected ? "The bridge does not accept this token." : "");
    byId("token").focus();
  }

  #showNotice() {
    const [tone, text] = this.#noticeTexts();
    const notice = byId("notice");
    notice.hidden = text === "";
    setClass(notice, `note ${tone}`);
    setText(notice, text);
  }

  #noticeTexts() {
    if (this.#error) return ["bad", this.#error];
    if (this.#document === null) return ["", ""];
    if (this.#stopped) {
      return ["bad", "The bridge has stopped. What is below is the last that it said."];
    }
    const { condition, version } = this.#document;
    if (condition === "draining") {
      return ["wait", "The bridge is draining: it takes no new sessions, and running requests "
        + "finish before it stops."];
    }
    if (condition === "stopping") return ["wait", "The bridge is stopping its processes."];
    if (version !== this.#version) {
      return ["", `The bridge runs version ${version} now; reload this page.`];
    }
    return ["", ""];
  }
}

/** Return the tone of the connection's state, what to say, and what changes with each second. */
function linkTexts({ state, why, retryAt }, last, stopped) {
  const stale = last ? `Stale since ${clock(last.now)}: ` : "";
  switch (state) {
    case "live":
      return ["good", "Live", ""];
    case "connecting":
      return ["wait", stale ? `${stale}connecting …` : "Connecting …", ""];
    case "login":
      return ["wait", "Waiting for a token", ""];
    case "stale":
      return ["wait", `${stale}${why}.`, ""];
    default: {
      const left = Math.max(0, Math.ceil((retryAt - performance.now()) / 1000));
      const text = stopped ? "the bridge has stopped" : why.replace(/\.$/, "");
      return ["bad", `${stale || "Not connected: "}${text}.`, `Trying again in ${left} s.`];
    }
  }
}
