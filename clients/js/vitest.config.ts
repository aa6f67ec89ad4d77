import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test/**/*.test.ts"],
    testTimeout: 60_000, // no test is near it on a slow machine; what hangs still ends
    hookTimeout: 60_000,
    restoreMocks: true,
    unstubGlobals: true,
  },
});
