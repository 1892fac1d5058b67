// Dialogs that a button opens, such as the drawer of a run. The server fills one when it is opened: the view says so by a
// number, and 0 once it is filled or closed, so that a session that begins anew does not replace what is typed.
(function () {
  "use strict";
  let opened = 0;

  const change = (number) => document.dispatchEvent(new CustomEvent("spikewatch-view", {detail: {drawer: number}}));

  function open(dialog) {
    opened += 1;
    dialog.showModal();
    const filled = new MutationObserver(done);
    function done() {
      filled.disconnect();
      change(0);
    }
    filled.observe(dialog, {childList: true, subtree: true});
    dialog.addEventListener("close", done, {once: true});
    change(opened);
  }

  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-opens], button[data-closes]");
    if (button && button.dataset.opens) open(document.getElementById(button.dataset.opens));
    else if (button) document.getElementById(button.dataset.closes).close();
    else if (event.target.matches("dialog.drawer")) event.target.close(); // the ground beside the drawer
  });
})();
