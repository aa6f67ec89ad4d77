// node build.mjs [FOLDER]: one file for each entry, and the types of all modules, in dist/ or FOLDER. React and Vue stay
// outside, and so does the core of the two that are built on it: a page has it once.

import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { build } from "esbuild";

const outdir = process.argv[2] ?? "dist";
rmSync(outdir, { recursive: true, force: true });

const common = { bundle: true, format: "esm", target: "es2022", outdir, logLevel: "warning" };
const coreIsApart = {
  name: "core-is-apart",
  setup({ onResolve }) {
    onResolve({ filter: /^\.\/core\.js$/ }, () => ({ path: "./index.js", external: true }));
  },
};
// To a framework that renders on a server, hooks are of the page.
const ofThePage = { js: '"use client";' };

await build({ ...common, entryPoints: ["src/index.ts"] });
await build({ ...common, entryPoints: ["src/react.ts"], external: ["react"], plugins: [coreIsApart], banner: ofThePage });
await build({ ...common, entryPoints: ["src/vue.ts"], external: ["vue"], plugins: [coreIsApart] });
const tsc = ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json", "--outDir", outdir];
execFileSync(process.execPath, tsc, { stdio: "inherit" });
