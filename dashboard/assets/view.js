// The view of this browser (page, steps, controls, theme), sent to the server through the store "view", and the check
// whether the server still answers. Figures are drawn from the updates that the server pushes.
(function () {
  "use strict";
  const root = document.documentElement;
  const phone = matchMedia("(max-width: 640px)");
  const SILENCE = 10000; // milliseconds without a beat after which the page counts as offline
  const CHECK_EVERY = 5000; // milliseconds between checks whether the server answers again

  let view = null;
  let follows = 0;

  const setProps = (id, props) => window.dash_clientside.set_props(id, props);

  // Rows of the history and the keys [ and ] move to a step of the run that is open.
  // Links in notifications do the same: /runs/ID?step=712 shows the steps around it.
  function jump(step) {
    const query = new URLSearchParams(location.search);
    query.set("step", step);
    history.replaceState(history.state, "", `?${query}`);
    change({range: window.spikewatchAddress.surroundings(step)});
  }

  function fresh(route) {
    return {
      page: route.page, subject: route.subject, range: null, follows, window: "", attempt: "", metric: "loss", stat: null,
      scale: "usual", reduce: "max", order: "", search: "", unfolded: [], theme: root.dataset.theme, narrow: phone.matches,
      cell: null, query: window.location.search, pinned: window.spikewatchPinned(), ...(route.page === "run" ? window.spikewatchAddress.read() : {}),
    };
  }

  function change(changes) {
    if (view === null) return;
    view = {...view, ...changes};
    document.body.classList.toggle("zoomed", view.range !== null);
    if (view.page === "run") window.spikewatchAddress.write(view);
    document.dispatchEvent(new CustomEvent("spikewatch-viewed", {detail: view}));
    setProps("view", {data: view});
  }

  document.addEventListener("spikewatch-view", (event) => change(event.detail));

  function follow() {
    follows += 1;
    change({range: null, follows});
  }

  // Zooming one panel zooms all panels at once; the server then sends finer data.
  function zoom() {
    const fired = window.dash_clientside.callback_context.triggered;
    const data = fired.length ? fired[0].value : null;
    if (!data || view === null) return;
    // A drag sets the two ends separately; "xaxis.range" as a whole is the echo of a figure from the server.
    const low = data["xaxis.range[0]"];
    const high = data["xaxis.range[1]"];
    if (typeof low !== "number" || typeof high !== "number") return;
    if (view.range && view.range[0] === low && view.range[1] === high) return;
    change({range: [low, high]});
    for (const plot of document.querySelectorAll(".panels .panel:not(.hidden) .graph-box .js-plotly-plot")) {
      const shown = plot._fullLayout && plot._fullLayout.xaxis && plot._fullLayout.xaxis.range;
      if (shown && (shown[0] !== low || shown[1] !== high)) window.Plotly.relayout(plot, {"xaxis.range": [low, high]});
    }
  }

  function cell() {
    const fired = window.dash_clientside.callback_context.triggered;
    const point = fired.length && fired[0].value && fired[0].value.points[0];
    if (!point || !fired[0].prop_id.includes("layers")) return;
    const plot = document.querySelector(".panel.layers .js-plotly-plot");
    const row = plot ? plot.data[0].y.indexOf(point.y) : -1; // the labels may be shortened; meta has the full names
    if (row >= 0) change({cell: {layer: plot.layout.meta[row], step: Math.round(point.x)}});
  }

  // Some pages hold their choices in the query of the address; the others have no use for it.
  function address() {
    if (view !== null && document.querySelector("[data-addressed]") && view.query !== window.location.search) {
      change({query: window.location.search});
    }
  }

  function route(data) {
    if (!data) return window.dash_clientside.no_update;
    follows += 1;
    view = fresh(data);
    document.body.classList.toggle("zoomed", view.range !== null);
    document.body.dataset.page = data.page;
    window.spikewatchPlotly.load(location.pathname);
    document.dispatchEvent(new CustomEvent("spikewatch-viewed", {detail: view}));
    return view;
  }

  document.addEventListener("change", (event) => {
    const name = event.target.dataset && event.target.dataset.pick;
    if (!name) return;
    if (name === "window" || name === "attempt") follow();
    change({[name]: event.target.value});
  });

  document.addEventListener("spikewatch-step", (event) => jump(event.detail));

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.to-step");
    if (link && !event.button && !event.ctrlKey && !event.metaKey && !event.shiftKey) {
      event.preventDefault();
      jump(Number(new URL(link.href).searchParams.get("step")));
      return;
    }
    const button = event.target.closest("button");
    if (!button) return;
    if (button.id === "follow") follow();
    if (button.classList.contains("theme")) {
      root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
      try {
        localStorage.setItem("spikewatch-theme", root.dataset.theme);
      } catch {
        // storage is forbidden: the choice lasts until the page is reloaded
      }
      change({theme: root.dataset.theme});
    }
    if (button.dataset.copy) copy(button);
  });

  // A live update redraws a plot and removes its hover label: repeat the last movement of the pointer.
  const pointer = {x: 0, y: 0, pressed: false};
  const AGAIN = 150; // milliseconds: Plotly drops a movement that follows another one within 50
  function pointAgain(plot) {
    const target = document.elementFromPoint(pointer.x, pointer.y);
    if (pointer.pressed || !target || !plot.contains(target)) return;
    target.dispatchEvent(new MouseEvent("mousemove", {clientX: pointer.x, clientY: pointer.y, bubbles: true}));
  }
  document.addEventListener("mousemove", (event) => {
    if (!event.isTrusted) return;
    Object.assign(pointer, {x: event.clientX, y: event.clientY, pressed: event.buttons !== 0});
    const plot = event.target.closest && event.target.closest(".js-plotly-plot");
    if (plot && plot.on && !plot.dataset.pointed) {
      plot.dataset.pointed = "yes";
      plot.on("plotly_afterplot", () => {
      pointAgain(plot);
      setTimeout(() => pointAgain(plot), AGAIN);
    });
      if (plot.closest(".panels")) plot.on("plotly_doubleclick", follow);
    }
  });

  phone.addEventListener("change", () => change({narrow: phone.matches}));

  async function copy(button) {
    const source = document.getElementById(button.dataset.copy);
    try {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = "Copied";
    } catch {
      window.getSelection().selectAllChildren(source); // the clipboard requires https: leave the text selected
      button.textContent = "Press Ctrl+C";
    }
  }

  // The beats show that the server answers; only the browser can notice that they stopped.
  let lastBeat = Date.now();
  let lostAt = null;
  let checkedAt = 0;

  function beat(sent) {
    if (!sent) return;
    if (sent < 0) {
      signedOut();
      return;
    }
    lastBeat = Date.now();
    online();
    entitle();
    if (view !== null && view.page === "run") window.spikewatchAddress.reflect(view);
  }

  // The tab names the run and the most urgent alert, or the page, and says how many there are, so that it can be found
  // among many.
  function entitle() {
    const run = document.querySelector(".run-top h1");
    const name = run ? run.title : (document.querySelector("#page h1") || {}).textContent;
    const said = run && document.querySelector(".danger-band .danger-words");
    const alert = said && said.textContent.split(/ \(|, |\. /)[0].replace(/\.$/, "");
    const count = document.querySelectorAll(".danger-band, .alert-list .alert-row:has(.buttons button)").length;
    const words = [alert, name, "Spikewatch"].filter(Boolean).join(" · ");
    const title = count ? `(${count}) ${words}` : words;
    if (document.title !== title) document.title = title;
  }

  function online() {
    lostAt = null;
    delete root.dataset.offline;
  }

  function offline(words) {
    const banner = document.querySelector(".offline");
    if (!banner) return;
    lostAt = lostAt || lastBeat;
    root.dataset.offline = "yes";
    const text = words || `offline since ${new Date(lostAt).toLocaleTimeString()}`;
    if (banner.textContent !== text) banner.textContent = text;
  }

  // The login has ended: open the login page, which leads back to this page.
  function signedOut() {
    location.assign(`/login?target=${encodeURIComponent(location.pathname)}`);
  }

  window.addEventListener("spikewatch-disconnected", () => offline());
  window.addEventListener("spikewatch-connected", () => {
    if (lostAt !== null) setProps("resume", {data: Date.now()});
  });

  async function check() {
    checkedAt = Date.now();
    try {
      const answer = await fetch("/assets/mark.svg", {cache: "no-store", redirect: "manual"});
      if (answer.ok) setProps("resume", {data: Date.now()});
      else if (answer.status === 401 || answer.status === 403 || answer.type === "opaqueredirect") {
        signedOut();
      }
    } catch {
      // the server does not answer yet
    }
  }

  setInterval(() => {
    if (Date.now() - lastBeat > SILENCE) offline();
    if (lostAt !== null && Date.now() - lostAt > SILENCE && Date.now() - checkedAt > CHECK_EVERY) check();
  }, 1000);

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.spikewatch = {
    ...window.dash_clientside.spikewatch, route, address, zoom, cell, beat,
  };
})();
