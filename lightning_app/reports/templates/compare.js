function ofCharts(change) {
  for (const id of Object.keys(compared.axes)) {
    const chart = charts.get(id);
    change(chart, compared.axes[id]);
    if (chart.drawn) draw(chart.element);
  }
}
// The points as they were logged; smoothing draws an exponential mean of them, whose lag is 0 at the first.
for (const id of Object.keys(compared.axes)) for (const trace of charts.get(id).data) trace.logged = trace.y;
function smoothed(values, weight) {
  let mean = 0,
    total = 0;
  return values.map((value) => {
    mean = weight * mean + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return mean / total;
  });
}
document.getElementById("smoothing").addEventListener("input", (event) => {
  const weight = Number(event.target.value);
  ofCharts((chart) => {
    for (const trace of chart.data) trace.y = weight ? smoothed(trace.logged, weight) : trace.logged;
  });
});
for (const input of document.querySelectorAll('input[name="log"]'))
  input.addEventListener("change", () => {
    ofCharts((chart) => {
      chart.layout[input.value] = { ...chart.layout[input.value], type: input.checked ? "log" : "linear" };
    });
  });
for (const input of document.querySelectorAll('input[name="axis"]'))
  input.addEventListener("change", () => {
    ofCharts((chart, axes) => {
      chart.data.forEach((trace, i) => {
        trace.x = axes[input.value][i];
      });
      chart.layout.xaxis.title.text = compared.titles[input.value];
    });
  });
for (const input of document.querySelectorAll('input[name="run"]'))
  input.addEventListener("change", () => {
    ofCharts((chart) => {
      for (const trace of chart.data) if (trace.meta === Number(input.value)) trace.visible = input.checked;
    });
  });

const UNITS = { k: 1e3, M: 1e6, G: 1e9, T: 1e12 };
// What a cell is sorted by: its first number, with its unit; a duration in seconds; a text as it is.
function keyOf(cell) {
  const text = cell.textContent
    .trim()
    .replace(/\u2212/g, "-")
    .replace(/,/g, "");
  const time = /^(\d+):(\d+):(\d+)$/.exec(text);
  if (time) return time.slice(1).reduce((sum, one) => 60 * sum + Number(one), 0);
  const found = /^([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?: ([kMGT]))?/.exec(text);
  return found ? Number(found[1]) * (UNITS[found[2]] ?? 1) : text;
}
for (const button of document.querySelectorAll(".sortable th button"))
  button.addEventListener("click", () => {
    const head = button.parentElement,
      body = head.closest("table").tBodies[0],
      sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
    const rows = [...body.rows].map((row) => [keyOf(row.cells[head.cellIndex]), row]);
    const isNumber = (key) => typeof key === "number";
    rows.sort(([a], [b]) => {
      if (isNumber(a) !== isNumber(b)) return isNumber(a) ? -1 : 1; // what was not measured stays at the end
      return sign * (isNumber(a) ? a - b : a.localeCompare(b));
    });
    body.append(...rows.map(([, row]) => row));
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
  });
const baseline = document.getElementById("baseline");
if (baseline) {
  const table = document.querySelector("#results table"),
    rows = [...table.tBodies[0].rows],
    column = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent === "change");
  baseline.addEventListener("change", () => {
    rows.forEach((row, i) => {
      const [value, ends] = compared.changes[baseline.value][i].split(" [");
      row.cells[column].replaceChildren(value + " ");
      if (ends) row.cells[column].append(Object.assign(document.createElement("small"), { textContent: `[${ends}` }));
    });
    const name = baseline.selectedOptions[0].textContent;
    document.getElementById("against").textContent = name;
  });
}
