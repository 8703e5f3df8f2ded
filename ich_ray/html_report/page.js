"use strict";
// Draws the figures that travel as JSON in the page and gives them the page's own colors, light or dark.
(() => {
  const figures = JSON.parse(document.getElementById("figures").textContent);
  const plots = [...document.querySelectorAll(".plot[data-figure]")];
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const touch = matchMedia("(pointer: coarse)").matches;
  const config = {
    responsive: true,
    displaylogo: false,
    displayModeBar: touch ? false : "hover",
    modeBarButtons: [["toImage"]],
    doubleClick: "reset",
  };

  function template() {
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name).trim();
    const axis = {
      gridcolor: color("--line"), linecolor: color("--line"), zerolinecolor: color("--line"),
      tickcolor: color("--line"), title: { font: { size: 12, color: color("--soft") }, standoff: 8 },
    };
    return {
      data: { heatmap: [{ textfont: { color: color("--ink"), size: 13 } }] },
      layout: {
        paper_bgcolor: color("--panel"), plot_bgcolor: color("--panel"),
        font: { family: style.getPropertyValue("--sans"), size: 12, color: color("--ink") },
        xaxis: axis, yaxis: axis,
        legend: { bgcolor: "rgba(0,0,0,0)" },
        modebar: { bgcolor: "rgba(0,0,0,0)", color: color("--soft"), activecolor: color("--ink") },
        hoverlabel: { bgcolor: color("--panel"), bordercolor: color("--soft"), font: { family: style.getPropertyValue("--sans"), color: color("--ink"), size: 12 } },
        annotationdefaults: { font: { color: color("--soft"), size: 11 }, bgcolor: color("--panel"), opacity: 0.9 },
        // On a phone a finger on a plot scrolls the page instead of drawing a zoom box.
        dragmode: touch ? false : "zoom",
      },
    };
  }

  function draw(plot) {
    const figure = figures[plot.dataset.figure];
    Plotly.newPlot(plot, figure.data, { ...figure.layout, template: template(), autosize: true },
      plot.dataset.still ? { ...config, displayModeBar: false } : config);
    if (plot.dataset.trace) {
      plot.on("plotly_hover", (event) => {
        plot.querySelectorAll(".chosen").forEach((line) => line.classList.remove("chosen"));
        plot.querySelectorAll(`.trace${event.points[0].fullData.uid}`).forEach((line) => line.classList.add("chosen"));
        plot.classList.add("lit");
      });
      plot.on("plotly_unhover", () => plot.classList.remove("lit"));
    }
  }

  function repaint() {
    const colors = template();
    for (const plot of plots) {
      Plotly.relayout(plot, { template: colors });
      Plotly.Plots.resize(plot);
    }
  }

  plots.forEach(draw);
  dark.addEventListener("change", repaint);
  addEventListener("beforeprint", () => {
    document.documentElement.classList.add("printing");
    document.querySelectorAll("details").forEach((part) => { part.open = true; });
    repaint();
  });
  addEventListener("afterprint", () => {
    document.documentElement.classList.remove("printing");
    repaint();
  });
})();
