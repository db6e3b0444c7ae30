// Pictures. Each has a title and a description, and nothing in them is told by colour alone.

import { duration, number, s } from "./dom.js";

let drawn = 0;

function picture(kind, width, height, title, description, ...children) {
  const id = `picture${++drawn}`;
  return s("svg", {
    class: `picture ${kind}`, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-labelledby": `${id}t ${id}d`,
    preserveAspectRatio: /^(spark|progress|bullet)/.test(kind) ? "none" : null,
  }, s("title", { id: `${id}t` }, title), s("desc", { id: `${id}d` }, description), children);
}

const at = (x, y) => `${x.toFixed(1)} ${y.toFixed(1)}`;

// Where ticks stand: time from left to right, scores up to a few thresholds from bottom to top.
function placed(live, threshold, width, height, pad) {
  const { seconds, scores } = live;
  const known = scores.filter((it) => it !== null);
  const highest = Math.min(Math.max(1.3 * threshold, 1.05 * Math.max(0, ...known)), 4 * threshold) || 1;
  const first = seconds[0], span = Math.max(seconds.at(-1) - first, 1);
  const x = (it) => pad + ((it - first) / span) * (width - 2 * pad);
  const y = (it) => height - pad - (Math.min(Math.max(it, 0), highest) / highest) * (height - 2 * pad);
  return { x, y, highest };
}

// The line breaks where nothing arrived for much longer than usual, and where nothing has a score.
function line(live, { x, y }) {
  const { seconds, scores } = live;
  const steps = seconds.slice(1).map((it, i) => it - seconds[i]).sort((a, b) => a - b);
  const gap = Math.max(5, 5 * (steps[steps.length >> 1] ?? 0));
  let path = "", open = false;
  seconds.forEach((it, i) => {
    if (scores[i] === null) { open = false; return; }
    const joined = open && it - seconds[i - 1] <= gap;
    path += `${joined ? "L" : "M"}${at(x(it), y(scores[i]))}${joined ? "" : "h.1"}`;
    open = true;
  });
  return path;
}

function described(live, threshold) {
  const known = live.scores.filter((it) => it !== null);
  if (!known.length) return "No score yet.";
  const found = live.anomalies.reduce((sum, it) => sum + it, 0);
  const points = live.points.reduce((sum, it) => sum + it, 0);
  return `Highest score ${number(Math.max(...known))}, threshold ${number(threshold)}; ${found} of ${points} points are anomalies.`;
}

export function spark(card) {
  const { live, threshold } = card, width = 300, height = 56;
  const title = `Newest scores of ${card.name}`;
  if (!live.seconds.length) return null;
  const place = placed(live, threshold, width, height, 4);
  const flagged = live.seconds.map((it, i) => [it, i]).filter(([, i]) => live.anomalies[i]);
  return picture("spark", width, height, title, described(live, threshold),
    s("path", { class: "limit", d: `M0 ${place.y(threshold).toFixed(1)}H${width}` }),
    s("path", { class: "scores", d: line(live, place) }),
    flagged.map(([it, i]) => s("path", { class: "flag", d: `M${at(place.x(it), place.y(live.scores[i] ?? 0))}m-3 -3h6l-3 5z` })));
}

export function chart(card, room) {
  const { live, threshold } = card, width = Math.min(Math.max(room, 320), 1200), height = 220;
  const place = placed(live, threshold, width, height, 8);
  const ticks = [0, 1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20].filter((it) => it <= place.highest);
  const few = ticks.length > 7 ? ticks.filter((it) => it % 2 === 0) : ticks;
  const flagged = live.seconds.map((it, i) => [it, i]).filter(([, i]) => live.anomalies[i]);
  return picture("chart", width, height, `Newest scores of ${card.name}`, described(live, threshold),
    few.map((it) => [
      s("path", { class: "grid", d: `M8 ${place.y(it).toFixed(1)}H${width - 8}` }),
      s("text", { class: "tick", x: 10, y: (place.y(it) - 3).toFixed(1) }, String(it))]),
    s("path", { class: "limit", d: `M8 ${place.y(threshold).toFixed(1)}H${width - 8}` }),
    s("text", { class: "tick limit-text", x: width - 10, y: (place.y(threshold) - 4).toFixed(1), "text-anchor": "end" }, `threshold ${number(threshold)}`),
    s("path", { class: "scores", d: line(live, place) }),
    flagged.map(([it, i]) => s("path", { class: "flag", d: `M${at(place.x(it), place.y(live.scores[i] ?? 0))}m-6 -11h12l-6 9z` })),
    s("path", { class: "pointer", d: "" }));
}

