"use strict";

// A click on a heading sorts its table; a tbody is one row with all that belongs to it.
function sortBy(table, column, header) {
  const descending = header.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const valueOf = (body) => {
    const cell = body.rows[0].cells[column];
    if ("v" in cell.dataset) return Number(cell.dataset.v);
    const text = cell.textContent.trim();
    return text === "n/a" ? null : text;
  };
  const compare = (a, b) => {
    const [x, y] = [valueOf(a), valueOf(b)];
    if (x === null || y === null) return (x === null) - (y === null); // what is absent comes last
    const order = typeof x === "number" && typeof y === "number"
      ? x - y
      : String(x).localeCompare(String(y), undefined, { numeric: true });
    return descending ? -order : order;
  };
  table.append(...[...table.tBodies].sort(compare));
}

for (const table of document.querySelectorAll("table.sortable")) {
  [...table.tHead.rows[0].cells].forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sortBy(table, column, header));
  });
}

const tokens = JSON.parse(document.getElementById("tokens").textContent);
const BOUNDS = [10, 50, 100, 200, 350, 500, 750]; // hundredths of a nat
const MOVED = 50;

function nats(hundredths) {
  return (hundredths / 100).toFixed(2).replace("-", "−");
}

// One strip of an option's tokens, shaded by surprisal under the base or under the adapter.
function strip(signs, held, model) {
  const values = held[model];
  const text = document.createElement("p");
  text.className = "story";
  text.dir = "auto";
  let start = 0;
  held.ends.forEach((end, k) => {
    const token = document.createElement("i");
    token.textContent = signs.slice(start, end).join("") || "⟨end⟩";
    token.className = "h" + BOUNDS.filter((bound) => -values[k] >= bound).length;
    let title = `${nats(values[k])} nats, after ∅ ${nats(held["null_" + model][k])}`;
    if (model === "adapter") {
      const change = values[k] - held.base[k];
      if (Math.abs(change) >= MOVED) token.classList.add(change > 0 ? "up" : "down");
      title += `; base ${nats(held.base[k])}`;
    }
    token.title = title;
    text.append(token);
    start = end;
  });
  const line = document.createElement("div");
  line.className = "strip";
  const label = document.createElement("span");
  label.textContent = model;
  line.append(label, text);
  return line;
}

function open(body, button) {
  const isOpen = body.classList.toggle("open-item");
  button.setAttribute("aria-expanded", String(isOpen));
  for (const place of body.querySelectorAll("[data-tokens]")) {
    const held = tokens[Number(place.dataset.tokens)];
    const signs = Array.from(place.textContent); // by character, as the token ends are counted
    const strips = ["base", "adapter"].filter((model) => model in held);
    place.replaceWith(...strips.map((model) => strip(signs, held, model)));
  }
}

const items = document.getElementById("table-items");
if (items) {
  for (const button of items.querySelectorAll(".open")) {
    button.addEventListener("click", () => open(button.closest("tbody"), button));
  }
  const [find, group, count] = ["find", "group", "count"].map((id) => document.getElementById(id));
  const filter = () => {
    const wanted = find.value.trim().toLocaleLowerCase();
    let shown = 0;
    for (const body of items.tBodies) {
      const fits = (!group.value || body.dataset.group === group.value)
        && (!wanted || body.textContent.toLocaleLowerCase().includes(wanted));
      body.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${items.tBodies.length} items`;
  };
  find.addEventListener("input", filter);
  group.addEventListener("change", filter);
  document.querySelector(".controls").hidden = false;
  filter();
}
