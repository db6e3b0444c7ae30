// All detectors at a glance.

import { badge, bytes, change, code, count, duration, empty, h, name, number, rate, stamp, tall, when } from "./dom.js";
import { classes, device } from "./devices.js";
import { bullet, progress, spark } from "./draw.js";

const STATES = { ready: "good", fitting: "busy", learning: "busy", failed: "bad" };
export const state = (card) => [badge(card.state, STATES[card.state]), card.frozen ? badge("frozen") : null];
export const address = (detector, query = "") => `#/detectors/${encodeURIComponent(detector)}${query}`;

export function overview(data) {
  const { process, detectors } = data;
  const sections = [["summary", [detectors.map((it) => [it.points_per_second, it.anomaly_count, it.state]), data.operations.length, data.left_out], () => summary(data), "bare"]];
  if (data.operations.length) sections.push(["operations", data.operations, () => [h("h2", null, "At work"), running(data.operations)], "wide"]);
  if (!detectors.length) sections.push(["none", process, () => nothing(data), "wide"]);
  const failed = (it) => Number(it.state === "failed");
  for (const it of [...detectors].sort((a, b) => failed(b) - failed(a))) sections.push([`card ${it.name}`, it, () => card(it, process), "card"]);
  if (data.device) sections.push(["device", data.device, () => device(data.device), "beside"]);
  if (process.role === "hub") sections.push(["decisions", data.decisions, () => decisions(data.decisions, process), "beside"]);
  sections.push(["anomalies", data.anomalies, () => found(data.anomalies, true), "beside"]);
  if (data.device_classes.length) sections.push(["classes", data.device_classes, () => classes(data.device_classes), "beside"]);
  return sections;
}

function summary({ detectors, operations, left_out }) {
  const sum = (key) => detectors.reduce((all, it) => all + it[key], 0);
  const bad = detectors.filter((it) => it.state === "failed").length;
  const tile = (value, label, kind) => h("div", { class: `tile ${kind ?? ""}` }, h("strong", null, value), h("span", null, label));
  return [
    h("h1", { class: "unseen" }, "Detectors of this process"),
    h("div", { class: "tiles" },
      tile(count(detectors.length + left_out), detectors.length + left_out === 1 ? "detector" : "detectors"),
      tile(number(sum("points_per_second")), "points a second"),
      tile(count(sum("anomaly_count")), "anomalies since the start", sum("anomaly_count") ? "alarm" : ""),
      tile(count(operations.length), "fits and cycles at work"),
      bad ? tile(count(bad), "can not score", "alarm") : null),
    left_out ? h("p", { class: "hint" }, `${count(left_out)} more are not shown here; /metrics has all of them.`) : null,
  ];
}

function nothing({ process, device: own }) {
  if (own) return empty("Nothing scores here yet: what the hub releases to this device does, as soon as it is here.");
  return empty("Nothing is hosted yet. Fit a detector to a CSV whose first column is the time: ",
    code(`prunewatch fit pump --data train.csv --server ${process.listen}`), ", or try ", code("prunewatch demo"), ".");
}

function card(it, process) {
  return [
    h("div", { class: "head" }, h("h2", null, h("a", { href: address(it.name) }, name(it.name))), state(it)),
    h("p", { class: "under" }, it.network, it.version ? `, version ${it.version}` : "", `, ${count(it.features)} features`),
    it.problem ? h("p", { class: "problem" }, it.problem) : null,
    spark(it) ?? h("p", { class: "quiet" }, it.version ? "No points since the start." : "No version yet."),
    h("p", { class: "figures" },
      h("span", null, rate(it.points_per_second)), h("span", null, `${count(it.series)} series`),
      h("span", { class: it.anomaly_count ? "alarm" : null }, `${count(it.anomaly_count)} ${it.anomaly_count === 1 ? "anomaly" : "anomalies"}`)),
    it.served.length ? it.served.map(served) : hint(it, process),
  ];
}

function hint(it, process) {
  if (it.state === "fitting") return null;
  return h("p", { class: "hint" }, "Stream points to it, or fit it: ", code(`prunewatch fit ${it.name} --data train.csv --server ${process.listen}`));
}

