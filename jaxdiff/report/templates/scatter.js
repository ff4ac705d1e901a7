// nu^r against nu^epsilon: points on a canvas, so that many stay fast; axes and focus in SVG above.

const scatterState = { hidden: new Set(), onlySpecific: false };
const DOMAIN = [-0.25, 1.5];

/** Draws the mark of a verdict; each has a shape of its own, so that color is not needed. */
function mark(context, verdict, x, y, r) {
  context.beginPath();
  if (verdict === "shrunk") context.rect(x - r * 0.9, y - r * 0.9, r * 1.8, r * 1.8);
  else if (verdict === "decoupled") {
    context.moveTo(x, y - r * 1.25);
    context.lineTo(x + r * 1.25, y);
    context.lineTo(x, y + r * 1.25);
    context.lineTo(x - r * 1.25, y);
    context.closePath();
  } else if (verdict === "undecided") {
    context.moveTo(x - r * 0.8, y - r * 0.8);
    context.lineTo(x + r * 0.8, y + r * 0.8);
    context.moveTo(x + r * 0.8, y - r * 0.8);
    context.lineTo(x - r * 0.8, y + r * 0.8);
    context.stroke();
    return;
  } else context.arc(x, y, verdict === "shared" ? r * 0.75 : r, 0, 2 * Math.PI);
  if (verdict === "shared") context.stroke();
  else context.fill();
}

/** A point outside of the plot: an arrow at its edge. */
function edgeMark(context, x, y, dx, dy, r) {
  const size = r * 1.7;
  const angle = Math.atan2(dy, dx);
  context.beginPath();
  for (const turn of [0, 2.4, -2.4]) {
    context.lineTo(x + size * Math.cos(angle + turn), y + size * Math.sin(angle + turn));
  }
  context.closePath();
  context.fill();
}

function scatterPoints(view) {
  return view.rows
    .filter((row) => row.side === "ft" && row.class !== "dead")
    .filter((row) => middle(row.nu_error) !== null && middle(row.nu_reconstruction) !== null)
    .sort((a, b) => (a.verdict === "exclusive") - (b.verdict === "exclusive"));
}

