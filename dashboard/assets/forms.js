// Forms and their buttons: what was filled in goes to the server through the store "deed", what is wrong comes back
// through the store "trouble" and is shown at its field. Nothing typed is lost by a refusal: the form stays as it is.
(function () {
  "use strict";
  let number = 0;

  function send(verb, of, fields, form) {
    number += 1;
    window.dash_clientside.set_props("deed", {data: {number, verb, of: of || null, form: form || null, fields}});
  }

  function filled(form) {
    const fields = {};
    for (const control of form.querySelectorAll("input[name], select[name], textarea[name]")) {
      fields[control.name] = control.value;
    }
    return fields;
  }

  // Which fields a form shows hangs on some of its choices: the stylesheet reads them from the form.
  function choose(form) {
    for (const control of form.querySelectorAll("select[data-choice]")) {
      form.setAttribute(`data-${control.name.replace("_", "-")}`, control.value);
    }
  }

  function clear(form) {
    for (const place of form.querySelectorAll(".field-error")) place.textContent = "";
    for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  }

  function trouble(data) {
    if (!data || !data.form) return;
    const form = document.querySelector(`form[data-form="${CSS.escape(data.form)}"]`);
    if (!form) return;
    clear(form);
    busy(form, false);
    let first = null;
    for (const [name, text] of Object.entries(data.fields || {})) {
      const control = form.querySelector(`[name="${CSS.escape(name)}"]`);
      const field = control && control.closest(".field");
      const place = (field && field.querySelector(".field-error")) || form.querySelector(".form-error");
      place.textContent = place.classList.contains("form-error") && name ? `${name}: ${text}` : text;
      if (control) control.setAttribute("aria-invalid", "true");
      first = first || control || place;
    }
    form.querySelector(".form-said").textContent = data.said || "";
    if (first && first.scrollIntoView) first.scrollIntoView({block: "nearest"});
    if (first && first.focus) first.focus();
  }

  function busy(form, is) {
    for (const button of form.querySelectorAll("button")) button.disabled = is;
  }

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-form]");
    if (!form) return;
    event.preventDefault();
    const verb = (event.submitter && event.submitter.dataset.verb) || form.dataset.verb;
    clear(form);
    form.querySelector(".form-said").textContent = "";
    busy(form, true);
    send(verb, form.dataset.of, filled(form), form.dataset.form);
    setTimeout(() => busy(form, false), 30000); // should no answer come
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-verb]");
    if (!button || button.closest("form[data-form]")) return;
    event.preventDefault();
    if (button.dataset.sure && button.dataset.asked !== "yes") {
      // A second press within a few seconds is the confirmation: no dialog, nothing lost by a slip.
      const words = button.textContent;
      button.dataset.asked = "yes";
      button.textContent = button.dataset.sure;
      setTimeout(() => {
        button.dataset.asked = "";
        button.textContent = words;
      }, 4000);
      return;
    }
    send(button.dataset.verb, button.dataset.of, {}, null);
  });

  document.addEventListener("change", (event) => {
    const form = event.target.closest && event.target.closest("form[data-form]");
    if (form) choose(form);
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.spikewatch = {...window.dash_clientside.spikewatch, trouble};
})();
