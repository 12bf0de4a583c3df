/* The filter: what is selected, and who is told when that changes. */

const SELECTS = [
  ["network", "Network"], ["environment", "Device"], ["dtype", "dtype"], ["kind", "Kind"], ["kernel", "Kernel"],
  ["winner", "Winner"], ["algorithm", "Tried"], ["source", "Source"],
];

const LONG = new Set(["network", "environment"]);
const TYPED = { least: "speed-up from", most: "speed-up to", search: "search" };

/** What is searched, and what is searched for, in one way of writing: small letters, and `x` between the sizes of a shape
 * for `×`, `*` and a comma, without the brackets that Python writes around it. A `*` between two shapes, which has room
 * around it, stays. */
const folded = (text) => text.toLowerCase()
  .replace(/(?<=\d)(?:\s*[×,]\s*|\*|\s+x\s+)(?=\d)/g, "x")
  .replace(/[([]\s*(?=\d+x\d)|(?<=\dx\d+)\s*,?\s*[)\]]/g, " ");

/** A name as commands may write it: letters and digits alone. */
const bare = (name) => name.toLowerCase().replace(/[^\p{L}\p{N}]/gu, "");

/** Tests of texts that are folded and of networks' bare names, one for each word that is searched for. */
function testsOf(search) {
  const asShape = (word) => (/^[\dx×*,]+$/.test(word) ? word.replace(/[×*,]/g, "x") : word);
  return folded(search).split(/\s+/).map(asShape).filter((word) => word && !/^[×*x,]+$/.test(word)).map((word) => {
    // A shape begins with a whole number, and is no argument's, such as `s1,1,1`; a dtype is no end of `bfloat16`.
    const before = /^\d+x[\dx]*$/.test(word) ? "(?<!\\d|\\s[spdi]|:)" : /^float\d*$/.test(word) ? "(?<!\\w)" : "";
    const name = /\p{L}/u.test(word) ? bare(word) : "";
    if (!before) return (text, networks) => text.includes(word) || (name !== "" && networks.includes(name));
    const pattern = new RegExp(before + word);
    return (text) => pattern.test(text);
  });
}

/** A filter over the data. `rows` are the numbers of the problems that pass; `set` changes it and tells `changed`, also
 * whether that was a step, which one can go back over: each is one, but a letter that follows another in its field. */
function makeFilter(data, changed) {
  const state = { network: "", environment: "", dtype: "", kind: "", kernel: "", winner: "", algorithm: "", source: "", least: "", most: "", search: "" };
  const usual = { ...state };
  let typing = ""; // the field whose letters are a step already
  const p = data.problems;
  const texts = new Array(data.count);
  const bareNames = data.networkSets.map((set) => set.map(([name]) => bare(name)).join("\n"));
  const deviceNames = data.environments.map((e) => `${e.identity.device} · ${e.identity.backend} · MLX ${e.identity.mlx}`);
  const sourceNames = data.sources.map((s) => s.imported.length ? `${s.name}, imported ${s.imported.join(", ")}` : `${s.name} (${s.kind})`);
  // In an address devices and files have names that hold in a report that is made anew; else they have numbers.
  const lasting = { environment: data.environments.map((e) => e.id), source: sourceNames };
  const offered = { network: data.networkSets.flat().map(([name]) => name), dtype: data.dtypes, kind: data.kinds, kernel: data.kernels, winner: data.algorithms, algorithm: data.algorithms };

  /** A value as the state has it, of one in an address; empty if nothing is called that. */
  function restored(name, value) {
    if (name === "search") return value;
    if (name === "least" || name === "most") return value !== "" && Number.isFinite(Number(value)) ? value : "";
    const at = (lasting[name] ?? offered[name]).indexOf(value);
    return at < 0 ? "" : name in lasting ? String(at) : value;
  }

  /** What is searched in, folded; made when it is first needed. */
  function textOf(i) {
    texts[i] ??= [
      keyOf(data, i), labelOf(data, i), data.names[p.candidate[i]], data.networks[p.networks[i]],
      deviceNames[p.environment[i]], sourceNames[p.source[i]],
    ].map(folded).join("\n");
    return texts[i];
  }

  /** Whether some candidate of an algorithm was tried on a problem. */
  function tried(i, algorithm) {
    for (let c = p.first[i]; c < data.ends(i); c++) if (data.candidates.algorithm[c] === algorithm) return true;
    return false;
  }

  function passing() {
    const number = (list, value) => (value === "" ? -1 : list.indexOf(value));
    const sets = state.network === "" ? null : data.networkSets.map((set) => set.some(([name]) => name === state.network));
    const environment = state.environment === "" ? -1 : Number(state.environment);
    const source = state.source === "" ? -1 : Number(state.source);
    const dtype = number(data.dtypes, state.dtype);
    const kind = number(data.kinds, state.kind);
    const kernel = number(data.kernels, state.kernel);
    const winner = number(data.algorithms, state.winner);
    const algorithm = number(data.algorithms, state.algorithm);
    const least = state.least === "" ? NaN : Number(state.least);
    const most = state.most === "" ? NaN : Number(state.most);
    const tests = testsOf(state.search);
    const found = new Uint32Array(data.count);
    let count = 0;
    for (let i = 0; i < data.count; i++) {
      if (sets && !sets[p.networks[i]]) continue;
      if (environment >= 0 && p.environment[i] !== environment) continue;
      if (source >= 0 && p.source[i] !== source) continue;
      if (dtype >= 0 && p.dtype[i] !== dtype) continue;
      if (kind >= 0 && p.kind[i] !== kind) continue;
      if (kernel >= 0 && data.kernelOf[i] !== kernel) continue;
      if (winner >= 0 && p.algorithm[i] !== winner) continue;
      if (algorithm >= 0 && !tried(i, algorithm)) continue;
      if (known(least) && !(p.speedup[i] >= least)) continue;
      if (known(most) && !(p.speedup[i] <= most)) continue;
      if (tests.length && !tests.every((test) => test(textOf(i), bareNames[p.networks[i]]))) continue;
      found[count++] = i;
    }
    return found.subarray(0, count);
  }

  const filter = {
    state,
    rows: passing(),
    deviceNames,
    sourceNames,
    set(changes, field = "") {
      const before = JSON.stringify(state);
      Object.assign(state, changes);
      const isStep = field === "" || field !== typing;
      if (JSON.stringify(state) !== before) typing = field; // what changes nothing, as a blank, was no step
      filter.rows = passing();
      changed(isStep);
    },
    /** The next letter is a step again, in whichever field. */
    leave() { typing = ""; },
    clear() { filter.set(usual); },
    /** What an address is to say, by name, empty for what is not set. */
    get values() {
      return Object.fromEntries(Object.entries(state).map(([name, value]) => [name, value !== "" && name in lasting ? lasting[name][Number(value)] : value]));
    },
    /** Take in what an address says; whether that is another filter than before. */
    restore(values) {
      const before = JSON.stringify(state);
      for (const name of Object.keys(state)) state[name] = restored(name, values.get(name) ?? "");
      filter.rows = passing();
      typing = "";
      return JSON.stringify(state) !== before;
    },
    /** The filter in words, empty where all pass. */
    get told() {
      const shown = { environment: deviceNames, source: sourceNames };
      const said = SELECTS.map(([name, title]) => [title.toLowerCase(), name, name in shown ? shown[name][Number(state[name])] : words(state[name])]);
      const typed = Object.entries(TYPED).map(([name, title]) => [title, name, state[name]]);
      return [...said, ...typed].filter(([, name]) => filter.isSet(name)).map(([title, , text]) => `${title} ${text}`).join(", ");
    },
    isSet: (name) => state[name] !== "",
  };
  return filter;
}

