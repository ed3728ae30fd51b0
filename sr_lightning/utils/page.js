const data = JSON.parse(document.getElementById("data").textContent);
const $ = id => document.getElementById(id);
const clamp = (value, low, high) => Math.max(low, Math.min(value, high));

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value != null) node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

// Numbers

const isPsnr = key => /psnr|gain|distance|^consistency/i.test(key);  // in dB
function format(value, key) {
  if (value == null) return "–";
  if (typeof value !== "number") return String(value);
  if (Math.abs(value) > 1e300) return value > 0 ? "∞" : "−∞";
  const digits = isPsnr(key) ? 2 : /ssim|lpips|dists/i.test(key) ? 4 : Number.isInteger(value) ? 0 : value >= 100 ? 1 : value >= 10 ? 2 : 3;
  return digits ? value.toFixed(digits).replace("-", "−") : value.toLocaleString("en");
}
const signed = (value, key) => value == null ? "–" : (value > 0 ? "+" : "") + format(value, key);
const label = key => key.replace(/^(psnr|ssim)/, word => word.toUpperCase()).replace(/_(y|rgb)$/, (_, c) => ` (${c.toUpperCase()})`).replaceAll("_", " ");
/** Allow line breaks in a long name, after its separators. */
const breakable = text => text.split(/(?<=[/_.-])/).flatMap((part, i) => i ? [el("wbr"), part] : [part]);
const minus = (a, b) => a == null || b == null ? null : a === b ? 0 : a - b;

// Tables: columns {key, label, hint, value(row), cell(row), number, up, pinned, best}, sorted by a click on their headers:
// numbers from the highest, unless `up` is set.

/** Show a hint while columns are hidden at the right of a table. */
function tellWidth(scroll) {
  scroll.parentElement?.classList.toggle("more", scroll.scrollLeft + scroll.clientWidth < scroll.scrollWidth - 2);
}
const widths = new ResizeObserver(entries => entries.forEach(({target}) => tellWidth(target)));
function sortable(caption, columns, rows, {sort = null, foot = null, tall = false, onsort = null} = {}) {
  const body = el("tbody");
  const heads = columns.map((column, i) => el("th", {scope: "col", class: [column.number && !column.wide && "number", column.pinned && "pinned"].filter(Boolean).join(" "), "aria-sort": "none"},
    el("button", {type: "button", title: column.hint || "Sort", onclick: () => sortBy(i)}, ...breakable(column.label))));
  let by = null, down = false;
  const lines = rows.map(row => ({row, line: el("tr", {}, ...columns.map(column => cell(column, row)))}));
  function cell(column, row) {
    const node = el(column.pinned ? "th" : "td", {class: [column.number && !column.wide && "number", column.pinned && "pinned", column.best && column.best(row) && "best"].filter(Boolean).join(" "), scope: column.pinned && "row"});
    const content = column.cell ? column.cell(row, node) : format(column.value(row), column.key);
    node.append(content);
    return node;
  }
  function sortBy(i, downwards) {
    down = downwards ?? (by === i ? !down : !!columns[i].number && !columns[i].up);
    by = i;
    onsort?.(columns[i].key, down);
    heads.forEach((head, j) => head.setAttribute("aria-sort", j !== i ? "none" : down ? "descending" : "ascending"));
    const {value} = columns[i], sign = down ? -1 : 1;
    lines.sort((a, b) => {
      const x = value(a.row), y = value(b.row);
      if (x == null || y == null) return (x == null) - (y == null);
      return sign * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y), "en", {numeric: true}));
    });
    body.append(...lines.map(({line}) => line));
  }
  body.append(...lines.map(({line}) => line));
  if (sort) sortBy(...sort);
  const table = el("table", {"aria-label": caption}, el("thead", {}, el("tr", {}, ...heads)), body);
  if (foot) table.append(el("tfoot", {}, el("tr", {}, ...columns.map(column => cell(column, foot)))));
  const scroll = el("div", {class: tall ? "scroll tall" : "scroll", tabindex: 0, role: "region", "aria-label": caption, onscroll: () => tellWidth(scroll)}, table);
  widths.observe(scroll);
  const node = el("div", {class: "wide"}, scroll);
  node.filter = keep => { for (const {row, line} of lines) line.hidden = !keep(row); };
  return node;
}

// Drawings

const svgNode = (tag, attributes, ...children) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
};

// Commands and the theme

/** Show a command with a button that copies it. */
function copyable(command) {
  return el("div", {class: "command"}, el("pre", {}, command), el("button", {type: "button", onclick: async event => {
    const button = event.currentTarget;
    try { await navigator.clipboard.writeText(command); button.textContent = "Copied"; } catch { button.textContent = "Select and copy it"; }
  }}, "Copy"));
}

function setTheme(dark) {
  document.documentElement.style.colorScheme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "Light" : "Dark";
}
const system = matchMedia("(prefers-color-scheme: dark)");
let dark = system.matches;
$("theme").textContent = dark ? "Light" : "Dark";
$("theme").addEventListener("click", () => setTheme(dark = !dark));
system.addEventListener("change", () => setTheme(dark = system.matches));
