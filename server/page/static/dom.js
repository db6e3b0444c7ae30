// Elements and words. Whatever comes from outside becomes text, never markup: there is no innerHTML in this page.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat(Infinity).filter((it) => it !== null && it !== undefined && it !== false));
  return element;
}

export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
export const s = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

// A name that somebody else has chosen: isolated, so that right-to-left letters do not move what stands around it.
export const name = (text) => h("bdi", null, text);
export const code = (text) => h("code", null, text);
export const badge = (text, kind) => h("span", { class: `badge ${kind ?? ""}` }, text);

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const missing = (value) => value === null || value === undefined;

export const count = (value) => (missing(value) ? "–" : whole.format(value));

export function number(value, digits = 3) {
  return missing(value) ? "–" : Number(value.toPrecision(digits)).toLocaleString("en", { maximumSignificantDigits: digits });
}

export function duration(seconds) {
  if (missing(seconds)) return "–";
  const [factor, unit] = seconds < 1e-3 ? [1e6, "µs"] : seconds < 1 ? [1e3, "ms"] : [1, "s"];
  return `${number(seconds * factor)} ${unit}`;
}

export function bytes(size) {
  if (missing(size)) return "–";
  const [factor, unit] = size < 1024 ? [1, "B"] : size < 1 << 20 ? [1024, "KiB"] : [1 << 20, "MiB"];
  return `${number(size / factor)} ${unit}`;
}

export function rate(perSecond) {
  if (!perSecond) return "silent";
  if (perSecond >= 1) return `${number(perSecond)}/s`;
  return perSecond >= 1 / 60 ? `${number(perSecond * 60, 2)}/min` : `${number(perSecond * 3600, 2)}/h`;
}

// Clocks of phones are wrong: ages are counted by the server's, as its answers say it.
let skew = 0;
export const setClock = (header) => {
  const told = Date.parse(header ?? "");
  if (!Number.isNaN(told) && Math.abs(told - Date.now()) > 2000) skew = told - Date.now();
};

export function ago(seconds) {
  const passed = (Date.now() + skew) / 1000 - seconds;
  const [size, unit] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]].find(([it]) => Math.abs(passed) >= it) ?? [1, "s"];
  const n = Math.round(Math.abs(passed) / size);
  if (Math.abs(passed) < 3) return "now";
  return passed < 0 ? `in ${n} ${unit}` : `${n} ${unit} ago`;
}

// A time as an age, with the date where one points at it. `retell` keeps ages true while nothing else changes.
export function when(seconds) {
  if (missing(seconds)) return "–";
  const date = new Date(seconds * 1000);
  if (Number.isNaN(date.getTime())) return "–";
  const told = `${date.toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "medium" })} (${date.toISOString()})`;
  return h("time", { datetime: date.toISOString(), title: told, "data-at": seconds }, ago(seconds));
}

export function retell() {
  for (const it of document.querySelectorAll("time[data-at]")) {
    const told = ago(Number(it.dataset.at));
    if (it.textContent !== told) it.textContent = told;
  }
}

// A stamp of a point: a time, or the row number that it is.
export function stamp(text, seconds) {
  return missing(seconds) ? `row ${text}` : when(seconds);
}

export const total = (units) => Object.values(units ?? {}).reduce((sum, it) => sum + it, 0);
export const unitsText = (units) => Object.entries(units ?? {}).map(([group, it]) => `${group} ${it}`).join(", ");

// "before → after", as screen readers say it, too.
export function change(before, after, text) {
  return h("span", { class: "change" }, text(before), h("span", { "aria-label": "to" , role: "img" }, " → "), h("strong", null, text(after)));
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(Boolean).map(([term, value]) => h("div", null, h("dt", null, term), h("dd", null, value))));
}

// A table that scrolls by itself on a narrow screen, by touch and by keyboard.
export function table(label, columns, rows) {
  return h(
    "div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
    h("table", null,
      h("thead", null, h("tr", null, columns.map((it) => h("th", { scope: "col", class: it.number ? "number" : null }, it.title ?? it)))),
      h("tbody", null, rows.map((cells) => h("tr", null, cells.map((cell, i) => h(i || cell === "" ? "td" : "th", { scope: i || cell === "" ? null : "row", class: columns[i].number ? "number" : null }, cell)))))));
}

// What may be long scrolls by itself, by keyboard too.
export const tall = (label, ...children) => h("div", { class: "tall", tabindex: "0", role: "region", "aria-label": label }, children);

export const empty = (...told) => h("p", { class: "empty" }, ...told);
