"""The frame of the dashboard: its HTML, its looks and the script that draws the charts in the colours of the theme."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<a class="skip" href="#content">Skip to the content</a>
<header>
<h1>{title}</h1>
<button type="button" id="theme" aria-pressed="false">Dark</button>
</header>
<nav aria-label="Sections"><ul>{nav}</ul></nav>
<main id="content" tabindex="-1">
<noscript><p class="missing">The charts need JavaScript; the tables and texts do not.</p></noscript>
<p class="missing" id="no-plotly" hidden>plotly.min.js is not beside this page, so there are no charts: put it there,
or draw the page with --single_file.</p>
{sections}
</main>
<script type="application/json" id="charts">{charts}</script>
{plotly}
<script>
{script}</script>
</body>
</html>
"""

STYLE = """\
:root {
  color-scheme: light dark;
  --page: light-dark(#f6f7f9, #101418); --card: light-dark(#fff, #181d23);
  --ink: light-dark(#1d2329, #e4e8eb); --soft: light-dark(#59646e, #9aa6b0); --line: light-dark(#dfe4e8, #2c343b);
  --accent: light-dark(#1f5fb8, #7fb2f8); --mark: light-dark(#eaf2fd, #1d2a3a);
  --warn: light-dark(#8a4b00, #f0b35a); --bad: light-dark(#b3261e, #ff8a80); --good: light-dark(#1b6e3c, #6fd196);
  --train: light-dark(#7ba6d6, #6f9bcb); --val: light-dark(#c1440e, #f08a52);
  --training: light-dark(#b9c1c9, #525d68); --warmup: light-dark(#2f6fd0, #5b9bf0);
  --analysis: light-dark(#6f7a85, #a3aeb8); --pruning: light-dark(#cc2f2f, #f26d6d);
  --finetuning: light-dark(#2a8a4a, #4fbd78); --regrowth: light-dark(#7b45c0, #b48af0);
  --rollback: light-dark(#b06a00, #f0b04a); --on-phase: light-dark(#fff, #101418);
  --low: light-dark(#eaf1fb, #1a2a40); --middle: light-dark(#6fa3e0, #3f78c0); --high: light-dark(#0f3a7a, #bcd9ff);
  --early: light-dark(#8c2323, #ff9a92); --late: light-dark(#d9706a, #a84a48);
  --band: light-dark(#1f5fb833, #7fb2f833);
}
:root[data-theme="light"] { color-scheme: light; }
:root[data-theme="dark"] { color-scheme: dark; }
* { box-sizing: border-box; }
html { scroll-padding-top: 3.5rem; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, "Segoe UI", Roboto, sans-serif;
  display: grid; grid-template: "head head" auto "nav main" 1fr / 12.5rem minmax(0, 1fr);
  max-width: 96rem; margin-inline: auto;
}
header { grid-area: head; display: flex; gap: 1rem; align-items: center; padding: 1rem 1.5rem 0.25rem; }
h1 { font-size: 1.35rem; margin: 0; flex: 1; min-width: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 0 0 0.35rem; }
h3 { font-size: 1rem; margin: 1.1rem 0 0.35rem; }
button {
  font: inherit; color: var(--ink); background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
  padding: 0.25rem 0.8rem; min-height: 2.25rem; cursor: pointer;
}
nav { grid-area: nav; position: sticky; top: 0; align-self: start; max-height: 100vh; padding: 0.75rem; }
nav { overflow: auto; }
nav ul { list-style: none; margin: 0; padding: 0; }
nav a { display: block; padding: 0.3rem 0.75rem; border-radius: 0.4rem; color: var(--soft); text-decoration: none; }
nav a:hover, nav a[aria-current] { color: var(--ink); background: var(--mark); }
main { grid-area: main; padding: 0.75rem 1.5rem 3rem 0.5rem; min-width: 0; }
main:focus { outline: none; }
:focus-visible { outline: 3px solid var(--accent); outline-offset: 2px; }
.skip { position: absolute; left: -99rem; }
.skip:focus { left: 0.5rem; top: 0.5rem; z-index: 9; background: var(--card); padding: 0.5rem 1rem; }
a { color: var(--accent); }
section {
  background: var(--card); border: 1px solid var(--line); border-radius: 0.75rem; padding: 1rem 1.25rem;
  margin-bottom: 1rem; min-width: 0;
}
section > p { max-width: 56rem; margin: 0 0 0.75rem; overflow-wrap: anywhere; }
.lead { font-size: 1.1rem; margin: 0.25rem 0 1rem; }
.note, figcaption small, .why { color: var(--soft); }
.missing { color: var(--warn); margin: 0.4rem 0; }
.missing::before { content: "\\25CB  "; }
.missing-cell { color: var(--warn); font-size: 0.9em; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 11.5rem), 1fr)); gap: 0.75rem; }
.tiles { margin: 0 0 0.75rem; }
.tiles div { border: 1px solid var(--line); border-radius: 0.6rem; padding: 0.6rem 0.8rem; min-width: 0; }
.tiles dt { color: var(--soft); font-size: 0.85rem; }
.tiles dd { margin: 0; font-size: 1.1rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.tiles dd small { display: block; font-size: 0.85rem; color: var(--soft); }
.key { display: flex; flex-wrap: wrap; gap: 0.25rem 1rem; list-style: none; margin: 0 0 0.5rem; padding: 0; }
.key li::before {
  content: ""; display: inline-block; width: 0.8rem; height: 0.8rem; border-radius: 0.2rem; margin-right: 0.4rem;
  background: var(--of);
}
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 0.75rem 1.25rem; }
.grid.wide { grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 0.5rem 0 0; min-width: 0; }
figcaption { font-weight: 600; font-size: 0.95rem; }
.why { margin: 0.1rem 0 0; font-size: 0.9rem; overflow-wrap: anywhere; }
.chart { width: 100%; }
.scroll { overflow-x: auto; margin: 0.5rem 0; max-height: 34rem; overflow-y: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: 0 0 0.35rem; }
th, td { padding: 0.35rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--card); white-space: nowrap; }
.text { text-align: left; min-width: 8rem; overflow-wrap: anywhere; }
tbody th { font-weight: 600; }
summary { cursor: pointer; padding: 0.3rem 0; }
.samples { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: 0.75rem; }
.samples article { border: 1px solid var(--line); border-radius: 0.6rem; padding: 0.6rem 0.8rem; min-width: 0; }
.samples h4 { margin: 0 0 0.3rem; font-size: 0.85rem; color: var(--soft); }
.samples p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.modebar { opacity: 0; } .chart:hover .modebar { opacity: 1; }
@media (max-width: 30rem) {
  table { font-size: 0.85rem; } th, td { padding: 0.3rem 0.4rem; } .text { min-width: 6rem; }
}
@media (max-width: 30rem) { .tiles { grid-template-columns: 1fr 1fr; gap: 0.5rem; } .tiles dd { font-size: 1rem; } }
@media (max-width: 60rem) {
  body { grid-template: "head" auto "nav" auto "main" 1fr / minmax(0, 1fr); }
  header { padding: 0.75rem 0.75rem 0.25rem; }
  nav { z-index: 5; background: var(--page); padding: 0.35rem 0.5rem; border-bottom: 1px solid var(--line); }
  nav ul { display: flex; }
  nav a { white-space: nowrap; }
  main { padding: 0.75rem 0.5rem 3rem; }
  section { padding: 0.8rem; }
}
@media (prefers-reduced-motion: no-preference) { html { scroll-behavior: smooth; } }
@media print { nav, #theme, .skip { display: none; } body { display: block; } section { break-inside: avoid; } }
"""

