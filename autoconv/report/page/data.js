/* Data: the columns as typed arrays, read once. All else refers to problems and candidates by their numbers. */

const TYPES = { Uint8Array, Uint16Array, Uint32Array, Float32Array, Float64Array };

/** Bytes of a text in base64. */
function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return bytes;
}

/** All that the page holds: `problems` and `candidates` as objects of columns, and what is no column. */
async function load() {
  const holder = document.getElementById("data");
  const packed = new Blob([bytesOf(holder.textContent)]);
  holder.remove(); // it is not needed twice
  const unpacked = packed.stream().pipeThrough(new DecompressionStream("gzip"));
  const buffer = await new Response(unpacked).arrayBuffer();
  const length = new DataView(buffer).getUint32(0, true);
  const { columns, ...meta } = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const data = { ...meta, problems: {}, candidates: {} };
  for (const [name, [type, place, count]] of Object.entries(columns)) {
    const [table, column] = name.split(".");
    data[table][column] = new TYPES[type](buffer, 4 + length + place, count);
  }
  return prepared(data);
}

/** The data with what follows from it: counts, kernels, networks. */
function prepared(data) {
  const p = data.problems;
  data.count = p.n.length;
  data.networkSets = data.networks.map((text) => text.split("\n").map((line) => {
    const space = line.indexOf(" ");
    return [line.slice(space + 1), Number(line.slice(0, space))];
  }));
  const numbers = new Map();
  data.kernelOf = new Uint16Array(data.count);
  for (let i = 0; i < data.count; i++) {
    const kernel = `${p.kd[i]}×${p.kh[i]}×${p.kw[i]}`;
    if (!numbers.has(kernel)) numbers.set(kernel, numbers.size);
    data.kernelOf[i] = numbers.get(kernel);
  }
  data.kernels = [...numbers.keys()];
  const mine = new Set(data.own);
  data.isOwn = (network) => mine.has(network);
  // A row is the user's own if a network of theirs makes it, or if it was measured here.
  const isMineSet = data.networkSets.map((set) => set.some(([name]) => mine.has(name)));
  data.isMine = (i) => isMineSet[p.networks[i]] || data.sources[p.source[i]].kind === "own";
  const yours = Array.from({ length: data.count }, (_, i) => data.isMine(i));
  data.hasOthers = yours.includes(true) && yours.includes(false); // beside rows of the user's own
  data.native = data.algorithms.indexOf("native");
  data.ends = (i) => (i + 1 < data.count ? p.first[i + 1] : data.candidates.us.length);
  // Which problem a candidate belongs to, for what is drawn of candidates.
  data.problemOf = new Uint32Array(data.candidates.us.length);
  for (let i = 0; i < data.count; i++) data.problemOf.fill(i, p.first[i], data.ends(i));
  return data;
}

/** A problem's shapes. */
function shapesOf(data, i) {
  const p = data.problems;
  return {
    input: [p.n[i], p.d[i], p.h[i], p.w[i], p.c_in[i]],
    weight: [p.c_out[i], p.kd[i], p.kh[i], p.kw[i], p.c_in[i] / p.groups[i]],
  };
}

/** A problem's key, as autoconv writes it. */
function keyOf(data, i) {
  const { input, weight } = shapesOf(data, i);
  const p = data.problems;
  const said = data.arguments[p.arguments[i]].split(" ");
  const flip = said.pop();
  return [data.kinds[p.kind[i]], data.dtypes[p.dtype[i]], `x${input}`, `w${weight}`, ...said, `g${p.groups[i]}`, flip].join(" ");
}

/** A problem's arguments: stride, padding and so on, by name. */
function argumentsOf(data, i) {
  const [stride, padding, dilation, spread, flip] = data.arguments[data.problems.arguments[i]].split(" ").map((x) => x.slice(1));
  const [low, high] = padding.split(":");
  return { stride, low, high, dilation, spread, flip: flip === "1" };
}

/** A problem for people: sizes, then what is not the default. */
function labelOf(data, i) {
  const { input, weight } = shapesOf(data, i);
  const { stride, low, high, dilation, spread, flip } = argumentsOf(data, i);
  const short = (text) => (new Set(text.split(",")).size === 1 ? text.split(",")[0] : text.replaceAll(",", "×"));
  const parts = [`${input.join("×")} * ${weight.join("×")}`];
  if (stride !== "1,1,1") parts.push(`stride ${short(stride)}`);
  if (low !== high) parts.push(`padding ${short(low)}:${short(high)}`);
  else if (low !== "0,0,0") parts.push(`padding ${short(low)}`);
  if (dilation !== "1,1,1") parts.push(`dilation ${short(dilation)}`);
  if (spread !== "1,1,1") parts.push(`input dilation ${short(spread)}`);
  if (data.problems.groups[i] !== 1) parts.push(`groups ${data.problems.groups[i]}`);
  if (flip) parts.push("flipped");
  return parts.join(", ");
}

/** A word of a command for a shell. */
const quoted = (word) => (/^[\w.+,:=@%-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

/** The command that explains a problem on the machine where it is run, in the folder of the file that it came from. */
function commandOf(data, i) {
  const { input, weight } = shapesOf(data, i);
  const { stride, low, high, dilation, spread, flip } = argumentsOf(data, i);
  const parts = ["autoconv explain", `--input ${input}`, `--weight ${weight}`];
  const add = (name, value, usual) => value !== usual && parts.push(`--${name} ${value}`);
  add("stride", stride, "1,1,1");
  add("padding", low === high ? low : `${low}:${high}`, "0,0,0");
  add("dilation", dilation, "1,1,1");
  add("input-dilation", spread, "1,1,1");
  add("groups", data.problems.groups[i], 1);
  if (flip) parts.push("--flip");
  add("dtype", data.dtypes[data.problems.dtype[i]], "float32");
  add("kind", data.kinds[data.problems.kind[i]], "forward");
  const source = data.sources[data.problems.source[i]];
  if (source.kind === "file") parts.push(`--database ${quoted(source.name.replace(/ \(\d+\)$/, ""))}`); // of two of a name the second is "m.db (2)"
  return parts.join(" ");
}
