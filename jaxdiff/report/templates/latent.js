// The part of the page for one latent: its numbers, where it lies, and its strongest examples.

/** A scale with shaded intervals, a threshold, and a value with its interval. */
function rail(label, domain, interval, { at, bands = [], threshold = null, hint = "" }) {
  const box = el("div", { class: "rail-box" });
  const [value, low, high] = interval;
  chart(box, (_, width) => {
    const x = linear(domain, [6, width - 6]);
    const clip = (v) => Math.min(Math.max(v, domain[0]), domain[1]);
    const inside = value === clip(value);
    box.replaceChildren(svg("svg", { viewBox: `0 0 ${width} 40`, role: "img", "aria-label": `${fixed(value, 3)} ${range(interval, 3)}` },
      bands.map(([key, [from, to]]) => svg("rect", { class: `band ${key}`, x: x(from), y: 4, width: x(to) - x(from), height: 18 })),
      svg("line", { class: "axis", x1: 6, x2: width - 6, y1: 22, y2: 22 }),
      at.map((v) => text(x(v), 36, fixed(v, 1), { "text-anchor": v === domain[0] ? "start" : v === domain[1] ? "end" : "middle" })),
      threshold === null ? [] : svg("rect", { class: "kept", x: x(domain[0]), y: 4, width: x(threshold) - x(domain[0]), height: 18 }),
      threshold === null ? [] : svg("line", { class: "threshold", x1: x(threshold), x2: x(threshold), y1: 2, y2: 24 }),
      typeof low === "number" ? svg("line", { class: "whisker", x1: x(clip(low)), x2: x(clip(high)), y1: 13, y2: 13 }) : [],
      inside
        ? svg("circle", { class: "here", cx: x(value), cy: 13, r: 5 })
        : svg("path", { class: "here", d: value > domain[1] ? `M${width - 14} 7l9 6l-9 6z` : "M14 7l-9 6l9 6z" })));
  });
  return el("div", { class: "rail" },
    el("div", { class: "rail-head" }, el("span", {}, label), el("b", {}, fixed(value, 3)), el("span", { class: "range" }, range(interval, 3))),
    box, el("p", { class: "note" }, hint));
}

function nuRail(label, interval, threshold, hint, reason) {
  if (middle(interval) === null) {
    return el("div", { class: "rail" }, el("div", { class: "rail-head" }, el("span", {}, label), el("b", {}, "not defined")), el("p", { class: "note" }, reason || hint));
  }
  return rail(label, [-0.25, 1.5], interval, { at: [0, 0.5, 1, 1.5], threshold, hint });
}

function facts(row) {
  const pairs = [
    ["fires on", percent(row.frequency, 3), "of the test tokens"],
    ["largest activation", significant(row.max_activation), "on the test text"],
    ["mean activation", significant(row.mean_activation), "where it fires"],
    ["cosine of its decoders", fixed(row.cosine, 3), "base with fine-tuned"],
    ["relative norm, raw", fixed(row.relative_norm_raw, 3), "in the models' own units"],
    ["side", row.side === "ft" ? "fine-tuned" : row.side || NOTHING, "has the larger decoder"],
    ["effective documents", typeof row.effective_sequences === "number" ? significant(row.effective_sequences) : null, "that carry the latent"],
  ].filter(([, value]) => value !== null);
  return el("dl", { class: "facts" }, pairs.map(([name, value, unit]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, unit ? el("span", { class: "note" }, unit) : null))));
}

function tokenSpan(view, example, i, most, peak) {
  const value = example.values[i];
  const role = results.roles[example.roles[i]] || "unknown";
  const strength = most > 0 && value > 0 ? Math.min(value / most, 1) : 0;
  const shown = readable(example.tokens[i]);
  const show = (event) => showTip(event.clientX, event.clientY, `activation ${significant(value)}`, `token ${JSON.stringify(example.tokens[i])}`, roleName(role));
  const classes = ["token", `on-${safe(role)}`, strength > 0 ? "lit" : "", i === peak ? "peak" : ""].filter(Boolean).join(" ");
  const span = el("span", {
    class: classes, onpointermove: show, onpointerleave: hideTip,
    style: strength > 0 ? { "--strength": `${Math.round(12 + 76 * strength)}%` } : {},
  }, shown);
  // A line may break after each token, also in a text without spaces.
  return [gapBefore(view, example.tokens, i) ? " " : null, span, shown.includes("↵") ? el("br") : el("wbr")];
}

