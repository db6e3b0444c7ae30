// One detector: what it scores, what it became, and why.

import { badge, bytes, change, code, count, duration, empty, facts, h, name, number, rate, stamp, table, tall, total, unitsText, when } from "./dom.js";
import { bullet, chart, same, scatter } from "./draw.js";
import { address, begun, found, outcome, running, state } from "./overview.js";
import { checks, report } from "./report.js";

// `asked` has the device class and the cycle of the address; `extra` the frontier and the report, or why there is none.
export function detector(data, asked, extra) {
  const { process } = data, hub = process.role === "hub";
  const active = data.operations.filter((it) => it.state === "running");
  const sections = [
    ["head", [data.name, data.state, data.problem, data.points, data.anomaly_count, data.series, data.points_per_second, data.version, data.frozen], () => head(data), "bare"],
    ["scores", [data.live, data.threshold], () => scores(data), "wide"],
  ];
  if (active.length) sections.push(["operations", active, () => [h("h2", null, "At work"), running(active)], "wide"]);
  sections.push(["sizes", [data.versions, data.bundles, data.device_classes, data.served], () => sizes(data), "wide"]);
  if (hub) sections.push(["frontier", [extra.frontier, asked.device_class, data.device_classes, data.served], () => frontier(data, asked, extra.frontier), "half"]);
  sections.push(["lineage", [data.versions, data.bundles, data.served], () => lineage(data), hub ? "half" : "wide"]);
  sections.push(["anomalies", data.anomalies, () => found(data.anomalies, false), "half"]);
  if (!hub) return sections;
  sections.push(["said", [data.adoptions, data.labels, data.windows, data.operations], () => said(data), "half"]);
  sections.push(["cycles", data.cycles, () => cycles(data), "wide"]);
  sections.push(["report", [extra.report, asked.cycle], () => report(data, extra.report), "wide"]);
  return sections;
}

function head(data) {
  const rare = Math.round(1 / data.false_alarm_rate);
  const more = data.features - data.feature_names.length;
  return [
    h("p", { class: "back" }, h("a", { href: "#/" }, "All detectors")),
    h("div", { class: "head" }, h("h1", null, name(data.name)), state(data), data.from_configuration ? badge("from the file") : null),
    data.problem ? h("p", { class: "problem" }, data.problem) : null,
    facts([
      ["network", data.network], ["scores with", data.version ? `version ${data.version}` : "nothing yet"],
      ["threshold", `${number(data.threshold)}, one normal point in ${count(rare)}`],
      ["rate", rate(data.points_per_second)], ["points since the start", count(data.points)], ["anomalies", count(data.anomaly_count)],
      ["series", count(data.series)], data.history_points === undefined ? null : ["points kept", count(data.history_points)],
    ]),
    h("details", { "data-key": "features" }, h("summary", null, `${count(data.features)} features`),
      h("p", { class: "shares" }, data.feature_names.map((it) => h("span", { class: "share" }, name(it))), more > 0 ? `and ${count(more)} more` : null)),
  ];
}

function scores(data) {
  const { live, process } = data, heading = h("h2", null, "Scores, as they come");
  if (!live.seconds.length) {
    return [heading, empty("No points since the start. Send some: ", code(`prunewatch bench ${data.name} --live --seconds 5 --server ${process.listen}`), ", or from Python with ", code("prunewatch.client"), ".")];
  }
  const drawn = chart(data, document.documentElement.clientWidth - 60), read = h("output", { class: "under" }, "The highest score of each second; triangles are anomalies.");
  drawn.addEventListener("pointermove", (event) => point(drawn, read, data, event));
  return [heading, drawn, h("p", { class: "ends" }, when(live.first_seconds), read, when(live.first_seconds + live.seconds.at(-1)))];
}

// Reads the nearest tick under the pointer.
function point(drawn, read, { live }, event) {
  const box = drawn.getBoundingClientRect(), first = live.seconds[0], span = Math.max(live.seconds.at(-1) - first, 1);
  const width = drawn.viewBox.baseVal.width, inner = width - 16;
  const sought = first + ((width * (event.clientX - box.left) / box.width - 8) / inner) * span;
  const near = live.seconds.reduce((best, it, i) => (Math.abs(it - sought) < Math.abs(live.seconds[best] - sought) ? i : best), 0);
  drawn.querySelector(".pointer").setAttribute("d", `M${(8 + ((live.seconds[near] - first) / span) * inner).toFixed(1)} 0V220`);
  const flagged = live.anomalies[near] ? `, ${live.anomalies[near]} anomalies` : "";
  read.textContent = `${new Date((live.first_seconds + live.seconds[near]) * 1000).toLocaleTimeString("en-GB")}: ${number(live.scores[near])}, ${count(live.points[near])} points${flagged}`;
}

