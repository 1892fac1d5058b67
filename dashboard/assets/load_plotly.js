// Loads Plotly as soon as the address names a page with graphs, while the server still prepares the first of them. Dash
// loads it only when it draws a graph, and evaluating it takes longer than all else on the page.
(function () {
  "use strict";
  const WITH_GRAPHS = ["run", "compare"];

  // Dash waits for window.Plotly, or loads the script if that is undefined. A promise there makes it wait; the script
  // then puts the library in its place.
  function load(page) {
    if (window.Plotly || !WITH_GRAPHS.includes(page) || !window._dashPlotlyJSURL) return;
    const script = document.createElement("script");
    script.src = window._dashPlotlyJSURL;
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

  window.spikewatchPlotly = {load};
})();