function exampleItem(view, example, most) {
  const peak = peakOf(example);
  return el("li", {},
    el("div", { class: "example-head" }, el("b", {}, significant(example.value)), el("span", { class: "muted" }, `document ${whole(example.sequence)}`)),
    el("p", { class: "tokens", dir: "auto" }, example.tokens.map((_, i) => tokenSpan(view, example, i, most, peak))));
}

/** The neighbours of a latent in the order of the table, or by number if the table has it not. */
function neighbours(view, latent) {
  const listed = table.view === view && table.rows.some((row) => row.latent === latent);
  const order = listed ? table.rows : [...view.rows].sort((a, b) => a.latent - b.latent);
  const at = order.findIndex((row) => row.latent === latent);
  return { before: order[at - 1], after: order[at + 1], at, total: order.length, listed };
}

function latentNav(view, latent) {
  const { before, after, at, total, listed } = neighbours(view, latent);
  const link = (row, label, rel) => (row
    ? el("a", { class: "button", href: hrefOf(view, row.latent), rel, "data-go": rel }, label)
    : el("span", { class: "button off" }, label));
  return el("nav", { class: "latent-nav", "aria-label": "Latents" },
    el("a", { class: "button", href: "#latents", "data-go": "up" }, "← all latents"),
    el("span", { class: "muted where" }, `${whole(at + 1)} of ${whole(total)} ${listed ? "in the table's order" : "by number"}`),
    link(before, "‹ previous", "prev"), link(after, "next ›", "next"));
}

function drawLatent(box, view, latent) {
  const row = view.byLatent.get(latent);
  if (!row) {
    box.replaceChildren(el("nav", { class: "latent-nav" }, el("a", { class: "button", href: "#latents" }, "← all latents")),
      el("h2", { tabindex: -1 }, `No latent ${latent}`), el("p", {}, `${view.label} has no such latent in its table.`));
    return;
  }
  const examples = view.data.examples[latent] || [];
  const most = Math.max(0, ...examples.flatMap((example) => example.values.filter((value) => typeof value === "number")));
  const norm = typeof row.relative_norm === "number"
    ? rail("relative norm", [0, 1], [row.relative_norm], { at: [0, 0.5, 1], bands: Object.entries(words.intervals), hint: "0: only the base model's decoder; 1: only the fine-tuned model's. Shaded: base-only, shared, fine-tune-only." })
    : nuRail("relative norm", null, null, "The latent never fired.", row.reason);
  box.replaceChildren(
    latentNav(view, latent),
    el("header", { class: "latent-head" },
      el("p", { class: "kicker" }, view.label),
      el("h2", { tabindex: -1 }, `Latent ${latent}`),
      el("p", { class: "chips" }, chip(row.verdict), el("span", { class: "chip plain" }, className(row.class)), row.behaviour ? el("a", { class: "chip plain", href: "#truth" }, `${row.behaviour}, AUROC ${fixed(row.behaviour_auroc, 3)}`) : null),
      el("p", {}, row.reason ? `Why ${row.verdict}: ${row.reason}.` : words.verdicts[row.verdict] || "")),
    el("div", { class: "rails" }, norm,
      nuRail(nu("r"), row.nu_reconstruction, settings.nu_reconstruction, `Above ${settings.nu_reconstruction}: decoupled, other latents of the other model write this direction too.`, row.reason),
      nuRail(nu("ε"), row.nu_error, settings.nu_error, `Above ${settings.nu_error}: shrunk, the other model's error still holds this direction.`, row.reason)),
    facts(row),
    el("h3", {}, "Share of its firing by role"),
    shareBar(results.roles.map((role) => [role, row.roles[role] || 0])),
    roleLegend(),
    el("h3", {}, "Strongest examples"),
    el("p", { class: "note" }, "The more color behind a token, the stronger the latent fires on it; the framed token is the strongest. Hover for values. The line below a token says whose it is, in the colors above."),
    examples.length ? el("ol", { class: "examples" }, examples.map((example) => exampleItem(view, example, most))) : el("p", { class: "none" }, "None: it did not fire on the test text, or no examples were kept."));
}
