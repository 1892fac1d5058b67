// Draws the table of runs from the rows that the server sends. Search, filters and sorting run in the browser, and an
// update changes only what differs. Every text of a run is set as text, never as HTML.
(function () {
  "use strict";
  const FULL = 1.47; // ratio at which the bar is full; the tick of the limit is at 1
  const SVG = "http://www.w3.org/2000/svg";
  const rows = new Map(); // id -> {data, element, parts}
  let scheduled = false;
  let drawnIn = null; // element in which the rows were drawn last
  let last = 0; // number of the last update that was drawn

  function make(tag, className, parent) {
    const element = document.createElement(tag);
    element.className = className;
    if (parent) parent.append(element);
    return element;
  }

  function text(element, value) {
    if (element.textContent !== value) element.textContent = value;
  }

  function classes(element, value) {
    if (element.className !== value) element.className = value;
  }

  function create(data) {
    const element = make("a", "fleet-row");
    element.setAttribute("role", "row");
    const cells = {};
    for (const name of ["run", "stage", "ratio", "spike", "spark", "loss", "alert", "state"]) {
      cells[name] = make("span", `cell ${name}`, element);
      cells[name].setAttribute("role", "cell");
    }
    const parts = {
      cells,
      name: make("span", "name", cells.run),
      sub: make("span", "sub", cells.run),
      square: make("i", "square", cells.stage),
      stage: make("span", "", cells.stage),
      bar: make("span", "bar", cells.ratio),
      ratio: make("span", "number", cells.ratio),
      dot: make("i", "dot", cells.state),
      state: make("span", "", cells.state),
    };
    parts.fill = make("i", "fill", parts.bar);
    make("i", "tick", parts.bar);
    const svg = document.createElementNS(SVG, "svg");
    svg.setAttribute("viewBox", "0 0 128 26");
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    parts.path = document.createElementNS(SVG, "path");
    svg.append(parts.path);
    cells.spark.append(svg);
    return {data, element, parts};
  }

  function fill(row) {
    const {data, element, parts} = row;
    if (element.getAttribute("href") !== data.href) element.setAttribute("href", data.href);
    text(parts.name, data.name);
    parts.name.title = data.name;
    text(parts.sub, data.sub);
    parts.sub.title = data.sub;
    classes(parts.square, `square ${data.stage}`);
    text(parts.stage, data.stageWord);
    cells.stage.title = data.stageReason;
    parts.bar.classList.toggle("unknown", data.ratio === null);
    classes(parts.fill, `fill ${data.stage}`);
    parts.fill.style.width = `${Math.max(0, Math.min(100, ((data.ratio || 0) / FULL) * 100))}%`;
    text(parts.ratio, data.ratioWord);
    text(parts.cells.spike, data.spikeIn);
    classes(parts.cells.spike, `cell spike ${data.spikeTone}`);
    if (parts.path.getAttribute("d") !== data.spark) parts.path.setAttribute("d", data.spark);
    text(parts.cells.loss, data.loss);
    classes(parts.cells.loss, `cell loss ${data.lossTone}`);
    text(parts.cells.alert, data.alert);
    parts.cells.alert.title = data.alert;
    classes(parts.cells.alert, `cell alert ${data.alertTone}`);
    classes(parts.cells.state, `cell state ${data.stateTone}`);
    text(parts.state, data.state);
    row.words = `${data.name} ${data.project} ${data.stageWord} ${data.state} ${data.id}`.toLowerCase();
  }

  const value = (id) => (document.getElementById(id) || {}).value || "";

  const orders = {
    risk: (a, b) => Math.round(b.risk * 10) - Math.round(a.risk * 10) || b.created - a.created,
    newest: (a, b) => b.created - a.created,
    name: (a, b) => a.name.localeCompare(b.name, undefined, {numeric: true}),
  };

  function draw() {
    scheduled = false;
    const body = document.getElementById("fleet-table");
    if (!body) return;
    const words = value("fleet-search").toLowerCase().split(/\s+/).filter(Boolean);
    const project = value("fleet-project");
    const state = value("fleet-state");
    const shown = [...rows.values()].filter(
      (row) =>
        words.every((word) => row.words.includes(word)) &&
        (!project || row.data.project === project) &&
        (!state || row.data.stateKey === state),
    );
    const order = orders[value("fleet-sort")] || orders.risk;
    shown.sort((a, b) => order(a.data, b.data) || (a.data.id < b.data.id ? -1 : 1));
    const wanted = shown.map((row) => row.element);
    const same = wanted.length === body.children.length && wanted.every((element) => element.parentNode === body);
    // Rows keep their order while the pointer is over the table, so that a click hits the intended row.
    if (!same || !body.matches(":hover")) {
      wanted.forEach((element, index) => {
        if (body.children[index] !== element) body.insertBefore(element, body.children[index] || null);
      });
      while (body.children.length > wanted.length) body.lastChild.remove();
    }
    body.parentNode.classList.add("loaded");
    const page = body.closest(".page");
    page.classList.toggle("empty", rows.size === 0);
    document.getElementById("fleet-empty").className = rows.size === 0 ? "" : "hidden";
    document.getElementById("fleet-none").classList.toggle("hidden", rows.size === 0 || shown.length > 0);
  }

  function schedule() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(draw);
  }

  function projects() {
    const select = document.getElementById("fleet-project");
    if (!select) return;
    const names = [...new Set([...rows.values()].map((row) => row.data.project))].sort();
    if (names.join("\n") === select.dataset.names) return;
    select.dataset.names = names.join("\n");
    const chosen = select.value;
    while (select.options.length > 1) select.remove(1);
    for (const name of names) select.add(new Option(name.length > 40 ? `${name.slice(0, 39)}…` : name, name));
    select.value = names.includes(chosen) ? chosen : "";
  }

  function fleet(update) {
    if (!update) return;
    const body = document.getElementById("fleet-table");
    if (body !== drawnIn) {
      drawnIn = body; // the page was closed and opened again
      for (const row of rows.values()) row.element.remove();
    }
    // Dash keeps one value per store, so a busy browser may receive the second of two updates without the first.
    if (!update.full && update.number > last + 1) window.dash_clientside.set_props("resume", {data: Date.now()});
    last = update.number;
    if (update.full) rows.clear();
    for (const data of update.rows) {
      let row = rows.get(data.id);
      if (!row) {
        row = create(data);
        rows.set(data.id, row);
      }
      row.data = data;
      fill(row);
    }
    projects();
    schedule();
  }

  document.addEventListener("input", (event) => {
    if (event.target.id === "fleet-search") schedule();
  });
  document.addEventListener("change", (event) => {
    if (["fleet-project", "fleet-state", "fleet-sort"].includes(event.target.id)) schedule();
  });
  document.addEventListener("keydown", (event) => {
    const search = document.getElementById("fleet-search");
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (search && event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
    }
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.fleet-row");
    if (!link || event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault(); // navigate without a reload, like links of Dash
    window.dash_clientside.set_props("location", {pathname: link.getAttribute("href")});
    window.scrollTo(0, 0);
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.spikewatch = {...window.dash_clientside.spikewatch, fleet};
})();
