"use strict";

// A page of records: filtered, sorted, a part at a time; what is asked for stands in the address.
const records = window.RECORDS || [];
const list = document.getElementById("records"), form = document.getElementById("filters");
const PAGE = 24;
const controls = form ? [...form.elements].filter((c) => c.dataset.filter) : [];
const lower = (text) => text.toLowerCase();
const matches = {
  contains: (value, wanted) => lower(wanted).split(/\s+/).every((word) => value.includes(word)),
  equal: (value, wanted) => (Array.isArray(value) ? value.includes(wanted) : value === wanted),
  from: (value, wanted) => value !== null && value >= Number(wanted),
  to: (value, wanted) => value !== null && value <= Number(wanted),
};
let page = 0;

// Decisions, by query: {decision, landmark}. Where the browser keeps nothing, they last as long as the page.
const KEY = "landmarks report " + document.body.dataset.run;
let decisions = {};
try { decisions = JSON.parse(localStorage.getItem(KEY)) || {}; } catch { /* none are kept */ }
decisions = Object.assign(Object.create(null), decisions);

function keep() {
  try { localStorage.setItem(KEY, JSON.stringify(decisions)); } catch { /* full, or not allowed */ }
  const decided = document.getElementById("decided");
  if (decided) decided.textContent = Object.keys(decisions).length.toLocaleString("en");
}

function selected() {
  const asked = controls.filter((c) => c.value !== "");
  const field = (record, name) =>
    name === "decision" ? (decisions[record.id] || { decision: "undecided" }).decision : record[name];
  const found = records.filter((r) => asked.every((c) => matches[c.dataset.filter](field(r, c.name), c.value)));
  const sort = form.elements.sort.value;
  if (!sort) return found;
  const name = sort.slice(1), sign = sort[0] === "-" ? -1 : 1;
  const last = (value) => (value === null || value === undefined ? 1 : 0);
  return found.sort((a, b) => last(a[name]) - last(b[name]) || sign * (a[name] - b[name]) || (a.id < b.id ? -1 : 1));
}

function show() {
  const found = selected(), pages = Math.max(1, Math.ceil(found.length / PAGE));
  page = Math.min(Math.max(page, 0), pages - 1);
  list.innerHTML = found.slice(page * PAGE, (page + 1) * PAGE).map((r) => r.html).join("")  // escaped where made
    || "<p>Nothing fits these filters.</p>";
  for (const count of document.querySelectorAll(".pager .count"))
    count.textContent = `${found.length.toLocaleString("en")} of ${records.length.toLocaleString("en")}, page ${page + 1} of ${pages}`;
  for (const button of document.querySelectorAll("[data-step]"))
    button.disabled = page + Number(button.dataset.step) < 0 || page + Number(button.dataset.step) >= pages;
  for (const card of list.querySelectorAll(".card")) mark(card);
}

function fromAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const c of [...controls, form.elements.sort]) {
    const name = c.dataset.filter === "from" || c.dataset.filter === "to" ? `${c.name}_${c.dataset.filter}` : c.name;
    c.value = asked.get(name) ?? c.defaultValue ?? "";
    if (c.tagName === "SELECT" && c.selectedIndex < 0) c.selectedIndex = 0;
  }
  page = (Number(asked.get("page")) || 1) - 1;
  show();
}

function toAddress() {
  const asked = new URLSearchParams();
  for (const c of [...controls, form.elements.sort]) {
    const name = c.dataset.filter === "from" || c.dataset.filter === "to" ? `${c.name}_${c.dataset.filter}` : c.name;
    if (c.value !== "" && !(c === form.elements.sort && c.selectedIndex === 0)) asked.set(name, c.value);
  }
  if (page) asked.set("page", page + 1);
  history.replaceState(null, "", "#" + asked);
}

function step(by) {
  page += by;
  show();
  toAddress();
  list.scrollIntoView();
}

function mark(card) {
  const decided = decisions[card.dataset.id];
  for (const button of card.querySelectorAll("[data-decision]"))
    button.setAttribute("aria-pressed", String(Boolean(decided) && decided.decision === button.dataset.decision));
  const other = card.querySelector("[data-other]");
  if (other && decided && decided.decision === "other") other.value = decided.landmark;
  else if (other && decided) other.value = "";
}

function decide(card, decision, landmark) {
  const before = decisions[card.dataset.id];
  if (decision === null || (before && before.decision === decision && before.landmark === landmark)) delete decisions[card.dataset.id];
  else decisions[card.dataset.id] = { decision, landmark };
  keep();
  mark(card);
}

