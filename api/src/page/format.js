// Numbers and moments as text.

export const NONE = "–";

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

export const count = (value) => (value == null ? NONE : whole.format(value));

function scaled(value, units) {
  let at = 0;
  while (Math.round(value) >= 1000 && at < units.length - 1) {
    value /= 1000;
    at += 1;
  }
  const digits = at === 0 ? (value > 0 && value < 10 ? 1 : 0) : value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
  return [value.toFixed(digits), units[at]];
}

/** Things a second, like `12.3 k`. */
export function rate(value) {
  return value == null ? NONE : scaled(value, ["", "k", "M", "G"]).join(" ").trim();
}

/** Bytes, like `12.3 MB`. */
export function bytes(value) {
  return value == null ? NONE : scaled(value, ["B", "kB", "MB", "GB", "TB", "PB"]).join(" ");
}

/** Bytes a second, like `12.3 MB/s`. */
export const byteRate = (value) => (value == null ? NONE : `${bytes(value)}/s`);

/** A share, like `33.3 %`. */
export const percent = (value) => (value == null ? NONE : `${(100 * value).toFixed(1)} %`);

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });
const pad = (number) => String(number).padStart(2, "0");

/** The time of day, with the date where that is another day; of RFC 3339 or milliseconds. */
export function moment(when) {
  const date = new Date(when);
  if (Number.isNaN(date.getTime())) return String(when ?? NONE);
  const time = clock.format(date);
  if (date.toDateString() === new Date().toDateString()) return time;
  return `${date.getFullYear()}-${pad(date.getMonth() + 1)}-${pad(date.getDate())} ${time}`;
}

/** How long it is, in its two largest units. */
export function span(milliseconds) {
  const seconds = Math.max(0, Math.floor(milliseconds / 1000));
  const parts = [
    [Math.floor(seconds / 86400), "d"],
    [Math.floor(seconds / 3600) % 24, "h"],
    [Math.floor(seconds / 60) % 60, "min"],
    [seconds % 60, "s"],
  ];
  const first = parts.findIndex(([number]) => number > 0);
  if (first < 0) return "0 s";
  return parts.slice(first, first + 2).map(([number, unit]) => `${number} ${unit}`).join(" ");
}
