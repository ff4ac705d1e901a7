// What charts share; histograms, bars by role, training curves.
// A chart draws itself into its box at the box's width, and again when that or the theme changes.

const charts = [];

function chart(box, draw) {
  const entry = { box, draw, width: 0 };
  charts.push(entry);
  // In the next frame: drawing changes heights, which an observer must not do while it reports.
  new ResizeObserver(() => requestAnimationFrame(() => redraw(entry, false))).observe(box);
  return entry;
}

function redraw(entry, force) {
  const width = Math.floor(entry.box.clientWidth);
  if (width === 0 || (width === entry.width && !force)) return;
  entry.width = width;
  entry.draw(entry.box, width);
}

function redrawAll() {
  charts.forEach((entry) => redraw(entry, true));
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawAll);

function linear(from, to) {
  return (value) => to[0] + ((value - from[0]) / (from[1] - from[0])) * (to[1] - to[0]);
}

function text(x, y, content, attributes) {
  return svg("text", { x, y, class: "tick", ...attributes }, content);
}

/** The sign of a ratio, nu^r or nu^epsilon, for SVG. */
function nuName(index) {
  return ["ν", svg("tspan", { dy: -4, "font-size": 9 }, index), svg("tspan", { dy: 4 }, "\u200a")];
}

/** Round tick values that cover [0, most]. */
function ticks(most, count = 4) {
  const rough = most / count;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = Math.max(1, [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough) || 1);
  return Array.from({ length: Math.floor(most / step) + 1 }, (_, i) => i * step);
}

// --- histogram of relative_norm ---------------------------------------------------------------

const histogramState = { log: true };

function drawHistogram(view, most, height) {
  return (box, width) => {
    const { edges, counts } = view.data.norm_histogram;
    const total = counts.reduce((sum, count) => sum + count, 0);
    if (total === 0) {
      box.replaceChildren(el("p", { class: "none" }, "None: no latent of this dictionary is alive."));
      return;
    }
    const frame = { left: 44, right: 8, top: 22, bottom: 34 };
    const x = linear([0, 1], [frame.left, width - frame.right]);
    const base = height - frame.bottom;
    const scale = histogramState.log ? (count) => (count > 0 ? Math.log10(count) + 0.3 : 0) : (count) => count;
    const yScale = linear([0, scale(most) * 1.04], [base, frame.top]);
    const y = (count) => yScale(scale(count));
    const marks = histogramState.log
      ? Array.from({ length: Math.floor(Math.log10(most)) + 1 }, (_, i) => 10 ** i)
      : ticks(most);
    const bands = Object.entries(words.intervals).map(([key, [low, high]]) => [
      svg("rect", { class: `band ${key}`, x: x(low), y: frame.top, width: x(high) - x(low), height: base - frame.top }),
      text((x(low) + x(high)) / 2, frame.top - 7, width < 400 ? className(key).replace("fine-tune", "ft") : className(key), {
        class: `tick band-name ${key}`,
        "text-anchor": low === 0 ? "start" : high === 1 ? "end" : "middle",
        ...(low === 0 ? { x: x(0) } : high === 1 ? { x: x(1) } : {}),
      }),
    ]);
    const grid = marks.map((count) => [
      svg("line", { class: "grid", x1: frame.left, x2: width - frame.right, y1: y(count), y2: y(count) }),
      text(frame.left - 6, y(count) + 4, whole(count), { "text-anchor": "end" }),
    ]);
    const bars = counts.map((count, i) => {
      const describe = `${fixed(edges[i])} to ${fixed(edges[i + 1])}`;
      const show = (event) => showTip(event.clientX, event.clientY, `relative norm ${describe}`, `${whole(count)} latents`);
      const left = x(edges[i]);
      const breadth = x(edges[i + 1]) - left;
      return svg("g", { class: "bar", onpointermove: show, onpointerleave: hideTip },
        svg("rect", { class: "reach", x: left, y: frame.top, width: breadth, height: base - frame.top }),
        svg("rect", { class: "fill", x: left + 0.5, y: y(count), width: Math.max(breadth - 1, 0.5), height: Math.max(base - y(count), 0) }));
    });
    const axis = [0, 0.2, 0.4, 0.6, 0.8, 1].map((value) => text(x(value), base + 16, fixed(value, 1), { "text-anchor": "middle" }));
    const numbers = view.data.counts;
    const summary = `${view.label}: ${whole(total)} latents by relative decoder norm; ${whole(numbers.base_only)} base-only, ` +
      `${whole(numbers.shared)} shared, ${whole(numbers.ft_only)} fine-tune-only, ${whole(numbers.other)} other.`;
    box.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": summary },
      bands, grid, bars,
      svg("line", { class: "axis", x1: frame.left, x2: width - frame.right, y1: base, y2: base }),
      axis,
      text(x(0), height - 2, "← base"),
      text(x(0.5), height - 2, "relative norm", { "text-anchor": "middle", class: "tick axis-name" }),
      text(x(1), height - 2, "fine-tuned →", { "text-anchor": "end" })));
  };
}

