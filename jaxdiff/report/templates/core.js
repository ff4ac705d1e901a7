"use strict";
// Data, words, elements and number formats that the other parts of the page use.
// Text of the results reaches the page through text nodes only, never as markup.

const results = JSON.parse(document.getElementById("results").textContent);
const words = JSON.parse(document.getElementById("words").textContent);

const settings = results.config.diff;
const VERDICTS = Object.keys(words.verdicts);
const CLASSES = Object.keys(words.classes);

/** Every dictionary of the page: those of the pair, then those of the null pair. */
const views = [];
for (const [prefix, group] of [["", results.dictionaries], ["null/", results.null || {}]]) {
  for (const [name, data] of Object.entries(group)) {
    const label = words.dictionaries[name] || name;
    views.push({
      key: prefix + name,
      isNull: prefix !== "",
      label: prefix ? `Null pair: ${label}` : label,
      short: label,
      data,
      rows: data.table,
      byLatent: new Map(data.table.map((row) => [row.latent, row])),
      spaced: hasSpaces(data.examples),
    });
  }
}

function viewOf(key) {
  return views.find((view) => view.key === key);
}

function hrefOf(view, latent) {
  return `#${view.key.split("/").map(encodeURIComponent).join("/")}/${latent}`;
}

// --- elements ---------------------------------------------------------------------------------

function append(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "style") {
      for (const [property, setting] of Object.entries(value)) node.style.setProperty(property, setting);
    } else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(3).filter((child) => child !== null && child !== undefined));
  return node;
}

/** Makes an HTML element: el("p", {class: "note"}, "text", child). */
function el(tag, attributes, ...children) {
  return append(document.createElement(tag), attributes, children);
}

/** Makes an SVG element. */
function svg(tag, attributes, ...children) {
  return append(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function debounce(wait, action) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...given), wait);
  };
}

// --- numbers ----------------------------------------------------------------------------------

const NOTHING = "–";

function fixed(value, digits = 2) {
  if (typeof value !== "number") return NOTHING;
  const text = value.toFixed(digits);
  return (Number(text) === 0 ? text.replace("-", "") : text).replace("-", "−");
}

/** Three significant digits, without exponents where they can be avoided. */
function significant(value) {
  if (typeof value !== "number") return NOTHING;
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-5) return value.toExponential(2).replace("-", "−");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

function percent(value, digits = 1) {
  return typeof value === "number" ? `${fixed(100 * value, digits)} %` : NOTHING;
}

function whole(value) {
  return typeof value === "number" ? value.toLocaleString("en-US") : NOTHING;
}

/** The value of an interval [value, low, high]; null when it is not defined. */
function middle(interval) {
  return Array.isArray(interval) ? interval[0] : null;
}

function range(interval, digits = 2) {
  if (!Array.isArray(interval) || typeof interval[1] !== "number") return "";
  return `[${fixed(interval[1], digits)}, ${fixed(interval[2], digits)}]`;
}

// --- words ------------------------------------------------------------------------------------

function className(key) {
  return words.classes[key] || key;
}

function roleName(role) {
  return words.roles[role] || role;
}

/** The sign of a ratio, nu^r or nu^epsilon, for HTML. */
function nu(index) {
  return ["ν", el("sup", {}, index)];
}

function chip(verdict, reason) {
  if (!verdict) return el("span", { class: "muted" }, NOTHING);
  return el("span", { class: `chip ${safe(verdict)}`, title: reason || words.verdicts[verdict] }, verdict);
}

/** A name fit for a class attribute. */
function safe(name) {
  return String(name).replace(/[^\w-]/g, "_");
}

function cssColor(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

// --- tokens -----------------------------------------------------------------------------------

/** Whether tokens carry their own spaces; those of a word-level tokenizer do not. */
function hasSpaces(examples) {
  let tokens = 0;
  let spaces = 0;
  for (const list of Object.values(examples)) {
    for (const example of list) {
      tokens += example.tokens.length;
      spaces += example.tokens.filter((token) => /^[\s\u2581\u0120]/.test(token)).length;
    }
    if (tokens > 2000) break;
  }
  return tokens === 0 || spaces > 0.02 * tokens;
}

const VISIBLE = { "\n": "↵", "\r": "␍", "\t": "⇥" };

/** A token as people can read it: marks of tokenizers as spaces, invisible characters as signs. */
function readable(token) {
  const plain = token.replace(/^[\u2581\u0120]+/, (marks) => " ".repeat(marks.length)).replace(/\u010a/g, "\n");
  if (plain === "") return "∅";
  if (/^ +$/.test(plain)) return "·".repeat(plain.length);
  return plain.replace(/[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}\u00a0\u00ad]/gu, (character) => {
    if (character in VISIBLE) return VISIBLE[character];
    return `‹${character.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}›`;
  });
}

/** Whether a space belongs between a token and the one before it. */
function gapBefore(view, tokens, i) {
  return !view.spaced && i > 0 && !/^[.,;:!?)\]]+$/.test(tokens[i]);
}

function textOf(view, example) {
  return example.tokens.map((token, i) => (gapBefore(view, example.tokens, i) ? " " : "") + readable(token)).join("");
}

/** Index of the strongest token of an example. */
function peakOf(example) {
  const { at, values } = example;
  if (Number.isInteger(at) && at >= 0 && at < values.length) return at;
  return values.reduce((best, value, i) => (value > values[best] ? i : best), 0);
}

// --- what hovers ------------------------------------------------------------------------------

const tip = el("div", { class: "tip", role: "status", hidden: true });
document.body.append(tip);

/** Shows lines of text beside a point of the window. */
function showTip(x, y, ...lines) {
  tip.replaceChildren(...lines.map((line) => el("div", {}, line)));
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const left = x + 14 + width > innerWidth ? x - width - 14 : x + 14;
  const top = y + 14 + height > innerHeight ? y - height - 10 : y + 14;
  tip.style.left = `${Math.max(4, left)}px`;
  tip.style.top = `${Math.max(4, top)}px`;
}

function hideTip() {
  tip.hidden = true;
}
addEventListener("scroll", hideTip, { passive: true });
