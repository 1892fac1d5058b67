// One vertical line through all panels of a run at the step under the pointer. The panels share their margins, so one
// offset is the same step in each; the stylesheet draws the line in every graph box.
(function () {
  "use strict";
  let shown = null;

  function hide() {
    if (shown) shown.classList.remove("pointed");
    shown = null;
  }

  document.addEventListener("mousemove", (event) => {
    const plot = event.target.closest && event.target.closest(".panels .graph-box .js-plotly-plot");
    const size = plot && plot._fullLayout && plot._fullLayout._size;
    if (!size) return hide();
    const box = plot.getBoundingClientRect();
    const at = event.clientX - box.left;
    if (at < size.l || at > box.width - size.r) return hide();
    shown = plot.closest(".panels");
    shown.style.setProperty("--at", `${Math.round(at)}px`);
    shown.classList.add("pointed");
  });
  document.addEventListener("mouseleave", hide);
})();
