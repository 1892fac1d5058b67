// Keys: j and k move through the runs, [ and ] through the events of a run, f follows the newest steps, ? lists the keys.
(function () {
  "use strict";
  const KEYS = [
    ["/", "search the runs"],
    ["j  k", "next and previous run"],
    ["Enter", "open the run"],
    ["x  p", "pick the run for a comparison, pin it to the top"],
    ["[  ]", "previous and next event of the run"],
    ["f", "follow the newest steps, as a double click on a panel does"],
    ["?", "this list"],
  ];

  const isTyping = () => /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName);

  function moveThroughRuns(by) {
    const rows = [...document.querySelectorAll("a.fleet-row:not([hidden])")];
    if (!rows.length) return;
    const now = rows.indexOf(document.activeElement);
    const next = now < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.max(0, Math.min(rows.length - 1, now + by));
    rows[next].focus();
  }

  function focusedRun() {
    const row = document.activeElement;
    return row.matches("a.fleet-row") ? row.querySelector(".check").dataset.run : "";
  }

  function moveThroughEvents(by) {
    const steps = [...document.querySelectorAll('.alerts a[href*="?step="]')]
      .map((link) => Number(new URL(link.href).searchParams.get("step")))
      .sort((a, b) => a - b);
    if (!steps.length) return;
    const asked = new URLSearchParams(location.search).get("step");
    const now = asked === null ? Infinity : Number(asked);
    const found = by > 0 ? steps.find((step) => step > now) : steps.reverse().find((step) => step < now);
    if (found !== undefined) document.dispatchEvent(new CustomEvent("spikewatch-step", {detail: found}));
  }

  function list() {
    let dialog = document.getElementById("keys");
    if (!dialog) {
      dialog = document.createElement("dialog");
      dialog.id = "keys";
      dialog.setAttribute("aria-label", "Keys");
      const table = document.createElement("dl");
      for (const [key, words] of KEYS) {
        table.append(Object.assign(document.createElement("dt"), {textContent: key}));
        table.append(Object.assign(document.createElement("dd"), {textContent: words}));
      }
      dialog.append(table);
      dialog.addEventListener("click", () => dialog.close());
      document.body.append(dialog);
    }
    if (dialog.open) dialog.close();
    else dialog.showModal();
  }

  document.addEventListener("keydown", (event) => {
    const isCovered = document.querySelector("dialog[open]") && event.key !== "?";
    if (isCovered || isTyping() || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") moveThroughRuns(1);
    else if (event.key === "k") moveThroughRuns(-1);
    else if ((event.key === "x" || event.key === "p") && focusedRun()) {
      document.dispatchEvent(new CustomEvent("spikewatch-row-key", {detail: {key: event.key, run: focusedRun()}}));
    } else if (event.key === "]") moveThroughEvents(1);
    else if (event.key === "[") moveThroughEvents(-1);
    else if (event.key === "f") document.getElementById("follow")?.click();
    else if (event.key === "?") list();
    else return;
    event.preventDefault();
  });
})();