const measured = (bundle, device_class, batch) => {
  const fitting = (bundle?.measurements ?? []).filter((it) => !batch || it.batch === batch);
  return fitting.find((it) => it.device_class === device_class) ?? fitting.find((it) => it.device_class === "hub") ?? {};
};

function sizes(data) {
  const bundles = new Map(data.bundles.map((it) => [it.hash, it])), classes = new Map(data.device_classes.map((it) => [it.name, it]));
  const rows = data.served.map((it) => {
    const version = data.versions.find((other) => other.version === it.version), budget = classes.get(it.device_class) ?? {};
    const after = bundles.get(it.bundle);
    const before = version && version.parent !== after.hash ? bundles.get(version.parent) : null;
    const [was, is] = [measured(before, it.device_class, budget.batch), measured(after, it.device_class, budget.batch)];
    const limit = budget.p50_seconds ?? (budget.speedup && was.p50_seconds ? was.p50_seconds / budget.speedup : null);
    const cell = (label, from, to, text, most) => [before ? change(from, to, text) : h("strong", null, text(to)),
      most ? h("span", { class: "limit-text" }, ` of ${text(most)}`) : null,
      bullet(`${label} on ${it.device_class}`, before ? from : null, to, most, text)];
    return [
      [name(it.device_class), h("p", { class: "under" }, `version ${it.version}`)],
      cell("units", total(before?.units), total(after.units), count), cell("parameters", before?.parameters, after.parameters, count),
      cell("size", before?.bytes, after.bytes, bytes, budget.size_bytes),
      cell("p50", was.p50_seconds, is.p50_seconds, duration, limit), cell("p99", was.p99_seconds, is.p99_seconds, duration, budget.p99_seconds)];
  });
  const heading = h("h2", null, "Size and latency, parent to child");
  if (!rows.length) return [heading, empty("Nothing serves yet. Fit it: ", code(`prunewatch fit ${data.name} --data train.csv --server ${data.process.listen}`))];
  return [heading, table("Size and latency", ["class", "hidden units", "parameters", "step graph", "p50 of a step", "p99 of a step"], rows),
    h("p", { class: "hint" }, "Pale bar: the dense parent. Full bar: what serves. Line: the budget of the device class.")];
}

function frontier(data, asked, got) {
  const links = data.device_classes.length > 1
    ? h("p", { class: "choice" }, data.device_classes.map((it) => h("a", { href: address(data.name, `?class=${it.name}`), "aria-current": it.name === asked.device_class ? "true" : null }, name(it.name)))) : null;
  const heading = [h("h2", null, "Frontier: what it can be pruned to"), links];
  if (!got) return [heading, h("p", { class: "quiet" }, "Looking.")];
  if (got.absent) return [heading, empty(got.absent.problem, " Build it: ", code(got.absent.command))];
  const serving = data.served.find((it) => it.device_class === got.device_class);
  const units = data.bundles.find((it) => it.hash === serving?.bundle)?.units;
  const rows = got.points.map((it, i) => [`${i + 1}${it.on_front ? "" : " (behind)"}`, unitsText(it.units), `${number(it.speedup)}×`, duration(it.p50_seconds), bytes(it.bytes), number(it.error_ratio), number(it.agreement), same(it, units) ? "serves" : ""]);
  return [heading, scatter(got, units),
    h("p", { class: "hint" }, "Full circles are the front: no other child is as good in everything. Built ", when(got.created_seconds), "."),
    h("details", { "data-key": "frontier" }, h("summary", null, "As a table"),
      table("Children of the frontier", ["child", "units", { title: "speed-up", number: true }, { title: "p50", number: true }, { title: "size", number: true }, { title: "error ×", number: true }, { title: "alarms shared", number: true }, "as what serves"], rows))];
}

