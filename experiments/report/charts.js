"use strict";
// Draws every figure in the page's own colours when it comes near the screen, and again when the colour scheme changes or
// the page is printed. Figures over steps are zoomed together.
const charts = (() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Set();
  const off = new Set();
  const touch = matchMedia("(pointer: coarse)").matches;
  const print = { "--ink": "#000", "--soft": "#444", "--grid": "#e4e4e4", "--line": "#ccc", "--card": "#fff" };
  let range = null;
  let listener = () => {};

  function colours(printing) {
    const style = getComputedStyle(document.documentElement);
    const value = (name) => (printing ? print[name] : style.getPropertyValue(name).trim());
    const axis = { gridcolor: value("--grid"), linecolor: value("--line"), zerolinecolor: value("--line") };
    return { ink: value("--ink"), soft: value("--soft"), card: value("--card"), line: value("--line"), axis };
  }

  const overSteps = (plot) => figures[plot.dataset.figure].layout.meta === "steps";

  function dress(plot, layout, printing) {
    const found = colours(printing);
    const zoomed = overSteps(plot) && range ? { range: [...range], autorange: false } : { autorange: true };
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
      xaxis: { ...layout.xaxis, ...found.axis, ...zoomed },
      yaxis: { ...layout.yaxis, ...found.axis },
    };
  }

  // Plotly itself lies in the page as text until it is wanted: reading and compiling it takes longer than all the rest.
  const { nonce } = document.currentScript;
  function prepare() {
    const source = document.getElementById("plotly");
    if (window.Plotly || !source) return;
    document.head.append(Object.assign(document.createElement("script"), { nonce, textContent: source.textContent }));
    source.remove();
  }

  const options = { responsive: true, displayModeBar: false };
  const shownData = (data) => data.map((trace) => ({ ...trace, visible: !off.has(trace.legendgroup) }));

  function draw(plot, printing = false) {
    prepare();
    const figure = figures[plot.dataset.figure];
    const data = off.size ? shownData(figure.data) : figure.data;
    Plotly.react(plot, data, dress(plot, figure.layout, printing), options);
    if (drawn.has(plot)) return;
    drawn.add(plot);
    if (overSteps(plot)) plot.on("plotly_relayout", (event) => {
      if (event["xaxis.range[0]"] !== undefined) zoom([event["xaxis.range[0]"], event["xaxis.range[1]"]], plot);
      else if (event["xaxis.autorange"]) zoom(null, plot);
    });
  }

  function zoom(wanted, source = null) {
    if (JSON.stringify(wanted) === JSON.stringify(range)) return;
    range = wanted;
    drawn.forEach((plot) => { if (plot !== source && overSteps(plot)) draw(plot); });
    if (source) listener(range);
  }

  function show(names) {
    off.clear();
    names.forEach((name) => off.add(name));
    drawn.forEach((plot) => draw(plot));
  }

  const near = new IntersectionObserver((entries) => entries.forEach((entry) => {
    if (!entry.isIntersecting) return;
    near.unobserve(entry.target);
    draw(entry.target);
  }), { rootMargin: "300px" });
  if (matchMedia("print").matches) plots.forEach((plot) => draw(plot, true));
  else addEventListener("load", () => setTimeout(() => { plots.forEach((plot) => near.observe(plot)); setTimeout(prepare, 200); }));

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawn.forEach((plot) => draw(plot)));
  addEventListener("beforeprint", () => { plots.forEach((plot) => { draw(plot, true); Plotly.Plots.resize(plot); }); });
  addEventListener("afterprint", () => drawn.forEach((plot) => draw(plot)));
  return { zoom, show, onZoom: (found) => { listener = found; } };
})();
