// What a cycle did: its plan, what left and what that had responded to, what it cost, and what the gate said.

import { badge, bytes, change, code, count, duration, empty, h, name, number, table, when } from "./dom.js";
import { begun } from "./overview.js";

const value = (check, it) => (check.startsWith("latency") ? duration(it) : check === "size" ? bytes(it) : number(it));
const percent = (it) => `${number(100 * it)} %`;

export function checks(list, of) {
  return table(`Checks of the gate, ${of}`, ["check", { title: "value", number: true }, { title: "limit", number: true }, "passed", "what it says"],
    list.map((it) => [it.name, value(it.name, it.value), value(it.name, it.limit), badge(it.passed ? "yes" : "no", it.passed ? "good" : "bad"), it.detail]));
}

export function report(data, got) {
  const heading = (told) => h("h2", { id: "report" }, told);
  if (!got) return [heading("Prune report"), h("p", { class: "quiet" }, "Looking.")];
  if (got.absent ?? got.error) return [heading("Prune report"), empty((got.absent ?? got.error).problem, " ", (got.absent ?? got.error).hint ?? "")];
  const { gate, removed, cost, sensors, parent, child } = got;
  const listed = Object.entries(gate?.checks ?? {}).map(([check, it]) => ({ name: check, ...it }));
  return [
    heading(`Prune report of cycle ${got.cycle}`),
    h("p", null, `${begun(got.trigger)} for `, name(got.device_class), " ", when(got.started_seconds), ": ", got.outcome,
      got.reason ? `: ${got.reason}` : "", ". ", parent && child ? [change(parent.p50_seconds, child.p50_seconds, duration), " a step, ", change(parent.bytes, child.bytes, bytes), "."] : null),
    removed ? part("What left", gone(removed)) : null,
    cost && parent && child ? part("What groups cost", costs(cost)) : null,
    listed.length ? part("The gate", checks(listed, "reported")) : null,
    sensors?.features?.length ? part("What sensors are worth", worth(sensors)) : null,
    removed || listed.length ? null : empty("This cycle built no child that was judged. ", code(`prunewatch report ${data.name} --cycle ${got.cycle} --server ${data.process.listen}`)),
  ];
}

const part = (told, ...children) => h("details", { "data-key": told, open: told === "What left" }, h("summary", null, told), children);

function gone(removed) {
  const responds = (it) => `${it.feature}${it.of === "value" ? "" : ` (${it.of})`} ${it.correlation >= 0 ? "+" : "−"}${Math.abs(it.correlation).toFixed(2)}`;
  const rows = removed.flatMap((group) => [
    [h("strong", null, `${group.group}`), `${group.before} → ${group.after}, ${group.how}${group.criterion ? `, by ${group.criterion}` : ""}`, group.removed.length ? percent(group.share) : "", "", ""],
    ...group.units.map((it) => ["", `unit ${it.unit}`, percent(it.share), number(it.explained, 2), name(it.responds_to.map(responds).join(", "))]),
    ...(group.rest ? [["", `${group.rest.units} others`, percent(group.rest.share), number(group.rest.explained, 2), ""]] : [])]);
  return table("Units that left", ["group", "unit", { title: "importance", number: true }, { title: "said by kept units (R²)", number: true }, "responded to"], rows);
}

function costs(cost) {
  const both = (it, text) => (it ? change(it.before, it.after, text) : "–");
  const rows = cost.groups.map((it) => [it.group, both(it.parameters, count), both(it.bytes, bytes), both(it.step_seconds, duration)]);
  return table("Costs of groups", ["group", "parameters", "bytes", "time of a step, beyond the narrowest"], [...rows, ["all", both(cost.parameters, count), "", `${count(cost.macs.before)} → ${count(cost.macs.after)} multiplications`]]);
}

function worth(sensors) {
  const signed = (it) => (it === null ? "–" : `${it >= 0 ? "+" : "−"}${Math.abs(it).toFixed(3)}`);
  return [
    h("p", { class: "hint" }, `Average precision ${number(sensors.average_precision)} on ${sensors.events} injected anomalies; what it changes by without each sensor. This is ${sensors.note}.`),
    table("Sensors", ["sensor", { title: "all anomalies", number: true }, { title: "those not on it", number: true }, "could go, together"],
      sensors.features.map((it) => [name(it.feature), signed(it.change), signed(it.change_elsewhere), it.suggested ? "perhaps" : ""]))];
}
