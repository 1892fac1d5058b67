// Saved views of the table of runs: the query of the address under a name, kept in this browser.
(function () {
  "use strict";
  const VIEWS = "spikewatch-views";
  const MAX_NAME = 60; // characters

  function stored() {
    try {
      const found = JSON.parse(localStorage.getItem(VIEWS) || "{}");
      return found && typeof found === "object" && !Array.isArray(found) ? found : {};
    } catch {
      return {}; // storage is forbidden or holds something else
    }
  }
  let views = stored();

  function keep() {
    try {
      localStorage.setItem(VIEWS, JSON.stringify(views));
    } catch {
      // storage is forbidden: the views last until the page is reloaded
    }
    list();
  }

  function make(tag, words, parent, does) {
    const element = document.createElement(tag);
    element.textContent = words;
    if (does) {
      element.type = "button";
      element.className = "button";
      element.addEventListener("click", does);
    }
    parent.append(element);
    return element;
  }

  function list() {
    const menu = document.getElementById("fleet-views");
    if (!menu) return;
    menu.replaceChildren();
    for (const [name, query] of Object.entries(views)) {
      const line = make("div", "", menu);
      make("button", name, line, () => {
        history.pushState(history.state, "", window.location.pathname + query);
        window.dispatchEvent(new PopStateEvent("popstate", {state: history.state}));
        menu.parentNode.open = false;
      });
      make("button", "×", line, () => {
        delete views[name];
        keep();
      }).setAttribute("aria-label", `Remove the view ${name}`);
    }
    const form = document.createElement("form");
    const name = document.createElement("input");
    Object.assign(name, {placeholder: "Name of this view", maxLength: MAX_NAME, required: true, className: "entry"});
    name.setAttribute("aria-label", "Name of this view");
    form.append(name);
    make("button", "Save", form).className = "button";
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!name.value.trim()) return;
      views = {...views, [name.value.trim()]: window.location.search};
      keep();
    });
    menu.append(form);
  }

  document.addEventListener("toggle", (event) => {
    if (event.target.matches && event.target.matches(".views") && event.target.open) list();
  }, true);
})();
