// The page is built into the Python package, which serves it as three files: index.html, app.js and style.css. The same
// sources give the same bytes, so that a test can tell whether what is committed is what they make.

import { fileURLToPath } from "node:url";
import { defineConfig, type Plugin } from "vitest/config";

const file = (path: string) => fileURLToPath(new URL(path, import.meta.url));

const BANNER = "built from clients/demo; do not edit";

/** Says in each file that it is no source. */
const banner: Plugin = {
  name: "banner",
  enforce: "post",
  generateBundle(_, bundle) {
    for (const output of Object.values(bundle)) {
      if (output.type === "chunk") output.code = `/* ${BANNER} */\n${output.code}`;
      else if (output.fileName.endsWith(".css")) output.source = `/* ${BANNER} */\n${output.source}`;
      else output.source = `<!-- ${BANNER} -->\n${output.source}`;
    }
  },
};

export default defineConfig({
  plugins: [banner],
  resolve: {
    // The client from its sources: nothing of clients/js has to be installed or built.
    alias: [
      { find: /^street-fast$/, replacement: file("../js/src/index.ts") },
      { find: /^street-fast\/react$/, replacement: file("../js/src/react.ts") },
    ],
    dedupe: ["react"],
  },
  esbuild: { jsx: "automatic", legalComments: "inline" },
  build: {
    outDir: file("../../street_fast/demo"),
    emptyOutDir: false,
    target: "es2022",
    cssTarget: "chrome123", // light-dark() stays as it is
    modulePreload: false,
    assetsInlineLimit: 0,
    reportCompressedSize: false,
    rollupOptions: { output: { entryFileNames: "app.js", assetFileNames: "style[extname]" } },
  },
  // `npm run dev`, beside a running `street-fast demo`.
  server: { proxy: { "/realtime": { target: "http://127.0.0.1:3000", ws: true } } },
  test: { include: ["test/**/*.test.ts"] },
});
