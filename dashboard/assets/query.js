// Pages whose choices are in the address: controls write to the query of the address and follow it, so that a reload, Back
// and a link that is passed on show the same. A control with data-query holds the value of that name; one with data-adds
// appends its value to a list of values separated by commas. A text field has the name at the label around it (data-queried).
(function () {
  "use strict";
  const TYPING = 250; // milliseconds after the last key of a search

  const addressed = () => document.querySelector("[data-addressed]");
  const asked = () => new URLSearchParams(window.location.search);

  // Every change but typing makes an entry of the history. Dash notices both by the event.
  function go(changes, isTyping) {
    const query = asked();
    for (const [name, value] of Object.entries(changes)) {
      if (value === "" || value === null) query.delete(name);
      else query.set(name, value);
    }
    const text = query.toString().replaceAll("%2C", ",");
    const search = text ? `?${text}` : "";
    if (search === window.location.search) return;
    const address = window.location.pathname + search;
    if (isTyping) history.replaceState(history.state, "", address);
    else history.pushState(history.state, "", address);
    window.dispatchEvent(new PopStateEvent("popstate", {state: history.state}));
  }

  // The value of a control without one in the address: that of its first option, or no text.
  const usual = (control) => (control.options ? (control.options[0] || {value: ""}).value : "");

  const nameOf = (control) => control.dataset?.query || control.closest?.("[data-queried]")?.dataset.queried;

  function sync() {
    if (!addressed()) return;
    const query = asked();
    for (const control of document.querySelectorAll("[data-query], [data-queried] input")) {
      const wanted = query.get(nameOf(control)) ?? usual(control);
      if (control !== document.activeElement || control.options) {
        if (control.value !== wanted && (!control.options || [...control.options].some((one) => one.value === wanted))) {
          control.value = wanted;
        }
      }
    }
  }

  function chosen(control, isTyping) {
    go({[nameOf(control)]: control.value === usual(control) ? "" : control.value}, isTyping);
  }

  let typing = 0;
  document.addEventListener("input", (event) => {
    const control = event.target;
    if (!nameOf(control) || control.options) return;
    clearTimeout(typing);
    typing = setTimeout(() => chosen(control, true), TYPING);
  });
  document.addEventListener("change", (event) => {
    const control = event.target;
    if (!control.dataset || !control.options) return;
    if (control.dataset.query) chosen(control, false);
    if (control.dataset.adds && control.value) {
      const name = control.dataset.adds;
      const values = (asked().get(name) || "").split(",").filter(Boolean);
      go({[name]: [...values, control.value].join(",")}, false);
      control.value = "";
    }
  });

  // Zooming a panel of a comparison is a choice like any other; a double click ends it.
  function compareZoom() {
    const fired = window.dash_clientside.callback_context.triggered;
    const data = fired.length ? fired[0].value : null;
    if (!data) return;
    const end = Object.keys(data).find((name) => /^xaxis\d*\.range\[0\]$/.test(name));
    if (Object.keys(data).some((name) => /^xaxis\d*\.autorange$/.test(name))) go({from: "", to: ""}, false);
    else if (end) {
      const digits = (value) => String(Number(Number(value).toPrecision(7)));
      go({from: digits(data[end]), to: digits(data[end.replace("[0]", "[1]")])}, false);
    }
  }

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.spikewatch = {...window.dash_clientside.spikewatch, sync, compareZoom};
})();
