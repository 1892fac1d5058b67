// Forms and their buttons. Every action goes to the server through the store "form-action"; its result comes back through
// the store "form-result" and is shown in the form. A refused form keeps everything that was typed.
(function () {
  "use strict";
  let number = 0;

  function send(verb, subject, fields, form) {
    number += 1;
    window.dash_clientside.set_props("form-action", {data: {number, verb, subject: subject || null, form: form || null, fields}});
  }

  function fieldsOf(form) {
    const fields = {};
    for (const control of form.querySelectorAll("input[name], select[name], textarea[name]")) {
      fields[control.name] = control.value;
    }
    return fields;
  }

  // A choice decides which fields and notes are shown: those whose condition names the choice and its value.
  function choose(form, control) {
    for (const element of form.querySelectorAll(`[data-when="${CSS.escape(control.name)}"]`)) {
      element.hidden = !element.dataset.values.split(" ").includes(control.value);
    }
  }

  function clear(form) {
    for (const output of form.querySelectorAll(".field-error")) output.textContent = "";
    for (const control of form.querySelectorAll("[aria-invalid]")) control.removeAttribute("aria-invalid");
  }

  function formResult(data) {
    if (!data || !data.form) return;
    const form = document.querySelector(`form[data-form="${CSS.escape(data.form)}"]`);
    if (!form) return;
    clear(form);
    setBusy(form, false);
    let first = null;
    for (const [name, text] of Object.entries(data.errors || {})) {
      const control = form.querySelector(`[name="${CSS.escape(name)}"]`);
      const field = control && control.closest(".field");
      const output = (field && field.querySelector(".field-error")) || form.querySelector(".form-error");
      output.textContent = output.classList.contains("form-error") && name ? `${name}: ${text}` : text;
      if (control) control.setAttribute("aria-invalid", "true");
      first = first || control || output;
    }
    form.querySelector(".form-message").textContent = data.message || "";
    if (first && first.scrollIntoView) first.scrollIntoView({block: "nearest"});
    if (first && first.focus) first.focus();
  }

  function setBusy(form, isBusy) {
    for (const button of form.querySelectorAll("button")) button.disabled = isBusy;
  }

  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-form]");
    if (!form) return;
    event.preventDefault();
    const verb = (event.submitter && event.submitter.dataset.verb) || form.dataset.verb;
    clear(form);
    form.querySelector(".form-message").textContent = "";
    setBusy(form, true);
    send(verb, form.dataset.subject, fieldsOf(form), form.dataset.form);
    setTimeout(() => setBusy(form, false), 30000); // milliseconds; in case no result arrives
  });

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-verb]");
    if (!button || button.closest("form[data-form]")) return;
    event.preventDefault();
    if (button.dataset.sure && button.dataset.asked !== "yes") {
      // A second press within a few seconds confirms the action, without a dialog.
      const words = button.textContent;
      button.dataset.asked = "yes";
      button.textContent = button.dataset.sure;
      setTimeout(() => {
        button.dataset.asked = "";
        button.textContent = words;
      }, 4000);
      return;
    }
    send(button.dataset.verb, button.dataset.subject, {}, null);
  });

  document.addEventListener("change", (event) => {
    const form = event.target.closest && event.target.closest("form[data-form]");
    if (form && event.target.name) choose(form, event.target);
  });

  window.dash_clientside = window.dash_clientside || {};
  window.dash_clientside.spikewatch = {...window.dash_clientside.spikewatch, formResult};
})();
