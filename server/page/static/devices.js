// Devices: their classes as a hub sees them, and a device as it sees itself.

import { badge, bytes, count, duration, empty, facts, h, name, number, when } from "./dom.js";

const STAGES = { measuring: "busy", canary: "busy", partial: "busy" };
const address = (detector, query = "") => `#/detectors/${encodeURIComponent(detector)}${query}`;
const link = (detector) => h("a", { href: address(detector) }, name(detector));

export function classes(device_classes) {
  const limits = (it) => [
    it.p50_seconds ? `p50 ${duration(it.p50_seconds)}` : null, it.p99_seconds ? `p99 ${duration(it.p99_seconds)}` : null,
    it.speedup ? `${number(it.speedup)} times as fast as the parent` : null, it.size_bytes ? bytes(it.size_bytes) : null].filter(Boolean).join(", ");
  return [h("h2", null, "Device classes"), h("ul", { class: "list" }, device_classes.map((it) => h("li", null,
    h("p", null, h("strong", null, name(it.name)), ` ${limits(it) || "no budget"}`),
    h("p", { class: "under" }, `steps of ${it.batch} points; serves ${it.serves} ${it.serves === 1 ? "detector" : "detectors"}`),
    it.devices ? connected(it.devices) : null,
    Object.entries(it.in_use).map(([detector, steps]) => inUse(detector, steps, it)),
    it.rollouts.map(rollout), it.waiting.map((one) => waits(one, it)))))];
}

function connected({ connected: here, away }) {
  return h("p", null, badge(`${count(here)} connected`, here ? "good" : null), " ", away ? badge(`${count(away)} away`, here ? "busy" : "bad") : null);
}

// What devices say of their steps, beside what a step may take.
function inUse(detector, steps, { p50_seconds, p99_seconds }) {
  const one = (label, value, limit) => [`${label} `, h("strong", { class: limit && value > limit ? "alarm" : null }, duration(value)), limit ? ` of ${duration(limit)}` : null];
  return h("p", { class: "under" }, link(detector), " on devices: ", one("p50", steps.p50_seconds, p50_seconds), ", ", one("p99", steps.p99_seconds, p99_seconds));
}

function rollout(it) {
  return h("p", null, badge(it.stage, STAGES[it.stage]), " ", link(it.detector), ` version ${it.version} rolls out, begun `, when(it.created_seconds), it.reason ? h("span", { class: "under" }, `, ${it.reason}`) : null);
}

function waits(it, { devices }) {
  const answers = `${count(it.answers)} ${it.answers === 1 ? "answer" : "answers"}`;
  return h("p", null, badge("waits for devices", "busy"), " ", h("a", { href: address(it.detector, `?cycle=${it.cycle}`) }, name(it.detector), ` cycle ${it.cycle}`),
    h("span", { class: "under" }, `, ${answers} so far; without one it is rejected `, when(it.expires_seconds), devices?.connected ? null : "; no device is connected"));
}

const WHERE = { serving: "good", trying: "busy", fetching: "busy", fell_back: "bad", refused: "bad" };
const WORDS = { fell_back: "fell back" };

export function device(it) {
  const linked = it.hub === null ? badge("no hub") : it.connected ? badge("connected", "good") : badge("hub is away", "bad");
  return [
    h("h2", null, "This device"),
    h("p", null, it.name ? h("strong", null, name(it.name)) : "without a name", " of class ", name(it.device_class ?? "–"), " ", linked),
    facts([
      it.hub === null ? null : ["hub", it.hub], it.hub === null ? null : ["last heard of", it.last_contact_seconds ? when(it.last_contact_seconds) : "never"],
      ["reports that wait", bytes(it.waiting_bytes)], it.dropped_reports ? ["reports let go", count(it.dropped_reports)] : null,
      Number.isFinite(it.temperature_celsius) ? ["processor", `${number(it.temperature_celsius)} °C`] : null,
    ]),
    it.releases.length ? h("ul", { class: "list" }, it.releases.map(release))
      : empty(it.hub === null ? "Nothing is in the store." : "The hub has released nothing to this device yet."),
  ];
}

function release(it) {
  return h("li", null,
    h("p", null, badge(WORDS[it.state] ?? it.state, WHERE[it.state]), " ", it.bundle ? link(it.detector) : name(it.detector),
      it.counter ? ` release ${it.counter}` : " nothing serves", it.asked_counter > it.counter ? h("span", { class: "under" }, `, asked for ${it.asked_counter}`) : null),
    it.reason ? h("p", { class: "problem" }, it.reason) : null,
    h("p", { class: "under" }, it.slots.map((slot, i) => [i ? "; " : "", `slot ${slot.slot} `, h("code", null, slot.bundle), ` ${slot.use}`])));
}
