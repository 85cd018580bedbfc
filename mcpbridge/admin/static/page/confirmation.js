/**
 * The dialog that asks before a session is ended, and ends it.
 */

import { byId, say, setText } from "./elements.js";
import { problemOf } from "./stream.js";

/** Seconds that ending a session may take. */
const END_SECONDS = 60;

/** The dialog that asks before a session is ended. */
export class Confirmation {
  #token;
  #dialog = byId("confirm");
  #session = null;

  constructor(token) {
    this.#token = token;
    byId("cancel").addEventListener("click", () => this.#dialog.close());
    byId("end").addEventListener("click", () => this.#end());
    this.#dialog.addEventListener("close", () => {
      // The event comes later; the dialog may ask about another session by then.
      if (!this.#dialog.open) this.#session = null;
    });
  }

  /** Ask about a session. */
  open(session) {
    this.#session = session;
    setText(byId("confirm-title"), `End the session ${session.id}?`);
    const about = [`It is at ${session.server}`];
    if (session.client) about.push(`with the client ${session.client}`);
    if (session.identity) about.push(`of ${session.identity}`);
    if (session.pid != null) about.push(`as process ${session.pid}`);
    setText(byId("confirm-text"), `${about.join(", ")}.`);
    const disconnects = session.transport === "" ? "" : "Its client is disconnected. ";
    setText(byId("confirm-effect"), `${disconnects}Requests that are running get an error, and `
      + "the processes of the session are stopped.");
    this.#show("", false);
    this.#dialog.showModal();
  }

  #show(error, busy) {
    const line = byId("confirm-error");
    setText(line, error);
    line.hidden = error === "";
    byId("end").disabled = busy;
    setText(byId("end"), busy ? "Ending …" : error ? "Try again" : "End the session");
  }

  async #end() {
    const session = this.#session;
    if (session === null) return;
    this.#show("", true);
    const error = await this.#post(session.id);
    if (session !== this.#session) {
      if (error) say(`The session ${session.id} was not ended: ${error}`);
    } else if (error) {
      this.#show(`The session was not ended: ${error}`, false);
    } else {
      this.#dialog.close();
      say(`The session ${session.id} was ended`);
    }
  }

  /** Ask the bridge to end a session; return what is wrong, or an empty string. */
  async #post(id) {
    try {
      const response = await fetch(`sessions/${encodeURIComponent(id)}/end`, {
        method: "POST",
        headers: this.#token.headers({
          Accept: "application/json",
          "Content-Type": "application/json",
        }),
        body: "{}",
        cache: "no-store",
        credentials: "omit",
        redirect: "error",
        signal: AbortSignal.timeout(END_SECONDS * 1000),
      });
      return response.ok ? "" : await problemOf(response);
    } catch (error) {
      return error instanceof TypeError ? "the bridge does not answer" : String(error.message);
    }
  }
}
