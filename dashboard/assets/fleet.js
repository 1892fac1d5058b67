// Draws the table of runs from the rows and groups that the server sends; an update changes only what differs. Every text
// of a run is set as text, never as HTML.
(function () {
  "use strict";
  const FULL = 1.47; // ratio at which the bar is full; the tick of the limit is at 1
  const SVG = "http://www.w3.org/2000/svg";
  const rows = new Map(); // id -> {data, element, parts}
  let groups = []; // {key, label, folded, ids} in their order
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
    for (const name of ["pick", "run", "stage", "ratio", "spike", "layer", "spark", "loss", "alert", "state"]) {
      cells[name] = make("span", `cell ${name}`, element);
      cells[name].setAttribute("role", "cell");
    }
    const parts = {
      cells,
      check: make("button", "check", cells.pick),
      pin: make("button", "pin", cells.pick),
      name: make("span", "name", cells.run),
      sub: make("span", "sub", cells.run),
      square: make("i", "square", cells.stage),
      stage: make("span", "", cells.stage),
      bar: make("span", "bar", cells.ratio),
      spike: make("span", "in", cells.spike),
      spikeTime: make("span", "left", cells.spike),
      ratio: make("span", "number", cells.ratio),
      dot: make("i", "dot", cells.state),
      state: make("span", "", cells.state),
    };
    parts.check.setAttribute("role", "checkbox");
    for (const button of [parts.check, parts.pin]) {
      button.type = "button";
      button.tabIndex = -1; // x and p are their keys
      button.dataset.run = data.id;
    }
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
    parts.check.setAttribute("aria-label", `Pick ${data.name} for a comparison`);
    parts.pin.setAttribute("aria-label", `Pin ${data.name} to the top`);
    text(parts.sub, data.sub);
    parts.sub.title = data.sub;
    classes(parts.square, `square ${data.stage}`);
    text(parts.stage, data.stageWord);
    parts.stage.title = data.stageReason;
    parts.bar.classList.toggle("unknown", data.ratio === null);
    classes(parts.fill, `fill ${data.stage}`);
    parts.fill.style.width = `${Math.max(0, Math.min(100, ((data.ratio || 0) / FULL) * 100))}%`;
    text(parts.ratio, data.ratioWord);
    text(parts.spike, data.spikeIn);
    text(parts.spikeTime, data.spikeTime);
    classes(parts.cells.spike, `cell spike ${data.spikeTone}`);
    text(parts.cells.layer, data.layer);
    parts.cells.layer.title = data.layerFull;
    classes(parts.cells.layer, `cell layer ${data.layerFull ? "" : "muted"}`);
    if (parts.path.getAttribute("d") !== data.spark) parts.path.setAttribute("d", data.spark);
    text(parts.cells.loss, data.loss);
    classes(parts.cells.loss, `cell loss ${data.lossTone}`);
    text(parts.cells.alert, data.alert);
    parts.cells.alert.title = data.alert;
    classes(parts.cells.alert, `cell alert ${data.alertTone}`);
    classes(parts.cells.state, `cell state ${data.stateTone}`);
    text(parts.state, data.state);
  }

  const folds = new Map(); // key of a group -> whether somebody folded or unfolded it
  const headings = new Map(); // key of a group -> {element, button}

  function heading(key) {
    let known = headings.get(key);
    if (!known) {
      const element = make("div", "fleet-group");
      element.setAttribute("role", "row");
      const cell = make("span", "", element);
      cell.setAttribute("role", "cell");
      const button = make("button", "", cell);
      button.type = "button";
      known = {element, button};
      headings.set(key, known);
      button.addEventListener("click", () => {
        folds.set(key, button.getAttribute("aria-expanded") === "true");
        draw();
      });
    }
    return known;
  }

  // The elements of the table in their order: a heading for each group that has one, and the rows below it.
  function wanted() {
    const elements = [];
    for (const group of groups) {
      const isFolded = Boolean(group.label) && (folds.get(group.key) ?? group.folded);
      if (group.label) {
        const {element, button} = heading(group.key);
        text(button, group.label);
        button.setAttribute("aria-expanded", String(!isFolded));
        elements.push(element);
      }
      for (const id of group.ids) {
        const row = rows.get(id);
        if (!row) continue;
        row.element.hidden = isFolded;
        elements.push(row.element);
      }
    }
    return elements;
  }

  function draw() {
    scheduled = false;
    const body = document.getElementById("fleet-table");
    if (!body) return;
    const elements = wanted();
    const same = elements.length === body.children.length && elements.every((element) => element.parentNode === body);
    // Rows keep their order while the pointer is over the table, so that a click hits the intended row.
    if (!same || !body.matches(":hover")) {
      elements.forEach((element, index) => {
        if (body.children[index] !== element) body.insertBefore(element, body.children[index] || null);
      });
      while (body.children.length > elements.length) body.lastChild.remove();
    }
    body.parentNode.classList.add("loaded");
    const page = body.closest(".page");
    page.classList.toggle("empty", rows.size === 0);
    document.getElementById("fleet-empty").className = rows.size === 0 ? "" : "hidden";
    document.getElementById("fleet-none").classList.toggle("hidden", rows.size === 0 || elements.length > 0);
    document.dispatchEvent(new CustomEvent("spikewatch-fleet"));
  }

  function schedule() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(draw);
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
    for (const id of update.gone) {
      rows.get(id)?.element.remove();
      rows.delete(id);
    }
    groups = update.groups;
    schedule();
  }

  document.addEventListener("keydown", (event) => {
    const search = document.querySelector("#fleet-search, #alert-search");
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);
    if (search && event.key === "/" && !typing && !event.ctrlKey && !event.metaKey) {
      event.preventDefault();
      search.focus();
    }
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.fleet-row");
    if (!link || event.defaultPrevented || event.button) return;
    if (event.ctrlKey || event.metaKey || event.shiftKey || event.altKey) return;
    event.preventDefault(); // navigate without a reload, like links of Dash
    window.dash_clientside.set_props("location", {pathname: link.getAttribute("href"), search: "", hash: ""});
    window.scrollTo(0, 0);
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.spikewatch = {...window.dash_clientside.spikewatch, fleet};
})();
