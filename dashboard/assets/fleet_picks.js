// Runs that are picked for a comparison, and runs that are pinned to the top of the table. Pins last in this browser; the
// server orders the table by them.
(function () {
  "use strict";
  const PINS = "spikewatch-pinned";
  const MAX_PINS = 64; // the server reads so many
  const MAX_PICKS = 8; // runs that can be compared at once
  const picks = new Set();

  function stored() {
    try {
      const found = JSON.parse(localStorage.getItem(PINS) || "[]");
      return Array.isArray(found) ? found.filter((id) => typeof id === "string").slice(0, MAX_PINS) : [];
    } catch {
      return []; // storage is forbidden or holds something else
    }
  }
  let pins = stored();
  window.spikewatchPinned = () => pins;

  function reflect() {
    for (const button of document.querySelectorAll(".fleet-row .check")) {
      const isPicked = picks.has(button.dataset.run);
      button.setAttribute("aria-checked", String(isPicked));
      button.disabled = !isPicked && picks.size >= MAX_PICKS;
    }
    for (const button of document.querySelectorAll(".fleet-row .pin")) {
      button.setAttribute("aria-pressed", String(pins.includes(button.dataset.run)));
    }
    const bar = document.getElementById("fleet-picked");
    if (!bar) return;
    bar.classList.toggle("hidden", picks.size === 0);
    const link = document.getElementById("fleet-compare");
    link.textContent = `Compare ${picks.size} ${picks.size === 1 ? "run" : "runs"}`;
    link.href = `/compare?runs=${[...picks].map(encodeURIComponent).join(",")}`;
  }

  function pick(id) {
    if (picks.has(id)) picks.delete(id);
    else if (picks.size < MAX_PICKS) picks.add(id);
    reflect();
  }

  function pin(id) {
    pins = pins.includes(id) ? pins.filter((other) => other !== id) : [...pins, id].slice(-MAX_PINS);
    try {
      localStorage.setItem(PINS, JSON.stringify(pins));
    } catch {
      // storage is forbidden: the pins last until the page is reloaded
    }
    reflect();
    document.dispatchEvent(new CustomEvent("spikewatch-view", {detail: {pinned: pins}}));
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest(".fleet-row .pick button");
    if (button) {
      event.preventDefault(); // the row is a link
      if (button.classList.contains("check")) pick(button.dataset.run);
      else pin(button.dataset.run);
    }
    if (event.target.closest(".fleet-row .pick")) event.preventDefault(); // a click beside the boxes opens no run
    if (event.target.id === "fleet-clear") {
      picks.clear();
      reflect();
    }
    const link = event.target.closest("#fleet-compare");
    if (link && !event.button && !event.ctrlKey && !event.metaKey && !event.shiftKey && !event.altKey) {
      event.preventDefault(); // navigate without a reload, like links of Dash
      window.dash_clientside.set_props("location", {pathname: "/compare", search: new URL(link.href).search, hash: ""});
    }
  }, true);

  document.addEventListener("spikewatch-fleet", reflect);
  document.addEventListener("spikewatch-row-key", (event) => {
    if (event.detail.key === "x") pick(event.detail.run);
    else pin(event.detail.run);
  });
})();