function histogramTable(view) {
  const { edges, counts } = view.data.norm_histogram;
  const rows = counts.map((count, i) => [count, i]).filter(([count]) => count > 0);
  return el("details", {}, el("summary", {}, "Counts as a table"),
    el("table", { class: "small" },
      el("thead", {}, el("tr", {}, el("th", {}, "relative norm"), el("th", { class: "number" }, "latents"))),
      el("tbody", {}, rows.map(([count, i]) => el("tr", {},
        el("td", {}, `${fixed(edges[i])} – ${fixed(edges[i + 1])}`), el("td", { class: "number" }, whole(count)))))));
}

// --- shares by role ---------------------------------------------------------------------------

/** A bar of shares: [[role, share], ...], scaled to their sum. */
function shareBar(shares) {
  const total = shares.reduce((sum, [, share]) => sum + (share || 0), 0);
  if (!(total > 0)) return el("div", { class: "share empty" }, "none");
  return el("div", { class: "share", role: "img", "aria-label": shares.map(([role, share]) => `${roleName(role)} ${percent((share || 0) / total, 0)}`).join(", ") },
    shares.filter(([, share]) => share > 0).map(([role, share]) => {
      const part = share / total;
      const show = (event) => showTip(event.clientX, event.clientY, `${roleName(role)}: ${percent(part)}`);
      return el("span", { class: `part role-${safe(role)}`, style: { "flex-grow": part }, onpointermove: show, onpointerleave: hideTip },
        part >= 0.075 ? percent(part, 0) : "");
    }));
}

function meanShares(rows) {
  return results.roles.map((role) => [role, rows.reduce((sum, row) => sum + (row.roles[role] || 0), 0) / (rows.length || 1)]);
}

function roleBars(view) {
  const alive = view.rows.filter((row) => row.class !== "dead" && Object.values(row.roles).some((share) => share > 0));
  const tokens = results.roles.map((role) => [role, view.data.roles[role] ? view.data.roles[role].tokens : 0]);
  const groups = [
    ["fine-tune-only, exclusive", alive.filter((row) => row.class === "ft_only" && row.verdict === "exclusive")],
    ["fine-tune-only, all", alive.filter((row) => row.class === "ft_only")],
    ["shared", alive.filter((row) => row.class === "shared")],
    ["base-only", alive.filter((row) => row.class === "base_only")],
  ];
  const line = (label, count, shares) => el("div", { class: "bar-line" },
    el("div", { class: "bar-label" }, label, el("span", { class: "muted" }, ` ${count}`)), shareBar(shares));
  const total = tokens.reduce((sum, [, count]) => sum + count, 0);
  return el("div", {}, line("all tokens", whole(total), tokens), groups.map(([label, rows]) => line(label, whole(rows.length), meanShares(rows))));
}

function roleLegend() {
  return el("div", { class: "keys" }, results.roles.map((role) => el("span", { class: "key" }, el("i", { class: `swatch role-${safe(role)}` }), roleName(role))));
}

// --- training ---------------------------------------------------------------------------------

function trainingChart(field, title, digits) {
  const lines = views.filter((view) => !view.isNull).map((view, i) => ({
    view, i, points: view.data.training.history.filter((point) => typeof point[field] === "number"),
  })).filter((line) => line.points.length > 0);
  const box = el("div", { class: "curve" });
  if (lines.length === 0) return null;
  const every = lines.flatMap((line) => line.points);
  const steps = Math.max(...every.map((point) => point.step), 1);
  const low = Math.min(...every.map((point) => point[field]), 0);
  const high = Math.max(...every.map((point) => point[field]), low + 1e-9);
  chart(box, (_, width) => {
    const height = 150;
    const x = linear([0, steps], [44, width - 8]);
    const y = linear([low, high], [height - 24, 10]);
    const drawn = lines.map(({ i, points }) => svg("polyline", { class: `line line-${i % 4}`, points: points.map((point) => `${x(point.step).toFixed(1)},${y(point[field]).toFixed(1)}`).join(" ") }));
    const move = (event) => {
      const area = box.getBoundingClientRect();
      const step = linear([44, width - 8], [0, steps])(event.clientX - area.left);
      const closest = (points) => points.reduce((best, point) => (Math.abs(point.step - step) < Math.abs(best.step - step) ? point : best));
      showTip(event.clientX, event.clientY, `step ${whole(closest(lines[0].points).step)}`,
        ...lines.map((line) => `${line.view.short}: ${fixed(closest(line.points)[field], digits)}`));
    };
    const last = lines.map((line) => `${line.view.short} ends at ${fixed(line.points.at(-1)[field], digits)}`).join(", ");
    box.replaceChildren(svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title} over training steps; ${last}.`, onpointermove: move, onpointerleave: hideTip },
      [low, (low + high) / 2, high].map((value) => [
        svg("line", { class: "grid", x1: 44, x2: width - 8, y1: y(value), y2: y(value) }),
        text(38, y(value) + 4, significant(Number(value.toPrecision(2))), { "text-anchor": "end" }),
      ]),
      drawn,
      text(44, height - 6, "0"),
      text(width - 8, height - 6, `${whole(steps)} steps`, { "text-anchor": "end" })));
  });
  return el("figure", {}, el("figcaption", {}, title), box);
}