SCRIPT = """\
"use strict";
const charts = new Map(JSON.parse(document.getElementById("charts").textContent).map((c) => [c.id, c]));
const root = document.documentElement, toggle = document.getElementById("theme");
const preference = matchMedia("(prefers-color-scheme: dark)");
const probe = document.createElement("span");
probe.hidden = true;
document.body.append(probe);

function colour(name) {
  probe.style.color = `var(--${name})`;
  return getComputedStyle(probe).color;
}
function resolve(value, known) {
  if (typeof value === "string" && /^@[a-z-]+$/.test(value)) return (known[value] ??= colour(value.slice(1)));
  if (Array.isArray(value)) return value.map((one) => resolve(one, known));
  if (!value || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, resolve(one, known)]));
}
function themed(chart) {
  const ink = colour("ink"), line = colour("line"), card = colour("card"), known = {};
  const layout = resolve(chart.layout, known), narrow = chart.element.clientWidth < 480;
  for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis/.test(key))])) {
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...layout[name] };
    if (axis.title) axis.title = { standoff: 6, ...axis.title, font: { size: 11, color: colour("soft") } };
    layout[name] = axis;
  }
  return {
    data: resolve(chart.data, known),
    layout: {
      height: chart.height, margin: { l: narrow ? 34 : 48, r: 12, t: 12, b: 36 }, hovermode: "x unified",
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: narrow ? 10 : 12, family: getComputedStyle(document.body).fontFamily },
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom", ...layout,
    },
    config: { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["lasso2d", "select2d"] },
  };
}
function draw(element) {
  const chart = charts.get(element.id);
  chart.element = element;
  chart.drawn = true;
  const { data, layout, config } = themed(chart);
  Plotly.react(element, data, layout, config);
}
const elements = [...document.querySelectorAll(".chart")];
function drawAll() { elements.filter((one) => !charts.get(one.id).drawn).forEach(draw); }
if (window.Plotly) {
  const seen = new IntersectionObserver((found) => {
    for (const one of found) if (one.isIntersecting) { seen.unobserve(one.target); draw(one.target); }
  }, { rootMargin: "600px" });
  elements.forEach((one) => seen.observe(one));
  addEventListener("beforeprint", drawAll);
} else document.getElementById("no-plotly").hidden = false;

function isDark() { return root.dataset.theme ? root.dataset.theme === "dark" : preference.matches; }
function follow() {
  toggle.setAttribute("aria-pressed", isDark());
  if (window.Plotly) elements.filter((one) => charts.get(one.id).drawn).forEach(draw);
}
toggle.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; follow(); });
preference.addEventListener("change", follow);
toggle.setAttribute("aria-pressed", isDark());

const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const near = new IntersectionObserver((found) => {
  for (const one of found) if (one.isIntersecting) {
    links.forEach((a) => a.removeAttribute("aria-current"));
    links.get(one.target.id).setAttribute("aria-current", "true");
  }
}, { rootMargin: "-15% 0px -75% 0px" });
document.querySelectorAll("main > section").forEach((one) => near.observe(one));
"""
