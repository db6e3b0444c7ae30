// Where one is, what is asked for there, and how what comes is shown without disturbing who reads.

import { h, retell, setClock } from "./dom.js";
import { detector } from "./detector.js";
import { overview } from "./overview.js";

const EVERY = 2000, SLOWLY = 10_000, LONGEST = 30_000;
const main = document.getElementById("main"), link = document.getElementById("link"), said = document.getElementById("said");
const kept = new Map(); // address -> { etag, body }
let where = null, wait = EVERY, timer = 0, shown = new Map(), turn = 0;

// #/ or #/detectors/NAME?class=CLASS&cycle=ID
function route() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [kind, encoded] = path.split("/"), asked = new URLSearchParams(query ?? "");
  let detectorName = null;
  try { detectorName = kind === "detectors" && encoded ? decodeURIComponent(encoded) : null; } catch { /* not an address of ours */ }
  return { detector: detectorName, device_class: asked.get("class"), cycle: asked.get("cycle") };
}

// What an address says now; 304 is what it said before. An answer that is an error is one, too.
async function ask(address) {
  const before = kept.get(address);
  const response = await fetch(address, { headers: before ? { "If-None-Match": before.etag } : {}, cache: "no-store", signal: AbortSignal.timeout(8000) });
  setClock(response.headers.get("Date"));
  if (response.status === 304) return before.body;
  if (!(response.headers.get("Content-Type") ?? "").startsWith("application/json")) throw new Error(`status ${response.status}`);
  const body = await response.json();
  if (response.status >= 500) throw new Error(`status ${response.status}`);
  if (response.ok) {
    kept.delete(address);
    kept.set(address, { etag: response.headers.get("ETag"), body, at: Date.now() });
    if (kept.size > 12) kept.delete(kept.keys().next().value);
  }
  return body;
}

// What changes seldom is asked for seldom, and at once where a cycle or a frontier has ended.
const extras = new Map();
async function seldom(address, reason) {
  const before = extras.get(address);
  if (before && before.reason === reason && Date.now() - before.at < SLOWLY) return before.body;
  const body = await ask(address);
  extras.set(address, { reason, at: Date.now(), body });
  if (extras.size > 12) extras.delete(extras.keys().next().value);
  return body;
}

async function gather(at) {
  if (!at.detector) {
    const data = await ask("api/overview");
    return { title: "prunewatch", data, sections: overview(data) };
  }
  const address = `api/detectors/${encodeURIComponent(at.detector)}`, data = await ask(address);
  if (data.error) return { title: "prunewatch", data, sections: [["error", data.error, () => lost(data.error), "wide"]] };
  const first = data.device_classes.find((it) => it.name === at.device_class) ?? data.device_classes[0];
  const asked = { device_class: first?.name, cycle: at.cycle }, extra = {};
  if (first) {
    const ended = data.operations.find((it) => it.ended_seconds)?.name ?? "", query = `device_class=${encodeURIComponent(first.name)}`;
    [extra.frontier, extra.report] = await Promise.all([
      seldom(`${address}/frontier?${query}`, ended),
      seldom(`${address}/report?${at.cycle ? `cycle=${encodeURIComponent(at.cycle)}` : query}`, ended)]);
  }
  return { title: `${at.detector}, prunewatch`, data, sections: detector(data, asked, extra) };
}

const lost = (error) => [h("p", { class: "back" }, h("a", { href: "#/" }, "All detectors")), h("h1", null, "Not here"), h("p", { class: "empty" }, `${error.problem} ${error.hint}`)];

// Only a section that says something else is drawn again; focus, open details and scrolled tables stay as they are.
function show(sections) {
  const keys = new Set(sections.map(([key]) => key)), nodes = { main: [], beside: [] };
  for (const key of shown.keys()) if (!keys.has(key)) shown.delete(key);
  for (const [key, said_, render, kind] of sections) {
    const told = JSON.stringify(said_), before = shown.get(key);
    const node = before?.node ?? h("section", { class: `part ${kind}`, "data-part": key });
    if (before?.told !== told) redraw(node, render);
    shown.set(key, { told, node });
    nodes[kind === "beside" ? "beside" : "main"].push(node);
  }
  place(columns.main, nodes.main);
  place(columns.beside, nodes.beside);
  main.classList.toggle("alone", !nodes.beside.length);
  if (!columns.main.isConnected) main.replaceChildren(columns.main, columns.beside);
}