function scatterPlot(view) {
  const all = scatterPoints(view);
  const undefinedCount = view.rows.filter((row) => row.side === "ft" && row.class !== "dead").length - all.length;
  const box = el("div", { class: "plot" });
  if (all.length === 0) {
    box.append(el("p", { class: "none" }, "None: no fine-tuned-side latent has both ratios."));
    return box;
  }
  const canvas = el("canvas", {});
  const overlay = svg("svg", {});
  const focus = svg("g", { class: "focus" });
  const stage = el("div", {
    class: "stage", tabindex: 0, role: "application",
    "aria-label": `${view.label}: nu^r against nu^epsilon of ${all.length} latents. Left and right arrows step through the points, Enter opens a latent. The table of latents holds the same numbers.`,
  }, canvas, overlay);
  const note = el("p", { class: "note" });
  box.append(stage, note);
  let points = [];
  let place = null;
  let chosen = -1;
  let highlight = () => {};

  chart(stage, (_, width) => {
    const height = Math.round(Math.min(width * 0.86, 480));
    const frame = { left: 46, right: 12, top: 10, bottom: 40 };
    const x = linear(DOMAIN, [frame.left, width - frame.right]);
    const y = linear(DOMAIN, [height - frame.bottom, frame.top]);
    const clip = (value) => Math.min(Math.max(value, DOMAIN[0]), DOMAIN[1]);
    const density = devicePixelRatio || 1;
    canvas.width = width * density;
    canvas.height = height * density;
    canvas.style.height = `${height}px`;
    const context = canvas.getContext("2d");
    context.scale(density, density);
    const r = all.length > 5000 ? 2 : 3.1;
    const colors = Object.fromEntries(VERDICTS.map((verdict) => [verdict, cssColor(`--${verdict}`)]));
    points = all.filter((row) => !scatterState.hidden.has(row.verdict) && !(scatterState.onlySpecific && row.class !== "ft_only"));
    let outside = 0;
    place = (row) => [x(clip(middle(row.nu_error))), y(clip(middle(row.nu_reconstruction)))];
    for (const row of points) {
      const [e, n] = [middle(row.nu_error), middle(row.nu_reconstruction)];
      const [px, py] = place(row);
      const color = colors[row.verdict] || cssColor("--muted");
      context.fillStyle = context.strokeStyle = color;
      context.lineWidth = 1.4;
      context.globalAlpha = row.class === "ft_only" ? 0.85 : 0.4;
      const [dx, dy] = [Math.sign(e - clip(e)), -Math.sign(n - clip(n))];
      if (dx || dy) {
        outside += 1;
        edgeMark(context, px, py, dx, dy, r);
      } else mark(context, row.verdict, px, py, r);
    }
    const at = [0, 0.5, 1, 1.5];
    const [right, bottom] = [width - frame.right, height - frame.bottom];
    overlay.setAttribute("viewBox", `0 0 ${width} ${height}`);
    overlay.setAttribute("aria-hidden", "true");
    overlay.replaceChildren(
      ...at.flatMap((value) => [
        svg("line", { class: "grid", x1: x(value), x2: x(value), y1: frame.top, y2: bottom }),
        svg("line", { class: "grid", x1: frame.left, x2: right, y1: y(value), y2: y(value) }),
        text(x(value), bottom + 16, fixed(value, 1), { "text-anchor": "middle" }),
        text(frame.left - 7, y(value) + 4, fixed(value, 1), { "text-anchor": "end" }),
      ]),
      svg("rect", { class: "kept", x: frame.left, y: y(settings.nu_reconstruction), width: x(settings.nu_error) - frame.left, height: bottom - y(settings.nu_reconstruction) }),
      svg("line", { class: "threshold", x1: x(settings.nu_error), x2: x(settings.nu_error), y1: frame.top, y2: bottom }),
      svg("line", { class: "threshold", x1: frame.left, x2: right, y1: y(settings.nu_reconstruction), y2: y(settings.nu_reconstruction) }),
      text(x(settings.nu_error) + 5, frame.top + 11, `${settings.nu_error}`, { class: "tick threshold-name" }),
      text(right - 3, y(settings.nu_reconstruction) - 5, `${settings.nu_reconstruction}`, { class: "tick threshold-name", "text-anchor": "end" }),
      svg("path", { class: "axis", d: `M${frame.left} ${frame.top}V${bottom}H${right}`, fill: "none" }),
      svg("text", { class: "tick axis-name", "text-anchor": "middle", x: (frame.left + right) / 2, y: height - 5 }, nuName("ε"), " · shrinkage →"),
      svg("text", { class: "tick axis-name", "text-anchor": "middle", transform: `translate(13 ${(frame.top + bottom) / 2}) rotate(-90)` }, nuName("r"), " · decoupling →"),
      focus);
    focus.replaceChildren();
    note.textContent = [
      `${whole(points.length)} of ${whole(all.length)} latents shown`,
      outside ? `${whole(outside)} beyond the axes, as arrows at the edge` : "",
      undefinedCount ? `${whole(undefinedCount)} without both ratios left out` : "",
    ].filter(Boolean).join("; ") + ".";

    highlight = (index) => {
      chosen = index;
      const row = points[index];
      if (!row) {
        focus.replaceChildren();
        hideTip();
        stage.style.cursor = "";
        return;
      }
      const [px, py] = place(row);
      const whisker = (interval, line) => (typeof interval[1] === "number" ? svg("line", line) : null);
      focus.replaceChildren(...[
        whisker(row.nu_error, { x1: x(clip(row.nu_error[1])), x2: x(clip(row.nu_error[2])), y1: py, y2: py }),
        whisker(row.nu_reconstruction, { x1: px, x2: px, y1: y(clip(row.nu_reconstruction[1])), y2: y(clip(row.nu_reconstruction[2])) }),
        svg("circle", { cx: px, cy: py, r: r + 4 }),
      ].filter(Boolean));
      const area = stage.getBoundingClientRect();
      stage.style.cursor = "pointer";
      showTip(area.left + px, area.top + py,
        `latent ${row.latent}: verdict ${row.verdict || NOTHING}, class ${className(row.class)}`,
        [nu("r"), ` ${fixed(row.nu_reconstruction[0])} ${range(row.nu_reconstruction)}`],
        [nu("ε"), ` ${fixed(row.nu_error[0])} ${range(row.nu_error)}`],
        `relative norm ${fixed(row.relative_norm, 3)}`,
        ...(row.behaviour ? [`behaviour: ${row.behaviour}`] : []));
    };
  });

  const nearest = (event, reach) => {
    const area = stage.getBoundingClientRect();
    const [mx, my] = [event.clientX - area.left, event.clientY - area.top];
    let best = -1;
    let distance = reach * reach;
    points.forEach((row, i) => {
      const [px, py] = place(row);
      const d = (px - mx) ** 2 + (py - my) ** 2;
      if (d <= distance) [best, distance] = [i, d];
    });
    return best;
  };
  const open = (index) => {
    if (points[index]) location.hash = hrefOf(view, points[index].latent);
  };
  stage.addEventListener("pointermove", (event) => highlight(nearest(event, 14)));
  stage.addEventListener("pointerleave", () => highlight(-1));
  stage.addEventListener("blur", () => highlight(-1));
  // A click's position is rounded: it opens the point that the pointer shows. A finger shows none.
  stage.addEventListener("click", (event) => open(chosen >= 0 ? chosen : nearest(event, 26)));
  stage.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step && points.length) {
      event.preventDefault();
      highlight((chosen + step + points.length) % points.length);
    } else if (event.key === "Enter") open(chosen);
    else if (event.key === "Escape") highlight(-1);
  });
  return box;
}

/** Buttons with each verdict's mark and count; pressing one hides or shows it in all plots. */
function scatterLegend() {
  const button = (verdict) => {
    const canvas = el("canvas", { width: 28, height: 28, "aria-hidden": "true" });
    const toggle = el("button", { type: "button", class: "key", "aria-pressed": "true", title: words.verdicts[verdict] }, canvas, verdict);
    toggle.addEventListener("click", () => {
      const hide = !scatterState.hidden.delete(verdict);
      if (hide) scatterState.hidden.add(verdict);
      toggle.setAttribute("aria-pressed", String(!hide));
      redrawAll();
    });
    const paint = () => {
      const context = canvas.getContext("2d");
      context.clearRect(0, 0, 28, 28);
      context.fillStyle = context.strokeStyle = cssColor(`--${verdict}`);
      context.lineWidth = 2.6;
      mark(context, verdict, 14, 14, 8);
    };
    paint();
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
    return toggle;
  };
  const only = el("input", { type: "checkbox" });
  only.addEventListener("change", () => {
    scatterState.onlySpecific = only.checked;
    redrawAll();
  });
  return el("div", { class: "keys" }, VERDICTS.map(button), el("label", { class: "check" }, only, "fine-tune-only class alone"));
}
