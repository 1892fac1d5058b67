// The parts of Plotly with which the figures of the dashboard are drawn; scatter is always among them.
const Plotly = require("plotly.js/lib/core");
Plotly.register([require("plotly.js/lib/bar"), require("plotly.js/lib/heatmap")]);
module.exports = Plotly;