// What a parent cost, what its child costs, and what it may: a pale bar, a full one, and a mark.
export function bullet(what, before, after, limit, text) {
  if (after === null || after === undefined || !(before || limit)) return null; // a bar needs something to be compared with
  const width = 200, most = Math.max(before ?? 0, after ?? 0, limit ?? 0) * 1.06 || 1;
  const x = (it) => ((it / most) * width).toFixed(1);
  const told = [before ? `parent ${text(before)}` : "", `serves ${text(after)}`, limit ? `budget ${text(limit)}` : "no budget"];
  const over = limit && after > limit;
  return picture(`bullet${over ? " over" : ""}`, width, 16, what, `${told.filter(Boolean).join(", ")}${over ? "; over the budget" : ""}.`,
    before ? s("rect", { class: "before", x: 0, y: 2, width: x(before), height: 12, rx: 2 }) : null,
    s("rect", { class: "after", x: 0, y: 5, width: x(after), height: 6, rx: 2 }),
    limit ? s("path", { class: "budget", d: `M${x(limit)} 0v16` }) : null);
}

// Children of one parent: how long a step takes, and how much more they get wrong.
export function scatter(frontier, served) {
  const width = 560, height = 300, left = 52, right = 16, top = 22, bottom = 40;
  const { parent, points, budget } = frontier;
  const times = [parent.p50_seconds, ...points.map((it) => it.p50_seconds)], errors = [1, ...points.map((it) => it.error_ratio)];
  const limit = budget.p50_seconds ?? (budget.speedup ? parent.p50_seconds / budget.speedup : null);
  const most = 1.06 * Math.max(...times, limit ?? 0), least = 0.85 * Math.min(...times, limit ?? Infinity);
  const low = Math.min(...errors), high = Math.max(...errors), room = 0.12 * (high - low) || 0.05;
  const x = (it) => left + ((it - least) / (most - least)) * (width - left - right);
  const y = (it) => height - bottom - ((it - low + room) / (high - low + 2 * room)) * (height - top - bottom);
  const rows = [0, 1, 2, 3].map((i) => low + ((high - low) * i) / 3), columns = [0.1, 0.4, 0.7, 0.95].map((it) => least + it * (most - least));
  const label = (px, py, text, anchor) => s("text", { class: "mark", x: px.toFixed(1), y: py.toFixed(1), "text-anchor": anchor }, text);
  const title = `What ${frontier.name} can be pruned to on ${frontier.device_class}`;
  const told = `${points.length} children of version ${parent.version}; median time of a step from ${duration(Math.min(...times))} to ${duration(Math.max(...times))}, ` +
    `error from ${number(low)} to ${number(high)} times the parent's. The table below has all figures.`;
  return picture("scatter", width, height, title, told,
    high > low ? rows.map((it) => [s("path", { class: "grid", d: `M${left} ${y(it).toFixed(1)}H${width - right}` }), s("text", { class: "tick", x: left - 6, y: (y(it) + 4).toFixed(1), "text-anchor": "end" }, number(it))]) : null,
    columns.map((it) => s("text", { class: "tick", x: x(it).toFixed(1), y: height - bottom + 16, "text-anchor": "middle" }, duration(it))),
    s("path", { class: "axis", d: `M${left} ${top}V${height - bottom}H${width - right}` }),
    s("text", { class: "tick", x: width - right, y: height - 6, "text-anchor": "end" }, `median time of a step of ${frontier.batch} points`),
    s("text", { class: "tick", x: 4, y: 12 }, "error, times the parent's"),
    limit ? [s("path", { class: "budget", d: `M${x(limit).toFixed(1)} ${top}V${height - bottom}` }), label(x(limit) + (x(limit) > width / 2 ? -5 : 5), top + 10, `budget ${duration(limit)}`, x(limit) > width / 2 ? "end" : "start")] : null,
    s("rect", { class: "parent", x: (x(parent.p50_seconds) - 5).toFixed(1), y: (y(1) - 5).toFixed(1), width: 10, height: 10 }),
    s("text", { class: "mark", x: x(parent.p50_seconds).toFixed(1), y: (y(1) + 19).toFixed(1), "text-anchor": "middle" }, "parent"),
    points.map((it, i) => [
      s("circle", { class: it.on_front ? "front" : "behind", cx: x(it.p50_seconds).toFixed(1), cy: y(it.error_ratio).toFixed(1), r: 5.5 }),
      same(it, served) ? s("circle", { class: "served", cx: x(it.p50_seconds).toFixed(1), cy: y(it.error_ratio).toFixed(1), r: 10 }) : null,
      label(x(it.p50_seconds) + 9, y(it.error_ratio) - 7, same(it, served) ? `${i + 1}, serves` : String(i + 1))]));
}

// Whether a child of the frontier is as wide as what serves.
export const same = (point, served) => Boolean(served) && JSON.stringify(Object.entries(point.units).sort()) === JSON.stringify(Object.entries(served).sort());

export function progress(done) {
  return picture("progress", 100, 6, "Progress", `${Math.round(100 * done)} % of this stage`,
    s("rect", { class: "before", width: 100, height: 6, rx: 3 }), s("rect", { class: "after", width: 100 * Math.max(0, Math.min(done, 1)), height: 6, rx: 3 }));
}
