// SPDX-License-Identifier: Apache-2.0
// What V8 does by generated code and by signals: compiled loops, WebAssembly that traps, workers.
"use strict";
const { createHash } = require("crypto");
const { execFileSync } = require("child_process");
const { Worker, isMainThread, parentPort } = require("worker_threads");

function hash(from, turns) {
  let sum = from;
  for (let i = 0; i < turns; i++) sum = (Math.imul(sum, 31) + i) | 0;
  return sum;
}

if (!isMainThread) {
  parentPort.postMessage(hash(1, 1000000));
  return;
}

// (module (memory 1) (func (export "load") (param i32) (result i32) local.get 0 i32.load))
const wasm = Buffer.from(
  "0061736d0100000001060160017f017f030201000503010001070801046c6f616400000a0901070020002802000b",
  "hex",
);

let sum = 0;
for (let i = 0; i < 20000; i++) sum = (sum + hash(i, 50)) | 0;
console.log("sum", sum);
try {
  null.x;
} catch (expected) {
  console.log(expected.constructor.name);
}
const { load } = new WebAssembly.Instance(new WebAssembly.Module(wasm)).exports;
console.log("inside", load(0));
try {
  // Out of bounds is a SIGSEGV.
  load(1 << 30);
} catch (expected) {
  console.log(expected.constructor.name);
}
console.log(createHash("sha256").update(Buffer.alloc(1000000, 7)).digest("hex"));
console.log(execFileSync("sh", ["-c", "echo child"]).toString().trim());
const worker = new Worker(__filename);
worker.on("message", (found) => console.log("worker", found));
worker.on("exit", (status) => console.log("end", status));
