/**
 * The token of the user, for the header `Authorization`.
 */

/** Where the token is kept if the user wants that. */
export const TOKEN_KEY = "mcpbridge-admin-token";

/** The token of the user: in memory, and in the storage of this tab if the user wants that. */
export class Token {
  #value = "";
  /** Whether there was one before, which the bridge has not accepted. */
  rejected = false;

  constructor() {
    try {
      this.#value = sessionStorage.getItem(TOKEN_KEY) ?? "";
    } catch {
      // Without storage it is asked for.
    }
  }

  get present() {
    return this.#value !== "";
  }

  set(value, keep) {
    this.#value = value;
    try {
      if (keep) sessionStorage.setItem(TOKEN_KEY, value);
      else sessionStorage.removeItem(TOKEN_KEY);
    } catch {
      // It stays in memory.
    }
  }

  /** Return the headers of a request. */
  headers(more) {
    return this.#value ? { ...more, Authorization: `Bearer ${this.#value}` } : more;
  }
}
