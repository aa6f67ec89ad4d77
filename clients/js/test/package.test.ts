// What is shipped: how large it is, what it imports, and that its examples are right.

import { execFileSync, spawnSync } from "node:child_process";
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";
import { afterAll, beforeAll, expect, test } from "vitest";

const ROOT = join(import.meta.dirname, "..");
const read = (name: string) => readFileSync(join(ROOT, name), "utf8");
const manifest = JSON.parse(read("package.json"));

async function bundled(code: string): Promise<string> {
  const { outputFiles } = await build({
    stdin: { contents: code, resolveDir: join(ROOT, "src") },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    write: false,
    logLevel: "error",
    external: ["react", "vue"],
  });
  return outputFiles[0]!.text;
}

const gzipped = (text: string) => gzipSync(text, { level: 9 }).length;

test("the core is smaller than 6 KB, as it goes over the wire", async () => {
  expect(gzipped(await bundled('export * from "./index.js"'))).toBeLessThan(6_000);
});

test("React and Vue add little, and the core is in it once", async () => {
  const core = gzipped(await bundled('export * from "./index.js"'));
  for (const entry of ["react", "vue"]) {
    expect(gzipped(await bundled(`export * from "./index.js"; export * from "./${entry}.js"`))).toBeLessThan(core + 1_024);
  }
});

test("what is not used is not there", async () => {
  expect((await bundled('import { RealtimeError } from "./index.js"; console.log(RealtimeError)')).length).toBeLessThan(400);
  expect(await bundled('import "./index.js"')).toBe("");
});

test("it depends on nothing", () => {
  expect(manifest.dependencies).toBeUndefined();
  expect(manifest.sideEffects).toBe(false);
  for (const name of readdirSync(join(ROOT, "src"))) {
    const imports = [...read(`src/${name}`).matchAll(/from "([^.][^"]*)"/g)].map((found) => found[1]);
    expect(imports, name).toEqual(["react.ts", "vue.ts"].includes(name) ? [name.slice(0, -3)] : []);
  }
});

test("the lock file names no host to install from", () => {
  const { packages } = JSON.parse(read("package-lock.json"));
  for (const [name, entry] of Object.entries<any>(packages)) expect(entry.resolved, name).toBeUndefined();
  expect(packages[""].version).toBe(manifest.version);
});

test("the versions of the client and the server are one", () => {
  expect(manifest.version).toBe(/__version__ = "(.*)"/.exec(read("../../street_fast/__init__.py"))![1]);
});

// The examples of the README are compiled against what is built, as a user would.
let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(ROOT, "node_modules", ".package-"));
  execFileSync(process.execPath, ["build.mjs", join(folder, "dist")], { cwd: ROOT });
});
afterAll(() => rmSync(folder, { recursive: true, force: true }));

test("the built package has what its manifest says", () => {
  const built = (name: string) => readFileSync(join(folder, name), "utf8");
  for (const { types, default: code } of Object.values<any>(manifest.exports)) {
    expect(built(types).length * built(code).length).toBeGreaterThan(0);
  }
  expect(built("dist/react.js")).toMatch(/^"use client";\n[^]*from ".\/index.js"/);
  expect(built("dist/vue.js")).toContain('from "./index.js"');
});

test("the examples of the README compile", () => {
  const examples = [...read("README.md").matchAll(/```(tsx?)\n([\s\S]*?)```/g)];
  expect(examples.length).toBeGreaterThanOrEqual(4);
  const files = examples.map(([, kind, code], index) => {
    writeFileSync(join(folder, `example${index}.${kind}`), code!);
    return `example${index}.${kind}`;
  });
  const paths = Object.fromEntries(
    Object.entries<any>(manifest.exports).map(([entry, { types }]) => [
      `street-fast${entry.slice(1)}`,
      [join(folder, types)],
    ]),
  );
  const compilerOptions = {
    ...{ strict: true, noEmit: true, target: "es2022", module: "preserve", jsx: "react-jsx", skipLibCheck: true },
    ...{ lib: ["es2022", "dom", "dom.iterable"], types: [], exactOptionalPropertyTypes: true, paths },
  };
  writeFileSync(join(folder, "tsconfig.json"), JSON.stringify({ compilerOptions, files }));
  const tsc = join(ROOT, "node_modules/typescript/bin/tsc");
  const { stdout } = spawnSync(process.execPath, [tsc, "-p", folder], { encoding: "utf8" });
  expect(stdout).toBe("");
});
