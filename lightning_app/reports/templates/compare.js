function ofCharts(change) {
  for (const id of Object.keys(compared.axes)) {
    const chart = charts.get(id);
    change(chart, compared.axes[id]);
    if (chart.drawn) draw(chart.element);
  }
}
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
