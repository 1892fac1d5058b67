// The address of a run holds its whole view: zoom, metrics, statistic, filters and the chosen cell, so that a reload, Back
// and a link that is passed on show the same. What is as usual is left out of it.
(function () {
  "use strict";
  const TEXTS = [
    "window", "attempt", "metric", "more-0", "more-1", "more-2", "stat", "scale", "reduce", "order", "search",
    ...["loss", "more-0", "more-1", "more-2"].flatMap((panel) => [`axis-${panel}`, `smooth-${panel}`]),
  ];
  const USUAL = {metric: "loss", scale: "usual", reduce: "max"};
  const AROUND = 150; // steps on both sides of ?step=
  const surroundings = (step) => [Math.max(0, step - AROUND), step + AROUND];
  const whole = (text) => (/^\d{1,15}$/.test(text || "") ? Number(text) : null);

  // The part of a view that the address holds.
  function read() {
    const asked = new URLSearchParams(location.search);
    const found = {};
    for (const name of TEXTS) if (asked.has(name)) found[name] = asked.get(name);
    const step = whole(asked.get("step"));
    const [from, to] = [whole(asked.get("from")), whole(asked.get("to"))];
    if (step !== null) found.range = surroundings(step);
    else if (from !== null && to !== null) found.range = [from, to];
    if (asked.has("unfolded")) found.unfolded = asked.getAll("unfolded");
    if (asked.has("layer")) found.cell = {layer: asked.get("layer"), step: whole(asked.get("at")) || 0};
    return found;
  }

  function write(view) {
    const before = new URLSearchParams(location.search);
    const query = new URLSearchParams();
    const step = whole(before.get("step"));
    const near = step === null ? null : surroundings(step);
    if (view.range && near && view.range[0] === near[0] && view.range[1] === near[1]) query.set("step", step);
    else if (view.range) {
      query.set("from", Math.max(0, Math.floor(view.range[0])));
      query.set("to", Math.ceil(view.range[1]));
    }
    for (const name of TEXTS) if (view[name] && view[name] !== USUAL[name]) query.set(name, view[name]);
    for (const name of view.unfolded || []) query.append("unfolded", name);
    if (view.cell) {
      query.set("layer", view.cell.layer);
      query.set("at", view.cell.step);
    }
    const text = query.toString();
    const address = location.pathname + (text ? `?${text}` : "") + location.hash;
    if (address !== location.pathname + location.search + location.hash) {
      history.replaceState(history.state, "", address);
    }
  }

  // Selects show what the view says, also where the address decided it; their options may arrive later.
  function reflect(view) {
    for (const pick of document.querySelectorAll("select[data-pick]")) {
      const wanted = view[pick.dataset.pick];
      if (typeof wanted !== "string" || pick.value === wanted || pick === document.activeElement) continue;
      if ([...pick.options].some((option) => option.value === wanted)) pick.value = wanted;
    }
    const search = document.getElementById("layer-search");
    if (search && search !== document.activeElement && search.value !== (view.search || "")) search.value = view.search || "";
  }

  window.spikewatchAddress = {read, write, reflect, surroundings};
})();
