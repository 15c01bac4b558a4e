"use strict";
// Draws every figure in the page's own colours, and again when the colour scheme changes or the page is printed.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const touch = matchMedia("(pointer: coarse)").matches;
  const print = { "--ink": "#000", "--soft": "#444", "--grid": "#e4e4e4", "--line": "#ccc", "--card": "#fff" };

  function colours(printing) {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => (printing ? print[name] : style.getPropertyValue(name).trim());
    const axis = { gridcolor: value("--grid"), linecolor: value("--line"), zerolinecolor: value("--line") };
    return { ink: value("--ink"), soft: value("--soft"), card: value("--card"), line: value("--line"), axis };
  }

  function dress(layout, printing) {
    const found = colours(printing);
    return {
      ...layout,
      autosize: true,
      dragmode: touch ? false : "zoom",
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      margin: { l: 52, r: 12, t: layout.showlegend ? 34 : 8, b: 42 },
      font: { family: "system-ui, sans-serif", size: 12, color: found.soft },
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", traceorder: "normal", font: { color: found.ink } },
      hoverlabel: { bgcolor: found.card, bordercolor: found.line, font: { color: found.ink } },
      xaxis: { ...layout.xaxis, ...found.axis },
      yaxis: { ...layout.yaxis, ...found.axis },
    };
  }

  const options = { responsive: true, displayModeBar: false };
  const draw = (printing) => plots.forEach((plot) => {
    const figure = figures[plot.dataset.figure];
    Plotly.react(plot, figure.data, dress(figure.layout, printing), options);
  });

  draw(matchMedia("print").matches);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw(false));
  addEventListener("beforeprint", () => { draw(true); plots.forEach((plot) => Plotly.Plots.resize(plot)); });
  addEventListener("afterprint", () => draw(false));
})();
