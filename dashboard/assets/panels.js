// The menu of a panel: another metric, the picture, the values and the link. A picture carries the title of its run and
// panel, and the fonts of the page.
(function () {
  "use strict";
  const MARGIN = 44; // pixels above the plot for the title

  const plotOf = (name) => document.querySelector(`#${name}-box .js-plotly-plot`);
  const runName = () => document.querySelector(".run-top h1")?.title || "run";
  const titleOf = (name) => document.getElementById(`${name}-title`).textContent;
  const fileOf = (name) => `${runName()}-${titleOf(name)}`.replace(/[^\w.-]+/g, "-").slice(0, 80);

  function escaped(text) {
    return text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  }

  function picture(name) {
    const plot = plotOf(name);
    const {layout, data} = plot;
    const box = plot.getBoundingClientRect();
    const title = {
      text: escaped(`${runName()} · ${titleOf(name)}`), x: 0.01, xanchor: "left", font: {size: 15},
    };
    window.Plotly.downloadImage({
      data,
      layout: {
        ...layout, title, paper_bgcolor: getComputedStyle(plot.closest(".card")).backgroundColor,
        margin: {...layout.margin, t: MARGIN}, width: box.width, height: box.height + MARGIN,
      },
    }, {format: "png", scale: 2, filename: fileOf(name), width: box.width, height: box.height + MARGIN});
  }

  const cell = (value) => {
    const text = value === null || value === undefined ? "" : String(value);
    return /[",\n]/.test(text) ? `"${text.replace(/"/g, '""')}"` : text;
  };

  // Rows of the values as they are drawn: a line for each point, or for each cell of a heatmap.
  function rows(plot) {
    const found = [["step", "name", "value"]];
    for (const trace of plot._fullData) {
      if (trace.type === "heatmap") {
        trace.z.forEach((row, i) => Array.from(row).forEach((value, j) => {
          if (Number.isFinite(value)) found.push([trace.x[j], plot.layout.meta[i], value]);
        }));
      } else if (trace.name && plot.data[trace.index].name) {
        Array.from(trace.x).forEach((step, i) => found.push([step, trace.name, trace.y[i]]));
      }
    }
    return found.map((row) => row.map(cell).join(",")).join("\n");
  }

  function values(name) {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([rows(plotOf(name))], {type: "text/csv"}));
    link.download = `${fileOf(name)}.csv`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async function link(name, button) {
    const address = new URL(location.href);
    address.hash = `${name}-card`;
    try {
      await navigator.clipboard.writeText(address.href);
      button.textContent = "Copied";
    } catch {
      window.prompt("The address of this panel", address.href); // the clipboard requires https
    }
  }

  // Another metric goes to the first panel that is not shown; its own list then changes it.
  function add() {
    const slot = [0, 1, 2].find((i) => document.getElementById(`more-${i}-card`).classList.contains("hidden"));
    if (slot === undefined) return;
    const pick = document.getElementById(`more-${slot}-pick`);
    const shown = [0, 1, 2].map((i) => titleOf(`more-${i}`));
    const next = [...pick.options].map((option) => option.value).find((value) =>
      value && value !== "-" && value !== "loss" && !shown.includes(value));
    if (!next) return;
    pick.value = next;
    pick.dispatchEvent(new Event("change", {bubbles: true}));
  }

  document.addEventListener("click", (event) => {
    for (const menu of document.querySelectorAll(".panel-menu[open]")) {
      if (!menu.contains(event.target)) menu.open = false;
    }
    const button = event.target.closest("button[data-does]");
    if (!button) return;
    const {panel, does} = button.dataset;
    if (does === "add") add();
    if (does === "png") picture(panel);
    if (does === "csv") values(panel);
    if (does === "link") link(panel, button);
  });
})();
