"use strict";
// Draws one point a query, tells what is pointed at, and shows the changes of the system that is chosen.
const data = JSON.parse(document.getElementById("data").textContent);
const plot = document.getElementById("plot");
const told = document.getElementById("told");
const chooser = document.getElementById("system");
const all = document.getElementById("all");
const hint = told.firstElementChild;
const queries = data.qids.map((qid, query) => query);
const others = data.systems.map((name, system) => system).filter((system) => system !== data.baseline);
const before = data.values[data.baseline];
const LEFT = 58, TOP = 12, SIZE = 384, REACH = 14;

let after, low, high, order, shown, kept = null;

function element(name, attributes, text, parent = plot) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== undefined) made.textContent = text;
  parent.append(made);
  return made;
}

function paragraph(text, kind) {
  const made = document.createElement("p");
  made.textContent = text;
  if (kind) made.className = kind;
  told.append(made);
  return made;
}

const place = (value) => (value - low) / (high - low) * SIZE;
const across = (query) => LEFT + place(before[query]);
const upwards = (query) => TOP + SIZE - place(after[query]);

function signed(value) {
  return (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
}

function short(name) {
  return name.length > 48 ? name.slice(0, 47) + "…" : name;
}

function draw() {
  const system = others[chooser.value];
  after = data.values[system];
  const all = before.concat(after);
  low = Math.min(0, all.reduce((least, value) => Math.min(least, value), Infinity));
  high = Math.max(1, all.reduce((most, value) => Math.max(most, value), -Infinity));
  order = queries.slice().sort((a, b) => (after[b] - before[b]) - (after[a] - before[a]));
  drawDifferences();
  plot.replaceChildren();
  for (let tick = 0; tick <= 4; tick++) {
    const value = low + (high - low) * tick / 4, offset = SIZE * tick / 4;
    element("path", {class: "axis", d: `M${LEFT + offset} ${TOP}V${TOP + SIZE}M${LEFT} ${TOP + SIZE - offset}H${LEFT + SIZE}`});
    element("text", {x: LEFT + offset, y: TOP + SIZE + 18, "text-anchor": "middle"}, value.toFixed(2));
    element("text", {x: LEFT - 8, y: TOP + SIZE - offset + 4, "text-anchor": "end"}, value.toFixed(2));
  }
  element("path", {class: "diagonal", d: `M${LEFT} ${TOP + SIZE}L${LEFT + SIZE} ${TOP}`});
  element("text", {x: LEFT + SIZE / 2, y: TOP + SIZE + 40, "text-anchor": "middle"}, short(data.systems[data.baseline]));
  element("text", {x: -(TOP + SIZE / 2), y: 12, transform: "rotate(-90)", "text-anchor": "middle"}, short(data.systems[system]));
  const places = new Map();
  for (const query of order) {
    const place = `M${across(query).toFixed(1)} ${upwards(query).toFixed(1)}h0`;
    const there = places.get(place) ?? {count: 0, gain: after[query] - before[query]};
    there.count += 1;
    places.set(place, there);
  }
  // one path for many points: each is a line of no length with a round end
  const paths = new Map();
  const smallest = places.size > 2000 ? 3 : 6;
  for (const [place, {count, gain}] of places) {
    const kind = gain > 0 ? "up" : gain < 0 ? "down" : "same";
    const key = `${kind} ${Math.min(24, Math.round(smallest + 2 * Math.log2(count)))}`;
    paths.set(key, (paths.get(key) ?? "") + place);
  }
  for (const [key, d] of paths) {
    const [kind, width] = key.split(" ");
    element("path", {class: `points ${kind}`, d: d, "stroke-width": width});
  }
  for (const section of document.querySelectorAll(".changes")) {
    section.hidden = section.id !== `changes-${chooser.value}`;
  }
  shown = new Map();
  for (const details of document.querySelectorAll(`#changes-${chooser.value} details.query`)) {
    shown.set(details.dataset.qid, details);
  }
  kept = null;
  told.replaceChildren(hint);
  listQueries();
}

// the table of all queries is made when it is opened: there may be thousands
function listQueries() {
  all.querySelector("[aria-sort]")?.removeAttribute("aria-sort");
  all.querySelector("tbody").replaceChildren(...(all.open ? order : []).map((query) => {
    const row = document.createElement("tr"), values = [before[query], after[query]].map((value) => value.toFixed(3));
    const texts = [data.queries[query], signed(after[query] - before[query]), ...values, data.qids[query]];
    for (const text of texts) row.insertCell().textContent = text;
    return row;
  }));
}

// sorts a table by a column: numbers from the largest, texts from A, and the other way round at the next click
function sortRows(head) {
  const body = head.closest("table").tBodies[0], cell = (row) => row.cells[head.cellIndex];
  const text = (row) => cell(row)?.colSpan === 1 ? cell(row).textContent.trim().replace("−", "-").replace("< ", "") : "";
  const known = [...body.rows].filter((row) => /[^–]/.test(text(row)));
  const isNumeric = known.every((row) => /^[-+]?\d/.test(text(row)));
  const order = isNumeric ? (a, b) => parseFloat(text(a)) - parseFloat(text(b)) : (a, b) => text(a).localeCompare(text(b));
  const rises = head.hasAttribute("aria-sort") ? head.getAttribute("aria-sort") === "descending" : !isNumeric;
  body.prepend(...known.sort((a, b) => rises ? order(a, b) : order(b, a)));
  head.parentElement.querySelector("[aria-sort]")?.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", rises ? "ascending" : "descending");
}

// a bar for each query, from the largest gain to the largest loss
function drawDifferences() {
  const chart = document.getElementById("differences");
  const most = Math.max(...[order[0], order.at(-1)].map((query) => Math.abs(after[query] - before[query])), 1e-9);
  const width = (SIZE + 10) / order.length, paths = {up: "", down: ""};
  order.forEach((query, position) => {
    const difference = after[query] - before[query];
    const x = (LEFT + (position + 0.5) * width).toFixed(1), height = (-56 * difference / most).toFixed(1);
    if (difference) paths[difference > 0 ? "up" : "down"] += `M${x} 65v${height}`;
  });
  chart.replaceChildren();
  for (const [kind, d] of Object.entries(paths)) {
    element("path", {class: `bars ${kind}`, d: d, "stroke-width": Math.max(1, width * 0.8)}, undefined, chart);
  }
  element("path", {class: "axis", d: `M${LEFT} 65H${LEFT + SIZE + 10}`}, undefined, chart);
  for (const [value, y] of [[most, 14], [0, 69], [-most, 124]]) {
    element("text", {x: LEFT - 8, y: y, "text-anchor": "end"}, value ? signed(value) : "0", chart);
  }
}

function tell(query) {
  plot.querySelector(".chosen")?.remove();
  element("circle", {class: "chosen", cx: across(query), cy: upwards(query), r: 7});
  told.replaceChildren();
  paragraph(`${before[query].toFixed(3)} → ${after[query].toFixed(3)} (${signed(after[query] - before[query])})`);
  // queries at one place hide each other: those whose rankings are shown come first, after the one that is pointed at
  const same = order.filter((other) => other !== query && before[other] === before[query] && after[other] === after[query]);
  same.sort((a, b) => shown.has(data.qids[b]) - shown.has(data.qids[a]));
  for (const one of [query, ...same.slice(0, 4)]) {
    const line = paragraph(`${data.queries[one]} `, "asked");
    const qid = document.createElement("span");
    qid.className = "muted";
    qid.textContent = `${data.qids[one]} `;
    line.append(qid);
    if (shown.has(data.qids[one])) line.append(opener(shown.get(data.qids[one])));
  }
  if (same.length > 4) paragraph(`and ${same.length - 4} more at the same place`, "muted");
}

function opener(details) {
  const button = document.createElement("button");
  button.textContent = "Show rankings";
  button.addEventListener("click", () => {
    details.open = true;
    details.scrollIntoView({block: "start"});
    details.firstElementChild.focus();
  });
  return button;
}

function nearest(event) {
  const box = plot.getBoundingClientRect();
  const scale = 460 / box.width;
  const x = (event.clientX - box.left) * scale, y = (event.clientY - box.top) * scale;
  let best = null, least = REACH * Math.max(1, scale);
  for (const query of order) {
    const distance = Math.hypot(across(query) - x, upwards(query) - y);
    if (distance < least) [best, least] = [query, distance];
  }
  return best;
}

plot.addEventListener("pointermove", (event) => {
  const query = nearest(event);
  if (kept === null && query !== null) tell(query);
});
plot.addEventListener("click", (event) => {
  kept = nearest(event);
  if (kept !== null) tell(kept);
});
plot.addEventListener("keydown", (event) => {
  const step = {ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1}[event.key];
  if (step === undefined) return;
  event.preventDefault();
  const position = kept === null ? 0 : order.indexOf(kept) + step;
  kept = order[(position + order.length) % order.length];
  tell(kept);
});
document.getElementById("find").addEventListener("input", (event) => {
  const wanted = event.target.value.toLowerCase();
  const found = order.find((query) => data.qids[query] === event.target.value)
    ?? order.find((query) => data.queries[query].toLowerCase().includes(wanted));
  if (wanted && found !== undefined) tell(kept = found);
});
for (const head of document.querySelectorAll("thead th:not(:has(.spoken))")) {
  const button = document.createElement("button");
  button.append(...head.childNodes);
  button.addEventListener("click", () => sortRows(head));
  head.append(button);
}
all.addEventListener("toggle", listQueries);
chooser.addEventListener("change", draw);
draw();
