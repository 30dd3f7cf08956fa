"use strict";
const charts = new Map(JSON.parse(document.getElementById("charts").textContent).map((c) => [c.id, c]));
const root = document.documentElement,
  toggle = document.getElementById("theme");
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
  const ink = colour("ink"),
    line = colour("line"),
    card = colour("card"),
    known = {};
  const layout = resolve(chart.layout, known),
    narrow = chart.element.clientWidth < 480;
  for (const name of new Set(["xaxis", "yaxis", ...Object.keys(layout).filter((key) => /^[xy]axis/.test(key))])) {
    const axis = { gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...layout[name] };
    if (axis.title) axis.title = { standoff: 6, ...axis.title, font: { size: 11, color: colour("soft") } };
    layout[name] = axis;
  }
  return {
    data: resolve(chart.data, known),
    layout: {
      height: chart.height,
      margin: { l: narrow ? 34 : 48, r: 12, t: 12, b: 36 },
      hovermode: "x unified",
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { color: ink, size: narrow ? 10 : 12, family: getComputedStyle(document.body).fontFamily },
      legend: { orientation: "h", x: 0, y: 1.01, yanchor: "bottom", bgcolor: "rgba(0,0,0,0)" },
      hoverlabel: { bgcolor: card, bordercolor: line, font: { color: ink } },
      dragmode: matchMedia("(pointer: coarse)").matches ? false : "zoom",
      ...layout,
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
function drawAll() {
  elements.filter((one) => !charts.get(one.id).drawn).forEach(draw);
}
if (window.Plotly) {
  const seen = new IntersectionObserver(
    (found) => {
      for (const one of found)
        if (one.isIntersecting) {
          seen.unobserve(one.target);
          draw(one.target);
        }
    },
    { rootMargin: "600px" },
  );
  elements.forEach((one) => seen.observe(one));
  addEventListener("beforeprint", drawAll);
} else document.getElementById("no-plotly").hidden = false;

function isDark() {
  return root.dataset.theme ? root.dataset.theme === "dark" : preference.matches;
}
function follow() {
  toggle.setAttribute("aria-pressed", isDark());
  if (window.Plotly) elements.filter((one) => charts.get(one.id).drawn).forEach(draw);
}
toggle.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  follow();
});
preference.addEventListener("change", follow);
toggle.setAttribute("aria-pressed", isDark());

const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
const near = new IntersectionObserver(
  (found) => {
    for (const one of found)
      if (one.isIntersecting) {
        links.forEach((a) => a.removeAttribute("aria-current"));
        links.get(one.target.id).setAttribute("aria-current", "true");
      }
  },
  { rootMargin: "-15% 0px -75% 0px" },
);
document.querySelectorAll("main > section").forEach((one) => near.observe(one));
