/**
 * What is shown of numbers, durations and times.
 */

/** Characters of one text beyond which nothing is shown. */
export const MAX_CHARS = 2000;
/** Counts by name that are shown; the others are added up. */
export const MAX_LINES = 4;

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const CLOCK = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DATE_AND_CLOCK = new Intl.DateTimeFormat("en-GB", {
  dateStyle: "medium", timeStyle: "medium",
});
/** What is shown where nothing is known. */
export const NONE = "–";

/** Return a count, as in `12,345`. */
export const count = (number) => (number == null ? NONE : WHOLE.format(number));

/** Return a number per second, with as many digits as are of use. */
export function rate(number) {
  if (number == null) return NONE;
  if (number === 0) return "0";
  if (number < 0.01) return "< 0.01";
  return number < 10 ? number.toFixed(number < 1 ? 2 : 1) : WHOLE.format(number);
}

/** Return a number of bytes, as in `1.5 MiB`. */
export function bytes(number) {
  if (number == null) return NONE;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (number >= 1024 && unit < units.length - 1) {
    number /= 1024;
    unit += 1;
  }
  return `${unit && number < 10 ? number.toFixed(1) : Math.round(number)} ${units[unit]}`;
}

/** Return a short time in seconds, as in `12 ms`. */
export function latency(seconds) {
  if (seconds == null) return NONE;
  if (seconds < 0.001) return seconds > 0 ? "< 1 ms" : "0 ms";
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  return seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${WHOLE.format(seconds)} s`;
}

/** Return how long something lasts in seconds, in its two largest units. */
export function duration(seconds) {
  const whole = Math.max(0, Math.floor(seconds));
  const parts = [
    [Math.floor(whole / 86400), "d"],
    [Math.floor(whole / 3600) % 24, "h"],
    [Math.floor(whole / 60) % 60, "min"],
    [whole % 60, "s"],
  ];
  const first = parts.findIndex(([number]) => number > 0);
  if (first < 0) return "0 s";
  return parts
    .slice(first, first + 2)
    .filter(([number]) => number > 0)
    .map(([number, unit]) => `${number} ${unit}`)
    .join(" ");
}

/** Return the time of day of a time in seconds since the epoch; with the date if it is not near. */
export function clock(seconds, now = Date.now() / 1000) {
  const format = Math.abs(now - seconds) < 43200 ? CLOCK : DATE_AND_CLOCK;
  return format.format(new Date(seconds * 1000));
}

/** Return a count and what is counted, as in `3 sessions`. */
export function plural(number, one, many = `${one}s`) {
  return `${count(number)} ${number === 1 ? one : many}`;
}

/** Return a text with a capital letter at its beginning. */
export const capitalized = (text) => text.slice(0, 1).toUpperCase() + text.slice(1);

/** Return the largest counts by name, a line for each. */
export function breakdown(counts) {
  const found = Object.entries(counts ?? {})
    .filter(([, number]) => number > 0)
    .sort((one, other) => other[1] - one[1]);
  const lines = found.slice(0, MAX_LINES).map(([name, number]) => `${name}: ${count(number)}`);
  const rest = found.slice(MAX_LINES).reduce((sum, [, number]) => sum + number, 0);
  return [...lines, ...(rest ? [`others: ${count(rest)}`] : [])].join("\n");
}

/** Return the sum of counts by name. */
export function total(counts) {
  return Object.values(counts ?? {}).reduce((sum, number) => sum + number, 0);
}

/** Return a text within its bound. */
export function shortened(text) {
  return text.length > MAX_CHARS ? `${text.slice(0, MAX_CHARS)}…` : text;
}
