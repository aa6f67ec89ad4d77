// dist/: one file for each entry, and the types of all modules. React and Vue stay outside, and so does the core of the
// two that are built on it: a page has it once.

import { execFileSync } from "node:child_process";
import { rmSync } from "node:fs";
import { build } from "esbuild";

rmSync("dist", { recursive: true, force: true });

const common = { bundle: true, format: "esm", target: "es2022", outdir: "dist", logLevel: "warning" };
const coreIsApart = {
  name: "core-is-apart",
  setup({ onResolve }) {
    onResolve({ filter: /^\.\/core\.js$/ }, () => ({ path: "./index.js", external: true }));
  },
};

await build({ ...common, entryPoints: ["src/index.ts"] });
await build({ ...common, entryPoints: ["src/react.ts", "src/vue.ts"], external: ["react", "vue"], plugins: [coreIsApart] });
execFileSync(process.execPath, ["node_modules/typescript/bin/tsc", "-p", "tsconfig.build.json"], { stdio: "inherit" });