// Bundles under what they were derived from.
function lineage(data) {
  const known = new Set(data.bundles.map((it) => it.hash));
  const under = (hash) => data.bundles.filter((it) => (known.has(it.derived_from) ? it.derived_from : null) === hash);
  const serving = new Map();
  for (const it of data.served) serving.set(it.bundle, [...(serving.get(it.bundle) ?? []), it]);
  const made = new Map(data.versions.map((it) => [it.version, it]));
  const node = (it) => {
    const parent = it.device_class === "parent", version = made.get(it.version), children = under(it.hash);
    const times = it.measurements[0];
    return h("li", null, h("div", { class: "bundle" },
      h("p", null, h("strong", null, `version ${it.version} `), parent ? `dense parent${version ? `, ${version.cause}` : ""}` : ["child for ", name(it.device_class)], " ",
        version?.created_seconds ? when(version.created_seconds) : null,
        (serving.get(it.hash) ?? []).map((one) => [" ", badge(`serves ${one.device_class}`, "good"), one.pinned ? badge("pinned") : null])),
      h("p", { class: "under" }, unitsText(it.units), `; ${count(it.parameters)} parameters, ${bytes(it.bytes)}`, times ? `, p99 ${duration(times.p99_seconds)}` : "", it.error === null ? "" : `, error ${number(it.error)}`, " ", code(it.hash))),
      children.length ? h("ul", null, children.map(node)) : null);
  };
  const roots = under(null);
  return [h("h2", null, "Versions and where they came from"),
    roots.length ? tall("Versions", h("ul", { class: "tree" }, roots.map(node))) : empty("No version yet: it learns from the points that are streamed. ", code(`prunewatch fit ${data.name} --server ${data.process.listen}`), " fits it to those."),
    data.versions_left_out ? h("p", { class: "hint" }, `${count(data.versions_left_out)} older ones are not shown.`) : null];
}

function cycles(data) {
  const heading = h("h2", null, "Last cycles and what the gate said");
  if (!data.cycles.length) return [heading, empty("No cycle yet. Ask for one: ", code(`prunewatch prune ${data.name} --speedup 4 --server ${data.process.listen}`), ", or give it a schedule in the server's settings.")];
  const both = (it, key, text) => (it.child ? change(it.parent?.[key], it.child[key], text) : "–");
  const rows = data.cycles.map((it) => [
    [h("a", { href: address(data.name, `?cycle=${it.id}`) }, `cycle ${it.id}`), " ", when(it.started_seconds)],
    [begun(it.trigger), it.cause ? h("p", { class: "under" }, it.cause) : null], name(it.device_class),
    [outcome(it.outcome), it.adoption ? [" ", badge(it.adoption.replace("_", " "), it.adoption === "kept" ? "good" : it.adoption === "rolled_back" ? "bad" : "busy")] : null,
      it.adoption_reason || it.reason ? h("p", { class: "under reason" }, it.adoption_reason || it.reason) : null,
      it.best_reachable && !it.child ? h("p", { class: "under" }, `best reachable: p50 ${duration(it.best_reachable.p50_seconds)}, ${bytes(it.best_reachable.bytes)}`) : null],
    it.child ? change(total(it.parent?.units), total(it.child.units), count) : "–", both(it, "bytes", bytes), both(it, "p50_seconds", duration), both(it, "p99_seconds", duration),
    it.checks.length ? h("details", { "data-key": `checks ${it.id}` }, h("summary", null, `${it.checks.filter((one) => one.passed).length} of ${it.checks.length} passed`), checks(it.checks, `cycle ${it.id}`)) : "–"]);
  return [heading, table("Cycles", ["cycle", "begun", "class", "outcome", "units", "size", "p50", "p99", "gate"], rows)];
}

function said({ adoptions, labels, windows, operations, process, name: own }) {
  const states = { kept: "good", rolled_back: "bad", probation: "busy" }, failed = operations.filter((it) => it.state === "failed");
  const span = (it) => (it.seconds ? [when(it.seconds[0]), " to ", when(it.seconds[1])] : `rows ${it.stamps.join(" to ")}`);
  const note = (it) => (it.note ? h("p", { class: "under" }, name(it.note)) : null);
  const kind = (it, text) => h("li", null, h("p", null, badge(text, text === "anomaly" ? "bad" : ""), " ", span(it), it.series ? [", ", name(it.series)] : ", all series"), note(it));
  return [
    h("h2", null, "Adoptions"),
    adoptions.length ? h("ul", { class: "list" }, adoptions.map((it) => h("li", null,
      h("p", null, badge(it.state.replace("_", " "), states[it.state]), ` version ${it.version} on `, name(it.device_class), it.previous_version ? `, before it version ${it.previous_version}` : "", ", ", when(it.began_seconds)),
      it.reason ? h("p", { class: "under" }, it.reason) : null))) : empty("No cycle has made a version serve yet."),
    failed.length ? [h("h3", null, "Failed"), h("ul", { class: "list" }, failed.map((it) => h("li", null, h("p", null, badge(it.kind, "bad"), " ", when(it.ended_seconds)), h("p", { class: "under" }, it.error))))] : null,
    h("h3", null, "Labels and maintenance windows"),
    labels.length + windows.length ? h("ul", { class: "list" }, labels.map((it) => kind(it, it.label)), windows.map((it) => kind(it, "maintenance")))
      : empty("Say what was normal after all, or an anomaly: ", code(`prunewatch feedback ${own} --normal FROM TO --server ${process.listen}`)),
  ];
}