const columns = { main: h("div", { class: "column" }), beside: h("div", { class: "column beside" }) };

// Only what is not where it should be is moved: what is moved loses its focus.
function place(column, nodes) {
  for (const it of [...column.children]) if (!nodes.includes(it)) it.remove();
  nodes.forEach((it, i) => { if (column.children[i] !== it) column.insertBefore(it, column.children[i] ?? null); });
}

function redraw(node, render) {
  const active = document.activeElement, inside = node.contains(active) ? mark(active) : null;
  const open = new Map([...node.querySelectorAll("details[data-key]")].map((it) => [it.dataset.key, it.open]));
  const scrolled = [...node.querySelectorAll(".scroll, .tall")].map((it) => [it.scrollLeft, it.scrollTop]);
  node.replaceChildren(...[render()].flat(Infinity).filter(Boolean));
  for (const it of node.querySelectorAll("details[data-key]")) if (open.has(it.dataset.key)) it.open = open.get(it.dataset.key);
  node.querySelectorAll(".scroll, .tall").forEach((it, i) => { [it.scrollLeft, it.scrollTop] = scrolled[i] ?? [0, 0]; });
  if (inside) [...node.querySelectorAll("a, summary, [tabindex]")].find((it) => mark(it) === inside)?.focus({ preventScroll: true });
}

const mark = (it) => `${it.tagName} ${it.getAttribute("href") ?? it.parentElement?.dataset.key ?? it.getAttribute("aria-label") ?? ""}`;

// Says aloud, politely, what one would want to be told without looking.
let heard = null;
function announce({ data, sections }, at) {
  if (!data.anomalies) return;
  const now = { at: at.detector, found: data.anomalies[0]?.found_seconds ?? 0, versions: new Map((data.detectors ?? [data]).map((it) => [it.name, it.version])) };
  const told = [];
  if (heard && heard.at === now.at) {
    const fresh = data.anomalies.filter((it) => it.found_seconds > heard.found);
    if (fresh.length) told.push(`${fresh.length === 1 ? "New anomaly" : `${fresh.length} new anomalies`} on ${[...new Set(fresh.map((it) => it.detector))].join(", ")}.`);
    for (const [detectorName, version] of now.versions) {
      if (version && heard.versions.has(detectorName) && heard.versions.get(detectorName) !== version) told.push(`Version ${version} of ${detectorName} scores now.`);
    }
  }
  heard = now;
  if (told.length && sections) said.textContent = told.join(" ");
}

function connected(process) {
  document.getElementById("process").textContent = process ? `${process.role} ${process.version}, gRPC on ${process.listen}` : "";
  say(process && !process.ready ? "draining" : "live", process && !process.ready ? "busy" : "good");
}

function say(text, kind) {
  if (link.textContent !== text) link.textContent = text;
  link.className = `link ${kind}`;
}

async function look() {
  const mine = ++turn, at = where;
  clearTimeout(timer);
  try {
    const made = await gather(at);
    if (mine !== turn) return;
    document.title = made.title;
    show(made.sections);
    announce(made, at);
    connected(made.data.process);
    wait = EVERY;
    if (at.arrived) { at.arrived = false; arrive(at); }
  } catch (error) {
    if (mine !== turn) return;
    wait = Math.min(2 * wait, LONGEST);
    say(`no answer, trying again (${error.message})`, "bad");
  }
  retell();
  if (!document.hidden) timer = setTimeout(look, wait);
}

// After a link was followed, keyboard and screen reader begin at the top of what came, or at the report that was asked for.
function arrive(at) {
  const report = at.cycle ? document.getElementById("report") : null;
  if (report) report.closest("section").scrollIntoView({ block: "start" });
  else scrollTo(0, 0);
  main.focus({ preventScroll: true });
}

function go() {
  const before = where;
  where = route();
  where.arrived = before !== null;
  if (before?.detector !== where.detector) { shown = new Map(); main.replaceChildren(h("p", { class: "quiet" }, "Looking.")); }
  wait = EVERY;
  look();
}

addEventListener("hashchange", go);
document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); else clearTimeout(timer); });
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
setInterval(retell, 5000);
go();
