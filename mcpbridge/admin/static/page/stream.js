/**
 * The event stream of the bridge: its events, and when to connect again.
 */

import { shortened } from "./texts.js";

/** The longest event that is read, in characters; 500 sessions have about 200,000. */
export const MAX_EVENT_CHARS = 8 * 1024 * 1024;
/** Seconds without an event after which the page is stale, and the connection is made anew. */
export const STALE_SECONDS = 7;
const SILENT_SECONDS = 20;
/** Seconds between attempts to connect. */
const FIRST_WAIT = 1;
const LONGEST_WAIT = 30;

/** Parses server-sent events; calls `received` with the data of each event named `status`. */
export class EventParser {
  #received;
  #pieces = [];
  #data = [];
  #size = 0;
  #name = "";

  constructor(received) {
    this.#received = received;
  }

  /** Take some text of the stream.  Throws an error if an event is longer than is read. */
  feed(text) {
    this.#size += text.length;
    if (this.#size > MAX_EVENT_CHARS) throw new Error("the bridge sent an event that is too long");
    this.#pieces.push(text);
    if (!text.includes("\n") && !text.includes("\r")) return;
    const joined = this.#pieces.join("");
    // Behind a carriage return at the end, its line feed may follow.
    const end = joined.endsWith("\r") ? joined.length - 1 : joined.length;
    const lines = joined.slice(0, end).split(/\r\n|\r|\n/);
    this.#pieces = [lines.pop() + joined.slice(end)];
    for (const line of lines) this.#line(line);
    if (!this.#data.length) this.#size = this.#pieces[0].length;
  }

  #line(line) {
    if (line === "") {
      const [name, data] = [this.#name, this.#data];
      [this.#name, this.#data] = ["", []];
      if (name === "status" && data.length) this.#received(data.join("\n"));
      return;
    }
    const colon = line.indexOf(":");
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (field === "event") this.#name = value;
    else if (field === "data") this.#data.push(value);
  }
}

/** Return what is wrong, as a response to a failed request says. */
export async function problemOf(response) {
  try {
    const { error } = await response.json();
    if (typeof error === "string" && error) return shortened(error);
  } catch {
    // Not the bridge's JSON.
  }
  return `HTTP status ${response.status}`;
}

/**
 * The connection to the event stream.  `watcher` has `received(document)`, `changed(link)`, where
 * `link` has `state` (`connecting`, `live`, `stale`, `lost` or `login`), `why` and `retryAt`, and
 * `failed(error)` for a document that could not be shown.
 */
export class Stream {
  #token;
  #watcher;
  #wait = FIRST_WAIT;
  #timer = 0;
  #abort = null;
  #heard = 0;
  #state = "connecting";

  constructor(token, watcher) {
    this.#token = token;
    this.#watcher = watcher;
    setInterval(() => this.#checkSilence(), 1000);
  }

  /** Connect now; an older connection is closed. */
  async connect() {
    clearTimeout(this.#timer);
    this.#abort?.abort();
    const abort = (this.#abort = new AbortController());
    this.#heard = performance.now();
    this.#change("connecting");
    let why = "the connection has ended";
    try {
      const response = await fetch("events", {
        headers: this.#token.headers({ Accept: "text/event-stream" }),
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: abort.signal,
      });
      if (response.status === 401) {
        this.#askForToken(abort);
        return;
      }
      if (response.ok) await this.#read(response.body, abort);
      else why = await problemOf(response);
    } catch (error) {
      why = abort.signal.reason?.silent ?? (abort.signal.aborted || error instanceof TypeError
        ? "the bridge does not answer" : String(error.message ?? error));
    }
    if (abort === this.#abort) this.#retry(why);
  }

  #askForToken(abort) {
    if (abort !== this.#abort) return;
    abort.abort();
    this.#token.rejected = this.#token.present;
    this.#token.set("", false);
    this.#change("login");
  }

  async #read(body, abort) {
    const decoder = new TextDecoder();
    const parser = new EventParser((data) => {
      if (abort !== this.#abort) return;
      this.#heard = performance.now();
      this.#wait = FIRST_WAIT;
      this.#change("live");
      this.#show(data);
    });
    const reader = body.getReader();
    try {
      for (;;) {
        const { done, value } = await reader.read();
        if (done) return;
        parser.feed(decoder.decode(value, { stream: true }));
      }
    } finally {
      // An error of the parser ends the connection, too.
      reader.cancel().catch(() => {});
    }
  }

  /** Show a document; one that is not as expected ends nothing. */
  #show(data) {
    try {
      this.#watcher.received(JSON.parse(data));
    } catch (error) {
      this.#watcher.failed(error);
    }
  }

  #retry(why) {
    const seconds = this.#wait * (0.75 + Math.random() / 2);
    this.#wait = Math.min(this.#wait * 2, LONGEST_WAIT);
    this.#timer = setTimeout(() => this.connect(), seconds * 1000);
    this.#change("lost", why, performance.now() + seconds * 1000);
  }

  #checkSilence() {
    const seconds = (performance.now() - this.#heard) / 1000;
    if (this.#state === "live" && seconds > STALE_SECONDS) {
      this.#change("stale", "the bridge sends nothing");
    }
    if (["connecting", "stale"].includes(this.#state) && seconds > SILENT_SECONDS) {
      this.#abort.abort({ silent: `the bridge has sent nothing for ${SILENT_SECONDS} s` });
    }
  }

  #change(state, why = "", retryAt = 0) {
    const before = this.#state;
    this.#state = state;
    if (state !== "live" || before !== "live") this.#watcher.changed({ state, why, retryAt });
  }
}
