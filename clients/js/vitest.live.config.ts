import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: ["test-live/**/*.test.ts"],
    testTimeout: 30_000,
    hookTimeout: 30_000,
    // Node has both; until version 22 it has to be asked.
    execArgv: ["--experimental-websocket", "--experimental-eventsource"],
  },
});