function served(it) {
  const { bundle, parent, budget } = it, dense = parent && parent.hash !== bundle.hash ? parent : null;
  const row = (label, key, text, limit) => [
    h("span", null, label),
    dense ? change(dense[key], bundle[key], text) : h("strong", null, text(bundle[key])),
    bullet(`${label} on ${it.device_class}`, dense ? dense[key] : null, bundle[key], limit, text),
    h("span", { class: "limit-text" }, limit ? `of ${text(limit)}` : "")].map((it) => it ?? h("span"));
  const speedup = budget?.speedup && parent?.p50_seconds ? parent.p50_seconds / budget.speedup : null;
  return h("div", { class: "served" },
    h("p", null, h("strong", null, name(it.device_class)), ` version ${it.version}`, it.pinned ? badge("pinned") : null, it.on_probation ? badge("on probation", "busy") : null),
    h("div", { class: "costs" },
      budget?.p50_seconds || speedup ? row("p50", "p50_seconds", duration, budget.p50_seconds ?? speedup) : null,
      budget?.p99_seconds || !(budget?.p50_seconds || speedup || bundle.p99_seconds === null) ? row("p99", "p99_seconds", duration, budget?.p99_seconds) : null, row("size", "bytes", bytes, budget?.size_bytes)));
}

export function running(operations) {
  return h("ul", { class: "running" }, operations.map((it) => h("li", null,
    h("p", null, h("strong", null, `${it.kind} `), h("a", { href: address(it.detector) }, name(it.detector)), it.device_class ? [" for ", name(it.device_class)] : null,
      it.trigger ? `, ${begun(it.trigger)}` : "", " ", when(it.created_seconds)),
    progress(it.done),
    h("p", { class: "under" }, `${it.stage}${it.message ? `: ${it.message}` : ""}, ${Math.round(100 * it.done)} %`))));
}

const BEGUN = { manual: "by hand", schedule: "by schedule", drift: "for drift", missed_budget: "for a missed budget", config_change: "for new settings", shift: "for a lasting shift" };
export const begun = (trigger) => BEGUN[trigger] ?? trigger;

const OUTCOMES = { adopted: "good", rejected: "bad", failed: "bad", cancelled: "bad", running: "busy", awaiting_device: "busy" };
export const outcome = (text) => badge(text === "awaiting_device" ? "waits for devices" : text, OUTCOMES[text]);

function decisions(cycles, process) {
  const rows = cycles.map((it) => h("li", null,
    h("p", null, outcome(it.outcome), " ", h("a", { href: address(it.detector, `?cycle=${it.id}`) }, name(it.detector), ` cycle ${it.id}`), " for ", name(it.device_class), `, ${begun(it.trigger)} `, when(it.ended_seconds ?? it.started_seconds)),
    it.reason || it.cause ? h("p", { class: "under" }, it.reason || it.cause) : null));
  return [h("h2", null, "Last decisions"), rows.length ? h("ul", { class: "list" }, rows)
    : empty("No cycle has been decided. Prune a detector to a budget: ", code(`prunewatch prune NAME --speedup 4 --server ${process.listen}`))];
}

// Anomalies, newest first; `all`: of several detectors.
export function found(anomalies, all) {
  const share = ([feature, part]) => h("span", { class: "share" }, name(feature), ` ${Math.round(100 * part)} %`);
  const rows = anomalies.map((it) => h("li", null,
    h("p", null, h("strong", { class: "alarm" }, number(it.score)), h("span", { class: "under" }, ` of ${number(it.threshold)} `),
      all ? [h("a", { href: address(it.detector) }, name(it.detector)), " "] : null, name(it.series), " ", stamp(it.stamp, it.seconds)),
    h("p", { class: "shares" }, it.features.map(share), h("span", { class: "under" }, `version ${it.version}, found `, when(it.found_seconds)))));
  return [h("h2", null, "Last anomalies"), rows.length ? tall("Last anomalies", h("ul", { class: "list" }, rows))
    : empty("Nothing has been found. A point is an anomaly when its score reaches the threshold.")];
}
