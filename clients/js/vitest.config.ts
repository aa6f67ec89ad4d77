import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 30_000, // what waits for a compiler waits longer on a busy machine
    testTimeout: 60_000, // no test is near it on a slow machine; what hangs still ends
    hookTimeout: 30_000,
    restoreMocks: true,
    unstubGlobals: true,
  },
});
