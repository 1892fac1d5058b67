// Loads Plotly as soon as the address names a page with graphs, while Dash starts and the server prepares the first of
// them. Dash itself would load it only when it draws a graph.
(function () {
  "use strict";
  const source = document.currentScript.dataset.plotly;
  const REST = 3000; // milliseconds after which other pages are taken to be drawn
  const WITH_GRAPHS = /^\/(runs\/|compare)/;

  // Dash waits for window.Plotly, or loads the script if that is undefined. A promise there makes it wait; the script
  // then puts the library in its place.
  function load(path) {
    if (window.Plotly || !WITH_GRAPHS.test(path)) return;
    const script = document.createElement("script");
    script.src = source;
    const loaded = new Promise((resolve) => {
      script.onload = resolve;
      script.onerror = () => {
        // Dash reports a failure of its own attempt, which a page without a library would not.
        if (window.Plotly === loaded) delete window.Plotly;
        resolve();
      };
    });
    window.Plotly = loaded;
    document.head.append(script);
  }

  // Other pages fetch it after they are drawn, so that a run that is opened from them need not wait for it.
  function fetchLater() {
    if (window.Plotly) return;
    const link = Object.assign(document.createElement("link"), {rel: "prefetch", as: "script", href: source});
    document.head.append(link);
  }

  load(location.pathname);
  addEventListener("load", () => setTimeout(fetchLater, REST));
  window.spikewatchPlotly = {load};
})();
