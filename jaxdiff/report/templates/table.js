// The table of latents: search, filters, sorting, and only one page of rows in the document.

const PAGE = 50;
const table = { view: views[0], query: "", class: "", verdict: "", sort: "relative_norm", down: true, page: 0, rows: [] };

const COLUMNS = [
  { key: "latent", label: "latent", number: true, value: (row) => row.latent },
  { key: "verdict", label: "verdict", value: (row) => row.verdict, title: "Latent Scaling's verdict" },
  { key: "class", label: "class", value: (row) => className(row.class), title: "Class by relative norm" },
  { key: "relative_norm", label: "rel. norm", number: true, value: (row) => row.relative_norm, show: (row) => fixed(row.relative_norm, 3), title: "Relative norm: 0 base only, 1 fine-tuned only" },
  { key: "nu_reconstruction", label: nu("r"), number: true, value: (row) => middle(row.nu_reconstruction), interval: (row) => row.nu_reconstruction, title: "Reconstruction ratio of Latent Scaling; high: decoupled" },
  { key: "nu_error", label: nu("ε"), number: true, value: (row) => middle(row.nu_error), interval: (row) => row.nu_error, title: "Error ratio of Latent Scaling; high: shrunk" },
  { key: "frequency", label: "fires on", number: true, value: (row) => row.frequency, show: (row) => percent(row.frequency, 2), title: "Part of the tokens on which it fires" },
  { key: "max_activation", label: "max", number: true, value: (row) => row.max_activation, show: (row) => significant(row.max_activation), title: "Largest activation on the test text" },
  { key: "behaviour", label: "behaviour", value: (row) => row.behaviour, title: "Planted behaviour that it separates best" },
];

/** What the search looks through, lower case, made on first use: a map from latent to text. */
function searchable(view) {
  view.text ||= new Map(view.rows.map((row) => {
    const examples = view.data.examples[row.latent] || [];
    const parts = [row.verdict, className(row.class), row.behaviour, ...examples.map((example) => textOf(view, example))];
    return [row.latent, parts.filter(Boolean).join("\n").toLowerCase()];
  }));
  return view.text;
}

function matches(view, query) {
  const wanted = query.trim().toLowerCase();
  if (!wanted) return () => true;
  const content = searchable(view);
  const number = /^#?\d+$/.test(wanted) ? wanted.replace("#", "") : null;
  return (row) => (number && String(row.latent).startsWith(number)) || content.get(row.latent).includes(wanted);
}

function compare(a, b, down) {
  // Values that are not defined come last in either direction.
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : 1;
  if (b === null || b === undefined) return -1;
  const order = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
  return down ? -order : order;
}

function select() {
  if (!table.view) return;
  const column = COLUMNS.find((each) => each.key === table.sort);
  const found = matches(table.view, table.query);
  table.rows = table.view.rows
    .filter((row) => (!table.class || row.class === table.class) && (!table.verdict || row.verdict === table.verdict) && found(row))
    .sort((a, b) => compare(column.value(a), column.value(b), table.down) || a.latent - b.latent);
  table.page = 0;
  drawTable();
}

/** A few tokens around the strongest one of the strongest example. */
function snippet(view, row) {
  const example = (view.data.examples[row.latent] || [])[0];
  if (!example || example.tokens.length === 0) return el("span", { class: "muted" }, NOTHING);
  const peak = peakOf(example);
  const from = Math.max(0, peak - 4);
  const parts = example.tokens.slice(from, peak + 6).map((token, offset) => {
    const gap = offset > 0 && gapBefore(view, example.tokens, from + offset) ? " " : "";
    const shown = readable(token);
    return from + offset === peak ? [gap, el("mark", {}, shown)] : gap + shown;
  });
  return el("span", { class: "snippet", dir: "auto" }, parts);
}

function cell(view, row, column) {
  if (column.key === "latent") return el("th", { scope: "row", class: "number" }, el("a", { href: hrefOf(view, row.latent) }, String(row.latent)));
  if (column.key === "verdict") return el("td", {}, chip(row.verdict, row.reason));
  if (column.interval) {
    const interval = column.interval(row);
    return el("td", { class: "number", title: interval ? null : row.reason }, fixed(middle(interval)), el("span", { class: "range" }, range(interval)));
  }
  if (column.show) return el("td", { class: "number" }, column.show(row));
  return el("td", {}, column.value(row) || NOTHING);
}

