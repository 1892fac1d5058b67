// The rows of the heatmap: a click on the name of a block folds or unfolds it, and the search leaves the layers with a
// text in their name.
(function () {
  "use strict";
  const REST = 250; // milliseconds after the last key before the rows change
  let unfolded = [];
  let waiting = null;

  const change = (changes) => document.dispatchEvent(new CustomEvent("spikewatch-view", {detail: changes}));

  function toggle(block) {
    unfolded = unfolded.includes(block) ? unfolded.filter((name) => name !== block) : [...unfolded, block];
    change({unfolded});
  }

  function fold() {
    const fired = window.dash_clientside.callback_context.triggered;
    const clicked = fired.length && fired[0].value && fired[0].value.annotation;
    if (!clicked || !clicked.name || !fired[0].prop_id.includes("layers")) return;
    toggle(clicked.name);
  }

  // The same by keyboard: a list of the blocks, because the labels of a figure cannot have the focus.
  function list(menu) {
    const plot = document.querySelector("#layers-box .js-plotly-plot");
    const labels = (plot && plot.layout.annotations) || [];
    const blocks = [...new Set(labels.map((label) => label.name).filter(Boolean))];
    menu.replaceChildren();
    if (!blocks.length) menu.textContent = "Every layer has its row.";
    for (const block of blocks) {
      const button = document.createElement("button");
      Object.assign(button, {type: "button", className: "button", textContent: block});
      button.setAttribute("aria-pressed", String(unfolded.includes(block)));
      button.addEventListener("click", () => {
        toggle(block);
        button.setAttribute("aria-pressed", String(unfolded.includes(block)));
      });
      menu.append(button);
    }
  }

  document.addEventListener("toggle", (event) => {
    if (event.target.matches && event.target.matches(".blocks") && event.target.open) {
      list(event.target.querySelector(".menu"));
    }
  }, true);

  document.addEventListener("spikewatch-viewed", (event) => {
    unfolded = event.detail.unfolded || [];
  });

  document.addEventListener("input", (event) => {
    if (event.target.id !== "layer-search") return;
    clearTimeout(waiting);
    waiting = setTimeout(() => change({search: event.target.value}), REST);
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.spikewatch = {...window.dash_clientside.spikewatch, fold};
})();
