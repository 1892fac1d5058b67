// Builds the partial bundle of Plotly that the dashboard serves, with the licences of everything in it.
// `npm install --ignore-scripts && node build.mjs` in this folder; README.md says when.
import {readFile, readdir, writeFile} from "node:fs/promises";
import {createHash} from "node:crypto";
import {parse} from "acorn";
import {build} from "esbuild";

const TO = "../../dashboard/assets/plotly";

// The words that describe each attribute are for the reference of Plotly; its own distributions leave them out, too.
function withoutDescriptions(source) {
  const spans = [];
  const visit = (node) => {
    if (!node || typeof node.type !== "string") return;
    if (node.type === "ObjectExpression") {
      for (const property of node.properties) {
        const isWords = property.type === "Property" && (property.key.name || property.key.value) === "description";
        if (isWords) spans.push([property.value.start, property.value.end]);
        else visit(property);
      }
      return;
    }
    for (const value of Object.values(node)) {
      if (Array.isArray(value)) value.forEach(visit);
      else if (value && typeof value === "object") visit(value);
    }
  };
  visit(parse(source, {ecmaVersion: "latest", sourceType: "script", allowReturnOutsideFunction: true}));
  return spans.reverse().reduce((text, [start, end]) => `${text.slice(0, start)}''${text.slice(end)}`, source);
}

const strip = {
  name: "strip",
  setup({onLoad}) {
    onLoad({filter: /plotly\.js\/src\/.*\.js$/}, async ({path}) => ({
      contents: withoutDescriptions(await readFile(path, "utf8")),
    }));
  },
};

const {version} = JSON.parse(await readFile("node_modules/plotly.js/package.json", "utf8"));
const banner = `/* Plotly.js v${version}, partial bundle with scatter, bar and heatmap. MIT licence, Copyright Plotly, Inc.
The licences of this and of what it contains are in LICENSES.txt; deploy/plotly/README.md tells how it is built. */`;
const {outputFiles, metafile} = await build({
  entryPoints: ["bundle.cjs"], bundle: true, minify: true, format: "iife", globalName: "Plotly", target: "es2020",
  legalComments: "none", banner: {js: banner}, plugins: [strip], loader: {".css": "empty"}, write: false, metafile: true,
  outdir: TO, define: {global: "window", "define.amd": "false"}, logLevel: "warning",
});

const inside = Object.entries(Object.values(metafile.outputs)[0].inputs).filter(([path]) => !path.endsWith(".css"));
const packages = new Set(inside.map(([path]) => path.match(/.*node_modules\/((?:@[^/]+\/)?[^/]+)/)?.[1]).filter(Boolean));
const licences = [];
for (const name of [...packages].sort()) {
  const home = `node_modules/${name}`;
  const about = JSON.parse(await readFile(`${home}/package.json`, "utf8"));
  const file = (await readdir(home)).find((entry) => /^(licen[cs]e|copying)/i.test(entry));
  const words = file ? (await readFile(`${home}/${file}`, "utf8")).trim() : `Licence: ${JSON.stringify(about.license)}`;
  licences.push(`${name} ${about.version}\n\n${words}`);
}

const text = outputFiles[0].contents;
await writeFile(`${TO}/plotly-partial.min.js`, text);
await writeFile(`${TO}/LICENSES.txt`, `${licences.join(`\n\n${"-".repeat(80)}\n\n`)}\n`);
const hash = createHash("sha256").update(text).digest("hex");
await writeFile(`${TO}/plotly-partial.min.js.sha256`, `${hash}  plotly-partial.min.js\n`);
console.log(`${text.length} bytes, ${hash}`);
for (const licence of licences) console.log(licence.split("\n")[0]);
