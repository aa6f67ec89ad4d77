import { defineConfig } from "vite";

// The page and the server have one origin in the browser: what goes to /realtime is passed on.
const realtime = { target: process.env.REALTIME ?? "http://127.0.0.1:3000", ws: true };

export default defineConfig({ server: { proxy: { "/realtime": realtime } } });