/** The filter's controls, which follow it and it them; what is being typed is left alone, but where `isRestored`. */
function makeFilterForm(data, filter) {
  const form = byId("filters");
  const counted = (column, names) => {
    const counts = new Array(names.length).fill(0);
    for (const value of column) counts[value]++;
    return names.map((name, i) => [name, name, counts[i]]).filter(([name, , count]) => name !== "" && count);
  };
  const p = data.problems;
  const byCount = (options) => options.sort((a, b) => b[2] - a[2]);
  const networks = new Map();
  for (const set of p.networks) for (const [name] of data.networkSets[set]) networks.set(name, (networks.get(name) ?? 0) + 1);
  const triedCounts = counted(data.candidates.algorithm, data.algorithms);
  const options = {
    network: [...networks].map(([name, count]) => [name, name, count]).sort((a, b) => data.isOwn(b[0]) - data.isOwn(a[0]) || a[0].localeCompare(b[0])),
    environment: counted(p.environment, data.environments.map((_, i) => String(i))).map(([i, , n]) => [i, filter.deviceNames[i], n]),
    dtype: byCount(counted(p.dtype, data.dtypes)),
    kind: byCount(counted(p.kind, data.kinds)),
    kernel: byCount(counted(data.kernelOf, data.kernels)),
    winner: byCount(counted(p.algorithm, data.algorithms)),
    algorithm: triedCounts.map(([name]) => [name, name, 0]),
    source: counted(p.source, data.sources.map((_, i) => String(i))).map(([i, , n]) => [i, filter.sourceNames[i], n]),
  };
  const fields = {};
  const stops = []; // of what was typed and is not yet taken in
  for (const [name, title] of SELECTS) {
    const select = make("select", { name, onchange: () => filter.set({ [name]: select.value }) }, make("option", { value: "" }, "all"));
    for (const [value, text, count] of options[name]) {
      select.append(make("option", { value }, `${name === "kind" ? words(text) : text}${count ? ` (${whole(count)})` : ""}`));
    }
    fields[name] = select;
    form.append(make("label", LONG.has(name) ? { class: "long" } : {}, title, select));
  }
  const typed = (name, attributes) => {
    let waiting = 0;
    const take = () => { waiting = 0; filter.set({ [name]: input.value.trim() }, name); };
    const stop = () => { const isWaiting = waiting !== 0; clearTimeout(waiting); waiting = 0; return isWaiting; };
    const input = make("input", { name, ...attributes, oninput: () => { stop(); waiting = setTimeout(take, 150); }, onblur: () => { if (stop()) take(); filter.leave(); } });
    stops.push(stop);
    fields[name] = input;
    return input;
  };
  const number = { type: "number", min: "0", step: "any", inputmode: "decimal" };
  form.append(make("label", {}, "Speed-up, from and to", make("span", { class: "range" },
    typed("least", { ...number, placeholder: "from", "aria-label": "Least speed-up" }),
    typed("most", { ...number, placeholder: "to", "aria-label": "Greatest speed-up" }))));
  form.append(make("label", { class: "long" }, "Search", typed("search", { type: "search", placeholder: "shape, network, winner" })));
  form.append(make("button", { type: "button", id: "reset", class: "short", onclick: () => filter.clear() }, "Reset"));
  form.addEventListener("submit", (event) => event.preventDefault());
  return (isRestored = false) => {
    if (isRestored) for (const stop of stops) stop();
    for (const [name, field] of Object.entries(fields)) {
      if (isRestored || document.activeElement !== field) field.value = filter.state[name];
      field.parentElement.classList.toggle("set", filter.isSet(name));
    }
    byId("count").textContent = `${whole(filter.rows.length)} of ${many(data.count, "problem")}`;
  };
}