/** A label that may hold elements, anew for each drawing. */
function copy(label) {
  return [label].flat(2).map((part) => (part instanceof Node ? part.cloneNode(true) : part));
}

function drawTable() {
  const { view, rows, page } = table;
  const shown = rows.slice(page * PAGE, (page + 1) * PAGE);
  const heads = COLUMNS.map((column) => {
    const active = column.key === table.sort;
    const sort = () => {
      if (active) table.down = !table.down;
      else Object.assign(table, { sort: column.key, down: Boolean(column.number) && column.key !== "latent" });
      select();
      document.querySelector(`#latent-table button[data-key="${column.key}"]`).focus();
    };
    return el("th", { scope: "col", class: column.number ? "number" : null, "aria-sort": active ? (table.down ? "descending" : "ascending") : null },
      el("button", { type: "button", title: column.title, "data-key": column.key, onclick: sort }, copy(column.label),
        el("span", { class: "arrow", "aria-hidden": "true" }, active ? (table.down ? "▾" : "▴") : "")));
  });
  const body = shown.map((row) => {
    const line = el("tr", {}, COLUMNS.map((column) => cell(view, row, column)), el("td", {}, snippet(view, row)));
    line.addEventListener("click", (event) => {
      if (!event.target.closest("a") && String(getSelection()) === "") location.hash = hrefOf(view, row.latent);
    });
    return line;
  });
  const none = el("tr", {}, el("td", { class: "none", colspan: COLUMNS.length + 1 }, view.rows.length ? "None: no latent matches." : "None: this dictionary has no latent to show."));
  document.getElementById("latent-table").replaceChildren(
    el("caption", { class: "hidden" }, `Latents of ${view.label}`),
    el("thead", {}, el("tr", {}, heads, el("th", { scope: "col" }, "strongest example"))),
    el("tbody", {}, body.length ? body : none));
  drawPager();
}

function drawPager() {
  const { rows, page } = table;
  const pages = Math.max(1, Math.ceil(rows.length / PAGE));
  const go = (to) => () => {
    table.page = Math.min(Math.max(to, 0), pages - 1);
    drawTable();
  };
  const step = (label, to, name) => el("button", { type: "button", "aria-label": name, disabled: to < 0 || to >= pages || to === page, onclick: go(to) }, label);
  const first = rows.length ? page * PAGE + 1 : 0;
  document.getElementById("latent-count").textContent =
    `${whole(first)}–${whole(Math.min((page + 1) * PAGE, rows.length))} of ${whole(rows.length)}` +
    (rows.length < table.view.rows.length ? ` (${whole(table.view.rows.length)} in all)` : "");
  document.getElementById("latent-pager").replaceChildren(
    step("«", 0, "First page"), step("‹", page - 1, "Previous page"),
    el("span", {}, `page ${whole(page + 1)} of ${whole(pages)}`),
    step("›", page + 1, "Next page"), step("»", pages - 1, "Last page"));
}

function setUpTable() {
  const section = document.getElementById("latent-browser");
  if (!section || views.length === 0) return;
  const options = (entries, all) => [all === null ? null : el("option", { value: "" }, all), entries.map(([value, label]) => el("option", { value }, label))];
  const field = (label, input) => el("label", { class: "field" }, el("span", {}, label), input);
  const dictionary = el("select", { id: "pick-dictionary" }, options(views.map((view) => [view.key, view.label]), null));
  const byClass = el("select", { id: "pick-class" }, options(CLASSES.map((key) => [key, className(key)]), "all"));
  const byVerdict = el("select", { id: "pick-verdict" }, options(VERDICTS.map((key) => [key, key]), "all"));
  const search = el("input", { id: "search", type: "search", placeholder: "number, verdict, behaviour or text", autocomplete: "off", spellcheck: "false" });
  dictionary.addEventListener("change", () => { table.view = viewOf(dictionary.value); select(); });
  byClass.addEventListener("change", () => { table.class = byClass.value; select(); });
  byVerdict.addEventListener("change", () => { table.verdict = byVerdict.value; select(); });
  search.addEventListener("input", debounce(120, () => { table.query = search.value; select(); }));
  section.prepend(el("div", { class: "controls" }, field("Dictionary", dictionary), field("Class", byClass), field("Verdict", byVerdict), field("Search", search)));
  select();
}
