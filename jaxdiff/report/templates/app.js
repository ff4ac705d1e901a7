// Puts the parts in their places, and shows the overview or one latent as the address says.

function place(id, ...content) {
  const box = document.getElementById(id);
  if (box) box.replaceChildren(...content.flat().filter(Boolean));
}

function figure(caption, ...content) {
  return el("figure", {}, el("figcaption", {}, caption), ...content);
}

function none(what) {
  return el("p", { class: "none" }, `None: ${what}`);
}

function setUpHistograms() {
  const most = Math.max(1, ...views.flatMap((view) => view.data.norm_histogram.counts));
  const draw = (view, height) => {
    const box = el("div", { class: "plot" });
    chart(box, drawHistogram(view, most, height));
    return figure(view.label, box, histogramTable(view));
  };
  const scale = el("select", { id: "histogram-scale" }, el("option", { value: "log" }, "logarithmic"), el("option", { value: "linear" }, "linear"));
  scale.addEventListener("change", () => {
    histogramState.log = scale.value === "log";
    redrawAll();
  });
  place("histogram-controls", el("label", { class: "field" }, el("span", {}, "Count axis"), scale));
  const main = views.filter((view) => !view.isNull);
  const nulls = views.filter((view) => view.isNull);
  place("histograms", main.length ? main.map((view) => draw(view, 270)) : none("there is no dictionary."));
  place("null-histograms", nulls.length ? nulls.map((view) => draw(view, 190)) : none("no null pair was run."));
}

function setUpScatters() {
  const main = views.filter((view) => !view.isNull);
  place("scatter-controls", main.length ? scatterLegend() : null);
  place("scatters", main.length ? main.map((view) => figure(view.label, scatterPlot(view))) : none("there is no dictionary."));
  const nulls = views.filter((view) => view.isNull);
  place("null-scatters", nulls.length ? nulls.map((view) => figure(view.label, scatterPlot(view))) : none("no null pair was run."));
}

function setUpRoles() {
  const main = views.filter((view) => !view.isNull);
  place("role-legend", main.length ? roleLegend() : null);
  place("role-bars", main.length ? main.map((view) => figure(view.label, roleBars(view))) : none("there is no dictionary."));
}

function setUpTraining() {
  const curves = [
    trainingChart("loss", "loss", 3), trainingChart("l0", "L0 [latents per token]", 2),
    trainingChart("fve", "fraction of variance explained", 4), trainingChart("dead", "dead latents [fraction]", 3),
  ].filter(Boolean);
  const lines = views.filter((view) => !view.isNull);
  place("training-legend", curves.length ? lines.map((view, i) => el("span", { class: "key" }, el("i", { class: `stroke line-${i % 4}` }), view.short)) : null);
  place("curves", curves.length ? curves : none("the results hold no training history."));
}

// --- routes -----------------------------------------------------------------------------------

const overview = document.getElementById("overview");
const latentPart = document.getElementById("latent");
let overviewScroll = 0;

/** Reads #dictionary/latent or #null/dictionary/latent; null for all else. */
function latentRoute() {
  const match = /^#(.+)\/(\d+)$/.exec(location.hash);
  if (!match) return null;
  let key = match[1];
  try {
    key = match[1].split("/").map(decodeURIComponent).join("/");
  } catch {
    return null;
  }
  const view = viewOf(key);
  return view ? { view, latent: Number(match[2]) } : null;
}

function show() {
  hideTip();
  const route = latentRoute();
  if (route) {
    if (!overview.hidden) overviewScroll = scrollY;
    // The charts of the latent before this one are gone with it.
    for (let i = charts.length - 1; i >= 0; i--) if (latentPart.contains(charts[i].box)) charts.splice(i, 1);
    overview.hidden = true;
    latentPart.hidden = false;
    drawLatent(latentPart, route.view, route.latent);
    document.title = `Latent ${route.latent} · ${route.view.label} · jaxdiff`;
    scrollTo({ top: 0, behavior: "instant" });
    latentPart.querySelector("h2").focus({ preventScroll: true });
    return;
  }
  const returning = overview.hidden;
  overview.hidden = false;
  latentPart.hidden = true;
  latentPart.replaceChildren();
  document.title = overview.dataset.title;
  if (!returning) return;
  const target = document.getElementById(location.hash.slice(1));
  if (target && location.hash !== "#latents") target.scrollIntoView({ behavior: "instant" });
  else if (overviewScroll) scrollTo({ top: overviewScroll, behavior: "instant" });
  else if (target) target.scrollIntoView({ behavior: "instant" });
}

addEventListener("hashchange", show);
addEventListener("keydown", (event) => {
  if (latentPart.hidden || event.altKey || event.ctrlKey || event.metaKey) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next", Escape: "up" }[event.key];
  const link = rel && latentPart.querySelector(`a[data-go="${rel}"]`);
  if (link) link.click();
});

setUpTable();
setUpHistograms();
setUpScatters();
setUpRoles();
setUpTraining();
show();
