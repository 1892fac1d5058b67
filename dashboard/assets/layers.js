// The rows of the heatmap: a click on the name of a block folds or unfolds it, and the search leaves the layers with a
// text in their name.
(function () {
  "use strict";
  const REST = 250; // milliseconds after the last key before the rows change
  let unfolded = [];
  let waiting = null;

  const change = (changes) => document.dispatchEvent(new CustomEvent("spikewatch-view", {detail: changes}));

  function fold() {
    const fired = window.dash_clientside.callback_context.triggered;
    const clicked = fired.length && fired[0].value && fired[0].value.annotation;
    if (!clicked || !clicked.name || !fired[0].prop_id.includes("layers")) return;
    unfolded = unfolded.includes(clicked.name)
      ? unfolded.filter((name) => name !== clicked.name)
      : [...unfolded, clicked.name];
    change({unfolded});
  }

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
