import { defineConfig } from "vite";

// Relative paths, so that the built page runs from any directory of any server.
export default defineConfig({ base: "./" });
