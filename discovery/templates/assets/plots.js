"use strict";
// Plots in the page's own colours. Text of models and corpora is escaped: plotly reads a little markup in labels.
const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
// Named one by one: of the library's own choice some buttons lead to servers elsewhere.
const BUTTONS = [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d"]];
const CONFIG = { responsive: true, displaylogo: false, modeBarButtons: BUTTONS };

const layout = (more) => ({
  margin: { l: 48, r: 8, t: 8, b: 36 },
  paper_bgcolor: "rgba(0,0,0,0)",
  plot_bgcolor: "rgba(0,0,0,0)",
  font: { color: color("--dim"), family: color("--sans"), size: 12 },
  hoverlabel: { bgcolor: color("--card"), bordercolor: color("--line"), font: { color: color("--ink") }, align: "left" },
  modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--dim"), activecolor: color("--ink") },
  showlegend: false,
  ...more,
});

// Drawn again when the reader's system turns from light to dark.
const drawn = (draw) => {
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
};

function drawMap(place, map) {
  const wrap = (text) => escaped(text).replace(/(.{1,60})(\s|$)/g, "$1<br>").replace(/(<br>)+$/, "");
  const label = (i) => `<b>${map.latents[i]}${map.names[i] ? ` ${escaped(map.names[i])}` : ""}</b><br>${wrap(map.texts[i])}`;
  const all = map.latents.map((_, i) => i);
  const named = all.filter((i) => map.featured[i]);
  const pick = (values, indices) => indices.map((i) => values[i]);
  const points = (indices, more) => ({
    type: "scattergl",
    mode: "markers",
    x: pick(map.x, indices),
    y: pick(map.y, indices),
    customdata: pick(map.latents, indices),
    hovertext: indices.map(label),
    hoverinfo: "text",
    ...more,
  });
  let marks = [];

  const draw = () => {
    const dark = matchMedia("(prefers-color-scheme: dark)").matches;
    const scale = dark ? [[0, "#33414d"], [0.5, "#4fa3c4"], [1, "#eef7fb"]] : [[0, "#c5d3dc"], [0.5, "#4f8fb5"], [1, "#0b3954"]];
    const bar = { title: { text: "share of tokens", side: "right" }, thickness: 10, len: 0.5, tickvals: [-6, -5, -4, -3, -2, -1] };
    bar.ticktext = ["0.0001 %", "0.001 %", "0.01 %", "0.1 %", "1 %", "10 %"];
    const dots = points(all, {
      marker: { size: 5, opacity: 0.75, color: map.density, colorscale: scale, cmin: -6, cmax: -1, colorbar: bar },
    });
    const names = points(named, {
      mode: "markers+text",
      text: named.map((i) => escaped(map.names[i])),
      textposition: "top center",
      textfont: { color: color("--ink"), size: 12 },
      marker: { size: 9, color: color("--hot"), line: { width: 1.5, color: color("--ink") } },
    });
    const ring = { size: 13, symbol: "circle-open", color: color("--down"), line: { width: 2.5 } };
    const axis = { visible: false, zeroline: false };
    Plotly.react(place, [dots, names, points(marks, { marker: ring })], layout({
      margin: { l: 0, r: 0, t: 0, b: 0 }, xaxis: axis, yaxis: { ...axis, scaleanchor: "x" }, hovermode: "closest", dragmode: "pan", uirevision: "kept",
    }), { ...CONFIG, scrollZoom: true });
  };
  drawn(draw);
  place.on("plotly_click", (event) => {
    const latent = event.points[0].customdata;
    if (map.paged.includes(latent)) location.href = `latents/${latent}.html`;
  });
  document.getElementById("mark").addEventListener("input", (event) => {
    const words = event.target.value.trim().toLowerCase().split(/\s+/).filter(Boolean);
    const text = (i) => `${map.latents[i]} ${map.names[i]} ${map.texts[i]}`.toLowerCase();
    marks = words.length ? all.filter((i) => words.every((word) => text(i).includes(word))) : [];
    document.getElementById("marked").textContent = words.length ? `${marks.length} marked` : "";
    draw();
  });
}

// One picture of a steering study: lines over the strengths, which stand at equal distances, the unsteered ones first.
function drawSteering(study) {
  drawn(() => study.plots.forEach((plot, number) => {
    const axis = { gridcolor: color("--line"), zeroline: false };
    const traces = plot.lines.map((line) => ({
      x: study.strengths, y: line.values, name: escaped(line.name), type: "scatter", mode: "lines+markers",
      line: { width: 2.2, color: color(line.color), dash: line.dashed ? "dash" : "solid" }, marker: { size: 7 },
    }));
    Plotly.react(document.getElementById(`plot-${number + 1}`), traces, layout({
      xaxis: { ...axis, type: "category", title: { text: escaped(study.unit) } },
      yaxis: { ...axis, type: plot.log ? "log" : "linear", rangemode: plot.log ? "normal" : "tozero" },
      hovermode: "x unified",
    }), { ...CONFIG, displayModeBar: false });
  }));
}

function drawTraining(runs) {
  drawn(() => runs.forEach((run, number) => run.curves.forEach((curve, index) => {
    const line = (y, width, opacity) => ({ x: run.steps, y, type: "scatter", mode: "lines", opacity, line: { width, color: color("--bar") } });
    const axis = { gridcolor: color("--line"), zeroline: false };
    const traces = [line(curve.values, 1, 0.35), line(curve.smooth, 2.2, 1)];
    traces[0].hoverinfo = "skip";
    Plotly.react(document.getElementById(`curve-${index + 1}-${number + 1}`), traces, layout({
      xaxis: { ...axis, title: { text: "step" } }, yaxis: axis, hovermode: "x",
    }), { ...CONFIG, displayModeBar: false });
  })));
}
