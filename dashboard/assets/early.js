// Runs before anything is drawn: sets the theme, so that the page does not flash, and replaces the worker that holds the
// live socket.
(function () {
  "use strict";
  let saved = null;
  try {
    saved = localStorage.getItem("spikewatch-theme");
  } catch {
    // storage is forbidden: use the preference of the system
  }
  const preferred = matchMedia("(prefers-color-scheme: light)").matches ? "light" : "dark";
  document.documentElement.dataset.theme = saved === "light" || saved === "dark" ? saved : preferred;

  // Dash keeps its websocket in a SharedWorker, which outlives the page and does not exist on some phones. A worker of
  // this page alone ends with the page, so that the server is notified at once when the page is closed.
  window.SharedWorker = class {
    constructor(url) {
      const script = `importScripts(${JSON.stringify(new URL(url, location.href).href)});
        self.onmessage = (event) => self.onconnect({ports: event.ports});`;
      const source = URL.createObjectURL(new Blob([script], {type: "text/javascript"}));
      const worker = new Worker(source);
      const channel = new MessageChannel();
      worker.postMessage(null, [channel.port2]);
      channel.port1.addEventListener("message", (event) => {
        const type = event.data && event.data.type;
        if (type === "connected" || type === "disconnected") {
          window.dispatchEvent(new CustomEvent(`spikewatch-${type}`));
        }
      });
      this.port = channel.port1;
      this.worker = worker;
    }
  };
})();