const quoted = (text) => (/[",\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const word = (text) => text.replace(/[\s%]/g, encodeURIComponent);  // spaces separate landmarks in a truth
const csv = (rows) => rows.map((row) => row.map(quoted).join(",") + "\n").join("");

function download(name, text) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

const allIds = () => new Promise((resolve, reject) => {
  if (window.IDS) return resolve(window.IDS);
  const script = document.createElement("script");
  script.src = "ids.js";
  script.onload = () => resolve(window.IDS);
  script.onerror = reject;
  document.head.append(script);
});

async function exported(kind) {
  const named = Object.entries(decisions).filter(([, d]) => d.landmark);
  if (kind === "labels")
    return download("labels.csv", csv([["id", "landmark_id"], ...named.map(([id, d]) => [id, d.landmark])]));
  const rows = (await allIds()).map((id) => {
    const decided = decisions[id];
    const known = decided && (decided.landmark || decided.decision === "none");
    return [id, known ? word(decided.landmark) : "", known ? "Public" : "Ignored"];
  });
  download("truth.csv", csv([["id", "landmarks", "Usage"], ...rows]));
}

if (list) {
  form.addEventListener("input", () => { page = 0; show(); toAddress(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("reset", (event) => { event.preventDefault(); history.replaceState(null, "", "#"); fromAddress(); });
  window.addEventListener("hashchange", fromAddress);
  list.addEventListener("click", (event) => {
    const button = event.target.closest("[data-decision]");
    if (!button) return;
    const card = button.closest(".card"), record = records.find((r) => r.id === card.dataset.id);
    decide(card, button.dataset.decision, button.dataset.decision === "right" ? record.landmark : "");
  });
  list.addEventListener("change", (event) => {
    if (!event.target.matches("[data-other]")) return;
    const landmark = event.target.value.trim();
    decide(event.target.closest(".card"), landmark ? "other" : null, landmark);
  });
  document.addEventListener("click", (event) => {
    const at = event.target.dataset;
    if (at.step) step(Number(at.step));
    else if (at.export) exported(at.export);
    else if ("clear" in at && confirm("Forget all decisions of this run?")) {
      decisions = Object.create(null);
      keep();
      show();
    }
  });
  document.addEventListener("keydown", (event) => {
    if (event.target.closest("input, select, summary, textarea") || event.ctrlKey || event.altKey || event.metaKey) return;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && !document.querySelector(`[data-step="${by}"]`).disabled) step(by);
  });
  keep();
  fromAddress();
}

// Groups: naming one decides for each of its photographs that is ticked.
const groups = [...document.querySelectorAll("[data-ids]")].map((card) => ({
  card, ids: JSON.parse(card.dataset.ids), name: card.querySelector("[data-name]"), boxes: [...card.querySelectorAll("[type=checkbox]")],
}));
const labelled = () => groups.flatMap((group) => group.ids.filter((id) => (decisions[id] || {}).landmark));

function showNames() {
  for (const { ids, name, boxes } of groups) {
    name.value = ids.map((id) => decisions[id] || {}).map((made) => made.landmark || made.name).find(Boolean) || "";
    for (const box of boxes) box.checked = (decisions[box.value] || {}).decision !== "none";
  }
  countNames();
}

function countNames() {
  const named = groups.filter(({ name, boxes }) => name.value.trim() && boxes.some((box) => box.checked)).length;
  const photographs = labelled().length;
  document.getElementById("named").textContent = `${named} of ${groups.length} groups have a name, for ${photographs.toLocaleString("en")} photographs`;
  document.querySelector("[data-labels]").disabled = !photographs;
}

if (groups.length) {
  for (const { card, ids, name, boxes } of groups)
    card.addEventListener("input", () => {
      const landmark = name.value.trim(), out = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
      for (const id of ids) {
        if (out.has(id)) decisions[id] = { decision: "none", landmark: "", name: landmark };
        else if (landmark) decisions[id] = { decision: "other", landmark };
        else delete decisions[id];
      }
      keep();
      countNames();
    });
  document.addEventListener("keydown", (event) => {
    const at = groups.findIndex((group) => group.name === event.target);
    if (event.key === "Enter" && at >= 0) (groups[at + 1] || { name: document.querySelector("[data-labels]") }).name.focus();
  });
  document.querySelector("[data-labels]").addEventListener("click", () =>
    download("labels.csv", csv([["id", "landmark_id"], ...labelled().map((id) => [id, decisions[id].landmark])])));
  document.querySelector("[data-forget]").addEventListener("click", () => {
    if (!confirm("Forget all names?")) return;
    decisions = Object.create(null);
    keep();
    showNames();
  });
  showNames();
}

// The curve's threshold follows the slider.
const slider = document.getElementById("threshold");
if (slider) {
  const points = JSON.parse(slider.dataset.curve), share = (value) => `${(100 * value).toFixed(1)} %`;
  slider.addEventListener("input", () => {
    const [confidence, coverage, precision] = points[Number(slider.value)];
    const x = 44 + 346 * coverage, mark = document.getElementById("mark");
    mark.querySelector("path").setAttribute("d", `M${x} 10V204`);
    mark.querySelector("circle").setAttribute("cx", x);
    mark.querySelector("circle").setAttribute("cy", 204 - 194 * precision);
    document.getElementById("reading").textContent =
      `from ${confidence.toFixed(3)} on: precision ${share(precision)}, ${share(coverage)} of the queries answered`;
  });
}
